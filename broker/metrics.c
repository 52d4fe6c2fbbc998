/* Numbers of a broker: see metrics.h. */
#define _GNU_SOURCE
#include "broker/metrics.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORKERS 1000
#define BEAT_LATE_NS 10000000000

typedef struct worker_numbers {
  char name[72];
  bool up;
  double credits, in_hand, items_per_s;
} worker_numbers;

struct btc_metrics {
  pthread_mutex_t lock;
  char queue[72], broker[136];
  double value[BTC_METRIC_COUNT];
  bool healthy[BTC_HEALTH_COUNT];
  char why[BTC_HEALTH_COUNT][160];
  int64_t beat_ns; /* 0: never */
  worker_numbers *worker;
  size_t n_workers;
  btc_metric_pipe *pipe; /* [n_pipes] */
  size_t n_pipes;
};

static const struct {
  const char *name, *type, *labels, *help; /* labels: more of them, or "" */
} described[] = {
    [BTC_METRIC_READY] = {"btc_ready", "gauge", "", "Chunks that wait for a worker"},
    [BTC_METRIC_LEASED] = {"btc_leased", "gauge", "", "Chunks in the hands of workers"},
    [BTC_METRIC_DELAYED] = {"btc_delayed", "gauge", "", "Chunks that wait for their next attempt"},
    [BTC_METRIC_SUSPECTS] = {"btc_suspects", "gauge", "", "Items that wait to run alone"},
    [BTC_METRIC_JOBS] = {"btc_jobs", "gauge", "", "Open jobs"},
    [BTC_METRIC_PAUSED] = {"btc_paused", "gauge", "", "1: the queue is paused"},
    [BTC_METRIC_OUT_ENTRIES] = {"btc_out_entries", "gauge", "", "Records in the stream out"},
    [BTC_METRIC_RES_ENTRIES] = {"btc_res_entries", "gauge", "", "Records that wait for the sink"},
    [BTC_METRIC_OLDEST_READY_SECONDS] = {"btc_oldest_ready_seconds", "gauge", "", "Age of the oldest ready chunk"},
    [BTC_METRIC_BACKLOG_SECONDS] = {"btc_backlog_seconds", "gauge", "", "Items to do over the rate of all workers"},
    [BTC_METRIC_ITEMS_PER_SECOND] = {"btc_items_per_second", "gauge", "", "Rate of all workers of this broker"},
    [BTC_METRIC_CREDITS] = {"btc_credits", "gauge", "", "Items that workers would take now"},
    [BTC_METRIC_COMMIT_LAG] = {"btc_commit_lag", "gauge", "", "Results that Redis has not confirmed yet"},
    [BTC_METRIC_FSYNC_MS] = {"btc_fsync_ms", "gauge", "", "Round trip of the last write to Redis"},
    [BTC_METRIC_CLIENTS] = {"btc_clients", "gauge", "", "Clients seen in the last minute"},
    [BTC_METRIC_WORKERS] = {"btc_workers", "gauge", "", "Workers of this broker"},
    [BTC_METRIC_IO_PENDING] = {"btc_io_pending", "gauge", "", "Requests to the disk thread"},
    [BTC_METRIC_RSS_BYTES] = {"btc_rss_bytes", "gauge", "", "Resident memory of this broker"},
    [BTC_METRIC_ITEMS_DONE] = {"btc_items_total", "counter", ",state=\"done\"", "Items by the state they ended in"},
    [BTC_METRIC_ITEMS_DEAD] = {"btc_items_total", "counter", ",state=\"dead\"", NULL},
    [BTC_METRIC_ITEMS_CANCELLED] = {"btc_items_total", "counter", ",state=\"cancelled\"", NULL},
    [BTC_METRIC_ITEMS_INGESTED] = {"btc_ingested_total", "counter", "", "Items taken from the stream in"},
    [BTC_METRIC_DUP_REJECTED] = {"btc_dup_rejected", "counter", "", "Results of items that were done already"},
    [BTC_METRIC_LATE_ACCEPTED] = {"btc_late_accepted", "counter", "", "Results taken from a worker whose lease had ended"},
    [BTC_METRIC_REAPED] = {"btc_reaped", "counter", "", "Chunks taken back from lost workers"},
    [BTC_METRIC_RELEASED] = {"btc_released", "counter", "", "Chunks handed back"},
    [BTC_METRIC_RETRIED] = {"btc_retried", "counter", "", "Attempts after a transient failure"},
    [BTC_METRIC_CRASHED] = {"btc_crashed", "counter", "", "Engine deaths while an item ran alone"},
    [BTC_METRIC_MESSAGES] = {"btc_messages", "counter", "", "Messages taken by this broker"},
    [BTC_METRIC_BAD_MESSAGES] = {"btc_bad_messages", "counter", "", "Messages refused as malformed or not allowed"},
    [BTC_METRIC_REDIS_RECONNECTS] = {"btc_redis_reconnects", "counter", "", "Connections to Redis after the first"},
    [BTC_METRIC_HISTORY_LOST] = {"btc_history_lost", "counter", "", "Times that Redis came back without its last writes"},
    [BTC_METRIC_HISTORY_RESTORED] = {"btc_history_restored_items", "counter", "", "Items that such a Redis was told again"},
    [BTC_METRIC_HISTORY_TOO_OLD] = {"btc_history_too_old_items", "counter", "", "Items lost so that no journal had any more"},
    [BTC_METRIC_JOURNAL_BYTES] = {"btc_journal_bytes", "gauge", "", "Memory of what would be repeated should Redis lose it"},
    [BTC_METRIC_SINK_ACTIVE] = {"btc_sink_active", "gauge", "", "1: this broker writes the part files"},
    [BTC_METRIC_SINK_BLOCKED] = {"btc_sink_blocked", "gauge", "", "1: the results folder takes nothing"},
    [BTC_METRIC_SINK_RECORDS] = {"btc_sink_records", "counter", "", "Records sealed by this broker"},
    [BTC_METRIC_SINK_PARTS] = {"btc_sink_parts", "counter", "", "Part files sealed by this broker"},
    [BTC_METRIC_SINK_DUPLICATES] = {"btc_sink_duplicates", "counter", "", "Records that lay in a part already"},
};
_Static_assert(sizeof described / sizeof described[0] == BTC_METRIC_COUNT, "every metric is described");

