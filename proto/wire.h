/*
 * Envelopes on the wire: packing, and unpacking of bytes that anybody may have sent. protobuf-c allocates what the bytes ask
 * for, so the bytes are bounded first and the memory they may ask for afterwards.
 *
 * A leaf: knows no socket, no Redis, no model.
 */
#ifndef BTC_PROTO_WIRE_H
#define BTC_PROTO_WIRE_H

#include "base/base.h"
#include "proto/btcchat.pb-c.h"

#define BTC_WIRE_VERSION 1u
#define BTC_WIRE_MIN_VERSION 1u
#define BTC_WIRE_MAX_BYTES (8u << 20)   /* of one envelope */
#define BTC_WIRE_MAX_MEMORY (64u << 20) /* that one unpacked envelope may take */

/* An Envelope with ver and min_ver set and the body chosen; the body pointer is set by the caller. */
Btc__Envelope btc_wire_envelope(Btc__Envelope__BodyCase body);

/* Packs into fresh memory (*data malloc'ed, caller frees). LIMIT over BTC_WIRE_MAX_BYTES, NOMEM. Any thread. */
btc_status btc_wire_pack(const Btc__Envelope *e, uint8_t **data, size_t *len, btc_error *err);

/* Unpacks; *out is freed with btc_wire_free. LIMIT: too many bytes or too much memory; FORMAT: not an envelope, a body that is not
 * set, text that is not UTF-8 or holds NUL; UNSUPPORTED: min_ver above BTC_WIRE_VERSION. Any thread. */
btc_status btc_wire_unpack(const uint8_t *data, size_t len, Btc__Envelope **out, btc_error *err);
void btc_wire_free(Btc__Envelope **e);

/* Short name of a body for logs: "results". Never NULL. */
const char *btc_wire_body_name(Btc__Envelope__BodyCase body);

#endif
