/* Configs: defaults, the values of a full file, and every way of writing a value that cannot work. */
#define _GNU_SOURCE
#include "test.h"

#include <math.h>
#include <stdio.h>

#include "engine/config.h"
#include "recipes.h"
#include "mini.h"

static char dir[256];

static const char *fresh(void) {
  snprintf(dir, sizeof dir, "%s/config", test_tmp_dir());
  tree_remove(dir);
  mini_checkpoint(dir, &(mini_options){.ce_layers = 0});
  return dir;
}

static void set(const char *file, const char *path, const char *value) {
  char step[2048];
  snprintf(step, sizeof step, "{'op':'json_set','file':'%s','path':[%s],'value':%s}", file, path, value);
  recipe_apply(dir, step);
}

static btc_config load(void) {
  btc_config c;
  btc_error err;
  if (btc_config_load(dir, &c, &err) != BTC_OK) fail_msg("%s", err.message);
  return c;
}

static void test_config_defaults(void **state) {
  (void)state;
  fresh();
  btc_config c = load();
  assert_int_equal(c.vision.channels, 3);
  assert_int_equal(c.vision.grid, 2);
  assert_int_equal(c.vision.blocks, 2);
  assert_true(c.vision.eps == 1e-6f && c.llm.eps == 1e-6f);
  assert_int_equal(c.llm.head_dim, 4);
  assert_true(c.llm.rope_theta == 10000 && c.llm.rope_factor == 1);
  assert_int_equal(c.llm.context, 2048);
  assert_int_equal(c.llm.bos, 1);
  assert_int_equal(c.llm.n_eos, 1);
  assert_int_equal(c.llm.eos[0], 2);
  assert_false(c.llm.tied_head);
  assert_true(c.generation.temperature == -1 && c.generation.top_p == -1 && c.generation.top_k == 0);
  assert_int_equal(c.pre.size, 4);
  assert_true(c.pre.mean[2] == 0.5f && c.pre.std[0] == 0.5f && c.pre.rescale == 0.00392156862745098);
  assert_int_equal(c.cc_head, 8);
  assert_int_equal(c.num_video_frames, 0);
  assert_false(c.aspect_pad);
  assert_string_equal(c.name, "");
  assert_int_equal(c.n_no_change, 0);
  assert_null(c.no_change);
  btc_config_free(&c);
}

static void test_config_reads_values(void **state) {
  (void)state;
  fresh();
  set("config.json", "'mm_projector_cfg','cc_head'", "4");
  set("config.json", "'num_video_frames'", "6");
  set("config.json", "'image_aspect_ratio'", "'pad'");
  set("config.json", "'vision_resolution'", "4");
  set("config.json", "'mm_vision_select_layer'", "1");
  set("config.json", "'btcchat'", "{'name':'nano','no_change':['the scene is the same','nothing']}");
  set("llm/config.json", "'rope_scaling'", "{'type':'linear','factor':2}");
  set("llm/config.json", "'max_position_embeddings'", "2048");
  set("llm/config.json", "'tokenizer_model_max_length'", "4000");
  set("llm/config.json", "'rope_theta'", "500000");
  set("llm/config.json", "'rms_norm_eps'", "1e-5");
  set("llm/config.json", "'pad_token_id'", "-1");
  set("llm/config.json", "'eos_token_id'", "[3,4]");
  set("vision_tower/preprocessor_config.json", "'image_mean'", "[0,1,0.25]");
  recipe_apply(dir, "{'op':'symlink','file':'mm_projector/config.json','target':'../vision_tower/preprocessor_config.json'}");
  btc_config c = load();
  assert_int_equal(c.cc_head, 4);
  assert_int_equal(c.num_video_frames, 6);
  assert_true(c.aspect_pad);
  assert_int_equal(c.vision.blocks, 1);
  assert_string_equal(c.name, "nano");
  assert_int_equal(c.n_no_change, 2);
  assert_string_equal(c.no_change[0], "the scene is the same");
  assert_true(c.llm.rope_factor == 2 && c.llm.rope_theta == 500000 && c.llm.eps == 1e-5f);
  assert_int_equal(c.llm.context, 4000);
  assert_int_equal(c.llm.n_eos, 2);
  assert_int_equal(c.llm.eos[1], 4);
  assert_true(c.pre.mean[0] == 0 && c.pre.mean[1] == 1 && c.pre.mean[2] == 0.25f);
  btc_config_free(&c);
}

