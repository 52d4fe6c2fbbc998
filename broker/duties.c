/* Periods in turns of the 50 ms tick. */
#include "duties.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "expand.h"
#include "grant.h"
#include "ingest.h"
#include "pipes.h"
#include "recover.h"
#include "session.h"

enum { EACH_100_MS = 2, EACH_250_MS = 5, EACH_1_S = 20, EACH_10_S = 200, STEP = 256, REAP_REST_MS = 2000 };

static void on_promoted(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  if (!btc_broker_refused("btc_promote", r) && r->type == REDIS_REPLY_INTEGER && r->integer > 0)
    btc_grant_wake(b, "", (uint64_t)r->integer);
}

static void on_reaped(void *ctx, const redisReply *r) {
  btc_broker *b = ctx;
  if (btc_broker_refused("btc_reap", r) || r->type != REDIS_REPLY_INTEGER || r->integer <= 0) return;
  BTC_LOG_LIMITED(BTC_LOG_WARN, "leases-expired", "chunks=%lld", r->integer);
  btc_grant_poke_all(b);
  if (r->integer >= STEP) btc_store_call(b->store, on_reaped, b, "btc_reap", "256", NULL);
}

static void on_tidied(void *ctx, const redisReply *r) {
  (void)ctx;
  btc_broker_refused("btc_tidy", r);
}

static void on_totals(void *ctx, const redisReply *r) {
  static const btc_metric which[] = {BTC_METRIC_READY,  BTC_METRIC_LEASED, BTC_METRIC_DELAYED,     BTC_METRIC_SUSPECTS,
                                     BTC_METRIC_PAUSED, BTC_METRIC_JOBS,   BTC_METRIC_OUT_ENTRIES, BTC_METRIC_RES_ENTRIES};
  btc_broker *b = ctx;
  if (btc_broker_refused("btc_totals", r)) return;
  for (size_t i = 0; i < sizeof which / sizeof which[0]; i++) btc_metrics_set(b->metrics, which[i], (double)btc_answer_u64(r, i));
  btc_metrics_set(b->metrics, BTC_METRIC_OLDEST_READY_SECONDS, (double)btc_answer_u64(r, 8) / 1e3);
  btc_recover_seen(b, btc_answer_u64(r, 9)); /* others' commits too: a broker that does nothing must notice a loss as well */
  btc_metrics_set(b->metrics, BTC_METRIC_FSYNC_MS, (double)btc_redis_lag_ms(b->redis));
}

/* The speed of all brokers together, out of what Redis counts. */
static void take_rate(btc_broker *b, uint64_t committed, uint64_t open) {
  int64_t now = btc_loop_now_ns(b->loop);
  double s = (double)(now - b->rate_ns) / 1e9, rate = btc_metrics_get(b->metrics, BTC_METRIC_ITEMS_PER_SECOND);
  if (b->rate_ns && s > 0.2 && committed >= b->rate_committed) rate += ((double)(committed - b->rate_committed) / s - rate) * 0.2;
  b->rate_ns = now;
  b->rate_committed = committed;
  btc_metrics_set(b->metrics, BTC_METRIC_ITEMS_PER_SECOND, rate);
  btc_metrics_set(b->metrics, BTC_METRIC_BACKLOG_SECONDS, rate > 0 ? (double)open / rate : 0);
}

static void on_stat(void *ctx, const redisReply *r) {
  static const struct {
    const char *field;
    btc_metric metric;
  } which[] = {
      {"committed", BTC_METRIC_ITEMS_DONE},    {"dead", BTC_METRIC_ITEMS_DEAD},   {"cancelled", BTC_METRIC_ITEMS_CANCELLED},
      {"ingested", BTC_METRIC_ITEMS_INGESTED}, {"dup", BTC_METRIC_DUP_REJECTED},  {"late", BTC_METRIC_LATE_ACCEPTED},
      {"reaped", BTC_METRIC_REAPED},           {"released", BTC_METRIC_RELEASED}, {"retried", BTC_METRIC_RETRIED},
      {"crashed", BTC_METRIC_CRASHED}};
  btc_broker *b = ctx;
  if (btc_broker_refused("stat", r)) return;
  for (size_t i = 0; i < sizeof which / sizeof which[0]; i++)
    btc_metrics_set(b->metrics, which[i].metric, (double)btc_answer_field_u64(r, which[i].field));
  take_rate(b, btc_answer_field_u64(r, "committed"), btc_answer_field_u64(r, "live_items"));
}

