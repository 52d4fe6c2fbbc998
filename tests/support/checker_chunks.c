/* Checker: every chunk in exactly one place, every unfinished item in exactly one chunk. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checker_parts.h"

/* Something that names a chunk: a list, `lease`, `own:*`, `dly`, or its own hash. */
typedef struct mention {
  uint64_t cid;
  char kind; /* R S H lists, L lease, O own, D dly, J jc, C the chunk itself */
  uint32_t key;
} mention;

typedef struct places {
  char **keys; /* without the prefix */
  size_t n_keys;
  mention *m;
  size_t n;
  uint32_t key;
  char kind;
} places;

static bool grow(void **p, size_t n, size_t size) {
  if ((n & (n + 1)) != 0) return true;
  void *more = btc_realloc(*p, 2 * (n + 1), size);
  if (!more) return false;
  *p = more;
  return true;
}

static bool add_key(checker *c, void *ctx, redisReply *const *element, size_t n) {
  places *p = ctx;
  (void)n;
  if (!grow((void **)&p->keys, p->n_keys, sizeof *p->keys)) return false;
  p->keys[p->n_keys] = btc_strdup(element[0]->str + strlen(c->prefix));
  return p->keys[p->n_keys++] != NULL;
}

static bool add_mention(checker *c, void *ctx, redisReply *const *element, size_t n) {
  places *p = ctx;
  (void)c, (void)n;
  if (!grow((void **)&p->m, p->n, sizeof *p->m)) return false;
  p->m[p->n++] = (mention){.cid = strtoull(element[0]->str, NULL, 10), .kind = p->kind, .key = p->key};
  return true;
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* By chunk; within one the chunk itself first. */
static int by_cid(const void *a, const void *b) {
  const mention *x = a, *y = b;
  if (x->cid != y->cid) return x->cid < y->cid ? -1 : 1;
  return x->kind < y->kind ? -1 : x->kind > y->kind;
}

static bool begins(const char *s, const char *with) {
  return strncmp(s, with, strlen(with)) == 0;
}

static btc_status read_key(checker *c, places *p, uint32_t i, btc_error *err) {
  static const struct {
    const char *begin, *type;
    char kind;
  } kinds[] = {{"rdy:", "list", 'R'}, {"sus:", "list", 'S'}, {"hd:", "list", 'H'}, {"lease", "zset", 'L'},
               {"own:", "set", 'O'},  {"dly", "zset", 'D'},  {"jc:", "set", 'J'}};
  char key[512];
  const char *name = p->keys[i];
  p->key = i;
  if (begins(name, "ck:")) {
    redisReply cid = {.str = p->keys[i] + 3}, *row = &cid;
    p->kind = 'C';
    return add_mention(c, p, &row, 1) ? BTC_OK : BTC_ERR_NOMEM;
  }
  snprintf(key, sizeof key, "$%s", name);
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    if (!begins(name, kinds[k].begin)) continue;
    p->kind = kinds[k].kind;
    return checker_walk(c, kinds[k].type, key, add_mention, p, err);
  }
  return BTC_OK;
}

typedef struct chunk {
  char st[4], w[160], j[72], p[8], t[72], class[160];
  uint64_t tok, lo, n, m, sb;
  bool solo;
} chunk;

static bool read_chunk(checker *c, uint64_t cid, chunk *k) {
  char key[64];
  snprintf(key, sizeof key, "$ck:%" PRIu64, cid);
  redisReply *r = checker_command(c, "HMGET", key, "st", "tok", "w", "j", "lo", "n", "m", "sb", "solo", "p", "t", "c");
  bool ok = r && r->type == REDIS_REPLY_ARRAY && r->elements == 12;
  for (size_t i = 0; ok && i < 12; i++) ok = r->element[i]->type == REDIS_REPLY_STRING;
  if (ok) {
    snprintf(k->st, sizeof k->st, "%s", r->element[0]->str);
    k->tok = strtoull(r->element[1]->str, NULL, 10);
    snprintf(k->w, sizeof k->w, "%s", r->element[2]->str);
    snprintf(k->j, sizeof k->j, "%s", r->element[3]->str);
    k->lo = strtoull(r->element[4]->str, NULL, 10);
    k->n = strtoull(r->element[5]->str, NULL, 10);
    k->m = strtoull(r->element[6]->str, NULL, 10);
    k->sb = strtoull(r->element[7]->str, NULL, 10);
    k->solo = r->element[8]->str[0] == '1';
    snprintf(k->p, sizeof k->p, "%s", r->element[9]->str);
    snprintf(k->t, sizeof k->t, "%s", r->element[10]->str);
    snprintf(k->class, sizeof k->class, "%s", r->element[11]->str);
  } else {
    checker_violation(c, "chunk %" PRIu64 " lacks a field", cid);
  }
  if (r) freeReplyObject(r);
  return ok;
}

