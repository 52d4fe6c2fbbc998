/*
 * btcchat run: an archive on this machine. A private redis-server, a broker and workers as children (run_children.c), one job whose
 * key is made of the manifest and everything that its results depend on, so that a run that was killed finds the same job again.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "collect.h"
#include "jobs.h"
#include "model_options.h"
#include "run_children.h"
#include "run_home.h"
#include "run_summary.h"
#include "submit.h"

static int run(int argc, char **argv);

const cli_command cmd_run = {
    .name = "run",
    .arguments = "MANIFEST -o DIR",
    .summary = "captions an archive on this machine; run again to go on where it stopped",
    .details =
        "Starts a private redis-server, a broker and -j workers, and writes DIR/results.jsonl: one record an item, in the order of "
        "the manifest, failed ones included.\n"
        "Nothing that was finished is done twice, however the run ended: start the same command again. What is needed for that "
        "lies in DIR/.btcchat.\n"
        "Exit code 0 all done, 3 some items failed, 130 interrupted (then it can go on).",
    .run = run,
};

enum { REDIS, BROKER, WORKERS, ASK_MS = 250, CALL_MS = 2000, PATIENCE_S = 120, DRAIN_MS = 60000, END_MS = 10000 };

/* Short, since a run that was killed took its workers with it, and the next one waits for what they held. */
#define LEASE_MS "5000"

typedef struct run_command {
  model_options model;
  submit_options job;
  const char *dir, *engine, *stub_faults;
  int64_t workers, stub_us;
  run_home home;
  run_job asked;
  children children;
  btc_client *client;
  char *base;
  char clients[PATH_MAX + 16];
} run_command;

/* ---- children ---- */

static int default_threads(const run_command *r) {
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  if (r->model.threads) return (int)r->model.threads;
  return processors > r->workers ? (int)(processors / r->workers) : 1;
}

/* A text in a redis.conf. */
static void quote(const char *s, char *out, size_t len) {
  size_t n = 0;
  out[n++] = '"';
  for (; *s && n + 6 < len; s++) {
    if (*s == '"' || *s == '\\' || (unsigned char)*s < 0x20)
      n += (size_t)snprintf(out + n, len - n, "\\x%02x", (unsigned char)*s);
    else
      out[n++] = *s;
  }
  out[n++] = '"';
  out[n] = 0;
}

static int add_redis(run_command *r) {
  char socket[PATH_MAX + 8], dir[PATH_MAX + 16], text[8 * PATH_MAX + 600], quoted[2][4 * PATH_MAX];
  btc_error err;
  char *path = home_path(&r->home, "redis.conf");
  snprintf(socket, sizeof socket, "%s/r", r->home.sockets);
  snprintf(dir, sizeof dir, "%s/redis", r->home.inner);
  quote(socket, quoted[0], sizeof quoted[0]);
  quote(dir, quoted[1], sizeof quoted[1]);
  snprintf(text, sizeof text,
           "# written anew at each start\nport 0\nunixsocket %s\nunixsocketperm 700\ndir %s\nappendonly yes\nappendfsync "
           "always\nno-appendfsync-on-rewrite no\n"
           "save \"\"\nmaxmemory-policy noeviction\ndaemonize no\n",
           quoted[0], quoted[1]);
  btc_status st = path ? btc_file_publish(path, text, strlen(text), &err) : btc_fail(&err, BTC_ERR_NOMEM, "out of memory");
  if (st != BTC_OK) cli_error("%s", err.message);
  child *c = st == BTC_OK ? children_add(&r->children, &r->home, "redis", "Ready to accept connections",
                                         (const char *const[]){"redis-server", path, NULL})
                          : NULL;
  if (c) c->keeps_lock = true;
  free(path);
  return c ? CLI_OK : CLI_FAILED;
}

static int add_broker(run_command *r, const char *exe) {
  char redis[PATH_MAX + 16], workers[PATH_MAX + 16], parts[PATH_MAX + 16];
  snprintf(redis, sizeof redis, "unix://%s/r", r->home.sockets);
  snprintf(workers, sizeof workers, "ipc://%s/w", r->home.sockets);
  snprintf(parts, sizeof parts, "%s/parts", r->home.inner);
  const char *const argv[] = {exe,     "broker", "--redis", redis,       "--name", "run",     "--clients", r->clients, "--workers",
                              workers, "--http", "off",     "--results", parts,    "--lease", LEASE_MS,    NULL};
  return children_add(&r->children, &r->home, "broker", "ready clients=", argv) ? CLI_OK : CLI_FAILED;
}

