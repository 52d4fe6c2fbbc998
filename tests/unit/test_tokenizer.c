/* The tokenizer on models built in memory: the rules of spec 2.6 one by one, and every way a model is refused. */
#include "test.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/tokenizer.h"
#include "engine/marker.h"
#include "tests/support/tiny_tokenizer.h"

#define M BTC_MARKER

static btc_tokenizer *open_model(const tiny_model *m) {
  btc_tokenizer *t = NULL;
  btc_error err = {0};
  if (btc_tokenizer_open_memory(m->bytes, m->n, "x/tokenizer.model", &t, &err) != BTC_OK) fail_msg("%s", err.message);
  return t;
}

static btc_tokenizer *open_tiny(void) {
  static tiny_model m;
  tiny_default(&m);
  return open_model(&m);
}

static tiny_model hostile;

static tiny_model *pieces_and(void (*extra)(tiny_model *)) {
  hostile.n = 0;
  tiny_specials(&hostile);
  tiny_byte_pieces(&hostile);
  tiny_letters(&hostile);
  extra(&hostile);
  tiny_trainer(&hostile, TINY_BPE, true);
  tiny_normalizer(&hostile, false, true, NULL);
  return &hostile;
}

/* ---- encoding ---- */

static void assert_encodes(const btc_tokenizer *t, const char *text, size_t n_want, const int32_t *want) {
  int32_t *ids;
  size_t n;
  btc_error err = {0};
  if (btc_tokenizer_encode(t, text, strlen(text), &ids, &n, &err) != BTC_OK) fail_msg("%s", err.message);
  bool same = n == n_want && memcmp(ids, want, n * sizeof *ids) == 0;
  for (size_t i = 0; i < n && !same; i++) print_message("%d ", ids[i]);
  if (!same) fail_msg("'%s' became these %zu ids", text, n);
  free(ids);
}

#define ENCODES(t, text, ...) assert_encodes(t, text, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (int32_t[]){__VA_ARGS__})
#define BYTE(b) (TINY_BYTES + (b))

