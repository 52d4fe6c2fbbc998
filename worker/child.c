/* Spawning, feeding and burying the engine child: see child.h. */
#define _GNU_SOURCE
#include "child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "frame.h"

enum { MAX_ARGS = 40, CHILD_FD = 3 };

struct child {
  btc_loop *loop;
  child_calls calls;
  pid_t pid;
  int fd, words_fd, pidfd; /* -1: closed */
  frame_buffer in, out;
  char words[CHILD_WORDS + 1]; /* the end of its stderr */
  size_t n_words;
  int64_t oom_kills; /* at its birth */
  bool ready, stalled, verbose;
};

/* ---- small things ---- */

void child_clean_text(char *s) {
  size_t n = strlen(s);
  for (size_t i = 0; i < n;) {
    size_t len = btc_utf8_char(s + i, n - i);
    if (len == 0 || (len == 1 && ((unsigned char)s[i] < 32 || s[i] == 127))) s[i] = '?';
    i += len ? len : 1;
  }
}

/* The file that counts the OOM kills of the cgroup this process is in: of version 2, or of version 1's memory controller. */
static bool find_counter(char *path, size_t size) {
  char line[512];
  bool found = false;
  FILE *f = fopen("/proc/self/cgroup", "re");
  while (f && fgets(line, sizeof line, f)) {
    const char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
    line[strcspn(line, "\n")] = 0;
    if (!group) continue;
    bool v2 = strncmp(line, "0::", 3) == 0, v1 = strncmp(names, ":memory:", 8) == 0;
    if (!v1 && (!v2 || found)) continue; /* where both are mounted, version 1 has the memory */
    snprintf(path, size, v1 ? "/sys/fs/cgroup/memory%s/memory.oom_control" : "/sys/fs/cgroup%s/memory.events", group + 1);
    found = true;
  }
  if (f) fclose(f);
  return found;
}

/* "oom_kill N" of it. */
int64_t child_oom_kills(void) {
  char line[512], path[700], key[64];
  long long value;
  int64_t kills = -1;
  FILE *f = find_counter(path, sizeof path) ? fopen(path, "re") : NULL;
  while (f && fgets(line, sizeof line, f)) {
    char *end;
    if (sscanf(line, "%63s", key) != 1 || strcmp(key, "oom_kill") != 0) continue;
    value = strtoll(line + strlen(key), &end, 10);
    if (end > line + strlen(key)) kills = value;
  }
  if (f) fclose(f);
  return kills;
}

static void close_fd(child *c, int *fd) {
  if (*fd < 0) return;
  btc_loop_set_fd(c->loop, *fd, 0, NULL, NULL, NULL);
  close(*fd);
  *fd = -1;
}

/* ---- its end ---- */

static void read_words(child *c) {
  char bytes[1024];
  ssize_t n;
  while (c->words_fd >= 0 && (n = read(c->words_fd, bytes, sizeof bytes)) != -1) {
    if (n == 0) {
      close_fd(c, &c->words_fd);
      return;
    }
    if (c->verbose && write(STDERR_FILENO, bytes, (size_t)n) < 0) c->verbose = false;
    size_t keep = (size_t)n, old = c->n_words + keep > CHILD_WORDS ? CHILD_WORDS - keep : c->n_words;
    memmove(c->words, c->words + c->n_words - old, old);
    memcpy(c->words + old, bytes, keep);
    c->n_words = old + keep;
    c->words[c->n_words] = 0;
  }
}

static void describe(child *c, int status, child_death *d) {
  *d = (child_death){.ready = c->ready};
  int64_t kills = child_oom_kills();
  if (WIFSIGNALED(status)) {
    d->end = CHILD_KILLED;
    d->code = WTERMSIG(status);
    if (d->code == SIGKILL && c->oom_kills >= 0 && kills > c->oom_kills) d->end = CHILD_OOM;
    if (c->stalled) d->end = CHILD_STALLED;
  } else {
    d->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    if (d->code == CHILD_EXIT_DEVICE) d->end = CHILD_NO_DEVICE;
  }
  char how[160];
  if (d->end == CHILD_OOM)
    snprintf(how, sizeof how, "the engine was killed because memory ran out");
  else if (d->end == CHILD_STALLED)
    snprintf(how, sizeof how, "the engine made no progress and was killed");
  else if (d->end == CHILD_NO_DEVICE)
    snprintf(how, sizeof how, "the engine lost its device");
  else if (d->end == CHILD_KILLED)
    snprintf(how, sizeof how, "the engine died by signal %d (%s)", d->code, strsignal(d->code));
  else
    snprintf(how, sizeof how, "the engine exited with code %d", d->code);
  while (c->n_words && (c->words[c->n_words - 1] == '\n' || c->words[c->n_words - 1] == ' ')) c->words[--c->n_words] = 0;
  size_t most = sizeof d->message - sizeof how - 32, skip = c->n_words > most ? c->n_words - most : 0;
  snprintf(d->message, sizeof d->message, "%s%s%.*s", how, c->n_words ? "; its last words: " : "", (int)most, c->words + skip);
  child_clean_text(d->message);
}

