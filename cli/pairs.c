/* caption --pairs: reads the manifest a batch ahead, runs the batch, prints its records. Memory is bounded by the batch. */
#define _GNU_SOURCE
#include "pairs.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "manifest/manifest.h"
#include "worker/item.h"
#include "worker/window.h"

typedef struct pairs_run {
  const model_options *o;
  btc_model *m;
  btc_session *s;
  const char *prompt; /* of items that bring none; NULL: the caption instruction */
  btc_manifest *manifest;
  window_reader *windows;
  record_model model;
  work_item *lines;    /* [batch] copied out of the reader's buffers */
  btc_item *items;     /* [batch] */
  btc_result *results; /* [batch] */
  int n;               /* lines held */
  int64_t done, failed;
  int64_t start_ns, shown_ns;
  bool terminal;
} pairs_run;

static btc_status copy_window(const pairs_run *p, work_item *l, const btc_manifest_item *it, btc_error *err) {
  const int64_t *w = it->window;
  json_t *window = json_pack("[I,I,I,I]", (json_int_t)w[0], (json_int_t)w[1], (json_int_t)w[2], (json_int_t)w[3]);
  btc_error why;
  btc_status st = item_window_create(window, NULL, (const char *const *)l->paths, p->windows, &l->window, &why);
  json_decref(window);
  if (st == BTC_ERR_ARG) item_refuse(l, why.message);
  return st == BTC_ERR_NOMEM ? btc_fail(err, st, "%s", why.message) : BTC_OK;
}

static btc_status copy_line(const pairs_run *p, work_item *l, const btc_manifest_item *it, btc_error *err) {
  bool bad = it->kind == BTC_MANIFEST_BAD;
  const char *prompt = bad || !it->prompt ? p->prompt : it->prompt;
  *l = (work_item){.id = btc_strdup(it->id), .prompt = btc_strdup(prompt)};
  if (it->kind == BTC_MANIFEST_BAD) {
    char why[BTC_ERROR_TEXT];
    snprintf(why, sizeof why, "line %" PRIu64 ": %s", it->line, it->problem);
    item_refuse(l, why);
  } else {
    l->paths[0] = btc_strdup(it->before);
    l->paths[1] = btc_strdup(it->after);
    l->meta = btc_strdup(it->meta);
  }
  set_sampling(p->o, &l->ask);
  bool copied = l->id && (l->prompt || !prompt) && (bad || (l->paths[0] && l->paths[1] && (l->meta || !it->meta)));
  if (!copied) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  return it->has_window && !bad ? copy_window(p, l, it, err) : BTC_OK;
}

/* Fills up to a batch of lines; *end when the manifest is exhausted. */
static btc_status read_batch(pairs_run *p, bool *end, btc_error *err) {
  btc_manifest_item it;
  while (p->n < p->o->batch) {
    btc_status st = btc_manifest_next(p->manifest, &it, err);
    if (st != BTC_OK) return st;
    if (it.kind == BTC_MANIFEST_END) {
      *end = true;
      return BTC_OK;
    }
    st = copy_line(p, &p->lines[p->n++], &it, err);
    if (st != BTC_OK) return st;
  }
  return BTC_OK;
}

static btc_status print_batch(pairs_run *p, btc_error *err) {
  for (int i = 0; i < p->n; i++) {
    const work_item *l = &p->lines[i];
    char *text = item_record(p->m, &p->model, l);
    if (!text) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    bool written = puts(text) >= 0;
    if (!written) cli_output_failed();
    free(text);
    if (!written) return btc_fail(err, BTC_ERR_IO, "cannot write the results");
    p->done++;
    p->failed += item_failed(l);
  }
  if (fflush(stdout) == 0) return BTC_OK;
  cli_output_failed();
  return btc_fail(err, BTC_ERR_IO, "cannot write the results");
}

/* A bar on a terminal, one plain line every ten seconds otherwise. */
static void show_progress(pairs_run *p, bool last) {
  int64_t now = btc_now_ns(), gap = p->terminal ? 200000000 : 10000000000;
  if (!last && now - p->shown_ns < gap) return;
  if (last && !p->terminal && now - p->start_ns < gap) return;
  p->shown_ns = now;
  double seconds = (double)(now - p->start_ns) * 1e-9, part = btc_manifest_progress(p->manifest);
  double rate = seconds > 0 ? (double)p->done / seconds : 0;
  fprintf(stderr, "%s%lld pairs, %lld failed, %.2f pairs/s", p->terminal ? "\r\033[K" : "btcchat: ", (long long)p->done,
          (long long)p->failed, rate);
  if (part > 0 && part < 1) fprintf(stderr, ", %.0f %%, about %.0f s left", part * 100, seconds * (1 - part) / part);
  if (!p->terminal || last) fputc('\n', stderr);
}

static int run_all(pairs_run *p) {
  btc_error err;
  btc_status st = BTC_OK;
  bool end = false;
  while (st == BTC_OK && !end) {
    btc_status read = read_batch(p, &end, &err); /* what was read before an error is still captioned */
    btc_error run_err;
    st = item_run(p->s, p->lines, (size_t)p->n, p->items, p->results, &run_err);
    if (st != BTC_ERR_CANCELLED) {
      btc_status printed = print_batch(p, &run_err);
      if (st == BTC_OK || st == BTC_ERR_NOMEM) st = printed;
    }
    if (st != BTC_OK) err = run_err;
    for (int i = 0; i < p->n; i++) item_clear(&p->lines[i]);
    p->n = 0;
    if (st == BTC_OK) st = read;
    if (st == BTC_OK && cli_interrupted) st = BTC_ERR_CANCELLED;
    show_progress(p, st != BTC_OK || end);
  }
  if (st == BTC_ERR_CANCELLED) {
    cli_error("interrupted: %lld records were written", (long long)p->done);
    return CLI_INTERRUPTED;
  }
  if (st != BTC_OK) {
    if (!ferror(stdout)) cli_error("%s", err.message); /* else it has been said */
    return CLI_FAILED;
  }
  return p->failed ? CLI_SOME_FAILED : CLI_OK;
}

int caption_pairs(const model_options *o, btc_model *m, btc_session *s, const char *prompt, const char *manifest, bool strict) {
  pairs_run p = {.o = o, .m = m, .s = s, .prompt = prompt, .start_ns = btc_now_ns(), .terminal = isatty(STDERR_FILENO)};
  btc_error err;
  int code = CLI_FAILED;
  btc_status st = BTC_OK;
  const btc_manifest_options mo = {.strict = strict, .cancel = &cli_interrupted};
  p.shown_ns = p.start_ns;
  p.lines = btc_alloc_zero((size_t)o->batch, sizeof *p.lines);
  p.items = btc_alloc_zero((size_t)o->batch, sizeof *p.items);
  p.results = btc_alloc_zero((size_t)o->batch, sizeof *p.results);
  btc_model_info info;
  btc_model_get_info(m, &info);
  p.windows = window_reader_create(NULL, info.grid, NULL);
  if (!p.lines || !p.items || !p.results || !p.windows)
    cli_error("out of memory");
  else if ((st = btc_manifest_open(manifest, &mo, &p.manifest, &err)) != BTC_OK ||
           (st = record_model_fill(m, btc_session_precision(s), &p.model, &err)) != BTC_OK)
    cli_error("%s", err.message);
  else
    code = run_all(&p);
  if (st == BTC_ERR_CANCELLED) code = CLI_INTERRUPTED;
  window_reader_destroy(&p.windows);
  btc_manifest_close(&p.manifest);
  free(p.lines);
  free(p.items);
  free(p.results);
  return code;
}
