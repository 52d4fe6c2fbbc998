/*
 * Envelopes on the wire: see wire.h. Bytes of others are walked once before protobuf-c sees them, since protobuf-c keeps no length
 * of a text (a NUL would cut it short unseen), does not check UTF-8, and allocates as it goes.
 */
#include "proto/wire.h"

#include <stdlib.h>
#include <string.h>

/* ---- the walk ---- */

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5, TAG_REQ_ID = 3, MAX_DEPTH = 8 };

typedef struct cursor {
  const uint8_t *p, *end;
  bool bad; /* sticky */
} cursor;

typedef struct field {
  uint32_t number, wire;
  uint64_t value;      /* VARINT */
  const uint8_t *data; /* BYTES */
  size_t len;
} field;

static uint64_t take_varint(cursor *c) {
  uint64_t v = 0;
  for (int shift = 0; shift < 70; shift += 7) {
    if (c->p == c->end) break;
    uint8_t b = *c->p++;
    if (shift == 63 && b > 1) break;
    v |= (uint64_t)(b & 0x7f) << shift;
    if (!(b & 0x80)) return v;
  }
  c->bad = true;
  return 0;
}

static void skip(cursor *c, size_t n) {
  if (n > (size_t)(c->end - c->p))
    c->bad = true;
  else
    c->p += n;
}

/* The next field; false at the end or when the bytes are bad. Groups (wire types 3 and 4) are bad: nobody writes them. */
static bool take_field(cursor *c, field *f) {
  if (c->bad || c->p == c->end) return false;
  uint64_t tag = take_varint(c);
  *f = (field){.number = (uint32_t)(tag >> 3), .wire = tag & 7};
  if (tag > UINT32_MAX || f->number == 0) c->bad = true;
  switch (f->wire) {
    case WIRE_VARINT:
      f->value = take_varint(c);
      break;
    case WIRE_64:
      skip(c, 8);
      break;
    case WIRE_32:
      skip(c, 4);
      break;
    case WIRE_BYTES: {
      uint64_t len = take_varint(c);
      f->data = c->p;
      f->len = (size_t)len;
      skip(c, (size_t)len);
      break;
    }
    default:
      c->bad = true;
  }
  return !c->bad;
}

/* Texts are mostly ASCII, so that eight bytes at a time are looked at first. */
static bool clean_text(const uint8_t *p, size_t len) {
  const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
  size_t at = 0;
  for (uint64_t w; at + 8 <= len; at += 8) {
    memcpy(&w, p + at, 8);
    if ((w | (w - ones)) & high) break; /* a byte over 0x7f, or (w - ones) borrowed at a zero one */
  }
  const char *rest = (const char *)p + at;
  return !memchr(rest, 0, len - at) && btc_utf8_valid(rest, len - at) == len - at;
}

static btc_status check_message(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t len, int depth, btc_error *err) {
  cursor c = {.p = data, .end = data + len};
  field f;
  while (take_field(&c, &f)) {
    if (f.wire != WIRE_BYTES) continue;
    const ProtobufCFieldDescriptor *fd = protobuf_c_message_descriptor_get_field(d, f.number);
    if (!fd) continue; /* of a newer version: kept as it is */
    if (fd->type == PROTOBUF_C_TYPE_STRING && !clean_text(f.data, f.len))
      return btc_fail(err, BTC_ERR_FORMAT, "message: %s.%s is not UTF-8 text without NUL bytes", d->short_name, fd->name);
    if (fd->type != PROTOBUF_C_TYPE_MESSAGE) continue;
    if (depth == MAX_DEPTH) return btc_fail(err, BTC_ERR_FORMAT, "message: nested too deep");
    btc_status st = check_message(fd->descriptor, f.data, f.len, depth + 1, err);
    if (st != BTC_OK) return st;
  }
  if (c.bad) return btc_fail(err, BTC_ERR_FORMAT, "message: %s ends early or holds a malformed field", d->short_name);
  return BTC_OK;
}

uint64_t btc_wire_req_id(const uint8_t *data, size_t len) {
  cursor c = {.p = data, .end = data + len};
  uint64_t id = 0;
  if (len > BTC_WIRE_MAX_BYTES) return 0;
  for (field f; take_field(&c, &f);)
    if (f.number == TAG_REQ_ID && f.wire == WIRE_VARINT) id = f.value;
  return id;
}

