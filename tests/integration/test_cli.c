/* The program as users meet it: exit codes, one clear line an error, records, files that are whole or not there. */
#define _GNU_SOURCE
#include "test.h"

#include <jansson.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "program.h"
#include "tiny_checkpoint.h"

static const char *model(void) {
  return tiny_checkpoint();
}

/* A failed run: this code, exactly one line on stderr, which begins as it should and holds `mention`. */
static void expect_error(program_result r, int code, const char *mention) {
  if (r.code != code) fail_msg("exit code %d, expected %d: %s", r.code, code, r.err);
  if (strncmp(r.err, "btcchat: ", 9) != 0) fail_msg("not an error line of ours: %s", r.err);
  if (strchr(r.err, '\n') != r.err + strlen(r.err) - 1) fail_msg("more than one line: %s", r.err);
  if (!strstr(r.err, mention)) fail_msg("'%s' is not mentioned: %s", mention, r.err);
  program_clear(&r);
}

static const char *file_with(const char *name, const void *data, size_t len) {
  static char paths[16][160];
  static int n;
  char *path = paths[n++ % 16];
  btc_error err;
  snprintf(path, sizeof paths[0], "%s/%s", test_tmp_dir(), name);
  assert_int_equal(btc_file_publish(path, data, len, &err), BTC_OK);
  return path;
}

static json_t *parse_line(const char *line) {
  json_error_t e;
  json_t *j = json_loadb(line, strcspn(line, "\n"), JSON_REJECT_DUPLICATES, &e);
  if (!j) fail_msg("not JSON: %s: %s", e.text, line);
  return j;
}

static const char *text_of(const json_t *o, const char *key) {
  const char *s = json_string_value(json_object_get(o, key));
  if (!s) fail_msg("the record lacks '%s'", key);
  return s;
}

static void test_cli_usage_errors_exit_2(void **state) {
  (void)state;
  expect_error(RUN("frobnicate"), 2, "frobnicate");
  expect_error(RUN("caption"), 2, "two images");
  expect_error(RUN("caption", "a.png"), 2, "two images");
  expect_error(RUN("caption", "--no-such-option", "a", "b"), 2, "--no-such-option");
  expect_error(RUN("caption", "--max-tokens", "0", "a", "b"), 2, "max-tokens");
  expect_error(RUN("caption", "--max-tokens", "12x", "a", "b"), 2, "12x");
  expect_error(RUN("caption", "--max-tokens"), 2, "--max-tokens");
  expect_error(RUN("caption", "--temperature", "nan", "a", "b"), 2, "nan");
  expect_error(RUN("caption", "--dtype", "f64", "a", "b"), 2, "f64");
  expect_error(RUN("caption", "-m", model(), "--device", "tpu", "a", "b"), 2, "tpu");
  expect_error(RUN("caption", "-m", model(), "--device", "cuda:99", "a", "b"), 1, "CUDA");
  expect_error(RUN("caption", "--pairs", "m", "a", "b"), 2, "--pairs");
  expect_error(RUN("ask", "what?"), 2, "image");
  expect_error(RUN("ask", "--pair", "what?", "a.png"), 2, "--pair");
  expect_error(RUN("inspect", "a", "b"), 2, "one model");
  expect_error(RUN("inspect", ""), 1, "folder is empty");
  expect_error(RUN("bench", "everything"), 2, "make-model");
  expect_error(RUN("verify"), 2, "case");
}

static void test_cli_help_everywhere(void **state) {
  static const char *const commands[] = {"caption", "ask", "inspect", "verify", "doctor", "bench"};
  (void)state;
  program_result r = RUN("--help");
  assert_int_equal(r.code, 0);
  for (int i = 0; i < 6; i++) {
    assert_non_null(strstr(r.out, commands[i]));
    program_result h = RUN(commands[i], "--help");
    assert_int_equal(h.code, 0);
    assert_non_null(strstr(h.out, "usage: btcchat"));
    assert_non_null(strstr(h.out, "--config"));
    assert_string_equal(h.err, "");
    program_clear(&h);
  }
  program_clear(&r);
  r = RUN("--version");
  assert_int_equal(r.code, 0);
  assert_memory_equal(r.out, "btcchat ", 8);
  program_clear(&r);
}

