/* btcchat pipes: models spread over several workers, stage by stage. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "fleet.h"
#include "jobs.h"

static int run(int argc, char **argv);

const cli_command cmd_pipes = {
    .name = "pipes",
    .arguments = "",
    .summary = "models spread over several workers: who holds which blocks, stage times, bubble",
    .details =
        "MS is a stage's time for an item as its worker measures it (planned before it has), BUSY its share of the last seconds;\n"
        "the bubble is what the stages together waited, the imbalance what of it comes from stages that are not equal.",
    .run = run,
};

static double age_s(const Btc__PipeInfo *p) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  double age = (double)t.tv_sec + (double)t.tv_nsec / 1e9 - (double)p->since_ms / 1e3;
  return age > 0 ? age : 0;
}

/* What the stages would wait if the busiest one never did: 1 - mean / most. */
static double imbalance(const Btc__PipeInfo *p) {
  double most = 0, sum = 0;
  for (size_t i = 0; i < p->n_stages; i++) {
    sum += p->stages[i]->busy;
    if (p->stages[i]->busy > most) most = p->stages[i]->busy;
  }
  return most > 0 ? 1 - sum / ((double)p->n_stages * most) : 0;
}

static void print_pipe(const Btc__PipeInfo *p) {
  char age[32], bubble[64] = "-";
  if (p->bubble > 0) snprintf(bubble, sizeof bubble, "%.1f %% (imbalance %.1f %%)", 100 * p->bubble, 100 * imbalance(p));
  printf("%s %s, epoch %" PRIu64 ", for %s, %zu stages, %.3g items/s planned, bubble %s%s%s\n", p->pipe, p->state, p->epoch,
         duration_text(age_s(p), age, sizeof age), p->n_stages, p->items_per_s, bubble, *p->message ? ": " : "", p->message);
  for (size_t i = 0; i < p->n_stages; i++) {
    const Btc__PipeStageInfo *s = p->stages[i];
    char busy[16] = "-", range[32];
    if (s->busy > 0) snprintf(busy, sizeof busy, "%.1f %%", 100 * s->busy);
    snprintf(range, sizeof range, "%u-%u", s->first, s->last ? s->last - 1 : 0);
    printf("  %-5zu %-24s %-10s %12.0f %12.1f %12.1f %8s\n", i, s->worker, range, (double)s->bytes / 1048576, s->planned_ms,
           s->ms > 0 ? s->ms : s->planned_ms, busy);
  }
}

static json_t *pipe_json(const Btc__PipeInfo *p) {
  json_t *stages = json_array();
  for (size_t i = 0; i < p->n_stages; i++) {
    const Btc__PipeStageInfo *s = p->stages[i];
    json_array_append_new(stages, json_pack("{s:s,s:I,s:I,s:I,s:f,s:f,s:f}", "worker", s->worker, "first", (json_int_t)s->first,
                                            "last", (json_int_t)s->last, "bytes", (json_int_t)s->bytes, "planned_ms", s->planned_ms,
                                            "ms", s->ms, "busy", s->busy));
  }
  return json_pack("{s:s,s:I,s:s,s:I,s:s,s:s,s:f,s:f,s:f,s:o}", "pipe", p->pipe, "epoch", (json_int_t)p->epoch, "state", p->state,
                   "since_ms", (json_int_t)p->since_ms, "class", p->model_class, "message", p->message, "items_per_s",
                   p->items_per_s, "bubble", p->bubble, "imbalance", imbalance(p), "stages", stages);
}

static int show(btc_client *c, bool json) {
  Btc__Envelope *reply;
  btc_error err;
  btc_status st = btc_client_pipes(c, &reply, &err);
  if (st != BTC_OK) return client_failed(c, NULL, st, &err);
  const Btc__PipesReply *r = reply->pipes_reply;
  int code = CLI_OK;
  if (json) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < r->n_pipes; i++) json_array_append_new(list, pipe_json(r->pipes[i]));
    code = print_json(list);
  } else {
    if (r->n_pipes)
      printf("  %-5s %-24s %-10s %12s %12s %12s %8s\n", "RANK", "WORKER", "BLOCKS", "MIB", "PLANNED MS", "MS", "BUSY");
    for (size_t i = 0; i < r->n_pipes; i++) print_pipe(r->pipes[i]);
    if (!r->n_pipes) fprintf(stderr, "btcchat: there are no pipes: every worker holds a whole model\n");
  }
  btc_wire_free(&reply);
  return code;
}

static int run(int argc, char **argv) {
  return run_list(&cmd_pipes, argc, argv, show);
}
