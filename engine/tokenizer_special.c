/* Special tokens out of the JSON files of a tokenizer. Token texts are strings, or objects with a string "content". */
#include "tokenizer_special.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MAX_JSON_BYTES (4u << 20)

static const char *const role_keys[] = {[BTC_SPECIAL_BOS] = "bos_token",
                                        [BTC_SPECIAL_EOS] = "eos_token",
                                        [BTC_SPECIAL_UNK] = "unk_token",
                                        [BTC_SPECIAL_PAD] = "pad_token"};

btc_status btc_special_add(btc_special_list *list, btc_special_role role, const char *text, size_t len, int32_t id,
                           const char *where, btc_error *err) {
  if (len == 0 || len > BTC_SPECIAL_MAX_BYTES)
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': a special token of %zu bytes; 1 to %d are supported", where, len,
                    BTC_SPECIAL_MAX_BYTES);
  if (memchr(text, 0, len)) return btc_fail(err, BTC_ERR_FORMAT, "'%s': a special token with a NUL byte", where);
  if (list->n == BTC_SPECIAL_MAX) return btc_fail(err, BTC_ERR_LIMIT, "'%s': more than %d special tokens", where, BTC_SPECIAL_MAX);
  char *copy = btc_strndup(text, len);
  if (!copy) return btc_fail(err, BTC_ERR_NOMEM, "'%s': no memory for a special token", where);
  list->v[list->n++] = (btc_special){copy, len, id, role};
  return BTC_OK;
}

const btc_special *btc_special_of(const btc_special_list *list, btc_special_role role) {
  for (size_t i = 0; i < list->n; i++)
    if (list->v[i].role == role) return &list->v[i];
  return NULL;
}

void btc_special_free(btc_special_list *list) {
  for (size_t i = 0; i < list->n; i++) free(list->v[i].text);
  list->n = 0;
}

/* *json stays NULL when there is no such file. */
static btc_status read_object(const char *path, json_t **json, btc_error *err) {
  uint8_t *data = NULL;
  size_t len = 0;
  *json = NULL;
  btc_error local = {0};
  btc_status st = btc_file_read(path, MAX_JSON_BYTES, &data, &len, &local);
  if (st == BTC_ERR_NOT_FOUND) return BTC_OK;
  if (st != BTC_OK) return btc_fail(err, st, "%s", local.message);
  json_error_t problem;
  *json = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES, &problem);
  free(data);
  if (!*json) return btc_fail(err, BTC_ERR_FORMAT, "'%s' is not JSON: %s at line %d", path, problem.text, problem.line);
  if (json_is_object(*json)) return BTC_OK;
  json_decref(*json);
  *json = NULL;
  return btc_fail(err, BTC_ERR_FORMAT, "'%s': not a JSON object", path);
}

static btc_status add_json(btc_special_list *list, btc_special_role role, const json_t *token, const char *path, const char *key,
                           btc_error *err) {
  if (json_is_object(token)) token = json_object_get(token, "content");
  if (!json_is_string(token))
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': %s is neither a string nor an object with a string \"content\"", path, key);
  return btc_special_add(list, role, json_string_value(token), json_string_length(token), -1, path, err);
}

static btc_status add_roles(btc_special_list *list, const json_t *json, const char *path, btc_error *err) {
  btc_status st = BTC_OK;
  for (int role = BTC_SPECIAL_BOS; role <= BTC_SPECIAL_PAD && st == BTC_OK; role++) {
    const json_t *token = json_object_get(json, role_keys[role]);
    if (!token || json_is_null(token) || btc_special_of(list, (btc_special_role)role)) continue;
    st = add_json(list, (btc_special_role)role, token, path, role_keys[role], err);
  }
  const json_t *others = json_object_get(json, "additional_special_tokens");
  if (others && !json_is_null(others) && !json_is_array(others) && st == BTC_OK)
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s': additional_special_tokens is not a list", path);
  for (size_t i = 0; i < json_array_size(others) && st == BTC_OK; i++)
    st = add_json(list, BTC_SPECIAL_OTHER, json_array_get(others, i), path, "an entry of additional_special_tokens", err);
  return st;
}

static btc_status add_added(btc_special_list *list, json_t *json, const char *path, btc_error *err) {
  const char *text;
  json_t *id;
  json_object_foreach(json, text, id) {
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
      return btc_fail(err, BTC_ERR_FORMAT, "'%s': the id of '%s' is not an id", path, text);
    btc_status st = btc_special_add(list, BTC_SPECIAL_OTHER, text, strlen(text), (int32_t)json_integer_value(id), path, err);
    if (st != BTC_OK) return st;
  }
  return BTC_OK;
}

/* The flags that would contradict spec 2.6: BOS is added, EOS is not. */
static btc_status check_flags(const json_t *json, const char *path, btc_error *err) {
  if (json_is_false(json_object_get(json, "add_bos_token")))
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "'%s': add_bos_token is false, which is not supported", path);
  if (json_is_true(json_object_get(json, "add_eos_token")))
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "'%s': add_eos_token is true, which is not supported", path);
  return BTC_OK;
}

btc_status btc_special_read(const char *dir, btc_special_list *list, btc_error *err) {
  enum { MAP, CONFIG, ADDED, FILES };
  static const char *const names[FILES] = {"special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"};
  btc_status st = BTC_OK;
  list->n = 0;
  for (int i = 0; i < FILES && st == BTC_OK; i++) {
    json_t *json = NULL;
    char *path = btc_path_join(dir, names[i]);
    st = path ? read_object(path, &json, err) : btc_fail(err, BTC_ERR_NOMEM, "no memory for a path");
    if (json && i == CONFIG) st = check_flags(json, path, err);
    if (json && st == BTC_OK) st = i == ADDED ? add_added(list, json, path, err) : add_roles(list, json, path, err);
    json_decref(json);
    free(path);
  }
  if (st != BTC_OK) btc_special_free(list);
  return st;
}
