/*
 * Messages between a program and its helper btcchat-geo: one JSON object behind its length (4 bytes, little-endian), at most
 * GEO_FRAME_MAX, over a stream socket pair; file descriptors may travel with a frame. Pixels go through shared memory.
 * Both ends check what they get: the helper has read hostile files.
 */
#ifndef GEO_FRAME_H
#define GEO_FRAME_H

#include <jansson.h>

#include "geo/geo.h"

#define GEO_FRAME_MAX ((size_t)1 << 20)
#define GEO_FRAME_FDS 8

/* Writes a frame with n descriptors (borrowed). Waits until deadline_ns (btc_now_ns; 0: for ever). IO: the other end is gone. */
btc_status geo_frame_send(int fd, const json_t *message, const int *fds, int n, int64_t deadline_ns, btc_error *err);

typedef struct geo_frame {
  json_t *message; /* json_decref */
  int fds[GEO_FRAME_FDS];
  int n_fds; /* the receiver closes them: geo_frame_clear does both */
} geo_frame;
void geo_frame_clear(geo_frame *f);

/* Asked while waiting; true ends it with CANCELLED. */
typedef bool (*geo_frame_stop)(void *ctx);

/* Reads one frame. NOT_FOUND: the other end closed before a frame began; LIMIT: the time is over (deadline_ns; 0: none), or too
 * long; FORMAT: it is none; IO. On failure *out is empty. */
btc_status geo_frame_receive(int fd, int64_t deadline_ns, geo_frame_stop stop, void *ctx, geo_frame *out, btc_error *err);

/* The bytes of one frame, length included; what receive uses. FORMAT, LIMIT. */
btc_status geo_frame_parse(const uint8_t *data, size_t len, json_t **out, btc_error *err);

#endif