static void deliver(child *c);

/* Once it is reaped, what it said before is still in the socket. */
static void bury(child *c, int status) {
  child_death d;
  c->pid = 0;
  while (c->fd >= 0 && frame_read(&c->in, c->fd) == FRAME_DONE) deliver(c);
  close_fd(c, &c->fd);
  close_fd(c, &c->pidfd);
  read_words(c);
  close_fd(c, &c->words_fd);
  describe(c, status, &d);
  c->calls.died(c->calls.ctx, &d); /* may free c */
}

static void on_pid(void *ctx, int events) {
  child *c = ctx;
  int status;
  (void)events;
  if (waitpid(c->pid, &status, WNOHANG) == c->pid) bury(c, status);
}

/* The socket is closed or broken: whatever is left of the child is of no use. */
static void give_up(child *c) {
  int status;
  close_fd(c, &c->fd);
  kill(c->pid, SIGKILL);
  if (c->pidfd >= 0) return; /* on_pid follows */
  while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR) {
  }
  bury(c, status);
}

void child_kill(child *c, bool stalled) {
  c->stalled = c->stalled || stalled;
  if (c->pid) kill(c->pid, SIGKILL);
}

int child_pid(const child *c) {
  return c->pid;
}

/* ---- talking ---- */

static void dispatch(child *c, Btc__Envelope *e) {
  switch (e->body_case) {
    case BTC__ENVELOPE__BODY_CHILD_READY:
      c->ready = !e->child_ready->failed;
      c->calls.ready(c->calls.ctx, e->child_ready);
      break;
    case BTC__ENVELOPE__BODY_CHILD_STARTED:
      c->calls.started(c->calls.ctx, e->child_started);
      break;
    case BTC__ENVELOPE__BODY_CHILD_DONE:
      if (e->child_done->result) c->calls.done(c->calls.ctx, e->child_done);
      break;
    default:
      break;
  }
}

static void deliver(child *c) {
  Btc__Envelope *e = NULL;
  btc_error err;
  while (frame_next(&c->in, &e, &err) == BTC_OK && e) {
    dispatch(c, e);
    btc_wire_free(&e);
  }
}

static void on_socket(void *ctx, int events);

static btc_status watch(child *c, btc_error *err) {
  int events = BTC_LOOP_READ | (c->out.start < c->out.end ? BTC_LOOP_WRITE : 0);
  return btc_loop_set_fd(c->loop, c->fd, events, on_socket, c, err);
}

static void on_socket(void *ctx, int events) {
  child *c = ctx;
  if ((events & BTC_LOOP_WRITE) && c->out.start < c->out.end) {
    frame_io io = frame_write(&c->out, c->fd);
    if (io == FRAME_DONE) watch(c, NULL);
  }
  if (!(events & BTC_LOOP_READ)) return;
  frame_io io = frame_read(&c->in, c->fd);
  if (io == FRAME_DONE) deliver(c);
  if (io == FRAME_CLOSED) give_up(c);
}

static void on_words(void *ctx, int events) {
  (void)events;
  read_words(ctx);
}

btc_status child_send(child *c, const Btc__Envelope *e, btc_error *err) {
  if (c->fd < 0) return btc_fail(err, BTC_ERR_IO, "the engine is gone");
  btc_status st = frame_add(&c->out, e, err);
  if (st != BTC_OK) return st;
  frame_write(&c->out, c->fd); /* a closed socket shows when it is read */
  return watch(c, err);
}

/* ---- its birth ---- */

typedef struct arguments {
  char *argv[MAX_ARGS + 1];
  char numbers[10][24];
  int n, n_numbers;
} arguments;

static void add_text(arguments *a, const char *name, const char *value) {
  if (!value) return;
  a->argv[a->n++] = (char *)name;
  a->argv[a->n++] = (char *)value;
}

static void add_number(arguments *a, const char *name, int64_t value) {
  char *text = a->numbers[a->n_numbers++];
  snprintf(text, sizeof a->numbers[0], "%lld", (long long)value);
  add_text(a, name, text);
}

static void add_real(arguments *a, const char *name, double value) {
  char *text = a->numbers[a->n_numbers++];
  snprintf(text, sizeof a->numbers[0], "%.15g", value);
  add_text(a, name, text);
}

static void make_arguments(arguments *a, const btc_worker_options *o) {
  *a = (arguments){0};
  a->argv[a->n++] = "btcchat";
  a->argv[a->n++] = "worker";
  add_number(a, "--engine-child", CHILD_FD);
  add_text(a, "--engine", o->engine);
  add_text(a, "--roots", o->roots);
  add_text(a, "--model", o->model);
  add_text(a, "--device", o->device);
  add_text(a, "--dtype", o->dtype);
  add_number(a, "--threads", o->threads);
  add_number(a, "--batch", o->batch);
  add_number(a, "--max-tokens", o->max_tokens);
  if (o->pipe > 1) add_number(a, "--pipe", o->pipe);
  add_text(a, "--tensors", o->tensors);
  if (o->memory_mib > 0) add_real(a, "--memory", o->memory_mib);
  add_text(a, "--known", o->known);
  add_number(a, "--stub-us", o->stub_us);
  add_text(a, "--stub-faults", o->stub_faults);
}

