/*
 * Reads ModelProto (protobuf wire format) with a cursor: a sticky error with its byte offset, every length checked against what
 * is left before it is used. Field numbers are those of sentencepiece_model.proto. Later values of a repeated scalar win and
 * unknown fields are skipped, as protobuf does; a known field of the wrong wire type is refused, where protobuf would ignore it.
 */
#include "tokenizer_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum { MODEL_PIECES = 1, MODEL_TRAINER = 2, MODEL_NORMALIZER = 3, MODEL_DENORMALIZER = 5 };
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_TYPE = 3 };
enum { TRAINER_MODEL_TYPE = 3, TRAINER_BYTE_FALLBACK = 35, TRAINER_BOS_PIECE = 46, TRAINER_EOS_PIECE = 47 };
enum { NORMALIZER_CHARSMAP = 2, NORMALIZER_REMOVE_SPACES = 4, NORMALIZER_ESCAPE_SPACES = 5 };
enum { TYPE_UNIGRAM = 1, TYPE_BPE = 2, TYPE_WORD = 3, TYPE_CHAR = 4 };
#define MAX_USER_DEFINED 65536 /* they go into a trie that is built at load time */

typedef struct cursor {
  const uint8_t *data;
  size_t at, end;
  const char *problem; /* NULL while all is well; the first one stays */
  size_t problem_at;
} cursor;

typedef struct field {
  uint32_t number, wire;
  uint64_t value;    /* varint, or the bits of a fixed field */
  size_t start, len; /* WIRE_BYTES: where its contents are */
} field;

static void cursor_fail(cursor *c, size_t at, const char *problem) {
  if (c->problem) return;
  c->problem = problem;
  c->problem_at = at;
}

static uint64_t read_varint(cursor *c) {
  uint64_t value = 0;
  size_t start = c->at;
  for (unsigned shift = 0; shift < 64; shift += 7) {
    if (c->at >= c->end) {
      cursor_fail(c, start, "a number runs over the end");
      return 0;
    }
    uint8_t b = c->data[c->at++];
    if (shift == 63 && b > 1) break;
    value |= (uint64_t)(b & 0x7F) << shift;
    if (b < 0x80) return value;
  }
  cursor_fail(c, start, "a number of more than 64 bits");
  return 0;
}

static uint64_t read_fixed(cursor *c, size_t bytes) {
  if (c->end - c->at < bytes) {
    cursor_fail(c, c->at, "a fixed-size number runs over the end");
    return 0;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; i++) value |= (uint64_t)c->data[c->at + i] << (8 * i);
  c->at += bytes;
  return value;
}

/* The next field; false at the end and after an error. */
static bool next_field(cursor *c, field *f) {
  if (c->problem || c->at >= c->end) return false;
  size_t start = c->at;
  uint64_t tag = read_varint(c);
  if (c->problem) return false;
  *f = (field){.number = (uint32_t)(tag >> 3), .wire = (uint32_t)(tag & 7)};
  if (tag > UINT32_MAX || f->number == 0) {
    cursor_fail(c, start, "an impossible field number");
    return false;
  }
  switch (f->wire) {
    case WIRE_VARINT:
      f->value = read_varint(c);
      break;
    case WIRE_64:
      f->value = read_fixed(c, 8);
      break;
    case WIRE_32:
      f->value = read_fixed(c, 4);
      break;
    case WIRE_BYTES: {
      uint64_t len = read_varint(c);
      if (!c->problem && len > c->end - c->at) cursor_fail(c, start, "a field is longer than what is left of the file");
      if (c->problem) break;
      f->start = c->at;
      f->len = (size_t)len;
      c->at += f->len;
      break;
    }
    default:
      cursor_fail(c, start, "an unknown wire type");
  }
  return !c->problem;
}

static bool expect_wire(cursor *c, const field *f, uint32_t wire) {
  if (f->wire != wire) cursor_fail(c, c->at, "a field has the wrong type");
  return !c->problem;
}

static cursor sub_message(const cursor *c, const field *f) {
  return (cursor){.data = c->data, .at = f->start, .end = f->start + f->len};
}

