/*
 * A scene over the queue: a job of windows, one manifest item each, read by the workers. Its records come back with their change
 * cells, go into the journal, and out of that come the same files as of a run in this process. The job's key is the run's: asking
 * again gives the same job, so that whatever dies here, the queue goes on and the same command fetches what it did.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "collect.h"
#include "geo/cells.h"
#include "jobs.h"
#include "scene.h"
#include "submit.h"

enum { MAX_GRID = 128 /* cells a side that are believed */ };

typedef struct scene_fetch {
  const scene_plan *p;
  const scene_files *f;
  const char *results, *key;
  btc_journal *journal;
  record_model model;
  int64_t grid;
  uint16_t *cells;
} scene_fetch;

/* ---- the job ---- */

static btc_status write_manifest(const scene_plan *p, const char *path, btc_error *err) {
  char *before = realpath(p->o->before, NULL), *after = realpath(p->o->after, NULL);
  FILE *out = before && after ? fopen(path, "w") : NULL;
  bool good = out != NULL;
  for (int64_t k = 0; good && k < p->grid.count; k++) {
    int64_t index = btc_grid_visit(&p->grid, p->info->stripe_width, k);
    btc_window w = btc_grid_window(&p->grid, index);
    scene_id id;
    scene_window_id(&p->grid, index, id);
    json_t *item = json_pack("{s:s,s:s,s:s,s:[I,I,I,I]}", "id", id, "before", before, "after", after, "window", (json_int_t)w.x,
                             (json_int_t)w.y, (json_int_t)w.width, (json_int_t)w.height);
    good = item && json_dumpf(item, out, JSON_COMPACT) == 0 && putc('\n', out) != EOF;
    json_decref(item);
  }
  if (out && fclose(out) != 0) good = false;
  free(before);
  free(after);
  return good ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot write '%s': %s", path, strerror(errno));
}

static char *make_params(const scene_plan *p, const char *prompt) {
  const model_options *m = &p->o->model;
  json_t *scene = scene_plan_options(p->o);
  json_t *o = json_pack("{s:o,s:I,s:f,s:f,s:I,s:I}", "scene", scene, "max_tokens", (json_int_t)m->max_tokens, "temperature",
                        m->temperature, "top_p", m->top_p, "top_k", (json_int_t)m->top_k, "seed", (json_int_t)m->seed);
  if (o && prompt) json_object_set_new(o, "prompt", json_string(prompt));
  char *text = o ? json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
  json_decref(o);
  return text;
}

static int submit(btc_client *c, const scene_plan *p, const char *manifest, const char *key, const char *prompt,
                  char jid[BTC_CLIENT_JID]) {
  btc_manifest_summary m;
  btc_error err;
  bool existed;
  char *params = make_params(p, prompt), once[64];
  if (!params) {
    cli_error("--prompt: must be UTF-8 text");
    return CLI_USAGE;
  }
  snprintf(once, sizeof once, "scene-%.32s", key);
  int code = read_manifest(manifest, true, &m);
  if (code == CLI_OK) {
    btc_submission s = {.manifest = &m, .key = p->o->restart ? NULL : once, .params = params, .priority = 1};
    btc_status st = btc_client_submit(c, &s, jid, &existed, &err);
    if (st != BTC_OK) code = client_failed(c, manifest, st, &err);
    if (st == BTC_OK) cli_error("job %s%s: %lld windows", jid, existed ? ", submitted before" : "", (long long)p->grid.count);
  }
  btc_manifest_summary_free(&m);
  free(params);
  return code;
}

/* Waits for the job and fetches its records into FOLDER/results.jsonl. */
static int fetch(btc_client *c, const scene_plan *p, const char *folder, const char *manifest, const char *jid) {
  Btc__Envelope *reply = NULL;
  collector *to = NULL;
  id_order order = {0};
  int code = job_wait(c, jid, &reply);
  if (code != CLI_OK) return code;
  bool finished = !strcmp(job_state_text(reply->status_reply->jobs[0]), "finished");
  btc_wire_free(&reply);
  if (!finished) {
    cli_error("job %s was cancelled; --restart makes a new one", jid);
    return CLI_FAILED;
  }
  code = order_read(manifest, (uint64_t)p->grid.count, &order);
  if (code == CLI_OK) code = collector_open(&(collector_options){.dir = folder, .order = &order}, &to);
  if (code == CLI_OK) code = collect_job(c, jid, to);
  if (code == CLI_OK) code = collector_finish(to, NULL);
  collector_close(&to);
  order_free(&order);
  return code;
}

/* ---- records ---- */

static int64_t index_of(const scene_plan *p, const json_t *record) {
  long long row = -1, column = -1;
  int used = 0;
  const char *id = json_string_value(json_object_get(record, "id"));
  // NOLINTNEXTLINE(cert-err34-c): the widths bound the numbers
  if (!id || sscanf(id, "r%18lldc%18lld%n", &row, &column, &used) != 2 || id[used]) return -1;
  return row >= 0 && row < p->grid.rows && column >= 0 && column < p->grid.columns ? row * p->grid.columns + column : -1;
}

