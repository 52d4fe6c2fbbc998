/* Starting, asking and burying the helper: see process.h. */
#define _GNU_SOURCE
#include "geo/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ARGS = 16, MAX_ENV = 16, END_MS = 2000 };

/* What the helper may know of our environment: where data files of its libraries are. GDAL reads options out of it, so no more. */
static const char *const kept[] = {
    "PATH=",         "LANG=",          "PROJ_DATA=",    "PROJ_LIB=", "GDAL_DATA=", "LD_LIBRARY_PATH=",
    "ASAN_OPTIONS=", "UBSAN_OPTIONS=", "TSAN_OPTIONS=", "BTC_FAIL=", NULL};

static void choose_environment(char *env[MAX_ENV]) {
  extern char **environ;
  int n = 0;
  for (char **e = environ; *e && n < MAX_ENV - 1; e++)
    for (int k = 0; kept[k]; k++)
      if (strncmp(*e, kept[k], strlen(kept[k])) == 0 && n < MAX_ENV - 1) env[n++] = *e;
  env[n] = NULL;
}

static int spawn(const char *program, char *const *argv, int socket, pid_t *pid) {
  char *env[MAX_ENV];
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attr;
  sigset_t none, normal;
  choose_environment(env);
  sigemptyset(&none);
  sigemptyset(&normal);
  sigaddset(&normal, SIGPIPE); /* ignored signals stay ignored over exec */
  sigaddset(&normal, SIGXCPU);
  int e = posix_spawn_file_actions_init(&files);
  if (e) return e;
  if ((e = posix_spawnattr_init(&attr)) == 0) {
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &normal);
    /* a process group of its own: Ctrl-C is the program's to handle */
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&files, socket, GEO_PROCESS_FD);
    posix_spawn_file_actions_addclosefrom_np(&files, GEO_PROCESS_FD + 1);
    e = posix_spawn(pid, program, &files, &attr, argv, env);
    posix_spawnattr_destroy(&attr);
  }
  posix_spawn_file_actions_destroy(&files);
  return e;
}

/* Two ends of a socket, the helper's above its own number there, so that dup2 always makes a descriptor that survives exec. */
static bool open_ends(int ends[2]) {
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return false;
  int high = fcntl(ends[1], F_DUPFD_CLOEXEC, GEO_PROCESS_FD + 1);
  close(ends[1]);
  ends[1] = high;
  if (high >= 0 && fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0) return true;
  close(ends[0]);
  if (high >= 0) close(high);
  return false;
}

btc_status geo_process_start(const char *const *args, geo_process *p, btc_geo_failure *f) {
  *p = (geo_process){.fd = -1};
  char *program = btc_geo_program(f), *argv[MAX_ARGS + 2] = {program};
  if (!program) return f ? f->error.code : BTC_ERR_NOT_FOUND;
  for (int i = 0; i < MAX_ARGS && args[i]; i++) argv[i + 1] = (char *)args[i];
  int ends[2];
  if (!open_ends(ends)) {
    free(program);
    return btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_IO, "cannot make a socket pair: %s", strerror(errno));
  }
  int e = spawn(program, argv, ends[1], &p->pid);
  close(ends[1]);
  if (e) {
    close(ends[0]);
    p->pid = 0;
    btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_IO, "cannot start '%s': %s", program, strerror(e));
    free(program);
    return BTC_ERR_IO;
  }
  free(program);
  p->fd = ends[0];
  return BTC_OK;
}

/* Waits at most END_MS for its end, then kills it. Its wait status. */
static int bury(geo_process *p, bool kill_now) {
  int status = 0;
  const struct timespec turn = {.tv_nsec = 1000000};
  if (p->fd >= 0) close(p->fd);
  p->fd = -1;
  if (!p->pid) return 0;
  for (int64_t end = btc_now_ns() + END_MS * 1000000LL; !kill_now && btc_now_ns() < end; nanosleep(&turn, NULL))
    if (waitpid(p->pid, &status, WNOHANG) == p->pid) {
      p->pid = 0;
      return status;
    }
  kill(p->pid, SIGKILL);
  while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR) {
  }
  p->pid = 0;
  return status;
}

void geo_process_stop(geo_process *p) {
  bury(p, false);
}

