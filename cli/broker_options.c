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
