/* Chunks and items in hand: see ledger.h. */
#include "ledger.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { RIPE_BYTES = 1 << 20 };

typedef struct in_child {
  uint64_t ticket;
  ledger_chunk *chunk; /* NULL: dropped, whatever comes back is nobody's */
  ledger_item *item;
} in_child;

typedef struct known {
  uint64_t cid, token;
} known;

struct ledger {
  ledger_chunk *first, *last, *cursor; /* no chunk before cursor has waiting items */
  size_t n_chunks, open, max_items, with_results;
  in_child *given; /* [max_given], in the order of tickets */
  size_t n_given, max_given;
  uint64_t ticket;
  known past[LEDGER_REMEMBERED];
  size_t n_past;
};

/* ---- results ---- */

static void free_result(Btc__ItemResult *r) {
  if (!r) return;
  if (r->id != protobuf_c_empty_string) free(r->id);
  if (r->reason != protobuf_c_empty_string) free(r->reason);
  if (r->message != protobuf_c_empty_string) free(r->message);
  if (r->record != protobuf_c_empty_string) free(r->record);
  free(r);
}

static bool copy_text(char **out, const char *s) {
  if (!s || !*s) return true; /* keeps the message's empty string */
  char *copy = btc_strdup(s);
  if (copy) *out = copy;
  return copy != NULL;
}

static Btc__ItemResult *copy_result(const Btc__ItemResult *r, uint32_t off) {
  Btc__ItemResult *c = btc_alloc(1, sizeof *c);
  if (!c) return NULL;
  btc__item_result__init(c);
  c->off = off;
  c->outcome = r->outcome;
  if (copy_text(&c->id, r->id) && copy_text(&c->reason, r->reason) && copy_text(&c->message, r->message) &&
      copy_text(&c->record, r->record))
    return c;
  free_result(c);
  return NULL;
}

static size_t bytes_of(const Btc__ItemResult *r) {
  return strlen(r->record) + strlen(r->message) + strlen(r->id) + 64;
}

static void add_result(ledger *l, ledger_chunk *c, Btc__ItemResult *r, int64_t now_ns) {
  if (!c->n_results) {
    c->first_result_ns = now_ns;
    l->with_results++;
  }
  c->results[c->n_results++] = r;
  c->result_bytes += bytes_of(r);
}

static void drop_results(ledger *l, ledger_chunk *c, size_t n) {
  if (!n) return;
  for (size_t i = 0; i < n; i++) free_result(c->results[i]);
  c->n_results -= n;
  memmove(c->results, c->results + n, c->n_results * sizeof(Btc__ItemResult *));
  c->result_bytes = 0;
  for (size_t i = 0; i < c->n_results; i++) c->result_bytes += bytes_of(c->results[i]);
  if (!c->n_results) l->with_results--;
}

/* ---- chunks ---- */

static void free_chunk(ledger_chunk *c) {
  for (size_t i = 0; i < c->n_items; i++) free(c->items[i].spec);
  for (size_t i = 0; i < c->n_results; i++) free_result(c->results[i]);
  free(c->jid);
  free(c->params);
  free(c);
}

static void remember(ledger *l, const ledger_chunk *c) {
  if (!c->cid) return;
  l->past[l->n_past++ % LEDGER_REMEMBERED] = (known){c->cid, c->token};
}

static bool remembered(const ledger *l, uint64_t cid, uint64_t token) {
  size_t n = l->n_past < LEDGER_REMEMBERED ? l->n_past : LEDGER_REMEMBERED;
  for (size_t i = 0; i < n; i++)
    if (l->past[i].cid == cid && l->past[i].token == token) return true;
  return false;
}

static void unlink_chunk(ledger *l, ledger_chunk *c) {
  if (l->cursor == c) l->cursor = c->next;
  if (c->prev)
    c->prev->next = c->next;
  else
    l->first = c->next;
  if (c->next)
    c->next->prev = c->prev;
  else
    l->last = c->prev;
  l->n_chunks--;
}

/* A chunk that nothing waits for any more is forgotten, but remembered as known. */
static void forget_if_done(ledger *l, ledger_chunk *c) {
  if (c->waiting || c->given || c->n_results || c->unanswered) return;
  remember(l, c);
  unlink_chunk(l, c);
  free_chunk(c);
}

static ledger_chunk *find(const ledger *l, uint64_t cid) {
  for (ledger_chunk *c = l->first; c; c = c->next)
    if (c->cid == cid) return c;
  return NULL;
}

static void forget_waiting(ledger *l, ledger_chunk *c) {
  for (size_t i = 0; i < c->n_items; i++)
    if (c->items[i].state == LEDGER_WAITING) c->items[i].state = LEDGER_SETTLED;
  l->open -= c->waiting;
  c->waiting = 0;
}

