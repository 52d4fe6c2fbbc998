/* See run_summary.h. */
#define _GNU_SOURCE
#include "run_summary.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "progress.h"

static void add(run_reasons *r, const char *reason) {
  int i = 0;
  while (i < r->n && strncmp(r->list[i].name, reason, sizeof r->list[i].name - 1) != 0) i++;
  if (i == RUN_REASONS) i--;
  if (i == r->n) snprintf(r->list[r->n++].name, sizeof r->list[0].name, "%s", i < RUN_REASONS - 1 ? reason : "other");
  r->list[i].n++;
}

void run_count_reasons(btc_client *c, const char *jid, run_reasons *out) {
  uint64_t after = 0;
  for (bool end = false; !end;) {
    Btc__Envelope *reply;
    if (btc_client_dead(c, jid, after, 500, &reply, NULL) != BTC_OK) return;
    const Btc__DeadReply *d = reply->dead_reply;
    for (size_t i = 0; i < d->n_items; i++) add(out, d->items[i]->reason);
    end = d->end || d->next <= after;
    after = d->next;
    btc_wire_free(&reply);
  }
}

void run_print_summary(const run_job *j, const run_counts *n, const run_reasons *r, double seconds, const char *dir) {
  char time[32];
  fprintf(stderr, "btcchat: %" PRIu64 " items: %" PRIu64 " done, %" PRIu64 " failed", j->items, j->good, j->failed);
  for (int i = 0; i < r->n; i++) fprintf(stderr, "%s%" PRIu64 " %s", i ? ", " : " (", r->list[i].n, r->list[i].name);
  fprintf(stderr, "%s; ", r->n ? ")" : "");
  if (n->before) fprintf(stderr, "%" PRIu64 " of them now, ", j->items - n->before);
  fprintf(stderr, "in %s, %.3g items/s; records in '%s/results.jsonl'\n", duration_text(seconds, time, sizeof time),
          seconds > 0 ? (double)(j->items - n->before) / seconds : 0, dir);
}

int run_already_done(const run_job *j, const char *dir) {
  char path[PATH_MAX + 16];
  snprintf(path, sizeof path, "%s/results.jsonl", dir);
  if (access(path, R_OK) != 0) {
    cli_error("'%s': this run was finished, but its results are gone; remove '%s/.btcchat' to begin anew", path, dir);
    return CLI_FAILED;
  }
  fprintf(stderr, "btcchat: '%s' is finished: %" PRIu64 " items, %" PRIu64 " failed\n", path, j->items, j->failed);
  return j->failed ? CLI_SOME_FAILED : CLI_OK;
}