static void assert_decodes(const btc_tokenizer *t, const char *want, size_t want_len, size_t n, const int32_t *ids) {
  char *text;
  size_t len;
  btc_error err = {0};
  if (btc_tokenizer_decode(t, ids, n, &text, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(len, want_len);
  assert_memory_equal(text, want, want_len + 1);
  free(text);
}

#define DECODES(t, want, ...) \
  assert_decodes(t, want, sizeof want - 1, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t), (int32_t[]){__VA_ARGS__})
#define BAD "\xEF\xBF\xBD"

static void test_tokenizer_encodes_pieces(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  assert_int_equal(btc_tokenizer_vocab(t), TINY_PIECES);
  ENCODES(t, "", 1);
  ENCODES(t, "a", 1, TINY_M_A);
  ENCODES(t, "ab", 1, TINY_M_AB);
  ENCODES(t, "abc", 1, TINY_M_AB, TINY_C); /* "ab" merges first, then with the marker: -4 beats the -5 of "abc" */
  ENCODES(t, "cabc", 1, TINY_MARKER, TINY_C, TINY_ABC);
  ENCODES(t, " ", 1, TINY_MM);
  ENCODES(t, M, 1, TINY_MM);
  ENCODES(t, "b ab" M "b", 1, TINY_MARKER, TINY_B, TINY_M_AB, TINY_MARKER, TINY_B);
  ENCODES(t, "\xC3\xA9z", 1, TINY_MARKER, TINY_E_ACUTE, BYTE('z'));
  ENCODES(t, "\xE6\xB0\xB4", 1, TINY_MARKER, BYTE(0xE6), BYTE(0xB0), BYTE(0xB4));
  btc_tokenizer_close(&t);
}

static void test_tokenizer_cuts_special_tokens(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  ENCODES(t, "<s>", 1, 1);           /* the lone marker before a special token is dropped */
  ENCODES(t, " <s>", 1, TINY_MM, 1); /* but only a lone one */
  ENCODES(t, "</s>a", 1, 2, TINY_A); /* no marker after a special token */
  ENCODES(t, "</s> a", 1, 2, TINY_M_A);
  ENCODES(t, "a</s><unk>b", 1, TINY_M_A, 2, 0, TINY_B);
  ENCODES(t, "<s", 1, TINY_MARKER, BYTE('<'), BYTE('s'));
  ENCODES(t, "a </s>", 1, TINY_M_A, TINY_MARKER, 2); /* a lone marker further on stays */
  btc_tokenizer_close(&t);
}

/* Each byte that is not UTF-8 counts as one U+FFFD. */
static void test_tokenizer_encodes_broken_text(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  ENCODES(t, "\xFF", 1, TINY_MARKER, BYTE(0xEF), BYTE(0xBF), BYTE(0xBD));
  ENCODES(t, "a\xC3", 1, TINY_M_A, BYTE(0xEF), BYTE(0xBF), BYTE(0xBD));
  int32_t *broken, *replaced;
  size_t n_broken, n_replaced;
  static const char lone[] = "\xED\xA0\x80", three[] = "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"; /* a lone surrogate */
  assert_int_equal(btc_tokenizer_encode(t, lone, 3, &broken, &n_broken, NULL), BTC_OK);
  assert_int_equal(btc_tokenizer_encode(t, three, 9, &replaced, &n_replaced, NULL), BTC_OK);
  assert_int_equal(n_broken, n_replaced);
  assert_memory_equal(broken, replaced, n_broken * sizeof *broken);
  free(broken);
  free(replaced);
  btc_tokenizer_close(&t);
}

static void test_tokenizer_refuses_texts(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  int32_t *ids;
  size_t n, len = BTC_TOKENIZER_MAX_BYTES + 1;
  btc_error err = {0};
  assert_int_equal(btc_tokenizer_encode(t, "a\0b", 3, &ids, &n, &err), BTC_ERR_ARG);
  assert_null(ids);
  char *text = malloc(len);
  assert_non_null(text);
  memset(text, 'a', len);
  assert_int_equal(btc_tokenizer_encode(t, text, len, &ids, &n, &err), BTC_ERR_LIMIT);
  assert_non_null(strstr(err.message, "too long"));
  free(text);
  btc_tokenizer_close(&t);
}

/* Without byte fallback a run of unknown characters is one unknown id. */
static void test_tokenizer_without_byte_fallback(void **state) {
  (void)state;
  static tiny_model m;
  m.n = 0;
  tiny_specials(&m);
  tiny_letters(&m);
  tiny_trainer(&m, TINY_BPE, false);
  tiny_normalizer(&m, false, true, NULL);
  btc_tokenizer *t = open_model(&m);
  const int32_t down = TINY_MARKER - 3; /* the letters follow the specials at once */
  ENCODES(t, "ab zz a", 1, TINY_M_AB - down, TINY_MARKER - down, 0, TINY_M_A - down);
  btc_tokenizer_close(&t);
}

/* remove_extra_whitespaces: runs of spaces count once, trailing ones not at all; the marker in front stays. */
static void test_tokenizer_removing_extra_whitespace(void **state) {
  (void)state;
  static tiny_model m;
  m.n = 0;
  tiny_specials(&m);
  tiny_byte_pieces(&m);
  tiny_letters(&m);
  tiny_trainer(&m, TINY_BPE, true);
  for (int with_spec = 0; with_spec < 2; with_spec++) { /* it is also the default of a model that does not say */
    if (with_spec) tiny_normalizer(&m, true, true, NULL);
    btc_tokenizer *t = open_model(&m);
    ENCODES(t, "ab  a ", 1, TINY_M_AB, TINY_M_A);
    ENCODES(t, "a</s>  a", 1, TINY_M_A, 2, TINY_M_A);
    DECODES(t, "a ab", TINY_MM, TINY_M_A, TINY_M_AB);
    btc_tokenizer_close(&t);
  }
}

/* ---- decoding ---- */

static void test_tokenizer_decodes_pieces(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  assert_decodes(t, "", 0, 0, NULL);
  DECODES(t, "ab a", 1, TINY_M_AB, TINY_M_A, 2);
  DECODES(t, " a", TINY_MM, TINY_A);
  DECODES(t, "", TINY_MARKER);
  DECODES(t, "a ", TINY_A, TINY_MARKER);
  DECODES(t, "ab a", 2, 0, TINY_M_AB, 2, 1, TINY_M_A); /* the first piece is the first that is not special */
  DECODES(t, "z a", BYTE('z'), TINY_M_A);              /* a byte has no marker, and later ones stay */
  btc_tokenizer_close(&t);
}

static void test_tokenizer_decodes_bytes(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  DECODES(t, "\xE6\xB0\xB4", BYTE(0xE6), BYTE(0xB0), BYTE(0xB4));
  DECODES(t, "\xE6\xB0\xB4", BYTE(0xE6), 2, BYTE(0xB0), BYTE(0xB4)); /* specials leave before bytes join */
  DECODES(t, BAD BAD, BYTE(0xE6), BYTE(0xB0));
  DECODES(t, BAD "a" BAD BAD, BYTE(0xE6), TINY_A, BYTE(0xB0), BYTE(0xB4));
  DECODES(t, BAD BAD BAD "z", BYTE(0xED), BYTE(0xA0), BYTE(0x80), BYTE('z'));  /* a surrogate */
  DECODES(t, BAD BAD, BYTE(0xC0), BYTE(0x80));                                 /* overlong */
  DECODES(t, BAD BAD BAD BAD, BYTE(0xF4), BYTE(0x90), BYTE(0x80), BYTE(0x80)); /* over U+10FFFF */
  DECODES(t, "\xF4\x8F\xBF\xBF" BAD, BYTE(0xF4), BYTE(0x8F), BYTE(0xBF), BYTE(0xBF), BYTE(0x80));
  DECODES(t, "a\0b", TINY_A, BYTE(0), TINY_B);
  btc_tokenizer_close(&t);
}

static void add_control(tiny_model *m) {
  tiny_piece(m, "<pad>", 0, TINY_CONTROL);
}

/* A control piece that is not a special token is no text, but it keeps bytes apart and nobody can write it. */
static void test_tokenizer_control_pieces(void **state) {
  (void)state;
  btc_tokenizer *t = open_model(pieces_and(add_control));
  const int32_t pad = TINY_PIECES;
  DECODES(t, "ab a", TINY_AB, pad, TINY_M_A);
  DECODES(t, " a", pad, TINY_M_A);
  DECODES(t, BAD BAD "\xC3\xA9", BYTE(0xC3), pad, BYTE(0xA9), pad, BYTE(0xC3), BYTE(0xA9));
  ENCODES(t, "<pad>", 1, TINY_MARKER, BYTE('<'), BYTE('p'), TINY_A, BYTE('d'), BYTE('>'));
  btc_tokenizer_close(&t);
}

static void test_tokenizer_refuses_ids(void **state) {
  (void)state;
  btc_tokenizer *t = open_tiny();
  const int32_t bad[] = {-1, TINY_PIECES, INT32_MAX, INT32_MIN, -200};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    int32_t ids[] = {TINY_A, bad[i]};
    char *text;
    size_t len;
    btc_error err = {0};
    assert_int_equal(btc_tokenizer_decode(t, ids, 2, &text, &len, &err), BTC_ERR_ARG);
    assert_null(text);
    assert_non_null(strstr(err.message, "vocabulary"));
  }
  btc_tokenizer_close(&t);
}

