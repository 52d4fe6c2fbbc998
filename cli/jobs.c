/* See jobs.h. */
#define _GNU_SOURCE
#include "jobs.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { SLICE_MS = 50, ASK_MS = 500, WAIT_ATTEMPTS = 3 };

bool job_over(const Btc__Job *j) {
  return strcmp(j->state, "FIN") == 0 || strcmp(j->state, "CXD") == 0;
}

const char *job_state_text(const Btc__Job *j) {
  if (strcmp(j->state, "FIN") == 0) return "finished";
  if (strcmp(j->state, "CXD") == 0) return "cancelled";
  if (strcmp(j->state, "CXL") == 0) return "cancelling";
  if (strcmp(j->state, "RUN") == 0) return j->paused ? "paused" : "running";
  return j->state;
}

uint64_t job_ended(const Btc__Job *j) {
  return j->done + j->dead + j->cancelled;
}

int job_code(const Btc__Job *j) {
  if (strcmp(j->state, "CXD") == 0) return CLI_FAILED;
  return j->dead ? CLI_SOME_FAILED : CLI_OK;
}

json_t *job_json(const Btc__Job *j) {
  return json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:b,s:I,s:f,s:f,s:I,s:I,s:I,s:I,s:s,s:s}", "job", j->jid, "state",
                   job_state_text(j), "tenant", j->tenant, "priority", (json_int_t)j->priority, "items", (json_int_t)j->total,
                   "done", (json_int_t)j->done, "failed", (json_int_t)j->dead, "cancelled", (json_int_t)j->cancelled, "expanded",
                   (json_int_t)j->expanded, "recorded", (json_int_t)j->recorded, "paused", (int)j->paused, "finish_epoch",
                   (json_int_t)j->finish_epoch, "items_per_s", j->items_per_s, "eta_s", j->eta_s, "created_ms",
                   (json_int_t)j->created_ms, "finished_ms", (json_int_t)j->finished_ms, "retries", (json_int_t)j->retries,
                   "crashes", (json_int_t)j->crashes, "manifest", j->manifest, "message", j->message);
}

int print_json(json_t *o) {
  bool written = o && json_dumpf(o, stdout, JSON_COMPACT) == 0 && putchar('\n') != EOF;
  if (!o) cli_error("out of memory");
  json_decref(o);
  return written ? CLI_OK : CLI_FAILED;
}

progress_state job_progress(const Btc__Job *j) {
  double rate = j->items_per_s >= 0.001 ? j->items_per_s : 0; /* an average that only fades is no rate */
  return (progress_state){.total = j->total,
                          .done = j->done,
                          .failed = j->dead,
                          .cancelled = j->cancelled,
                          .items_per_s = rate,
                          .eta_s = j->eta_s,
                          .note = j->paused ? (*j->message ? j->message : "paused") : NULL};
}

/* ---- for people ---- */

static double seconds_since(uint64_t wall_ms) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  double s = (double)t.tv_sec + (double)t.tv_nsec / 1e9 - (double)wall_ms / 1e3;
  return s > 0 ? s : 0;
}

void job_print(const Btc__Job *j) {
  char time[32];
  const char *message = j->message + (j->paused && strncmp(j->message, "paused: ", 8) == 0 ? 8 : 0);
  printf("job       %s\nstate     %s%s%s\n", j->jid, job_state_text(j), *message ? ": " : "", message);
  printf("items     %" PRIu64 ": %" PRIu64 " done, %" PRIu64 " failed, %" PRIu64 " cancelled\n", j->total, j->done, j->dead,
         j->cancelled);
  if (j->retries || j->crashes) printf("attempts  %" PRIu64 " repeated, %" PRIu64 " crashes\n", j->retries, j->crashes);
  if (j->items_per_s > 0) printf("rate      %.3g items/s\n", j->items_per_s);
  if (j->eta_s > 0 && !job_over(j)) printf("left      about %s\n", duration_text(j->eta_s, time, sizeof time));
  printf("tenant    %s, priority %u\n", j->tenant, j->priority);
  if (*j->manifest) printf("manifest  %s\n", j->manifest);
  if (j->finished_ms > j->created_ms && job_over(j))
    printf("took      %s\n", duration_text((double)(j->finished_ms - j->created_ms) / 1e3, time, sizeof time));
  else if (j->created_ms)
    printf("age       %s\n", duration_text(seconds_since(j->created_ms), time, sizeof time));
}

void jobs_print(Btc__Job *const *jobs, size_t n) {
  if (n)
    printf("%-20s %-10s %12s %12s %10s %10s %10s  %s\n", "JOB", "STATE", "ITEMS", "DONE", "FAILED", "ITEMS/S", "LEFT", "TENANT");
  for (size_t i = 0; i < n; i++) {
    const Btc__Job *j = jobs[i];
    char time[32] = "-";
    if (j->eta_s > 0 && !job_over(j)) duration_text(j->eta_s, time, sizeof time);
    printf("%-20s %-10s %12" PRIu64 " %12" PRIu64 " %10" PRIu64 " %10.3g %10s  %s\n", j->jid, job_state_text(j), j->total, j->done,
           j->dead, j->items_per_s, time, j->tenant);
  }
}

/* ---- waiting ---- */

void cli_sleep_ms(int ms) {
  for (; ms > 0 && !cli_interrupted; ms -= SLICE_MS) nanosleep(&(struct timespec){.tv_nsec = SLICE_MS * 1000000L}, NULL);
}

static int interrupted(const char *jid) {
  cli_error(
      "interrupted: job %s goes on without this command; come back with 'btcchat status %s --watch' or 'btcchat results %s "
      "--follow'",
      jid, jid, jid);
  return CLI_INTERRUPTED;
}

/* A broker that dies has a successor within seconds: three calls' time, not one. */
static btc_status ask(btc_client *c, const char *jid, Btc__Envelope **reply, btc_error *err) {
  btc_status st = BTC_OK;
  for (int i = 0; i < WAIT_ATTEMPTS; i++) {
    st = btc_client_status(c, jid, 1, reply, err);
    if (st == BTC_OK || !btc_client_unreachable(c)) break;
  }
  return st;
}

int job_wait(btc_client *c, const char *jid, Btc__Envelope **out) {
  progress p;
  btc_error err;
  progress_begin(&p);
  for (;;) {
    *out = NULL;
    btc_status st = cli_interrupted ? BTC_ERR_CANCELLED : ask(c, jid, out, &err);
    if (st == BTC_ERR_CANCELLED || st != BTC_OK) progress_break(&p);
    if (st == BTC_ERR_CANCELLED) return interrupted(jid);
    if (st != BTC_OK) return client_failed(c, jid, st, &err);
    const Btc__Job *j = (*out)->status_reply->jobs[0];
    progress_state s = job_progress(j);
    if (!s.note && (*out)->status_reply->paused) s.note = "the queue is paused";
    if (!s.note && !(*out)->status_reply->workers) s.note = "no worker is connected";
    progress_show(&p, &s, job_over(j));
    if (job_over(j)) return CLI_OK;
    btc_wire_free(out);
    cli_sleep_ms(ASK_MS);
  }
}
