/* A list of at most MAX_JOBS entries, most recently used first. */
#define _GNU_SOURCE
#include "jobs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_JOBS = 256, MAX_RATES = 256 };

typedef struct rate {
  char jid[BTC_JID];
  uint64_t ended;
  int64_t at_ns, begun_ns; /* since when it moves; 0: before we looked */
  double per_s;
} rate;

struct btc_jobs {
  btc_job_info *first;
  rate rates[MAX_RATES];
  size_t next_rate;
};

typedef struct lookup {
  btc_broker *b;
  char jid[BTC_JID];
  btc_job_found found;
  void *ctx;
} lookup;

btc_status btc_jobs_create(btc_broker *b, btc_error *err) {
  b->jobs = btc_alloc_zero(1, sizeof *b->jobs);
  return b->jobs ? BTC_OK : btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

static void free_info(btc_job_info *i) {
  if (!i) return;
  free(i->manifest);
  free(i->sha);
  free(i->base);
  free(i->dup);
  free(i);
}

void btc_jobs_destroy(btc_broker *b) {
  if (!b->jobs) return;
  for (btc_job_info *i = b->jobs->first, *next; i; i = next) {
    next = i->next;
    free_info(i);
  }
  free(b->jobs);
  b->jobs = NULL;
}

static btc_job_info *take_out(btc_broker *b, const char *jid) {
  for (btc_job_info **at = &b->jobs->first; *at; at = &(*at)->next) {
    btc_job_info *i = *at;
    if (strcmp(i->jid, jid) != 0) continue;
    *at = i->next;
    return i;
  }
  return NULL;
}

static void put_first(btc_broker *b, btc_job_info *info) {
  info->next = b->jobs->first;
  b->jobs->first = info;
  size_t n = 0;
  for (btc_job_info **at = &b->jobs->first; *at; at = &(*at)->next) {
    if (++n <= MAX_JOBS) continue;
    free_info(*at); /* the last */
    *at = NULL;
    return;
  }
}

void btc_jobs_forget(btc_broker *b, const char *jid) {
  free_info(take_out(b, jid));
}

static bool parse_dups(btc_job_info *i, const char *text) {
  size_t n = *text ? 1 : 0;
  for (const char *c = text; *c; c++) n += *c == ',';
  i->dup = btc_alloc(n + 1, sizeof *i->dup);
  if (!i->dup) return false;
  for (char *at = (char *)text; *at && i->n_dup < n;) {
    i->dup[i->n_dup++] = strtoull(at, &at, 10);
    at += *at == ',';
    if (*at && (*at < '0' || *at > '9')) break;
  }
  return true;
}

static void on_job(void *ctx, const redisReply *r) {
  lookup *l = ctx;
  btc_job_info *i = NULL;
  if (!btc_broker_refused("HMGET job", r) && *btc_answer_text(r, 0)) {
    free_info(take_out(l->b, l->jid));
    i = btc_alloc_zero(1, sizeof *i);
  }
  if (i) {
    snprintf(i->jid, sizeof i->jid, "%s", l->jid);
    i->manifest = btc_strdup(btc_answer_text(r, 0));
    i->sha = btc_strdup(btc_answer_text(r, 1));
    i->base = btc_strdup(btc_answer_text(r, 2));
    if (i->manifest && i->sha && i->base && parse_dups(i, btc_answer_text(r, 3))) {
      put_first(l->b, i);
    } else {
      free_info(i);
      i = NULL;
    }
  }
  l->found(l->ctx, i);
  free(l);
}

bool btc_jobs_get(btc_broker *b, const char *jid, btc_job_found found, void *ctx) {
  btc_job_info *i = take_out(b, jid);
  if (i) {
    put_first(b, i);
    found(ctx, i);
    return true;
  }
  lookup *l = btc_alloc_zero(1, sizeof *l);
  if (!l) return false;
  *l = (lookup){.b = b, .found = found, .ctx = ctx};
  snprintf(l->jid, sizeof l->jid, "%s", jid);
  if (btc_store_command(b->store, on_job, l, "HMGET", btc_store_key(b->store, "job:", jid), "manifest", "sha", "base", "dups",
                        NULL))
    return true;
  free(l);
  return false;
}

btc_io_manifest btc_job_manifest(const btc_job_info *info) {
  return (btc_io_manifest){info->manifest, info->sha, info->base};
}

double btc_jobs_rate(btc_broker *b, const char *jid, uint64_t ended, double since_created_s) {
  static const double settle_s = 10; /* old speed fades in about this time */
  int64_t now = btc_loop_now_ns(b->loop);
  rate *r = NULL;
  for (size_t i = 0; i < MAX_RATES && !r; i++)
    if (strcmp(b->jobs->rates[i].jid, jid) == 0) r = &b->jobs->rates[i];
  if (!r) {
    r = &b->jobs->rates[b->jobs->next_rate++ % MAX_RATES];
    *r = (rate){.ended = ended, .at_ns = now, .per_s = since_created_s > 0 ? (double)ended / since_created_s : 0};
    snprintf(r->jid, sizeof r->jid, "%s", jid);
    return r->per_s;
  }
  double s = (double)(now - r->at_ns) / 1e9;
  if (s < 0.5) return r->per_s;
  if (!(r->per_s > 0))
    r->begun_ns = r->at_ns; /* from rest: what is seen first is the rate, and a plain average follows for a while */
  double seen = ended > r->ended ? (double)(ended - r->ended) / s : 0, share = 2 * s / (s + settle_s);
  double young = s / ((double)(now - r->begun_ns) / 1e9);
  if (share < young) share = young;
  r->per_s += (seen - r->per_s) * (share > 1 ? 1 : share);
  r->ended = ended;
  r->at_ns = now;
  return r->per_s;
}

static void on_paused(void *ctx, const redisReply *r) {
  btc_broker_refused(ctx, r);
}

bool btc_jobs_unreadable(btc_broker *b, const char *jid, const btc_io_reply *reply) {
  char quoted[512];
  bool forever = reply->status == BTC_ERR_NOT_FOUND || reply->status == BTC_ERR_FORMAT || reply->status == BTC_ERR_ARG;
  BTC_LOG_LIMITED(BTC_LOG_WARN, "manifest-unreadable", "jid=%s paused=%d msg=%s", jid, forever,
                  btc_log_quote(quoted, sizeof quoted, reply->message));
  if (!forever) return false;
  char text[600];
  snprintf(text, sizeof text, "paused: %s", reply->message);
  btc_store_call(b->store, on_paused, (void *)"btc_pause", "btc_pause", jid, text, NULL);
  btc_jobs_forget(b, jid);
  return true;
}
