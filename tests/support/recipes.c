#define _GNU_SOURCE
#include "recipes.h"

#include "test.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"

#define MAX_FILE (256u << 20)

/* Integers that no int64 holds travel through jansson as strings with this mark in front. */
#define BIG_INTEGER "@integer:"

typedef struct bytes {
  uint8_t *data;
  size_t len;
} bytes;

static bytes read_file(const char *path) {
  bytes b;
  btc_error err;
  if (btc_file_read(path, MAX_FILE, &b.data, &b.len, &err) != BTC_OK) fail_msg("%s", err.message);
  return b;
}

static void write_file(const char *path, const void *data, size_t len) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, len, f), len);
  assert_int_equal(fclose(f), 0);
}

static void replace_file(const char *path, bytes b) {
  write_file(path, b.data, b.len);
  free(b.data);
}

static bytes join(const void *a, size_t a_len, const void *b, size_t b_len) {
  bytes r = {malloc(a_len + b_len + 1), a_len + b_len};
  assert_non_null(r.data);
  if (a_len) memcpy(r.data, a, a_len);
  if (b_len) memcpy(r.data + a_len, b, b_len);
  return r;
}

/* ---- trees ---- */

static const char *copy_from, *copy_to;

static int copy_entry(const char *path, const struct stat *sb, int flag, struct FTW *ftw) {
  (void)flag, (void)ftw;
  char to[4096];
  snprintf(to, sizeof to, "%s%s", copy_to, path + strlen(copy_from));
  if (S_ISDIR(sb->st_mode)) return mkdir(to, 0755);
  bytes b = read_file(path);
  replace_file(to, b);
  return 0;
}

void tree_copy(const char *from, const char *to) {
  copy_from = from;
  copy_to = to;
  assert_int_equal(nftw(from, copy_entry, 16, FTW_PHYS), 0);
}

static int remove_entry(const char *path, const struct stat *sb, int flag, struct FTW *ftw) {
  (void)sb, (void)flag, (void)ftw;
  return remove(path);
}

