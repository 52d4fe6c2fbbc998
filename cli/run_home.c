/* See run_home.h. */
#define _GNU_SOURCE
#include "run_home.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jobs.h"

enum { LOCK_PATIENCE_MS = 2000, SOCKET_PATH_MAX = 100 /* of 107, with the socket's name */, JOB_MAX = 1 << 20 };

char *home_path(const run_home *h, const char *name) {
  return btc_path_join(h->inner, name);
}

static int failed(const char *verb, const char *path) {
  cli_error("cannot %s '%s': %s", verb, path, strerror(errno));
  return CLI_FAILED;
}

/* ---- the folder ---- */

/* A run that was killed a moment ago leaves a redis-server that is just ending; it has the lock as long as it lives. */
static int take_lock(run_home *h) {
  char *path = home_path(h, "lock");
  int code = CLI_FAILED;
  h->lock = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
  if (h->lock < 0) {
    code = failed("open", path ? path : h->inner);
  } else {
    bool got = flock(h->lock, LOCK_EX | LOCK_NB) == 0;
    for (int waited = 0; !got && waited < LOCK_PATIENCE_MS && !cli_interrupted; waited += 100) {
      cli_sleep_ms(100);
      got = flock(h->lock, LOCK_EX | LOCK_NB) == 0;
    }
    if (!got) cli_error("'%s': another 'btcchat run' is working in this folder", h->dir);
    if (got) code = CLI_OK;
  }
  free(path);
  return code;
}

static int make_folder(const char *path, mode_t mode) {
  return mkdir(path, mode) == 0 || errno == EEXIST ? CLI_OK : failed("make the folder", path);
}

int home_open(const char *dir, run_home *h) {
  static const char *const folders[] = {"redis", "parts", "logs"};
  *h = (run_home){.lock = -1};
  int code = make_folder(dir, 0777);
  if (code != CLI_OK) return code;
  if (!realpath(dir, h->dir)) return failed("open", dir);
  if (snprintf(h->inner, sizeof h->inner, "%s/.btcchat", h->dir) >= (int)sizeof h->inner) {
    cli_error("'%s': the path is too long", dir);
    return CLI_FAILED;
  }
  code = make_folder(h->inner, 0700);
  if (code == CLI_OK) code = take_lock(h);
  for (size_t i = 0; i < sizeof folders / sizeof folders[0] && code == CLI_OK; i++) {
    char *path = home_path(h, folders[i]);
    code = path ? make_folder(path, 0700) : CLI_FAILED;
    free(path);
  }
  return code;
}

/* ---- sockets ---- */

static int remove_entry(const char *path, const struct stat *sb, int flag, struct FTW *ftw) {
  (void)sb, (void)flag, (void)ftw;
  return remove(path);
}

static void remove_folder(const char *path) {
  nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* Where a killed run had its sockets elsewhere, that folder is left; its name was written down. */
static void remove_old_sockets(const run_home *h) {
  char *note = home_path(h, "sockets");
  uint8_t *data;
  size_t len;
  if (note && btc_file_read(note, PATH_MAX, &data, &len, NULL) == BTC_OK) {
    if (strstr((char *)data, "/btcchat-run-")) remove_folder((char *)data);
    free(data);
    unlink(note);
  }
  free(note);
}

static int make_short_folder(run_home *h) {
  const char *base = getenv("XDG_RUNTIME_DIR");
  if (!base || base[0] != '/' || strlen(base) > SOCKET_PATH_MAX - 24 || strcspn(base, ", ") != strlen(base) ||
      access(base, W_OK) != 0)
    base = "/tmp";
  snprintf(h->sockets, sizeof h->sockets, "%s/btcchat-run-XXXXXX", base);
  char *note = home_path(h, "sockets");
  btc_error err;
  int code = CLI_OK;
  if (!note || !mkdtemp(h->sockets)) /* mode 0700 */
    code = failed("make the folder", h->sockets);
  else if (btc_file_publish(note, h->sockets, strlen(h->sockets), &err) != BTC_OK)
    code = (cli_error("%s", err.message), CLI_FAILED);
  h->sockets_apart = code == CLI_OK;
  free(note);
  return code;
}

int home_make_sockets(run_home *h) {
  remove_old_sockets(h);
  bool fits = strlen(h->inner) + 2 <= SOCKET_PATH_MAX &&
              strcspn(h->inner, ", ") == strlen(h->inner); /* lists of endpoints are cut at commas */
  if (!fits) return make_short_folder(h);
  memcpy(h->sockets, h->inner, strlen(h->inner) + 1);
  strcat(h->sockets, "/s");
  remove_folder(h->sockets);
  return make_folder(h->sockets, 0700);
}

void home_remove_data(run_home *h) {
  static const char *const folders[] = {"redis", "parts"};
  for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
    char *path = home_path(h, folders[i]);
    if (path) remove_folder(path);
    free(path);
  }
}

