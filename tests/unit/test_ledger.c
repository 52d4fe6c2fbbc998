/* What a worker has in hand, by itself: grants known again, order, suspects alone, a dead child, revocation, results until they are
 * answered. */
#include "test.h"

#include <stdio.h>

#include "worker/ledger.h"

typedef struct grant {
  Btc__Chunk chunk;
  Btc__Item items[32], *list[32];
  char specs[32][64];
} grant;

static const Btc__Chunk *make(grant *g, uint64_t cid, uint64_t token, uint32_t n, bool solo) {
  btc__chunk__init(&g->chunk);
  g->chunk.cid = cid;
  g->chunk.token = token;
  g->chunk.jid = "job";
  g->chunk.lo = 64;
  g->chunk.n = n;
  g->chunk.solo = solo;
  g->chunk.items = g->list;
  g->chunk.n_items = n;
  for (uint32_t i = 0; i < n; i++) {
    btc__item__init(&g->items[i]);
    g->items[i].off = i;
    snprintf(g->specs[i], sizeof g->specs[i], "{\"id\":\"%llu-%u\"}", (unsigned long long)cid, i);
    g->items[i].spec = g->specs[i];
    g->list[i] = &g->items[i];
  }
  return &g->chunk;
}

static ledger *fresh(size_t max_items, size_t max_given) {
  ledger *l;
  btc_error err;
  assert_int_equal(ledger_create(max_items, max_given, &l, &err), BTC_OK);
  return l;
}

static ledger_added add(ledger *l, uint64_t cid, uint64_t token, uint32_t n, bool solo) {
  grant g;
  return ledger_add(l, make(&g, cid, token, n, solo));
}

/* Gives the next item; 0 when there is none to give. */
static uint64_t give(ledger *l, ledger_chunk **chunk) {
  ledger_chunk *c = NULL;
  ledger_item *it = ledger_next(l, &c);
  if (!it) return 0;
  ledger_give(l, c, it);
  if (chunk) *chunk = c;
  return it->ticket;
}

static void settle(ledger *l, uint64_t ticket, int64_t now) {
  Btc__ItemResult r = BTC__ITEM_RESULT__INIT;
  r.id = "x";
  r.record = "{}";
  assert_int_equal(ledger_settle(l, ticket, &r, now, NULL, NULL), BTC_OK);
}

static void test_ledger_knows_a_grant_again(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  assert_int_equal(add(l, 1, 7, 2, false), LEDGER_NEW);
  assert_int_equal(add(l, 1, 7, 2, false), LEDGER_KNOWN);
  assert_int_equal(ledger_open(l), 2);
  ledger_chunk *c = NULL;
  settle(l, give(l, &c), 0);
  settle(l, give(l, NULL), 0);
  assert_ptr_equal(ledger_ripe(l, 0, 1000, false), c);
  ledger_queued(l, c, c->n_results, true);
  assert_int_equal(add(l, 1, 7, 2, false), LEDGER_KNOWN);
  ledger_answered(l, c); /* frees it */
  assert_int_equal(ledger_chunks(l), 0);
  assert_int_equal(add(l, 1, 7, 2, false), LEDGER_KNOWN);
  assert_int_equal(add(l, 1, 8, 2, false), LEDGER_NEW); /* a new lease of the same chunk is new work */
  ledger_destroy(&l);
}

static void test_ledger_refuses_malformed_and_too_much(void **state) {
  (void)state;
  ledger *l = fresh(40, 16);
  grant g;
  assert_int_equal(add(l, 0, 7, 2, false), LEDGER_BAD);
  assert_int_equal(add(l, 1, 0, 2, false), LEDGER_BAD);
  assert_int_equal(add(l, 1, 7, 0, false), LEDGER_BAD);
  make(&g, 1, 7, 3, false);
  g.items[2].off = 3;
  assert_int_equal(ledger_add(l, &g.chunk), LEDGER_BAD);
  g.items[2].off = 1;
  assert_int_equal(ledger_add(l, &g.chunk), LEDGER_BAD);
  g.items[2].off = 2;
  assert_int_equal(ledger_add(l, &g.chunk), LEDGER_NEW);
  assert_int_equal(add(l, 2, 8, 32, false), LEDGER_NEW);
  assert_int_equal(add(l, 3, 9, 6, false), LEDGER_FULL);
  assert_int_equal(add(l, 3, 9, 5, false), LEDGER_NEW);
  ledger_destroy(&l);
}