static const char *const health_names[BTC_HEALTH_COUNT] = {"redis", "library", "sink", "loop"};

btc_metrics *btc_metrics_create(const char *queue, const char *broker) {
  btc_metrics *m = btc_alloc_zero(1, sizeof *m);
  if (!m) return NULL;
  m->worker = btc_alloc_zero(MAX_WORKERS, sizeof *m->worker);
  if (!m->worker) {
    free(m);
    return NULL;
  }
  pthread_mutex_init(&m->lock, NULL);
  snprintf(m->queue, sizeof m->queue, "%s", queue);
  snprintf(m->broker, sizeof m->broker, "%s", broker);
  return m;
}

void btc_metrics_destroy(btc_metrics **metrics) {
  btc_metrics *m = *metrics;
  *metrics = NULL;
  if (!m) return;
  pthread_mutex_destroy(&m->lock);
  free(m->worker);
  free(m->pipe);
  free(m);
}

/* ---- writing ---- */

void btc_metrics_set(btc_metrics *m, btc_metric which, double value) {
  if (!m) return;
  pthread_mutex_lock(&m->lock);
  m->value[which] = value;
  pthread_mutex_unlock(&m->lock);
}

void btc_metrics_add(btc_metrics *m, btc_metric which, double value) {
  if (!m) return;
  pthread_mutex_lock(&m->lock);
  m->value[which] += value;
  pthread_mutex_unlock(&m->lock);
}

double btc_metrics_get(btc_metrics *m, btc_metric which) {
  if (!m) return 0;
  pthread_mutex_lock(&m->lock);
  double value = m->value[which];
  pthread_mutex_unlock(&m->lock);
  return value;
}

void btc_metrics_health(btc_metrics *m, btc_health what, bool ok, const char *why) {
  if (!m) return;
  pthread_mutex_lock(&m->lock);
  m->healthy[what] = ok;
  snprintf(m->why[what], sizeof m->why[what], "%s", ok || !why ? "" : why);
  pthread_mutex_unlock(&m->lock);
}

