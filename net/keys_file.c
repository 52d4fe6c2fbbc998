/*
 * Key files: two lines `public KEY` and `secret KEY` in NAME.key, the public key alone in NAME.pub; allow-lists: `KEY ROLE NAME
 * [tenants=A,B] [priorities=1,2]` a line. Keys are Z85 (40 characters of 85, blank not among them). No message quotes a line of a
 * secret file.
 */
#define _GNU_SOURCE
#include "net/keys_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

enum { KEY_LEN = 40, KEY_FILE_MAX = 4096 };

void btc_keys_wipe(void *p, size_t len) {
  explicit_bzero(p, len);
}

static bool is_key(const char *s) {
  uint8_t raw[32];
  bool good = strlen(s) == KEY_LEN && zmq_z85_decode(raw, s) != NULL;
  btc_keys_wipe(raw, sizeof raw);
  return good;
}

/* ---- reading ---- */

/* A secret that others can read is none; say so before it is used. */
static btc_status check_private(const char *path, btc_error *err) {
  struct stat sb;
  if (stat(path, &sb) != 0)
    return btc_fail(err, errno == ENOENT || errno == ENOTDIR ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot open '%s': %s", path,
                    strerror(errno));
  if (sb.st_mode & 077)
    return btc_fail(err, BTC_ERR_IO, "'%s': the secret key can be read by others (mode %03o); run: chmod 600 '%s'", path,
                    sb.st_mode & 0777, path);
  return BTC_OK;
}

/* Copies the word behind `label ` at the beginning of some line. */
static bool find_word(const char *text, const char *label, char out[KEY_LEN + 1]) {
  size_t n = strlen(label);
  for (const char *line = text; line; line = strchr(line, '\n')) {
    line += *line == '\n';
    if (strncmp(line, label, n) != 0 || line[n] != ' ') continue;
    size_t len = strcspn(line + n + 1, " \t\r\n");
    if (len != KEY_LEN) return false;
    memcpy(out, line + n + 1, len);
    out[len] = 0;
    return is_key(out);
  }
  return false;
}

btc_status btc_keys_read_secret(const char *path, char public_key[41], char secret_key[41], btc_error *err) {
  uint8_t *data = NULL;
  size_t len;
  char derived[KEY_LEN + 1];
  btc_status st = check_private(path, err);
  if (st == BTC_OK) st = btc_file_read(path, KEY_FILE_MAX, &data, &len, err);
  if (st != BTC_OK) return st;
  if (!find_word((const char *)data, "public", public_key) || !find_word((const char *)data, "secret", secret_key))
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s' is not a secret key file of 'btcchat keygen'", path);
  else if (zmq_curve_public(derived, secret_key) != 0)
    st = btc_fail(err, BTC_ERR_UNSUPPORTED, "this ZeroMQ library has no CURVE");
  else if (strcmp(derived, public_key) != 0)
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s': the public key does not belong to the secret one", path);
  btc_keys_wipe(data, len);
  free(data);
  return st;
}

btc_status btc_keys_read_public(const char *path, char public_key[41], btc_error *err) {
  uint8_t *data;
  size_t len;
  btc_status st = btc_file_read(path, KEY_FILE_MAX, &data, &len, err);
  if (st != BTC_OK) return st;
  char *text = (char *)data;
  if (strstr(text, "secret ")) st = btc_fail(err, BTC_ERR_FORMAT, "'%s' is a secret key file; the .pub file belongs here", path);
  text[strcspn(text, " \t\r\n")] = 0;
  if (st == BTC_OK && !is_key(text)) st = btc_fail(err, BTC_ERR_FORMAT, "'%s' is not a public key file of 'btcchat keygen'", path);
  if (st == BTC_OK) memcpy(public_key, text, KEY_LEN + 1);
  btc_keys_wipe(data, len);
  free(data);
  return st;
}

/* ---- the allow-list ---- */