static btc_status cursor_status(const cursor *c, const char *label, btc_error *err) {
  if (!c->problem) return BTC_OK;
  return btc_fail(err, BTC_ERR_FORMAT, "'%s' is not a SentencePiece model: %s at byte %zu", label, c->problem, c->problem_at);
}

/* ---- one piece ---- */

/* "<0xAB>" with upper-case digits, the only spelling SentencePiece knows; -1 otherwise */
static int byte_value(const btc_spm_piece *p) {
  static const char digits[] = "0123456789ABCDEF";
  if (p->len != 6 || memcmp(p->text, "<0x", 3) != 0 || p->text[5] != '>') return -1;
  const char *high = memchr(digits, p->text[3], 16), *low = memchr(digits, p->text[4], 16);
  return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

static void check_piece(cursor *c, size_t start, btc_spm_piece *p) {
  if (c->problem) return;
  if (p->len == 0)
    cursor_fail(c, start, "an empty piece");
  else if (memchr(p->text, 0, p->len))
    cursor_fail(c, start, "a piece with a NUL byte");
  else if (btc_utf8_valid(p->text, p->len) != p->len)
    cursor_fail(c, start, "a piece that is not UTF-8");
  else if (!isfinite(p->score))
    cursor_fail(c, start, "a piece whose score is not a finite number");
  else if (p->type == BTC_SPM_BYTE) {
    int value = byte_value(p);
    if (value < 0) cursor_fail(c, start, "a byte piece that is not of the form <0x00>");
    p->byte = (uint8_t)value;
  }
}

static void read_piece(cursor *parent, const field *whole, btc_spm_piece *p) {
  cursor c = sub_message(parent, whole);
  field f;
  *p = (btc_spm_piece){.type = BTC_SPM_NORMAL};
  while (next_field(&c, &f)) {
    if (f.number == PIECE_TEXT && expect_wire(&c, &f, WIRE_BYTES)) {
      if (f.len > BTC_SPM_MAX_PIECE_BYTES) {
        cursor_fail(&c, f.start, "a piece of more than 256 bytes");
        break;
      }
      p->text = (const char *)c.data + f.start;
      p->len = (uint16_t)f.len;
    } else if (f.number == PIECE_SCORE && expect_wire(&c, &f, WIRE_32)) {
      uint32_t bits = (uint32_t)f.value;
      memcpy(&p->score, &bits, sizeof bits);
    } else if (f.number == PIECE_TYPE && expect_wire(&c, &f, WIRE_VARINT)) {
      if (f.value < BTC_SPM_NORMAL || f.value > BTC_SPM_BYTE) {
        cursor_fail(&c, f.start, "a piece of unknown type");
        break;
      }
      p->type = (uint8_t)f.value;
    }
  }
  check_piece(&c, whole->start, p);
  if (c.problem) cursor_fail(parent, c.problem_at, c.problem);
}

/* ---- the settings ---- */

typedef struct settings {
  uint64_t model_type;
  bool charsmap, escape_whitespaces;
} settings;

static btc_spm_text field_text(const cursor *c, const field *f) {
  return (btc_spm_text){(const char *)c->data + f->start, f->len};
}

static void read_trainer(cursor *parent, const field *whole, btc_spm_model *m, settings *s) {
  cursor c = sub_message(parent, whole);
  field f;
  while (next_field(&c, &f)) {
    if (f.number == TRAINER_MODEL_TYPE && expect_wire(&c, &f, WIRE_VARINT)) s->model_type = f.value;
    if (f.number == TRAINER_BYTE_FALLBACK && expect_wire(&c, &f, WIRE_VARINT)) m->byte_fallback = f.value != 0;
    if (f.number == TRAINER_BOS_PIECE && expect_wire(&c, &f, WIRE_BYTES)) m->bos_piece = field_text(&c, &f);
    if (f.number == TRAINER_EOS_PIECE && expect_wire(&c, &f, WIRE_BYTES)) m->eos_piece = field_text(&c, &f);
  }
  if (c.problem) cursor_fail(parent, c.problem_at, c.problem);
}

static void read_normalizer(cursor *parent, const field *whole, btc_spm_model *m, settings *s) {
  cursor c = sub_message(parent, whole);
  field f;
  while (next_field(&c, &f)) {
    if (f.number == NORMALIZER_CHARSMAP && expect_wire(&c, &f, WIRE_BYTES)) s->charsmap = f.len > 0;
    if (f.number == NORMALIZER_REMOVE_SPACES && expect_wire(&c, &f, WIRE_VARINT)) m->remove_extra_whitespaces = f.value != 0;
    if (f.number == NORMALIZER_ESCAPE_SPACES && expect_wire(&c, &f, WIRE_VARINT)) s->escape_whitespaces = f.value != 0;
  }
  if (c.problem) cursor_fail(parent, c.problem_at, c.problem);
}

/* A denormaliser would change decoded text; only its character map matters. */
static void read_denormalizer(cursor *parent, const field *whole, settings *s) {
  cursor c = sub_message(parent, whole);
  field f;
  while (next_field(&c, &f))
    if (f.number == NORMALIZER_CHARSMAP && expect_wire(&c, &f, WIRE_BYTES) && f.len > 0) s->charsmap = true;
  if (c.problem) cursor_fail(parent, c.problem_at, c.problem);
}

static btc_status check_settings(const settings *s, const char *label, btc_error *err) {
  static const char *const names[] = {[TYPE_UNIGRAM] = "unigram", [TYPE_WORD] = "word", [TYPE_CHAR] = "char"};
  if (s->model_type != TYPE_BPE) {
    bool known = s->model_type >= TYPE_UNIGRAM && s->model_type <= TYPE_CHAR;
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "'%s': a model of type %s; only bpe is supported", label,
                    known ? names[s->model_type] : "unknown");
  }
  if (s->charsmap)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "'%s': has a character map; only the identity normaliser is supported", label);
  if (!s->escape_whitespaces)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "'%s': escape_whitespaces is off, which is not supported", label);
  return BTC_OK;
}

