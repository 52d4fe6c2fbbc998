/* btcchat worker: takes items from a broker and captions them, until it is told to drain. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model_options.h"
#include "ops/ops.h"
#include "worker/agent.h"
#include "worker/shard.h"

static int run(int argc, char **argv);

const cli_command cmd_worker = {
    .name = "worker",
    .arguments = "",
    .summary = "captions items that a broker hands out",
    .details =
        "Prints 'ready name=NAME' on stdout once a broker has welcomed it. SIGTERM or Ctrl-C drains: what the engine has begun is "
        "finished, the rest is\n"
        "handed back, exit code 0; a second signal hands everything back at once. Without keys a worker speaks to loopback "
        "addresses only.\n"
        "The engine runs in a child process: whatever an image does to it, the worker goes on.",
    .run = run,
};

typedef struct numbers {
  int64_t threads, batch, max_tokens, engine_child, pipe, shard, first, last;
} numbers;

static int finish(btc_status st, const btc_error *err) {
  if (st == BTC_OK) return CLI_OK;
  cli_error("%s", err->message);
  return st == BTC_ERR_ARG ? CLI_USAGE : CLI_FAILED;
}

/* The hidden face of the command: the engine child that an agent starts. */
static int run_child(const btc_worker_options *o, int fd) {
  btc_error err;
  return btc_worker_child(o, fd, &err) == BTC_OK ? CLI_OK : CLI_FAILED; /* the agent prints why */
}

/* The other hidden face: a rank of a pipeline. */
static int run_shard(const btc_worker_options *o, const numbers *n) {
  btc_shard_options s = {.model = o->model, .device = o->device, .dtype = o->dtype};
  btc_error err;
  s.threads = (int)n->threads;
  s.first = (int)n->first;
  s.last = (int)n->last;
  return btc_shard_run(&s, &err) == BTC_OK ? CLI_OK : CLI_FAILED; /* the driver says why */
}

static int run_with(btc_worker_options *o, const numbers *n) {
  btc_error err;
  o->threads = (int)n->threads;
  o->batch = (int)n->batch;
  o->max_tokens = (int)n->max_tokens;
  o->pipe = (int)n->pipe;
  if (!strcmp(o->engine, "model") && !o->model) o->model = default_model_dir();
  if (!btc_device_known(o->device))
    return cli_usage_error(&cmd_worker, "--device %s: not one of auto, cpu, plain, cuda, cuda:N", o->device);
  if (!strcmp(o->engine, "model")) o->device = btc_device_choose(o->device); /* children get the answer */
  if (n->shard >= 0) return run_shard(o, n);
  if (n->engine_child >= 0) return run_child(o, (int)n->engine_child);
  btc_status st = btc_worker_run(o, &err);
  return finish(st, &err);
}