static void check_items(checker *c, uint64_t cid, const chunk *k, checked_job *j) {
  if (k->m == 0 || k->m >> 32 || k->n == 0 || k->n > 32 || k->m >> k->n || k->lo + k->n > j->cur) {
    checker_violation(c, "chunk %" PRIu64 ": mask %" PRIx64 " of %" PRIu64 " items from %" PRIu64 ", cursor %" PRIu64, cid, k->m,
                      k->n, k->lo, j->cur);
    return;
  }
  if (k->solo && __builtin_popcountll(k->m) != 1) checker_violation(c, "chunk %" PRIu64 ": a suspect in company", cid);
  for (uint64_t off = 0; off < k->n; off++) {
    if (!(k->m >> off & 1)) continue;
    if (bit_get(j->held_bits, k->lo + off))
      checker_violation(c, "job %s: item %" PRIu64 " is in two chunks, one is %" PRIu64, j->jid, k->lo + off, cid);
    if (bit_get(j->dead_bits, k->lo + off))
      checker_violation(c, "job %s: item %" PRIu64 " is dead and in chunk %" PRIu64, j->jid, k->lo + off, cid);
    bit_set(j->held_bits, k->lo + off);
  }
}

/* m: all mentions of one chunk. */
static void check_chunk(checker *c, const places *p, const mention *m, size_t n, int64_t last_token) {
  size_t count[128] = {0};
  const char *key[128] = {0}, *state = "";
  char want[512] = "";
  chunk k;
  for (size_t i = 0; i < n; i++) count[(int)m[i].kind]++, key[(int)m[i].kind] = p->keys[m[i].key];
  size_t lists = count['R'] + count['S'] + count['H'];
  if (lists > 1) checker_violation(c, "chunk %" PRIu64 " is %zu times in lists", m->cid, lists);
  if (!count['C']) { /* lists may hold ids of chunks that are gone, nothing else may */
    if (n > lists)
      checker_violation(c, "chunk %" PRIu64 " is gone, but stands in %s", m->cid,
                        p->keys[m[0].kind == 'H' ? m[n - 1].key : m[0].key]);
    return;
  }
  if (!read_chunk(c, m->cid, &k)) return;
  checked_job *j = checker_job(c, k.j);
  if (!j) {
    checker_violation(c, "chunk %" PRIu64 " is of job %s, which is not there", m->cid, k.j);
    return;
  }
  state = k.st;
  j->members++;
  if (count['J'] != 1 || strcmp(key['J'] + 3, k.j) != 0)
    checker_violation(c, "chunk %" PRIu64 " is not in jc:%s alone", m->cid, k.j);
  size_t places_found = lists + count['L'] + count['D'];
  if (places_found != 1 || !strchr("RSHLD", state[0]) || count[(int)state[0]] != 1 || count['O'] != count['L'])
    checker_violation(c, "chunk %" PRIu64 " of %s is %s, but in %zu ready, %zu suspect, %zu held, %zu delayed, %zu lease, %zu own",
                      m->cid, k.j, state, count['R'], count['S'], count['H'], count['D'], count['L'], count['O']);
  if (state[0] == 'R') snprintf(want, sizeof want, "rdy:%s:%s:%s", k.class, k.p, k.t);
  if (state[0] == 'S') snprintf(want, sizeof want, "sus:%s", k.class);
  if (state[0] == 'H') snprintf(want, sizeof want, "hd:%s", k.j);
  if (state[0] == 'L') snprintf(want, sizeof want, "own:%s", k.w);
  const char *is = key[state[0] == 'L' ? 'O' : (int)state[0]];
  if (*want && is && strcmp(is, want) != 0) checker_violation(c, "chunk %" PRIu64 " stands in %s instead of %s", m->cid, is, want);
  if ((int64_t)k.tok > last_token || (state[0] == 'L' && k.tok == 0))
    checker_violation(c, "chunk %" PRIu64 ": token %" PRIu64 " was never given", m->cid, k.tok);
  check_items(c, m->cid, &k, j);
  if (c->o->at_end) checker_violation(c, "chunk %" PRIu64 " of %s (%s) is left at the end", m->cid, k.j, state);
}

