/*
 * The command line: exit codes, option tables, messages. Each subcommand is one cmd_*.c with one entry function.
 * Results go to stdout, everything else to stderr, one line `btcchat: WHAT: WHY` an error.
 */
#ifndef BTC_CLI_H
#define BTC_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/engine.h"

/* Exit codes, an outside contract. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_SOME_FAILED = 3, CLI_UNREACHABLE = 4, CLI_INTERRUPTED = 130 };

/* One option. Its value comes from the command line, else the environment (BTCCHAT_ and the name in capitals, '-' as '_'), else the
 * --config file (a JSON object with the names as keys), else what *target held before. */
typedef enum cli_type {
  CLI_FLAG /* bool */,
  CLI_TEXT /* const char * */,
  CLI_INT /* int64_t */,
  CLI_REAL /* double */,
  CLI_CHOICE /* const char *, one of `choices` */
} cli_type;

typedef struct cli_option {
  const char *name; /* "max-tokens" */
  char letter;      /* 0: long only */
  cli_type type;
  void *target;
  const char *value;   /* what --help calls the value: "N", "DIR", "F.png" */
  const char *help;    /* with unit and default; NULL: not listed */
  double low, high;    /* CLI_INT, CLI_REAL: inclusive range */
  const char *choices; /* CLI_CHOICE: "auto|f32|bf16" */
} cli_option;

typedef struct cli_command {
  const char *name;
  const char *arguments; /* "BEFORE AFTER" */
  const char *summary;   /* one line for the list of commands */
  const char *details;   /* paragraphs of --help, may be NULL */
  int (*run)(int argc, char **argv);
} cli_command;

extern const cli_command cmd_caption, cmd_ask, cmd_inspect, cmd_verify, cmd_doctor, cmd_bench;
extern const cli_command cmd_keygen;
extern const cli_command cmd_scene;
extern const cli_command cmd_plan, cmd_report, cmd_find, cmd_diff;
extern const cli_command cmd_submit, cmd_status, cmd_top, cmd_results, cmd_cancel, cmd_pause, cmd_resume, cmd_replay, cmd_dead,
    cmd_workers, cmd_pipes, cmd_drain, cmd_run;
extern const cli_command cmd_worker;
extern const cli_command cmd_broker;

/* Parses argv (argv[0] is the subcommand) by the table. Returns true to go on, with the positional arguments in *args and *n_args;
 * false when there is nothing more to do: *code is then the exit code (0 after --help, 2 after a usage error, with its line
 * printed). */
bool cli_parse(const cli_command *cmd, const cli_option *options, size_t n_options, int argc, char **argv, char ***args,
               int *n_args, int *code);
void cli_free_settings(void); /* frees what the --config file left; call before leaving main */

/* Prints "btcchat: " and the message to stderr, with control characters made visible. */
void cli_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int cli_usage_error(const cli_command *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* returns CLI_USAGE */

/* Becomes 1 at the first SIGINT or SIGTERM (the second kills); pass it to sessions. */
extern volatile int cli_interrupted;
void cli_catch_signals(void);

/* Writes all output before the program says it succeeded: a full disk must not look like success. */
int cli_finish_stdout(int code);
/* The error line for it, with errno as the reason; said once. For commands that stop when their output does. */
void cli_output_failed(void);

#endif