static void test_cli_caption_prints_text_or_record(void **state) {
  (void)state;
  const char *a = tiny_picture(50, 40, 1), *b = tiny_picture(50, 40, 2);
  program_result r = RUN("caption", "-m", model(), "--max-tokens", "5", a, b);
  assert_int_equal(r.code, 0);
  assert_string_equal(r.err, "");
  assert_non_null(strchr(r.out, '\n'));
  program_result j = RUN("caption", "-m", model(), "--max-tokens", "5", "--json", a, b);
  assert_int_equal(j.code, 0);
  json_t *o = parse_line(j.out);
  assert_string_equal(text_of(o, "status"), "ok");
  assert_int_equal(json_integer_value(json_object_get(o, "v")), 1);
  assert_true(json_is_boolean(json_object_get(o, "changed")));
  double score = json_number_value(json_object_get(o, "score"));
  assert_true(score > 0 && score <= 1);
  assert_true(json_integer_value(json_object_get(o, "tokens")) >= 1 && json_integer_value(json_object_get(o, "tokens")) <= 5);
  assert_memory_equal(text_of(json_object_get(o, "model"), "fingerprint"), "sha256:", 7);
  assert_string_equal(text_of(json_object_get(o, "model"), "name"), "random");
  size_t n = strlen(text_of(o, "caption"));
  assert_memory_equal(r.out, text_of(o, "caption"), n);
  assert_int_equal(r.out[n], '\n');
  json_decref(o);
  program_clear(&r);
  program_clear(&j);
}

static void test_cli_bad_images_say_why(void **state) {
  (void)state;
  const char *ok = tiny_picture(50, 40, 1), *m = model();
  expect_error(RUN("caption", "-m", m, ok, "/no/such/file.png"), 1, "/no/such/file.png");
  expect_error(RUN("caption", "-m", m, test_tmp_dir(), ok), 1, "directory");
  expect_error(RUN("caption", "-m", m, file_with("empty.png", "", 0), ok), 1, "empty.png");
  expect_error(RUN("caption", "-m", m, ok, file_with("notes.png", "just some text\n", 15)), 1, "notes.png");
  uint8_t *data;
  size_t len;
  btc_error err;
  assert_int_equal(btc_file_read(ok, 1 << 20, &data, &len, &err), BTC_OK);
  expect_error(RUN("caption", "-m", m, file_with("cut.png", data, len / 2), ok), 1, "cut.png");
  free(data);
}

static void test_cli_bad_model_says_why(void **state) {
  (void)state;
  const char *a = tiny_picture(20, 20, 1);
  char empty[160];
  snprintf(empty, sizeof empty, "%s/empty-model", test_tmp_dir());
  mkdir(empty, 0755);
  expect_error(RUN("caption", "-m", "/no/such/model", a, a), 1, "/no/such/model");
  expect_error(RUN("caption", "-m", empty, a, a), 1, "config.json");
  expect_error(RUN("inspect", a), 1, a);
  expect_error(RUN("verify", empty), 1, "expected.json");
}

static void test_cli_failed_heatmap_leaves_nothing(void **state) {
  (void)state;
  const char *a = tiny_picture(50, 40, 1), *b = tiny_picture(50, 40, 2);
  char map[160];
  struct stat sb;
  snprintf(map, sizeof map, "%s/map.png", test_tmp_dir());
  program_result r = RUN("caption", "-m", model(), "--max-tokens", "3", "--heatmap", map, a, b);
  assert_int_equal(r.code, 0);
  assert_int_equal(stat(map, &sb), 0);
  assert_true(sb.st_size > 1000);
  program_clear(&r);
  program_result bad = RUN("caption", "-m", model(), "--max-tokens", "3", "--heatmap", "/no/such/dir/map.png", a, b);
  assert_int_equal(bad.code, 1);
  assert_non_null(strstr(bad.err, "/no/such/dir/map.png"));
  program_clear(&bad);
}

