/* Who may ask what; the requests that change something. */
#include "request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grant.h"
#include "pipes.h"
#include "recover.h"
#include "session.h"
#include "submit.h"

enum { RETRY_MS = 1000, REPLAY_STEP = 256 };

btc_request *btc_request_new(btc_broker *b, const btc_message *m) {
  btc_request *q = btc_alloc_zero(1, sizeof *q);
  if (!q) return NULL;
  q->b = b;
  q->peer = m->from;
  q->req_id = m->req_id;
  snprintf(q->key, sizeof q->key, "%s", m->key);
  return q;
}

bool btc_request_is_limited(const btc_request *q) {
  return q->b->keys && btc_keys_is_limited(q->b->keys, q->key);
}

bool btc_request_sees(const btc_request *q, const char *tenant) {
  return !q->b->keys || btc_keys_may_see(q->b->keys, q->key, tenant);
}

static void on_tenant(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  if (btc_answer_failed(r))
    btc_request_later(q, btc_answer_why(r), 0);
  else
    q->go(q, r->type == REDIS_REPLY_STRING && btc_request_sees(q, r->str));
}

void btc_request_gate(btc_request *q, void (*go)(btc_request *q, bool seen)) {
  q->go = go;
  if (!btc_request_is_limited(q))
    go(q, true);
  else if (!btc_store_command(q->b->store, on_tenant, q, "HGET", btc_store_key(q->b->store, "job:", q->jid), "tenant", NULL))
    btc_request_later(q, "Redis is away", 0);
}

void btc_request_free(btc_request *q) {
  free(q->call);
  free(q);
}

void btc_request_send(btc_request *q, Btc__Envelope *e) {
  btc_broker_send(q->b, q->b->clients, &q->peer, e);
  btc_request_free(q);
}

void btc_request_reply(btc_request *q, bool ok, const char *jid, const char *message) {
  Btc__Reply reply = BTC__REPLY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_REPLY);
  reply.in_reply_to = q->req_id;
  reply.ok = ok;
  reply.jid = (char *)jid;
  reply.message = (char *)message;
  reply.count = q->count;
  e.reply = &reply;
  btc_request_send(q, &e);
}

void btc_request_later(btc_request *q, const char *why, uint32_t retry_ms) {
  btc_broker_nack(q->b, q->b->clients, &q->peer, q->req_id, BTC__NACK_CODE__NACK_BUSY, why, retry_ms ? retry_ms : RETRY_MS);
  btc_request_free(q);
}

/* ---- submit ---- */

static void on_submitted(void *ctx, const btc_submit_outcome *o) {
  btc_request *q = ctx;
  Btc__Reply reply = BTC__REPLY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_REPLY);
  if (o->end == BTC_SUBMIT_LATER) {
    btc_request_later(q, o->message, o->retry_ms);
    return;
  }
  reply.in_reply_to = q->req_id;
  reply.ok = o->end == BTC_SUBMIT_DONE;
  reply.jid = (char *)o->jid;
  reply.existed = o->existed;
  reply.message = (char *)o->message;
  e.reply = &reply;
  BTC_FAILPOINT("before_submit_reply");
  btc_request_send(q, &e);
}

static void take_submit(btc_broker *b, btc_message *m) {
  btc_request *q = btc_request_new(b, m);
  if (!q) return;
  if (b->draining) {
    btc_request_later(q, "the broker stops", RETRY_MS);
    return;
  }
  const Btc__Submit *s = m->envelope->submit;
  const char *tenant = *s->tenant ? s->tenant : "default";
  if (b->keys && !btc_keys_may_submit(b->keys, m->key, tenant, s->priority)) {
    char why[256];
    snprintf(why, sizeof why, "the allow-list does not let this key submit for tenant '%.64s' with priority %u", tenant,
             s->priority);
    btc_broker_nack(b, b->clients, &m->from, m->req_id, BTC__NACK_CODE__NACK_DENIED, why, 0);
    btc_request_free(q);
    return;
  }
  Btc__Envelope *e = m->envelope;
  m->envelope = NULL;
  btc_submit_begin(b, e, "files", "", on_submitted, q);
}

/* ---- commands ---- */

static void on_commanded(void *ctx, const redisReply *r);

/* One call of the command; replay needs several. */
static void command(btc_request *q) {
  static const char *const functions[] = {"btc_cancel", "btc_pause", "btc_resume", "btc_replay"};
  char number[24];
  btc_store *s = q->b->store;
  bool sent;
  snprintf(number, sizeof number, "%d", REPLAY_STEP);
  if (q->verb == BTC__VERB__VERB_REPLAY)
    sent = btc_store_call(s, on_commanded, q, functions[q->verb], q->jid, q->text, q->cursor, number, NULL);
  else if (q->verb == BTC__VERB__VERB_PAUSE)
    sent = btc_store_call(s, on_commanded, q, functions[q->verb], q->jid, *q->text ? q->text : "paused by hand", NULL);
  else
    sent = btc_store_call(s, on_commanded, q, functions[q->verb], q->jid, NULL);
  if (sent && q->verb == BTC__VERB__VERB_CANCEL) q->call = btc_recover_copy(q->b, 0); /* of these the one that nothing takes back */
  if (!sent) btc_request_later(q, "Redis is away", 0);
}