static double rss_bytes(void) {
  char text[128] = "", *second;
  FILE *f = fopen("/proc/self/statm", "re");
  if (!f) return 0;
  if (!fgets(text, sizeof text, f)) text[0] = 0;
  fclose(f);
  strtoull(text, &second, 10);
  return (double)strtoull(second, NULL, 10) * (double)sysconf(_SC_PAGESIZE);
}

static void own_numbers(btc_broker *b) {
  double credits = 0;
  uint64_t live = 0;
  for (btc_session *s = b->sessions; s; s = s->next) {
    if (s->capacity > s->owed && !s->draining && !s->asks_not) credits += s->capacity - s->owed;
    live += s->state != BTC_SESSION_HELLO && !s->reaping;
  }
  btc_metrics_set(b->metrics, BTC_METRIC_CREDITS, credits);
  btc_metrics_set(b->metrics, BTC_METRIC_WORKERS, (double)live);
  btc_metrics_set(b->metrics, BTC_METRIC_COMMIT_LAG, b->commits);
  btc_metrics_set(b->metrics, BTC_METRIC_IO_PENDING, (double)btc_io_pending(b->io));
  btc_metrics_set(b->metrics, BTC_METRIC_RSS_BYTES, rss_bytes());
  btc_metrics_set(b->metrics, BTC_METRIC_MESSAGES, (double)b->messages);
  btc_metrics_set(b->metrics, BTC_METRIC_BAD_MESSAGES, (double)b->bad_messages);
  btc_metrics_health(b->metrics, BTC_HEALTH_LOOP, !b->draining, b->draining ? "the broker drains" : "");
  btc_metrics_beat(b->metrics);
}

void btc_duties_up(btc_broker *b) {
  int64_t now = btc_loop_now_ns(b->loop);
  /* While Redis was away nobody could extend: what our workers hold comes first, what expired is looked at afterwards. */
  for (btc_session *s = b->sessions; s; s = s->next) s->extend_ns = s->refresh_ns = 0;
  b->reap_ns = now + (int64_t)REAP_REST_MS * 1000000;
  btc_session_tick(b);
  btc_ingest_claim(b);
  btc_ingest_poke(b);
  btc_expander_tick(b);
  btc_grant_poke_all(b);
}

void btc_duties_tick(btc_broker *b) {
  uint64_t t = b->ticks++;
  bool up = btc_redis_is_up(b->redis);
  if (t % EACH_1_S == 0) own_numbers(b);
  if (t % EACH_100_MS == 0) btc_session_tick(b);
  if (!up && t % EACH_1_S == 0 && *btc_redis_trouble(b->redis)) /* also when it never was there */
    btc_metrics_health(b->metrics, BTC_HEALTH_REDIS, false, btc_redis_trouble(b->redis));
  if (up && t % EACH_250_MS == 0) btc_recover_tick(b);
  if (!up || btc_recover_busy(b)) return;
  btc_grant_tick(b);
  if (t % EACH_100_MS == 0) {
    btc_store_call(b->store, on_promoted, b, "btc_promote", "200", NULL);
    btc_expander_tick(b);
    btc_ingest_poke(b);
    btc_pipes_tick(b);
  }
  if (t % EACH_250_MS == 0 && btc_loop_now_ns(b->loop) >= b->reap_ns)
    btc_store_call(b->store, on_reaped, b, "btc_reap", "256", NULL);
  if (t % EACH_10_S == EACH_10_S - 1) btc_ingest_claim(b);
  if (t % EACH_1_S == 1) {
    btc_store_call(b->store, on_tidied, b, "btc_tidy", "200", NULL);
    btc_store_call(b->store, on_totals, b, "btc_totals", NULL);
    btc_store_command(b->store, on_stat, b, "HGETALL", btc_store_key(b->store, "stat", ""), NULL);
  }
}
