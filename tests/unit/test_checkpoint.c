/* Opening checkpoints: names in all their spellings, shards, what may be absent and what may not, fingerprints. */
#define _GNU_SOURCE
#include "test.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/checkpoint.h"
#include "mini.h"
#include "recipes.h"

static char dir[256];

static void fresh(const mini_options *o) {
  snprintf(dir, sizeof dir, "%s/checkpoint", test_tmp_dir());
  tree_remove(dir);
  mini_checkpoint(dir, o);
}

static btc_checkpoint *open_it(void) {
  btc_checkpoint *c;
  btc_error err;
  if (btc_checkpoint_open(dir, &c, &err) != BTC_OK) fail_msg("%s", err.message);
  return c;
}

static void expect_opens(void) {
  btc_checkpoint *c = open_it();
  btc_checkpoint_close(&c);
  assert_null(c);
}

static void expect_refused(btc_status status, const char *file, const char *mention) {
  btc_checkpoint *c;
  btc_error err = {0};
  btc_status st = btc_checkpoint_open(dir, &c, &err);
  assert_null(c);
  if (st != status || !strstr(err.message, file) || !strstr(err.message, mention))
    fail_msg("status %d, '%s' lacks '%s' or '%s'", st, st == BTC_OK ? "accepted" : err.message, file, mention);
}

static void test_checkpoint_opens(void **state) {
  (void)state;
  fresh(&(mini_options){.ce_layers = 0});
  btc_checkpoint *c = open_it();
  assert_string_equal(btc_checkpoint_dir(c), dir);
  assert_int_equal(btc_checkpoint_config(c)->llm.vocab, 16);
  assert_int_equal(btc_checkpoint_ce_layers(c), 0);
  assert_int_equal(btc_checkpoint_ce_width(c), 0);
  assert_int_equal(btc_checkpoint_count(c, BTC_PART_LLM), 1 + 2 * 9 + 2);
  assert_string_equal(btc_checkpoint_at(c, BTC_PART_LLM, 0)->name, "model.embed_tokens.weight");
  const btc_tensor_view *v;
  assert_int_equal(btc_checkpoint_tensor(c, BTC_PART_LLM, "lm_head.weight", 2, (const int64_t[]){16, 8}, &v, NULL), BTC_OK);
  assert_int_equal(v->bytes, 512);
  btc_error err;
  assert_int_equal(btc_checkpoint_tensor(c, BTC_PART_LLM, "lm_head.weight", 2, (const int64_t[]){8, 16}, &v, &err), BTC_ERR_MODEL);
  assert_non_null(strstr(err.message, "[16, 8]"));
  assert_non_null(strstr(err.message, "[8, 16]"));
  assert_null(v);
  assert_int_equal(btc_checkpoint_tensor(c, BTC_PART_LLM, "lm_head.weight", 3, (const int64_t[]){16, 8, 1}, &v, &err),
                   BTC_ERR_MODEL);
  assert_int_equal(btc_checkpoint_tensor(c, BTC_PART_VISION, "lm_head.weight", 1, (const int64_t[]){1}, &v, &err), BTC_ERR_MODEL);
  assert_non_null(strstr(err.message, "vision_tower/model.safetensors"));
  btc_checkpoint_close(&c);
}

static void test_checkpoint_counts_change_layers(void **state) {
  (void)state;
  for (int layers = -1; layers < 4; layers++) {
    fresh(&(mini_options){.ce_layers = layers});
    btc_checkpoint *c = open_it();
    assert_int_equal(btc_checkpoint_ce_layers(c), layers);
    assert_int_equal(btc_checkpoint_ce_width(c), layers > 0 ? 8 : 0);
    btc_checkpoint_close(&c);
  }
}

static void test_checkpoint_vila_names(void **state) {
  (void)state;
  fresh(&(mini_options){.ce_layers = -1, .vila = true});
  btc_checkpoint *c = open_it();
  const btc_tensor_view *v;
  assert_int_equal(btc_checkpoint_tensor(c, BTC_PART_PROJECTOR, "layers.single.2.weight", 2, (const int64_t[]){8, 32}, &v, NULL),
                   BTC_OK);
  assert_string_equal(v->name, "layers.2.weight");
  btc_checkpoint_close(&c);
  recipe_apply(dir, "{'op':'header_del','file':'mm_projector/model.safetensors','tensor':'layers.4.bias'}");
  expect_refused(BTC_ERR_MODEL, "mm_projector/model.safetensors", "'layers.4.bias'");
}

