/* A btcchat daemon (broker, worker) or any other command run by a test: started, killed, stopped, waited for; its output kept in a
 * file and shown only when a test fails. Everything started is killed when the test program ends. */
#ifndef TEST_DAEMON_H
#define TEST_DAEMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { DAEMON_MAX_ARGS = 48, DAEMON_ARG = 256 };

typedef struct daemon_process {
  pid_t pid; /* 0: not running */
  int code;  /* exit code, or -signal, of the last end that daemon_alive saw */
  char args[DAEMON_MAX_ARGS][DAEMON_ARG];
  int n_args;
  char env[4][DAEMON_ARG]; /* NAME=VALUE, "" ends */
  char log[160];           /* stdout and stderr, appended over restarts */
} daemon_process;

/* args: NULL-terminated, without the program's name (BTCCHAT_BINARY); name: of the log. Does not start. */
void daemon_init(daemon_process *d, const char *name, const char *const args[]);
void daemon_env(daemon_process *d, const char *assignment);
void daemon_start(daemon_process *d);
/* Waits until its log holds `text` behind what it held at the start; fails the test after ms. */
void daemon_wait_log(daemon_process *d, const char *text, int ms);
bool daemon_alive(daemon_process *d); /* reaps it when it is not */
void daemon_signal(daemon_process *d, int signal);
/* SIGKILL, and waits. Fine when it is not running. */
void daemon_kill(daemon_process *d);
/* SIGTERM, waits up to ms, fails the test when it does not end. Returns its exit code, or -signal. */
int daemon_stop(daemon_process *d, int ms);
/* Waits for its own end. */
int daemon_wait(daemon_process *d, int ms);
/* Does its log hold `text` since the last start? */
bool daemon_said(const daemon_process *d, const char *text);
/* The last whole line of its log since the last start that is no line of an error; false when there is none. */
bool daemon_log_line(const daemon_process *d, char *line, size_t len);
/* The last lines of the log, to stderr. */
void daemon_show(const daemon_process *d);

/* A free loopback port. */
int test_free_port(void);
void test_sleep_ms(int ms);
int64_t test_now_ms(void);

#endif