void tree_remove(const char *path) {
  nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- JSON with integers of any size ---- */

/* Characters of an integer at s that is beyond int64, else 0. */
static size_t big_integer(const char *s) {
  size_t sign = *s == '-', digits = strspn(s + sign, "0123456789");
  if (digits < 19 || strchr(".eE", s[sign + digits])) return 0;
  return digits > 19 || strncmp(s + sign, "9223372036854775807", 19) > 0 ? sign + digits : 0;
}

/* json_loads of text[len], with marks and quotes around big integers. NULL when it is no JSON. */
static json_t *parse(const void *text, size_t len, json_error_t *why) {
  bytes in = join(text, len, NULL, 0), out = {malloc(len * 2 + 64), 0};
  assert_non_null(out.data);
  in.data[len] = 0;
  bool in_string = false;
  for (size_t i = 0; i < len;) {
    size_t big = in_string || (i && in.data[i - 1] == '.') ? 0 : big_integer((const char *)in.data + i);
    if (big) {
      out.len += (size_t)sprintf((char *)out.data + out.len, "\"" BIG_INTEGER "%.*s\"", (int)big, (const char *)in.data + i);
      i += big;
      continue;
    }
    if (in.data[i] == '\\' && in_string) out.data[out.len++] = in.data[i++];
    if (in.data[i] == '"') in_string = !in_string;
    out.data[out.len++] = in.data[i++];
  }
  json_t *doc = json_loadb((const char *)out.data, out.len, 0, why);
  free(in.data);
  free(out.data);
  return doc;
}

/* JSON text of v, with the marked integers as numbers again; free(). */
static char *dump(const json_t *v) {
  char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
  assert_non_null(text);
  static const char mark[] = "\"" BIG_INTEGER;
  for (char *at = strstr(text, mark); at; at = strstr(at, mark)) {
    size_t digits = strspn(at + strlen(mark), "-0123456789");
    memmove(at, at + strlen(mark), digits);
    memmove(at + digits, at + strlen(mark) + digits + 1, strlen(at + strlen(mark) + digits + 1) + 1);
  }
  return text;
}

json_t *recipes_load(const char *bad_json_path) {
  bytes b = read_file(bad_json_path);
  json_error_t why;
  json_t *doc = parse(b.data, b.len, &why);
  free(b.data);
  if (!doc) fail_msg("%s: %s (line %d)", bad_json_path, why.text, why.line);
  json_t *cases = json_incref(json_object_get(doc, "cases"));
  json_decref(doc);
  assert_true(json_is_array(cases));
  return cases;
}

static const char *text_of(const json_t *step, const char *key) {
  const char *s = json_string_value(json_object_get(step, key));
  if (!s) fail_msg("step without '%s'", key);
  return s ? s : "";
}

static size_t size_of(const json_t *step, const char *key, size_t fallback) {
  const json_t *v = json_object_get(step, key);
  return v ? (size_t)json_integer_value(v) : fallback;
}

static bytes hex_of(const json_t *step) {
  const char *s = text_of(step, "hex");
  bytes b = {malloc(strlen(s) / 2 + 1), strlen(s) / 2};
  assert_non_null(b.data);
  for (size_t i = 0; i < b.len; i++) {
    unsigned byte;
    assert_int_equal(sscanf(s + 2 * i, "%2x", &byte), 1);
    b.data[i] = (uint8_t)byte;
  }
  return b;
}

/* ---- steps on plain files ---- */

static bytes repeated(const json_t *step) {
  const json_t *value = json_object_get(step, "value");
  size_t len = json_string_length(value), times = size_of(step, "times", 1);
  bytes b = {malloc(len * times + 1), len * times};
  assert_non_null(b.data);
  for (size_t i = 0; i < times; i++) memcpy(b.data + i * len, json_string_value(value), len);
  return b;
}

/* True if op was one of these. */
static bool plain_step(const char *op, const json_t *step, bytes *file) {
  if (strcmp(op, "truncate") == 0) {
    file->len = size_of(step, "size", 0) < file->len ? size_of(step, "size", 0) : file->len;
  } else if (strcmp(op, "cut") == 0) {
    assert_true(size_of(step, "bytes", 0) <= file->len);
    file->len -= size_of(step, "bytes", 0);
  } else if (strcmp(op, "append") == 0 || strcmp(op, "write") == 0) {
    bytes hex = hex_of(step);
    size_t at = op[0] == 'a' ? file->len : size_of(step, "offset", 0), end = at + hex.len;
    assert_true(at <= file->len);
    bytes grown = join(file->data, file->len, hex.data, end > file->len ? end - file->len : 0);
    memcpy(grown.data + at, hex.data, hex.len);
    free(hex.data);
    free(file->data);
    *file = grown;
  } else if (strcmp(op, "text") == 0 || strcmp(op, "repeat") == 0) {
    free(file->data);
    *file = repeated(step);
  } else {
    return false;
  }
  return true;
}

static bool file_kind_step(const char *op, const json_t *step, const char *path) {
  bool link = strcmp(op, "symlink") == 0, directory = strcmp(op, "directory") == 0;
  if (!link && !directory && strcmp(op, "delete") != 0) return false;
  assert_int_equal(remove(path), 0);
  if (link) assert_int_equal(symlink(text_of(step, "target"), path), 0);
  if (directory) assert_int_equal(mkdir(path, 0755), 0);
  return true;
}

static bool json_step(const char *op, const json_t *step, bytes *file) {
  bool set = strcmp(op, "json_set") == 0;
  if (!set && strcmp(op, "json_del") != 0) return false;
  json_t *doc = parse(file->data, file->len, NULL), *at = doc;
  const json_t *path = json_object_get(step, "path");
  assert_non_null(doc);
  size_t last = json_array_size(path) - 1;
  for (size_t i = 0; i < last; i++) at = json_object_get(at, json_string_value(json_array_get(path, i)));
  const char *key = json_string_value(json_array_get(path, last));
  int rc = set ? json_object_set(at, key, json_object_get(step, "value")) : json_object_del(at, key);
  assert_int_equal(rc, 0);
  free(file->data);
  file->data = (uint8_t *)dump(doc);
  file->len = strlen((char *)file->data);
  json_decref(doc);
  return true;
}

/* ---- steps on the header of a safetensors file ---- */

static json_t *offsets_of(json_t *header, const char *tensor) {
  json_t *o = json_object_get(json_object_get(header, tensor), "data_offsets");
  if (!o) fail_msg("no tensor '%s'", tensor);
  return o;
}

static void fill(json_t *header, const json_t *step, uint8_t *data) {
  json_t *o = offsets_of(header, text_of(step, "tensor"));
  size_t a = (size_t)json_integer_value(json_array_get(o, 0)), b = (size_t)json_integer_value(json_array_get(o, 1));
  bytes hex = hex_of(step);
  for (size_t i = a; i < b; i++) data[i] = hex.data[(i - a) % hex.len];
  free(hex.data);
}

static void header_add(json_t *header, const json_t *step, size_t data_len) {
  json_t *entry = json_deep_copy(json_object_get(step, "value"));
  if (json_is_string(json_object_get(entry, "data_offsets"))) {
    json_int_t end = (json_int_t)data_len;
    json_object_set_new(entry, "data_offsets", json_pack("[I, I]", end, end));
  }
  assert_int_equal(json_object_set_new(header, text_of(step, "tensor"), entry), 0);
}

static void header_shift(json_t *header, const json_t *step) {
  json_t *o = offsets_of(header, text_of(step, "tensor"));
  const json_t *add = json_object_get(step, "add");
  for (size_t i = 0; i < 2; i++) {
    json_int_t sum = json_integer_value(json_array_get(o, i)) + json_integer_value(json_array_get(add, i));
    json_array_set_new(o, i, json_integer(sum));
  }
}

/* "...,"name":{entry}}": the same name twice, which no JSON tree can hold. */
static char *duplicated(const json_t *header, const json_t *step) {
  const char *name = text_of(step, "tensor");
  char *all = dump(header), *entry = dump(json_object_get(header, name)), *text = NULL;
  assert_true(asprintf(&text, "%.*s,\"%s\":%s}", (int)strlen(all) - 1, all, name, entry) > 0);
  free(all);
  free(entry);
  return text;
}

/* Header text after the step; free(). */
static char *header_text(const char *op, const json_t *step, json_t *header, bytes data) {
  char *text = NULL;
  if (strcmp(op, "header_raw") == 0) {
    bytes b = repeated(step);
    b.data[b.len] = 0;
    return (char *)b.data;
  }
  if (strcmp(op, "header_dup") == 0) return duplicated(header, step);
  if (strcmp(op, "header_pad") == 0) {
    char *all = dump(header);
    assert_true(asprintf(&text, "%s%*s", all, (int)size_of(step, "spaces", 0), "") > 0);
    free(all);
    return text;
  }
  if (strcmp(op, "fill") == 0) {
    fill(header, step, data.data);
  } else if (strcmp(op, "header_set") == 0) {
    assert_int_equal(json_object_update(json_object_get(header, text_of(step, "tensor")), json_object_get(step, "keys")), 0);
  } else if (strcmp(op, "header_shift") == 0) {
    header_shift(header, step);
  } else if (strcmp(op, "header_copy") == 0) {
    json_t *entry = json_object_get(header, text_of(step, "tensor"));
    assert_int_equal(json_object_set(entry, "data_offsets", offsets_of(header, text_of(step, "other"))), 0);
  } else if (strcmp(op, "header_del") == 0) {
    assert_int_equal(json_object_del(header, text_of(step, "tensor")), 0);
  } else if (strcmp(op, "header_add") == 0) {
    header_add(header, step, data.len);
  } else {
    fail_msg("unknown step '%s'", op);
  }
  return dump(header);
}

static void header_step(const char *op, const json_t *step, bytes *file) {
  uint64_t len;
  assert_true(file->len >= 8);
  memcpy(&len, file->data, 8);
  assert_true(len <= file->len - 8);
  bytes data = {file->data + 8 + len, file->len - 8 - len};
  json_t *header = parse(file->data + 8, len, NULL);
  assert_non_null(header);
  char *text = header_text(op, step, header, data);
  uint64_t text_len = strlen(text);
  bytes front = join(&text_len, 8, text, text_len), whole = join(front.data, front.len, data.data, data.len);
  free(front.data);
  free(text);
  json_decref(header);
  free(file->data);
  *file = whole;
}

void recipe_step(const char *root, const json_t *step) {
  char path[4096];
  const char *op = text_of(step, "op");
  snprintf(path, sizeof path, "%s/%s", root, text_of(step, "file"));
  if (file_kind_step(op, step, path)) return;
  bytes file = read_file(path);
  if (!plain_step(op, step, &file) && !json_step(op, step, &file)) header_step(op, step, &file);
  replace_file(path, file);
}

void recipe_apply(const char *root, const char *step) {
  char *text = strdup(step);
  for (char *c = text; *c; c++)
    if (*c == '\'') *c = '"';
  json_error_t why;
  json_t *doc = parse(text, strlen(text), &why);
  if (!doc) fail_msg("%s: %s", step, why.text);
  recipe_step(root, doc);
  json_decref(doc);
  free(text);
}
