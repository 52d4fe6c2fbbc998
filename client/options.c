#include "client.h"

btc_client_options btc_client_options_default(void) {
  return (btc_client_options){.brokers = "tcp://127.0.0.1:7411", .timeout_ms = 10000};
}
