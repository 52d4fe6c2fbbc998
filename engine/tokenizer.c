/*
 * Text to ids and back with the rules of spec 2.6. What is ours here: the checked piece table, special tokens cut out of the
 * text, and decoding. What is SentencePiece's: BPE over the stretches between special tokens.
 */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer_model.h"
#include "tokenizer_sp.h"
#include "tokenizer_special.h"
#include "marker.h"

struct btc_tokenizer {
  btc_spm_model model;
  btc_sp *sp;
  btc_special_list specials; /* every entry with its id */
  uint8_t *special;          /* [vocab] 1: a special token, left out when decoding */
  bool starts[256];          /* first bytes of special tokens */
  int32_t vocab, bos, eos;
  int32_t marker; /* id of the lone space marker, -1 when the model has none */
  const btc_special *unk;
  size_t unk_ids; /* ids of the unk text, see encode_stretch */
};

/* ---- opening ---- */

/* Gives every special token its id: that of the piece of the same text, or one behind the pieces. A pad or other token without
 * any id is dropped: it can neither be written nor come out of the model. */
static btc_status resolve_specials(btc_tokenizer *t, const char *label, btc_error *err) {
  btc_special_list *list = &t->specials;
  int32_t n_added = 0;
  for (size_t i = 0; i < list->n; i++) n_added += list->v[i].id >= t->model.n_pieces;
  t->vocab = t->model.n_pieces + n_added;
  t->special = btc_alloc_zero((size_t)t->vocab, 1);
  if (!t->special) return btc_fail(err, BTC_ERR_NOMEM, "'%s': no memory for %d ids", label, t->vocab);
  for (size_t i = 0; i < list->n; i++) {
    btc_special *s = &list->v[i];
    if (s->id < 0) continue;
    int32_t piece = btc_spm_find(&t->model, s->text, s->len);
    if (s->id < t->model.n_pieces ? piece != s->id : piece >= 0)
      return btc_fail(err, BTC_ERR_MODEL, "'%s': added_tokens.json gives '%s' the id %d, but here it has another", label, s->text,
                      s->id);
    if (s->id >= t->vocab)
      return btc_fail(err, BTC_ERR_MODEL,
                      "'%s': added_tokens.json gives '%s' the id %d, but there are %d pieces and %d added tokens", label, s->text,
                      s->id, t->model.n_pieces, n_added);
    if (t->special[s->id]) return btc_fail(err, BTC_ERR_MODEL, "'%s': added_tokens.json gives the id %d twice", label, s->id);
    t->special[s->id] = 1;
  }
  return BTC_OK;
}

/* Looks a text up among the added tokens and the pieces; -1 when it is in neither. */
static int32_t find_token(const btc_tokenizer *t, const char *text, size_t len) {
  for (size_t i = 0; i < t->specials.n; i++) {
    const btc_special *s = &t->specials.v[i];
    if (s->id >= 0 && s->len == len && memcmp(s->text, text, len) == 0) return s->id;
  }
  return btc_spm_find(&t->model, text, len);
}

static btc_status name_specials(btc_tokenizer *t, const char *label, btc_error *err) {
  static const char *const names[] = {"begin", "end", "unknown"};
  for (size_t i = 0; i < t->specials.n; i++) {
    btc_special *s = &t->specials.v[i];
    s->id = find_token(t, s->text, s->len);
    if (s->id < 0 && s->role <= BTC_SPECIAL_UNK)
      return btc_fail(err, BTC_ERR_MODEL, "'%s': the %s token '%s' is not in the vocabulary", label, names[s->role], s->text);
    if (s->id < 0) continue;
    t->special[s->id] = 1;
    t->starts[(uint8_t)s->text[0]] = true;
  }
  t->special[t->model.unk] = 1;
  t->bos = btc_special_of(&t->specials, BTC_SPECIAL_BOS)->id;
  t->eos = btc_special_of(&t->specials, BTC_SPECIAL_EOS)->id;
  t->unk = btc_special_of(&t->specials, BTC_SPECIAL_UNK);
  t->marker = btc_spm_find(&t->model, BTC_MARKER, BTC_MARKER_BYTES);
  if (t->bos == t->eos) return btc_fail(err, BTC_ERR_MODEL, "'%s': begin and end token are the same", label);
  return BTC_OK;
}

