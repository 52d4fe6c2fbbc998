/* What the process as a whole does: error lines, signals, the last flush. */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

void cli_error(const char *fmt, ...) {
  char text[2048];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  for (char *c = text; *c; c++)
    if (iscntrl((unsigned char)*c)) *c = '?';
  fprintf(stderr, "btcchat: %s\n", text);
}

volatile int cli_interrupted;

static void on_signal(int number) {
  cli_interrupted = 1;
  signal(number, SIG_DFL); /* the second one kills */
}

void cli_catch_signals(void) {
  struct sigaction sa = {.sa_handler = on_signal};
  sigaction(SIGINT, &sa, NULL);
  sigaction(SIGTERM, &sa, NULL);
  signal(SIGPIPE, SIG_IGN); /* a closed pipe is then a write error that says so */
}

void cli_output_failed(void) {
  static bool said;
  if (!said) cli_error("cannot write the results: %s", strerror(errno));
  said = true;
}

int cli_finish_stdout(int code) {
  if (fflush(stdout) == 0 && !ferror(stdout)) return code;
  cli_output_failed();
  return CLI_FAILED;
}