static void test_ledger_gives_in_order_up_to_its_bound(void **state) {
  (void)state;
  ledger *l = fresh(100, 3);
  add(l, 1, 1, 2, false);
  add(l, 2, 2, 2, false);
  ledger_chunk *c = NULL;
  uint64_t first = give(l, &c);
  assert_int_equal(c->cid, 1);
  give(l, &c);
  assert_int_equal(c->cid, 1);
  give(l, &c);
  assert_int_equal(c->cid, 2);
  assert_int_equal(give(l, NULL), 0);
  settle(l, first, 0);
  assert_true(give(l, &c) > first);
  assert_int_equal(c->cid, 2);
  assert_int_equal(give(l, NULL), 0);
  ledger_destroy(&l);
}

static void test_ledger_runs_suspects_alone(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  add(l, 1, 1, 1, false);
  add(l, 2, 2, 2, true);
  add(l, 3, 3, 1, false);
  uint64_t before = give(l, NULL);
  assert_int_equal(give(l, NULL), 0); /* not beside the one before */
  settle(l, before, 0);
  uint64_t one = give(l, NULL);
  assert_true(one > 0);
  assert_int_equal(give(l, NULL), 0); /* nothing beside it, not even its own chunk */
  settle(l, one, 0);
  uint64_t two = give(l, NULL);
  assert_int_equal(give(l, NULL), 0);
  settle(l, two, 0);
  ledger_chunk *c = NULL;
  assert_true(give(l, &c) > 0);
  assert_int_equal(c->cid, 3);
  ledger_destroy(&l);
}

static void test_ledger_child_death_costs_started_items_only(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  add(l, 1, 1, 4, false);
  uint64_t t[3];
  ledger_chunk *c = NULL;
  for (int i = 0; i < 3; i++) t[i] = give(l, &c);
  assert_true(ledger_start(l, t[0], 5));
  assert_true(ledger_start(l, t[1], 5));
  assert_int_equal(c->started_mask, 3);
  settle(l, t[0], 6);
  assert_int_equal(ledger_child_gone(l, BTC__OUTCOME__OUTCOME_CRASH, "crash", "boom", 7), 1);
  assert_int_equal(ledger_given(l), 0);
  assert_int_equal(ledger_open(l), 2);
  assert_int_equal(c->n_results, 2);
  assert_int_equal(c->results[0]->outcome, BTC__OUTCOME__OUTCOME_OK);
  assert_int_equal(c->results[1]->outcome, BTC__OUTCOME__OUTCOME_CRASH);
  assert_int_equal(c->results[1]->off, 1);
  assert_string_equal(c->results[1]->id, "1-1");
  assert_string_equal(c->results[1]->message, "boom");
  assert_false(ledger_start(l, t[2], 8)); /* its ticket died with the child */
  uint64_t again = give(l, NULL);
  assert_true(again > t[2]);
  ledger_destroy(&l);
}

static void test_ledger_takes_all_back_when_nobody_is_at_fault(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  add(l, 1, 1, 4, false);
  uint64_t t[3];
  ledger_chunk *c = NULL;
  for (int i = 0; i < 3; i++) t[i] = give(l, &c);
  assert_true(ledger_start(l, t[0], 5));
  assert_true(ledger_start(l, t[1], 5));
  settle(l, t[0], 6);
  assert_int_equal(ledger_take_back(l), 1);
  assert_int_equal(ledger_given(l), 0);
  assert_int_equal(ledger_open(l), 3);
  assert_int_equal(c->n_results, 1);
  assert_int_equal(c->started_mask, 1); /* of the settled one: a death of the agent is not the others' suspicion */
  for (int i = 0; i < 3; i++) assert_true(give(l, NULL) > t[2]);
  assert_int_equal(ledger_take_back(l), 0);
  ledger_destroy(&l);
}