static void test_config_context(void **state) {
  (void)state;
  static const struct {
    const char *positions, *factor, *longest;
    int64_t want;
  } cases[] = {{"4096", "1.0", "4096", 4096}, {"2048", "2.0", "4096", 4096}, {"2048", "1.5", "4096", 3072},
               {"4096", "1", "100", 100},     {"4096", "1", "null", 4096},   {"4096", "1", "1000000000000000019884624838656", 4096},
               {"4096", "1", "1e30", 4096}};
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    fresh();
    char scaling[64];
    snprintf(scaling, sizeof scaling, "{'rope_type':'linear','factor':%s}", cases[i].factor);
    set("llm/config.json", "'max_position_embeddings'", cases[i].positions);
    set("llm/config.json", "'rope_scaling'", scaling);
    set("llm/config.json", "'tokenizer_model_max_length'", cases[i].longest);
    btc_config c = load();
    assert_int_equal(c.llm.context, cases[i].want);
    btc_config_free(&c);
  }
}

static void write_generation(const char *text) {
  char path[300];
  snprintf(path, sizeof path, "%s/llm/generation_config.json", dir);
  assert_int_equal(btc_file_publish(path, text, strlen(text), NULL), BTC_OK);
}

static void test_config_generation_goes_first(void **state) {
  (void)state;
  fresh();
  set("llm/config.json", "'eos_token_id'", "5");
  btc_config c = load();
  assert_int_equal(c.llm.eos[0], 5);
  btc_config_free(&c);
  write_generation("{\"eos_token_id\":[7,8,9],\"temperature\":0.2,\"top_p\":null,\"top_k\":50}");
  c = load();
  assert_int_equal(c.llm.n_eos, 3);
  assert_int_equal(c.llm.eos[2], 9);
  assert_true(c.generation.temperature == 0.2f && c.generation.top_p == -1);
  assert_int_equal(c.generation.top_k, 50);
  btc_config_free(&c);
  write_generation("{\"eos_token_id\":null}");
  c = load();
  assert_int_equal(c.llm.eos[0], 5);
  btc_config_free(&c);
}