/* Where no JSON file names them, bos, eos and unk are those of the model itself. */
static btc_status default_specials(btc_tokenizer *t, const char *label, btc_error *err) {
  const btc_spm_piece *unk = &t->model.pieces[t->model.unk];
  const btc_spm_text texts[] = {t->model.bos_piece, t->model.eos_piece, {unk->text, unk->len}};
  btc_status st = BTC_OK;
  for (int role = BTC_SPECIAL_BOS; role <= BTC_SPECIAL_UNK && st == BTC_OK; role++)
    if (!btc_special_of(&t->specials, (btc_special_role)role))
      st = btc_special_add(&t->specials, (btc_special_role)role, texts[role].text, texts[role].len, -1, label, err);
  return st;
}

static btc_status load_library(btc_tokenizer *t, const char *label, btc_error *err) {
  uint8_t *canonical = NULL;
  size_t len = 0;
  btc_ids ids = {0};
  btc_status st = btc_spm_serialize(&t->model, &canonical, &len, err);
  if (st == BTC_OK) st = btc_sp_create(canonical, len, &t->sp, err);
  if (st == BTC_OK) st = btc_sp_encode(t->sp, t->unk->text, t->unk->len, 0, &ids, err);
  if (st != BTC_OK) btc_fail_prefix(err, "'%s'", label);
  t->unk_ids = ids.n;
  free(ids.v);
  free(canonical);
  return st;
}

/* Takes ownership of data. dir may be NULL: no JSON files. */
static btc_status open_bytes(uint8_t *data, size_t len, const char *dir, const char *label, btc_tokenizer **out, btc_error *err) {
  btc_tokenizer *t = btc_alloc_zero(1, sizeof *t);
  if (!t) {
    free(data);
    return btc_fail(err, BTC_ERR_NOMEM, "'%s': no memory for a tokenizer", label);
  }
  btc_status st = btc_spm_parse(data, len, label, &t->model, err);
  if (st == BTC_OK && dir) st = btc_special_read(dir, &t->specials, err);
  if (st == BTC_OK) st = default_specials(t, label, err);
  if (st == BTC_OK) st = resolve_specials(t, label, err);
  if (st == BTC_OK) st = name_specials(t, label, err);
  if (st == BTC_OK) st = load_library(t, label, err);
  if (st != BTC_OK) btc_tokenizer_close(&t);
  *out = t;
  return st;
}

btc_status btc_tokenizer_open(const char *dir, btc_tokenizer **out, btc_error *err) {
  uint8_t *data = NULL;
  size_t len = 0;
  *out = NULL;
  char *path = btc_path_join(dir, "tokenizer.model");
  if (!path) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a path");
  btc_status st = btc_file_read(path, BTC_SPM_MAX_BYTES, &data, &len, err);
  if (st == BTC_OK) st = open_bytes(data, len, dir, path, out, err);
  free(path);
  return st;
}

btc_status btc_tokenizer_open_memory(const void *data, size_t len, const char *label, btc_tokenizer **out, btc_error *err) {
  *out = NULL;
  if (len > BTC_SPM_MAX_BYTES)
    return btc_fail(err, BTC_ERR_LIMIT, "'%s' is too large: %zu bytes, at most %u are read", label, len, BTC_SPM_MAX_BYTES);
  uint8_t *copy = btc_alloc(len, 1);
  if (!copy) return btc_fail(err, BTC_ERR_NOMEM, "'%s': no memory for %zu bytes", label, len);
  if (len) memcpy(copy, data, len);
  return open_bytes(copy, len, NULL, label, out, err);
}

void btc_tokenizer_close(btc_tokenizer **t) {
  if (!*t) return;
  btc_sp_destroy(&(*t)->sp);
  btc_special_free(&(*t)->specials);
  btc_spm_free(&(*t)->model);
  free((*t)->special);
  free(*t);
  *t = NULL;
}

int32_t btc_tokenizer_vocab(const btc_tokenizer *t) {
  return t->vocab;
}

int32_t btc_tokenizer_bos(const btc_tokenizer *t) {
  return t->bos;
}

int32_t btc_tokenizer_eos(const btc_tokenizer *t) {
  return t->eos;
}

/* ---- encoding ---- */

btc_status btc_ids_reserve(btc_ids *ids, size_t more, btc_error *err) {
  size_t want;
  bool overflow = __builtin_add_overflow(ids->n, more, &want);
  if (!overflow && want <= ids->capacity && ids->v) return BTC_OK;
  size_t capacity = ids->capacity < SIZE_MAX / 2 && want < ids->capacity * 2 ? ids->capacity * 2 : want;
  int32_t *v = overflow ? NULL : btc_realloc(ids->v, capacity ? capacity : 1, sizeof *v);
  if (!v) {
    btc_fail(err, BTC_ERR_NOMEM, "no memory for %zu further ids", more);
    return BTC_ERR_NOMEM; /* said so, for analyzers that do not see into btc_fail */
  }
  ids->v = v;
  ids->capacity = capacity;
  return BTC_OK;
}

