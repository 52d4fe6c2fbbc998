/* See submit.h. */
#define _GNU_SOURCE
#include "submit.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/prompt.h"

const submit_options submit_options_default = {.to = "files", .priority = 1};

/* ---- the manifest ---- */

typedef struct reading {
  bool terminal, shown;
  int64_t shown_ns;
} reading;

static void on_progress(void *ctx, uint64_t items, double part) {
  reading *r = ctx;
  int64_t now = btc_now_ns(), gap = r->terminal ? 200000000 : 10000000000;
  if (now - r->shown_ns < gap) return;
  r->shown_ns = now;
  r->shown = true;
  fprintf(stderr, "%sreading the manifest: %" PRIu64 " items", r->terminal ? "\r\033[K" : "btcchat: ", items);
  if (part >= 0) fprintf(stderr, ", %.0f %%", part * 100);
  if (!r->terminal) fputc('\n', stderr);
}

int read_manifest(const char *path, bool strict, btc_manifest_summary *out) {
  reading r = {.terminal = isatty(STDERR_FILENO), .shown_ns = btc_now_ns()};
  btc_manifest_digest_options o = {.strict = strict, .cancel = &cli_interrupted, .progress = on_progress, .ctx = &r};
  btc_error err;
  btc_status st = btc_manifest_digest(path, &o, out, &err);
  if (r.terminal && r.shown) fputs("\r\033[K", stderr);
  if (st == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return st == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
}

void warn_of_bad_lines(const btc_manifest_summary *s) {
  if (s->bad)
    cli_error("'%s': %" PRIu64 " of %" PRIu64 " items are bad and become failed records; the first: %s", s->path, s->bad, s->items,
              s->problem);
}

/* Relative paths stand on the folder in which the user named the manifest; behind a symbolic link that is not the folder of the
 * file. */
int manifest_base(const char *path, const btc_manifest_summary *s, char **base) {
  struct stat sb;
  *base = NULL;
  if (stat(path, &sb) == 0 && S_ISDIR(sb.st_mode)) return CLI_OK;
  char *named = btc_strdup(path), *real = btc_strdup(s->path);
  char *folder = named ? realpath(dirname(named), NULL) : NULL;
  bool good = folder && real;
  if (good && strcmp(folder, dirname(real)) != 0) {
    *base = folder;
    folder = NULL;
  }
  free(folder);
  free(named);
  free(real);
  if (!good) cli_error("'%s': %s", path, strerror(errno));
  return good ? CLI_OK : CLI_FAILED;
}

/* ---- parameters ---- */

int job_params(const submit_options *o, char **params) {
  const char *prompt = o->prompt;
  char *owned = NULL;
  btc_error err;
  *params = NULL;
  if (prompt && o->prompt_file) {
    cli_error("give either --prompt or --prompt-file, not both");
    return CLI_USAGE;
  }
  if (o->prompt_file && btc_prompt_read_file(o->prompt_file, &owned, &err) != BTC_OK) {
    cli_error("%s", err.message);
    return CLI_FAILED;
  }
  if (owned) prompt = owned;
  json_t *p = json_object();
  bool good = p != NULL;
  if (prompt) good = good && json_object_set_new(p, "prompt", json_string(prompt)) == 0;
  if (o->max_tokens) good = good && json_object_set_new(p, "max_tokens", json_integer(o->max_tokens)) == 0;
  if (good) *params = json_dumps(p, JSON_COMPACT | JSON_SORT_KEYS);
  json_decref(p);
  free(owned);
  if (!*params) cli_error("--prompt: must be UTF-8 text");
  return *params ? CLI_OK : CLI_USAGE;
}

static btc_submission submission_of(const submit_options *o, const char *params) {
  return (btc_submission){.key = o->key,
                          .tenant = o->tenant,
                          .model_class = o->model_class,
                          .params = params,
                          .route = o->to,
                          .priority = (uint32_t)o->priority,
                          .delay_ms = (uint64_t)(o->delay_s * 1000),
                          .strict = o->strict};
}

/* ---- lines on standard input ---- */

static btc_status read_lines(bool strict, const char *cwd, char **items, size_t *n, btc_error *err) {
  btc_manifest *m = NULL;
  btc_manifest_item item;
  btc_status st = btc_manifest_open("-", &(btc_manifest_options){.strict = strict, .cancel = &cli_interrupted}, &m, err);
  while (st == BTC_OK && (st = btc_manifest_next(m, &item, err)) == BTC_OK && item.kind != BTC_MANIFEST_END) {
    if (*n == BTC_CLIENT_MAX_INLINE) {
      st = btc_fail(err, BTC_ERR_LIMIT,
                    "more than %d items on standard input: write them to a file that the brokers see, and submit that",
                    BTC_CLIENT_MAX_INLINE);
      break;
    }
    items[*n] = btc_manifest_item_text(&item, cwd);
    if (!items[*n]) st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    if (items[*n]) ++*n;
  }
  btc_manifest_close(&m);
  return st;
}

static int submit_stdin(btc_client *c, const submit_options *o, const char *params, char jid[BTC_CLIENT_JID], uint64_t *items,
                        bool *existed) {
  char *text[BTC_CLIENT_MAX_INLINE], *cwd = getcwd(NULL, 0);
  size_t n = 0;
  btc_error err;
  btc_submission s = submission_of(o, params);
  btc_status st =
      cwd ? read_lines(o->strict, cwd, text, &n, &err) : btc_fail(&err, BTC_ERR_IO, "no working directory: %s", strerror(errno));
  int code = CLI_FAILED;
  if (st != BTC_OK) {
    cli_error("%s", err.message);
    if (st == BTC_ERR_CANCELLED) code = CLI_INTERRUPTED;
  } else {
    s.items = (const char *const *)text;
    s.n_items = n;
    st = btc_client_submit(c, &s, jid, existed, &err);
    code = st == BTC_OK ? CLI_OK : client_failed(c, "standard input", st, &err);
  }
  *items = n;
  while (n) free(text[--n]);
  free(cwd);
  return code;
}

/* ---- both ---- */

static int submit_file(btc_client *c, const char *path, const submit_options *o, const char *params, char jid[BTC_CLIENT_JID],
                       uint64_t *items, bool *existed) {
  btc_manifest_summary m;
  char *base = NULL;
  btc_error err;
  int code = read_manifest(path, o->strict, &m);
  if (code == CLI_OK) code = manifest_base(path, &m, &base);
  if (code == CLI_OK) {
    warn_of_bad_lines(&m);
    btc_submission s = submission_of(o, params);
    s.manifest = &m;
    s.base_dir = base;
    btc_status st = btc_client_submit(c, &s, jid, existed, &err);
    if (st != BTC_OK) code = client_failed(c, path, st, &err);
  }
  *items = m.items;
  free(base);
  btc_manifest_summary_free(&m);
  return code;
}

int submit_manifest(btc_client *c, const char *path, const submit_options *o, char jid[BTC_CLIENT_JID], uint64_t *items,
                    bool *existed) {
  char *params;
  int code = job_params(o, &params);
  if (code != CLI_OK) return code;
  code = strcmp(path, "-") == 0 ? submit_stdin(c, o, params, jid, items, existed)
                                : submit_file(c, path, o, params, jid, items, existed);
  free(params);
  return code;
}