static void test_ledger_revoked_results_are_dropped(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  add(l, 1, 5, 3, false);
  ledger_chunk *c = NULL;
  uint64_t one = give(l, &c), two = give(l, NULL);
  settle(l, one, 0);
  ledger_revoke(l, 1, 4); /* another lease's: not ours */
  assert_int_equal(ledger_open(l), 2);
  ledger_revoke(l, 1, 5);
  assert_int_equal(ledger_open(l), 1);
  assert_null(ledger_ripe(l, 0, 0, true));
  assert_int_equal(give(l, NULL), 0);
  settle(l, two, 0);
  assert_int_equal(ledger_open(l), 0);
  assert_int_equal(ledger_chunks(l), 0);
  assert_int_equal(add(l, 1, 5, 3, false), LEDGER_KNOWN);
  ledger_destroy(&l);
}

static void test_ledger_newer_token_replaces_the_older(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  ledger_chunk *c = NULL;
  add(l, 1, 5, 2, false);
  uint64_t old = give(l, NULL);
  assert_int_equal(add(l, 1, 6, 2, false), LEDGER_NEW);
  assert_int_equal(add(l, 1, 5, 2, false), LEDGER_KNOWN);
  settle(l, old, 0);
  assert_null(ledger_ripe(l, 0, 0, true));
  give(l, &c);
  assert_int_equal(c->token, 6);
  assert_int_equal(ledger_open(l), 2);
  ledger_destroy(&l);
}

static void test_ledger_dropped_chunks_leave_nothing(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  ledger_chunk *c = NULL;
  add(l, 1, 5, 3, false);
  uint64_t one = give(l, &c), two = give(l, NULL);
  settle(l, one, 0);
  ledger_queued(l, c, 1, true);
  ledger_drop(l, c);
  assert_int_equal(ledger_open(l), 0);
  assert_int_equal(ledger_given(l), 1); /* the child still works on it */
  assert_int_equal(ledger_chunks(l), 1);
  settle(l, two, 0);
  assert_int_equal(ledger_given(l), 0);
  ledger_answered(l, c);
  assert_int_equal(ledger_chunks(l), 0);
  ledger_destroy(&l);
}

static void test_ledger_results_ripen_by_age_or_completion(void **state) {
  (void)state;
  ledger *l = fresh(100, 16);
  ledger_chunk *c = NULL;
  add(l, 1, 5, 2, false);
  uint64_t one = give(l, &c), two = give(l, NULL);
  assert_true(ledger_ripe_at(l, 20) == INT64_MAX);
  settle(l, one, 100);
  assert_null(ledger_ripe(l, 119, 20, false));
  assert_int_equal(ledger_ripe_at(l, 20), 120);
  assert_ptr_equal(ledger_ripe(l, 120, 20, false), c);
  assert_ptr_equal(ledger_ripe(l, 100, 20, true), c);
  settle(l, two, 101);
  assert_ptr_equal(ledger_ripe(l, 101, 20, false), c);
  ledger_queued(l, c, 1, true);
  assert_int_equal(c->n_results, 1);
  assert_int_equal(c->results[0]->off, 1);
  ledger_queued(l, c, 1, true);
  assert_null(ledger_ripe(l, 500, 20, true));
  ledger_answered(l, c);
  assert_int_equal(ledger_chunks(l), 1);
  ledger_answered(l, c);
  assert_int_equal(ledger_chunks(l), 0);
  ledger_destroy(&l);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_ledger_knows_a_grant_again),
    cmocka_unit_test(test_ledger_refuses_malformed_and_too_much),
    cmocka_unit_test(test_ledger_gives_in_order_up_to_its_bound),
    cmocka_unit_test(test_ledger_runs_suspects_alone),
    cmocka_unit_test(test_ledger_child_death_costs_started_items_only),
    cmocka_unit_test(test_ledger_takes_all_back_when_nobody_is_at_fault),
    cmocka_unit_test(test_ledger_revoked_results_are_dropped),
    cmocka_unit_test(test_ledger_newer_token_replaces_the_older),
    cmocka_unit_test(test_ledger_dropped_chunks_leave_nothing),
    cmocka_unit_test(test_ledger_results_ripen_by_age_or_completion),
};
BTC_TEST_MAIN(tests)
