/* See run_children.h. */
#define _GNU_SOURCE
#include "run_children.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "jobs.h"

#define MS INT64_C(1000000)
enum {
  MAX_FAILURES = 5,
  FIRST_WAIT_MS = 200,
  LONGEST_WAIT_MS = 5000,
  LOG_TAIL = 1500,
  LOG_KEEP = 4 << 20,
  USAGE_CODE = 2,
  NOT_FOUND_CODE = 127
};

extern char **environ;

child *children_add(children *c, const run_home *h, const char *name, const char *ready, const char *const argv[]) {
  child *ch = &c->list[c->n];
  if (c->n == CHILDREN_MAX) return NULL;
  *ch = (child){.ready = ready};
  snprintf(ch->name, sizeof ch->name, "%s", name);
  if (snprintf(ch->log, sizeof ch->log, "%s/logs/%s.log", h->inner, name) >= (int)sizeof ch->log) return NULL;
  for (; argv[ch->n_args]; ch->n_args++) {
    if (ch->n_args == CHILD_ARGS - 1 || !(ch->argv[ch->n_args] = btc_strdup(argv[ch->n_args]))) return NULL;
  }
  c->n++;
  return ch;
}

/* ---- starting ---- */

/* Our options must not reach the children by the environment: BTCCHAT_KEYS would be the user's, BTCCHAT_RESULTS another broker's.
 */
static char **clean_environment(void) {
  size_t n = 0, kept = 0;
  while (environ[n]) n++;
  char **env = btc_alloc(n + 1, sizeof *env);
  for (size_t i = 0; env && i < n; i++)
    if (strncmp(environ[i], "BTCCHAT_", 8) != 0) env[kept++] = environ[i];
  if (env) env[kept] = NULL;
  return env;
}

/* Between fork and exec: system calls only. */
static void become(const children *c, const child *ch, int log, pid_t parent, char **env) {
  setpgid(0, 0); /* Ctrl-C is for the run, which stops them in order */
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1); /* it died before the line above */
  signal(SIGPIPE, SIG_DFL);
  int null = open("/dev/null", O_RDONLY);
  if (null >= 0) dup2(null, STDIN_FILENO);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  if (ch->keeps_lock) fcntl(c->lock, F_SETFD, 0);
  if (chdir(c->folder) == 0) execvpe(ch->argv[0], ch->argv, env);
  dprintf(STDERR_FILENO, "cannot start '%s': %s\n", ch->argv[0], strerror(errno));
  _exit(NOT_FOUND_CODE);
}

