/* A copied list of devices: what of a message outlives it. A plain value but for its own pointers: it is not to be moved. */
#ifndef BTC_PROTO_DEVICES_H
#define BTC_PROTO_DEVICES_H

#include "proto/btcchat.pb-c.h"

enum { BTC_DEVICES = 16, BTC_DEVICE_NAME = 128 };

typedef struct btc_devices {
  size_t n;
  Btc__Device *list[BTC_DEVICES]; /* for messages: they point into this struct */
  Btc__Device of[BTC_DEVICES];
  char name[BTC_DEVICES][BTC_DEVICE_NAME];
} btc_devices;

/* Copies at most BTC_DEVICES of them; longer names are cut between characters, and a share outside 0..1 is not known. n 0: none. */
void btc_devices_set(btc_devices *d, Btc__Device *const *from, size_t n);

#endif
