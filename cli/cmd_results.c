/* btcchat results: the records of a job. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "collect.h"
#include "jobs.h"

static int run(int argc, char **argv);

const cli_command cmd_results = {
    .name = "results",
    .arguments = "JOB",
    .summary = "the records of a job so far, one JSON object a line",
    .details =
        "Records come in the order in which they were finished; failed ones come at the end of the job. With -o they go into "
        "DIR/results.jsonl and\n"
        "DIR/errors.jsonl, which appear whole or not at all. --cursor lets a pipeline go on where it stopped: at most the records "
        "of one page come twice.\n"
        "Exit code 3 when items of a finished job failed.",
    .run = run,
};

typedef struct results_command {
  broker_options broker;
  const char *jid, *dir, *cursor_file;
  bool follow, sorted;
  btc_client *client;
  collector *to;
  id_order order;
  char cursor[128];
  bool known; /* the queue still knows the job */
  char state[16];
  uint64_t total, ended, dead, shown;
} results_command;

enum { PATIENCE_S = 60, NAP_MS = 300, CURSOR_MAX = 1024 };

static int read_cursor(results_command *r) {
  uint8_t *data;
  size_t len;
  btc_error err;
  if (!r->cursor_file) return CLI_OK;
  btc_status st = btc_file_read(r->cursor_file, CURSOR_MAX, &data, &len, &err);
  if (st == BTC_ERR_NOT_FOUND) return CLI_OK;
  if (st != BTC_OK) {
    cli_error("%s", err.message);
    return CLI_FAILED;
  }
  /* "JOB CURSOR": a cursor of another job would skip records */
  char *text = (char *)data, *blank = strchr(text, ' ');
  if (blank) *blank = 0;
  bool good = blank && strcmp(text, r->jid) == 0 && strcspn(blank + 1, "\r\n") < sizeof r->cursor;
  if (good) snprintf(r->cursor, sizeof r->cursor, "%.*s", (int)strcspn(blank + 1, "\r\n"), blank + 1);
  free(data);
  if (!good) cli_error("'%s' is no cursor of job %s", r->cursor_file, r->jid);
  return good ? CLI_OK : CLI_FAILED;
}

