/* Envelopes: there and back, bytes of others, versions before and after ours. */
#define _GNU_SOURCE
#include "test.h"

#include "proto/btcchat_prev.pb-c.h"
#include "proto/wire.h"

static Btc__Envelope *unpack(const uint8_t *data, size_t len) {
  Btc__Envelope *e;
  btc_error err;
  if (btc_wire_unpack(data, len, &e, &err) != BTC_OK) fail_msg("%s", err.message);
  return e;
}

static void refused(const uint8_t *data, size_t len, btc_status want, const char *text) {
  Btc__Envelope *e = NULL;
  btc_error err = {0};
  assert_int_equal(btc_wire_unpack(data, len, &e, &err), want);
  assert_null(e);
  if (!strstr(err.message, text)) fail_msg("'%s' lacks '%s'", err.message, text);
}

static void test_wire_round_trip(void **state) {
  (void)state;
  Btc__ItemResult r = BTC__ITEM_RESULT__INIT, *list[] = {&r};
  Btc__Results results = BTC__RESULTS__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_RESULTS);
  uint8_t *data;
  size_t len;
  btc_error err;
  r.off = 31;
  r.id = "Zürich/1";
  r.record = "{\"v\":1}";
  r.outcome = BTC__OUTCOME__OUTCOME_TRANSIENT;
  results.cid = UINT64_MAX;
  results.jid = "j1";
  results.items = list;
  results.n_items = 1;
  e.req_id = 7;
  e.results = &results;
  assert_int_equal(btc_wire_pack(&e, &data, &len, &err), BTC_OK);
  Btc__Envelope *back = unpack(data, len);
  assert_int_equal(back->ver, BTC_WIRE_VERSION);
  assert_int_equal(back->req_id, 7);
  assert_int_equal(back->body_case, BTC__ENVELOPE__BODY_RESULTS);
  assert_true(back->results->cid == UINT64_MAX);
  assert_int_equal(back->results->n_items, 1);
  assert_string_equal(back->results->items[0]->id, "Zürich/1");
  assert_string_equal(back->results->items[0]->message, "");
  assert_int_equal(back->results->items[0]->outcome, BTC__OUTCOME__OUTCOME_TRANSIENT);
  assert_int_equal(btc_wire_req_id(data, len), 7);
  btc_wire_free(&back);
  assert_null(back);
  free(data);
}

static void test_wire_names_bodies(void **state) {
  (void)state;
  assert_string_equal(btc_wire_body_name(BTC__ENVELOPE__BODY_RESULTS), "results");
  assert_string_equal(btc_wire_body_name(BTC__ENVELOPE__BODY__NOT_SET), "unknown");
  assert_string_equal(btc_wire_body_name((Btc__Envelope__BodyCase)999), "unknown");
}

/* Every prefix of a message is refused or is a shorter envelope; none reads past its end (ASan). */
static void test_wire_truncated_anywhere(void **state) {
  (void)state;
  Btc__Hello hello = BTC__HELLO__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HELLO);
  uint8_t *data;
  size_t len;
  hello.worker = "gpu-1";
  hello.incarnation = 1u << 30;
  e.req_id = 300;
  e.hello = &hello;
  assert_int_equal(btc_wire_pack(&e, &data, &len, NULL), BTC_OK);
  for (size_t n = 0; n < len; n++) {
    uint8_t *exact = malloc(n ? n : 1);
    Btc__Envelope *out;
    btc_error err = {0};
    memcpy(exact, data, n);
    btc_status st = btc_wire_unpack(exact, n, &out, &err);
    assert_int_equal(st == BTC_OK, out != NULL);
    assert_true(out || err.message[0]);
    btc_wire_req_id(exact, n);
    btc_wire_free(&out);
    free(exact);
  }
  free(data);
}

