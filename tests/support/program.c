#define _GNU_SOURCE
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "test.h"

static char *slurp(int fd, size_t *len) {
  off_t size = lseek(fd, 0, SEEK_END);
  char *text = malloc((size_t)size + 1);
  assert_non_null(text);
  lseek(fd, 0, SEEK_SET);
  ssize_t n = read(fd, text, (size_t)size);
  assert_int_equal(n, size);
  text[size] = 0;
  *len = (size_t)size;
  return text;
}

/* Output goes to files, so that a program that says a lot never waits for the test. */
static int scratch_file(void) {
  char name[128];
  snprintf(name, sizeof name, "%s/output-XXXXXX", test_tmp_dir());
  int fd = mkostemp(name, O_CLOEXEC);
  assert_true(fd >= 0);
  unlink(name);
  return fd;
}

static int wait_for(pid_t pid) {
  int status;
  for (int i = 0; i < 12000; i++) {
    pid_t done = waitpid(pid, &status, WNOHANG);
    if (done == pid) return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
  }
  kill(pid, SIGKILL);
  waitpid(pid, &status, 0);
  fail_msg("the program did not end within 120 s");
  return -1;
}

program_result program_run(const char *const args[], const char *env) {
  const char *program = getenv("BTCCHAT_BINARY");
  const char *argv[64] = {program};
  size_t n = 0, len;
  assert_non_null(program);
  while (args[n] && n < 62) {
    argv[n + 1] = args[n];
    n++;
  }
  int out = scratch_file(), err = scratch_file();
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (pid == 0) {
    dup2(out, 1);
    dup2(err, 2);
    close(0);
    open("/dev/null", O_RDONLY);
    if (env) putenv((char *)env);
    execv(program, (char *const *)argv);
    _exit(127);
  }
  program_result r = {.code = wait_for(pid)};
  r.out = slurp(out, &r.out_len);
  char *e = slurp(err, &len);
  snprintf(r.err, sizeof r.err, "%s", e);
  free(e);
  close(out);
  close(err);
  return r;
}

void program_clear(program_result *r) {
  free(r->out);
  r->out = NULL;
}
