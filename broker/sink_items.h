/* Sets of item numbers: a bitmap in pages, so that a few items of a large job cost little, and their text form "0-31,64" in
 * sidecars. And the sidecars' CRC. */
#ifndef BTC_BROKER_SINK_ITEMS_H
#define BTC_BROKER_SINK_ITEMS_H

#include <stdio.h>

#include "base/base.h"

#define BTC_ITEMS_MAX 100000000u /* item numbers are below */

typedef struct btc_items {
  uint64_t **page; /* [pages], of 4096 items each; NULL: empty */
  size_t pages;
  size_t used;    /* pages that are there */
  uint64_t count; /* items */
} btc_items;

void btc_items_free(btc_items *s); /* and empties it */
bool btc_items_has(const btc_items *s, uint64_t idx);
/* false: no memory, or idx is too large. */
bool btc_items_add(btc_items *s, uint64_t idx);
bool btc_items_merge(btc_items *s, const btc_items *more);
size_t btc_items_memory(const btc_items *s);

/* Ranges in ascending order, as in "0-31,64". */
void btc_items_print(const btc_items *s, FILE *f);
/* Adds the ranges of a text. ARG: it is none; NOMEM. */
btc_status btc_items_parse(btc_items *s, const char *text, btc_error *err);
/* Adds the items of a sidecar. FORMAT: it is none. */
btc_status btc_items_read(btc_items *s, int dir, const char *path, const char *name, btc_error *err);

uint32_t btc_crc32(const void *data, size_t len);                    /* of ISO 3309, as in gzip */
uint32_t btc_crc32_more(uint32_t crc, const void *data, size_t len); /* goes on; begins with 0 */

#endif