/* Items that are expanded, and neither done nor dead, must be in a chunk (of a cancelled job: need not). */
static void check_items_held(checker *c, const checked_job *j) {
  uint64_t missing = 0, first = 0;
  if (j->members != j->live)
    checker_violation(c, "job %s: live is %" PRIu64 ", but it has %" PRIu64 " chunks", j->jid, j->live, j->members);
  if (strcmp(j->st, "RUN") != 0) return;
  for (uint64_t i = 0; i < j->cur; i++) {
    if (bit_get(j->done_bits, i) || bit_get(j->dead_bits, i) || bit_get(j->held_bits, i)) continue;
    if (missing++ == 0) first = i;
  }
  if (missing) checker_violation(c, "job %s: %" PRIu64 " items are lost, the first is %" PRIu64, j->jid, missing, first);
}

typedef struct ring_check {
  const places *p;
  const char *level;
  char **seen;
  size_t n;
} ring_check;

static bool has_key(const places *p, const char *name) {
  return p->n_keys && bsearch(&name, p->keys, p->n_keys, sizeof *p->keys, by_name) != NULL;
}

static bool check_ring_entry(checker *c, void *ctx, redisReply *const *element, size_t n) {
  ring_check *r = ctx;
  char list[512];
  (void)n;
  snprintf(list, sizeof list, "rdy:%s:%s", r->level, element[0]->str);
  if (!has_key(r->p, list)) checker_violation(c, "ring:%s has tenant %s, which has nothing ready", r->level, element[0]->str);
  r->n++;
  return true;
}

/* As many tenants in the rings as there are lists of ready chunks, and each ring entry has its list: then it is one to one, unless
 * one is twice. */
static btc_status check_rings(checker *c, const places *p, btc_error *err) {
  size_t lists = 0;
  ring_check r = {.p = p};
  for (size_t i = 0; i < p->n_keys; i++) {
    char key[512];
    lists += begins(p->keys[i], "rdy:");
    if (!begins(p->keys[i], "ring:")) continue;
    r.level = p->keys[i] + 5;
    snprintf(key, sizeof key, "$%s", p->keys[i]);
    btc_status st = checker_walk(c, "list", key, check_ring_entry, &r, err);
    if (st != BTC_OK) return st;
  }
  if (r.n != lists) checker_violation(c, "%zu tenants stand in rings, %zu lists have chunks", r.n, lists);
  return BTC_OK;
}

btc_status checker_chunks(checker *c, btc_error *err) {
  places p = {0};
  btc_status st = checker_walk(c, "keys", "", add_key, &p, err);
  int64_t last_token = checker_number(c, "GET", "$tok", NULL);
  if (st == BTC_OK && p.n_keys) {
    size_t kept = 0;
    qsort(p.keys, p.n_keys, sizeof *p.keys, by_name);
    for (size_t i = 0; i < p.n_keys; i++) { /* a scan may show a key twice */
      if (kept && strcmp(p.keys[i], p.keys[kept - 1]) == 0)
        free(p.keys[i]);
      else
        p.keys[kept++] = p.keys[i];
    }
    p.n_keys = kept;
  }
  for (size_t i = 0; i < p.n_keys && st == BTC_OK; i++) {
    st = read_key(c, &p, (uint32_t)i, err);
    if (c->o->at_end && (strcmp(p.keys[i], "sweep") == 0 || begins(p.keys[i], "hd:")))
      checker_violation(c, "%s is left at the end", p.keys[i]);
  }
  if (st == BTC_OK && p.n) qsort(p.m, p.n, sizeof *p.m, by_cid);
  for (size_t i = 0, n; i < p.n && st == BTC_OK; i += n) {
    for (n = 1; i + n < p.n && p.m[i + n].cid == p.m[i].cid;) n++;
    check_chunk(c, &p, p.m + i, n, last_token);
  }
  for (size_t i = 0; i < c->n_jobs && st == BTC_OK; i++) check_items_held(c, &c->jobs[i]);
  if (st == BTC_OK) st = check_rings(c, &p, err);
  for (size_t i = 0; i < p.n_keys; i++) free(p.keys[i]);
  free(p.keys);
  free(p.m);
  return st;
}
