/* btcchat status and top: how jobs and workers are doing. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "fleet.h"
#include "jobs.h"

static int run_status(int argc, char **argv);
static int run_top(int argc, char **argv);

const cli_command cmd_status = {
    .name = "status",
    .arguments = "[JOB]",
    .summary = "state, counts, rate and remaining time of a job, or of the newest jobs",
    .details =
        "--watch stays until the job is over, with progress on stderr; the exit code is then 0 all done, 3 some failed, 1 "
        "cancelled.",
    .run = run_status,
};

const cli_command cmd_top = {
    .name = "top",
    .arguments = "",
    .summary = "queue, jobs and workers, refreshed until Ctrl-C",
    .details = "On a terminal the screen is drawn anew each time; otherwise one report follows the other.",
    .run = run_top,
};

static void print_totals(const Btc__StatusReply *s) {
  printf("queue: %" PRIu64 " chunks ready, %" PRIu64 " in work, %" PRIu64 " delayed, %" PRIu64
         " suspects; %u workers, %.3g items/s%s%s%s\n",
         s->ready, s->leased, s->delayed, s->suspects, s->workers, s->items_per_s >= 0.001 ? s->items_per_s : 0,
         s->paused ? "; PAUSED" : "", *s->message ? ": " : "", s->message);
}

static json_t *status_json(const Btc__StatusReply *s, const Btc__WorkersReply *w) {
  json_t *jobs = json_array();
  for (size_t i = 0; jobs && i < s->n_jobs; i++) json_array_append_new(jobs, job_json(s->jobs[i]));
  return json_pack("{s:o,s:I,s:I,s:I,s:I,s:I,s:f,s:b,s:s,s:o}", "jobs", jobs, "ready", (json_int_t)s->ready, "leased",
                   (json_int_t)s->leased, "delayed", (json_int_t)s->delayed, "suspects", (json_int_t)s->suspects, "workers",
                   (json_int_t)s->workers, "items_per_s", s->items_per_s, "paused", (int)s->paused, "broker", s->broker, "devices",
                   devices_json(w->workers, w->n_workers));
}

static int print_job(const Btc__StatusReply *s, bool json) {
  if (json) return print_json(job_json(s->jobs[0]));
  job_print(s->jobs[0]);
  return CLI_OK;
}

static int print_all(const Btc__StatusReply *s, const Btc__WorkersReply *w, bool json) {
  if (json) return print_json(status_json(s, w));
  print_totals(s);
  devices_print(w->workers, w->n_workers);
  jobs_print(s->jobs, s->n_jobs);
  return CLI_OK;
}

static int show_status(btc_client *c, const char *jid, int64_t limit, bool watch, bool json) {
  Btc__Envelope *reply = NULL, *workers = NULL;
  btc_error err;
  if (watch) {
    int code = job_wait(c, jid, &reply);
    if (code != CLI_OK) return code;
    code = print_job(reply->status_reply, json);
    if (code == CLI_OK) code = job_code(reply->status_reply->jobs[0]);
    btc_wire_free(&reply);
    return code;
  }
  btc_status st = btc_client_status(c, jid, (uint32_t)limit, &reply, &err);
  if (st == BTC_OK && !*jid) st = btc_client_workers(c, &workers, &err);
  int code = st != BTC_OK ? client_failed(c, NULL, st, &err)
             : *jid       ? print_job(reply->status_reply, json)
                          : print_all(reply->status_reply, workers->workers_reply, json);
  btc_wire_free(&reply);
  btc_wire_free(&workers);
  return code;
}

static int run_status(int argc, char **argv) {
  broker_options b = broker_options_default;
  bool watch = false, json = false;
  int64_t limit = 20;
  cli_option table[] = {
      BROKER_OPTION_ROWS(b),
      {.name = "watch", .letter = 'w', .type = CLI_FLAG, .target = &watch, .help = "stay until the job is over"},
      {.name = "limit",
       .type = CLI_INT,
       .target = &limit,
       .value = "N",
       .help = "newest jobs listed without JOB (default 20)",
       .low = 1,
       .high = 1000},
      {.name = "json", .type = CLI_FLAG, .target = &json, .help = "print one JSON object"},
  };
  char **args;
  int n, code;
  btc_client *c = NULL;
  if (!cli_parse(&cmd_status, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n > 1) return cli_usage_error(&cmd_status, "at most one JOB expected, got %d", n);
  if (n && !*args[0]) return cli_usage_error(&cmd_status, "the JOB is empty");
  if (watch && !n) return cli_usage_error(&cmd_status, "--watch needs a JOB; 'btcchat top' watches all");
  if ((code = open_client(&b, &c)) == CLI_OK) code = show_status(c, n ? args[0] : "", limit, watch, json);
  btc_client_close(&c);
  return code;
}

/* ---- top ---- */

static int show_top(btc_client *c, bool clear) {
  Btc__Envelope *status = NULL, *workers = NULL;
  btc_error err;
  btc_status st = btc_client_status(c, "", 20, &status, &err);
  if (st == BTC_OK) st = btc_client_workers(c, &workers, &err);
  if (st == BTC_OK) {
    if (clear) fputs("\033[H\033[2J", stdout);
    print_totals(status->status_reply);
    putchar('\n');
    jobs_print(status->status_reply->jobs, status->status_reply->n_jobs);
    putchar('\n');
    workers_print(workers->workers_reply->workers, workers->workers_reply->n_workers);
  }
  bool written = fflush(stdout) == 0;
  btc_wire_free(&status);
  btc_wire_free(&workers);
  if (st != BTC_OK) return client_failed(c, NULL, st, &err);
  return written ? CLI_OK : CLI_FAILED;
}

static int run_top(int argc, char **argv) {
  broker_options b = broker_options_default;
  double every_s = 2;
  int64_t times = 0;
  cli_option table[] = {
      BROKER_OPTION_ROWS(b),
      {.name = "every",
       .type = CLI_REAL,
       .target = &every_s,
       .value = "SECONDS",
       .help = "between reports, seconds (default 2)",
       .low = 0.1,
       .high = 3600},
      {.name = "times",
       .letter = 'n',
       .type = CLI_INT,
       .target = &times,
       .value = "N",
       .help = "reports, 0 = until Ctrl-C (default 0)",
       .low = 0,
       .high = 1e9},
  };
  char **args;
  int n, code;
  btc_client *c = NULL;
  if (!cli_parse(&cmd_top, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n) return cli_usage_error(&cmd_top, "no arguments expected, got %d", n);
  bool clear = isatty(STDOUT_FILENO);
  code = open_client(&b, &c);
  for (int64_t i = 0; code == CLI_OK && !cli_interrupted;) {
    code = show_top(c, clear);
    if (code != CLI_OK || ++i == times) break;
    if (!clear) putchar('\n');
    cli_sleep_ms((int)(every_s * 1000));
  }
  btc_client_close(&c);
  return code;
}
