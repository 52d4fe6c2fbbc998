#define _GNU_SOURCE
#include "daemon.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

void test_sleep_ms(int ms) {
  struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {
  }
}

int64_t test_now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* Below the ports that the kernel gives to outgoing connections: one of those, free a moment ago, may be some client's when the
 * daemon wants to listen on it. Each process begins at random and goes on from there, so that two seldom want the same. */
int test_free_port(void) {
  enum { FIRST = 12000, PORTS = 20000 };
  static unsigned at;
  if (!at) assert_int_equal(getrandom(&at, sizeof at, 0), sizeof at);
  for (int tries = 0; tries < PORTS; tries++) {
    const int port = FIRST + (int)(at++ % PORTS);
    const struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    bool is_free = bind(fd, (const struct sockaddr *)&a, sizeof a) == 0;
    close(fd);
    if (is_free) return port;
  }
  fail_msg("no free port on the loopback address");
  return 0;
}

void daemon_init(daemon_process *d, const char *name, const char *const args[]) {
  memset(d, 0, sizeof *d);
  snprintf(d->log, sizeof d->log, "%s/%s.log", test_tmp_dir(), name);
  for (; args[d->n_args]; d->n_args++) {
    assert_true(d->n_args < DAEMON_MAX_ARGS - 2);
    int n = snprintf(d->args[d->n_args], DAEMON_ARG, "%s", args[d->n_args]);
    assert_in_range(n, 0, DAEMON_ARG - 1);
  }
}

void daemon_env(daemon_process *d, const char *assignment) {
  for (int i = 0; i < 4; i++)
    if (!d->env[i][0]) {
      snprintf(d->env[i], DAEMON_ARG, "%s", assignment);
      return;
    }
  fail_msg("too many variables");
}

void daemon_start(daemon_process *d) {
  const char *program = getenv("BTCCHAT_BINARY");
  char *argv[DAEMON_MAX_ARGS] = {(char *)program};
  assert_non_null(program);
  assert_int_equal(d->pid, 0);
  d->code = 0;
  for (int i = 0; i < d->n_args; i++) argv[i + 1] = d->args[i];
  int out = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  assert_true(out >= 0);
  dprintf(out, "--- start\n");
  d->pid = fork();
  assert_true(d->pid >= 0);
  if (d->pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that dies leaves nothing behind */
    dup2(out, 1);
    dup2(out, 2);
    close(0);
    open("/dev/null", O_RDONLY);
    for (int i = 0; i < 4 && d->env[i][0]; i++) putenv(d->env[i]);
    execv(program, argv);
    _exit(127);
  }
  close(out);
}

static char *read_log(const daemon_process *d) {
  FILE *f = fopen(d->log, "re");
  if (!f) return strdup("");
  fseek(f, 0, SEEK_END);
  long n = ftell(f);
  rewind(f);
  char *text = calloc(1, (size_t)n + 1);
  assert_non_null(text);
  size_t got = fread(text, 1, (size_t)n, f);
  text[got] = 0;
  fclose(f);
  return text;
}

void daemon_show(const daemon_process *d) {
  char *text = read_log(d), *from = text;
  size_t n = strlen(text);
  if (n > 6000) from = text + n - 6000;
  fprintf(stderr, "===== %s\n%s\n", d->log, from);
  free(text);
}

/* Where the last run's lines begin. */
static char *last_run(char *all) {
  static const char mark[] = "--- start\n";
  char *last = all, *next = all;
  while ((next = strstr(next, mark))) last = next += strlen(mark);
  return last;
}

bool daemon_said(const daemon_process *d, const char *text) {
  char *all = read_log(d);
  bool found = strstr(last_run(all), text) != NULL;
  free(all);
  return found;
}

bool daemon_log_line(const daemon_process *d, char *line, size_t len) {
  char *all = read_log(d);
  bool found = false;
  for (char *at = last_run(all), *end; (end = strchr(at, '\n')); at = end + 1) {
    *end = 0;
    if (strncmp(at, "btcchat: ", 9) == 0) continue;
    snprintf(line, len, "%s", at);
    found = true;
  }
  free(all);
  return found;
}

void daemon_wait_log(daemon_process *d, const char *text, int ms) {
  int64_t end = test_now_ms() + ms;
  while (!daemon_said(d, text)) {
    if (!daemon_alive(d) || test_now_ms() > end) {
      daemon_show(d);
      fail_msg("'%s' did not appear", text);
    }
    test_sleep_ms(10);
  }
}

static int code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool daemon_alive(daemon_process *d) {
  int status;
  if (d->pid && waitpid(d->pid, &status, WNOHANG) == d->pid) {
    d->pid = 0;
    d->code = code_of(status);
  }
  return d->pid != 0;
}

void daemon_signal(daemon_process *d, int signal) {
  if (d->pid) kill(d->pid, signal);
}

void daemon_kill(daemon_process *d) {
  if (!d->pid) return;
  kill(d->pid, SIGKILL);
  waitpid(d->pid, NULL, 0);
  d->pid = 0;
  d->code = 0;
}

int daemon_wait(daemon_process *d, int ms) {
  int status;
  int64_t end = test_now_ms() + ms;
  assert_true(d->pid != 0);
  while (waitpid(d->pid, &status, WNOHANG) != d->pid) {
    if (test_now_ms() > end) {
      daemon_show(d);
      daemon_kill(d);
      fail_msg("%s did not end within %d ms", d->args[0], ms);
    }
    test_sleep_ms(5);
  }
  d->pid = 0;
  return code_of(status);
}

int daemon_stop(daemon_process *d, int ms) {
  daemon_signal(d, SIGTERM);
  return daemon_wait(d, ms);
}