static void test_cli_pairs_keep_order_and_name_bad_lines(void **state) {
  (void)state;
  const char *a = tiny_picture(50, 40, 1), *b = tiny_picture(50, 40, 2), *c = tiny_picture(31, 77, 3);
  char text[2048];
  int n = snprintf(text, sizeof text,
                   "{\"id\":\"x/1\",\"before\":\"%s\",\"after\":\"%s\",\"meta\":{\"site\":7}}\n"
                   "this is no JSON\n"
                   "{\"before\":\"%s\",\"after\":\"/missing.png\"}\n"
                   "{\"id\":\"last\",\"before\":\"%s\",\"after\":\"%s\",\"prompt\":\"ab?\"}\n",
                   a, b, a, b, c);
  const char *manifest = file_with("pairs.jsonl", text, (size_t)n);
  program_result r = RUN("caption", "-m", model(), "--max-tokens", "4", "--pairs", manifest);
  assert_int_equal(r.code, 3);
  static const char *const ids[4] = {"x/1", "2", "3", "last"};
  static const char *const reasons[4] = {NULL, "bad-request", "not-found", NULL};
  const char *line = r.out;
  for (int i = 0; i < 4; i++, line = strchr(line, '\n') + 1) {
    json_t *o = parse_line(line);
    assert_string_equal(text_of(o, "id"), ids[i]);
    assert_string_equal(text_of(o, "status"), reasons[i] ? "failed" : "ok");
    if (reasons[i]) assert_string_equal(text_of(o, "reason"), reasons[i]);
    if (i == 0) assert_int_equal(json_integer_value(json_object_get(json_object_get(o, "meta"), "site")), 7);
    if (i == 1) assert_non_null(strstr(text_of(o, "message"), "line 2"));
    if (i == 3) assert_string_equal(text_of(o, "prompt"), "ab?");
    json_decref(o);
  }
  assert_int_equal(*line, 0);
  program_clear(&r);
  program_result strict = RUN("caption", "-m", model(), "--max-tokens", "4", "--strict", "--pairs", manifest);
  assert_int_equal(strict.code, 1);
  assert_non_null(strstr(strict.err, "line 2"));
  program_clear(&strict);
  expect_error(RUN("caption", "-m", model(), "--pairs", "/no/manifest.jsonl"), 1, "/no/manifest.jsonl");
}

static void strip_timing(char *text) {
  for (char *t; (t = strstr(text, ",\"timing_ms\":{"));) {
    char *end = strchr(t, '}');
    memmove(t, end + 1, strlen(end));
  }
}

static void test_cli_pairs_equal_one_by_one(void **state) {
  (void)state;
  char text[4096];
  int n = 0;
  for (unsigned i = 0; i < 6; i++)
    n += snprintf(text + n, sizeof text - (size_t)n, "{\"before\":\"%s\",\"after\":\"%s\"}\n", tiny_picture(40 + (int)i, 40, i),
                  tiny_picture(40, 50, 90 + i));
  const char *manifest = file_with("six.jsonl", text, (size_t)n);
  program_result one = RUN("caption", "-m", model(), "--max-tokens", "9", "-b", "1", "-t", "1", "--pairs", manifest);
  program_result many = RUN("caption", "-m", model(), "--max-tokens", "9", "-b", "4", "-t", "2", "--pairs", manifest);
  assert_int_equal(one.code, 0);
  assert_int_equal(many.code, 0);
  strip_timing(one.out);
  strip_timing(many.out);
  assert_string_equal(one.out, many.out);
  program_clear(&one);
  program_clear(&many);
}

static void test_cli_ask_routes_by_kind(void **state) {
  (void)state;
  const char *a = tiny_picture(50, 40, 1), *b = tiny_picture(50, 40, 2), *m = model();
  const char *frames[] = {"ask", "-m", m, "--max-tokens", "3", "--video", "what?", a, b, a, b, a, b, a, b, NULL};
  program_result one = RUN("ask", "-m", m, "--max-tokens", "3", "what?", a),
                 pair = RUN("ask", "-m", m, "--max-tokens", "3", "--pair", "what?", a, b);
  program_result video = program_run(frames, NULL);
  assert_int_equal(one.code, 0);
  assert_int_equal(pair.code, 0);
  assert_int_equal(video.code, 0);
  expect_error(RUN("ask", "-m", m, "--video", "what?", a, b, a), 2, "8 frames");
  expect_error(RUN("ask", "-m", m, "what <image>?", a), 1, "<image>");
  program_clear(&one);
  program_clear(&pair);
  program_clear(&video);
}