static int write_cursor(const results_command *r) {
  char text[CURSOR_MAX];
  btc_error err;
  if (!r->cursor_file) return CLI_OK;
  int n = snprintf(text, sizeof text, "%s %s\n", r->jid, r->cursor);
  if (btc_file_publish(r->cursor_file, text, (size_t)n, &err) == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return CLI_FAILED;
}

/* The queue forgets finished jobs after a while; their files stay. */
static int ask_status(results_command *r, char **manifest) {
  Btc__Envelope *reply;
  btc_error err;
  btc_status st = btc_client_status(r->client, r->jid, 1, &reply, &err);
  r->known = st == BTC_OK;
  if (st == BTC_ERR_NOT_FOUND) return CLI_OK;
  if (st != BTC_OK) return client_failed(r->client, r->jid, st, &err);
  const Btc__Job *j = reply->status_reply->jobs[0];
  snprintf(r->state, sizeof r->state, "%s", j->state);
  r->total = j->total;
  r->ended = job_ended(j);
  r->dead = j->dead;
  if (manifest) *manifest = btc_strdup(j->manifest);
  btc_wire_free(&reply);
  return CLI_OK;
}

static bool over(const results_command *r) {
  return !strcmp(r->state, "FIN") || !strcmp(r->state, "CXD");
}

/* One page. *end: there is nothing behind it and never will be; *more: there may be more at once. */
static int page(results_command *r, bool *end, bool *more) {
  Btc__Envelope *reply;
  btc_error err;
  btc_status st = btc_client_results(r->client, r->jid, r->cursor, &reply, &err);
  if (st != BTC_OK) return client_failed(r->client, r->jid, st, &err);
  const Btc__ResultsReply *p = reply->results_reply;
  int code = CLI_OK;
  if (*p->message && !*p->lines) {
    cli_error("%s: %s", r->jid, p->message);
    code = CLI_FAILED;
  } else {
    code = collector_lines(r->to, p->lines, strlen(p->lines));
    for (const char *c = p->lines; (c = strchr(c, '\n')); c++) r->shown++;
  }
  *end = p->end;
  *more = *p->lines != 0;
  if (strlen(p->cursor) < sizeof r->cursor) memcpy(r->cursor, p->cursor, strlen(p->cursor) + 1);
  btc_wire_free(&reply);
  if (code == CLI_OK && !r->dir && fflush(stdout) != 0) code = CLI_FAILED; /* main says why */
  return code == CLI_OK ? write_cursor(r) : code;
}

/* Pages until the end, or until there is no more for now. */
static int read_pages(results_command *r) {
  int64_t moved = btc_now_ns();
  for (bool end = false, more = false; !end;) {
    int code = page(r, &end, &more);
    if (code != CLI_OK) return code;
    if (more) moved = btc_now_ns();
    if (end || more) continue;
    if (cli_interrupted) return CLI_INTERRUPTED;
    if ((code = ask_status(r, NULL)) != CLI_OK) return code;
    if (!over(r) && !r->follow) break; /* so far */
    if (over(r) && btc_now_ns() - moved > PATIENCE_S * INT64_C(1000000000)) {
      cli_error("%s: its records are not all in files after %d s: is the broker's results folder full?", r->jid, PATIENCE_S);
      return CLI_FAILED;
    }
    cli_sleep_ms(NAP_MS);
  }
  return CLI_OK;
}

static int finish(results_command *r) {
  collected n = {0};
  int code = collector_finish(r->to, &n);
  if (code == CLI_OK) code = ask_status(r, NULL);
  if (code != CLI_OK) return code;
  if (!r->known && !r->shown) {
    cli_error("job '%s': no such job", r->jid);
    return CLI_FAILED;
  }
  if (r->dir) fprintf(stderr, "btcchat: wrote %" PRIu64 " records and %" PRIu64 " errors to '%s'\n", n.good, n.failed, r->dir);
  if (r->known && !over(r))
    fprintf(stderr, "btcchat: job %s is not over: %" PRIu64 " of %" PRIu64 " items ended\n", r->jid, r->ended, r->total);
  return r->known && over(r) && r->dead ? CLI_SOME_FAILED : CLI_OK;
}

static int prepare_order(results_command *r, char **manifest) {
  int code = ask_status(r, manifest);
  if (code != CLI_OK || !r->sorted) return code;
  if (!r->known || !over(r) || !*manifest || !**manifest) {
    cli_error("%s: --sorted needs a job that is over, that the queue still knows, and whose manifest can be read here", r->jid);
    return CLI_FAILED;
  }
  return order_read(*manifest, r->total, &r->order);
}

static int show(results_command *r) {
  char *manifest = NULL;
  int code = r->follow && r->sorted ? CLI_OK : prepare_order(r, &manifest);
  if (r->follow && r->sorted) { /* what is sorted cannot begin before the last record is there */
    Btc__Envelope *reply = NULL;
    code = job_wait(r->client, r->jid, &reply);
    btc_wire_free(&reply);
    if (code == CLI_OK) code = prepare_order(r, &manifest);
  }
  if (code == CLI_OK) code = read_cursor(r);
  if (code == CLI_OK)
    code =
        collector_open(&(collector_options){.dir = r->dir, .split = r->dir != NULL, .order = r->sorted ? &r->order : NULL}, &r->to);
  if (code == CLI_OK) code = r->sorted ? collect_job(r->client, r->jid, r->to) : read_pages(r);
  if (code == CLI_OK) code = finish(r);
  collector_close(&r->to);
  order_free(&r->order);
  free(manifest);
  return code;
}

static int run(int argc, char **argv) {
  results_command r = {.broker = broker_options_default};
  cli_option table[] = {
      BROKER_OPTION_ROWS(r.broker),
      {.name = "output",
       .letter = 'o',
       .type = CLI_TEXT,
       .target = &r.dir,
       .value = "DIR",
       .help = "write DIR/results.jsonl and DIR/errors.jsonl (default: all to stdout)"},
      {.name = "follow", .letter = 'f', .type = CLI_FLAG, .target = &r.follow, .help = "go on until the job is over"},
      {.name = "sorted",
       .type = CLI_FLAG,
       .target = &r.sorted,
       .help = "in the order of the manifest, which must be readable here"},
      {.name = "cursor",
       .type = CLI_TEXT,
       .target = &r.cursor_file,
       .value = "FILE",
       .help = "go on behind the place kept in FILE, and keep the new one there; without -o"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_results, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 1) return cli_usage_error(&cmd_results, "one JOB expected, got %d", n);
  if (!*args[0]) return cli_usage_error(&cmd_results, "the JOB is empty");
  if (r.cursor_file && (r.dir || r.sorted)) return cli_usage_error(&cmd_results, "--cursor goes with neither -o nor --sorted");
  r.jid = args[0];
  if ((code = open_client(&r.broker, &r.client)) == CLI_OK) code = show(&r);
  btc_client_close(&r.client);
  return code;
}