/* How it ended, as a failure. */
static btc_status explain(int status, const btc_error *why, btc_geo_failure *f) {
  if (WIFSIGNALED(status)) {
    int sig = WTERMSIG(status);
    if (sig == SIGALRM || sig == SIGXCPU) return btc_geo_fail(f, BTC_GEO_TIMEOUT, BTC_ERR_LIMIT, "the decoder was over its time");
    if (sig == SIGSYS)
      return btc_geo_fail(f, BTC_GEO_CRASH, BTC_ERR_INTERNAL, "the decoder tried a forbidden system call and was killed");
    return btc_geo_fail(f, BTC_GEO_CRASH, BTC_ERR_INTERNAL, "the decoder died by signal %d (%s)", sig, strsignal(sig));
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
    return btc_geo_fail(f, BTC_GEO_INTERNAL, BTC_ERR_IO, "the helper btcchat-geo does not start");
  return btc_geo_fail(f, BTC_GEO_CRASH, BTC_ERR_INTERNAL, "the decoder ended with code %d (%s)",
                      WIFEXITED(status) ? WEXITSTATUS(status) : -1, why->message);
}

/* A failure that the helper reports; false: the answer is none. */
static bool reported(const json_t *answer, btc_status *st, btc_geo_failure *f) {
  const char *reason = json_string_value(json_object_get(answer, "reason"));
  const char *message = json_string_value(json_object_get(answer, "message"));
  if (!reason) return false;
  btc_geo_reason r = BTC_GEO_INTERNAL;
  for (int i = 1; i < BTC_GEO_REASON_COUNT; i++)
    if (strcmp(reason, btc_geo_reason_text((btc_geo_reason)i)) == 0) r = (btc_geo_reason)i;
  static const btc_status codes[BTC_GEO_REASON_COUNT] = {
      [BTC_GEO_NOT_FOUND] = BTC_ERR_NOT_FOUND, [BTC_GEO_DECODE] = BTC_ERR_FORMAT,   [BTC_GEO_DIMS] = BTC_ERR_LIMIT,
      [BTC_GEO_NODATA] = BTC_ERR_UNSUPPORTED,  [BTC_GEO_POLICY] = BTC_ERR_ARG,      [BTC_GEO_TIMEOUT] = BTC_ERR_LIMIT,
      [BTC_GEO_OOM] = BTC_ERR_NOMEM,           [BTC_GEO_BAD_REQUEST] = BTC_ERR_ARG, [BTC_GEO_NO_OVERLAP] = BTC_ERR_UNSUPPORTED};
  *st = codes[r] ? codes[r] : BTC_ERR_INTERNAL;
  btc_geo_fail(f, r, *st, "%s", message ? message : "the helper gave no message");
  return true;
}

btc_status geo_process_ask(geo_process *p, const json_t *request, const int *fds, int n, int timeout_ms, geo_frame_stop stop,
                           void *ctx, json_t **answer, btc_geo_failure *f) {
  btc_error err = {0};
  geo_frame frame = {0};
  int64_t deadline = btc_now_ns() + timeout_ms * 1000000LL;
  *answer = NULL;
  if (p->fd < 0) return btc_geo_fail(f, BTC_GEO_CRASH, BTC_ERR_IO, "the decoder is not running");
  btc_status st = geo_frame_send(p->fd, request, fds, n, deadline, &err);
  if (st == BTC_OK) st = geo_frame_receive(p->fd, deadline, stop, ctx, &frame, &err);
  if (st == BTC_OK) {
    btc_status said = BTC_OK;
    if (!reported(frame.message, &said, f)) *answer = json_incref(frame.message);
    geo_frame_clear(&frame);
    return said;
  }
  if (st == BTC_ERR_CANCELLED) {
    bury(p, true);
    return btc_geo_fail(f, BTC_GEO_CANCELLED, st, "cancelled");
  }
  if (st == BTC_ERR_LIMIT && btc_now_ns() >= deadline) {
    bury(p, true);
    return btc_geo_fail(f, BTC_GEO_TIMEOUT, st, "the decoder gave no answer within %d ms and was killed", timeout_ms);
  }
  if (st == BTC_ERR_NOMEM) {
    bury(p, true);
    return btc_geo_fail(f, BTC_GEO_OOM, st, "%s", err.message);
  }
  return explain(bury(p, true), &err, f); /* a process that has ended keeps its status when it is killed */
}
