/* See member_order.h. */
#include "member_order.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipe.h"

enum { FRAME_MS = 600000, LEAST_MS = 1000, MOST_MS = 600000 };

bool member_split_endpoint(const char *text, char host[64], int32_t *port) {
  const char *colon = strrchr(text, ':');
  char *end;
  struct in_addr address;
  if (!colon || colon == text || (size_t)(colon - text) >= 64) return false;
  memcpy(host, text, (size_t)(colon - text));
  host[colon - text] = 0;
  long n = strtol(colon + 1, &end, 10);
  *port = (int32_t)n;
  return end != colon + 1 && !*end && n >= 0 && n <= 65535 && inet_pton(AF_INET, host, &address) == 1;
}

static const char *refuse(const Btc__PipeForm *f, const member_self *self) {
  char host[64];
  int32_t port;
  if (f->n_ranks < 1 || f->n_ranks > PIPE_MAX_RANKS || f->rank >= f->n_ranks || f->secret.len != BTC_LINK_SECRET || !*f->pipe ||
      strlen(f->pipe) >= MEMBER_PIPE_NAME)
    return "the order to form makes no sense";
  if (strcmp(f->model_class, self->model_class) != 0) return "another model is ordered than the one we have";
  if (strcmp(f->ranks[f->rank]->worker, self->name) != 0) return "the rank is another worker's";
  for (size_t i = 0; i < f->n_ranks; i++) {
    const Btc__PipeRank *r = f->ranks[i];
    if (r->first != (i ? f->ranks[i - 1]->last : 0) || r->last <= r->first || r->last > (uint32_t)self->blocks)
      return "the ranks do not divide the model";
    if (!member_split_endpoint(r->endpoint, host, &port) || !port) return "a rank's endpoint is no ADDRESS:PORT";
  }
  return f->ranks[f->n_ranks - 1]->last == (uint32_t)self->blocks ? NULL : "the ranks do not divide the model";
}

const char *member_order_read(const Btc__PipeForm *f, const member_self *self, shard_order *rank, shard_order *driver) {
  const char *why = refuse(f, self);
  if (why) return why;
  uint32_t deadline = f->deadline_ms < LEAST_MS ? LEAST_MS : f->deadline_ms > MOST_MS ? MOST_MS : f->deadline_ms;
  shard_order o = {.version = SHARD_VERSION,
                   .told = SHARD_FORM,
                   .rank = f->rank,
                   .ranks = (uint32_t)f->n_ranks,
                   .form_ms = (int32_t)deadline,
                   .frame_ms = FRAME_MS,
                   .outside = f->rank > 0,
                   .nccl = f->nccl,
                   .epoch = f->epoch};
  memcpy(o.secret, f->secret.data, sizeof o.secret);
  for (uint32_t i = 0; i < o.ranks; i++)
    if (f->ranks[i]->first <= (uint32_t)self->change) o.entry = i;
  *rank = *driver = o;
  snprintf(driver->shrink, sizeof driver->shrink, "%s", f->out_of_memory);
  /* behind the last rank comes the driver, at rank 0's worker */
  const size_t next = f->rank + 1 < f->n_ranks ? f->rank + 1 : 0;
  member_split_endpoint(f->ranks[next]->endpoint, rank->next_host, &rank->next_port);
  driver->rank = o.ranks;
  snprintf(driver->next_host, sizeof driver->next_host, "127.0.0.1");
  member_split_endpoint(f->ranks[o.entry]->endpoint, driver->entry_host, &driver->entry_port);
  return NULL;
}