/* With a stored layers.single.* the bare names mean something else. */
static void test_checkpoint_vila_names_only_without_single(void **state) {
  (void)state;
  fresh(&(mini_options){.ce_layers = -1});
  recipe_apply(dir,
               "{'op':'header_add','file':'mm_projector/model.safetensors','tensor':'layers.1.weight',"
               "'value':{'dtype':'F32','shape':[0],'data_offsets':'end'}}");
  expect_opens();
}

static void test_checkpoint_prefixes(void **state) {
  (void)state;
  fresh(&(mini_options){.ce_layers = 1, .prefixes = true});
  btc_checkpoint *c = open_it();
  assert_int_equal(btc_checkpoint_ce_layers(c), 1);
  assert_string_equal(btc_checkpoint_at(c, BTC_PART_LLM, 0)->name, "llm.model.embed_tokens.weight");
  btc_checkpoint_close(&c);
  recipe_apply(dir,
               "{'op':'header_add','file':'llm/model.safetensors','tensor':'lm_head.weight',"
               "'value':{'dtype':'F32','shape':[0],'data_offsets':'end'}}");
  expect_refused(BTC_ERR_MODEL, "llm/model.safetensors", "there twice");
}

static void test_checkpoint_tied_head(void **state) {
  (void)state;
  fresh(&(mini_options){.tied = true});
  expect_opens();
  recipe_apply(dir, "{'op':'json_set','file':'llm/config.json','path':['tie_word_embeddings'],'value':false}");
  expect_refused(BTC_ERR_MODEL, "llm/model.safetensors", "lm_head.weight");
}

static void test_checkpoint_shards(void **state) {
  (void)state;
  fresh(&(mini_options){.sharded = true});
  btc_checkpoint *c = open_it();
  assert_int_equal(btc_checkpoint_count(c, BTC_PART_LLM), 21);
  btc_checkpoint_close(&c);
}

static void test_checkpoint_refuses_bad_index(void **state) {
  (void)state;
  static const struct {
    const char *shard; /* of lm_head.weight, as JSON */
    const char *mention;
    btc_status status;
  } cases[] = {{"'../llm/model-00002-of-00002.safetensors'", "index.json", BTC_ERR_FORMAT},
               {"'/dev/zero'", "index.json", BTC_ERR_FORMAT},
               {"'..'", "index.json", BTC_ERR_FORMAT},
               {"''", "index.json", BTC_ERR_FORMAT},
               {"'.safetensors'", "index.json", BTC_ERR_FORMAT},
               {"'tokenizer.model'", "index.json", BTC_ERR_FORMAT},
               {"'a\\\\b.safetensors'", "index.json", BTC_ERR_FORMAT},
               {"null", "index.json", BTC_ERR_FORMAT},
               {"['model-00002-of-00002.safetensors']", "index.json", BTC_ERR_FORMAT},
               {"'model-00003-of-00002.safetensors'", "model-00003-of-00002.safetensors", BTC_ERR_NOT_FOUND},
               {"'model-00001-of-00002.safetensors'", "lm_head.weight", BTC_ERR_MODEL}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char step[256];
    fresh(&(mini_options){.sharded = true});
    snprintf(step, sizeof step,
             "{'op':'json_set','file':'llm/model.safetensors.index.json','path':['weight_map','lm_head.weight'],'value':%s}",
             cases[i].shard);
    recipe_apply(dir, step);
    expect_refused(cases[i].status, "llm/", cases[i].mention);
  }
  static const char *const maps[] = {"{}", "{'weight_map':{}}", "{'weight_map':[]}", "[]", "{'weight_map':"};
  for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++) {
    char text[64], path[300];
    fresh(&(mini_options){.sharded = true});
    strcpy(text, maps[i]);
    for (char *q = text; *q; q++) *q = *q == '\'' ? '"' : *q;
    snprintf(path, sizeof path, "%s/llm/model.safetensors.index.json", dir);
    assert_int_equal(btc_file_publish(path, text, strlen(text), NULL), BTC_OK);
    expect_refused(BTC_ERR_FORMAT, "llm/model.safetensors.index.json", "");
  }
}

