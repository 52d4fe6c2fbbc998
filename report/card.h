/* What the page shows of a record: a smaller object with checked types, so that the page needs no checks. Thread: any. */
#ifndef BTC_CARD_H
#define BTC_CARD_H

#include <jansson.h>
#include <stdbool.h>

#define BTC_CARD_MAX_META 4096 /* bytes of meta as text; more is left out */

/* id, status, caption, changed, score, reason, message, window, dates, time (the later date), meta, and ring when the record has a
 * place: ring_lonlat (borrowed, may be NULL) if given; else meta.bbox, or the record's bbox where its CRS is EPSG:4326; else, for
 * plane, the record's geometry in its own plane. NULL: no memory. */
json_t *btc_card_of(const json_t *record, const json_t *ring_lonlat, bool plane);

#endif