/* ---- hostile models ---- */

static void assert_refused(const void *data, size_t n, btc_status want, const char *reason) {
  btc_tokenizer *t = (btc_tokenizer *)1;
  btc_error err = {0};
  btc_status st = btc_tokenizer_open_memory(data, n, "x/tokenizer.model", &t, &err);
  assert_null(t);
  if (st != want || !strstr(err.message, reason) || !strstr(err.message, "x/tokenizer.model"))
    fail_msg("status %d, expected %d with '%s': %s", st, want, reason, err.message);
}

static void add_empty(tiny_model *m) {
  tiny_piece(m, "", 0, TINY_NORMAL);
}
static void add_twin(tiny_model *m) {
  tiny_piece(m, "ab", 0, TINY_NORMAL);
}
static void add_unknown(tiny_model *m) {
  tiny_piece(m, "<u>", 0, TINY_UNKNOWN);
}
static void add_type_0(tiny_model *m) {
  tiny_piece(m, "q", 0, 0);
}
static void add_type_7(tiny_model *m) {
  tiny_piece(m, "q", 0, 7);
}
static void add_invalid(tiny_model *m) {
  tiny_piece(m, "q\xFF", 0, TINY_NORMAL);
}
static void add_nul(tiny_model *m) {
  tiny_piece_bytes(m, "q\0q", 3, 0, TINY_USER);
}
static void add_byte(tiny_model *m) {
  tiny_piece(m, "<0xff>", 0, TINY_BYTE);
}
static void add_nan(tiny_model *m) {
  tiny_piece(m, "q", __builtin_nanf(""), TINY_NORMAL);
}
static void add_infinity(tiny_model *m) {
  tiny_piece(m, "q", -__builtin_inff(), TINY_NORMAL);
}
static void add_denormalizer(tiny_model *m) {
  tiny_field(m, 5, "\x12\x02xy", 4);
}
static void add_short_control(tiny_model *m) {
  tiny_piece(m, "\xC3\xA8", 0, TINY_CONTROL);
}
static void add_group(tiny_model *m) {
  tiny_byte(m, 6 << 3 | 3);
}
static void add_field_0(tiny_model *m) {
  tiny_put(m, "\x02\x00", 2);
}
static void add_wrong_wire(tiny_model *m) {
  tiny_put(m, "\x08\x01", 2);
}
static void add_wide_number(tiny_model *m) {
  tiny_put(m, "\x30\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F", 11);
}
static void add_long(tiny_model *m) {
  char text[258];
  memset(text, 'q', 257);
  text[257] = 0;
  tiny_piece(m, text, 0, TINY_NORMAL);
}

