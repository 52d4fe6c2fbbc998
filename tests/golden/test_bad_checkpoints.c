/*
 * Every recipe of vectors/bad: a broken checkpoint is refused with one clear line, an odd one opens, nothing crashes. Once what
 * opens a checkpoint is checked (configs, tensors, tokenizer), once the whole run of the base's first case.
 */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>

#include "engine/checkpoint.h"
#include "engine/engine.h"
#include "engine/tokenizer.h"
#include "recipes.h"

#define MAX_OPEN_NS INT64_C(60000000000) /* "bounded time": a good one takes milliseconds, a loaded machine any number of them */

static btc_status open_all(const char *dir, btc_error *err) {
  btc_checkpoint *c = NULL;
  btc_tokenizer *t = NULL;
  char llm[4096], fingerprint[72];
  snprintf(llm, sizeof llm, "%s/llm", dir);
  btc_status st = btc_checkpoint_open(dir, &c, err);
  if (st == BTC_OK) st = btc_tokenizer_open(llm, &t, err);
  if (st == BTC_OK) st = btc_checkpoint_fingerprint(c, fingerprint, err);
  btc_tokenizer_close(&t);
  btc_checkpoint_close(&c);
  return st;
}

/* Builds the checkpoint of a recipe in a new directory. */
static void build(const json_t *recipe, const char *dir) {
  char base[128];
  snprintf(base, sizeof base, "vectors/%s/ckpt", json_string_value(json_object_get(recipe, "base")));
  tree_copy(shared_path(base), dir);
  size_t i;
  json_t *step;
  json_array_foreach(json_object_get(recipe, "steps"), i, step) recipe_step(dir, step);
}

/* NULL, or what is wrong with how the checkpoint of this recipe was received. */
static const char *judge(const json_t *recipe, btc_status st, const btc_error *err) {
  const char *outcome = json_string_value(json_object_get(recipe, "outcome"));
  if (st == BTC_OK) return strcmp(outcome, "error") == 0 ? "was accepted" : NULL;
  if (strcmp(outcome, "ok") == 0) return "was refused";
  if (st != err->code || st == BTC_ERR_INTERNAL || st == BTC_ERR_NOMEM) return "has the wrong status";
  if (!err->message[0] || strchr(err->message, '\n')) return "has no message of one line";
  size_t i;
  json_t *mention;
  json_array_foreach(json_object_get(recipe, "mentions"), i, mention) {
    if (strcmp(outcome, "error") == 0 && !strstr(err->message, json_string_value(mention))) return "does not mention all it should";
  }
  return NULL;
}

static void test_bad_checkpoints_are_refused(void **state) {
  (void)state;
  skip_without_shared();
  json_t *cases = recipes_load(shared_path("vectors/bad/bad.json")), *recipe;
  size_t i, bad = 0;
  json_array_foreach(cases, i, recipe) {
    char dir[512];
    snprintf(dir, sizeof dir, "%s/bad", test_tmp_dir());
    build(recipe, dir);
    btc_error err = {0};
    int64_t start = btc_now_ns();
    btc_status st = open_all(dir, &err);
    int64_t took = btc_now_ns() - start;
    const char *wrong = judge(recipe, st, &err);
    if (!wrong && took > MAX_OPEN_NS) wrong = "took too long";
    if (wrong) {
      print_error("recipe %s %s: %s\n", json_string_value(json_object_get(recipe, "name")), wrong,
                  st == BTC_OK ? "opened" : err.message);
      bad++;
    }
    tree_remove(dir);
  }
  size_t count = json_array_size(cases);
  json_decref(cases);
  assert_true(count > 0);
  assert_int_equal(bad, 0);
}

/* ---- the first case of the base, through the whole model ---- */

typedef struct first_run {
  json_t *doc;
  const json_t *run;
  char images[8][4096];
  const char *paths[8];
  int n;
} first_run;