static void learn_model(scene_fetch *s, const json_t *record) {
  const json_t *m = json_object_get(record, "model");
  const char *name = json_string_value(json_object_get(m, "name")), *dtype = json_string_value(json_object_get(m, "dtype"));
  const char *print = json_string_value(json_object_get(m, "fingerprint"));
  if (*s->model.name || !name || !dtype || !print) return;
  snprintf(s->model.name, sizeof s->model.name, "%s", name);
  snprintf(s->model.dtype, sizeof s->model.dtype, "%s", dtype);
  snprintf(s->model.fingerprint, sizeof s->model.fingerprint, "%s", print);
}

/* First pass: how large the change grid is, which only the workers know. */
static btc_status learn(scene_fetch *s, json_t *record, btc_error *err) {
  const char *heat = json_string_value(json_object_get(record, "heat"));
  learn_model(s, record);
  if (!heat || s->grid) return BTC_OK;
  size_t n = btc_cells_count(heat);
  for (int64_t g = 1; g <= MAX_GRID; g++)
    if ((size_t)(g * g) == n) s->grid = g;
  return s->grid ? BTC_OK : btc_fail(err, BTC_ERR_FORMAT, "'%s': 'heat' holds no change cells", s->results);
}

/* Second pass: the record as a run here writes it, and its cells. */
static btc_status keep(scene_fetch *s, json_t *record, btc_error *err) {
  int64_t index = index_of(s->p, record);
  if (index < 0) return btc_fail(err, BTC_ERR_FORMAT, "'%s': a record of no window", s->results);
  const char *heat = json_string_value(json_object_get(record, "heat"));
  bool cells = heat && btc_cells_decode(heat, s->cells, (size_t)(s->grid * s->grid));
  if (heat && !cells) return btc_fail(err, BTC_ERR_FORMAT, "'%s': workers with different models wrote it", s->results);
  json_object_del(record, "heat");
  json_object_del(record, "window");
  char *line = scene_record_place(s->p, index, json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(12)));
  if (!line) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = btc_journal_append(s->journal, (uint64_t)index, line, cells ? s->cells : NULL, err);
  free(line);
  return st;
}

static btc_status each_record(scene_fetch *s, btc_status (*what)(scene_fetch *, json_t *, btc_error *), btc_error *err) {
  FILE *in = fopen(s->results, "r");
  char *line = NULL;
  size_t room = 0;
  ssize_t len;
  btc_status st = in ? BTC_OK : btc_fail(err, BTC_ERR_IO, "cannot read '%s': %s", s->results, strerror(errno));
  while (st == BTC_OK && (len = getline(&line, &room, in)) > 0) {
    json_t *record = json_loadb(line, (size_t)len, 0, NULL);
    st = record ? what(s, record, err) : btc_fail(err, BTC_ERR_FORMAT, "'%s': a line is no JSON", s->results);
    json_decref(record);
  }
  free(line);
  if (in) fclose(in);
  return st;
}

static btc_status take_in(scene_fetch *s, btc_error *err) {
  btc_status st = each_record(s, learn, err);
  if (st != BTC_OK) return st;
  if (!s->grid) s->grid = 1; /* no window has cells: the map is empty */
  s->cells = btc_alloc((size_t)(s->grid * s->grid), sizeof *s->cells);
  if (!s->cells) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  st = btc_journal_open(s->f->journal, s->key, (uint64_t)s->p->grid.count, (uint32_t)(s->grid * s->grid), true, &s->journal, err);
  if (st == BTC_OK) st = each_record(s, keep, err);
  if (st == BTC_OK && btc_journal_finished(s->journal) != (uint64_t)s->p->grid.count)
    st = btc_fail(err, BTC_ERR_FORMAT, "the job has records of %llu windows, the scene %lld",
                  (unsigned long long)btc_journal_finished(s->journal), (long long)s->p->grid.count);
  return st;
}

int scene_queue_run(const scene_plan *p, const scene_files *f, const broker_options *b, const char *prompt, scene_counts *counts) {
  char *manifest = NULL, *results = NULL, key[65], jid[BTC_CLIENT_JID];
  btc_client *c = NULL;
  btc_error err;
  scene_plan_key(p, &(record_model){0}, prompt, key);
  scene_fetch s = {.p = p, .f = f, .key = key};
  int code = CLI_FAILED;
  btc_status st = BTC_OK;
  if (asprintf(&manifest, "%s/manifest.jsonl", f->work) < 0) manifest = NULL;
  if (asprintf(&results, "%s/results.jsonl", f->work) < 0) results = NULL;
  s.results = results;
  if (!manifest || !results) st = btc_fail(&err, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = write_manifest(p, manifest, &err);
  if (st == BTC_OK) code = open_client(b, &c);
  if (st == BTC_OK && code == CLI_OK) code = submit(c, p, manifest, key, prompt, jid);
  if (st == BTC_OK && code == CLI_OK) code = fetch(c, p, f->work, manifest, jid);
  if (st == BTC_OK && code == CLI_OK) {
    st = take_in(&s, &err);
    if (st == BTC_OK) st = scene_write(p, f, s.journal, s.grid, &s.model, prompt, counts, &err);
  }
  if (st != BTC_OK) {
    cli_error("%s", err.message);
    code = st == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
  }
  if (code == CLI_OK) {
    unlink(manifest);
    unlink(results);
    scene_files_remove(f, true);
  }
  btc_journal_close(&s.journal);
  btc_client_close(&c);
  free(s.cells);
  free(manifest);
  free(results);
  return code;
}
