/* See card.h. */
#include "card.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "results.h"

static void copy_text(json_t *to, const json_t *from, const char *key) {
  const char *s = btc_results_text(from, key);
  if (*s) json_object_set_new(to, key, json_string(s));
}

/* n finite numbers, or NULL. */
static const json_t *numbers(const json_t *v, size_t n) {
  if (json_array_size(v) != n) return NULL;
  for (size_t i = 0; i < n; i++)
    if (!json_is_number(json_array_get(v, i)) || !isfinite(json_number_value(json_array_get(v, i)))) return NULL;
  return v;
}

static json_t *checked_ring(const json_t *ring, bool downward) {
  size_t n = json_array_size(ring);
  if (n < 4 || n > 100) return NULL;
  json_t *out = json_array();
  for (size_t i = 0; i < n; i++) {
    const json_t *p = json_array_get(ring, i);
    if (json_array_size(p) < 2 || !json_is_number(json_array_get(p, 0)) || !json_is_number(json_array_get(p, 1))) {
      json_decref(out);
      return NULL;
    }
    double y = json_number_value(json_array_get(p, 1));
    json_array_append_new(out, json_pack("[f,f]", json_number_value(json_array_get(p, 0)), downward ? -y : y));
  }
  return out;
}

static json_t *box_ring(const json_t *bbox) {
  if (!numbers(bbox, 4)) return NULL;
  double b[4];
  for (size_t i = 0; i < 4; i++) b[i] = json_number_value(json_array_get(bbox, i));
  if (fabs(b[0]) > 180 || fabs(b[2]) > 180 || fabs(b[1]) > 90 || fabs(b[3]) > 90) return NULL;
  return json_pack("[[f,f],[f,f],[f,f],[f,f],[f,f]]", b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3], b[0], b[1]);
}

static json_t *ring_of(const json_t *record, const json_t *lonlat, bool plane) {
  const json_t *meta = json_object_get(record, "meta"), *geometry = json_object_get(record, "geometry");
  if (plane) {
    bool pixels = json_is_null(json_object_get(record, "crs"));
    return checked_ring(json_array_get(json_object_get(geometry, "coordinates"), 0), pixels);
  }
  if (lonlat) return checked_ring(lonlat, false);
  if (json_object_get(meta, "bbox")) return box_ring(json_object_get(meta, "bbox"));
  return strcmp(btc_results_text(record, "crs"), "EPSG:4326") == 0 ? box_ring(json_object_get(record, "bbox")) : NULL;
}

/* The dates of a scene's record, or those that `plan` puts into meta. */
static void add_dates(json_t *card, const json_t *record) {
  const json_t *dates = json_object_get(record, "dates");
  if (!json_is_object(dates)) dates = json_object_get(json_object_get(record, "meta"), "dates");
  const char *before = btc_results_text(dates, "before"), *after = btc_results_text(dates, "after");
  if (!*before && !*after) return;
  json_object_set_new(card, "dates", json_pack("[s,s]", before, after));
  json_object_set_new(card, "time", json_string(*after ? after : before));
}

static void add_meta(json_t *card, json_t *meta) {
  if (!json_is_object(meta)) return;
  char *text = json_dumps(meta, JSON_COMPACT);
  if (text && strlen(text) <= BTC_CARD_MAX_META) json_object_set(card, "meta", meta);
  free(text);
}

json_t *btc_card_of(const json_t *record, const json_t *ring_lonlat, bool plane) {
  static const char *const texts[] = {"id", "status", "caption", "reason", "message"};
  const json_t *changed = json_object_get(record, "changed"), *score = json_object_get(record, "score");
  json_t *card = json_object();
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) copy_text(card, record, texts[i]);
  if (json_is_boolean(changed)) json_object_set_new(card, "changed", json_boolean(json_is_true(changed)));
  if (json_is_number(score)) json_object_set_new(card, "score", json_real(json_number_value(score)));
  if (numbers(json_object_get(record, "window"), 4)) json_object_set(card, "window", json_object_get(record, "window"));
  add_dates(card, record);
  add_meta(card, json_object_get(record, "meta"));
  json_t *ring = ring_of(record, ring_lonlat, plane);
  if (ring) json_object_set_new(card, "ring", ring);
  return card;
}