/* Names are new at each start of the run: a worker of before may still be alive in the broker's eyes. */
static int add_worker(run_command *r, const char *exe, int i) {
  char name[32], public[64], brokers[PATH_MAX + 16], numbers[4][24];
  const model_options *m = &r->model;
  snprintf(name, sizeof name, "worker-%d", i + 1);
  snprintf(public, sizeof public, "run-%d-%ld", i + 1, (long)getpid());
  snprintf(brokers, sizeof brokers, "ipc://%s/w", r->home.sockets);
  snprintf(numbers[0], sizeof numbers[0], "%d", default_threads(r));
  snprintf(numbers[1], sizeof numbers[1], "%" PRId64, m->batch);
  snprintf(numbers[2], sizeof numbers[2], "%d", DRAIN_MS / 2);
  snprintf(numbers[3], sizeof numbers[3], "%" PRId64, r->stub_us);
  const char *argv[CHILD_ARGS] = {exe,     "worker",   "--name",  public,       "--brokers",
                                  brokers, "--engine", r->engine, "--grace-ms", numbers[2]};
  const char *const model[] = {"--model",   m->model,   "--device", m->device,  "--dtype", m->dtype,
                               "--threads", numbers[0], "--batch",  numbers[1], NULL};
  const char *const stub[] = {"--stub-us", numbers[3], r->stub_faults ? "--stub-faults" : NULL, r->stub_faults, NULL};
  int n = 10;
  const char *const *more = strcmp(r->engine, "stub") == 0 ? stub : model;
  while (*more) argv[n++] = *more++;
  return children_add(&r->children, &r->home, name, "ready name=", argv) ? CLI_OK : CLI_FAILED;
}

static int add_children(run_command *r) {
  char exe[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (n < 0) {
    cli_error("cannot find this program: %s", strerror(errno));
    return CLI_FAILED;
  }
  exe[n] = 0;
  r->children.lock = r->home.lock;
  snprintf(r->children.folder, sizeof r->children.folder, "/"); /* images are named by absolute paths */
  int code = add_redis(r);
  if (code == CLI_OK) code = add_broker(r, exe);
  for (int i = 0; i < r->workers && code == CLI_OK; i++) code = add_worker(r, exe, i);
  return code;
}

/* Redis loads its file before it answers, for as long as that takes; a broker started before would give up. */
static bool redis_answers(const run_command *r) {
  struct sockaddr_un a = {.sun_family = AF_UNIX};
  char answer[16] = "";
  snprintf(a.sun_path, sizeof a.sun_path, "%.100s/r", r->home.sockets);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct timeval second = {.tv_sec = 1};
  bool good = fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second) == 0 &&
              connect(fd, (struct sockaddr *)&a, sizeof a) == 0 && write(fd, "PING\r\n", 6) == 6 &&
              read(fd, answer, sizeof answer - 1) > 0 && strncmp(answer, "+PONG", 5) == 0;
  if (fd >= 0) close(fd);
  return good;
}

static int start_children(run_command *r) {
  int all = r->children.n, code = CLI_OK;
  r->children.n = 1;
  while (code == CLI_OK && !cli_interrupted) {
    code = children_tend(&r->children);
    if (code == CLI_OK && redis_answers(r)) break;
    cli_sleep_ms(50);
  }
  r->children.n = all;
  if (cli_interrupted) return CLI_INTERRUPTED;
  return code == CLI_OK ? children_tend(&r->children) : code;
}

/* ---- the job ---- */

