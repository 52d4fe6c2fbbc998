/* btcchat broker: the daemon between clients, workers and Redis. */
#include <stdio.h>
#include <string.h>

#include "broker/broker.h"
#include "cli.h"

static int run(int argc, char **argv);

const cli_command cmd_broker = {
    .name = "broker",
    .arguments = "",
    .summary = "takes jobs from clients and hands their items to workers; all it knows is in Redis",
    .details =
        "Prints 'ready clients=ADDRESS workers=ADDRESS http=ADDRESS' on stdout when it serves. Several brokers may share a queue, "
        "and any of them\n"
        "may be killed at any moment. SIGTERM or Ctrl-C drains: nothing new is taken or handed out, results under way are written, "
        "workers go to\n"
        "the next broker; a second signal ends at once. SIGHUP reads the allow-list again. Redis must be 7.0 or newer with "
        "maxmemory-policy\n"
        "noeviction, and should run with appendonly yes and appendfsync always. Without keys only loopback addresses are served.",
    .run = run,
};

static int finish(btc_status st, const btc_error *err) {
  if (st == BTC_OK) return CLI_OK;
  cli_error("%s", err->message);
  switch (st) {
    case BTC_ERR_ARG:
      return CLI_USAGE;
    case BTC_ERR_NOT_FOUND:
      return CLI_UNREACHABLE;
    case BTC_ERR_CANCELLED:
      return CLI_INTERRUPTED;
    default:
      return CLI_FAILED;
  }
}

#define TEXT(field, option, val, text) \
  { .name = option, .type = CLI_TEXT, .target = &o.field, .value = val, .help = text }
#define NUMBER(field, option, from, to, text) \
  { .name = option, .type = CLI_INT, .target = &o.field, .value = "N", .help = text, .low = from, .high = to }

static int run(int argc, char **argv) {
  btc_broker_options o = btc_broker_options_default();
  cli_option table[] = {
      TEXT(redis, "redis", "URL", "redis://HOST:PORT or unix:///PATH (default redis://127.0.0.1:6379)"),
      TEXT(redis_user, "redis-user", "NAME", "ACL user (default: none)"),
      TEXT(redis_password_file, "redis-password-file", "FILE",
           "its first line is the password; only its owner may read it (default: none)"),
      TEXT(queue, "queue", "NAME", "queue, 1 to 64 of A-Z a-z 0-9 . _ - (default 'default')"),
      TEXT(name, "name", "NAME", "of this broker, unique in its queue (default host-pid)"),
      TEXT(clients, "clients", "ADDRESS", "where clients connect; port * takes a free one (default tcp://127.0.0.1:7411)"),
      TEXT(workers, "workers", "ADDRESS", "where workers connect (default tcp://127.0.0.1:7412)"),
      TEXT(http, "http", "HOST:PORT", "/healthz, /readyz and /metrics; 'off' for none (default 127.0.0.1:7413)"),
      TEXT(results, "results", "DIR",
           "folder of result files; without it jobs routed to files are not written out (default: none)"),
      TEXT(roots, "roots", "DIRS", "folders that manifests and images must lie in, by colons (default: anywhere)"),
      TEXT(keys, "keys", "FILE", "secret key file of 'btcchat keygen': CURVE for all connections (default none: loopback only)"),
      TEXT(allow, "allow", "FILE", "public keys with roles, one a line; goes with --keys"),
      NUMBER(lease_ms, "lease", 100, 86400000, "ms a worker owns a chunk without progress (default 30000)"),
      NUMBER(heartbeat_ms, "heartbeat", 50, 60000, "ms between a worker's heartbeats (default 1000)"),
      NUMBER(dead_ms, "dead", 150, 600000, "ms of silence after which a worker is dead (default 5000)"),
      NUMBER(stall_ms, "stall", 100, 86400000,
             "ms without progress before leases stop growing, at least 10 average items (default 60000)"),
      NUMBER(pipe_form_ms, "pipe-form", 100, 3600000,
             "ms after which a pipe whose workers are not all ready is broken (default 60000)"),
      NUMBER(max_jobs, "max-jobs", 1, 1e9, "open jobs beyond which submissions wait (default 100000)"),
      NUMBER(max_items, "max-items", 1, 1e12, "open items beyond which submissions wait (default 1000000000)"),
      NUMBER(max_out, "max-out", 1, 1e9, "records that nobody has taken beyond which no work is handed out (default 1000000)"),
      NUMBER(max_dead, "max-dead", 0, 1e9, "dead items at which a job pauses itself; 0 never (default 100000)"),
      NUMBER(window_chunks, "window", 8, 100000, "chunks of one job that are in Redis at once (default 256)"),
      NUMBER(journal_mib, "journal", 0, 1024,
             "MiB of memory for the last 60 s of results, repeated when Redis comes back without them; 0 for none (default 32)"),
      {.name = "verbose", .letter = 'v', .type = CLI_FLAG, .target = &o.verbose, .help = "more log lines on stderr"},
  };
  char **args;
  int n_args, code;
  btc_error err;
  if (!cli_parse(&cmd_broker, table, sizeof table / sizeof table[0], argc, argv, &args, &n_args, &code)) return code;
  if (n_args) return cli_usage_error(&cmd_broker, "unexpected argument '%s'", args[0]);
  if (o.dead_ms < 2 * o.heartbeat_ms) return cli_usage_error(&cmd_broker, "--dead must be at least twice --heartbeat");
  if (o.http && (!*o.http || !strcmp(o.http, "off"))) o.http = NULL;
  return finish(btc_broker_run(&o, &err), &err);
}
