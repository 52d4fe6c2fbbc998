/* The processes of a pipeline's ranks: started, watched, replaced. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pipe_parts.h"

extern char **environ;

/* ---- faults ---- */

static void set_cause(pipe_driver *p, btc_status st, const char *text) {
  if (!p->fault) p->fault_ns = btc_now_ns();
  btc_fail(&p->cause, st, "%s", text);
  p->fault = true;
}

void pipe_break(pipe_driver *p, btc_status st, const char *fmt, ...) {
  va_list ap;
  char text[sizeof p->cause.message];
  if (p->fault) return;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  set_cause(p, st, text);
}

/* A death explains the links that closed before it was known. */
static void mourn(pipe_driver *p, int r, const char *how, int code) {
  char text[256];
  if (p->dead) return;
  snprintf(text, sizeof text, "rank %d %s%.0d", r, how, code);
  set_cause(p, BTC_ERR_IO, text);
  p->dead = true;
}

/* ---- birth ---- */

typedef struct arguments {
  char *argv[24];
  char text[6][24];
  char fail[256];
  char **env; /* malloc'ed array of borrowed strings */
} arguments;

static btc_status make_arguments(const pipe_driver *p, int r, arguments *a, btc_error *err) {
  const pipe_rank *k = &p->rank[r];
  const int numbers[] = {SHARD_FD, k->first, k->last, p->o.threads, pipe_batch_slots(p)};
  const char *const names[] = {"--shard", "--first", "--last", "--threads", "--batch"};
  int n = 0, vars = 0, kept = 0;
  memset(a, 0, sizeof *a);
  a->argv[n++] = (char *)"btcchat";
  a->argv[n++] = (char *)"worker";
  for (int i = 0; i < 5; i++) {
    snprintf(a->text[i], sizeof a->text[i], "%d", numbers[i]);
    a->argv[n++] = (char *)names[i];
    a->argv[n++] = a->text[i];
  }
  const char *const pairs[] = {"--model",   p->model_dir, "--device",
                               p->o.device, "--dtype",    p->precision == BTC_PRECISION_BF16 ? "bf16" : "f32"};
  for (int i = 0; i < 6; i++) a->argv[n++] = (char *)pairs[i];
  while (environ[vars]) vars++;
  if (!(a->env = btc_alloc_zero((size_t)vars + 2, sizeof *a->env))) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  for (int i = 0; i < vars; i++)
    if (!p->o.fail || strncmp(environ[i], "BTC_FAIL=", 9) != 0) a->env[kept++] = environ[i];
  if (p->o.fail && p->o.fail_rank == r && k->starts == 0) {
    snprintf(a->fail, sizeof a->fail, "BTC_FAIL=%s", p->o.fail);
    a->env[kept] = a->fail;
  }
  return BTC_OK;
}

/* In the new process: only what is safe between fork and exec. */
static _Noreturn void become(const char *program, const arguments *a, pid_t parent, int control, int page) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0);
  control = fcntl(control, F_DUPFD_CLOEXEC, SHARD_PAGE_FD + 1);
  page = fcntl(page, F_DUPFD_CLOEXEC, SHARD_PAGE_FD + 1);
  int null = fcntl(open("/dev/null", O_RDWR | O_CLOEXEC), F_DUPFD_CLOEXEC, SHARD_PAGE_FD + 1);
  if (dup2(null, 0) < 0 || dup2(2, 1) < 0 || dup2(control, SHARD_FD) < 0 || dup2(page, SHARD_PAGE_FD) < 0) _exit(126);
  syscall(SYS_close_range, SHARD_PAGE_FD + 1, ~0u, 0);
  execve(program, a->argv, a->env);
  _exit(127);
}

