/* The process of a rank: started, heard, watched, ended. See shard_process.h. */
#define _GNU_SOURCE
#include "shard_process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
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

#include "child.h"

extern char **environ;

/* ---- birth ---- */

typedef struct arguments {
  char *argv[24];
  char text[4][24];
  char fail[256], host[64];
  char **env; /* malloc'ed array of borrowed strings */
} arguments;

static btc_status make_arguments(const shard_start *o, arguments *a, btc_error *err) {
  const int numbers[] = {SHARD_FD, o->first, o->last, o->threads};
  const char *const names[] = {"--shard", "--first", "--last", "--threads"};
  const char *const pairs[] = {"--model", o->model, "--device", o->device, "--dtype", o->dtype};
  int n = 0, vars = 0, kept = 0;
  memset(a, 0, sizeof *a);
  a->argv[n++] = (char *)"btcchat";
  a->argv[n++] = (char *)"worker";
  for (int i = 0; i < 4; i++) {
    snprintf(a->text[i], sizeof a->text[i], "%d", numbers[i]);
    a->argv[n++] = (char *)names[i];
    a->argv[n++] = a->text[i];
  }
  for (int i = 0; i < 6; i++) a->argv[n++] = (char *)pairs[i];
  while (environ[vars]) vars++;
  if (!(a->env = btc_alloc_zero((size_t)vars + 3, sizeof *a->env))) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  for (int i = 0; i < vars; i++)
    if ((!o->fail || strncmp(environ[i], "BTC_FAIL=", 9) != 0) && (!o->host || strncmp(environ[i], "NCCL_HOSTID=", 12) != 0))
      a->env[kept++] = environ[i];
  if (o->fail) {
    snprintf(a->fail, sizeof a->fail, "BTC_FAIL=%s", o->fail);
    a->env[kept++] = a->fail;
  }
  if (o->host) {
    snprintf(a->host, sizeof a->host, "NCCL_HOSTID=%s", o->host);
    a->env[kept] = a->host;
  }
  return BTC_OK;
}

/* In the new process: only what is safe between fork and exec. */
static _Noreturn void become(const char *program, const arguments *a, pid_t parent, int control, int page, int links) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0);
  child_offer_to_oom();
  control = fcntl(control, F_DUPFD_CLOEXEC, SHARD_LINKS_FD + 1);
  page = fcntl(page, F_DUPFD_CLOEXEC, SHARD_LINKS_FD + 1);
  int null = fcntl(open("/dev/null", O_RDWR | O_CLOEXEC), F_DUPFD_CLOEXEC, SHARD_LINKS_FD + 1);
  links = links < 0 ? -1 : fcntl(links, F_DUPFD_CLOEXEC, SHARD_LINKS_FD + 1);
  if (dup2(null, 0) < 0 || dup2(2, 1) < 0 || dup2(control, SHARD_FD) < 0 || dup2(page, SHARD_PAGE_FD) < 0) _exit(126);
  if (links >= 0 && dup2(links, SHARD_LINKS_FD) < 0) _exit(126);
  syscall(SYS_close_range, links >= 0 ? SHARD_LINKS_FD + 1 : SHARD_LINKS_FD, ~0u, 0);
  execve(program, a->argv, a->env);
  _exit(127);
}

