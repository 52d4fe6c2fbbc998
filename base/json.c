/* Bounded JSON: see json.h. */
#include "json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const btc_json_limits btc_json_config_limits = {1u << 20, 100000};

/* Doubles hold every integer up to here. */
#define EXACT_INTEGERS 9007199254740992.0

static size_t count_values(const char *text, size_t len) {
  size_t n = 0;
  for (size_t i = 0; i < len; i++) n += text[i] == ',' || text[i] == ':' || text[i] == '[' || text[i] == '{';
  return n;
}

/* A document with an integer beyond 64 bits was parsed with all integers as reals: turn those back that are exact. The nesting
 * is at most jansson's 2048, which bounds the recursion. */
static json_t *integers_back(json_t *v) {
  if (json_is_real(v)) {
    double d = json_real_value(v);
    bool exact = d >= -EXACT_INTEGERS && d <= EXACT_INTEGERS && d == (double)(json_int_t)d;
    return exact ? json_integer((json_int_t)d) : json_incref(v);
  }
  if (json_is_object(v)) {
    void *tmp;
    const char *key;
    json_t *child;
    json_object_foreach_safe(v, tmp, key, child) json_object_set_new_nocheck(v, key, integers_back(child));
  } else if (json_is_array(v)) {
    size_t i;
    json_t *child;
    json_array_foreach(v, i, child) json_array_set_new(v, i, integers_back(child));
  }
  return json_incref(v);
}

btc_status btc_json_parse(const char *text, size_t len, const char *label, const btc_json_limits *lim, json_t **out,
                          btc_error *err) {
  *out = NULL;
  if (len > lim->max_bytes)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s': %zu bytes of JSON, at most %zu are read", label, len, lim->max_bytes);
  if (count_values(text, len) > lim->max_values)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s': JSON with more than %zu values", label, lim->max_values);
  json_error_t why;
  json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
  if (!root && json_error_code(&why) == json_error_numeric_overflow) {
    root = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &why);
    if (root) json_decref(integers_back(root));
  }
  if (!root && json_error_code(&why) == json_error_out_of_memory)
    return btc_fail(err, BTC_ERR_NOMEM, "'%s': not enough memory to parse the JSON", label);
  if (!root)
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': not valid JSON: %s (line %d, column %d)", label, why.text, why.line, why.column);
  if (!json_is_object(root)) {
    json_decref(root);
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': the JSON text is not an object", label);
  }
  *out = root;
  return BTC_OK;
}

btc_status btc_json_read(const char *path, const btc_json_limits *lim, json_t **out, btc_error *err) {
  uint8_t *text;
  size_t len;
  *out = NULL;
  btc_status st = btc_file_read(path, lim->max_bytes, &text, &len, err);
  if (st != BTC_OK) return st;
  st = btc_json_parse((const char *)text, len, path, lim, out, err);
  free(text);
  return st;
}

/* A short text of a value for messages. */
static void describe(const json_t *v, char *out, size_t size) {
  switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_INTEGER:
      snprintf(out, size, "%" PRId64, (int64_t)json_integer_value(v));
      break;
    case JSON_REAL:
      snprintf(out, size, "%g", json_real_value(v));
      break;
    case JSON_STRING:
      snprintf(out, size, "the string '%.80s'", json_string_value(v));
      break;
    case JSON_TRUE:
    case JSON_FALSE:
      snprintf(out, size, "%s", json_is_true(v) ? "true" : "false");
      break;
    case JSON_ARRAY:
      snprintf(out, size, "an array of %zu", json_array_size(v));
      break;
    case JSON_OBJECT:
      snprintf(out, size, "an object");
      break;
    case JSON_NULL:
      snprintf(out, size, v ? "null" : "missing");
      break;
  }
}

btc_status btc_json_refuse(const btc_json_object *o, const char *key, const char *what, btc_error *err) {
  char is[128];
  describe(json_object_get(o->value, key), is, sizeof is);
  return btc_fail(err, BTC_ERR_MODEL, "'%s': key '%s%s' must be %s, is %s", o->label, o->key_prefix, key, what, is);
}

/* The value; or NULL, with *st telling whether its absence is an error. */
static const json_t *lookup(const btc_json_object *o, const char *key, btc_json_need need, const char *what, btc_status *st,
                            btc_error *err) {
  const json_t *v = json_object_get(o->value, key);
  *st = BTC_OK;
  if (v && !json_is_null(v)) return v;
  if (need == BTC_JSON_REQUIRED || (v && need == BTC_JSON_OPTIONAL)) *st = btc_json_refuse(o, key, what, err);
  return NULL;
}

btc_status btc_json_get_int(const btc_json_object *o, const char *key, btc_json_need need, int64_t min, int64_t max, int64_t *out,
                            btc_error *err) {
  char what[96];
  snprintf(what, sizeof what, "an integer from %" PRId64 " to %" PRId64, min, max);
  btc_status st;
  const json_t *v = lookup(o, key, need, what, &st, err);
  if (!v) return st;
  if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max) return btc_json_refuse(o, key, what, err);
  *out = json_integer_value(v);
  return BTC_OK;
}

btc_status btc_json_get_number(const btc_json_object *o, const char *key, btc_json_need need, double min, double max, double *out,
                               btc_error *err) {
  char what[96];
  snprintf(what, sizeof what, "a number from %g to %g", min, max);
  btc_status st;
  const json_t *v = lookup(o, key, need, what, &st, err);
  if (!v) return st;
  double d = json_number_value(v);
  if (!json_is_number(v) || !(d >= min && d <= max)) return btc_json_refuse(o, key, what, err);
  *out = d;
  return BTC_OK;
}

btc_status btc_json_get_bool(const btc_json_object *o, const char *key, btc_json_need need, bool *out, btc_error *err) {
  btc_status st;
  const json_t *v = lookup(o, key, need, "true or false", &st, err);
  if (!v) return st;
  if (!json_is_boolean(v)) return btc_json_refuse(o, key, "true or false", err);
  *out = json_is_true(v);
  return BTC_OK;
}

btc_status btc_json_get_string(const btc_json_object *o, const char *key, btc_json_need need, const char **out, btc_error *err) {
  btc_status st;
  const json_t *v = lookup(o, key, need, "a string", &st, err);
  if (!v) return st;
  if (!json_is_string(v)) return btc_json_refuse(o, key, "a string", err);
  *out = json_string_value(v);
  return BTC_OK;
}

btc_status btc_json_get_numbers(const btc_json_object *o, const char *key, btc_json_need need, size_t count, float *out,
                                btc_error *err) {
  char what[64];
  snprintf(what, sizeof what, "an array of %zu finite numbers", count);
  btc_status st;
  const json_t *v = lookup(o, key, need, what, &st, err);
  if (!v) return st;
  if (!json_is_array(v) || json_array_size(v) != count) return btc_json_refuse(o, key, what, err);
  for (size_t i = 0; i < count; i++) {
    const json_t *e = json_array_get(v, i);
    if (!json_is_number(e) || !isfinite((float)json_number_value(e))) return btc_json_refuse(o, key, what, err);
  }
  for (size_t i = 0; i < count; i++) out[i] = (float)json_number_value(json_array_get(v, i));
  return BTC_OK;
}
