/*
 * The agent's inside: four files share one struct. agent.c owns its life (signals, drain, end), agent_link.c the conversation with
 * the broker, agent_engine.c the child, agent_member.c the part in pipelines of several workers. One thread, one loop.
 */
#ifndef BTC_WORKER_AGENT_PARTS_H
#define BTC_WORKER_AGENT_PARTS_H

#include "agent.h"
#include "child.h"
#include "ledger.h"
#include "net/loop.h"
#include "net/outbox.h"
#include "proto/devices.h"

enum { AGENT_MAX_BROKERS = 16, AGENT_HEARTBEAT_MS = 1000 };
#define AGENT_MS INT64_C(1000000) /* in ns */

typedef enum agent_phase {
  AGENT_LOADING, /* the first child is not ready */
  AGENT_WORKING,
  AGENT_DRAINING, /* finishing what the child has */
  AGENT_CLOSING,  /* everything is handed back: waiting for the broker's answers */
  AGENT_LEAVING   /* Bye is said */
} agent_phase;

typedef struct member member; /* agent_member.h */

typedef struct agent {
  const btc_worker_options *o;
  char name[65];
  uint64_t incarnation;
  btc_loop *loop;
  ledger *ledger;
  btc_outbox *outbox;
  size_t credits, batch;
  agent_phase phase;
  int64_t deadline_ns; /* of draining or closing */
  int signal_fd;
  btc_status status; /* how it ends */
  btc_error error;
  /* link */
  void *zmq, *socket;
  btc_keys *keys;
  char *broker_list, *brokers[AGENT_MAX_BROKERS];
  size_t n_brokers, broker;
  uint64_t session; /* 0: Hello is not answered */
  int64_t heartbeat_ms, answered_ns, beat_ns;
  uint64_t beats;
  bool welcomed, beat_wanted; /* ever; sooner than the interval */
  int64_t waits_ns;           /* when it was last said that no broker takes us; 0: since the last welcome not at all */
  btc_timer *beat_timer, *hello_timer, *outbox_timer, *results_timer;
  /* engine */
  member *member; /* NULL: it takes no part in pipelines */
  child *child;
  bool child_ready;
  btc_devices devices; /* as the child last told; none while it is away */
  char model_class[96], model_name[128], load_failure[512];
  char known[256];   /* of the model's files, as the last child said: the next one gets it */
  int failed_starts; /* in a row */
  int idle_deaths;   /* without an item started, in a row */
  int device_losses; /* without an item done, in a row */
  int64_t child_started_ns, progress_ns, watch_ns;
  uint64_t progress, child_progress; /* of all work; the child's last counter */
  double item_ms;                    /* moving average of one item, start to end */
  uint64_t items_done, items_done_at_beat;
  double items_per_s;
  int64_t rate_ns;
  btc_timer *restart_timer, *watch_timer;
} agent;

/* one event a line on stderr, key=value */
void agent_log(const agent *a, const char *event, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void agent_fail(agent *a, btc_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4))); /* ends the loop with this error */
void agent_drain(agent *a, int64_t grace_ms, const char *why);

btc_status agent_split_brokers(agent *a, btc_error *err); /* the list that was given */

btc_status link_open(agent *a, btc_error *err); /* checks addresses and keys; does not connect */
void link_close(agent *a);
void link_connect(agent *a);   /* to the current broker, with Hello */
void link_want_beat(agent *a); /* a heartbeat soon */
void link_send_results(agent *a, bool all);
/* Hands chunks with open items back and forgets them; idle_only: those of which the child has nothing. */
void link_release_chunks(agent *a, bool idle_only);
void link_bye(agent *a, const char *why);
void link_flush(agent *a); /* what is due leaves, timers are set */

btc_status engine_open(agent *a, btc_error *err);
void engine_close(agent *a);
void engine_start(agent *a);
void engine_feed(agent *a); /* gives the child items */
size_t engine_free_items(const agent *a);
uint64_t engine_resident_bytes(const agent *a); /* of the child */
void engine_update_rate(agent *a);
bool engine_hopeless(const agent *a); /* it does not start any more: nothing is taken on until it does */

#endif