static bool well_formed(const Btc__Chunk *c) {
  uint32_t seen = 0;
  if (!c->cid || !c->token || !c->n_items || c->n_items > LEDGER_CHUNK_ITEMS) return false;
  for (size_t i = 0; i < c->n_items; i++) {
    uint32_t off = c->items[i]->off;
    if (off >= LEDGER_CHUNK_ITEMS || off >= c->n || seen >> off & 1) return false;
    seen |= UINT32_C(1) << off;
  }
  return true;
}

static ledger_chunk *copy_chunk(const Btc__Chunk *g) {
  ledger_chunk *c = btc_alloc_zero(1, sizeof *c);
  if (!c) return NULL;
  c->cid = g->cid;
  c->token = g->token;
  c->lo = g->lo;
  c->solo = g->solo;
  c->jid = btc_strdup(g->jid);
  c->params = btc_strdup(g->params);
  bool copied = c->jid && c->params;
  for (; copied && c->n_items < g->n_items; c->n_items++) {
    ledger_item *it = &c->items[c->n_items];
    it->off = g->items[c->n_items]->off;
    it->spec = btc_strdup(g->items[c->n_items]->spec);
    copied = it->spec != NULL;
  }
  c->waiting = c->n_items;
  if (copied) return c;
  free_chunk(c);
  return NULL;
}

ledger_added ledger_add(ledger *l, const Btc__Chunk *g) {
  if (!well_formed(g)) return LEDGER_BAD;
  ledger_chunk *old = find(l, g->cid);
  if ((old && old->token >= g->token) || remembered(l, g->cid, g->token)) return LEDGER_KNOWN;
  if (old) ledger_revoke(l, g->cid, 0);
  if (l->open + g->n_items > l->max_items || l->n_chunks >= 2 * l->max_items) return LEDGER_FULL;
  ledger_chunk *c = copy_chunk(g);
  if (!c) return LEDGER_FULL;
  c->prev = l->last;
  if (l->last)
    l->last->next = c;
  else
    l->first = c;
  l->last = c;
  if (!l->cursor) l->cursor = c;
  l->n_chunks++;
  l->open += c->n_items;
  return LEDGER_NEW;
}

/* ---- items ---- */

ledger_item *ledger_next(ledger *l, ledger_chunk **chunk) {
  while (l->cursor && !l->cursor->waiting) l->cursor = l->cursor->next;
  ledger_chunk *c = l->cursor;
  if (!c || l->n_given == l->max_given) return NULL;
  bool alone = c->solo;
  for (size_t i = 0; !alone && i < l->n_given; i++) alone = l->given[i].chunk && l->given[i].chunk->solo;
  if (alone && l->n_given) return NULL;
  *chunk = c;
  for (size_t i = 0; i < c->n_items; i++)
    if (c->items[i].state == LEDGER_WAITING) return &c->items[i];
  return NULL;
}

void ledger_give(ledger *l, ledger_chunk *c, ledger_item *it) {
  it->state = LEDGER_GIVEN;
  it->ticket = ++l->ticket;
  c->waiting--;
  c->given++;
  l->given[l->n_given++] = (in_child){it->ticket, c, it};
}

static in_child *find_given(const ledger *l, uint64_t ticket) {
  for (size_t i = 0; i < l->n_given; i++)
    if (l->given[i].ticket == ticket) return &l->given[i];
  return NULL;
}

static void remove_given(ledger *l, in_child *g) {
  size_t at = (size_t)(g - l->given);
  l->n_given--;
  memmove(g, g + 1, (l->n_given - at) * sizeof *g);
}

bool ledger_start(ledger *l, uint64_t ticket, int64_t now_ns) {
  in_child *g = find_given(l, ticket);
  if (!g) return false;
  if (!g->chunk) return true;
  g->item->state = LEDGER_STARTED;
  g->item->started_ns = now_ns;
  g->chunk->started_mask |= UINT32_C(1) << g->item->off;
  return true;
}

btc_status ledger_settle(ledger *l, uint64_t ticket, const Btc__ItemResult *r, int64_t now_ns, int64_t *started_ns,
                         btc_error *err) {
  in_child *g = find_given(l, ticket);
  if (!g) return BTC_OK;
  in_child was = *g;
  remove_given(l, g);
  if (!was.chunk) return BTC_OK;
  if (started_ns) *started_ns = was.item->started_ns;
  was.chunk->given--;
  Btc__ItemResult *copy = was.chunk->revoked ? NULL : copy_result(r, was.item->off);
  if (!copy && !was.chunk->revoked) {
    was.item->state = LEDGER_WAITING;
    was.chunk->waiting++;
    l->cursor = l->first;
    return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  }
  was.item->state = LEDGER_SETTLED;
  l->open--;
  if (copy) add_result(l, was.chunk, copy, now_ns);
  forget_if_done(l, was.chunk);
  return BTC_OK;
}

static char *id_of(const char *spec) {
  json_t *doc = json_loads(spec, 0, NULL);
  char *id = btc_strdup(json_string_value(json_object_get(doc, "id")));
  json_decref(doc);
  return id;
}