static btc_status push_id(btc_ids *ids, int32_t id, btc_error *err) {
  btc_status st = btc_ids_reserve(ids, 1, err);
  if (st == BTC_OK) ids->v[ids->n++] = id;
  return st;
}

/* One marker, then the text with every U+2581 turned into a space (step 2). */
static btc_status mark_text(const char *text, size_t len, char **marked, size_t *n, btc_error *err) {
  char *out = *marked = btc_alloc(len + BTC_MARKER_BYTES, 1);
  if (!out) return btc_fail(err, BTC_ERR_NOMEM, "no memory for %zu bytes of text", len);
  memcpy(out, BTC_MARKER, BTC_MARKER_BYTES);
  out += BTC_MARKER_BYTES;
  for (size_t i = 0; i < len;) {
    if (len - i >= BTC_MARKER_BYTES && memcmp(text + i, BTC_MARKER, BTC_MARKER_BYTES) == 0) {
      *out++ = ' ';
      i += BTC_MARKER_BYTES;
    } else {
      *out++ = text[i++];
    }
  }
  *n = (size_t)(out - *marked);
  return BTC_OK;
}

/* The longest special token that starts at text, NULL when none does. */
static const btc_special *special_at(const btc_tokenizer *t, const char *text, size_t left) {
  const btc_special *best = NULL;
  if (!t->starts[(uint8_t)*text]) return NULL;
  for (size_t i = 0; i < t->specials.n; i++) {
    const btc_special *s = &t->specials.v[i];
    if (s->id >= 0 && s->len <= left && (!best || s->len > best->len) && memcmp(s->text, text, s->len) == 0) best = s;
  }
  return best;
}

/* BPE of a stretch without special tokens (step 4). A model that removes extra whitespace would also remove the marker at the
 * beginning; there the reference encodes unk text + stretch and drops the ids of the unk text again. */
static btc_status encode_stretch(const btc_tokenizer *t, const char *text, size_t len, btc_ids *ids, btc_error *err) {
  if (len == 0) return BTC_OK;
  bool spaced = text[0] == ' ' || (len >= BTC_MARKER_BYTES && memcmp(text, BTC_MARKER, BTC_MARKER_BYTES) == 0);
  if (!t->model.remove_extra_whitespaces || !spaced) return btc_sp_encode(t->sp, text, len, 0, ids, err);
  char *prefixed = btc_alloc(t->unk->len + len, 1);
  if (!prefixed) return btc_fail(err, BTC_ERR_NOMEM, "no memory for %zu bytes of text", len);
  memcpy(prefixed, t->unk->text, t->unk->len);
  memcpy(prefixed + t->unk->len, text, len);
  btc_status st = btc_sp_encode(t->sp, prefixed, t->unk->len + len, t->unk_ids, ids, err);
  free(prefixed);
  return st;
}

/* Steps 3 to 5: leftmost special token first, the longest of those that start there. ids holds BOS already. */
static btc_status encode_marked(const btc_tokenizer *t, const char *text, size_t len, btc_ids *ids, btc_error *err) {
  size_t from = 0;
  btc_status st = BTC_OK;
  for (size_t at = 0; at < len && st == BTC_OK;) {
    const btc_special *s = special_at(t, text + at, len - at);
    if (!s) {
      at++;
      continue;
    }
    st = encode_stretch(t, text + from, at - from, ids, err);
    if (st == BTC_OK && from == 0 && ids->n == 2 && ids->v[1] == t->marker) ids->n = 1;
    if (st == BTC_OK) st = push_id(ids, s->id, err);
    from = at += s->len;
  }
  return st == BTC_OK ? encode_stretch(t, text + from, len - from, ids, err) : st;
}

btc_status btc_tokenizer_encode(const btc_tokenizer *t, const char *text, size_t len, int32_t **ids, size_t *n, btc_error *err) {
  *ids = NULL;
  *n = 0;
  if (len > BTC_TOKENIZER_MAX_BYTES)
    return btc_fail(err, BTC_ERR_LIMIT, "a text of %zu bytes is too long, at most %u are encoded", len, BTC_TOKENIZER_MAX_BYTES);
  if (len && memchr(text, 0, len)) return btc_fail(err, BTC_ERR_ARG, "a text with a NUL byte cannot be encoded");
  btc_ids list = {0};
  char *marked = NULL;
  size_t n_marked = 0;
  btc_status st = push_id(&list, t->bos, err);
  if (st == BTC_OK && len) st = mark_text(text, len, &marked, &n_marked, err);
  if (st == BTC_OK && len) st = encode_marked(t, marked, n_marked, &list, err);
  free(marked);
  if (st != BTC_OK) {
    free(list.v);
    return st;
  }
  *ids = list.v;
  *n = list.n;
  return BTC_OK;
}