static btc_status make_page(shard_process *k, int *fd, btc_error *err) {
  *fd = memfd_create("btc-shard", MFD_CLOEXEC);
  if (*fd < 0 || ftruncate(*fd, sizeof(shard_page)) != 0)
    return btc_fail(err, BTC_ERR_IO, "cannot make a shared page: %s", strerror(errno));
  void *m = mmap(NULL, sizeof(shard_page), PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
  if (m == MAP_FAILED) return btc_fail(err, BTC_ERR_NOMEM, "cannot map a shared page: %s", strerror(errno));
  k->page = m;
  return BTC_OK;
}

btc_status shard_process_start(shard_process *k, const shard_start *o, btc_error *err) {
  int pair[2] = {-1, -1}, page = -1;
  arguments a = {0};
  *k = (shard_process){.control = -1, .pidfd = -1};
  btc_status st = make_arguments(o, &a, err);
  if (st == BTC_OK) st = make_page(k, &page, err);
  if (st == BTC_OK && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    st = btc_fail(err, BTC_ERR_IO, "cannot make a socket pair: %s", strerror(errno));
  pid_t parent = getpid(), pid = st == BTC_OK ? fork() : -1;
  if (st == BTC_OK && pid < 0) st = btc_fail(err, BTC_ERR_IO, "cannot start a rank: %s", strerror(errno));
  if (pid == 0) become(o->program ? o->program : "/proc/self/exe", &a, parent, pair[1], page, o->links_fd);
  if (pair[1] >= 0) close(pair[1]);
  if (page >= 0) close(page);
  free(a.env);
  k->control = pair[0];
  if (st != BTC_OK) {
    shard_process_forget(k);
    return st;
  }
  k->pid = pid;
  k->pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* only wakes us: -1 is fine */
  k->started_ns = k->seen_ns = btc_now_ns();
  k->oom_kills = child_oom_kills();
  return BTC_OK;
}

/* ---- end ---- */

void shard_process_forget(shard_process *k) {
  if (!k->page && !k->pid) return; /* zeroed: its descriptors are none */
  if (k->control >= 0) close(k->control);
  if (k->pidfd >= 0) close(k->pidfd);
  if (k->page) munmap(k->page, sizeof *k->page);
  *k = (shard_process){.control = -1, .pidfd = -1};
}

void shard_process_end(shard_process *k) {
  if (k->pid) {
    kill(k->pid, SIGKILL);
    while (waitpid(k->pid, NULL, 0) < 0 && errno == EINTR) {
    }
  }
  shard_process_forget(k);
}

bool shard_process_died(shard_process *k, char how[64], bool *oom) {
  int status;
  *oom = false;
  if (!k->pid || waitpid(k->pid, &status, WNOHANG) != k->pid) return false;
  if (WIFSIGNALED(status)) *oom = WTERMSIG(status) == SIGKILL && k->oom_kills >= 0 && child_oom_kills() > k->oom_kills;
  if (*oom)
    snprintf(how, 64, "was killed for memory");
  else if (WIFSIGNALED(status))
    snprintf(how, 64, "died by signal %d", WTERMSIG(status));
  else
    snprintf(how, 64, "exited with code %d", WEXITSTATUS(status));
  shard_process_forget(k);
  return true;
}

/* ---- talking ---- */

void shard_process_order(const shard_process *k, const shard_order *o) {
  if (k->pid && send(k->control, o, sizeof *o, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) return;
}

bool shard_process_hear(shard_process *k, shard_report *w) {
  if (!k->pid || recv(k->control, w, sizeof *w, MSG_DONTWAIT) != (ssize_t)sizeof *w || w->version != SHARD_VERSION) return false;
  w->message[sizeof w->message - 1] = 0;
  if (w->said == SHARD_OPEN) {
    k->port = w->port;
    k->nccl = w->nccl;
    memcpy(k->card, w->card, sizeof k->card);
    k->card[sizeof k->card - 1] = 0;
    snprintf(k->no_nccl, sizeof k->no_nccl, "%.*s", (int)sizeof k->no_nccl - 1, w->message);
    k->open = true;
    k->seen_ns = btc_now_ns();
  }
  if (w->said == SHARD_READY) k->ready_epoch = w->epoch;
  return true;
}

bool shard_process_device(const shard_process *k, btc_device_info *out) {
  if (!k->open || !k->page || !k->page->device_memory) return false;
  int32_t busy = __atomic_load_n(&k->page->device_busy, __ATOMIC_RELAXED);
  *out = (btc_device_info){.index = k->page->device_index, .memory_bytes = k->page->device_memory};
  out->free_bytes = __atomic_load_n(&k->page->device_free, __ATOMIC_RELAXED);
  out->busy = busy < 0 ? -1 : busy / 1000.0;
  snprintf(out->name, sizeof out->name, "%.*s", (int)sizeof out->name - 1, k->page->device_name);
  return true;
}

/* ---- watching ---- */

/* One line of /proc: the state's letter, and processor time in ticks. 0: there is no such process. */
static char read_stat(const char *path, uint64_t *ticks) {
  char line[1024];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
  if (fd >= 0) close(fd);
  *ticks = 0;
  if (n <= 0) return 0;
  line[n] = 0;
  const char *at = strrchr(line, ')');
  if (!at || !at[1]) return 0;
  char state = at[2];
  at++;
  for (int field = 3; field < 14 && *at; field++) at += 1 + strcspn(at + 1, " "); /* at the space before field 14 */
  char *end;
  *ticks = strtoul(at, &end, 10);
  *ticks += strtoul(end, &end, 10);
  return state;
}

uint64_t shard_processor_ticks(pid_t pid) {
  char path[64];
  uint64_t ticks;
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  read_stat(path, &ticks);
  return ticks;
}

/* Does any thread want a processor or a disk? Then it is the machine that makes it wait. */
static bool wants_to_run(pid_t pid) {
  char path[64];
  uint64_t ticks;
  bool wants = false;
  snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
  DIR *d = opendir(path);
  for (struct dirent *e; d && !wants && (e = readdir(d));) {
    char file[400];
    if (e->d_name[0] == '.') continue;
    snprintf(file, sizeof file, "%s/%s/stat", path, e->d_name);
    char state = read_stat(file, &ticks);
    wants = state == 'R' || state == 'D';
  }
  if (d) closedir(d);
  return wants;
}

/* A rank that waits turns its counter, one that computes turns it, uses its processor or waits for one: on a busy machine that may
 * take seconds, and to replace it would cost what it holds. */
bool shard_process_stands_still(shard_process *k, int wedge_ms) {
  if (!k->pid) return false;
  int64_t now = btc_now_ns();
  uint64_t alive = __atomic_load_n(&k->page->alive, __ATOMIC_RELAXED), cpu;
  bool moved = alive != k->seen_alive;
  if (!moved && now - k->seen_ns < (int64_t)wedge_ms * 1000000) return false;
  if (!moved && (cpu = shard_processor_ticks(k->pid)) != k->seen_cpu) {
    k->seen_cpu = cpu;
    moved = true;
  }
  if (!moved && !wants_to_run(k->pid)) return true;
  k->seen_alive = alive;
  k->seen_ns = now;
  return false;
}
