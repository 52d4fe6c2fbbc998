/*
 * What the broker's files share: the broker, its sessions and the chunks in workers' hands. All of it belongs to the loop's thread
 * and all of it is soft: after a kill -9 the next broker builds it again from Hello messages and from Redis.
 */
#ifndef BTC_BROKER_CORE_H
#define BTC_BROKER_CORE_H

#include <signal.h>

#include "base/failpoint.h"
#include "broker/broker.h"
#include "broker/io.h"
#include "base/log.h"
#include "broker/metrics.h"
#include "broker/store.h"
#include "net/outbox.h"
#include "net/socket.h"
#include "proto/devices.h"

enum { BTC_JID = 65, BTC_NAME = 65, BTC_CLASS = 129, BTC_SESSIONS = 4096 };

/* A chunk in a worker's hand, from the claim until its last item is settled. */
typedef struct btc_hand {
  struct btc_hand *next;
  uint64_t cid, token, lo;
  char jid[BTC_JID];
  uint32_t n, mask;       /* items it still owes */
  uint32_t unsaved;       /* items whose results are on their way to Redis */
  uint32_t started, told; /* bits that the engine has begun; of them, those that Redis knows */
  uint64_t progress;
  int64_t moved_ns; /* last progress, or when it was handed out */
  uint32_t missing; /* heartbeats in a row that do not name it */
  bool solo, sent;  /* sent: its Grant was acknowledged */
} btc_hand;

typedef enum btc_session_state {
  BTC_SESSION_HELLO, /* Redis is asked whether the name is free */
  BTC_SESSION_SYNC,  /* welcome; what it holds is compared with Redis */
  BTC_SESSION_LIVE
} btc_session_state;

typedef struct btc_session {
  struct btc_session *next;
  uint64_t id, incarnation;
  char name[BTC_NAME], wid[BTC_NAME + 24], model_class[BTC_CLASS], key[41];
  char *engine, *model_name, *program;
  struct btc_pipe_caps *pipe; /* NULL: takes no part in pipes */
  btc_peer_id peer;
  btc_session_state state;
  uint64_t hello_req;
  btc_store_lease *held; /* of Hello, until SYNC is over */
  size_t n_held;
  uint32_t capacity, owed; /* items it wants in hand; items it has */
  bool asks_not;           /* it holds a part of a model and drives no pipe now: no items */
  uint32_t unsaved;        /* items it has sent back, not yet in Redis */
  btc_hand *hands;
  btc_outbox *outbox; /* grants */
  bool suspect, draining, claiming, reaping;
  bool again;                                      /* work came while it claimed: an empty answer may be older than that */
  bool idle;                                       /* its last claim found nothing, and nothing has come since */
  int64_t seen_ns, heard_ns;                       /* when it was last heard of, and when it last heard us, by its heartbeats */
  int64_t born_ns, extend_ns, refresh_ns, hold_ns; /* hold: no claim before */
  int64_t outbox_ns;                               /* next time the outbox has something to do */
  uint64_t items_done, rss_bytes;
  double items_per_s;
  btc_devices *devices; /* as it last told; NULL: it never had one */
  uint64_t acks[64];    /* answered together when the turn ends */
  size_t n_acks;
  uint64_t finished[64]; /* chunks that it has just finished: a heartbeat sent before the acknowledgement still names them */
  size_t n_finished;
} btc_session;

struct btc_expander;
struct btc_ingest;
struct btc_jobs;
struct btc_recovery;

typedef struct btc_broker {
  const btc_broker_options *o;
  char name[BTC_NAME], prefix[96];
  btc_loop *loop;
  void *zmq, *clients, *workers;
  btc_keys *keys;
  btc_zap *zap;
  btc_redis *redis, *feed; /* feed: blocking reads of `in` */
  btc_store *store, *feed_store;
  btc_io *io;
  btc_metrics *metrics;
  struct btc_expander *expander;
  struct btc_ingest *ingest;
  struct btc_jobs *jobs;
  struct btc_pipes *pipes;
  struct btc_recovery *recovery;
  btc_session *sessions;
  size_t n_sessions;
  bool draining;
  int commits;  /* Results on their way to Redis */
  uint64_t seq; /* highest commit number seen: Redis lost history when it knows less */
  uint64_t random;
  int64_t ticked_ns; /* last look at the sessions */
  uint64_t messages, bad_messages, ticks;
  int64_t reap_ns; /* no reaping before */
  int64_t rate_ns;
  uint64_t rate_committed;
  struct btc_sink *sink;
  struct btc_http *http;
  int signals; /* signalfd */
  sigset_t old_mask;
  const char *limits[9]; /* of btc_setup */
  char limit_text[4][24];
  bool started, told; /* Redis was reached once; workers know that we stop */
  int64_t begun_ns, stop_ns;
  btc_status failed; /* why the loop ended */
  btc_error why;
} btc_broker;

uint64_t btc_broker_random(btc_broker *b);
/* Sends to a peer of one of the sockets; a failure is logged and told (false), nothing more. */
bool btc_broker_send(btc_broker *b, void *socket, const btc_peer_id *to, Btc__Envelope *e);
void btc_broker_nack(btc_broker *b, void *socket, const btc_peer_id *to, uint64_t req_id, Btc__NackCode code, const char *message,
                     uint32_t retry_ms);
bool btc_name_valid(const char *s);  /* [A-Za-z0-9._-]{1,64} */
bool btc_class_valid(const char *s); /* [A-Za-z0-9._:-]{0,128} */
/* Redis answered with an error: said, at a bounded rate. True when it failed. */
bool btc_broker_refused(const char *what, const redisReply *r);

#endif
