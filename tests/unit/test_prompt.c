/* Template v1, image holes and question files, with a model built in memory. */
#include "test.h"

#include <stdio.h>

#include "engine/prompt.h"
#include "tests/support/tiny_tokenizer.h"

static btc_tokenizer *open_tiny(void) {
  static tiny_model m;
  btc_tokenizer *t = NULL;
  tiny_default(&m);
  assert_int_equal(btc_tokenizer_open_memory(m.bytes, m.n, "tiny", &t, NULL), BTC_OK);
  return t;
}

static void assert_renders(const btc_message *messages, size_t n, const char *want) {
  char *text, expected[512];
  snprintf(expected, sizeof expected, "%s %s", btc_prompt_system, want);
  assert_int_equal(btc_prompt_render(messages, n, &text, NULL), BTC_OK);
  assert_string_equal(text, expected);
  free(text);
}

static void test_prompt_renders_turns(void **state) {
  (void)state;
  const btc_message turns[] = {{"USER", "one"}, {"ASSISTANT", "two"}, {"USER", " three "}, {"ASSISTANT", NULL}};
  assert_renders(turns, 0, "");
  assert_renders(turns, 1, "USER: one ");
  assert_renders(turns, 2, "USER: one ASSISTANT: two</s>");
  assert_renders(turns, 4, "USER: one ASSISTANT: two</s>USER:  three  ASSISTANT:");
  const btc_message empty[] = {{"USER", ""}, {"ASSISTANT", ""}};
  assert_renders(empty, 2, "USER:ASSISTANT:");
}

static void test_prompt_refuses_roles(void **state) {
  (void)state;
  const btc_message turns[] = {{"USER", "a"}, {"System", "b"}}, none[] = {{NULL, "a"}};
  char *text;
  btc_error err = {0};
  assert_int_equal(btc_prompt_render(turns, 2, &text, &err), BTC_ERR_ARG);
  assert_null(text);
  assert_non_null(strstr(err.message, "message 2 has the role 'System'"));
  assert_int_equal(btc_prompt_render(none, 1, &text, &err), BTC_ERR_ARG);
}

static void test_prompt_question_puts_tags(void **state) {
  (void)state;
  char *text;
  assert_int_equal(btc_prompt_question("why?", 2, &text, NULL), BTC_OK);
  assert_string_equal(text + strlen(btc_prompt_system), " USER: <image>\n<image>\nwhy? ASSISTANT:");
  free(text);
  assert_int_equal(btc_prompt_question("", 0, &text, NULL), BTC_OK);
  assert_string_equal(text + strlen(btc_prompt_system), " USER:ASSISTANT:");
  free(text);
}

static void test_prompt_refuses_tags_in_question(void **state) {
  (void)state;
  char *text;
  btc_error err = {0};
  assert_int_equal(btc_prompt_question("see <image>?", 1, &text, &err), BTC_ERR_ARG);
  assert_null(text);
  assert_non_null(strstr(err.message, "<image>"));
  assert_int_equal(btc_prompt_question(NULL, 1, &text, &err), BTC_ERR_ARG);
  assert_int_equal(btc_prompt_question("see <image and image>", 1, &text, &err), BTC_OK);
  free(text);
}

static void test_prompt_is_bounded(void **state) {
  (void)state;
  size_t room = BTC_PROMPT_MAX_BYTES - strlen(btc_prompt_system) - strlen(" USER: <image>\n ASSISTANT:");
  char *question = malloc(room + 2), *text;
  btc_error err = {0};
  assert_non_null(question);
  memset(question, 'q', room + 1);
  question[room + 1] = 0;
  assert_int_equal(btc_prompt_question(question, 1, &text, &err), BTC_ERR_LIMIT);
  assert_null(text);
  assert_non_null(strstr(err.message, "too long"));
  question[room] = 0;
  assert_int_equal(btc_prompt_question(question, 1, &text, &err), BTC_OK);
  assert_int_equal(strlen(text), BTC_PROMPT_MAX_BYTES);
  free(text);
  free(question);
  assert_int_equal(btc_prompt_question("", SIZE_MAX, &text, &err), BTC_ERR_LIMIT);
}

static void assert_ids(const btc_tokenizer *t, const char *text, size_t n_want, const int32_t *want) {
  int32_t *ids;
  size_t n;
  assert_int_equal(btc_prompt_encode(t, text, &ids, &n, NULL), BTC_OK);
  assert_int_equal(n, n_want);
  assert_memory_equal(ids, want, n * sizeof *ids);
  free(ids);
}

#define IDS(t, text, ...) assert_ids(t, text, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (int32_t[]){__VA_ARGS__})

