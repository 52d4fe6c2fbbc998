/* btcchat cancel, pause, resume, replay: one request about one job each, hence together. And dead, which says what a replay would
 * be about. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>

#include "jobs.h"

static int run_cancel(int argc, char **argv);
static int run_pause(int argc, char **argv);
static int run_resume(int argc, char **argv);
static int run_replay(int argc, char **argv);
static int run_dead(int argc, char **argv);

const cli_command cmd_cancel = {
    .name = "cancel",
    .arguments = "JOB",
    .summary = "ends a job; records made so far stay",
    .details = "Items that a worker has begun may still finish. Cancelling twice is the same as once.",
    .run = run_cancel,
};

const cli_command cmd_pause = {
    .name = "pause",
    .arguments = "[JOB]",
    .summary = "hands out no more items of a job, or of the whole queue",
    .details = "What workers have in hand is finished. Without JOB this needs an admin's key, where there are keys.",
    .run = run_pause,
};

const cli_command cmd_resume = {
    .name = "resume",
    .arguments = "[JOB]",
    .summary = "goes on with a paused job, or with the paused queue",
    .run = run_resume,
};

const cli_command cmd_replay = {
    .name = "replay",
    .arguments = "JOB",
    .summary = "tries the failed items of a job again",
    .details =
        "Prints how many items were put back. A finished job runs again until they are done or failed; its failed records are then "
        "published anew.",
    .run = run_replay,
};

const cli_command cmd_dead = {
    .name = "dead",
    .arguments = "JOB",
    .summary = "lists the failed items of a job with their reasons",
    .run = run_dead,
};

typedef struct control {
  broker_options broker;
  const char *reason;
  bool json;
} control;

/* Parses the table, checks the number of arguments, connects. */
static int begin(const cli_command *cmd, const cli_option *table, size_t n_table, bool need_job, control *o, int argc, char **argv,
                 const char **jid, btc_client **c) {
  char **args;
  int n, code;
  *c = NULL;
  if (!cli_parse(cmd, table, n_table, argc, argv, &args, &n, &code)) return code == CLI_OK ? -1 : code;
  if (n > 1 || (need_job && n < 1)) return cli_usage_error(cmd, "%s JOB expected, got %d", need_job ? "one" : "at most one", n);
  *jid = n ? args[0] : "";
  if (n && !**jid) return cli_usage_error(cmd, "the JOB is empty");
  return open_client(&o->broker, c);
}

static int command(const cli_command *cmd, Btc__Verb verb, bool need_job, int argc, char **argv) {
  control o = {.broker = broker_options_default};
  const cli_option table[] = {BROKER_OPTION_ROWS(o.broker)};
  btc_client *c;
  btc_error err;
  const char *jid = "";
  int code = begin(cmd, table, sizeof table / sizeof table[0], need_job, &o, argc, argv, &jid, &c);
  if (code == CLI_OK) {
    btc_status st = btc_client_command(c, verb, jid, NULL, NULL, &err);
    if (st != BTC_OK) code = client_failed(c, *jid ? jid : "queue", st, &err);
  }
  btc_client_close(&c);
  return code < 0 ? CLI_OK : code;
}

static int run_cancel(int argc, char **argv) {
  return command(&cmd_cancel, BTC__VERB__VERB_CANCEL, true, argc, argv);
}

static int run_pause(int argc, char **argv) {
  return command(&cmd_pause, BTC__VERB__VERB_PAUSE, false, argc, argv);
}

static int run_resume(int argc, char **argv) {
  return command(&cmd_resume, BTC__VERB__VERB_RESUME, false, argc, argv);
}

static int run_replay(int argc, char **argv) {
  control o = {.broker = broker_options_default};
  const cli_option table[] = {
      BROKER_OPTION_ROWS(o.broker),
      {.name = "reason",
       .type = CLI_TEXT,
       .target = &o.reason,
       .value = "R",
       .help = "only items that failed for this reason, as 'dead' names it (default all)"},
  };
  btc_client *c;
  btc_error err;
  const char *jid = "";
  uint64_t count = 0;
  int code = begin(&cmd_replay, table, sizeof table / sizeof table[0], true, &o, argc, argv, &jid, &c);
  if (code == CLI_OK) {
    btc_status st = btc_client_command(c, BTC__VERB__VERB_REPLAY, jid, o.reason, &count, &err);
    if (st == BTC_OK)
      printf("%" PRIu64 "\n", count);
    else
      code = client_failed(c, jid, st, &err);
  }
  btc_client_close(&c);
  return code < 0 ? CLI_OK : code;
}

/* ---- dead ---- */

static int print_dead(const Btc__DeadItem *d, bool json) {
  if (!json) {
    printf("%-10" PRIu64 " %-24s %-12s %3u  %s%s%s\n", d->idx, d->id, d->reason, d->attempts, d->message,
           *d->worker ? "; worker " : "", d->worker);
    return CLI_OK;
  }
  json_t *record = *d->record ? json_loads(d->record, 0, NULL) : NULL;
  return print_json(json_pack("{s:I,s:s,s:s,s:s,s:I,s:s,s:o?}", "idx", (json_int_t)d->idx, "id", d->id, "reason", d->reason,
                              "message", d->message, "attempts", (json_int_t)d->attempts, "worker", d->worker, "record", record));
}

static int list_dead(btc_client *c, const char *jid, bool json) {
  Btc__Envelope *reply;
  btc_error err;
  btc_status st = btc_client_status(c, jid, 1, &reply, &err); /* an unknown job has no failed items either, but that is no answer */
  if (st != BTC_OK) return client_failed(c, NULL, st, &err);
  btc_wire_free(&reply);
  uint64_t after = 0;
  for (bool end = false, first = true; !end; first = false) {
    st = btc_client_dead(c, jid, after, 500, &reply, &err);
    if (st != BTC_OK) return client_failed(c, jid, st, &err);
    const Btc__DeadReply *d = reply->dead_reply;
    if (first && !json && d->n_items) printf("%-10s %-24s %-12s %3s  %s\n", "ITEM", "ID", "REASON", "TRY", "MESSAGE");
    int code = CLI_OK;
    for (size_t i = 0; i < d->n_items && code == CLI_OK; i++) code = print_dead(d->items[i], json);
    end = d->end || d->next <= after; /* a broker that does not get on must not hold us */
    after = d->next;
    btc_wire_free(&reply);
    if (code != CLI_OK) return code;
  }
  return CLI_OK;
}

static int run_dead(int argc, char **argv) {
  control o = {.broker = broker_options_default};
  const cli_option table[] = {
      BROKER_OPTION_ROWS(o.broker),
      {.name = "json", .type = CLI_FLAG, .target = &o.json, .help = "print one JSON object a line, with the whole record"},
  };
  btc_client *c;
  const char *jid = "";
  int code = begin(&cmd_dead, table, sizeof table / sizeof table[0], true, &o, argc, argv, &jid, &c);
  if (code == CLI_OK) code = list_dead(c, jid, o.json);
  btc_client_close(&c);
  return code < 0 ? CLI_OK : code;
}