static void test_tokenizer_refuses_bad_pieces(void **state) {
  (void)state;
  static const struct {
    void (*add)(tiny_model *);
    btc_status status;
    const char *reason;
  } cases[] = {
      {add_empty, BTC_ERR_FORMAT, "an empty piece"},
      {add_twin, BTC_ERR_FORMAT, "are the same"},
      {add_unknown, BTC_ERR_FORMAT, "2 unknown pieces"},
      {add_type_0, BTC_ERR_FORMAT, "unknown type"},
      {add_type_7, BTC_ERR_FORMAT, "unknown type"},
      {add_invalid, BTC_ERR_FORMAT, "not UTF-8"},
      {add_nul, BTC_ERR_FORMAT, "NUL"},
      {add_byte, BTC_ERR_FORMAT, "<0x00>"},
      {add_nan, BTC_ERR_FORMAT, "finite"},
      {add_infinity, BTC_ERR_FORMAT, "finite"},
      {add_long, BTC_ERR_FORMAT, "more than 256 bytes"},
      {add_denormalizer, BTC_ERR_UNSUPPORTED, "character map"},
      {add_short_control, BTC_ERR_UNSUPPORTED, "single character"},
      {add_group, BTC_ERR_FORMAT, "wire type"},
      {add_field_0, BTC_ERR_FORMAT, "field number"},
      {add_wrong_wire, BTC_ERR_FORMAT, "wrong type"},
      {add_wide_number, BTC_ERR_FORMAT, "64 bits"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const tiny_model *m = pieces_and(cases[i].add);
    assert_refused(m->bytes, m->n, cases[i].status, cases[i].reason);
  }
}

static void make(bool bytes, unsigned model_type, bool fallback, bool escape, const char *charsmap) {
  hostile.n = 0;
  tiny_specials(&hostile);
  if (bytes) tiny_byte_pieces(&hostile);
  tiny_letters(&hostile);
  tiny_trainer(&hostile, model_type, fallback);
  tiny_normalizer(&hostile, false, escape, charsmap);
}

static void test_tokenizer_refuses_bad_settings(void **state) {
  (void)state;
  make(true, TINY_UNIGRAM, true, true, NULL);
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_UNSUPPORTED, "type unigram");
  make(true, 9, true, true, NULL);
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_UNSUPPORTED, "type unknown");
  make(true, TINY_BPE, true, true, "charsmap");
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_UNSUPPORTED, "character map");
  make(true, TINY_BPE, true, false, NULL);
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_UNSUPPORTED, "escape_whitespaces");
  make(true, TINY_BPE, false, true, NULL);
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_FORMAT, "byte_fallback is off");
  make(false, TINY_BPE, true, true, NULL);
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_FORMAT, "0 byte pieces in place of 256");
  hostile.n = 0;
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_FORMAT, "empty");
  tiny_piece(&hostile, "<unk>", 0, TINY_UNKNOWN);
  tiny_piece(&hostile, "<s>", 0, TINY_CONTROL);
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_FORMAT, "2 pieces, at least 3");
  tiny_letters(&hostile);
  tiny_trainer(&hostile, TINY_BPE, false);
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_MODEL, "end token '</s>' is not in the vocabulary");
}