static bool is_name(const char *s) {
  size_t n = strlen(s);
  return n >= 1 && n <= 64 && strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

/* "tenants=A,B" or "priorities=1,2", each at most once. */
static bool parse_limit(const char *word, btc_allowed *out, const char **why) {
  if (strncmp(word, "tenants=", 8) == 0 && !out->tenants) {
    const char *list = word + 8;
    *why = "tenants= must be followed by names of 1 to 64 of A-Z a-z 0-9 . _ -, with commas between them, at most 512 bytes";
    if (strlen(list) > BTC_ALLOW_MAX_TENANTS) return false;
    for (const char *at = list;; at++) {
      char name[65];
      size_t n = strcspn(at, ",");
      if (n >= sizeof name) return false;
      memcpy(name, at, n);
      name[n] = 0;
      if (!is_name(name)) return false;
      at += n;
      if (!*at) break;
    }
    *why = "out of memory";
    return (out->tenants = btc_strdup(list)) != NULL;
  }
  if (strncmp(word, "priorities=", 11) == 0 && !out->priorities) {
    *why = "priorities= must be followed by some of 0, 1, 2, with commas between them";
    for (const char *at = word + 11;; at += 2) {
      if (*at < '0' || *at > '2' || (at[1] && at[1] != ',')) return false;
      out->priorities |= 1u << (*at - '0');
      if (!at[1]) return true;
    }
  }
  *why = "behind the name only tenants=A,B and priorities=0,1,2 may stand";
  return false;
}

/* One line, cut into words in place. false with *why set when it is bad; an entry without key for a blank line or a comment. */
static bool parse_line(char *line, btc_allowed *out, const char **why) {
  char *save = NULL, *key = strtok_r(line, " \t\r", &save), *role = strtok_r(NULL, " \t\r", &save),
       *name = strtok_r(NULL, " \t\r", &save);
  *out = (btc_allowed){0};
  if (!key || key[0] == '#') return true; /* keygen makes no key that begins so */
  *why = "a line is PUBLIC-KEY ROLE NAME";
  if (!role || !name) return false;
  *why = "the first word must be a public key of 40 characters";
  if (!is_key(key)) return false;
  for (btc_role r = BTC_ROLE_CLIENT; r <= BTC_ROLE_ADMIN; r++)
    if (strcmp(role, btc_role_text(r)) == 0) out->role = r;
  *why = "the role must be client, worker or admin";
  if (out->role == BTC_ROLE_NONE) return false;
  *why = "the name must have 1 to 64 of A-Z a-z 0-9 . _ -";
  if (!is_name(name)) return false;
  memcpy(out->key, key, KEY_LEN + 1);
  memcpy(out->name, name, strlen(name) + 1);
  for (const char *rest; (rest = strtok_r(NULL, " \t\r", &save)) && rest[0] != '#';)
    if (!parse_limit(rest, out, why)) return false;
  return true;
}

static int by_key(const void *a, const void *b) {
  return strcmp(((const btc_allowed *)a)->key, ((const btc_allowed *)b)->key);
}

static btc_status parse_allow(const char *path, char *text, btc_allowed *list, size_t *n, btc_error *err) {
  size_t number = 0;
  for (char *line = text; line;) {
    char *end = strchr(line, '\n');
    if (end) *end++ = 0;
    number++;
    btc_allowed one;
    const char *why = NULL;
    bool good = parse_line(line, &one, &why), full = *n == BTC_ALLOW_MAX_KEYS;
    if (!good || (one.role != BTC_ROLE_NONE && full)) free(one.tenants);
    if (!good) return btc_fail(err, BTC_ERR_FORMAT, "'%s' line %zu: %s", path, number, why);
    if (one.role != BTC_ROLE_NONE && full) return btc_fail(err, BTC_ERR_LIMIT, "'%s': more than %d keys", path, BTC_ALLOW_MAX_KEYS);
    if (one.role != BTC_ROLE_NONE) list[(*n)++] = one;
    line = end;
  }
  qsort(list, *n, sizeof *list, by_key);
  for (size_t i = 1; i < *n; i++)
    if (strcmp(list[i - 1].key, list[i].key) == 0)
      return btc_fail(err, BTC_ERR_FORMAT, "'%s': the key of '%s' is there twice", path, list[i].name);
  return BTC_OK;
}

void btc_keys_free_allow(btc_allowed *list, size_t n) {
  for (size_t i = 0; list && i < n; i++) free(list[i].tenants);
  free(list);
}

btc_status btc_keys_read_allow(const char *path, btc_allowed **out, size_t *n, btc_error *err) {
  uint8_t *data;
  size_t len;
  *out = NULL;
  *n = 0;
  btc_status st = btc_file_read(path, BTC_ALLOW_MAX_BYTES, &data, &len, err);
  if (st != BTC_OK) return st;
  btc_allowed *list = btc_alloc(BTC_ALLOW_MAX_KEYS, sizeof *list), *fit;
  if (!list)
    st = btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", path);
  else if (memchr(data, 0, len))
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s' holds a NUL byte: not an allow-list", path);
  else
    st = parse_allow(path, (char *)data, list, n, err);
  free(data);
  if (st != BTC_OK) {
    btc_keys_free_allow(list, *n);
    *n = 0;
    return st;
  }
  fit = btc_realloc(list, *n ? *n : 1, sizeof *list);
  *out = fit ? fit : list;
  return BTC_OK;
}

/* ---- making a pair ---- */

static btc_status write_new(const char *path, mode_t mode, const char *text, btc_error *err) {
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
  if (fd < 0 && errno == EEXIST) return btc_fail(err, BTC_ERR_ARG, "'%s' exists already; keys are never overwritten", path);
  if (fd < 0)
    return btc_fail(err, errno == ENOENT ? BTC_ERR_NOT_FOUND : BTC_ERR_IO, "cannot create '%s': %s", path, strerror(errno));
  size_t len = strlen(text);
  ssize_t written = write(fd, text, len); /* one page: a short write is a full disk */
  bool good = written == (ssize_t)len && fsync(fd) == 0;
  int why = good ? 0 : errno;
  if (close(fd) != 0 && good) why = errno, good = false;
  if (good) return BTC_OK;
  unlink(path);
  return btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, why ? strerror(why) : "the disk is full");
}