static int run(int argc, char **argv) {
  btc_worker_options o = btc_worker_options_default();
  numbers n = {.threads = o.threads, .batch = o.batch, .max_tokens = o.max_tokens, .engine_child = -1, .pipe = 1, .shard = -1};
  cli_option table[] = {
      {.name = "brokers",
       .type = CLI_TEXT,
       .target = &o.brokers,
       .value = "LIST",
       .help = "worker addresses of brokers, by commas; the next is tried when one is silent (default tcp://127.0.0.1:7412)"},
      {.name = "name",
       .type = CLI_TEXT,
       .target = &o.name,
       .value = "NAME",
       .help = "unique name, 1 to 64 of A-Z a-z 0-9 . _ - (default host-pid)"},
      {.name = "keys",
       .type = CLI_TEXT,
       .target = &o.keys,
       .value = "FILE",
       .help = "secret key file of 'btcchat keygen' (default none: loopback only)"},
      {.name = "server-key",
       .type = CLI_TEXT,
       .target = &o.server_key,
       .value = "FILE",
       .help = "the brokers' public key file; goes with --keys"},
      {.name = "engine",
       .type = CLI_CHOICE,
       .target = &o.engine,
       .value = "E",
       .help = "model, or stub: captions by hash, for tests (default model)",
       .choices = "model|stub"},
      {.name = "roots",
       .type = CLI_TEXT,
       .target = &o.roots,
       .value = "DIRS",
       .help = "folders that images must lie in, by colons (default: anywhere)"},
      {.name = "credits",
       .type = CLI_INT,
       .target = &o.credits,
       .value = "N",
       .help = "items in hand; 0 = two batches (default 0)",
       .low = 0,
       .high = 65536},
      {.name = "grace-ms",
       .type = CLI_INT,
       .target = &o.grace_ms,
       .value = "MS",
       .help = "time to finish what runs when draining, milliseconds (default 60000)",
       .low = 0,
       .high = 86400000},
      {.name = "stall-ms",
       .type = CLI_INT,
       .target = &o.stall_ms,
       .value = "MS",
       .help = "an engine without progress for this long, or 10 times the average item, is killed; milliseconds (default 60000)",
       .low = 10,
       .high = 86400000},
      {.name = "verbose",
       .letter = 'v',
       .type = CLI_FLAG,
       .target = &o.verbose,
       .help = "what the engine writes to stderr appears here too"},
      {.name = "model",
       .letter = 'm',
       .type = CLI_TEXT,
       .target = &o.model,
       .value = "DIR",
       .help = "checkpoint (default: the nano model shipped beside the program)"},
      {.name = "device",
       .type = CLI_TEXT,
       .target = &o.device,
       .value = "D",
       .help = "cpu, cuda, cuda:N, auto, or plain: slow loops (default cpu)"},
      {.name = "dtype",
       .type = CLI_CHOICE,
       .target = &o.dtype,
       .value = "T",
       .help = "products in f32 or bf16 (default auto: bf16 where the device has it)",
       .choices = "auto|f32|bf16"},
      {.name = "threads",
       .letter = 't',
       .type = CLI_INT,
       .target = &n.threads,
       .value = "N",
       .help = "threads, 0 = all processors (default 0)",
       .low = 0,
       .high = 256},
      {.name = "batch",
       .letter = 'b',
       .type = CLI_INT,
       .target = &n.batch,
       .value = "N",
       .help = "pairs computed together (default 8)",
       .low = 1,
       .high = 256},
      {.name = "max-tokens",
       .type = CLI_INT,
       .target = &n.max_tokens,
       .value = "N",
       .help = "longest answer, tokens (default 128)",
       .low = 1,
       .high = 65536},
      {.name = "pipe",
       .type = CLI_INT,
       .target = &n.pipe,
       .value = "N",
       .help = "cut the model into a pipeline of N processes on this machine (default: one process)",
       .low = 1,
       .high = 16},
      {.name = "tensors",
       .type = CLI_CHOICE,
       .target = &o.tensors,
       .value = "WAY",
       .help =
           "how tensors pass between the ranks of a pipeline: nccl, from GPU to GPU; tcp, over their links (default auto: nccl\n"
           "where every rank has a GPU of its own and libnccl.so.2 is there)",
       .choices = "auto|tcp|nccl"},
      {.name = "memory",
       .type = CLI_REAL,
       .target = &o.memory_mib,
       .value = "MIB",
       .help =
           "what the model may take here, MiB: when it does not fit, this worker holds a part of it, beside others of the broker\n"
           "that do the same (default 0: it holds all of it)",
       .low = 0,
       .high = 1e9},
      {.name = "link",
       .type = CLI_TEXT,
       .target = &o.link,
       .value = "ADDRESS:PORT",
       .help = "with --memory: where the other workers of a pipeline connect, in numbers; port 0 = any (default 127.0.0.1:0)"},
      {.name = "site",
       .type = CLI_TEXT,
       .target = &o.site,
       .value = "NAME",
       .help = "with --memory: pipelines stay within one site (default none)"},
      {.name = "stub-us",
       .type = CLI_INT,
       .target = &o.stub_us,
       .value = "US",
       .help = "stub: time of one item, microseconds (default 0)",
       .low = 0,
       .high = 3600000000.0},
      {.name = "stub-faults",
       .type = CLI_TEXT,
       .target = &o.stub_faults,
       .value = "LIST",
       .help = "stub: shares of ids that fail, as in crash=0.01,bad=0.01,transient=0.02,hang=0.001 (default none)"},
      {.name = "engine-child", .type = CLI_INT, .target = &n.engine_child, .value = "FD", .help = NULL, .low = 0, .high = 1048576},
      {.name = "known", .type = CLI_TEXT, .target = &o.known, .value = "TEXT", .help = NULL},
      {.name = "shard", .type = CLI_INT, .target = &n.shard, .value = "FD", .help = NULL, .low = 0, .high = 1048576},
      {.name = "first", .type = CLI_INT, .target = &n.first, .value = "N", .help = NULL, .low = 0, .high = 1048576},
      {.name = "last", .type = CLI_INT, .target = &n.last, .value = "N", .help = NULL, .low = 0, .high = 1048576},
  };
  char **args;
  int n_args, code;
  if (!cli_parse(&cmd_worker, table, sizeof table / sizeof table[0], argc, argv, &args, &n_args, &code)) return code;
  if (n_args) return cli_usage_error(&cmd_worker, "no arguments expected");
  return run_with(&o, &n);
}