static void test_tokenizer_refuses_noise(void **state) {
  (void)state;
  static char noise[2100];
  for (size_t i = 0; i < sizeof noise; i++) noise[i] = "\x7F\x01x"[i % 3];
  assert_refused(noise, sizeof noise, BTC_ERR_FORMAT, "byte 0");
  make(true, TINY_BPE, true, true, NULL);
  memcpy(hostile.bytes + 1, "\xFF\xFF\xFF\xFF\x0F", 5); /* a first piece of 4 GiB */
  assert_refused(hostile.bytes, hostile.n, BTC_ERR_FORMAT, "longer than what is left");
  make(true, TINY_BPE, true, true, NULL);
  assert_refused(hostile.bytes, hostile.n - 1, BTC_ERR_FORMAT, "longer than what is left"); /* by one byte */
}

/* A model cut anywhere or with any byte turned over is refused with its name, or it works: there is no third way. */
static void survive(const uint8_t *data, size_t n) {
  btc_tokenizer *t;
  btc_error err = {0};
  int32_t *ids;
  size_t n_ids;
  if (btc_tokenizer_open_memory(data, n, "x/tokenizer.model", &t, &err) != BTC_OK) {
    assert_null(t);
    assert_non_null(strstr(err.message, "x/tokenizer.model"));
    return;
  }
  assert_int_equal(btc_tokenizer_encode(t, " ab z<s>", 8, &ids, &n_ids, NULL), BTC_OK);
  free(ids);
  btc_tokenizer_close(&t);
}

static void test_tokenizer_survives_damage(void **state) {
  (void)state;
  make(false, TINY_BPE, false, true, NULL);
  assert_true(hostile.n < 400);
  for (size_t n = 0; n < hostile.n; n++) {
    uint8_t *exact = malloc(n ? n : 1); /* so that a read behind the end is seen by the sanitizer */
    assert_non_null(exact);
    memcpy(exact, hostile.bytes, n);
    survive(exact, n);
    free(exact);
  }
  for (size_t i = 0; i < hostile.n; i++)
    for (unsigned flip = 1; flip < 256; flip = flip * 2 + 1) {
      hostile.bytes[i] ^= (uint8_t)flip;
      survive(hostile.bytes, hostile.n);
      hostile.bytes[i] ^= (uint8_t)flip;
    }
}

/* ---- the JSON files beside the model ---- */

static const char *write_dir(const char *name, const char *const files[][2]) {
  static char dir[256];
  char path[512];
  static tiny_model m;
  snprintf(dir, sizeof dir, "%s/%s", test_tmp_dir(), name);
  assert_true(mkdir(dir, 0700) == 0 || errno == EEXIST);
  tiny_default(&m);
  snprintf(path, sizeof path, "%s/tokenizer.model", dir);
  assert_int_equal(btc_file_publish(path, m.bytes, m.n, NULL), BTC_OK);
  for (; (*files)[0]; files++) {
    snprintf(path, sizeof path, "%s/%s", dir, (*files)[0]);
    assert_int_equal(btc_file_publish(path, (*files)[1], strlen((*files)[1]), NULL), BTC_OK);
  }
  return dir;
}