/* Keys that begin with '#' would read as comments in an allow-list, those with '-' as options: one in 43 is drawn again. */
static btc_status draw(char public_key[41], char secret_key[41], btc_error *err) {
  do {
    if (zmq_curve_keypair(public_key, secret_key) != 0)
      return btc_fail(err, BTC_ERR_UNSUPPORTED, "cannot make keys: this ZeroMQ library has no CURVE");
  } while (public_key[0] == '#' || public_key[0] == '-');
  return BTC_OK;
}

static btc_status write_pair(const char *key_path, const char *pub_path, const char *public_key, const char *secret,
                             btc_error *err) {
  char text[2 * KEY_LEN + 256];
  struct stat sb;
  if (lstat(pub_path, &sb) == 0) return btc_fail(err, BTC_ERR_ARG, "'%s' exists already; keys are never overwritten", pub_path);
  snprintf(text, sizeof text, "# secret key of btcchat: keep it private, never send it\npublic %s\nsecret %s\n", public_key,
           secret);
  btc_status st = write_new(key_path, 0600, text, err);
  btc_keys_wipe(text, sizeof text);
  if (st != BTC_OK) return st;
  snprintf(text, sizeof text, "%s\n", public_key);
  st = write_new(pub_path, 0644, text, err);
  if (st != BTC_OK) unlink(key_path);
  return st;
}

btc_status btc_keys_generate(const char *prefix, char public_key[41], btc_error *err) {
  char secret[KEY_LEN + 1], *key_path = NULL, *pub_path = NULL;
  btc_status st = draw(public_key, secret, err);
  if (st != BTC_OK) return st;
  if (asprintf(&key_path, "%s.key", prefix) < 0) key_path = NULL;
  if (asprintf(&pub_path, "%s.pub", prefix) < 0) pub_path = NULL;
  if (key_path && pub_path)
    st = write_pair(key_path, pub_path, public_key, secret, err);
  else
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_keys_wipe(secret, sizeof secret);
  free(key_path);
  free(pub_path);
  return st;
}
