/* Defaults of a worker; `btcchat worker --help` explains each. */
#include "agent.h"

btc_worker_options btc_worker_options_default(void) {
  return (btc_worker_options){.brokers = "tcp://127.0.0.1:7412",
                              .engine = "model",
                              .grace_ms = 60000,
                              .stall_ms = 60000,
                              .device = "cpu",
                              .dtype = "auto",
                              .tensors = "auto",
                              .batch = 8,
                              .link = "127.0.0.1:0",
                              .site = "",
                              .max_tokens = 128};
}