static void test_tokenizer_reads_added_tokens(void **state) {
  (void)state;
  const char *dir = write_dir(
      "added", (const char *const[][2]){
                   {"special_tokens_map.json",
                    "{\"bos_token\": {\"content\": \"<s>\", \"lstrip\": false}, \"eos_token\": \"c\", \"pad_token\": null}"},
                   {"tokenizer_config.json", "{\"add_bos_token\": true, \"eos_token\": \"</s>\", \"pad_token\": \"<nowhere>\"}"},
                   {"added_tokens.json", "{\"<s>x\": 270, \"<im_patch>\": 269, \"</s>\": 2}"},
                   {NULL, NULL}});
  btc_tokenizer *t;
  btc_error err = {0};
  if (btc_tokenizer_open(dir, &t, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(btc_tokenizer_vocab(t), TINY_PIECES + 2);
  assert_int_equal(btc_tokenizer_eos(t), TINY_C);
  ENCODES(t, "<s>x<s>", 1, 270, 1); /* the longest wins */
  ENCODES(t, "a<im_patch>a", 1, TINY_M_A, 269, TINY_A);
  ENCODES(t, "</s>c", 1, 2, TINY_C);
  ENCODES(t, "abc", 1, TINY_M_AB, TINY_C);
  DECODES(t, "ab", 1, 270, TINY_M_AB, TINY_C, 269);
  btc_tokenizer_close(&t);
}

/* Another text can be named the unknown token; the model's own unknown piece is still left out when decoding. */
static void test_tokenizer_with_other_unknown(void **state) {
  (void)state;
  const char *dir =
      write_dir("unknown", (const char *const[][2]){{"special_tokens_map.json", "{\"unk_token\": \"c\"}"}, {NULL, NULL}});
  btc_tokenizer *t;
  btc_error err = {0};
  if (btc_tokenizer_open(dir, &t, &err) != BTC_OK) fail_msg("%s", err.message);
  DECODES(t, "ab", TINY_AB, 0, TINY_C);
  ENCODES(t, "<unk>", 1, TINY_MARKER, BYTE('<'), BYTE('u'), BYTE('n'), BYTE('k'), BYTE('>'));
  ENCODES(t, "c", 1, TINY_C);
  btc_tokenizer_close(&t);
}

static void assert_dir_refused(const char *name, const char *text, btc_status want, const char *reason) {
  const char *dir = write_dir("refused", (const char *const[][2]){{name, text}, {NULL, NULL}});
  char path[512];
  btc_tokenizer *t;
  btc_error err = {0};
  btc_status st = btc_tokenizer_open(dir, &t, &err);
  if (st != want || !strstr(err.message, reason)) fail_msg("status %d, expected %d with '%s': %s", st, want, reason, err.message);
  snprintf(path, sizeof path, "%s/%s", dir, name);
  assert_int_equal(unlink(path), 0);
}

static void test_tokenizer_refuses_bad_json(void **state) {
  (void)state;
  assert_dir_refused("special_tokens_map.json", "{", BTC_ERR_FORMAT, "special_tokens_map.json' is not JSON");
  assert_dir_refused("special_tokens_map.json", "[]", BTC_ERR_FORMAT, "not a JSON object");
  assert_dir_refused("special_tokens_map.json", "{\"bos_token\": 5}", BTC_ERR_FORMAT, "bos_token");
  assert_dir_refused("special_tokens_map.json", "{\"bos_token\": \"\"}", BTC_ERR_FORMAT, "0 bytes");
  assert_dir_refused("special_tokens_map.json", "{\"bos_token\": \"<x>\"}", BTC_ERR_MODEL, "begin token '<x>'");
  assert_dir_refused("special_tokens_map.json", "{\"bos_token\": \"</s>\"}", BTC_ERR_MODEL, "the same");
  assert_dir_refused("special_tokens_map.json", "{\"additional_special_tokens\": 1}", BTC_ERR_FORMAT, "not a list");
  assert_dir_refused("tokenizer_config.json", "{\"add_bos_token\": false}", BTC_ERR_UNSUPPORTED, "add_bos_token");
  assert_dir_refused("tokenizer_config.json", "{\"add_eos_token\": true}", BTC_ERR_UNSUPPORTED, "add_eos_token");
  assert_dir_refused("added_tokens.json", "{\"<p>\": 270}", BTC_ERR_MODEL, "269 pieces and 1 added");
  assert_dir_refused("added_tokens.json", "{\"<p>\": 5}", BTC_ERR_MODEL, "another");
  assert_dir_refused("added_tokens.json", "{\"a\": 269}", BTC_ERR_MODEL, "another");
  assert_dir_refused("added_tokens.json", "{\"<p>\": 269, \"<q>\": 269}", BTC_ERR_MODEL, "twice");
  assert_dir_refused("added_tokens.json", "{\"<p>\": \"269\"}", BTC_ERR_FORMAT, "not an id");
  assert_dir_refused("added_tokens.json", "{\"<p>\": -1}", BTC_ERR_FORMAT, "not an id");
  assert_dir_refused("added_tokens.json", "{\"<p>\": 4294967296}", BTC_ERR_FORMAT, "not an id");
}

static void test_tokenizer_missing_file(void **state) {
  (void)state;
  btc_tokenizer *t;
  btc_error err = {0};
  assert_int_equal(btc_tokenizer_open("/nowhere", &t, &err), BTC_ERR_NOT_FOUND);
  assert_non_null(strstr(err.message, "/nowhere/tokenizer.model"));
  assert_null(t);
}

/* ---- threads and memory ---- */

typedef struct worker {
  const btc_tokenizer *t;
  int wrong;
} worker;

static void *work(void *arg) {
  worker *w = arg;
  static const char text[] = "ab abc</s> a\xE6\xB0\xB4 cab";
  for (int i = 0; i < 300; i++) {
    int32_t *ids;
    size_t n, len;
    char *back;
    if (btc_tokenizer_encode(w->t, text, sizeof text - 1, &ids, &n, NULL) != BTC_OK) return NULL;
    if (btc_tokenizer_decode(w->t, ids, n, &back, &len, NULL) != BTC_OK) return NULL;
    w->wrong += strcmp(back, "ab abc a\xE6\xB0\xB4 cab") != 0;
    free(ids);
    free(back);
  }
  w->wrong--; /* 0 when all rounds were right */
  return NULL;
}

static void test_tokenizer_serves_threads(void **state) {
  (void)state;
  enum { THREADS = 4 };
  pthread_t threads[THREADS];
  worker workers[THREADS];
  btc_tokenizer *t = open_tiny();
  for (int i = 0; i < THREADS; i++) {
    workers[i] = (worker){t, 1};
    assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) {
    pthread_join(threads[i], NULL);
    assert_int_equal(workers[i].wrong, 0);
  }
  btc_tokenizer_close(&t);
}

static int allocations_left;

static bool allow_some(size_t bytes) {
  (void)bytes;
  return allocations_left-- > 0;
}

/* One pass with the n-th allocation failing; true when nothing failed any more. */
static bool pass_without_memory(int n, const tiny_model *m) {
  btc_tokenizer *t = NULL;
  int32_t *ids = NULL;
  size_t n_ids, len;
  char *text = NULL;
  allocations_left = n;
  btc_alloc_hook = allow_some;
  btc_status st = btc_tokenizer_open_memory(m->bytes, m->n, "x", &t, NULL);
  if (st == BTC_OK) st = btc_tokenizer_encode(t, "ab</s>abc", 9, &ids, &n_ids, NULL);
  if (st == BTC_OK) st = btc_tokenizer_decode(t, ids, n_ids, &text, &len, NULL);
  btc_alloc_hook = NULL;
  if (st != BTC_OK) assert_int_equal(st, BTC_ERR_NOMEM);
  free(ids);
  free(text);
  btc_tokenizer_close(&t);
  return st == BTC_OK;
}

static void test_tokenizer_without_memory(void **state) {
  (void)state;
  static tiny_model m;
  tiny_default(&m);
  int n = 0;
  while (!pass_without_memory(n, &m)) assert_true(++n < 100);
  assert_true(n >= 8);
}

/* One test a line: the build registers them by line. */
/* clang-format off */
static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_tokenizer_encodes_pieces),
    cmocka_unit_test(test_tokenizer_cuts_special_tokens),
    cmocka_unit_test(test_tokenizer_encodes_broken_text),
    cmocka_unit_test(test_tokenizer_refuses_texts),
    cmocka_unit_test(test_tokenizer_without_byte_fallback),
    cmocka_unit_test(test_tokenizer_removing_extra_whitespace),
    cmocka_unit_test(test_tokenizer_decodes_pieces),
    cmocka_unit_test(test_tokenizer_decodes_bytes),
    cmocka_unit_test(test_tokenizer_control_pieces),
    cmocka_unit_test(test_tokenizer_refuses_ids),
    cmocka_unit_test(test_tokenizer_refuses_bad_pieces),
    cmocka_unit_test(test_tokenizer_refuses_bad_settings),
    cmocka_unit_test(test_tokenizer_refuses_noise),
    cmocka_unit_test(test_tokenizer_survives_damage),
    cmocka_unit_test(test_tokenizer_reads_added_tokens),
    cmocka_unit_test(test_tokenizer_with_other_unknown),
    cmocka_unit_test(test_tokenizer_refuses_bad_json),
    cmocka_unit_test(test_tokenizer_missing_file),
    cmocka_unit_test(test_tokenizer_serves_threads),
    cmocka_unit_test(test_tokenizer_without_memory),
};
/* clang-format on */

BTC_TEST_MAIN(tests)
