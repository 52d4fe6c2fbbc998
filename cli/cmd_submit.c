/* btcchat submit: gives a manifest to the queue. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jobs.h"
#include "submit.h"

static int run(int argc, char **argv);

const cli_command cmd_submit = {
    .name = "submit",
    .arguments = "MANIFEST",
    .summary = "gives the pairs of a manifest to the queue; prints the job's id",
    .details =
        "MANIFEST is JSONL, CSV (before,after[,id]) or a folder with A/ and B/, on storage that brokers and workers see under the "
        "same path; or - for at most 1000\n"
        "lines of JSONL on stdin. When the command returns, the job is kept as durably as Redis is set up. With --key, submitting "
        "again gives the same job.\n"
        "--wait stays until the job is over: exit code 0 all done, 3 some items failed, 1 cancelled; Ctrl-C leaves the job "
        "running.",
    .run = run,
};

typedef struct submit_command {
  broker_options broker;
  submit_options job;
  bool wait, json;
} submit_command;

static int print_submitted(const submit_command *o, const char *jid, uint64_t items, bool existed) {
  if (o->json) {
    int code = print_json(json_pack("{s:s,s:I,s:b}", "job", jid, "items", (json_int_t)items, "existed", (int)existed));
    return fflush(stdout) == 0 ? code : CLI_FAILED;
  }
  puts(jid);
  fflush(stdout); /* whoever reads it need not wait for the job */
  if (existed) cli_error("job %s was submitted with this key before", jid);
  return CLI_OK;
}

static int wait_for(btc_client *c, const char *jid) {
  Btc__Envelope *reply;
  int code = job_wait(c, jid, &reply);
  if (code != CLI_OK) return code;
  const Btc__Job *j = reply->status_reply->jobs[0];
  char time[32];
  double took = j->finished_ms > j->created_ms ? (double)(j->finished_ms - j->created_ms) / 1e3 : 0;
  fprintf(stderr, "btcchat: job %s %s: %" PRIu64 " done, %" PRIu64 " failed, %" PRIu64 " cancelled in %s\n", jid, job_state_text(j),
          j->done, j->dead, j->cancelled, duration_text(took, time, sizeof time));
  if (j->dead) fprintf(stderr, "btcchat: 'btcchat dead %s' lists what failed and why\n", jid);
  code = job_code(j);
  btc_wire_free(&reply);
  return code;
}

static int run(int argc, char **argv) {
  submit_command o = {.broker = broker_options_default, .job = submit_options_default};
  cli_option table[] = {
      BROKER_OPTION_ROWS(o.broker),
      JOB_OPTION_ROWS(o.job),
      SUBMIT_OPTION_ROWS(o.job),
      {.name = "wait", .letter = 'w', .type = CLI_FLAG, .target = &o.wait, .help = "stay until the job is over, with progress"},
      {.name = "json", .type = CLI_FLAG, .target = &o.json, .help = "print one JSON object: job, items, existed"},
  };
  char **args, jid[BTC_CLIENT_JID];
  int n, code;
  uint64_t items;
  bool existed;
  btc_client *c = NULL;
  if (!cli_parse(&cmd_submit, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 1) return cli_usage_error(&cmd_submit, "one MANIFEST expected, got %d", n);
  if ((code = open_client(&o.broker, &c)) == CLI_OK &&
      (code = submit_manifest(c, args[0], &o.job, jid, &items, &existed)) == CLI_OK &&
      (code = print_submitted(&o, jid, items, existed)) == CLI_OK && o.wait)
    code = wait_for(c, jid);
  btc_client_close(&c);
  return code;
}