/* [state, [[cid tok wid]...]]: those of our workers learn it now, others at their next extension. */
static void revoke_cancelled(btc_broker *b, const redisReply *r) {
  const redisReply *list = r->elements > 1 && r->element[1]->type == REDIS_REPLY_ARRAY ? r->element[1] : NULL;
  for (size_t i = 0; list && i < list->elements; i++) {
    const redisReply *c = list->element[i];
    uint64_t cid = btc_answer_u64(c, 0), token = btc_answer_u64(c, 1);
    for (btc_session *s = b->sessions; s; s = s->next)
      if (strcmp(s->wid, btc_answer_text(c, 2)) == 0 && btc_hand_find(s, cid, token))
        btc_hand_revoke(b, s, cid, token, "cancelled");
  }
}

static void replayed(btc_request *q, const redisReply *r) {
  q->count += btc_answer_u64(r, 0);
  snprintf(q->cursor, sizeof q->cursor, "%s", btc_answer_text(r, 1));
  if (*q->cursor && strcmp(q->cursor, "0") != 0) {
    command(q);
    return;
  }
  btc_log(BTC_LOG_INFO, "job-replay", "jid=%s items=%" PRIu64, q->jid, q->count);
  btc_grant_poke_all(q->b);
  btc_request_reply(q, true, q->jid, "");
}

static void on_commanded(void *ctx, const redisReply *r) {
  static const char *const names[] = {"cancel", "pause", "resume", "replay"};
  btc_request *q = ctx;
  if (btc_broker_refused("command", r)) {
    if (r && strncmp(r->str, "BAD", 3) == 0)
      btc_request_reply(q, false, q->jid, r->str);
    else
      btc_request_later(q, btc_answer_why(r), 0);
    return;
  }
  if (q->verb == BTC__VERB__VERB_REPLAY) {
    replayed(q, r);
    return;
  }
  char state[16];
  snprintf(state, sizeof state, "%s", r->type == REDIS_REPLY_ARRAY ? btc_answer_text(r, 0) : r->str ? r->str : "");
  if (!*state) {
    btc_request_reply(q, false, q->jid, "there is no such job");
    return;
  }
  btc_log(BTC_LOG_INFO, "job-command", "jid=%s verb=%s state=%s", *q->jid ? q->jid : "-", names[q->verb], state);
  if (q->verb == BTC__VERB__VERB_CANCEL) {
    revoke_cancelled(q->b, r);
    btc_recover_keep(q->b, q->call, 0);
    q->call = NULL;
  }
  if (q->verb == BTC__VERB__VERB_RESUME) btc_grant_poke_all(q->b);
  btc_request_reply(q, true, q->jid, state);
}

static void on_exists(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  if (btc_answer_failed(r))
    btc_request_later(q, btc_answer_why(r), 0);
  else if (r->type == REDIS_REPLY_INTEGER && r->integer)
    command(q);
  else
    btc_request_reply(q, false, q->jid, "there is no such job");
}

static void command_seen(btc_request *q, bool seen) {
  if (!seen)
    btc_request_reply(q, false, q->jid, "there is no such job");
  else if (q->verb != BTC__VERB__VERB_REPLAY)
    command(q);
  else if (!btc_store_command(q->b->store, on_exists, q, "EXISTS", btc_store_key(q->b->store, "job:", q->jid), NULL))
    btc_request_later(q, "Redis is away", 0);
}

static bool may_rule(btc_role role) {
  return role == BTC_ROLE_ADMIN || role == BTC_ROLE_ANY;
}

static void take_command(btc_broker *b, const btc_message *m) {
  const Btc__JobCommand *c = m->envelope->job_command;
  btc_request *q = btc_request_new(b, m);
  if (!q) return;
  bool all = !*c->jid;
  if ((unsigned)c->verb > BTC__VERB__VERB_REPLAY || (!all && !btc_name_valid(c->jid)) || strlen(c->filter) >= sizeof q->text ||
      (all && c->verb != BTC__VERB__VERB_PAUSE && c->verb != BTC__VERB__VERB_RESUME)) {
    btc_request_reply(q, false, "", "this command needs a job's id");
    return;
  }
  if (all && (!may_rule(m->role) || btc_request_is_limited(q))) {
    btc_broker_nack(b, b->clients, &m->from, m->req_id, BTC__NACK_CODE__NACK_DENIED,
                    "only an admin's key without tenants= may pause or resume the queue", 0);
    btc_request_free(q);
    return;
  }
  q->verb = c->verb;
  snprintf(q->jid, sizeof q->jid, "%s", c->jid);
  snprintf(q->text, sizeof q->text, "%s", c->filter);
  snprintf(q->cursor, sizeof q->cursor, "0");
  if (all)
    command(q);
  else
    btc_request_gate(q, command_seen);
}

