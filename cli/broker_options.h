/* How a command reaches a broker: the options that all clients of the queue share, and what their failures mean as exit codes. */
#ifndef CLI_BROKER_OPTIONS_H
#define CLI_BROKER_OPTIONS_H

#include "cli.h"
#include "client/client.h"

typedef struct broker_options {
  const char *broker, *keys, *server_key;
  double timeout_s;
} broker_options;

extern const broker_options broker_options_default;

#define BROKER_OPTION_ROWS(o)                                                                       \
  {.name = "broker",                                                                                \
   .type = CLI_TEXT,                                                                                \
   .target = &(o).broker,                                                                           \
   .value = "LIST",                                                                                 \
   .help = "client addresses of brokers, by commas, tried in turn (default tcp://127.0.0.1:7411)"}, \
      {.name = "keys",                                                                              \
       .type = CLI_TEXT,                                                                            \
       .target = &(o).keys,                                                                         \
       .value = "FILE",                                                                             \
       .help = "secret key file of 'btcchat keygen' (default none: loopback only)"},                \
      {.name = "server-key",                                                                        \
       .type = CLI_TEXT,                                                                            \
       .target = &(o).server_key,                                                                   \
       .value = "FILE",                                                                             \
       .help = "the brokers' public key file; goes with --keys"},                                   \
  {                                                                                                 \
    .name = "timeout", .type = CLI_REAL, .target = &(o).timeout_s, .value = "SECONDS",              \
    .help = "how long to wait for an answer, seconds (default 10)", .low = 0.1, .high = 86400       \
  }

/* CLI_OK, or the exit code of what was said already. */
int open_client(const broker_options *o, btc_client **out);
/* Says what went wrong ("WHAT: WHY") and returns the exit code: 4 when nobody answered, 130 when interrupted, else 1. what may be
 * NULL. */
int client_failed(const btc_client *c, const char *what, btc_status st, const btc_error *err);
/* A command without arguments that shows one reply, as a table or with --json: reads the options, connects, calls show. Returns the
 * exit code. */
int run_list(const cli_command *cmd, int argc, char **argv, int (*show)(btc_client *c, bool json));

#endif