static int open_own_client(run_command *r) {
  btc_client_options o = btc_client_options_default();
  btc_error err;
  o.brokers = r->clients;
  o.timeout_ms = CALL_MS; /* short, since children are tended between calls */
  o.cancel = &cli_interrupted;
  if (btc_client_open(&o, &r->client, &err) == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return CLI_FAILED;
}

/* Whether to ask again: the broker or its Redis may be starting, or starting again. */
static int again(run_command *r, btc_status st, const btc_error *err, int64_t since_ns) {
  if (cli_interrupted || st == BTC_ERR_CANCELLED) return CLI_INTERRUPTED;
  int code = children_tend(&r->children);
  if (code != CLI_OK) return code;
  if ((btc_client_unreachable(r->client) || st == BTC_ERR_LIMIT) && btc_now_ns() - since_ns < PATIENCE_S * INT64_C(1000000000))
    return CLI_OK;
  cli_error("%s", err->message);
  return btc_client_unreachable(r->client) ? CLI_UNREACHABLE : CLI_FAILED;
}

static int submit(run_command *r, const btc_manifest_summary *m) {
  btc_submission s = {
      .manifest = m, .base_dir = r->base, .key = r->asked.key, .params = r->asked.params, .priority = 1, .strict = r->job.strict};
  int64_t begin = btc_now_ns();
  for (;;) {
    btc_error err;
    bool existed;
    btc_status st = btc_client_submit(r->client, &s, r->asked.jid, &existed, &err);
    if (st == BTC_OK) return job_save(&r->home, &r->asked);
    int code = again(r, st, &err, begin);
    if (code != CLI_OK) return code;
  }
}

/* Until the job is over. *over: its last state. */
static int await(run_command *r, run_counts *over) {
  progress p;
  int64_t heard = btc_now_ns();
  bool first = true;
  progress_begin(&p);
  for (;;) {
    Btc__Envelope *reply = NULL;
    btc_error err;
    btc_status st = btc_client_status(r->client, r->asked.jid, 1, &reply, &err);
    int code = st == BTC_OK ? children_tend(&r->children) : again(r, st, &err, heard);
    if (st == BTC_OK && cli_interrupted) code = CLI_INTERRUPTED;
    if (code != CLI_OK) progress_break(&p);
    if (st == BTC_OK) {
      const Btc__Job *j = reply->status_reply->jobs[0];
      progress_state s = job_progress(j);
      bool done = job_over(j);
      heard = btc_now_ns();
      if (!s.note && !done && !reply->status_reply->workers) s.note = "the workers load the model";
      over->total = j->total;
      over->ended = job_ended(j);
      if (first) over->before = over->ended;
      first = false;
      if (code == CLI_OK) progress_show(&p, &s, done);
      btc_wire_free(&reply);
      if (code == CLI_OK && done) return CLI_OK;
    }
    if (code != CLI_OK) return code;
    cli_sleep_ms(ASK_MS);
  }
}

static int collect(run_command *r) {
  id_order order;
  collector *c = NULL;
  collected n = {0};
  int code = order_read(r->asked.manifest, r->asked.items, &order);
  if (code != CLI_OK) return code;
  code = collector_open(&(collector_options){.dir = r->home.dir, .order = &order}, &c);
  if (code == CLI_OK) code = collect_job(r->client, r->asked.jid, c);
  if (code == CLI_OK) code = collector_finish(c, &n);
  collector_close(&c);
  order_free(&order);
  if (code != CLI_OK) return code;
  if (n.good + n.failed != r->asked.items) {
    cli_error("%" PRIu64 " records for %" PRIu64 " items: this is a bug; 'btcchat run' keeps its data in '%s'", n.good + n.failed,
              r->asked.items, r->home.inner);
    return CLI_FAILED;
  }
  r->asked.good = n.good;
  r->asked.failed = n.failed;
  r->asked.finished = true;
  return job_save(&r->home, &r->asked);
}

static void stop_children(run_command *r, bool drain) {
  if (drain) cli_error("stopping: what the workers have begun is finished first (Ctrl-C again to stop at once)");
  children_stop(&r->children, WORKERS, r->children.n, drain ? DRAIN_MS : END_MS);
  children_stop(&r->children, BROKER, WORKERS, END_MS);
  children_stop(&r->children, REDIS, BROKER, END_MS);
}

static int work(run_command *r, const btc_manifest_summary *m) {
  int64_t begin = btc_now_ns();
  run_counts counts = {.total = r->asked.items};
  int code = home_make_sockets(&r->home);
  snprintf(r->clients, sizeof r->clients, "ipc://%s/c", r->home.sockets);
  if (code == CLI_OK) code = add_children(r);
  if (code == CLI_OK) code = start_children(r);
  if (code == CLI_OK) code = open_own_client(r);
  if (code == CLI_OK && !r->asked.jid[0]) code = submit(r, m);
  if (code == CLI_OK) code = await(r, &counts);
  if (code == CLI_OK) code = collect(r);
  bool interrupted = code == CLI_INTERRUPTED;
  run_reasons reasons = {0};
  if (code == CLI_OK && r->asked.failed) run_count_reasons(r->client, r->asked.jid, &reasons);
  btc_client_close(&r->client);
  stop_children(r, interrupted);
  if (code == CLI_OK) {
    run_print_summary(&r->asked, &counts, &reasons, (double)(btc_now_ns() - begin) * 1e-9, r->home.dir);
    home_remove_data(&r->home);
    code = r->asked.failed ? CLI_SOME_FAILED : CLI_OK;
  } else if (interrupted) {
    cli_error("interrupted after %" PRIu64 " of %" PRIu64 " items; the same command goes on from there", counts.ended,
              counts.total);
  }
  return code;
}

/* ---- what is asked for, and what the folder holds ---- */

static void make_key(run_job *j) {
  btc_sha256 hash;
  uint8_t digest[32];
  btc_sha256_init(&hash);
  const char *const parts[] = {j->manifest, j->sha256, j->model, j->params};
  for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) btc_sha256_update(&hash, parts[i], strlen(parts[i]) + 1);
  btc_sha256_final(&hash, digest);
  memcpy(j->key, "run-", 5);
  for (int i = 0; i < 20; i++) snprintf(j->key + 4 + 2 * i, 3, "%02x", digest[i]);
}