/* ---- decoding ---- */

typedef struct decoder {
  char *out;
  size_t n;
  size_t run; /* where the bytes of the byte pieces just written start; n when there are none */
} decoder;

/* Every byte of the run outside well-formed UTF-8 becomes U+FFFD. */
static void close_run(decoder *d) {
  size_t len = d->n - d->run, grown = 0;
  if (btc_utf8_valid(d->out + d->run, len) == len) {
    d->run = d->n;
    return;
  }
  /* The run has 3 * len bytes of room (decode_bound): move it to the end of its room and rewrite it from there. */
  char *from = d->out + d->run + 2 * len, *to = d->out + d->run;
  memmove(from, d->out + d->run, len);
  for (size_t at = 0; at < len;) {
    size_t step = btc_utf8_char(from + at, len - at);
    if (step)
      memmove(to + grown, from + at, step);
    else
      memcpy(to + grown, "\xEF\xBF\xBD", 3);
    grown += step ? step : 3;
    at += step ? step : 1;
  }
  d->n = d->run + grown;
  d->run = d->n;
}

static void put_text(decoder *d, const char *text, size_t len) {
  for (size_t i = 0; i < len;) {
    if (len - i >= BTC_MARKER_BYTES && memcmp(text + i, BTC_MARKER, BTC_MARKER_BYTES) == 0) {
      d->out[d->n++] = ' ';
      i += BTC_MARKER_BYTES;
    } else {
      d->out[d->n++] = text[i++];
    }
  }
  d->run = d->n;
}

static bool strip_marker(const char **text, size_t *len) {
  if (*len < BTC_MARKER_BYTES || memcmp(*text, BTC_MARKER, BTC_MARKER_BYTES) != 0) return false;
  *text += BTC_MARKER_BYTES;
  *len -= BTC_MARKER_BYTES;
  return true;
}

static void put_piece(const btc_tokenizer *t, decoder *d, int32_t id, bool first) {
  const btc_spm_piece *p = &t->model.pieces[id];
  if (p->type == BTC_SPM_BYTE) {
    d->out[d->n++] = (char)p->byte;
    return;
  }
  close_run(d);
  if (p->type == BTC_SPM_CONTROL) return;
  const char *text = p->text;
  size_t len = p->len;
  if (first) strip_marker(&text, &len);
  /* SentencePiece itself drops a further marker of each piece until there is text, if the model removes extra whitespace */
  if (t->model.remove_extra_whitespaces && d->n == 0) strip_marker(&text, &len);
  put_text(d, text, len);
}

/* Bytes that n ids can become: a byte piece up to three, another piece at most its own length. */
static btc_status decode_bound(const btc_tokenizer *t, const int32_t *ids, size_t n, size_t *bound, btc_error *err) {
  *bound = 1;
  for (size_t i = 0; i < n; i++) {
    if (ids[i] < 0 || ids[i] >= t->vocab)
      return btc_fail(err, BTC_ERR_ARG, "id %d cannot be decoded: the vocabulary has %d", ids[i], t->vocab);
    if (t->special[ids[i]]) continue;
    const btc_spm_piece *p = &t->model.pieces[ids[i]];
    if (__builtin_add_overflow(*bound, p->type == BTC_SPM_BYTE ? 3u : p->len, bound))
      return btc_fail(err, BTC_ERR_LIMIT, "%zu ids are too many to decode", n);
  }
  return BTC_OK;
}

btc_status btc_tokenizer_decode(const btc_tokenizer *t, const int32_t *ids, size_t n, char **text, size_t *len, btc_error *err) {
  size_t bound;
  *text = NULL;
  *len = 0;
  btc_status st = decode_bound(t, ids, n, &bound, err);
  if (st != BTC_OK) return st;
  decoder d = {.out = btc_alloc(bound, 1)};
  if (!d.out) return btc_fail(err, BTC_ERR_NOMEM, "no memory for %zu bytes of text", bound);
  bool first = true;
  for (size_t i = 0; i < n; i++) {
    if (t->special[ids[i]]) continue;
    put_piece(t, &d, ids[i], first);
    first = false;
  }
  close_run(&d);
  d.out[d.n] = 0;
  *text = d.out;
  *len = d.n;
  return BTC_OK;
}