bool btc_metrics_ready(btc_metrics *m, char *why, size_t len) {
  bool ready = true;
  if (len) why[0] = 0;
  if (!m) return ready;
  pthread_mutex_lock(&m->lock);
  for (int i = 0; i < BTC_HEALTH_COUNT && ready; i++) {
    ready = m->healthy[i];
    if (!ready) snprintf(why, len, "%s: %s", health_names[i], m->why[i][0] ? m->why[i] : "not yet");
  }
  pthread_mutex_unlock(&m->lock);
  return ready;
}

void btc_metrics_beat(btc_metrics *m) {
  if (!m) return;
  pthread_mutex_lock(&m->lock);
  m->beat_ns = btc_now_ns();
  m->healthy[BTC_HEALTH_LOOP] = true;
  pthread_mutex_unlock(&m->lock);
}

bool btc_metrics_alive(btc_metrics *m) {
  if (!m) return true;
  pthread_mutex_lock(&m->lock);
  bool alive = !m->beat_ns || btc_now_ns() - m->beat_ns < BEAT_LATE_NS;
  pthread_mutex_unlock(&m->lock);
  return alive;
}

static worker_numbers *find_worker(btc_metrics *m, const char *name) {
  for (size_t i = 0; i < m->n_workers; i++)
    if (strcmp(m->worker[i].name, name) == 0) return &m->worker[i];
  return NULL;
}

void btc_metrics_worker(btc_metrics *m, const char *name, bool up, double credits, double in_hand, double items_per_s) {
  if (!m) return;
  pthread_mutex_lock(&m->lock);
  worker_numbers *w = find_worker(m, name);
  if (!w && m->n_workers < MAX_WORKERS) {
    w = &m->worker[m->n_workers++];
    snprintf(w->name, sizeof w->name, "%s", name);
  }
  if (w) {
    w->up = up;
    w->credits = credits;
    w->in_hand = in_hand;
    w->items_per_s = items_per_s;
  }
  pthread_mutex_unlock(&m->lock);
}

void btc_metrics_forget_worker(btc_metrics *m, const char *name) {
  if (!m) return;
  pthread_mutex_lock(&m->lock);
  worker_numbers *w = find_worker(m, name);
  if (w) *w = m->worker[--m->n_workers];
  pthread_mutex_unlock(&m->lock);
}

void btc_metrics_pipes(btc_metrics *m, const btc_metric_pipe *list, size_t n) {
  if (!m) return;
  btc_metric_pipe *copy = n ? btc_alloc(n, sizeof *copy) : NULL;
  if (n && !copy) return; /* the next ones come soon */
  if (n) memcpy(copy, list, n * sizeof *copy);
  pthread_mutex_lock(&m->lock);
  btc_metric_pipe *old = m->pipe;
  m->pipe = copy;
  m->n_pipes = n;
  pthread_mutex_unlock(&m->lock);
  free(old);
}

/* ---- reading ---- */

/* Label values escape backslash, quote and newline. */
static void put_label(FILE *f, const char *s) {
  for (; *s; s++) {
    if (*s == '\n') {
      fputs("\\n", f);
      continue;
    }
    if (*s == '\\' || *s == '"') fputc('\\', f);
    fputc(*s, f);
  }
}

static void put_value(FILE *f, const btc_metrics *m, const char *name, const char *more, double value) {
  fprintf(f, "%s{queue=\"", name);
  put_label(f, m->queue);
  fputs("\",broker=\"", f);
  put_label(f, m->broker);
  fprintf(f, "\"%s} %.17g\n", more, value);
}