static void load_first_run(first_run *f, const char *base) {
  char relative[256];
  snprintf(relative, sizeof relative, "vectors/%s/expected.json", base);
  f->doc = json_load_file(shared_path(relative), JSON_ALLOW_NUL, NULL);
  assert_non_null(f->doc);
  f->run = json_array_get(json_object_get(f->doc, "runs"), 0);
  const json_t *images = json_object_get(f->run, "images");
  f->n = (int)json_array_size(images);
  for (int i = 0; i < f->n && i < 8; i++) {
    snprintf(relative, sizeof relative, "vectors/%s/%s", base, json_string_value(json_array_get(images, (size_t)i)));
    snprintf(f->images[i], sizeof f->images[i], "%s", shared_path(relative));
    f->paths[i] = f->images[i];
  }
}

/* The status of opening and answering; *same when the ids are the expected ones. */
static btc_status run_all(const char *dir, const first_run *f, bool *same, btc_error *err) {
  btc_model *m = NULL;
  btc_session *s = NULL;
  btc_session_options o = btc_session_options_default();
  o.precision = BTC_PRECISION_F32;
  *same = false;
  btc_status st = btc_model_open(dir, &m, err);
  if (st == BTC_OK) st = btc_session_create(m, &o, &s, err);
  if (st == BTC_OK) {
    btc_result r;
    btc_item item = {.images = f->paths,
                     .n_images = f->n,
                     .aspect = BTC_ASPECT_SQUASH,
                     .question = json_string_value(json_object_get(f->run, "question")),
                     .max_tokens = (int)json_integer_value(json_object_get(f->run, "max_new_tokens"))};
    btc_session_run(s, &item, 1, &r, NULL);
    st = r.status;
    *err = r.error;
    const json_t *ids = json_object_get(f->run, "ids");
    *same = st == BTC_OK && (size_t)r.n_ids == json_array_size(ids);
    for (int i = 0; *same && i < r.n_ids; i++) *same = r.ids[i] == json_integer_value(json_array_get(ids, (size_t)i));
    btc_result_clear(&r);
  }
  btc_session_destroy(&s);
  btc_model_close(&m);
  return st;
}

static void test_bad_checkpoints_run_the_first_case(void **state) {
  (void)state;
  skip_without_shared();
  json_t *cases = recipes_load(shared_path("vectors/bad/bad.json")), *recipe;
  size_t i, bad = 0;
  json_array_foreach(cases, i, recipe) {
    static first_run f;
    char dir[512];
    bool same;
    btc_error err = {0};
    snprintf(dir, sizeof dir, "%s/bad-run", test_tmp_dir());
    build(recipe, dir);
    load_first_run(&f, json_string_value(json_object_get(recipe, "base")));
    btc_status st = run_all(dir, &f, &same, &err);
    const char *wrong = judge(recipe, st, &err);
    if (!wrong && strcmp(json_string_value(json_object_get(recipe, "outcome")), "ok") == 0 && !same)
      wrong = "gives other ids than its base";
    if (wrong) {
      print_error("recipe %s %s: %s\n", json_string_value(json_object_get(recipe, "name")), wrong,
                  st == BTC_OK ? "answered" : err.message);
      bad++;
    }
    json_decref(f.doc);
    tree_remove(dir);
  }
  json_decref(cases);
  assert_int_equal(bad, 0);
}

static void test_bad_checkpoints_bases_are_good(void **state) {
  (void)state;
  skip_without_shared();
  static const char *const bases[] = {"pair-l0", "pair-l2", "pair-grid27", "single", "video", "vila-names"};
  for (size_t i = 0; i < sizeof bases / sizeof bases[0]; i++) {
    char relative[64];
    btc_error err = {0};
    snprintf(relative, sizeof relative, "vectors/%s/ckpt", bases[i]);
    if (open_all(shared_path(relative), &err) != BTC_OK) fail_msg("%s: %s", bases[i], err.message);
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_bad_checkpoints_are_refused),
    cmocka_unit_test(test_bad_checkpoints_run_the_first_case),
    cmocka_unit_test(test_bad_checkpoints_bases_are_good),
};

BTC_TEST_MAIN(tests)