static void test_prompt_encodes_holes(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  IDS(t, "", 1);
  IDS(t, "<image>", 1, -200);
  IDS(t, "<image><image>", 1, -200, -200);
  IDS(t, "a<image>a", 1, TINY_M_A, -200, TINY_M_A); /* every chunk gets its own marker, only the first its BOS */
  IDS(t, "a <image>", 1, TINY_M_A, TINY_MARKER, -200);
  IDS(t, "<s>a<image><s>b", 1, 1, TINY_A, -200, 1, TINY_B); /* written specials stay */
  IDS(t, "<image", 1, TINY_MARKER, TINY_BYTES + '<', TINY_BYTES + 'i', TINY_BYTES + 'm', TINY_A, TINY_BYTES + 'g',
      TINY_BYTES + 'e');
  btc_tokenizer_close(&t);
}

static void test_prompt_encode_is_bounded(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  char *text = malloc(BTC_PROMPT_MAX_BYTES + 2);
  int32_t *ids;
  size_t n;
  btc_error err = {0};
  assert_non_null(text);
  memset(text, 'a', BTC_PROMPT_MAX_BYTES + 1);
  text[BTC_PROMPT_MAX_BYTES + 1] = 0;
  assert_int_equal(btc_prompt_encode(t, text, &ids, &n, &err), BTC_ERR_LIMIT);
  assert_null(ids);
  free(text);
  btc_tokenizer_close(&t);
}

static btc_status read_back(const void *data, size_t n, char **question, btc_error *err) {
  char path[256];
  snprintf(path, sizeof path, "%s/question.txt", test_tmp_dir());
  assert_int_equal(btc_file_publish(path, data, n, NULL), BTC_OK);
  return btc_prompt_read_file(path, question, err);
}

static void test_prompt_reads_files(void **state) {
  (void)state;
  static const char *const texts[][2] = {
      {"what?\n", "what?"}, {"what?", "what?"}, {"a\n\n", "a\n"}, {"a\r\n", "a"}, {"", ""}, {"\n", ""}, {"\xC3\xA9\n", "\xC3\xA9"}};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    char *question;
    assert_int_equal(read_back(texts[i][0], strlen(texts[i][0]), &question, NULL), BTC_OK);
    assert_string_equal(question, texts[i][1]);
    free(question);
  }
}

static void test_prompt_refuses_files(void **state) {
  (void)state;
  char *question;
  btc_error err = {0};
  assert_int_equal(read_back("ab\xFFz", 4, &question, &err), BTC_ERR_FORMAT);
  assert_null(question);
  assert_non_null(strstr(err.message, "question.txt' is not UTF-8 text: byte 2"));
  assert_int_equal(read_back("a\0b", 3, &question, &err), BTC_ERR_FORMAT);
  assert_non_null(strstr(err.message, "NUL"));
  char *large = calloc(1, BTC_PROMPT_MAX_BYTES + 1);
  assert_non_null(large);
  assert_int_equal(read_back(large, BTC_PROMPT_MAX_BYTES + 1, &question, &err), BTC_ERR_LIMIT);
  free(large);
  assert_int_equal(btc_prompt_read_file("/nowhere/q", &question, &err), BTC_ERR_NOT_FOUND);
  assert_int_equal(btc_prompt_read_file("/", &question, &err), BTC_ERR_IO);
  assert_null(question);
}

static int allocations_left;

static bool allow_some(size_t bytes) {
  (void)bytes;
  return allocations_left-- > 0;
}

static bool pass_without_memory(const btc_tokenizer *t, int n) {
  char *text = NULL;
  int32_t *ids = NULL;
  size_t n_ids;
  allocations_left = n;
  btc_alloc_hook = allow_some;
  btc_status st = btc_prompt_question("ab c", 2, &text, NULL);
  if (st == BTC_OK) st = btc_prompt_encode(t, text, &ids, &n_ids, NULL);
  btc_alloc_hook = NULL;
  if (st != BTC_OK) assert_int_equal(st, BTC_ERR_NOMEM);
  free(text);
  free(ids);
  return st == BTC_OK;
}

static void test_prompt_without_memory(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  int n = 0;
  while (!pass_without_memory(t, n)) assert_true(++n < 100);
  assert_true(n >= 6);
  btc_tokenizer_close(&t);
}

/* One test a line: the build registers them by line. */
/* clang-format off */
static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_prompt_renders_turns),
    cmocka_unit_test(test_prompt_refuses_roles),
    cmocka_unit_test(test_prompt_question_puts_tags),
    cmocka_unit_test(test_prompt_refuses_tags_in_question),
    cmocka_unit_test(test_prompt_is_bounded),
    cmocka_unit_test(test_prompt_encodes_holes),
    cmocka_unit_test(test_prompt_encode_is_bounded),
    cmocka_unit_test(test_prompt_reads_files),
    cmocka_unit_test(test_prompt_refuses_files),
    cmocka_unit_test(test_prompt_without_memory),
};
/* clang-format on */

BTC_TEST_MAIN(tests)
