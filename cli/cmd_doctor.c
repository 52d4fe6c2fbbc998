/* btcchat doctor: what this machine has, what is missing, and what to do about it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model_options.h"
#include "ops/ops.h"
#include "worker/link_nccl.h"

static int run(int argc, char **argv);

const cli_command cmd_doctor = {
    .name = "doctor",
    .arguments = "",
    .summary = "checks CPU, memory, libraries, GPU, NCCL, Redis and model; says what to do about each finding",
    .details = "Exit code 0 when captions can be made here, 1 when something needed is missing.",
    .run = run,
};

typedef enum finding_level { FINE, NOTE, PROBLEM } finding_level;

typedef struct findings {
  json_t *list;
  bool json, problem;
} findings;

static void found(findings *f, finding_level level, const char *what, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
static void found(findings *f, finding_level level, const char *what, const char *fmt, ...) {
  static const char *const words[] = {"ok", "note", "PROBLEM"};
  char text[1200];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  if (level == PROBLEM) f->problem = true;
  if (f->json)
    json_array_append_new(f->list, json_pack("{s:s,s:s,s:s}", "what", what, "level", words[level], "text", text));
  else
    printf("%-8s %-10s %s\n", words[level], what, text);
}

static void check_cpu(findings *f) {
  btc_backend *be = NULL;
  btc_error err;
  btc_backend_options o = {
      .kind = "cpu", .threads = 0, .compute = btc_cpu_has_bf16() ? BTC_COMPUTE_BF16 : BTC_COMPUTE_F32, .max_cols = 64};
  if (btc_backend_create(&o, &be, &err) != BTC_OK) {
    found(f, PROBLEM, "cpu", "%s", err.message);
    return;
  }
  found(f, FINE, "cpu", "%s", btc_backend_describe(be));
  if (!btc_cpu_has_bf16())
    found(f, NOTE, "bf16", "this CPU has no bf16 products: --dtype auto means f32 here, and bf16 would be no faster");
  btc_backend_destroy(&be);
}

static void check_memory(findings *f) {
  long long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE), total = sysconf(_SC_PHYS_PAGES);
  double gb = (double)total * (double)page * 1e-9;
  if (gb < 8)
    found(f, NOTE, "memory",
          "%.1f GB in all: enough for small models; the full-size model wants 8 GB so that its weights stay in memory", gb);
  else
    found(f, FINE, "memory", "%.1f GB in all, %.1f GB free", gb, (double)pages * (double)page * 1e-9);
}

static void check_gpu(findings *f) {
  btc_error err = {0};
  int n = btc_device_count(&err);
  if (n == 0) found(f, NOTE, "gpu", "%s: the CPU is used", err.message);
  for (int i = 0; i < n; i++) {
    btc_device_info d;
    char busy[32] = "";
    if (btc_device_query(i, &d, &err) != BTC_OK) {
      found(f, NOTE, "gpu", "%s", err.message);
      continue;
    }
    if (d.busy >= 0) snprintf(busy, sizeof busy, ", %.0f %% busy", d.busy * 100);
    found(f, FINE, "gpu", "cuda:%d, %s, compute capability %d.%d, %.1f GB, %.1f GB free%s", i, d.name, d.major, d.minor,
          (double)d.memory_bytes * 1e-9, (double)d.free_bytes * 1e-9, busy);
  }
}

/* Only pipelines over GPUs want it, so nothing is said where there is none. */
static void check_nccl(findings *f) {
  btc_error err = {0};
  char version[16], file[512];
  if (btc_device_count(&err) == 0) return;
  if (link_nccl_describe(version, file, sizeof file, &err) == BTC_OK)
    found(f, FINE, "nccl", "%s (%s): tensors of a pipeline go from GPU to GPU", version, file);
  else
    found(f, NOTE, "nccl", "%s; tensors of a pipeline go by TCP, which is slower", err.message);
}

/* Where a program is; false when it is not on the PATH. */
static bool on_path(const char *program, char *file, size_t len) {
  const char *path = getenv("PATH");
  while (path && *path) {
    size_t n = strcspn(path, ":");
    snprintf(file, len, "%.*s/%s", (int)(n < 4000 ? n : 4000), path, program);
    if (access(file, X_OK) == 0) return true;
    path += n + (path[n] == ':');
  }
  return false;
}