/* ---- memory ---- */

typedef struct budget {
  size_t left;
  bool refused;
} budget;

static void *budget_alloc(void *ctx, size_t size) {
  budget *b = ctx;
  if (size > b->left) {
    b->refused = true;
    return NULL;
  }
  b->left -= size;
  return btc_alloc(size, 1);
}

static void budget_free(void *ctx, void *p) {
  (void)ctx;
  free(p);
}

/* ---- packing and unpacking ---- */

Btc__Envelope btc_wire_envelope(Btc__Envelope__BodyCase body) {
  Btc__Envelope e = BTC__ENVELOPE__INIT;
  e.ver = BTC_WIRE_VERSION;
  e.min_ver = BTC_WIRE_MIN_VERSION;
  e.body_case = body;
  return e;
}

btc_status btc_wire_pack(const Btc__Envelope *e, uint8_t **data, size_t *len, btc_error *err) {
  *data = NULL;
  *len = 0;
  size_t size = btc__envelope__get_packed_size(e);
  if (size > BTC_WIRE_MAX_BYTES)
    return btc_fail(err, BTC_ERR_LIMIT, "message: %s of %zu bytes, at most %u go into one", btc_wire_body_name(e->body_case), size,
                    BTC_WIRE_MAX_BYTES);
  uint8_t *bytes = btc_alloc(size, 1);
  if (!bytes) return btc_fail(err, BTC_ERR_NOMEM, "message: not enough memory for %zu bytes", size);
  btc__envelope__pack(e, bytes);
  /* What the other side refuses would be sent again for ever: the sender learns of it here. */
  btc_status st = check_message(&btc__envelope__descriptor, bytes, size, 0, err);
  if (st != BTC_OK) {
    free(bytes);
    return st;
  }
  *data = bytes;
  *len = size;
  return BTC_OK;
}

/* A body that this version does not know stays behind as unknown fields; an envelope with neither is none. */
static btc_status check_envelope(const Btc__Envelope *e, btc_error *err) {
  if (e->min_ver > BTC_WIRE_VERSION || e->ver < BTC_WIRE_MIN_VERSION)
    return btc_fail(err, BTC_ERR_UNSUPPORTED, "message: protocol version %u (readable from %u on); this program speaks %u to %u",
                    e->ver, e->min_ver, BTC_WIRE_MIN_VERSION, BTC_WIRE_VERSION);
  if (e->body_case == BTC__ENVELOPE__BODY__NOT_SET && e->base.n_unknown_fields == 0)
    return btc_fail(err, BTC_ERR_FORMAT, "message: an envelope without a body");
  return BTC_OK;
}

btc_status btc_wire_unpack(const uint8_t *data, size_t len, Btc__Envelope **out, btc_error *err) {
  *out = NULL;
  if (len > BTC_WIRE_MAX_BYTES)
    return btc_fail(err, BTC_ERR_LIMIT, "message: %zu bytes, at most %u are read", len, BTC_WIRE_MAX_BYTES);
  btc_status st = check_message(&btc__envelope__descriptor, data, len, 0, err);
  if (st != BTC_OK) return st;
  budget b = {.left = BTC_WIRE_MAX_MEMORY};
  ProtobufCAllocator allocator = {.alloc = budget_alloc, .free = budget_free, .allocator_data = &b};
  Btc__Envelope *e = btc__envelope__unpack(&allocator, len, data);
  if (!e && b.refused)
    return btc_fail(err, BTC_ERR_LIMIT, "message: %zu bytes that would take more than %u of memory", len, BTC_WIRE_MAX_MEMORY);
  if (!e) return btc_fail(err, BTC_ERR_FORMAT, "message: not an envelope");
  st = check_envelope(e, err);
  if (st == BTC_OK)
    *out = e;
  else
    btc_wire_free(&e);
  return st;
}

void btc_wire_free(Btc__Envelope **e) {
  if (*e) btc__envelope__free_unpacked(*e, NULL); /* memory came from malloc, which is protobuf-c's own default */
  *e = NULL;
}

const char *btc_wire_body_name(Btc__Envelope__BodyCase body) {
  const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(&btc__envelope__descriptor, (unsigned)body);
  return f && body != BTC__ENVELOPE__BODY__NOT_SET ? f->name : "unknown";
}
