/* Rendered prompts and their ids against the golden cases. */
#include "test.h"

#include <jansson.h>
#include <stdio.h>

#include "engine/prompt.h"

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

static void assert_prompt_ids(const btc_tokenizer *t, const char *prompt, const json_t *want) {
  int32_t *ids;
  size_t n;
  btc_error err = {0};
  if (btc_prompt_encode(t, prompt, &ids, &n, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(n, json_array_size(want));
  for (size_t i = 0; i < n; i++) assert_int_equal(ids[i], json_integer_value(json_array_get(want, i)));
  free(ids);
}

static void assert_renders(const json_t *messages, const char *want) {
  btc_message turns[16];
  size_t n = json_array_size(messages);
  assert_true(n <= 16);
  for (size_t i = 0; i < n; i++) {
    const json_t *m = json_array_get(messages, i);
    turns[i].role = json_string_value(json_array_get(m, 0));
    turns[i].text = json_string_value(json_array_get(m, 1)); /* NULL for null */
  }
  char *text;
  btc_error err = {0};
  if (btc_prompt_render(turns, n, &text, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_string_equal(text, want);
  free(text);
}

static void test_prompts_golden(void **state) {
  (void)state;
  skip_without_shared();
  json_t *doc = load_json("vectors/prompts.json"), *c;
  btc_tokenizer *t = open_shared("vectors/tokenizer");
  assert_string_equal(btc_prompt_system, json_string_value(json_object_get(doc, "system")));
  assert_int_equal(BTC_IMAGE_ID, json_integer_value(json_object_get(doc, "image_id")));
  size_t i;
  json_array_foreach(json_object_get(doc, "cases"), i, c) {
    const char *prompt = json_string_value(json_object_get(c, "prompt"));
    const json_t *messages = json_object_get(c, "messages");
    if (json_is_array(messages)) assert_renders(messages, prompt);
    assert_prompt_ids(t, prompt, json_object_get(c, "ids"));
  }
  assert_true(i > 10);
  btc_tokenizer_close(&t);
  json_decref(doc);
}

/* question -> rendered prompt -> ids, as a run of the checkpoint has them */
static void assert_run(const btc_tokenizer *t, const json_t *run) {
  const char *prompt = json_string_value(json_object_get(run, "prompt"));
  const char *question = json_string_value(json_object_get(run, "question"));
  assert_prompt_ids(t, prompt, json_object_get(run, "prompt_ids"));
  if (!question) return;
  size_t n_tags = 0;
  for (const char *p = prompt; (p = strstr(p, BTC_IMAGE_TAG)); p++) n_tags++;
  char *text;
  btc_error err = {0};
  if (btc_prompt_question(question, n_tags, &text, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_string_equal(text, prompt);
  free(text);
}

static void test_prompts_of_checkpoints(void **state) {
  (void)state;
  skip_without_shared();
  static const char *const cases[] = {"pair-l0", "pair-l2", "pair-grid27", "single", "video", "vila-names"};
  size_t runs = 0;
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    char path[128];
    snprintf(path, sizeof path, "vectors/%s/expected.json", cases[k]);
    json_t *doc = load_json(path), *run;
    snprintf(path, sizeof path, "vectors/%s/ckpt/llm", cases[k]);
    btc_tokenizer *t = open_shared(path);
    size_t i;
    json_array_foreach(json_object_get(doc, "runs"), i, run) assert_run(t, run);
    runs += i;
    btc_tokenizer_close(&t);
    json_decref(doc);
  }
  assert_true(runs >= 6);
}

/* One test a line: the build registers them by line. */
/* clang-format off */
static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_prompts_golden),
    cmocka_unit_test(test_prompts_of_checkpoints),
};
/* clang-format on */

BTC_TEST_MAIN(tests)