/* Every tensor in turn is removed, or given a shape of one dimension more: refused by name. */
static void test_checkpoint_needs_every_tensor(void **state) {
  (void)state;
  static const char *const files[] = {"llm/model.safetensors", "vision_tower/model.safetensors", "mm_projector/model.safetensors"};
  for (int part = 0; part < 3; part++) {
    fresh(&(mini_options){.ce_layers = 1});
    btc_checkpoint *c = open_it();
    for (size_t i = 0; i < btc_checkpoint_count(c, (btc_part)part); i++) {
      const btc_tensor_view *v = btc_checkpoint_at(c, (btc_part)part, i);
      char path[300], copy[300], step[512];
      snprintf(path, sizeof path, "%s/%s", dir, files[part]);
      snprintf(copy, sizeof copy, "%s/copy", dir);
      assert_int_equal(rename(path, copy), 0); /* the open handle keeps the old file */
      for (int reshape = 0; reshape < 2; reshape++) {
        uint8_t *bytes;
        size_t len;
        assert_int_equal(btc_file_read(copy, 1 << 20, &bytes, &len, NULL), BTC_OK);
        unlink(path);
        assert_int_equal(btc_file_publish(path, bytes, len, NULL), BTC_OK);
        free(bytes);
        if (reshape) {
          int at =
              snprintf(step, sizeof step, "{'op':'header_set','file':'%s','tensor':'%s','keys':{'shape':[1", files[part], v->name);
          for (int d = 0; d < v->rank; d++) at += snprintf(step + at, sizeof step - (size_t)at, ",%d", (int)v->dim[d]);
          snprintf(step + at, sizeof step - (size_t)at, "]}}");
        } else {
          snprintf(step, sizeof step, "{'op':'header_del','file':'%s','tensor':'%s'}", files[part], v->name);
        }
        recipe_apply(dir, step);
        expect_refused(BTC_ERR_MODEL, files[part], v->name);
      }
      assert_int_equal(rename(copy, path), 0);
    }
    btc_checkpoint_close(&c);
  }
}

static void test_checkpoint_refuses_odd_change_names(void **state) {
  (void)state;
  static const char *const names[] = {"layers.change.selftrans.x.0.norm1.weight", "layers.change.selftrans.-1.0.norm1.weight",
                                      "layers.change.selftrans.99999999999999999999.0.norm1.weight", "layers.change.selftrans.7"};
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
    char step[256];
    fresh(&(mini_options){.ce_layers = 1});
    snprintf(step, sizeof step,
             "{'op':'header_add','file':'mm_projector/model.safetensors','tensor':'%s',"
             "'value':{'dtype':'F32','shape':[0],'data_offsets':'end'}}",
             names[i]);
    recipe_apply(dir, step);
    expect_refused(BTC_ERR_MODEL, "mm_projector/model.safetensors", names[i]);
  }
}

static void test_checkpoint_refuses_contradictions(void **state) {
  (void)state;
  fresh(&(mini_options){.ce_layers = 1});
  recipe_apply(dir, "{'op':'json_set','file':'config.json','path':['mm_projector_cfg','cc_head'],'value':3}");
  expect_refused(BTC_ERR_MODEL, "config.json", "cc_head");
  fresh(&(mini_options){.ce_layers = 0}); /* heads do not matter without layers */
  recipe_apply(dir, "{'op':'json_set','file':'config.json','path':['mm_projector_cfg','cc_head'],'value':3}");
  expect_opens();
  recipe_apply(dir,
               "{'op':'json_set','file':'vision_tower/preprocessor_config.json','path':['size'],'value':{'height':8,'width':8}}");
  expect_refused(BTC_ERR_MODEL, "vision_tower/preprocessor_config.json", "size");
  fresh(&(mini_options){.ce_layers = -1});
  recipe_apply(dir,
               "{'op':'header_set','file':'mm_projector/model.safetensors','tensor':'layers.single.4.bias',"
               "'keys':{'dtype':'I64','shape':[4]}}");
  expect_refused(BTC_ERR_MODEL, "mm_projector/model.safetensors", "layers.single.4.bias");
}