static void test_cli_settings_have_their_precedence(void **state) {
  (void)state;
  const char *a = tiny_picture(50, 40, 1), *b = tiny_picture(50, 40, 2);
  char config[512], variable[300];
  int n = snprintf(config, sizeof config, "{\"model\": \"/from/config\", \"max-tokens\": 2, \"key of another command\": 1}");
  const char *file = file_with("settings.json", config, (size_t)n);
  const char *args[] = {"caption", "--config", file, a, b, NULL};
  expect_error(program_run(args, NULL), 1, "/from/config");
  snprintf(variable, sizeof variable, "BTCCHAT_MODEL=%s", model());
  program_result r = program_run(args, variable);
  assert_int_equal(r.code, 0);
  program_clear(&r);
  const char *option[] = {"caption", "--config", file, "-m", "/from/option", a, b, NULL};
  expect_error(program_run(option, variable), 1, "/from/option");
  expect_error(RUN("caption", "--config", file_with("bad.json", "[1]", 3), a, b), 2, "bad.json");
  expect_error(RUN("caption", "--config", file_with("wrong.json", "{\"max-tokens\":\"many\"}", 21), a, b), 2, "max-tokens");
}

static void test_cli_prompt_comes_from_a_file(void **state) {
  (void)state;
  const char *a = tiny_picture(50, 40, 1), *b = tiny_picture(50, 40, 2), *m = model();
  program_result r =
      RUN("caption", "-m", m, "--max-tokens", "3", "--json", "--prompt-file", file_with("prompt.txt", "ab cab\n", 7), a, b);
  assert_int_equal(r.code, 0);
  json_t *o = parse_line(r.out);
  assert_string_equal(text_of(o, "prompt"), "ab cab");
  json_decref(o);
  program_clear(&r);
  expect_error(RUN("caption", "-m", m, "--prompt-file", "/no/prompt", a, b), 1, "/no/prompt");
  expect_error(RUN("caption", "-m", m, "--prompt-file", file_with("bytes.txt", "\xff\xfe", 2), a, b), 1, "bytes.txt");
}

/* Runs the program on a full disk: exit code 1, and a line that says why. */
static void expect_full_disk(const char *arguments) {
  char command[1024], line[256] = "";
  snprintf(command, sizeof command, "'%s' %s 2>&1 >/dev/full", getenv("BTCCHAT_BINARY"), arguments);
  FILE *p = popen(command, "r");
  assert_non_null(p);
  if (!fgets(line, sizeof line, p)) line[0] = 0;
  bool more = fgetc(p) != EOF;
  int status = pclose(p);
  assert_int_equal(WEXITSTATUS(status), 1);
  if (more) fail_msg("%s: more than one line", arguments);
  if (!strstr(line, "cannot write the results: No space left on device")) fail_msg("%s: %s", arguments, line);
}

static void test_cli_full_disk_is_not_success(void **state) {
  (void)state;
  char arguments[768], line[512];
  const char *a = tiny_picture(50, 40, 1), *b = tiny_picture(50, 40, 2), *m = model();
  if (access("/dev/full", W_OK) != 0) skip();
  snprintf(arguments, sizeof arguments, "inspect '%s'", m);
  expect_full_disk(arguments);
  snprintf(line, sizeof line, "{\"before\":\"%s\",\"after\":\"%s\"}\n", a, b);
  snprintf(arguments, sizeof arguments, "caption -m '%s' --max-tokens 3 --pairs '%s'", m,
           file_with("full.jsonl", line, strlen(line)));
  expect_full_disk(arguments);
}

static void test_cli_failed_make_model_can_be_tried_again(void **state) {
  (void)state;
  char dir[256], taken[300], weights[300], tokenizer[300];
  snprintf(dir, sizeof dir, "%s/made", test_tmp_dir());
  snprintf(weights, sizeof weights, "%s/vision_tower/model.safetensors", dir);
  snprintf(tokenizer, sizeof tokenizer, "%s/llm", model());
  assert_int_equal(mkdir(dir, 0755), 0);
  snprintf(taken, sizeof taken, "%s/llm", dir);
  assert_int_equal(mkdir(taken, 0755), 0);
  snprintf(taken, sizeof taken, "%s/llm/model.safetensors", dir);
  assert_int_equal(mkdir(taken, 0755), 0); /* where the last of the weights should go */
  expect_error(RUN("bench", "make-model", dir, "--size", "small", "--tokenizer", tokenizer), 1, "llm/model.safetensors");
  assert_int_not_equal(access(weights, F_OK), 0);
  assert_int_equal(rmdir(taken), 0);
  program_result r = RUN("bench", "make-model", dir, "--size", "small", "--tokenizer", tokenizer);
  assert_int_equal(r.code, 0);
  assert_int_equal(access(weights, F_OK), 0);
  program_clear(&r);
}