/* One key wrong, in a checkpoint that is fine otherwise: file and key must be named. */
static const struct {
  const char *file, *path, *value;
  btc_status status;
} refused[] = {
    {"config.json", "'architectures'", "null", BTC_ERR_MODEL},
    {"config.json", "'architectures'", "[7]", BTC_ERR_MODEL},
    {"config.json", "'s2'", "true", BTC_ERR_UNSUPPORTED},
    {"config.json", "'s2'", "'no'", BTC_ERR_MODEL},
    {"config.json", "'mm_use_im_start_end'", "true", BTC_ERR_UNSUPPORTED},
    {"config.json", "'mm_vision_select_layer'", "4", BTC_ERR_MODEL},
    {"config.json", "'mm_vision_select_layer'", "-5", BTC_ERR_MODEL},
    {"config.json", "'mm_vision_select_layer'", "'-2'", BTC_ERR_MODEL},
    {"config.json", "'mm_vision_select_feature'", "'cls'", BTC_ERR_UNSUPPORTED},
    {"config.json", "'vision_resolution'", "384", BTC_ERR_UNSUPPORTED},
    {"config.json", "'vision_resolution'", "-2", BTC_ERR_UNSUPPORTED},
    {"config.json", "'num_video_frames'", "-1", BTC_ERR_MODEL},
    {"config.json", "'num_video_frames'", "100000", BTC_ERR_MODEL},
    {"config.json", "'num_video_frames'", "8.0", BTC_ERR_MODEL},
    {"config.json", "'image_aspect_ratio'", "1", BTC_ERR_MODEL},
    {"config.json", "'mm_projector_cfg','cc_head'", "0", BTC_ERR_MODEL},
    {"config.json", "'mm_projector_cfg','cc_head'", "'8'", BTC_ERR_MODEL},
    {"config.json", "'llm_cfg'", "[]", BTC_ERR_MODEL},
    {"config.json", "'btcchat'", "1", BTC_ERR_MODEL},
    {"config.json", "'btcchat'", "{'name':1}", BTC_ERR_MODEL},
    {"config.json", "'btcchat'", "{'no_change':'x'}", BTC_ERR_MODEL},
    {"config.json", "'btcchat'", "{'no_change':['x',1]}", BTC_ERR_MODEL},
    {"llm/config.json", "'model_type'", "'mistral'", BTC_ERR_UNSUPPORTED},
    {"llm/config.json", "'hidden_size'", "0", BTC_ERR_MODEL},
    {"llm/config.json", "'hidden_size'", "1000000000000000000000000000", BTC_ERR_MODEL},
    {"llm/config.json", "'hidden_size'", "8.5", BTC_ERR_MODEL},
    {"llm/config.json", "'hidden_size'", "true", BTC_ERR_MODEL},
    {"llm/config.json", "'intermediate_size'", "-1", BTC_ERR_MODEL},
    {"llm/config.json", "'intermediate_size'", "2000000000", BTC_ERR_MODEL},
    {"llm/config.json", "'num_hidden_layers'", "0", BTC_ERR_MODEL},
    {"llm/config.json", "'num_hidden_layers'", "2000000000", BTC_ERR_MODEL},
    {"llm/config.json", "'num_attention_heads'", "3", BTC_ERR_MODEL},
    {"llm/config.json", "'num_attention_heads'", "8", BTC_ERR_MODEL}, /* head width 1 */
    {"llm/config.json", "'num_key_value_heads'", "4", BTC_ERR_MODEL},
    {"llm/config.json", "'head_dim'", "8", BTC_ERR_UNSUPPORTED},
    {"llm/config.json", "'vocab_size'", "0", BTC_ERR_MODEL},
    {"llm/config.json", "'vocab_size'", "4000000000", BTC_ERR_MODEL},
    {"llm/config.json", "'hidden_act'", "'gelu'", BTC_ERR_UNSUPPORTED},
    {"llm/config.json", "'attention_bias'", "true", BTC_ERR_UNSUPPORTED},
    {"llm/config.json", "'mlp_bias'", "true", BTC_ERR_UNSUPPORTED},
    {"llm/config.json", "'rms_norm_eps'", "0", BTC_ERR_MODEL},
    {"llm/config.json", "'rms_norm_eps'", "'1e-5'", BTC_ERR_MODEL},
    {"llm/config.json", "'rope_theta'", "-10000", BTC_ERR_MODEL},
    {"llm/config.json", "'rope_theta'", "null", BTC_ERR_MODEL},
    {"llm/config.json", "'rope_scaling'", "'linear'", BTC_ERR_MODEL},
    {"llm/config.json", "'rope_scaling'", "{}", BTC_ERR_MODEL},
    {"llm/config.json", "'rope_scaling'", "{'type':'linear'}", BTC_ERR_MODEL},
    {"llm/config.json", "'rope_scaling'", "{'type':'linear','factor':0.5}", BTC_ERR_MODEL},
    {"llm/config.json", "'rope_scaling'", "{'type':'dynamic','factor':2.0}", BTC_ERR_UNSUPPORTED},
    {"llm/config.json", "'max_position_embeddings'", "0", BTC_ERR_MODEL},
    {"llm/config.json", "'max_position_embeddings'", "1000000000000", BTC_ERR_MODEL},
    {"llm/config.json", "'tokenizer_model_max_length'", "0", BTC_ERR_MODEL},
    {"llm/config.json", "'tokenizer_model_max_length'", "'4096'", BTC_ERR_MODEL},
    {"llm/config.json", "'tie_word_embeddings'", "1", BTC_ERR_MODEL},
    {"llm/config.json", "'bos_token_id'", "16", BTC_ERR_MODEL},
    {"llm/config.json", "'pad_token_id'", "-2", BTC_ERR_MODEL},
    {"llm/config.json", "'eos_token_id'", "16", BTC_ERR_MODEL},
    {"llm/config.json", "'eos_token_id'", "[]", BTC_ERR_MODEL},
    {"llm/config.json", "'eos_token_id'", "[2,'3']", BTC_ERR_MODEL},
    {"llm/config.json", "'eos_token_id'", "[1,2,3,4,5,6,7,8,9]", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'model_type'", "'clip_vision_model'", BTC_ERR_UNSUPPORTED},
    {"vision_tower/config.json", "'hidden_size'", "-8", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'intermediate_size'", "0", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'num_hidden_layers'", "0", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'num_attention_heads'", "3", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'num_channels'", "1", BTC_ERR_UNSUPPORTED},
    {"vision_tower/config.json", "'image_size'", "0", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'image_size'", "1000000", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'patch_size'", "5", BTC_ERR_MODEL},
    {"vision_tower/config.json", "'hidden_act'", "'gelu'", BTC_ERR_UNSUPPORTED},
    {"vision_tower/config.json", "'layer_norm_eps'", "-1", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'size'", "384", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'size'", "{'shortest_edge':384}", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'size'", "{'height':4,'width':5}", BTC_ERR_UNSUPPORTED},
    {"vision_tower/preprocessor_config.json", "'size'", "{'height':0,'width':0}", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'resample'", "2", BTC_ERR_UNSUPPORTED},
    {"vision_tower/preprocessor_config.json", "'do_resize'", "false", BTC_ERR_UNSUPPORTED},
    {"vision_tower/preprocessor_config.json", "'do_rescale'", "false", BTC_ERR_UNSUPPORTED},
    {"vision_tower/preprocessor_config.json", "'do_normalize'", "false", BTC_ERR_UNSUPPORTED},
    {"vision_tower/preprocessor_config.json", "'rescale_factor'", "0", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'image_mean'", "[0.5,0.5]", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'image_mean'", "[0.5,0.5,1e300]", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'image_std'", "[0.5,0.5,0]", BTC_ERR_MODEL},
    {"vision_tower/preprocessor_config.json", "'image_std'", "0.5", BTC_ERR_MODEL},
    {"mm_projector/config.json", "'mm_projector_type'", "'linear'", BTC_ERR_UNSUPPORTED},
    {"mm_projector/config.json", "'mm_projector_type'", "3", BTC_ERR_MODEL},
};

static void test_config_refuses_bad_values(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
    fresh();
    set(refused[i].file, refused[i].path, refused[i].value);
    btc_config c;
    btc_error err = {0};
    btc_status st = btc_config_load(dir, &c, &err);
    char key[64], file[300];
    const char *last = strrchr(refused[i].path, ',');
    last = last ? last + 1 : refused[i].path;
    snprintf(key, sizeof key, "%.*s", (int)strlen(last) - 2, last + 1);
    snprintf(file, sizeof file, "%s/%s'", dir, refused[i].file);
    if (st != refused[i].status || st != err.code || !strstr(err.message, key) || !strstr(err.message, file))
      fail_msg("%s %s = %s: status %d, '%s'", refused[i].file, refused[i].path, refused[i].value, st,
               st == BTC_OK ? "accepted" : err.message);
  }
}

static void test_config_accepts_odd_values(void **state) {
  (void)state;
  static const char *const odd[][3] = {
      {"config.json", "'s2'", "false"},
      {"config.json", "'some_future_key'", "{'a':[123456789012345678901234567890]}"},
      {"config.json", "'architectures'", "['Other','MyLLaVAmodel']"},
      {"config.json", "'vision_resolution'", "-1"},
      {"config.json", "'btcchat'", "null"},
      {"config.json", "'llm_cfg'", "'some/path'"}, /* the folder is there */
      {"config.json", "'mm_projector_cfg'", "'some/path'"},
      {"llm/config.json", "'num_key_value_heads'", "null"},
      {"llm/config.json", "'head_dim'", "4"},
      {"llm/config.json", "'rope_scaling'", "null"},
      {"llm/config.json", "'pad_token_id'", "null"},
      {"llm/config.json", "'pad_token_id'", "32000"}, /* beyond the vocabulary; never used */
      {"vision_tower/config.json", "'model_type'", "'siglip_vision_model'"},
      {"vision_tower/preprocessor_config.json", "'do_convert_rgb'", "null"},
      {"mm_projector/config.json", "'mm_projector_type'", "'checkpoints/base/mm_projector'"},
  };
  for (size_t i = 0; i < sizeof odd / sizeof odd[0]; i++) {
    fresh();
    set(odd[i][0], odd[i][1], odd[i][2]);
    btc_config c = load();
    btc_config_free(&c);
  }
}

static void test_config_raw_siglip_release(void **state) {
  (void)state;
  fresh();
  tree_remove(dir);
  mini_checkpoint(dir, &(mini_options){.raw_tower = true});
  btc_config c = load();
  assert_int_equal(c.vision.hidden, 8);
  btc_config_free(&c);
  set("vision_tower/config.json", "'vision_config','patch_size'", "0");
  btc_error err;
  assert_int_equal(btc_config_load(dir, &c, &err), BTC_ERR_MODEL);
  assert_non_null(strstr(err.message, "vision_config.patch_size"));
  set("vision_tower/config.json", "'vision_config'", "[]");
  assert_int_equal(btc_config_load(dir, &c, &err), BTC_ERR_MODEL);
}

static void test_config_refuses_bad_files(void **state) {
  (void)state;
  static const char *const files[] = {"config.json", "llm/config.json", "vision_tower/config.json",
                                      "vision_tower/preprocessor_config.json", "mm_projector/config.json"};
  static const struct {
    const char *step;
    btc_status status;
  } steps[] = {{"{'op':'delete','file':'%s'}", BTC_ERR_NOT_FOUND},
               {"{'op':'directory','file':'%s'}", BTC_ERR_IO},
               {"{'op':'truncate','file':'%s','size':0}", BTC_ERR_FORMAT},
               {"{'op':'text','file':'%s','value':'[]'}", BTC_ERR_FORMAT},
               {"{'op':'repeat','file':'%s','value':'[','times':90000}", BTC_ERR_FORMAT},
               {"{'op':'repeat','file':'%s','value':'[','times':200000}", BTC_ERR_LIMIT},
               {"{'op':'repeat','file':'%s','value':'          ','times':200000}", BTC_ERR_LIMIT},
               {"{'op':'write','file':'%s','offset':1,'hex':'ff'}", BTC_ERR_FORMAT},
               {"{'op':'write','file':'%s','offset':1,'hex':'00'}", BTC_ERR_FORMAT}};
  for (size_t f = 0; f < 5; f++) {
    for (size_t s = 0; s < sizeof steps / sizeof steps[0]; s++) {
      char step[256];
      btc_config c;
      btc_error err = {0};
      fresh();
      if (strstr(steps[s].step, "'write'")) set(files[f], "'k'", "1");
      snprintf(step, sizeof step, steps[s].step, files[f]);
      recipe_apply(dir, step);
      btc_status st = btc_config_load(dir, &c, &err);
      if (st != steps[s].status || !strstr(err.message, files[f])) fail_msg("%s: status %d, %s", step, st, err.message);
    }
  }
}

static void test_config_component_elsewhere(void **state) {
  (void)state;
  fresh();
  set("config.json", "'llm_cfg'", "'hub/model'");
  char llm[300];
  snprintf(llm, sizeof llm, "%s/llm", dir);
  tree_remove(llm);
  btc_config c;
  btc_error err;
  assert_int_equal(btc_config_load(dir, &c, &err), BTC_ERR_UNSUPPORTED);
  assert_non_null(strstr(err.message, "hub/model"));
}

static void test_config_bounds_no_change(void **state) {
  (void)state;
  fresh();
  char many[1024] = "{'no_change':['x'";
  for (int i = 0; i < 64; i++) strcat(many, ",'x'");
  strcat(many, "]}");
  set("config.json", "'btcchat'", many);
  btc_config c;
  btc_error err;
  assert_int_equal(btc_config_load(dir, &c, &err), BTC_ERR_MODEL);
  assert_non_null(strstr(err.message, "btcchat.no_change"));
  char name[200];
  memset(name, 'n', sizeof name);
  memcpy(name, "{'name':'", 9);
  strcpy(name + 9 + 128, "'}");
  set("config.json", "'btcchat'", name);
  assert_int_equal(btc_config_load(dir, &c, &err), BTC_ERR_MODEL);
  strcpy(name + 9 + 127, "'}");
  set("config.json", "'btcchat'", name);
  c = load();
  assert_int_equal(strlen(c.name), 127);
  btc_config_free(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_config_defaults),
    cmocka_unit_test(test_config_reads_values),
    cmocka_unit_test(test_config_context),
    cmocka_unit_test(test_config_generation_goes_first),
    cmocka_unit_test(test_config_refuses_bad_values),
    cmocka_unit_test(test_config_accepts_odd_values),
    cmocka_unit_test(test_config_raw_siglip_release),
    cmocka_unit_test(test_config_refuses_bad_files),
    cmocka_unit_test(test_config_component_elsewhere),
    cmocka_unit_test(test_config_bounds_no_change),
};

BTC_TEST_MAIN(tests)