static int describe(run_command *r, const char *path, const btc_manifest_summary *m) {
  run_job *j = &r->asked;
  int code = job_params(&r->job, &j->params);
  if (code == CLI_OK) code = manifest_base(path, m, &r->base);
  if (code != CLI_OK) return code;
  snprintf(j->manifest, sizeof j->manifest, "%s", m->path);
  memcpy(j->sha256, m->sha256, sizeof j->sha256);
  j->items = m->items;
  if (strcmp(r->engine, "stub") == 0) {
    snprintf(j->model, sizeof j->model, "stub %s", r->stub_faults ? r->stub_faults : "");
  } else {
    if (!r->model.model) r->model.model = default_model_dir();
    if (!r->model.model) {
      cli_error("no model: give one with -m DIR or BTCCHAT_MODEL (the nano model is not beside the program)");
      return CLI_FAILED;
    }
    static char folder[PATH_MAX];
    if (!realpath(r->model.model, folder)) {
      cli_error("cannot open the model '%s': %s", r->model.model, strerror(errno));
      return CLI_FAILED;
    }
    r->model.model = folder; /* the children work in another folder */
    code = model_identity(folder, j->model, sizeof j->model);
  }
  make_key(j);
  return code;
}

static int resume_or_begin(run_command *r, const btc_manifest_summary *m) {
  run_job there;
  bool found;
  int code = job_load(&r->home, &there, &found);
  if (code == CLI_OK && found) code = job_compare(&r->home, &there, &r->asked);
  if (code == CLI_OK && found) {
    memcpy(r->asked.jid, there.jid, sizeof there.jid);
    r->asked.good = there.good;
    r->asked.failed = there.failed;
    r->asked.finished = there.finished;
  }
  job_free(&there);
  if (code != CLI_OK) return code;
  if (r->asked.finished) {
    home_remove_data(&r->home); /* what a run that was killed at its very end left */
    return run_already_done(&r->asked, r->home.dir);
  }
  if (!found && (code = job_save(&r->home, &r->asked)) != CLI_OK) return code;
  warn_of_bad_lines(m);
  if (found) fprintf(stderr, "btcchat: going on with what was begun in '%s'\n", r->home.dir);
  return work(r, m);
}

static int run_all(run_command *r, const char *path) {
  btc_manifest_summary m;
  int code = read_manifest(path, r->job.strict, &m);
  if (code == CLI_OK) code = describe(r, path, &m);
  if (code == CLI_OK) code = home_open(r->dir, &r->home);
  if (code == CLI_OK) code = resume_or_begin(r, &m);
  children_free(&r->children);
  home_close(&r->home);
  btc_manifest_summary_free(&m);
  job_free(&r->asked);
  free(r->base);
  return code;
}

static int run(int argc, char **argv) {
  static run_command r; /* large */
  r = (run_command){
      .model = model_options_default, .job = submit_options_default, .engine = "model", .workers = 1, .home = {.lock = -1}};
  r.model.batch = 8;
  cli_option table[] = {
      {.name = "output",
       .letter = 'o',
       .type = CLI_TEXT,
       .target = &r.dir,
       .value = "DIR",
       .help = "folder for results.jsonl; made when it is not there"},
      {.name = "jobs",
       .letter = 'j',
       .type = CLI_INT,
       .target = &r.workers,
       .value = "N",
       .help = "workers (default 1)",
       .low = 1,
       .high = 64},
      MODEL_OPTION_ROWS(r.model),
      {.name = "batch",
       .letter = 'b',
       .type = CLI_INT,
       .target = &r.model.batch,
       .value = "N",
       .help = "pairs computed together by a worker (default 8)",
       .low = 1,
       .high = 256},
      JOB_OPTION_ROWS(r.job),
      {.name = "engine",
       .type = CLI_CHOICE,
       .target = &r.engine,
       .value = "E",
       .help = "model, or stub: captions by hash, for tests (default model)",
       .choices = "model|stub"},
      {.name = "stub-us",
       .type = CLI_INT,
       .target = &r.stub_us,
       .value = "N",
       .help = "stub: time of one item, microseconds (default 0)",
       .low = 0,
       .high = 1e9},
      {.name = "stub-faults",
       .type = CLI_TEXT,
       .target = &r.stub_faults,
       .value = "LIST",
       .help = "stub: shares of ids that fail, as for 'worker' (default none)"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_run, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 1) return cli_usage_error(&cmd_run, "one MANIFEST expected, got %d", n);
  if (!r.dir || !*r.dir) return cli_usage_error(&cmd_run, "-o DIR is missing");
  return run_all(&r, args[0]);
}
