/* White space as Python's str.strip sees it. */
#include "test.h"

#include "engine/text.h"

static void expect(const char *(*f)(const char *, size_t *), const char *in, size_t n, const char *out, size_t n_out) {
  const char *s = f(in, &n);
  assert_int_equal(n, n_out);
  assert_memory_equal(s, out, n_out);
}

#define STRIPPED(in, out) expect(btc_text_strip, in, sizeof(in) - 1, out, sizeof(out) - 1)
#define ANSWER(in, out) expect(btc_text_answer, in, sizeof(in) - 1, out, sizeof(out) - 1)

static void test_text_strip_ascii(void **state) {
  (void)state;
  STRIPPED("", "");
  STRIPPED("  \t\r\n\v\f ", "");
  STRIPPED(" a b ", "a b");
  STRIPPED("\x1c\x1f x\x1e\x1d", "x");
  STRIPPED("\x1b x \x7f", "\x1b x \x7f"); /* escape and delete are no white space */
  STRIPPED(" \0 ", "\0");                 /* nor is NUL */
}

static void test_text_strip_unicode(void **state) {
  (void)state;
  STRIPPED("\u00a0\u2003\u3000 wide \u1680\u2028\u205f", "wide");
  STRIPPED("\xc2\x85x\u202f", "x");
  STRIPPED("\u200bx\ufeff", "\u200bx\ufeff"); /* zero width is width */
  STRIPPED("\u00e9 \u00e9", "\u00e9 \u00e9");
  STRIPPED("x\xe2\x80", "x\xe2\x80"); /* half a character */
  STRIPPED("\xa0x", "\xa0x");         /* a lone byte of one */
}

static void test_text_answer_drops_one_end_marker(void **state) {
  (void)state;
  ANSWER(" a house is built </s> ", "a house is built");
  ANSWER("</s>", "");
  ANSWER("x</s></s>", "x</s>");
  ANSWER("</s> x", "</s> x");
  ANSWER("x</s", "x</s");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_text_strip_ascii),
    cmocka_unit_test(test_text_strip_unicode),
    cmocka_unit_test(test_text_answer_drops_one_end_marker),
};

BTC_TEST_MAIN(tests)