void child_offer_to_oom(void) {
  char now[16] = "";
  int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t n = read(fd, now, sizeof now - 1);
  bool sooner = now[0] != '-' && (n > 4 || (n == 4 && now[0] >= '5')); /* "500\n" to "1000\n" */
  if (!sooner && pwrite(fd, "500", 3, 0) < 0) {                        /* then the system chooses as it does */
  }
  close(fd);
}

/* In the new process, before exec: only what is safe there (the agent has threads). SIGINT and SIGTERM stay blocked until the child
 * ignores them. */
static _Noreturn void become(const char *program, char *const *argv, pid_t agent, int socket, int words, const child_extra *extra) {
  enum { LAST = WORKER_CHILD_LINKS };
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != agent) _exit(0);
  child_offer_to_oom();
  /* out of the way first: the agent may have been started with low descriptors closed */
  socket = fcntl(socket, F_DUPFD_CLOEXEC, LAST + 1);
  words = fcntl(words, F_DUPFD_CLOEXEC, LAST + 1);
  int null = fcntl(open("/dev/null", O_RDWR | O_CLOEXEC), F_DUPFD_CLOEXEC, LAST + 1);
  int control = extra ? fcntl(extra->control, F_DUPFD_CLOEXEC, LAST + 1) : -1;
  int links = extra ? fcntl(extra->links, F_DUPFD_CLOEXEC, LAST + 1) : -1;
  if (dup2(null, 0) < 0 || dup2(words, 1) < 0 || dup2(words, 2) < 0 || dup2(socket, CHILD_FD) < 0) _exit(126);
  if (extra && (dup2(control, WORKER_CHILD_CONTROL) < 0 || dup2(links, WORKER_CHILD_LINKS) < 0)) _exit(126);
  syscall(SYS_close_range, extra ? LAST + 1 : CHILD_FD + 1, ~0u, 0);
  execv(program, argv);
  _exit(127);
}

static btc_status open_pipes(int sockets[2], int words[2], btc_error *err) {
  sockets[0] = sockets[1] = words[0] = words[1] = -1;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0 || pipe2(words, O_CLOEXEC) != 0 ||
      fcntl(sockets[0], F_SETFL, O_NONBLOCK) != 0 || fcntl(words[0], F_SETFL, O_NONBLOCK) != 0)
    return btc_fail(err, BTC_ERR_IO, "cannot make a socket pair: %s", strerror(errno));
  return BTC_OK;
}

static btc_status watch_all(child *c, btc_error *err) {
  btc_status st = watch(c, err);
  if (st == BTC_OK) st = btc_loop_set_fd(c->loop, c->words_fd, BTC_LOOP_READ, on_words, c, err);
  if (st == BTC_OK && c->pidfd >= 0) st = btc_loop_set_fd(c->loop, c->pidfd, BTC_LOOP_READ, on_pid, c, err);
  return st;
}

btc_status child_start(btc_loop *loop, const char *program, const btc_worker_options *o, const child_calls *calls,
                       const child_extra *extra, child **out, btc_error *err) {
  int sockets[2], words[2];
  arguments a;
  child *c = *out = btc_alloc_zero(1, sizeof *c);
  if (!c) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  *c = (child){
      .loop = loop, .calls = *calls, .fd = -1, .words_fd = -1, .pidfd = -1, .verbose = o->verbose, .oom_kills = child_oom_kills()};
  make_arguments(&a, o);
  btc_status st = open_pipes(sockets, words, err);
  pid_t agent = getpid();
  if (st == BTC_OK && (c->pid = fork()) < 0) st = btc_fail(err, BTC_ERR_IO, "cannot start the engine: %s", strerror(errno));
  if (st == BTC_OK && c->pid == 0) become(program ? program : "/proc/self/exe", a.argv, agent, sockets[1], words[1], extra);
  c->pid = c->pid > 0 ? c->pid : 0;
  c->fd = sockets[0];
  c->words_fd = words[0];
  if (sockets[1] >= 0) close(sockets[1]);
  if (words[1] >= 0) close(words[1]);
  if (st == BTC_OK) {
    c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0); /* close-on-exec by itself */
    st = watch_all(c, err);
  }
  if (st != BTC_OK) child_destroy(out);
  return st;
}

void child_destroy(child **cp) {
  child *c = *cp;
  *cp = NULL;
  if (!c) return;
  if (c->pid) {
    kill(c->pid, SIGKILL);
    while (waitpid(c->pid, NULL, 0) < 0 && errno == EINTR) {
    }
  }
  close_fd(c, &c->fd);
  close_fd(c, &c->words_fd);
  close_fd(c, &c->pidfd);
  frame_free(&c->in);
  frame_free(&c->out);
  free(c);
}
