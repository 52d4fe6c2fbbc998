/* The worker's model engine: items that join while others are under way give the records that a session gives. */
#include "test.h"

#include <jansson.h>
#include <stdio.h>

#include "tiny_checkpoint.h"
#include "worker/engine.h"
#include "worker/item.h"

enum { N = 14 };

typedef struct answers {
  worker_answer list[N];
  bool got[N];
  int n;
} answers;

static void on_done(void *ctx, uint64_t ticket, worker_answer *a) {
  answers *all = ctx;
  assert_in_range(ticket, 1000, 1000 + N - 1);
  assert_false(all->got[ticket - 1000]);
  all->got[ticket - 1000] = true;
  all->list[ticket - 1000] = *a;
  all->n++;
}

static void on_flush(void *ctx) {
  (void)ctx;
}

static void make_spec(int i, char spec[1024]) {
  const char *before = tiny_picture(40 + i, 50, (unsigned)i),
             *after = i == 4 ? "/nowhere/at-all.png" : tiny_picture(41 + i, 50, (unsigned)i + 1);
  if (i == 6)
    snprintf(spec, 1024, "{\"id\":\"%d\",\"problem\":\"not an object\"}", i);
  else if (i == 9)
    snprintf(spec, 1024, "{\"id\":\"%d\",\"before\":\"%s\",\"after\":\"%s\",\"prompt\":\"an <image> too many\"}", i, before, after);
  else
    snprintf(spec, 1024, "{\"id\":\"%d\",\"before\":\"%s\",\"after\":\"%s\",\"meta\":{\"k\":%d}}", i, before, after, i);
}

static const char *params_of(int i) {
  return i % 3 == 2 ? "{\"max_tokens\":9,\"temperature\":0.8,\"seed\":4}" : i % 3 ? "{\"max_tokens\":3}" : "{}";
}

static char *without_timing(const char *record) {
  json_t *o = json_loads(record, 0, NULL);
  assert_non_null(o);
  json_object_del(o, "timing_ms");
  char *line = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
  json_decref(o);
  return line;
}

static void check_against_session(const answers *all) {
  btc_model *m;
  btc_session *s;
  btc_error err;
  record_model rm;
  btc_session_options so = btc_session_options_default();
  so.threads = 1;
  so.max_tokens = 16;
  so.precision = BTC_PRECISION_F32;
  assert_int_equal(btc_model_open(tiny_checkpoint(), &m, &err), BTC_OK);
  assert_int_equal(btc_session_create(m, &so, &s, &err), BTC_OK);
  assert_int_equal(record_model_fill(m, BTC_PRECISION_F32, &rm, &err), BTC_OK);
  for (int i = 0; i < N; i++) {
    char spec[1024];
    work_item it;
    btc_item ask;
    btc_result r;
    make_spec(i, spec);
    assert_int_equal(item_from_spec(&it, spec, params_of(i), &err), BTC_OK);
    assert_int_equal(item_run(s, &it, 1, &ask, &r, &err), BTC_OK);
    char *record = item_record(m, &rm, &it), *wanted = without_timing(record), *got = without_timing(all->list[i].record);
    assert_string_equal(wanted, got);
    assert_string_equal(it.id, all->list[i].id);
    assert_int_equal(all->list[i].outcome, it.result.status == BTC_OK ? BTC__OUTCOME__OUTCOME_OK : BTC__OUTCOME__OUTCOME_PERMANENT);
    free(record);
    free(wanted);
    free(got);
    item_clear(&it);
  }
  btc_session_destroy(&s);
  btc_model_close(&m);
}

static void test_engine_model_takes_items_at_any_time(void **state) {
  (void)state;
  btc_worker_options o = btc_worker_options_default();
  worker_engine *e;
  btc_error err = {0};
  answers all = {.n = 0};
  const worker_sink sink = {.ctx = &all, .done = on_done, .flush = on_flush};
  o.model = tiny_checkpoint();
  o.dtype = "f32";
  o.threads = 1;
  o.batch = 3;
  o.max_tokens = 16;
  if (engine_model_create(&o, &e, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(e->room(e), 6); /* no more than the agent gives: two batches */
  bool overtaken = false;
  for (int i = 0; i < N || e->open(e);) {
    if (i < N && e->room(e) && i % 4 != 3) {
      char spec[1024];
      make_spec(i, spec);
      assert_int_equal(e->add(e, &(worker_item){.spec = spec, .params = params_of(i)}, 1000 + (uint64_t)i, &sink, &err), BTC_OK);
      i++;
      continue;
    }
    assert_int_equal(e->step(e, &sink, &err), BTC_OK);
    for (int k = 1; k < N; k++) overtaken |= all.got[k] && !all.got[k - 1];
    if (i < N && i % 4 == 3 && e->room(e)) {
      char spec[1024];
      make_spec(i, spec);
      assert_int_equal(e->add(e, &(worker_item){.spec = spec, .params = params_of(i)}, 1000 + (uint64_t)i, &sink, &err), BTC_OK);
      i++;
    }
  }
  assert_int_equal(all.n, N);
  assert_true(overtaken); /* short answers do not wait for long ones */
  assert_true(e->progress > 0);
  e->destroy(e);
  check_against_session(&all);
  for (int i = 0; i < N; i++) worker_answer_clear(&all.list[i]);
}

static void test_engine_model_leaves_with_items_open(void **state) {
  (void)state;
  btc_worker_options o = btc_worker_options_default();
  worker_engine *e;
  btc_error err = {0};
  char spec[1024];
  answers all = {.n = 0};
  const worker_sink sink = {.ctx = &all, .done = on_done, .flush = on_flush};
  o.model = tiny_checkpoint();
  o.threads = 1;
  o.batch = 2;
  assert_int_equal(engine_model_create(&o, &e, &err), BTC_OK);
  make_spec(0, spec);
  for (uint64_t i = 0; i < 4; i++)
    assert_int_equal(e->add(e, &(worker_item){.spec = spec, .params = "{}"}, 1000 + i, &sink, &err), BTC_OK);
  assert_int_equal(e->add(e, &(worker_item){.spec = spec, .params = "{}"}, 1004, &sink, &err), BTC_ERR_LIMIT);
  assert_int_equal(e->step(e, &sink, &err), BTC_OK);
  e->destroy(e);
  assert_int_equal(all.n, 0);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_engine_model_takes_items_at_any_time),
      cmocka_unit_test(test_engine_model_leaves_with_items_open),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