/* As docs/performance.md gives them: with the options that nobody changes. */
static void test_cli_bench_measures(void **state) {
  (void)state;
  static const char *const what[] = {"pipe", "batching"};
  for (size_t i = 0; i < sizeof what / sizeof what[0]; i++) {
    program_result r = RUN("bench", what[i], "-m", model(), "--pairs", "4");
    if (r.code) fail_msg("bench %s: %s", what[i], r.err);
    assert_non_null(strstr(r.out, i ? "items/s" : "bubble"));
    program_clear(&r);
  }
}

static json_int_t gpu_number(const json_t *o, const char *key) {
  return json_integer_value(json_object_get(json_object_get(o, "gpu"), key));
}

static void test_cli_inspect_says_what_a_gpu_needs(void **state) {
  (void)state;
  json_error_t why;
  program_result r = RUN("inspect", model(), "--json", "--no-fingerprint", "--batch", "3");
  json_t *few = json_loads(r.out, 0, &why);
  program_clear(&r);
  r = RUN("inspect", model(), "--json", "--no-fingerprint", "--batch", "48");
  json_t *many = json_loads(r.out, 0, &why);
  program_clear(&r);
  assert_true(gpu_number(few, "weight_bytes") > 0 && gpu_number(few, "slot_bytes") > 0);
  assert_int_equal(gpu_number(few, "batch"), 3);
  assert_int_equal(gpu_number(few, "weight_bytes"), gpu_number(many, "weight_bytes"));
  assert_int_equal(gpu_number(many, "bytes"),
                   gpu_number(many, "weight_bytes") + 49 * gpu_number(many, "slot_bytes") + gpu_number(many, "activation_bytes"));
  assert_true(gpu_number(many, "bytes") - gpu_number(few, "bytes") >= 45 * gpu_number(few, "slot_bytes"));
  json_decref(few);
  json_decref(many);
}

static void test_cli_inspect_and_doctor_report(void **state) {
  (void)state;
  program_result r = RUN("inspect", model(), "--json");
  assert_int_equal(r.code, 0);
  json_t *o = parse_line(r.out);
  assert_int_equal(json_integer_value(json_object_get(o, "grid")), 5);
  assert_int_equal(json_array_size(json_object_get(o, "blocks")), 10);
  json_decref(o);
  program_clear(&r);
  r = RUN("inspect", model(), "--tensors");
  assert_non_null(strstr(r.out, "lm_head.weight bf16 [300,48]"));
  program_clear(&r);
  r = RUN("doctor", "-m", model());
  assert_int_equal(r.code, 0);
  assert_non_null(strstr(r.out, "model"));
  program_clear(&r);
  r = RUN("doctor", "-m", "/no/such/model", "--json");
  assert_int_equal(r.code, 1);
  o = parse_line(r.out);
  assert_true(json_is_false(json_object_get(o, "ok")));
  json_decref(o);
  program_clear(&r);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_cli_usage_errors_exit_2),
      cmocka_unit_test(test_cli_help_everywhere),
      cmocka_unit_test(test_cli_caption_prints_text_or_record),
      cmocka_unit_test(test_cli_bad_images_say_why),
      cmocka_unit_test(test_cli_bad_model_says_why),
      cmocka_unit_test(test_cli_failed_heatmap_leaves_nothing),
      cmocka_unit_test(test_cli_pairs_keep_order_and_name_bad_lines),
      cmocka_unit_test(test_cli_pairs_equal_one_by_one),
      cmocka_unit_test(test_cli_ask_routes_by_kind),
      cmocka_unit_test(test_cli_settings_have_their_precedence),
      cmocka_unit_test(test_cli_prompt_comes_from_a_file),
      cmocka_unit_test(test_cli_full_disk_is_not_success),
      cmocka_unit_test(test_cli_failed_make_model_can_be_tried_again),
      cmocka_unit_test(test_cli_bench_measures),
      cmocka_unit_test(test_cli_inspect_says_what_a_gpu_needs),
      cmocka_unit_test(test_cli_inspect_and_doctor_report),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
