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

/* Packs into fresh memory (*data malloc'ed, caller frees). LIMIT over BTC_WIRE_MAX_BYTES, FORMAT for text that the other side would
 * refuse (not UTF-8), NOMEM. Any thread. */
btc_status btc_wire_pack(const Btc__Envelope *e, uint8_t **data, size_t *len, btc_error *err);

/* Unpacks; *out is freed with btc_wire_free. LIMIT: too many bytes or too much memory; FORMAT: not an envelope, no body at all,
 * text that is not UTF-8 or holds NUL; UNSUPPORTED: min_ver above BTC_WIRE_VERSION, or ver below BTC_WIRE_MIN_VERSION. A body that
 * this version does not know is no error: body_case is then BTC__ENVELOPE__BODY__NOT_SET. Enums may hold values that this version
 * does not know; texts are never NULL. Any thread. */
btc_status btc_wire_unpack(const uint8_t *data, size_t len, Btc__Envelope **out, btc_error *err);
void btc_wire_free(Btc__Envelope **e);

/* The req_id in bytes that may be no whole envelope; 0 when there is none. */
uint64_t btc_wire_req_id(const uint8_t *data, size_t len);

/* Short name of a body for logs: "results". Never NULL. */
const char *btc_wire_body_name(Btc__Envelope__BodyCase body);

#endif
