/* Ids and texts against the golden cases of every checkpoint and of the public 32000-piece model. */
#include "test.h"

#include <jansson.h>
#include <stdio.h>

#include "engine/tokenizer.h"

static const char *const cases[] = {"pair-l0", "pair-l2", "pair-grid27", "single", "video", "vila-names"};
enum { CASES = sizeof cases / sizeof *cases };

static json_t *load_json(const char *relative) {
  json_error_t problem;
  json_t *json = json_load_file(shared_path(relative), JSON_ALLOW_NUL, &problem);
  if (!json) fail_msg("%s: %s", relative, problem.text);
  return json;
}

static btc_tokenizer *open_shared(const char *relative) {
  btc_tokenizer *t = NULL;
  btc_error err = {0};
  if (btc_tokenizer_open(shared_path(relative), &t, &err) != BTC_OK) fail_msg("%s", err.message);
  return t;
}

static bool same_ids(const json_t *want, const int32_t *ids, size_t n) {
  if (json_array_size(want) != n) return false;
  for (size_t i = 0; i < n; i++)
    if (json_integer_value(json_array_get(want, i)) != ids[i]) return false;
  return true;
}

static size_t ids_of(const json_t *list, int32_t *ids, size_t room) {
  assert_true(json_array_size(list) <= room);
  for (size_t i = 0; i < json_array_size(list); i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
  return json_array_size(list);
}

static void test_tokenizer_encode_golden(void **state) {
  (void)state;
  skip_without_shared();
  json_t *doc = load_json("vectors/tokenizer/ids.json"), *c;
  btc_tokenizer *t = open_shared("vectors/tokenizer");
  assert_int_equal(btc_tokenizer_vocab(t), 32000);
  assert_int_equal(btc_tokenizer_bos(t), 1);
  assert_int_equal(btc_tokenizer_eos(t), 2);
  size_t i, wrong = 0;
  json_array_foreach(json_object_get(doc, "encode"), i, c) {
    const json_t *text = json_object_get(c, "text");
    int32_t *ids;
    size_t n;
    btc_error err = {0};
    if (btc_tokenizer_encode(t, json_string_value(text), json_string_length(text), &ids, &n, &err) != BTC_OK)
      fail_msg("%s", err.message);
    if (!same_ids(json_object_get(c, "ids"), ids, n)) {
      print_message("case %zu: '%s'\n", i, json_string_value(text));
      wrong++;
    }
    free(ids);
  }
  assert_true(i > 300);
  assert_int_equal(wrong, 0);
  btc_tokenizer_close(&t);
  json_decref(doc);
}

static void assert_decodes(const btc_tokenizer *t, const json_t *list, const json_t *want) {
  int32_t ids[4096];
  size_t n = ids_of(list, ids, 4096), len;
  char *text;
  btc_error err = {0};
  if (btc_tokenizer_decode(t, ids, n, &text, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(len, json_string_length(want));
  assert_memory_equal(text, json_string_value(want), len + 1);
  free(text);
}

static void test_tokenizer_decode_golden(void **state) {
  (void)state;
  skip_without_shared();
  json_t *doc = load_json("vectors/tokenizer/ids.json"), *c;
  btc_tokenizer *t = open_shared("vectors/tokenizer");
  size_t i;
  json_array_foreach(json_object_get(doc, "decode"), i, c) assert_decodes(t, json_object_get(c, "ids"), json_object_get(c, "text"));
  assert_true(i > 100);
  btc_tokenizer_close(&t);
  json_decref(doc);
}

static void test_tokenizer_decode_answers(void **state) {
  (void)state;
  skip_without_shared();
  size_t runs = 0;
  for (size_t k = 0; k < CASES; k++) {
    char path[128];
    snprintf(path, sizeof path, "vectors/%s/expected.json", cases[k]);
    json_t *doc = load_json(path), *run;
    snprintf(path, sizeof path, "vectors/%s/ckpt/llm", cases[k]);
    btc_tokenizer *t = open_shared(path);
    assert_int_equal(btc_tokenizer_vocab(t), json_integer_value(json_object_get(doc, "vocab")));
    size_t i;
    json_array_foreach(json_object_get(doc, "runs"), i, run) {
      assert_decodes(t, json_object_get(run, "ids"), json_object_get(run, "text_raw"));
      runs++;
    }
    btc_tokenizer_close(&t);
    json_decref(doc);
  }
  assert_true(runs >= CASES);
}

/* text -> ids -> text is the identity on text without special tokens that does not begin with a marker. */
static void test_tokenizer_round_trip(void **state) {
  (void)state;
  skip_without_shared();
  json_t *doc = load_json("vectors/tokenizer/ids.json"), *c;
  btc_tokenizer *t = open_shared("vectors/single/ckpt/llm");
  size_t i;
  json_array_foreach(json_object_get(doc, "encode"), i, c) {
    const char *text = json_string_value(json_object_get(c, "text"));
    if (strstr(text, "\xE2\x96\x81") || strstr(text, "<s>") || strstr(text, "</s>") || strstr(text, "<unk>")) continue;
    int32_t *ids;
    size_t n, len;
    char *back;
    assert_int_equal(btc_tokenizer_encode(t, text, strlen(text), &ids, &n, NULL), BTC_OK);
    assert_int_equal(btc_tokenizer_decode(t, ids, n, &back, &len, NULL), BTC_OK);
    assert_string_equal(back, text);
    assert_int_equal(len, strlen(text));
    free(ids);
    free(back);
  }
  btc_tokenizer_close(&t);
  json_decref(doc);
}

static double encode_seconds(const btc_tokenizer *t, const char *unit) {
  const size_t len = BTC_TOKENIZER_MAX_BYTES, step = strlen(unit);
  char *text = malloc(len);
  assert_non_null(text);
  for (size_t i = 0; i < len; i++) text[i] = unit[i % step];
  int32_t *ids;
  size_t n;
  btc_error err = {0};
  int64_t start = btc_now_ns();
  if (btc_tokenizer_encode(t, text, len, &ids, &n, &err) != BTC_OK) fail_msg("%s", err.message);
  double seconds = (double)(btc_now_ns() - start) * 1e-9;
  free(ids);
  free(text);
  return seconds;
}

/* The longest text, in shapes that are hard on BPE: one long merge chain, nothing but fallback bytes, nothing but spaces,
 * invalid UTF-8, specials everywhere. Takes 0.1-2 s each; the bound leaves room for sanitizers and a busy machine. */
static void test_tokenizer_encode_longest_text(void **state) {
  (void)state;
  skip_without_shared();
  static const char *const units[] = {"a", "\x01", "\xFF", "<unk> "};
  btc_tokenizer *t = open_shared("vectors/tokenizer");
  for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
    double seconds = encode_seconds(t, units[i]);
    if (seconds > 30) fail_msg("unit %zu took %.1f s", i, seconds);
  }
  btc_tokenizer_close(&t);
}

/* One test a line: the build registers them by line. */
/* clang-format off */
static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_tokenizer_encode_golden),
    cmocka_unit_test(test_tokenizer_decode_golden),
    cmocka_unit_test(test_tokenizer_decode_answers),
    cmocka_unit_test(test_tokenizer_round_trip),
    cmocka_unit_test(test_tokenizer_encode_longest_text),
};
/* clang-format on */

BTC_TEST_MAIN(tests)