/* What the child had, out of its hands. */
static void wait_again(ledger *l, const in_child *g) {
  remove_given(l, &l->given[0]);
  if (!g->chunk) return;
  g->chunk->given--;
  g->chunk->started_mask &= ~(UINT32_C(1) << g->item->off);
  g->item->state = g->chunk->revoked ? LEDGER_SETTLED : LEDGER_WAITING;
  g->chunk->waiting += !g->chunk->revoked;
  l->open -= g->chunk->revoked;
  forget_if_done(l, g->chunk);
}

size_t ledger_take_back(ledger *l) {
  size_t started = 0;
  while (l->n_given) {
    in_child g = l->given[0];
    started += g.chunk && g.item->state == LEDGER_STARTED;
    wait_again(l, &g);
  }
  l->cursor = l->first;
  return started;
}

size_t ledger_child_gone(ledger *l, Btc__Outcome outcome, const char *reason, const char *message, int64_t now_ns) {
  size_t started = 0;
  while (l->n_given) {
    in_child g = l->given[0];
    Btc__ItemResult r = BTC__ITEM_RESULT__INIT;
    char *id = NULL;
    if (g.chunk && g.item->state == LEDGER_STARTED) {
      started++;
      r.outcome = outcome;
      r.reason = (char *)reason;
      r.message = (char *)message;
      if ((id = id_of(g.item->spec))) r.id = id;
      ledger_settle(l, g.ticket, &r, now_ns, NULL, NULL);
      free(id);
      continue;
    }
    wait_again(l, &g);
  }
  l->cursor = l->first;
  return started;
}

/* ---- leaving ---- */

void ledger_revoke(ledger *l, uint64_t cid, uint64_t token) {
  ledger_chunk *c = find(l, cid);
  if (!c || (token && c->token != token)) return;
  c->revoked = true;
  forget_waiting(l, c);
  drop_results(l, c, c->n_results);
  if (c->given || c->unanswered) { /* waits for those; the number is free for a new lease of the same chunk */
    remember(l, c);
    c->cid = 0;
  }
  forget_if_done(l, c);
}

void ledger_drop(ledger *l, ledger_chunk *c) {
  for (size_t i = 0; i < l->n_given; i++)
    if (l->given[i].chunk == c) l->given[i] = (in_child){.ticket = l->given[i].ticket};
  l->open -= c->given + c->waiting;
  c->given = c->waiting = 0;
  c->revoked = true;
  drop_results(l, c, c->n_results);
  for (size_t i = 0; i < c->n_items; i++) c->items[i].state = LEDGER_SETTLED;
  forget_if_done(l, c);
}

static bool ripe(const ledger_chunk *c, int64_t now_ns, int64_t max_age_ns, bool all) {
  if (!c->n_results) return false;
  return all || (!c->waiting && !c->given) || now_ns - c->first_result_ns >= max_age_ns || c->result_bytes >= RIPE_BYTES;
}

ledger_chunk *ledger_ripe(ledger *l, int64_t now_ns, int64_t max_age_ns, bool all) {
  if (!l->with_results) return NULL;
  for (ledger_chunk *c = l->first; c; c = c->next)
    if (ripe(c, now_ns, max_age_ns, all)) return c;
  return NULL;
}

int64_t ledger_ripe_at(const ledger *l, int64_t max_age_ns) {
  int64_t at = INT64_MAX;
  for (const ledger_chunk *c = l->with_results ? l->first : NULL; c; c = c->next)
    if (c->n_results && c->first_result_ns + max_age_ns < at) at = c->first_result_ns + max_age_ns;
  return at;
}

void ledger_queued(ledger *l, ledger_chunk *c, size_t n, bool queued) {
  drop_results(l, c, n);
  c->unanswered += queued;
  forget_if_done(l, c);
}

void ledger_answered(ledger *l, ledger_chunk *c) {
  c->unanswered--;
  forget_if_done(l, c);
}

/* ---- the whole ---- */

btc_status ledger_create(size_t max_items, size_t max_given, ledger **out, btc_error *err) {
  ledger *l = *out = btc_alloc_zero(1, sizeof *l);
  if (l && (l->given = btc_alloc_zero(max_given, sizeof *l->given))) {
    l->max_items = max_items;
    l->max_given = max_given;
    return BTC_OK;
  }
  free(l);
  *out = NULL;
  return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
}

void ledger_destroy(ledger **lp) {
  ledger *l = *lp;
  *lp = NULL;
  if (!l) return;
  for (ledger_chunk *c = l->first, *next; c; c = next) {
    next = c->next;
    free_chunk(c);
  }
  free(l->given);
  free(l);
}

ledger_chunk *ledger_first(const ledger *l) {
  return l->first;
}

size_t ledger_open(const ledger *l) {
  return l->open;
}

size_t ledger_given(const ledger *l) {
  return l->n_given;
}

size_t ledger_chunks(const ledger *l) {
  return l->n_chunks;
}