void home_close(run_home *h) {
  if (h->sockets[0]) remove_folder(h->sockets);
  if (h->sockets_apart) remove_old_sockets(h);
  if (h->lock >= 0) close(h->lock);
  *h = (run_home){.lock = -1};
}

/* ---- job.json ---- */

static void copy_text(const json_t *o, const char *key, char *out, size_t len) {
  const char *s = json_string_value(json_object_get(o, key));
  snprintf(out, len, "%s", s ? s : "");
}

int job_load(const run_home *h, run_job *j, bool *found) {
  char *path = home_path(h, "job.json");
  uint8_t *data = NULL;
  size_t len = 0;
  btc_error err;
  *j = (run_job){0};
  *found = false;
  btc_status st = path ? btc_file_read(path, JOB_MAX, &data, &len, &err) : btc_fail(&err, BTC_ERR_NOMEM, "out of memory");
  json_t *o = st == BTC_OK ? json_loadb((char *)data, len, 0, NULL) : NULL;
  if (st == BTC_OK && json_integer_value(json_object_get(o, "v")) != 1)
    st = btc_fail(&err, BTC_ERR_FORMAT, "'%s' is damaged, or of another version", path);
  if (st == BTC_OK) {
    copy_text(o, "manifest", j->manifest, sizeof j->manifest);
    copy_text(o, "sha256", j->sha256, sizeof j->sha256);
    copy_text(o, "model", j->model, sizeof j->model);
    copy_text(o, "key", j->key, sizeof j->key);
    copy_text(o, "job", j->jid, sizeof j->jid);
    j->params = btc_strdup(json_string_value(json_object_get(o, "params")));
    j->items = (uint64_t)json_integer_value(json_object_get(o, "items"));
    j->good = (uint64_t)json_integer_value(json_object_get(o, "good"));
    j->failed = (uint64_t)json_integer_value(json_object_get(o, "failed"));
    j->finished = json_is_true(json_object_get(o, "finished"));
    *found = true;
  }
  json_decref(o);
  free(data);
  free(path);
  if (st == BTC_OK || st == BTC_ERR_NOT_FOUND) return CLI_OK;
  cli_error("%s", err.message);
  return CLI_FAILED;
}