static void test_wire_refuses_bad_bytes(void **state) {
  (void)state;
  static const uint8_t no_body[] = {0x08, 1, 0x10, 1}, group[] = {0x08, 1, 0x53, 0x54}, field_0[] = {0x00, 1};
  static const uint8_t late[] = {0x08, 9, 0x10, 2, 0x52, 0}, ancient[] = {0x52, 0}, cut[] = {0x08, 1, 0x52, 0x7f};
  static const uint8_t nul[] = {0x08, 1, 0xa2, 1, 5, 0x0a, 3, 'a', 0, 'b'}, latin[] = {0x08, 1, 0xa2, 1, 3, 0x0a, 1, 0xe9};
  static const uint8_t long_nul[] = {0x08, 1, 0xa2, 1, 14, 0x0a, 12, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 0, 'i', 'j', 'k', 'l'};
  refused(NULL, 0, BTC_ERR_UNSUPPORTED, "version 0");
  refused(no_body, sizeof no_body, BTC_ERR_FORMAT, "without a body");
  refused(group, sizeof group, BTC_ERR_FORMAT, "malformed");
  refused(field_0, sizeof field_0, BTC_ERR_FORMAT, "malformed");
  refused(cut, sizeof cut, BTC_ERR_FORMAT, "ends early");
  refused(late, sizeof late, BTC_ERR_UNSUPPORTED, "version 9");
  refused(ancient, sizeof ancient, BTC_ERR_UNSUPPORTED, "version 0");
  refused(nul, sizeof nul, BTC_ERR_FORMAT, "Hello.worker is not UTF-8");
  refused(long_nul, sizeof long_nul, BTC_ERR_FORMAT, "Hello.worker is not UTF-8");
  refused(latin, sizeof latin, BTC_ERR_FORMAT, "Hello.worker is not UTF-8");
}

/* Two bytes of an empty item cost tens of bytes of memory: the cap, not the size of the message, stops it. */
static void test_wire_caps_memory(void **state) {
  (void)state;
  const size_t n = 3000000, inner = 2 * n;
  uint8_t *data = malloc(inner + 16), head[] = {0x08, 1, 0x9a, 3}; /* ver 1, body status_reply (51) */
  assert_non_null(data);
  memcpy(data, head, sizeof head);
  size_t at = sizeof head;
  for (int i = 0; i < 4; i++) data[at++] = (uint8_t)((inner >> (7 * i) & 0x7f) | (i < 3 ? 0x80 : 0));
  for (size_t i = 0; i < n; i++) data[at++] = 0x12, data[at++] = 0; /* jobs */
  refused(data, at, BTC_ERR_LIMIT, "more than");
  free(data);
}

static void test_wire_bounds_size(void **state) {
  (void)state;
  char *big = malloc(BTC_WIRE_MAX_BYTES + 1);
  assert_non_null(big);
  memset(big, 'x', BTC_WIRE_MAX_BYTES);
  big[BTC_WIRE_MAX_BYTES] = 0;
  Btc__Bye bye = BTC__BYE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_BYE);
  uint8_t *data;
  size_t len;
  btc_error err;
  bye.why = big;
  e.bye = &bye;
  assert_int_equal(btc_wire_pack(&e, &data, &len, &err), BTC_ERR_LIMIT);
  assert_non_null(strstr(err.message, "bye"));
  refused((const uint8_t *)big, BTC_WIRE_MAX_BYTES + 1, BTC_ERR_LIMIT, "at most");
  bye.why = "caf\xe9";
  assert_int_equal(btc_wire_pack(&e, &data, &len, &err), BTC_ERR_FORMAT);
  free(big);
}

static bool no_memory(size_t bytes) {
  return bytes < 32; /* lets small ones pass, so that the failure comes in the middle */
}

static void test_wire_without_memory(void **state) {
  (void)state;
  static const uint8_t hello[] = {0x08, 1, 0xa2, 1, 3, 0x0a, 1, 'w'};
  Btc__Envelope *e;
  btc_alloc_hook = no_memory;
  btc_status st = btc_wire_unpack(hello, sizeof hello, &e, NULL);
  btc_alloc_hook = NULL;
  assert_int_not_equal(st, BTC_OK);
  assert_null(e);
}

/* ---- another version (tests/support/btcchat_prev.proto) ---- */

static size_t pack_prev(BtcPrev__Envelope *e, uint8_t *data, size_t room) {
  assert_true(btc_prev__envelope__get_packed_size(e) <= room);
  return btc_prev__envelope__pack(e, data);
}