static void put_worker_metric(FILE *f, const btc_metrics *m, const char *name, const char *help,
                              double (*of)(const worker_numbers *)) {
  fprintf(f, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
  for (size_t i = 0; i < m->n_workers; i++) {
    fprintf(f, "%s{queue=\"", name);
    put_label(f, m->queue);
    fputs("\",worker=\"", f);
    put_label(f, m->worker[i].name);
    fprintf(f, "\"} %.17g\n", of(&m->worker[i]));
  }
}

/* Names of pipes are ours: nothing to escape. stage < 0: of the pipe. */
static void put_pipe_value(FILE *f, const btc_metrics *m, const char *name, const btc_metric_pipe *p, int stage, double value) {
  fprintf(f, "%s{queue=\"", name);
  put_label(f, m->queue);
  fprintf(f, "\",pipe=\"%s\"", p->id);
  if (stage >= 0) fprintf(f, ",rank=\"%d\"", stage);
  fprintf(f, "} %.17g\n", value);
}

static void put_pipes(FILE *f, const btc_metrics *m) {
  fputs("# HELP btc_pipe_epoch Epoch of the pipe\n# TYPE btc_pipe_epoch gauge\n", f);
  for (size_t i = 0; i < m->n_pipes; i++) put_pipe_value(f, m, "btc_pipe_epoch", &m->pipe[i], -1, (double)m->pipe[i].epoch);
  fputs("# HELP btc_pipe_active 1: the pipe computes\n# TYPE btc_pipe_active gauge\n", f);
  for (size_t i = 0; i < m->n_pipes; i++) put_pipe_value(f, m, "btc_pipe_active", &m->pipe[i], -1, m->pipe[i].active);
  fputs("# HELP btc_pipe_bubble_ratio What its stages together waited in the last seconds\n# TYPE btc_pipe_bubble_ratio gauge\n",
        f);
  for (size_t i = 0; i < m->n_pipes; i++)
    if (m->pipe[i].bubble >= 0) put_pipe_value(f, m, "btc_pipe_bubble_ratio", &m->pipe[i], -1, m->pipe[i].bubble);
  fputs("# HELP btc_stage_ms Time of an item in the stage\n# TYPE btc_stage_ms gauge\n", f);
  for (size_t i = 0; i < m->n_pipes; i++)
    for (int k = 0; k < m->pipe[i].stages; k++) put_pipe_value(f, m, "btc_stage_ms", &m->pipe[i], k, m->pipe[i].ms[k]);
  fputs("# HELP btc_stage_busy_ratio Share of the last seconds that the stage computed\n# TYPE btc_stage_busy_ratio gauge\n", f);
  for (size_t i = 0; i < m->n_pipes; i++)
    for (int k = 0; k < m->pipe[i].stages; k++) put_pipe_value(f, m, "btc_stage_busy_ratio", &m->pipe[i], k, m->pipe[i].busy[k]);
}

static double is_up(const worker_numbers *w) {
  return w->up;
}
static double credits_of(const worker_numbers *w) {
  return w->credits;
}
static double in_hand_of(const worker_numbers *w) {
  return w->in_hand;
}
static double rate_of(const worker_numbers *w) {
  return w->items_per_s;
}

char *btc_metrics_render(btc_metrics *m) {
  char *text = NULL, why[256];
  size_t len;
  bool ready = btc_metrics_ready(m, why, sizeof why);
  FILE *f = open_memstream(&text, &len);
  if (!f) return NULL;
  pthread_mutex_lock(&m->lock);
  for (int i = 0; i < BTC_METRIC_COUNT; i++) {
    if (described[i].help)
      fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", described[i].name, described[i].help, described[i].name, described[i].type);
    put_value(f, m, described[i].name, described[i].labels, m->value[i]);
  }
  fputs("# HELP btc_broker_ready 1: /readyz says yes\n# TYPE btc_broker_ready gauge\n", f);
  put_value(f, m, "btc_broker_ready", "", ready);
  put_worker_metric(f, m, "btc_worker_up", "1: the worker sends heartbeats", is_up);
  put_worker_metric(f, m, "btc_worker_credits", "Items the worker would take now", credits_of);
  put_worker_metric(f, m, "btc_worker_in_hand", "Items the worker holds", in_hand_of);
  put_worker_metric(f, m, "btc_worker_items_per_second", "The worker's rate", rate_of);
  put_pipes(f, m);
  pthread_mutex_unlock(&m->lock);
  bool failed = ferror(f) != 0;
  if (fclose(f) != 0 || failed) {
    free(text);
    return NULL;
  }
  return text;
}
