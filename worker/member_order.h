/*
 * What a broker orders with PipeForm, checked against what this worker is, and turned into the orders for its two processes. It is
 * all that a member believes of ranks, ranges and addresses. Pure; any thread.
 */
#ifndef BTC_WORKER_MEMBER_ORDER_H
#define BTC_WORKER_MEMBER_ORDER_H

#include "proto/btcchat.pb-c.h"
#include "shard.h"

enum { MEMBER_PIPE_NAME = 33 /* bytes of a pipe's name, its end included */ };

typedef struct member_self {
  const char *name, *model_class;
  int blocks, change; /* of the model; change: the block at which the language's steps enter */
} member_self;

/* NULL, and both orders are filled: of the rank's process, and of the driver (used when the rank is 0; next_port is the rank's own
 * and stays 0). Else why the order is refused: static text. */
const char *member_order_read(const Btc__PipeForm *f, const member_self *self, shard_order *rank, shard_order *driver);

/* "10.0.0.7:7420" */
bool member_split_endpoint(const char *text, char host[64], int32_t *port);

#endif