/* ---- drain ---- */

static void on_elsewhere(void *ctx, const redisReply *r) {
  btc_request *q = ctx;
  char text[256];
  if (btc_answer_failed(r)) {
    btc_request_later(q, btc_answer_why(r), 0);
    return;
  }
  const char *broker = btc_answer_text(r, 0);
  if (*broker)
    snprintf(text, sizeof text, "this worker is connected to broker %s: ask there", broker);
  else
    snprintf(text, sizeof text, "there is no worker of this name");
  btc_request_reply(q, false, "", text);
}

static void take_drain(btc_broker *b, const btc_message *m) {
  const Btc__DrainWorker *d = m->envelope->drain_worker;
  btc_request *q = NULL;
  if (!may_rule(m->role)) {
    btc_broker_nack(b, b->clients, &m->from, m->req_id, BTC__NACK_CODE__NACK_DENIED, "only an admin's key may drain workers", 0);
    return;
  }
  if (!btc_name_valid(d->worker)) {
    btc_broker_nack(b, b->clients, &m->from, m->req_id, BTC__NACK_CODE__NACK_BAD, "not a worker's name", 0);
    return;
  }
  if (!(q = btc_request_new(b, m))) return;
  btc_session *s = btc_session_named(b, d->worker);
  if (!s) {
    if (!btc_store_command(b->store, on_elsewhere, q, "HMGET", btc_store_key(b->store, "wk:", d->worker), "broker", NULL))
      btc_request_later(q, "Redis is away", 0);
    return;
  }
  Btc__DrainRequest drain = BTC__DRAIN_REQUEST__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_DRAIN_REQUEST);
  drain.grace_ms = d->grace_ms;
  e.session = s->id;
  e.drain_request = &drain;
  s->draining = true; /* its next heartbeat says so itself */
  bool sent = btc_broker_send(b, b->workers, &s->peer, &e);
  btc_log(BTC_LOG_INFO, "drain", "worker=%s sent=%d", s->name, sent);
  btc_request_reply(q, sent, "", sent ? "" : "the worker cannot be reached");
}

/* ---- messages ---- */

static void dispatch(btc_broker *b, btc_message *m) {
  switch (m->envelope->body_case) {
    case BTC__ENVELOPE__BODY_SUBMIT:
      take_submit(b, m);
      break;
    case BTC__ENVELOPE__BODY_JOB_COMMAND:
      take_command(b, m);
      break;
    case BTC__ENVELOPE__BODY_STATUS_REQUEST:
      btc_report_status(b, m);
      break;
    case BTC__ENVELOPE__BODY_RESULTS_REQUEST:
      btc_report_results(b, m);
      break;
    case BTC__ENVELOPE__BODY_DEAD_REQUEST:
      btc_report_dead(b, m);
      break;
    case BTC__ENVELOPE__BODY_WORKERS_REQUEST:
      btc_report_workers(b, m);
      break;
    case BTC__ENVELOPE__BODY_PIPES_REQUEST:
      btc_pipes_report(b, m);
      break;
    case BTC__ENVELOPE__BODY_DRAIN_WORKER:
      take_drain(b, m);
      break;
    default:
      btc_broker_nack(b, b->clients, &m->from, m->req_id, BTC__NACK_CODE__NACK_UNKNOWN,
                      "this is no message for a broker's client socket", 0);
  }
}

void btc_request_message(btc_broker *b, btc_message *m) {
  b->messages++;
  if (!m->envelope) {
    bool version = m->error.code == BTC_ERR_UNSUPPORTED;
    b->bad_messages++;
    BTC_LOG_LIMITED(BTC_LOG_WARN, "bad-message", "from=client msg=\"%s\"", m->error.message);
    if (m->from.len)
      btc_broker_nack(b, b->clients, &m->from, m->req_id, version ? BTC__NACK_CODE__NACK_VERSION : BTC__NACK_CODE__NACK_BAD,
                      m->error.message, 0);
  } else if (m->role != BTC_ROLE_CLIENT && m->role != BTC_ROLE_ADMIN && m->role != BTC_ROLE_ANY) {
    btc_broker_nack(b, b->clients, &m->from, m->req_id, BTC__NACK_CODE__NACK_DENIED,
                    "this key may not ask here: its role in the allow-list is not client or admin", 0);
  } else if (!m->req_id) {
    b->bad_messages++; /* it could not be answered */
  } else if (!btc_redis_is_up(b->redis)) {
    btc_broker_nack(b, b->clients, &m->from, m->req_id, BTC__NACK_CODE__NACK_BUSY, "Redis is away", RETRY_MS);
  } else {
    dispatch(b, m);
  }
}