/* "v=7.0.15" in what `redis-server --version` prints. false: it says nothing of the kind. */
static bool redis_version(const char *program, int version[3]) {
  int out[2], status;
  char text[512];
  size_t n = 0;
  if (pipe2(out, O_CLOEXEC) != 0) return false;
  pid_t pid = fork();
  if (pid == 0) {
    if (dup2(out[1], STDOUT_FILENO) >= 0) execl(program, program, "--version", (char *)NULL);
    _exit(127);
  }
  close(out[1]);
  for (ssize_t got; pid > 0 && n < sizeof text - 1 && (got = read(out[0], text + n, sizeof text - 1 - n)) > 0;) n += (size_t)got;
  close(out[0]);
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return false;
  text[n] = 0;
  char *at = strstr(text, "v=");
  for (int i = 0; at && i < 3; i++) {
    char *end;
    version[i] = (int)strtol(at + (i ? 1 : 2), &end, 10);
    at = *end == '.' || i == 2 ? end : NULL;
  }
  return at != NULL;
}

static void check_redis(findings *f) {
  char program[4096];
  int v[3] = {0};
  if (!on_path("redis-server", program, sizeof program))
    found(f, NOTE, "redis",
          "redis-server is not on the PATH; captions do not need it. Install the package redis-server to run a queue");
  else if (!redis_version(program, v))
    found(f, NOTE, "redis", "'%s' does not tell its version; a queue needs Redis 7.0 or newer", program);
  else if (v[0] < 7)
    found(f, NOTE, "redis", "redis-server is %d.%d.%d: a queue needs 7.0 or newer, for its functions; captions do not", v[0], v[1],
          v[2]);
  else
    found(f, FINE, "redis", "redis-server is %d.%d.%d (only the queue needs it; captions do not)", v[0], v[1], v[2]);
}

static void check_model(findings *f, const char *dir) {
  btc_model *m = NULL;
  btc_error err;
  if (!dir) dir = default_model_dir();
  if (!dir) {
    found(f, PROBLEM, "model", "none: give -m DIR or set BTCCHAT_MODEL (the nano model is not beside the program)");
    return;
  }
  if (btc_model_open(dir, &m, &err) != BTC_OK) {
    found(f, PROBLEM, "model", "%s", err.message);
    return;
  }
  btc_model_info i;
  btc_model_get_info(m, &i);
  found(f, FINE, "model", "'%s': %s, %.2f million parameters, %.1f MB, %lldx%lld pixels, pairs %s", dir, i.name,
        (double)i.parameters * 1e-6, (double)i.weight_bytes * 1e-6, (long long)i.image_side, (long long)i.image_side,
        i.change_layers >= 0 ? "yes" : "no");
  double need = (double)i.weight_bytes + 1e9, have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  if (need > have) found(f, NOTE, "model", "its weights do not fit this machine's memory: every token will read them from disk");
  btc_model_close(&m);
}

static int run(int argc, char **argv) {
  findings f = {.list = json_array()};
  const char *model = NULL;
  cli_option table[] = {
      {.name = "model",
       .letter = 'm',
       .type = CLI_TEXT,
       .target = &model,
       .value = "DIR",
       .help = "checkpoint to check (default: as for caption)"},
      {.name = "json", .type = CLI_FLAG, .target = &f.json, .help = "one JSON object"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_doctor, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code) ||
      (n > 0 && (code = cli_usage_error(&cmd_doctor, "no arguments expected")))) {
    json_decref(f.list);
    return code;
  }
  check_cpu(&f);
  check_memory(&f);
  check_gpu(&f);
  check_nccl(&f);
  check_redis(&f);
  check_model(&f, model);
  if (f.json) {
    json_t *o = json_pack("{s:b,s:O}", "ok", !f.problem, "findings", f.list);
    char *line = json_dumps(o, JSON_COMPACT);
    if (line) puts(line);
    free(line);
    json_decref(o);
  }
  json_decref(f.list);
  return f.problem ? CLI_FAILED : CLI_OK;
}
