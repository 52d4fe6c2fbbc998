/*
 * Envelopes over a stream socket, each behind its length (4 bytes, little-endian), between agent and engine child. Buffers only;
 * who reads and writes the descriptor decides whether that may wait.
 */
#ifndef BTC_WORKER_FRAME_H
#define BTC_WORKER_FRAME_H

#include "proto/wire.h"

#define FRAME_MAX_QUEUED (64u << 20) /* bytes that wait to be written */

typedef struct frame_buffer { /* zero-initialise; frame_free */
  uint8_t *data;
  size_t start, end, room;
} frame_buffer;
void frame_free(frame_buffer *b);

/* Appends an envelope. LIMIT: too much is queued. */
btc_status frame_add(frame_buffer *b, const Btc__Envelope *e, btc_error *err);

typedef enum frame_io { FRAME_DONE, FRAME_AGAIN, FRAME_CLOSED } frame_io;
/* Writes what is queued: DONE when nothing is left; AGAIN on a non-blocking descriptor that is full; CLOSED when nobody reads any
 * more. */
frame_io frame_write(frame_buffer *b, int fd);
/* One read: DONE when bytes came. */
frame_io frame_read(frame_buffer *b, int fd);
/* The next whole envelope, freed with btc_wire_free; NULL when there is none yet. An error: the peer is broken. */
btc_status frame_next(frame_buffer *b, Btc__Envelope **out, btc_error *err);

#endif
