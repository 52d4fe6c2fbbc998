/* See window.h. */
#define _GNU_SOURCE
#include "window.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "geo/cells.h"
#include "geo/heat.h"

struct window_reader {
  char *roots;
  int64_t cells;
  uint64_t *progress;
  btc_scene *scene;
  char *key; /* of the open scene */
};

window_reader *window_reader_create(const char *roots, int64_t cells, uint64_t *progress) {
  window_reader *r = btc_alloc_zero(1, sizeof *r);
  if (!r) return NULL;
  *r = (window_reader){.cells = cells, .progress = progress, .roots = roots && *roots ? btc_strdup(roots) : NULL};
  if (r->roots || !roots || !*roots) return r;
  free(r);
  return NULL;
}

static void close_scene(window_reader *r) {
  btc_scene_close(&r->scene);
  free(r->key);
  r->key = NULL;
}

void window_reader_destroy(window_reader **rp) {
  window_reader *r = *rp;
  if (!r) return;
  close_scene(r);
  free(r->roots);
  free(r);
  *rp = NULL;
}

/* Not for stopping: a decoder at work is progress, so that nobody takes a slow disk for a stuck engine. */
static bool tick(void *ctx) {
  const window_reader *r = ctx;
  if (r->progress) __atomic_add_fetch(r->progress, 1, __ATOMIC_RELAXED);
  return false;
}

static btc_status open_scene(window_reader *r, struct item_window *w) {
  if (r->scene && strcmp(r->key, w->key) == 0) return BTC_OK;
  close_scene(r);
  btc_scene_options o = w->options;
  o.roots = r->roots;
  o.cancelled = tick;
  o.cancelled_ctx = r;
  if (!(r->key = btc_strdup(w->key))) return btc_geo_fail(&w->failure, BTC_GEO_OOM, BTC_ERR_NOMEM, "out of memory");
  return btc_scene_open(w->paths[0], w->paths[1], &o, &r->scene, &w->failure);
}

/* ---- an item's window ---- */

static bool read_window(const json_t *v, btc_window *out) {
  json_int_t n[4];
  for (size_t i = 0; i < 4; i++) {
    const json_t *x = json_array_get(v, i);
    n[i] = json_integer_value(x);
    if (!json_is_integer(x) || n[i] < (i < 2 ? 0 : 1) || n[i] > (i < 2 ? INT32_MAX : BTC_SCENE_MAX_WINDOW)) return false;
  }
  *out = (btc_window){.x = n[0], .y = n[1], .width = n[2], .height = n[3]};
  return json_array_size(v) == 4;
}

btc_status item_window_create(const json_t *window, const json_t *scene, const char *const *paths, window_reader *r,
                              struct item_window **out, btc_error *err) {
  *out = NULL;
  struct item_window *w = btc_alloc_zero(1, sizeof *w);
  if (!w) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  *w = (struct item_window){.reader = r, .max_nodata = 0.5, .paths = paths, .options = btc_scene_options_defaults()};
  btc_status st = BTC_OK;
  char *options = scene ? json_dumps(scene, JSON_COMPACT | JSON_SORT_KEYS) : btc_strdup("");
  if (!read_window(window, &w->at))
    st = btc_fail(err, BTC_ERR_ARG, "'window' must be [x, y, width, height] in pixels, at most %d a side", BTC_SCENE_MAX_WINDOW);
  else
    st = btc_scene_options_json(scene, &w->options, &w->max_nodata, err);
  if (st == BTC_OK && (!options || asprintf(&w->key, "%s\n%s\n%s", paths[0], paths[1], options) < 0))
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  free(options);
  if (st == BTC_OK)
    *out = w;
  else
    item_window_free(w);
  return st;
}

void item_window_free(struct item_window *w) {
  if (!w) return;
  btc_window_pixels_clear(&w->px);
  free(w->key);
  free(w);
}

btc_status item_window_load(void *window, int i, btc_pixels *out, btc_error *err) {
  struct item_window *w = window;
  if (i == 0) {
    btc_status st = open_scene(w->reader, w);
    if (st == BTC_OK) st = btc_window_read(w->reader->scene, &w->at, w->max_nodata, w->reader->cells, &w->px, &w->failure);
    if (st != BTC_OK) return btc_fail(err, st, "%s", w->failure.error.message);
    if (item_window_skipped(w)) return btc_fail(err, BTC_ERR_UNSUPPORTED, "%s", btc_verdict_message(&w->px));
  }
  uint8_t **rgb = i ? &w->px.after : &w->px.before;
  *out = (btc_pixels){.width = w->at.width, .height = w->at.height, .rgb = *rgb};
  *rgb = NULL;
  return BTC_OK;
}

bool item_window_skipped(const struct item_window *w) {
  return w->px.verdict != BTC_VERDICT_CAPTION;
}

/* ---- records ---- */

static char *encode_heat(const struct item_window *w, const btc_result *r) {
  bool same = w->px.verdict == BTC_VERDICT_UNCHANGED;
  size_t n = (size_t)(w->reader->cells * w->reader->cells);
  if (!w->px.cell || (!same && (r->status != BTC_OK || !r->cosine))) return btc_strdup("");
  uint16_t *cells = btc_alloc(n, sizeof *cells);
  if (!cells) return NULL;
  for (size_t i = 0; i < n; i++) cells[i] = !w->px.cell[i] ? BTC_HEAT_NONE : same ? 0 : btc_heat_cell(r->cosine[i]);
  char *text = btc_cells_encode(cells, n);
  free(cells);
  return text;
}

char *item_window_record(const struct item_window *w, const btc_result *r, char *line) {
  char *heat = encode_heat(w, r), *out = NULL;
  size_t n = line ? strlen(line) : 0;
  int put = -1;
  if (heat && n > 2)
    put = asprintf(&out, "%.*s,\"window\":[%lld,%lld,%lld,%lld]%s%s%s}", (int)(n - 1), line, (long long)w->at.x, (long long)w->at.y,
                   (long long)w->at.width, (long long)w->at.height, *heat ? ",\"heat\":\"" : "", heat, *heat ? "\"" : "");
  free(heat);
  free(line);
  return put < 0 ? NULL : out;
}
