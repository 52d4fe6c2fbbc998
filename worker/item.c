/* Items and their records: see item.h. */
#define _GNU_SOURCE
#include "item.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "engine/prompt.h"
#include "window.h"

/* A manifest line has at most 1 MiB, escapes and absolute paths may make it longer here. */
static const btc_json_limits spec_limits = {.max_bytes = 4u << 20, .max_values = 400000};

void item_clear(work_item *it) {
  free(it->id);
  free(it->paths[0]);
  free(it->paths[1]);
  free(it->prompt);
  free(it->meta);
  btc_result_clear(&it->result);
  item_window_free(it->window);
  *it = (work_item){0};
}

void item_refuse(work_item *it, const char *why) {
  it->bad = true;
  it->result.status = btc_fail(&it->result.error, BTC_ERR_ARG, "%s", why);
}

void item_refuse_window(work_item *it) {
  item_refuse(it, "'window' cuts scenes, which need the scene reader: only whole images are taken");
}

/* ---- item texts ---- */

static bool copy_text(char **out, const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  if (!s) return true;
  free(*out);
  *out = btc_strdup(s);
  return *out != NULL;
}

/* Integers beyond 64 bits do not fit a record: `caption --pairs` leaves out such a meta, and so does this. */
static bool copy_meta(work_item *it, const json_t *doc, const char *spec) {
  const json_t *meta = json_object_get(doc, "meta");
  if (!json_is_object(meta)) return true;
  json_t *strict = json_loads(spec, 0, NULL);
  if (!strict) return true;
  json_decref(strict);
  it->meta = json_dumps(meta, JSON_COMPACT | JSON_REAL_PRECISION(17));
  return it->meta != NULL;
}

static btc_status read_params(work_item *it, const json_t *doc, btc_error *err) {
  const btc_json_object o = {.value = doc, .label = "parameters of the job", .key_prefix = ""};
  int64_t max_tokens = 0, top_k = 50, seed = 0;
  double temperature = 0, top_p = 1;
  const char *prompt = NULL;
  btc_status st = btc_json_get_string(&o, "prompt", BTC_JSON_NULLABLE, &prompt, err);
  if (st == BTC_OK) st = btc_json_get_int(&o, "max_tokens", BTC_JSON_NULLABLE, 1, 65536, &max_tokens, err);
  if (st == BTC_OK) st = btc_json_get_int(&o, "top_k", BTC_JSON_NULLABLE, 0, 1000000, &top_k, err);
  if (st == BTC_OK) st = btc_json_get_int(&o, "seed", BTC_JSON_NULLABLE, 0, INT64_MAX, &seed, err);
  if (st == BTC_OK) st = btc_json_get_number(&o, "temperature", BTC_JSON_NULLABLE, 0, 100, &temperature, err);
  if (st == BTC_OK) st = btc_json_get_number(&o, "top_p", BTC_JSON_NULLABLE, 1e-6, 1, &top_p, err);
  if (st != BTC_OK) return st;
  it->ask.max_tokens = (int)max_tokens;
  it->ask.top_k = top_k ? (int)top_k : -1;
  it->ask.seed = (uint64_t)seed;
  it->ask.temperature = (float)temperature;
  it->ask.top_p = (float)top_p;
  if (prompt && !(it->prompt = btc_strdup(prompt))) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  return BTC_OK;
}

static btc_status parse_params(work_item *it, const char *params, btc_error *err) {
  json_t *doc = NULL;
  btc_error why;
  if (!params || !*params) params = "{}";
  btc_status st = btc_json_parse(params, strlen(params), "parameters of the job", &spec_limits, &doc, &why);
  if (st == BTC_OK) st = read_params(it, doc, &why);
  json_decref(doc);
  if (st == BTC_ERR_NOMEM) return btc_fail(err, st, "%s", why.message);
  if (st != BTC_OK) item_refuse(it, why.message);
  return BTC_OK;
}