/* ---- the table as a whole ---- */

static int compare_text(const char *a, size_t na, const char *b, size_t nb) {
  int order = memcmp(a, b, na < nb ? na : nb);
  return order ? order : (na > nb) - (na < nb);
}

typedef struct sort_key {
  const btc_spm_piece *piece;
  int32_t id;
} sort_key;

static int compare_keys(const void *a, const void *b) {
  const btc_spm_piece *x = ((const sort_key *)a)->piece, *y = ((const sort_key *)b)->piece;
  return compare_text(x->text, x->len, y->text, y->len);
}

static btc_status sort_pieces(btc_spm_model *m, const char *label, btc_error *err) {
  size_t n = (size_t)m->n_pieces;
  sort_key *keys = btc_alloc(n, sizeof *keys);
  m->sorted = btc_alloc(n, sizeof *m->sorted);
  btc_status st = BTC_OK;
  if (!keys || !m->sorted) {
    st = btc_fail(err, BTC_ERR_NOMEM, "'%s': no memory for %d pieces", label, m->n_pieces);
    goto out;
  }
  for (size_t i = 0; i < n; i++) keys[i] = (sort_key){&m->pieces[i], (int32_t)i};
  qsort(keys, n, sizeof *keys, compare_keys);
  for (size_t i = 0; i < n; i++) {
    m->sorted[i] = keys[i].id;
    if (i && compare_keys(&keys[i - 1], &keys[i]) == 0) {
      st = btc_fail(err, BTC_ERR_FORMAT, "'%s': pieces %d and %d are the same", label, keys[i - 1].id, keys[i].id);
      goto out;
    }
  }
out:
  free(keys);
  return st;
}