static int start(children *c, child *ch) {
  char **env = clean_environment();
  int log = open(ch->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  struct stat sb;
  pid_t parent = getpid(), pid = -1;
  if (log >= 0 && fstat(log, &sb) == 0 && sb.st_size > LOG_KEEP && ftruncate(log, 0) == 0) sb.st_size = 0;
  if (env && log >= 0) {
    ch->log_from = sb.st_size;
    pid = fork();
    if (pid == 0) become(c, ch, log, parent, env);
  }
  if (pid < 0) cli_error("cannot start %s: %s", ch->name, strerror(errno));
  if (log >= 0) close(log);
  free(env);
  ch->pid = pid > 0 ? pid : 0;
  return pid > 0 ? CLI_OK : CLI_FAILED;
}

/* ---- their logs ---- */

/* Up to LOG_TAIL bytes of the end of this life's log; the whole of it when whole is set (bounded). malloc'ed. */
static char *read_log(const child *ch, bool whole) {
  int fd = open(ch->log, O_RDONLY | O_CLOEXEC);
  struct stat sb;
  char *text = NULL;
  if (fd >= 0 && fstat(fd, &sb) == 0) {
    off_t from = ch->log_from, most = whole ? 256 << 10 : LOG_TAIL;
    if (sb.st_size < from) from = 0;
    if (!whole && sb.st_size - from > most) from = sb.st_size - most;
    text = btc_alloc_zero((size_t)most + 1, 1);
    if (text && pread(fd, text, (size_t)most, from) < 0) text[0] = 0;
  }
  if (fd >= 0) close(fd);
  return text;
}

bool child_is_ready(const child *ch) {
  char *text = read_log(ch, true);
  bool ready = ch->pid && text && strstr(text, ch->ready);
  free(text);
  return ready;
}

static void show_log(const child *ch) {
  char *text = read_log(ch, false);
  for (char *line = text, *end; line && *line; line = end) {
    end = strchr(line, '\n');
    if (end) *end++ = 0;
    cli_error("%s: %s", ch->name, line);
  }
  cli_error("the whole log is '%s'", ch->log);
  free(text);
}

/* A full disk ends Redis before it can say so in its log, which is on that disk. */
static void explain(const child *ch, int status) {
  enum { LITTLE = 1 << 20 };
  struct statvfs disk;
  if (statvfs(ch->log, &disk) == 0 && (uint64_t)disk.f_bavail * disk.f_frsize < LITTLE)
    cli_error("the disk of '%s' is full: make room and give the same command again; nothing that was finished is lost", ch->log);
  if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_FOUND_CODE && !strchr(ch->argv[0], '/'))
    cli_error("'btcchat run' needs '%s' in PATH: install Redis 7.0 or newer (Debian: the package redis-server)", ch->argv[0]);
}

/* ---- tending ---- */

static int on_death(child *ch, int status) {
  char *text = read_log(ch, true);
  bool was_ready = text && strstr(text, ch->ready);
  free(text);
  ch->pid = 0;
  ch->failures = was_ready ? 1 : ch->failures + 1;
  int64_t wait_ms = FIRST_WAIT_MS << (ch->failures - 1);
  ch->again_ns = btc_now_ns() + (wait_ms < LONGEST_WAIT_MS ? wait_ms : LONGEST_WAIT_MS) * MS;
  bool hopeless = WIFEXITED(status) && (WEXITSTATUS(status) == USAGE_CODE || WEXITSTATUS(status) == NOT_FOUND_CODE);
  if (ch->failures < MAX_FAILURES && !hopeless) return CLI_OK;
  cli_error("%s does not start:", ch->name);
  show_log(ch);
  explain(ch, status);
  return CLI_FAILED;
}

int children_tend(children *c) {
  int64_t now = btc_now_ns();
  for (int i = 0; i < c->n; i++) {
    child *ch = &c->list[i];
    int status, code = CLI_OK;
    if (ch->pid && waitpid(ch->pid, &status, WNOHANG) == ch->pid) code = on_death(ch, status);
    if (code == CLI_OK && !ch->pid && now >= ch->again_ns) code = start(c, ch);
    if (code != CLI_OK) return code;
  }
  return CLI_OK;
}

void children_stop(children *c, int first, int last, int grace_ms) {
  int64_t end = btc_now_ns() + grace_ms * MS;
  for (int i = first; i < last; i++)
    if (c->list[i].pid) kill(c->list[i].pid, SIGTERM);
  for (int left = 1; left;) {
    left = 0;
    bool late = btc_now_ns() >= end;
    for (int i = first; i < last; i++) {
      child *ch = &c->list[i];
      if (ch->pid && late) kill(ch->pid, SIGKILL);
      if (ch->pid && waitpid(ch->pid, NULL, late ? 0 : WNOHANG) == ch->pid) ch->pid = 0;
      left += ch->pid != 0;
    }
    if (left) nanosleep(&(struct timespec){.tv_nsec = 20 * MS}, NULL);
  }
}

void children_free(children *c) {
  children_stop(c, 0, c->n, 0);
  for (int i = 0; i < c->n; i++)
    for (int k = 0; k < c->list[i].n_args; k++) free(c->list[i].argv[k]);
  *c = (children){0};
}
