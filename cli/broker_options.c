/* Reaching a broker, see broker_options.h. */
#include "broker_options.h"

const broker_options broker_options_default = {.broker = "tcp://127.0.0.1:7411", .timeout_s = 10};

int open_client(const broker_options *o, btc_client **out) {
  btc_client_options co = btc_client_options_default();
  btc_error err;
  co.brokers = o->broker;
  co.keys = o->keys;
  co.server_key = o->server_key;
  co.timeout_ms = (int64_t)(o->timeout_s * 1000);
  co.cancel = &cli_interrupted;
  if (btc_client_open(&co, out, &err) == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return err.code == BTC_ERR_ARG ? CLI_USAGE : CLI_FAILED;
}

int client_failed(const btc_client *c, const char *what, btc_status st, const btc_error *err) {
  if (st == BTC_ERR_CANCELLED) {
    cli_error("interrupted");
    return CLI_INTERRUPTED;
  }
  if (what)
    cli_error("%s: %s", what, err->message);
  else
    cli_error("%s", err->message);
  return btc_client_unreachable(c) ? CLI_UNREACHABLE : CLI_FAILED;
}

int run_list(const cli_command *cmd, int argc, char **argv, int (*show)(btc_client *c, bool json)) {
  broker_options b = broker_options_default;
  bool json = false;
  cli_option table[] = {
      BROKER_OPTION_ROWS(b),
      {.name = "json", .type = CLI_FLAG, .target = &json, .help = "print one JSON array"},
  };
  char **args;
  int n, code;
  btc_client *c = NULL;
  if (!cli_parse(cmd, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n) return cli_usage_error(cmd, "no arguments expected, got %d", n);
  if ((code = open_client(&b, &c)) == CLI_OK) code = show(c, json);
  btc_client_close(&c);
  return code;
}