static btc_status check_types(btc_spm_model *m, const char *label, btc_error *err) {
  int32_t n_unknown = 0, n_bytes = 0, n_user = 0;
  for (int32_t i = 0; i < m->n_pieces; i++) {
    uint8_t type = m->pieces[i].type;
    if (type == BTC_SPM_UNKNOWN && n_unknown++ == 0) m->unk = i;
    n_bytes += type == BTC_SPM_BYTE;
    n_user += type == BTC_SPM_USER_DEFINED;
    /* found by the fuzzer: SentencePiece takes such a character in a text for the control symbol and then gives up */
    if (type == BTC_SPM_CONTROL && btc_utf8_char(m->pieces[i].text, m->pieces[i].len) == m->pieces[i].len)
      return btc_fail(err, BTC_ERR_UNSUPPORTED, "'%s': control piece %d is a single character, which is not supported", label, i);
  }
  if (n_unknown != 1) return btc_fail(err, BTC_ERR_FORMAT, "'%s': %d unknown pieces in place of one", label, n_unknown);
  if (m->byte_fallback && n_bytes != 256) /* no two are alike: 256 means all */
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': byte_fallback is on, but there are %d byte pieces in place of 256", label, n_bytes);
  if (!m->byte_fallback && n_bytes != 0)
    return btc_fail(err, BTC_ERR_FORMAT, "'%s': %d byte pieces, but byte_fallback is off", label, n_bytes);
  if (n_user > MAX_USER_DEFINED)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s': %d user-defined pieces, at most %d are read", label, n_user, MAX_USER_DEFINED);
  return BTC_OK;
}

static btc_status alloc_pieces(cursor c, const char *label, btc_spm_model *m, btc_error *err) {
  field f;
  size_t n = 0;
  while (next_field(&c, &f)) n += f.number == MODEL_PIECES;
  btc_status st = cursor_status(&c, label, err);
  if (st != BTC_OK) return st;
  if (n < BTC_SPM_MIN_PIECES)
    return btc_fail(err, BTC_ERR_FORMAT, "'%s' is not a SentencePiece model: %zu pieces, at least %d are needed", label, n,
                    BTC_SPM_MIN_PIECES);
  if (n > BTC_SPM_MAX_PIECES)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s': %zu pieces, at most %d are read", label, n, BTC_SPM_MAX_PIECES);
  m->pieces = btc_alloc(n, sizeof *m->pieces);
  if (!m->pieces) return btc_fail(err, BTC_ERR_NOMEM, "'%s': no memory for %zu pieces", label, n);
  return BTC_OK;
}

static btc_status parse(btc_spm_model *m, size_t len, const char *label, btc_error *err) {
  cursor c = {.data = m->bytes, .end = len};
  settings s = {.model_type = TYPE_UNIGRAM, .escape_whitespaces = true}; /* the defaults of the format */
  btc_status st = alloc_pieces(c, label, m, err);
  if (st != BTC_OK) return st;
  field f;
  while (next_field(&c, &f)) {
    if (f.number == MODEL_PIECES && expect_wire(&c, &f, WIRE_BYTES)) read_piece(&c, &f, &m->pieces[m->n_pieces++]);
    if (f.number == MODEL_TRAINER && expect_wire(&c, &f, WIRE_BYTES)) read_trainer(&c, &f, m, &s);
    if (f.number == MODEL_NORMALIZER && expect_wire(&c, &f, WIRE_BYTES)) read_normalizer(&c, &f, m, &s);
    if (f.number == MODEL_DENORMALIZER && expect_wire(&c, &f, WIRE_BYTES)) read_denormalizer(&c, &f, &s);
  }
  st = cursor_status(&c, label, err);
  if (st == BTC_OK) st = check_settings(&s, label, err);
  if (st == BTC_OK) st = check_types(m, label, err);
  if (st == BTC_OK) st = sort_pieces(m, label, err);
  return st;
}

btc_status btc_spm_parse(uint8_t *bytes, size_t len, const char *label, btc_spm_model *m, btc_error *err) {
  *m = (btc_spm_model){
      .bytes = bytes, .unk = -1, .remove_extra_whitespaces = true, .bos_piece = {"<s>", 3}, .eos_piece = {"</s>", 4}};
  btc_status st;
  if (len > BTC_SPM_MAX_BYTES)
    st = btc_fail(err, BTC_ERR_LIMIT, "'%s' is too large: %zu bytes, at most %u are read", label, len, BTC_SPM_MAX_BYTES);
  else if (len == 0)
    st = btc_fail(err, BTC_ERR_FORMAT, "'%s' is not a SentencePiece model: it is empty", label);
  else
    st = parse(m, len, label, err);
  if (st != BTC_OK) btc_spm_free(m);
  return st;
}