int job_save(const run_home *h, const run_job *j) {
  char *path = home_path(h, "job.json"), *text = NULL;
  btc_error err;
  json_t *o = json_pack("{s:i,s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:b}", "v", 1, "manifest", j->manifest, "sha256", j->sha256,
                        "model", j->model, "params", j->params, "key", j->key, "job", j->jid, "items", (json_int_t)j->items, "good",
                        (json_int_t)j->good, "failed", (json_int_t)j->failed, "finished", (int)j->finished);
  if (o) text = json_dumps(o, JSON_INDENT(2));
  btc_status st = path && text ? btc_file_publish(path, text, strlen(text), &err)
                               : btc_fail(&err, BTC_ERR_ARG, "a path that is not UTF-8 cannot be kept");
  json_decref(o);
  free(text);
  free(path);
  if (st == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return CLI_FAILED;
}

void job_free(run_job *j) {
  free(j->params);
  j->params = NULL;
}

int job_compare(const run_home *h, const run_job *there, const run_job *asked) {
  const char *what = NULL, *was = "";
  if (strcmp(there->manifest, asked->manifest) != 0)
    what = "is for another manifest", was = there->manifest;
  else if (strcmp(there->sha256, asked->sha256) != 0)
    what = "was begun with other contents of this manifest", was = there->manifest;
  else if (strcmp(there->model, asked->model) != 0)
    what = "was begun with another model", was = there->model;
  else if (strcmp(there->params ? there->params : "", asked->params) != 0)
    what = "was begun with another prompt or limit", was = there->params ? there->params : "";
  if (!what) return CLI_OK;
  cli_error("'%s' %s (%.300s): give another folder, or remove '%s' to begin anew", h->dir, what, was, h->inner);
  return CLI_FAILED;
}

/* ---- the model ---- */

enum { SMALL_FILE = 1 << 20, SAMPLES = 64, SAMPLE = 4096 };

/* Of weights that are too large to be read whole: pieces spread over the file, so that the same shapes trained anew differ. */
static bool add_samples(const char *path, off_t size, btc_sha256 *hash) {
  uint8_t piece[SAMPLE];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  bool good = fd >= 0;
  for (int i = 0; i < SAMPLES && good; i++) {
    good = pread(fd, piece, sizeof piece, (off_t)((double)(size - SAMPLE) / (SAMPLES - 1) * i)) == SAMPLE;
    if (good) btc_sha256_update(hash, piece, sizeof piece);
  }
  if (fd >= 0) close(fd);
  return good;
}

/* The order in which files come depends on the file system, so that their digests are summed up. (nftw brings no context, hence the
 * static.) */
static uint8_t model_sum[32];
static bool model_unreadable;

static int add_file(const char *path, const struct stat *sb, int flag, struct FTW *ftw) {
  uint8_t *data = NULL, digest[32];
  size_t len = 0;
  btc_sha256 model_hash;
  if (flag != FTW_F || path[ftw->base] == '.') return 0;
  bool small = sb->st_size <= SMALL_FILE;
  if (small && btc_file_read(path, SMALL_FILE, &data, &len, NULL) != BTC_OK) return 0;
  btc_sha256_init(&model_hash);
  btc_sha256_update(&model_hash, path, strlen(path) + 1);
  btc_sha256_update(&model_hash, &sb->st_size, sizeof sb->st_size);
  if (data) btc_sha256_update(&model_hash, data, len);
  if (!small && !add_samples(path, sb->st_size, &model_hash)) model_unreadable = true;
  btc_sha256_final(&model_hash, digest);
  for (int i = 0, carry = 0; i < 32; i++) {
    carry += model_sum[i] + digest[i];
    model_sum[i] = (uint8_t)carry;
    carry >>= 8;
  }
  free(data);
  return 0;
}

int model_identity(const char *dir, char *out, size_t len) {
  char real[PATH_MAX];
  char *config = btc_path_join(dir, "config.json");
  bool there = config && access(config, R_OK) == 0 && realpath(dir, real);
  free(config);
  if (!there) return failed("open the model", dir);
  memset(model_sum, 0, sizeof model_sum);
  model_unreadable = false;
  nftw(real, add_file, 16, 0);
  if (model_unreadable) return failed("read the model", dir);
  int n = snprintf(out, len, "%s ", real);
  for (int i = 0; i < 16 && n >= 0 && (size_t)n + 2 < len; i++) n += snprintf(out + n, len - (size_t)n, "%02x", model_sum[i]);
  return CLI_OK;
}