/* Paths, prompt and meta. */
static btc_status read_texts(work_item *it, const json_t *doc, const char *spec, btc_error *err) {
  if (!json_is_string(json_object_get(doc, "before")) || !json_is_string(json_object_get(doc, "after"))) {
    item_refuse(it, "the item has no 'before' or no 'after'");
    return BTC_OK;
  }
  bool copied = copy_text(&it->paths[0], doc, "before") && copy_text(&it->paths[1], doc, "after") &&
                copy_text(&it->prompt, doc, "prompt") && copy_meta(it, doc, spec);
  return copied ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

/* The line's own texts. The order of the refusals is that of `caption --pairs`: a bad line or a window has neither prompt nor meta
 * of its own. */
static btc_status read_spec(work_item *it, const json_t *doc, const char *spec, btc_error *err) {
  const json_t *problem = json_object_get(doc, "problem");
  if (it->bad) return BTC_OK;
  if (json_is_string(problem)) {
    item_refuse(it, json_string_value(problem));
    return BTC_OK;
  }
  if (json_object_get(doc, "window")) {
    item_refuse_window(it);
    it->is_window = true;
    return BTC_OK;
  }
  return read_texts(it, doc, spec, err);
}

btc_status item_from_spec(work_item *it, const char *spec, const char *params, btc_error *err) {
  json_t *doc = NULL;
  btc_error why;
  *it = (work_item){0};
  btc_status st = btc_json_parse(spec, strlen(spec), "item", &spec_limits, &doc, &why);
  const char *id = json_string_value(json_object_get(doc, "id"));
  if (st == BTC_ERR_NOMEM || !(it->id = btc_strdup(id ? id : ""))) {
    json_decref(doc);
    return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  }
  if (st != BTC_OK) item_refuse(it, why.message);
  st = parse_params(it, params, err);
  if (st == BTC_OK && doc) st = read_spec(it, doc, spec, err);
  json_decref(doc);
  return st;
}

static btc_status take_window(work_item *it, const json_t *doc, const char *spec, const char *params, window_reader *r,
                              btc_error *err) {
  btc_error why;
  json_t *job = params && *params ? json_loads(params, 0, NULL) : NULL;
  it->bad = false;
  it->result.status = BTC_OK;
  btc_status st = read_texts(it, doc, spec, err);
  if (st == BTC_OK && !it->bad) {
    btc_status made = item_window_create(json_object_get(doc, "window"), json_object_get(job, "scene"),
                                         (const char *const *)it->paths, r, &it->window, &why);
    if (made == BTC_ERR_NOMEM) st = btc_fail(err, made, "%s", why.message);
    if (made == BTC_ERR_ARG) item_refuse(it, why.message);
  }
  json_decref(job);
  return st;
}

btc_status item_take_window(work_item *it, const char *spec, const char *params, window_reader *r, btc_error *err) {
  json_t *doc;
  if (!it->is_window) return BTC_OK;
  btc_status st = btc_json_parse(spec, strlen(spec), "item", &spec_limits, &doc, err);
  if (st != BTC_OK) return st;
  st = take_window(it, doc, spec, params, r, err);
  json_decref(doc);
  return st;
}

/* ---- captions ---- */

void item_fill_ask(work_item *it) {
  it->ask.images = (const char *const *)it->paths;
  it->ask.n_images = 2;
  it->ask.question = it->prompt;
  if (!it->window) return;
  it->ask.load = item_window_load;
  it->ask.load_ctx = it->window;
}

btc_status item_run(btc_session *s, work_item *items, size_t n, btc_item *asks, btc_result *results, btc_error *err) {
  size_t m = 0;
  for (size_t i = 0; i < n; i++) {
    work_item *it = &items[i];
    if (it->bad) continue;
    item_fill_ask(it);
    asks[m++] = it->ask;
  }
  btc_status st = m ? btc_session_run(s, asks, m, results, err) : BTC_OK;
  m = 0;
  for (size_t i = 0; i < n; i++)
    if (!items[i].bad) items[i].result = results[m++];
  return st;
}

bool item_failed(const work_item *it) {
  return it->result.status != BTC_OK && !(it->window && item_window_skipped(it->window));
}

const char *item_reason(const work_item *it) {
  if (it->reason) return it->reason;
  if (it->window && it->window->failure.reason != BTC_GEO_NONE) return btc_geo_reason_text(it->window->failure.reason);
  return record_reason(it->result.status, it->result.phase);
}

static char *make_record(const btc_model *m, const record_model *rm, const work_item *it, const char *prompt) {
  bool read_failed = it->window && it->window->failure.reason != BTC_GEO_NONE;
  if (it->reason || read_failed) return record_failed(rm, it->id, prompt, it->meta, item_reason(it), it->result.error.message);
  if (it->window && item_window_skipped(it->window))
    return record_skipped(rm, it->id, prompt, it->meta, btc_verdict_reason(it->window->px.verdict),
                          btc_verdict_message(&it->window->px), it->window->px.verdict == BTC_VERDICT_UNCHANGED);
  return record_line(m, rm, it->id, prompt, it->meta, true, &it->result);
}

char *item_record(const btc_model *m, const record_model *rm, const work_item *it) {
  char *line = make_record(m, rm, it, it->prompt ? it->prompt : btc_prompt_caption);
  return it->window ? item_window_record(it->window, &it->result, line) : line;
}

/* ---- path policy ---- */

static bool lies_under(const char *root, size_t n, const char *path) {
  while (n > 1 && root[n - 1] == '/') n--;
  if (n == 1 && root[0] == '/') return path[0] == '/';
  return n && strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static bool has_dots(const char *path) {
  for (const char *p = strstr(path, ".."); p; p = strstr(p + 1, ".."))
    if ((p == path || p[-1] == '/') && (p[2] == 0 || p[2] == '/')) return true;
  return false;
}

/* A path that does not resolve is judged as written, so that nobody learns what exists outside. */
bool item_path_allowed(const char *roots, const char *path) {
  if (!roots || !*roots) return true;
  char *real = realpath(path, NULL);
  const char *judged = real ? real : path;
  bool allowed = false;
  for (const char *r = roots; !allowed && *r; r += strcspn(r, ":"), r += *r == ':') {
    char root[PATH_MAX], resolved[PATH_MAX];
    size_t n = strcspn(r, ":");
    if (!n || n >= sizeof root) continue;
    memcpy(root, r, n);
    root[n] = 0;
    if (!real) allowed = !has_dots(path) && lies_under(root, n, judged);
    if (!allowed && realpath(root, resolved)) allowed = (real || !has_dots(path)) && lies_under(resolved, strlen(resolved), judged);
  }
  free(real);
  return allowed;
}

bool item_refuse_outside(work_item *it, const char *roots) {
  for (int i = 0; i < 2 && !it->bad; i++) {
    if (item_path_allowed(roots, it->paths[i])) continue;
    it->bad = true;
    it->reason = "policy";
    it->result.status =
        btc_fail(&it->result.error, BTC_ERR_ARG, "'%s' is outside the folders that this worker may read (--roots)", it->paths[i]);
    return true;
  }
  return false;
}
