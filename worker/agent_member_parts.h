/* What the files of a member share: its state, its orders (agent_member_form.c), the watch over its processes and its life
 * (agent_member.c). */
#ifndef BTC_WORKER_AGENT_MEMBER_PARTS_H
#define BTC_WORKER_AGENT_MEMBER_PARTS_H

#include "agent_member.h"
#include "device_list.h"
#include "measure.h"
#include "member_order.h"
#include "shard_process.h"

typedef enum member_state { MEMBER_IDLE, MEMBER_FORMING, MEMBER_READY, MEMBER_ACTIVE } member_state;

struct member {
  bool on;               /* the child said what the model is made of, and that it does not fit */
  int links_fd, control; /* control: our end to the driver; -1: there is none */
  char endpoint[80];
  measure_result caps;
  int blocks, change; /* change: the block at which the language's steps enter */
  shard_process shard;
  int first, last; /* of its process */
  member_state st;
  char id[MEMBER_PIPE_NAME];
  uint64_t epoch;
  uint32_t rank, ranks;
  shard_order shard_order, driver_order;
  bool ordered, shard_ready, driver_ready;
  int64_t idle_ns; /* since when it has not been ACTIVE */
  btc_timer *timer;
  /* of the driver, while it has items */
  uint64_t seen_progress, seen_cpu;
  int64_t seen_ns;
  /* of our rank */
  uint64_t busy_ns, items;
  int64_t load_ns;
  double busy, ms;
  Btc__PipeLoad load;
  btc_devices devices; /* of its process, for the message under way */
};

bool member_drives(const member *m);       /* is rank 0 of an epoch that is not over */
bool member_idle_too_long(const agent *a); /* without a pipe that computes */

/* agent_member_form.c */
void member_try_order(agent *a); /* orders go out when whoever gets them is there */
void member_try_ready(agent *a);
/* Ends the epoch, and tells the broker. NOMEM: a rank had no memory, and the next epoch is to hold less. */
void member_broken(agent *a, btc_status st, const char *cause);
void member_hand_back(agent *a, const char *why); /* all items */

/* agent_member.c */
btc_status member_start_shard(agent *a, int first, int last, btc_error *err);
void member_listen(agent *a); /* takes what our processes have said */
void member_tell_driver(const member *m, shard_told told);

#endif