static void test_checkpoint_refuses_variances_that_are_none(void **state) {
  (void)state;
  static const char *const hex[] = {"000080bf", "0000c07f", "0000807f"}; /* -1, NaN, infinity */
  for (int i = 0; i < 3; i++) {
    char step[256];
    fresh(&(mini_options){.ce_layers = 0});
    snprintf(step, sizeof step,
             "{'op':'fill','file':'mm_projector/model.safetensors','tensor':'layers.change.LN.left.7.running_var','hex':'%s'}",
             hex[i]);
    recipe_apply(dir, step);
    expect_refused(BTC_ERR_MODEL, "mm_projector/model.safetensors", "layers.change.LN.left.7.running_var");
  }
}

static void write_tokenizer(const char *text) {
  char path[300];
  snprintf(path, sizeof path, "%s/llm/tokenizer.model", dir);
  assert_int_equal(btc_file_publish(path, text, strlen(text), NULL), BTC_OK);
}

static void fingerprint(char out[72]) {
  write_tokenizer("pieces");
  btc_checkpoint *c = open_it();
  char again[72];
  btc_error err;
  if (btc_checkpoint_fingerprint(c, out, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(btc_checkpoint_fingerprint(c, again, &err), BTC_OK);
  assert_string_equal(out, again);
  assert_int_equal(strlen(out), 71);
  assert_memory_equal(out, "sha256:", 7);
  btc_checkpoint_close(&c);
}

static void test_checkpoint_fingerprint_ignores_packaging(void **state) {
  (void)state;
  char plain[72], other[72];
  fresh(&(mini_options){.ce_layers = -1});
  fingerprint(plain);
  fresh(&(mini_options){.ce_layers = -1, .sharded = true});
  fingerprint(other);
  assert_string_equal(plain, other);
  fresh(&(mini_options){.ce_layers = -1, .prefixes = true, .raw_tower = true});
  fingerprint(other);
  assert_string_equal(plain, other);
  fresh(&(mini_options){.ce_layers = -1, .vila = true});
  recipe_apply(dir, "{'op':'json_set','file':'llm/config.json','path':['torch_dtype'],'value':'float32'}");
  fingerprint(other);
  assert_string_equal(plain, other);
}

static void test_checkpoint_fingerprint_sees_changes(void **state) {
  (void)state;
  static const char *const steps[] = {
      "{'op':'fill','file':'llm/model.safetensors','tensor':'model.norm.weight','hex':'0000803f'}",
      "{'op':'fill','file':'mm_projector/model.safetensors','tensor':'layers.single.4.bias','hex':'00000001'}",
      "{'op':'json_set','file':'llm/config.json','path':['rms_norm_eps'],'value':1e-5}",
      "{'op':'json_set','file':'llm/config.json','path':['eos_token_id'],'value':[2,3]}",
      "{'op':'json_set','file':'vision_tower/preprocessor_config.json','path':['image_std'],'value':[1,1,1]}",
      "{'op':'json_set','file':'config.json','path':['btcchat'],'value':{'no_change':['same']}}",
  };
  char plain[72], other[72];
  fresh(&(mini_options){.ce_layers = -1});
  fingerprint(plain);
  for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    fresh(&(mini_options){.ce_layers = -1});
    recipe_apply(dir, steps[i]);
    fingerprint(other);
    if (strcmp(plain, other) == 0) fail_msg("%s", steps[i]);
  }
  fresh(&(mini_options){.ce_layers = -1});
  write_tokenizer("other pieces");
  btc_checkpoint *c = open_it();
  assert_int_equal(btc_checkpoint_fingerprint(c, other, NULL), BTC_OK);
  assert_string_not_equal(plain, other);
  btc_checkpoint_close(&c);
}

static void test_checkpoint_fingerprint_needs_tokenizer(void **state) {
  (void)state;
  fresh(&(mini_options){.ce_layers = -1});
  btc_checkpoint *c = open_it();
  char out[72];
  btc_error err;
  assert_int_equal(btc_checkpoint_fingerprint(c, out, &err), BTC_ERR_NOT_FOUND);
  assert_non_null(strstr(err.message, "llm/tokenizer.model"));
  btc_checkpoint_close(&c);
}

/* Files that were just written cannot be told apart by their times: this opens again until they can be. */
static void known(char out[BTC_KNOWN]) {
  for (int i = 0; i < 600; i++) {
    btc_checkpoint *c = open_it();
    btc_error err;
    if (btc_checkpoint_known(c, out, &err) != BTC_OK) fail_msg("%s", err.message);
    btc_checkpoint_close(&c);
    if (out[0]) return;
    poll(NULL, 0, 100);
  }
  fail_msg("the files never settled");
}

static bool recognises(const char *text, char fingerprint[72]) {
  btc_checkpoint *c = open_it();
  bool same = btc_checkpoint_recognise(c, text);
  assert_int_equal(btc_checkpoint_fingerprint(c, fingerprint, NULL), BTC_OK);
  btc_checkpoint_close(&c);
  return same;
}

static void test_checkpoint_recognises_its_files(void **state) {
  (void)state;
  char text[BTC_KNOWN], other[BTC_KNOWN], plain[72], got[72], path[300];
  struct stat sb;
  fresh(&(mini_options){.ce_layers = -1});
  fingerprint(plain);
  known(text);
  assert_true(recognises(text, got));
  assert_string_equal(got, plain);
  memcpy(other, text, sizeof other);
  other[strlen(other) - 1] = text[strlen(text) - 1] == '0' ? '1' : '0';
  assert_true(recognises(other, got)); /* it is believed: nothing was read */
  assert_string_equal(got, other + 65);
  memcpy(other, text, sizeof other);
  other[0] = text[0] == '0' ? '1' : '0';
  assert_false(recognises(other, got));
  assert_string_equal(got, plain);
  static const char *const none[] = {"", "x", "sha256:"};
  for (int i = 0; i < 3; i++) assert_false(recognises(none[i], got));

  snprintf(path, sizeof path, "%s/llm/model.safetensors", dir);
  assert_int_equal(stat(path, &sb), 0);
  recipe_apply(dir, "{'op':'fill','file':'llm/model.safetensors','tensor':'model.norm.weight','hex':'0000803f'}");
  const struct timespec times[2] = {sb.st_atim, sb.st_mtim}; /* whoever sets them back is found out too */
  assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
  known(other);
  assert_false(recognises(text, got));
  assert_string_not_equal(got, plain);
  assert_true(recognises(other, got));
  write_tokenizer("other pieces");
  assert_false(recognises(other, got));
  write_tokenizer("pieces");
  assert_true(recognises(other, got));
  recipe_apply(dir, "{'op':'json_set','file':'llm/config.json','path':['rms_norm_eps'],'value':1e-5}");
  assert_false(recognises(other, got));
}

static int fail_at;
static bool fail_one(size_t bytes) {
  (void)bytes;
  return fail_at-- != 0;
}

static void test_checkpoint_survives_lack_of_memory(void **state) {
  (void)state;
  fresh(&(mini_options){.ce_layers = 1, .sharded = true, .vila = true});
  recipe_apply(dir, "{'op':'json_set','file':'config.json','path':['btcchat'],'value':{'no_change':['a','b']}}");
  btc_status st = BTC_ERR_NOMEM;
  for (int n = 0; st != BTC_OK && n < 500; n++) {
    btc_checkpoint *c;
    fail_at = n;
    btc_alloc_hook = fail_one;
    st = btc_checkpoint_open(dir, &c, NULL);
    btc_alloc_hook = NULL;
    assert_true(st == BTC_OK || st == BTC_ERR_NOMEM);
    btc_checkpoint_close(&c);
  }
  assert_int_equal(st, BTC_OK);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_checkpoint_opens),
    cmocka_unit_test(test_checkpoint_counts_change_layers),
    cmocka_unit_test(test_checkpoint_vila_names),
    cmocka_unit_test(test_checkpoint_vila_names_only_without_single),
    cmocka_unit_test(test_checkpoint_prefixes),
    cmocka_unit_test(test_checkpoint_tied_head),
    cmocka_unit_test(test_checkpoint_shards),
    cmocka_unit_test(test_checkpoint_refuses_bad_index),
    cmocka_unit_test(test_checkpoint_needs_every_tensor),
    cmocka_unit_test(test_checkpoint_refuses_odd_change_names),
    cmocka_unit_test(test_checkpoint_refuses_contradictions),
    cmocka_unit_test(test_checkpoint_refuses_variances_that_are_none),
    cmocka_unit_test(test_checkpoint_fingerprint_ignores_packaging),
    cmocka_unit_test(test_checkpoint_fingerprint_sees_changes),
    cmocka_unit_test(test_checkpoint_fingerprint_needs_tokenizer),
    cmocka_unit_test(test_checkpoint_recognises_its_files),
    cmocka_unit_test(test_checkpoint_survives_lack_of_memory),
};

BTC_TEST_MAIN(tests)
