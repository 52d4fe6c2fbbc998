/* Defaults of the daemon; docs/operations.md explains each. */
#include "broker.h"

btc_broker_options btc_broker_options_default(void) {
  return (btc_broker_options){.redis = "redis://127.0.0.1:6379",
                              .queue = "default",
                              .clients = "tcp://127.0.0.1:7411",
                              .workers = "tcp://127.0.0.1:7412",
                              .http = "127.0.0.1:7413",
                              .lease_ms = 30000,
                              .heartbeat_ms = 1000,
                              .dead_ms = 5000,
                              .stall_ms = 60000,
                              .pipe_form_ms = 60000,
                              .max_jobs = 100000,
                              .max_items = 1000000000,
                              .max_out = 1000000,
                              .max_dead = 100000,
                              .window_chunks = 256,
                              .journal_mib = 32};
}
