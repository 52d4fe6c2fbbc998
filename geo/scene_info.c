/* The decoder's answer to `open`, which a hostile file may have written: every number and text is checked (scene_wire.h). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "geo/scene_wire.h"

typedef struct reader {
  const json_t *o;
  bool good;
} reader;

static double number(reader *r, const char *key, double low, double high) {
  const json_t *v = json_object_get(r->o, key);
  double x = json_number_value(v);
  r->good = r->good && json_is_number(v) && x >= low && x <= high;
  return r->good ? x : low;
}

static void numbers(reader *r, const char *key, double *out, size_t n) {
  const json_t *a = json_object_get(r->o, key);
  r->good = r->good && json_array_size(a) == n;
  for (size_t i = 0; i < n; i++) {
    out[i] = json_number_value(json_array_get(a, i));
    r->good = r->good && isfinite(out[i]);
  }
}

static void text(reader *r, const char *key, char *out, size_t room) {
  const char *s = json_string_value(json_object_get(r->o, key));
  r->good = r->good && s && strlen(s) < room;
  snprintf(out, room, "%s", s && r->good ? s : "");
  for (char *c = out; *c; c++)
    if ((unsigned char)*c < ' ') *c = '?';
}

static bool flag(const reader *r, const char *key) {
  return json_is_true(json_object_get(r->o, key));
}

static bool read_image(const json_t *o, btc_scene_image *im) {
  reader r = {.o = o, .good = true};
  double band[3];
  text(&r, "driver", im->driver, sizeof im->driver);
  text(&r, "dtype", im->dtype, sizeof im->dtype);
  text(&r, "epsg", im->epsg, sizeof im->epsg);
  text(&r, "date", im->date, sizeof im->date);
  im->file_bytes = (int64_t)number(&r, "file_bytes", 0, 9e18);
  im->width = (int)number(&r, "width", 1, INT32_MAX);
  im->height = (int)number(&r, "height", 1, INT32_MAX);
  im->bands = (int)number(&r, "bands", 1, 65536);
  numbers(&r, "band", band, 3);
  for (int i = 0; r.good && i < 3; i++) {
    r.good = band[i] >= 1 && band[i] <= 65536;
    im->band[i] = r.good ? (int)band[i] : 0;
  }
  im->block_width = (int)number(&r, "block_width", 1, INT32_MAX);
  im->block_height = (int)number(&r, "block_height", 1, INT32_MAX);
  im->overviews = (int)number(&r, "overviews", 0, 1000);
  im->gsd_m = number(&r, "gsd_m", 0, 1e12);
  numbers(&r, "geotransform", im->geotransform, 6);
  numbers(&r, "low", im->low, 3);
  numbers(&r, "high", im->high, 3);
  im->georeferenced = flag(&r, "georeferenced");
  im->has_crs = flag(&r, "has_crs");
  im->world_file = flag(&r, "world_file");
  im->has_nodata = flag(&r, "has_nodata");
  im->has_mask = flag(&r, "has_mask");
  im->direct = flag(&r, "direct");
  im->nodata = json_number_value(json_object_get(o, "nodata"));
  return r.good;
}

static bool read_overlap(const json_t *a, btc_scene_info *i) {
  size_t n = json_array_size(a);
  if (n < 3 || n > BTC_SCENE_MAX_OVERLAP_POINTS) return false;
  i->overlap_points = (int)n;
  for (size_t k = 0; k < n; k++) {
    for (size_t c = 0; c < 2; c++) {
      double v = json_number_value(json_array_get(json_array_get(a, k), c));
      if (!isfinite(v)) return false;
      i->overlap[k][c] = v;
    }
  }
  return true;
}

bool scene_info_read(const json_t *o, btc_scene_info *i) {
  reader r = {.o = o, .good = true};
  const char *wkt = json_string_value(json_object_get(o, "crs_wkt"));
  *i = (btc_scene_info){0};
  i->width = (int)number(&r, "width", 1, INT32_MAX);
  i->height = (int)number(&r, "height", 1, INT32_MAX);
  numbers(&r, "geotransform", i->geotransform, 6);
  i->georeferenced = flag(&r, "georeferenced");
  text(&r, "epsg", i->epsg, sizeof i->epsg);
  text(&r, "note", i->note, sizeof i->note);
  i->gsd_m = number(&r, "gsd_m", 0, 1e12);
  i->overlap_share = number(&r, "overlap_share", 0, 1);
  i->stripe_width = (int)number(&r, "stripe_width", 1, INT32_MAX);
  i->shift_applied = flag(&r, "shift_applied");
  i->shift_estimated = json_object_get(o, "shift") != NULL;
  double shift[3] = {0};
  if (i->shift_estimated) numbers(&r, "shift", shift, 3);
  i->shift_x = shift[0], i->shift_y = shift[1], i->shift_confidence = shift[2];
  i->stretch = (btc_scene_stretch_kind)number(&r, "stretch", BTC_STRETCH_NONE, BTC_STRETCH_RANGE);
  const json_t *images = json_object_get(o, "images");
  r.good = r.good && read_overlap(json_object_get(o, "overlap"), i) && read_image(json_array_get(images, 0), &i->before) &&
           read_image(json_array_get(images, 1), &i->after) && wkt;
  if (r.good) i->crs_wkt = btc_strdup(wkt);
  return r.good && i->crs_wkt;
}