void btc_spm_free(btc_spm_model *m) {
  free(m->bytes);
  free(m->pieces);
  free(m->sorted);
  *m = (btc_spm_model){0};
}

int32_t btc_spm_find(const btc_spm_model *m, const char *text, size_t len) {
  int32_t low = 0, high = m->n_pieces;
  while (low < high) {
    int32_t mid = low + (high - low) / 2;
    const btc_spm_piece *p = &m->pieces[m->sorted[mid]];
    int order = compare_text(p->text, p->len, text, len);
    if (order == 0) return m->sorted[mid];
    if (order < 0)
      low = mid + 1;
    else
      high = mid;
  }
  return -1;
}

/* ---- the canonical copy ---- */

static uint8_t *put_tag(uint8_t *p, uint32_t number, uint32_t wire) {
  uint32_t v = number << 3 | wire;
  for (; v >= 0x80; v >>= 7) *p++ = (uint8_t)(v | 0x80);
  *p++ = (uint8_t)v;
  return p;
}

static uint8_t *put_length(uint8_t *p, size_t n) { /* two bytes always: a padded varint saves a pass over the sizes */
  *p++ = (uint8_t)(n | 0x80);
  *p++ = (uint8_t)(n >> 7);
  return p;
}

static uint8_t *put_flag(uint8_t *p, uint32_t number, uint8_t value) {
  p = put_tag(p, number, WIRE_VARINT);
  *p++ = value;
  return p;
}

enum { PIECE_OVERHEAD = 3 + 3 + 5 + 2, SETTINGS_BYTES = 64 };

static uint8_t *put_piece(uint8_t *p, const btc_spm_piece *piece) {
  uint32_t bits;
  memcpy(&bits, &piece->score, sizeof bits);
  p = put_length(put_tag(p, MODEL_PIECES, WIRE_BYTES), piece->len + (size_t)PIECE_OVERHEAD - 3);
  p = put_length(put_tag(p, PIECE_TEXT, WIRE_BYTES), piece->len);
  memcpy(p, piece->text, piece->len);
  p = put_tag(p + piece->len, PIECE_SCORE, WIRE_32);
  for (int i = 0; i < 4; i++) *p++ = (uint8_t)(bits >> (8 * i));
  return put_flag(p, PIECE_TYPE, piece->type);
}

btc_status btc_spm_serialize(const btc_spm_model *m, uint8_t **out, size_t *len, btc_error *err) {
  enum { NORMALIZER_DUMMY_PREFIX = 3, TRAINER_BYTES = 2 + 3, NORMALIZER_BYTES = 2 + 2 + 2 };
  size_t bound = SETTINGS_BYTES; /* at most 2^20 pieces of 256 bytes: far from overflow */
  for (int32_t i = 0; i < m->n_pieces; i++) bound += m->pieces[i].len + (size_t)PIECE_OVERHEAD;
  uint8_t *p = *out = btc_alloc(bound, 1);
  *len = 0;
  if (!p) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a tokenizer of %zu bytes", bound);
  for (int32_t i = 0; i < m->n_pieces; i++) p = put_piece(p, &m->pieces[i]);
  p = put_length(put_tag(p, MODEL_TRAINER, WIRE_BYTES), TRAINER_BYTES);
  p = put_flag(p, TRAINER_MODEL_TYPE, TYPE_BPE);
  p = put_flag(p, TRAINER_BYTE_FALLBACK, m->byte_fallback);
  p = put_length(put_tag(p, MODEL_NORMALIZER, WIRE_BYTES), NORMALIZER_BYTES);
  p = put_flag(p, NORMALIZER_DUMMY_PREFIX, false);
  p = put_flag(p, NORMALIZER_REMOVE_SPACES, m->remove_extra_whitespaces);
  p = put_flag(p, NORMALIZER_ESCAPE_SPACES, true);
  *len = (size_t)(p - *out);
  return BTC_OK;
}
