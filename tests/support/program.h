/* Runs the btcchat program as a user would, and keeps what it said. */
#ifndef TEST_PROGRAM_H
#define TEST_PROGRAM_H

#include <stddef.h>

typedef struct program_result {
  int code;  /* exit code; -signal when a signal ended it */
  char *out; /* stdout, terminated; may be long */
  size_t out_len;
  char err[8192]; /* the beginning of stderr */
} program_result;

/* args: NULL-terminated, without the program's name. A run over 120 s is killed and fails the test. env: "NAME=VALUE" or NULL.
 * The result's out is freed by program_clear. */
program_result program_run(const char *const args[], const char *env);
void program_clear(program_result *r);
#define RUN(...) program_run((const char *const[]){__VA_ARGS__, NULL}, NULL)

#endif
