#define _GNU_SOURCE
#include "frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD = 4, READ_BYTES = 64 << 10 };

void frame_free(frame_buffer *b) {
  free(b->data);
  *b = (frame_buffer){0};
}

/* Room for n more bytes behind the end; what was taken from the front is given up. */
static btc_status reserve(frame_buffer *b, size_t n, btc_error *err) {
  if (b->start == b->end) b->start = b->end = 0;
  if (b->room - b->end >= n) return BTC_OK;
  if (b->start) {
    memmove(b->data, b->data + b->start, b->end - b->start);
    b->end -= b->start;
    b->start = 0;
  }
  if (b->room - b->end >= n) return BTC_OK;
  size_t room = b->room ? b->room : READ_BYTES;
  while (room - b->end < n) room *= 2;
  if (room > FRAME_MAX_QUEUED) return btc_fail(err, BTC_ERR_LIMIT, "more than %u bytes are queued", FRAME_MAX_QUEUED);
  uint8_t *data = btc_realloc(b->data, room, 1);
  if (!data) return btc_fail(err, BTC_ERR_NOMEM, "not enough memory for a frame");
  b->data = data;
  b->room = room;
  return BTC_OK;
}

btc_status frame_add(frame_buffer *b, const Btc__Envelope *e, btc_error *err) {
  uint8_t *data = NULL;
  size_t len = 0;
  btc_status st = btc_wire_pack(e, &data, &len, err);
  if (st == BTC_OK) st = reserve(b, len + HEAD, err);
  if (st == BTC_OK) {
    for (int i = 0; i < HEAD; i++) b->data[b->end++] = (uint8_t)(len >> 8 * i);
    memcpy(b->data + b->end, data, len);
    b->end += len;
  }
  free(data);
  return st;
}

frame_io frame_write(frame_buffer *b, int fd) {
  while (b->start < b->end) {
    ssize_t n = send(fd, b->data + b->start, b->end - b->start, MSG_NOSIGNAL);
    if (n > 0)
      b->start += (size_t)n;
    else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return FRAME_AGAIN;
    else if (n == 0 || errno != EINTR)
      return FRAME_CLOSED;
  }
  return FRAME_DONE;
}

frame_io frame_read(frame_buffer *b, int fd) {
  if (reserve(b, READ_BYTES, NULL) != BTC_OK) return FRAME_CLOSED;
  for (;;) {
    ssize_t n = read(fd, b->data + b->end, b->room - b->end);
    if (n > 0) {
      b->end += (size_t)n;
      return FRAME_DONE;
    }
    if (n < 0 && errno == EINTR) continue;
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK) ? FRAME_AGAIN : FRAME_CLOSED;
  }
}

btc_status frame_next(frame_buffer *b, Btc__Envelope **out, btc_error *err) {
  size_t have = b->end - b->start, len = 0;
  *out = NULL;
  if (have < HEAD) return BTC_OK;
  for (int i = 0; i < HEAD; i++) len |= (size_t)b->data[b->start + (size_t)i] << 8 * i;
  if (len > BTC_WIRE_MAX_BYTES) return btc_fail(err, BTC_ERR_LIMIT, "a frame of %zu bytes", len);
  if (have < HEAD + len) return BTC_OK;
  btc_status st = btc_wire_unpack(b->data + b->start + HEAD, len, out, err);
  b->start += HEAD + len;
  return st;
}