static btc_status make_page(pipe_rank *k, int *fd, btc_error *err) {
  *fd = memfd_create("btc-shard", MFD_CLOEXEC);
  if (*fd < 0 || ftruncate(*fd, sizeof(shard_page)) != 0)
    return btc_fail(err, BTC_ERR_IO, "cannot make a shared page: %s", strerror(errno));
  void *m = mmap(NULL, sizeof(shard_page), PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
  if (m == MAP_FAILED) return btc_fail(err, BTC_ERR_NOMEM, "cannot map a shared page: %s", strerror(errno));
  k->page = m;
  return BTC_OK;
}

btc_status pipe_rank_start(pipe_driver *p, int r, btc_error *err) {
  pipe_rank *k = &p->rank[r];
  int pair[2] = {-1, -1}, page = -1;
  arguments a = {0};
  pipe_rank_end(k);
  btc_status st = make_arguments(p, r, &a, err);
  if (st == BTC_OK) st = make_page(k, &page, err);
  if (st == BTC_OK && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    st = btc_fail(err, BTC_ERR_IO, "cannot make a socket pair: %s", strerror(errno));
  pid_t parent = getpid(), pid = st == BTC_OK ? fork() : -1;
  if (st == BTC_OK && pid < 0) st = btc_fail(err, BTC_ERR_IO, "cannot start a rank: %s", strerror(errno));
  if (pid == 0) become(p->o.program ? p->o.program : "/proc/self/exe", &a, parent, pair[1], page);
  if (pair[1] >= 0) close(pair[1]);
  if (page >= 0) close(page);
  free(a.env);
  k->control = pair[0];
  if (st != BTC_OK) return st; /* pipe_rank_end clears the rest */
  k->pid = pid;
  k->pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* only wakes us: -1 is fine */
  k->started_ns = k->seen_ns = btc_now_ns();
  k->starts++;
  return BTC_OK;
}

/* ---- end ---- */

static void forget(pipe_rank *k) {
  if (k->control >= 0) close(k->control);
  if (k->pidfd >= 0) close(k->pidfd);
  if (k->page) munmap(k->page, sizeof *k->page);
  *k = (pipe_rank){.control = -1, .pidfd = -1, .first = k->first, .last = k->last, .starts = k->starts};
}

void pipe_rank_end(pipe_rank *k) {
  if (k->pid) {
    kill(k->pid, SIGKILL);
    while (waitpid(k->pid, NULL, 0) < 0 && errno == EINTR) {
    }
  }
  forget(k);
}

/* It died by itself. */
static void bury(pipe_driver *p, int r, int status) {
  pipe_rank *k = &p->rank[r];
  if (WIFSIGNALED(status))
    mourn(p, r, "died by signal ", WTERMSIG(status));
  else
    mourn(p, r, WEXITSTATUS(status) ? "exited with code " : "exited", WEXITSTATUS(status));
  k->pid = 0;
  forget(k);
}

static void replace_wedged(pipe_driver *p, int r, const char *how) {
  mourn(p, r, how, 0);
  if (!p->o.leave_wedged) {
    pipe_rank_end(&p->rank[r]);
    return;
  }
  /* its control stays open (and leaks, in a test): it is to believe that it still belongs */
  p->rank[r].pid = 0;
  p->rank[r].control = -1;
  forget(&p->rank[r]);
}

/* ---- watching ---- */

void pipe_rank_order(pipe_driver *p, int r, const shard_order *o) {
  /* a full socket or a dead peer: the formation's deadline tells */
  if (send(p->rank[r].control, o, sizeof *o, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
}

static void hear(pipe_driver *p, int r, const shard_report *w) {
  pipe_rank *k = &p->rank[r];
  switch ((shard_said)w->said) {
    case SHARD_OPEN:
      k->port = w->port;
      k->open = true;
      k->seen_ns = btc_now_ns();
      break;
    case SHARD_READY:
      k->ready_epoch = w->epoch;
      break;
    case SHARD_BROKEN:
      if (w->epoch == p->epoch && w->epoch > p->abandoned)
        pipe_break(p, (btc_status)w->status, "rank %d: %.*s", r, (int)sizeof w->message, w->message);
      break;
    case SHARD_FAILED:
      pipe_break(p, (btc_status)w->status, "rank %d cannot start: %.*s", r, (int)sizeof w->message, w->message);
      break;
  }
}

/* Processor time of a process, in ticks. */
static uint64_t processor_ticks(pid_t pid) {
  char path[64], line[1024];
  unsigned long user = 0, system = 0;
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
  if (fd >= 0) close(fd);
  if (n <= 0) return 0;
  line[n] = 0;
  const char *at = strrchr(line, ')');
  if (!at) return 0;
  at++;
  for (int field = 3; field < 14 && *at; field++) at += 1 + strcspn(at + 1, " "); /* at the space before field 14 */
  char *end;
  user = strtoul(at, &end, 10);
  system = strtoul(end, &end, 10);
  return user + system;
}

/* A rank that waits turns its counter, one that computes turns it or uses its processor. */
static bool stands_still(pipe_driver *p, pipe_rank *k) {
  int64_t now = btc_now_ns();
  uint64_t alive = __atomic_load_n(&k->page->alive, __ATOMIC_RELAXED);
  if (alive != k->seen_alive) {
    k->seen_alive = alive;
    k->seen_ns = now;
    return false;
  }
  if (now - k->seen_ns < (int64_t)p->o.wedge_ms * 1000000) return false;
  uint64_t cpu = processor_ticks(k->pid);
  if (cpu == k->seen_cpu) return true;
  k->seen_cpu = cpu;
  k->seen_ns = now;
  return false;
}

static void watch_rank(pipe_driver *p, int r) {
  pipe_rank *k = &p->rank[r];
  shard_report w;
  int status;
  if (!k->pid) return;
  while (recv(k->control, &w, sizeof w, MSG_DONTWAIT) == (ssize_t)sizeof w && w.version == SHARD_VERSION) hear(p, r, &w);
  if (waitpid(k->pid, &status, WNOHANG) == k->pid) {
    bury(p, r, status);
    return;
  }
  if (!k->open && btc_now_ns() - k->started_ns > (int64_t)p->o.open_ms * 1000000)
    replace_wedged(p, r, "did not open the model in time");
  if (k->pid && k->open && stands_still(p, k)) replace_wedged(p, r, "stands still");
}

void pipe_watch(pipe_driver *p) {
  for (int r = 0; r < p->n_ranks; r++) watch_rank(p, r);
}

bool pipe_has_fault(void *driver) {
  pipe_driver *p = driver;
  if (p->o.progress) __atomic_add_fetch(p->o.progress, 1, __ATOMIC_RELAXED);
  pipe_watch(p);
  return p->fault || (p->o.cancel && *p->o.cancel);
}