static void test_wire_reads_another_version(void **state) {
  (void)state;
  uint8_t data[512];
  char *devices[] = {"cpu", "cuda:0"};
  BtcPrev__Hello hello = BTC_PREV__HELLO__INIT;
  BtcPrev__Envelope e = BTC_PREV__ENVELOPE__INIT;
  e.ver = 2;
  e.min_ver = 1;
  e.req_id = 5;
  e.region = "north";
  e.body_case = BTC_PREV__ENVELOPE__BODY_HELLO;
  e.hello = &hello;
  hello.worker = "w";
  hello.credits = 9;
  hello.devices = devices;
  hello.n_devices = 2;
  Btc__Envelope *back = unpack(data, pack_prev(&e, data, sizeof data));
  assert_int_equal(back->body_case, BTC__ENVELOPE__BODY_HELLO);
  assert_string_equal(back->hello->worker, "w");
  assert_int_equal(back->hello->credits, 9);
  assert_string_equal(back->hello->model_class, ""); /* never NULL, though the other side does not know it */
  assert_int_equal(back->hello->n_held, 0);
  assert_string_equal(back->trace_id, "");
  btc_wire_free(&back);
}

static void test_wire_unknown_body_arrives(void **state) {
  (void)state;
  uint8_t data[128];
  BtcPrev__Teleport t = BTC_PREV__TELEPORT__INIT;
  BtcPrev__Envelope e = BTC_PREV__ENVELOPE__INIT;
  t.where = "home";
  e.ver = 2;
  e.min_ver = 1;
  e.req_id = 6;
  e.body_case = BTC_PREV__ENVELOPE__BODY_TELEPORT;
  e.teleport = &t;
  Btc__Envelope *back = unpack(data, pack_prev(&e, data, sizeof data));
  assert_int_equal(back->body_case, BTC__ENVELOPE__BODY__NOT_SET); /* answered with Nack UNKNOWN, which needs: */
  assert_int_equal(back->req_id, 6);
  btc_wire_free(&back);
}

static void test_wire_unknown_outcome_arrives(void **state) {
  (void)state;
  uint8_t data[256];
  BtcPrev__ItemResult r = BTC_PREV__ITEM_RESULT__INIT, *list[] = {&r};
  BtcPrev__Results results = BTC_PREV__RESULTS__INIT;
  BtcPrev__Envelope e = BTC_PREV__ENVELOPE__INIT;
  r.outcome = 77;
  r.id = "x";
  r.seconds = 1.5;
  results.items = list;
  results.n_items = 1;
  e.ver = 1;
  e.body_case = BTC_PREV__ENVELOPE__BODY_RESULTS;
  e.results = &results;
  Btc__Envelope *back = unpack(data, pack_prev(&e, data, sizeof data));
  assert_int_equal((int)back->results->items[0]->outcome, 77);
  assert_string_equal(back->results->items[0]->record, "");
  btc_wire_free(&back);
}

static void test_wire_read_by_another_version(void **state) {
  (void)state;
  Btc__Held held = BTC__HELD__INIT, *list[] = {&held};
  Btc__Hello hello = BTC__HELLO__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_HELLO);
  uint8_t *data;
  size_t len;
  hello.worker = "w";
  hello.credits = 3;
  hello.model_class = "stub";
  hello.held = list;
  hello.n_held = 1;
  e.trace_id = "t";
  e.hello = &hello;
  assert_int_equal(btc_wire_pack(&e, &data, &len, NULL), BTC_OK);
  BtcPrev__Envelope *back = btc_prev__envelope__unpack(NULL, len, data);
  assert_non_null(back);
  assert_int_equal(back->body_case, BTC_PREV__ENVELOPE__BODY_HELLO);
  assert_string_equal(back->hello->worker, "w");
  assert_int_equal(back->hello->credits, 3);
  btc_prev__envelope__free_unpacked(back, NULL);
  free(data);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_wire_round_trip),
    cmocka_unit_test(test_wire_names_bodies),
    cmocka_unit_test(test_wire_truncated_anywhere),
    cmocka_unit_test(test_wire_refuses_bad_bytes),
    cmocka_unit_test(test_wire_caps_memory),
    cmocka_unit_test(test_wire_bounds_size),
    cmocka_unit_test(test_wire_without_memory),
    cmocka_unit_test(test_wire_reads_another_version),
    cmocka_unit_test(test_wire_unknown_body_arrives),
    cmocka_unit_test(test_wire_unknown_outcome_arrives),
    cmocka_unit_test(test_wire_read_by_another_version),
};
BTC_TEST_MAIN(tests)
