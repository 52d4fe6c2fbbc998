/* See pictures.h. */
#include "pictures.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/heatmap.h"
#include "geo/scene.h"

enum { SMALL_PIXELS = 4 << 20, HEAT_MAX = 512 };

typedef struct open_scene {
  char *before, *after;
  btc_scene *scene;
} open_scene;

struct btc_pictures {
  int64_t side;
  open_scene scene, heat;
};

btc_status btc_pictures_create(int64_t side, btc_pictures **out, btc_error *err) {
  *out = btc_alloc_zero(1, sizeof **out);
  if (!*out) return btc_fail(err, BTC_ERR_NOMEM, "no memory for pictures");
  (*out)->side = side;
  return BTC_OK;
}

static void shut(open_scene *s) {
  if (s->scene) btc_scene_close(&s->scene);
  free(s->before);
  free(s->after);
  *s = (open_scene){0};
}

void btc_pictures_destroy(btc_pictures **p) {
  if (!*p) return;
  shut(&(*p)->scene);
  shut(&(*p)->heat);
  free(*p);
  *p = NULL;
}

/* To at most `side` pixels a side; smaller images stay as they are. width, height: the shape it should have. */
static btc_status shrink(btc_image *im, int64_t width, int64_t height, int64_t side, btc_error *err) {
  int64_t longer = width > height ? width : height;
  double scale = longer > side ? (double)side / (double)longer : 1;
  int64_t w = (int64_t)llround((double)width * scale), h = (int64_t)llround((double)height * scale);
  btc_image small;
  w = w < 1 ? 1 : w;
  h = h < 1 ? 1 : h;
  if (w == im->width && h == im->height) return BTC_OK;
  btc_status st = btc_image_resize(im, w, h, &small, err);
  if (st != BTC_OK) return st;
  btc_image_free(im);
  *im = small;
  return BTC_OK;
}

/* Small images are decoded as they are; large ones stream through a square of the side, which then gets their shape. */
static btc_status whole(const char *path, int64_t side, btc_image *out, btc_error *err) {
  btc_image_limits small = btc_image_limits_default();
  int64_t width = 0, height = 0;
  small.max_pixels = SMALL_PIXELS;
  btc_status st = btc_image_decode_file(path, &small, out, err);
  if (st == BTC_OK) {
    width = out->width;
    height = out->height;
  } else if (st == BTC_ERR_LIMIT) {
    st = btc_image_load(path, side, BTC_IMAGE_SQUASH, NULL, out, &width, &height, err);
  }
  if (st == BTC_OK && (st = shrink(out, width, height, side, err)) != BTC_OK) btc_image_free(out);
  return st;
}

static btc_status scene_for(open_scene *s, const char *before, const char *after, const btc_scene_options *o, btc_error *err) {
  btc_geo_failure f = {0};
  if (s->scene && strcmp(s->before, before) == 0 && strcmp(s->after, after) == 0) return BTC_OK;
  shut(s);
  s->before = btc_strdup(before);
  s->after = btc_strdup(after);
  if (!s->before || !s->after) {
    shut(s);
    return btc_fail(err, BTC_ERR_NOMEM, "no memory for a scene");
  }
  btc_status st = btc_scene_open(before, after, o, &s->scene, &f);
  if (st != BTC_OK) {
    shut(s);
    return btc_fail(err, st, "%s", f.error.message);
  }
  return BTC_OK;
}

static bool window_fits(const int64_t w[4]) {
  for (int i = 0; i < 2; i++)
    if (w[i] < -BTC_SCENE_MAX_SIDE || w[i] > BTC_SCENE_MAX_SIDE || w[i + 2] < 1 || w[i + 2] > BTC_SCENE_MAX_WINDOW) return false;
  return true;
}

static btc_status window_of(btc_pictures *p, const btc_pair_source *s, btc_image out[2], btc_error *err) {
  btc_scene_options o = s->scene ? *s->scene : btc_scene_options_defaults();
  btc_geo_failure f = {0};
  const int64_t *w = s->window;
  if (!window_fits(w)) return btc_fail(err, BTC_ERR_LIMIT, "a window of over %d pixels", BTC_SCENE_MAX_WINDOW);
  btc_status st = scene_for(&p->scene, s->before, s->after, &o, err);
  if (st != BTC_OK) return st;
  for (int i = 0; i < 2; i++) out[i] = (btc_image){.width = w[2], .height = w[3], .rgb = btc_alloc((size_t)w[2] * (size_t)w[3], 3)};
  if (!out[0].rgb || !out[1].rgb) return btc_fail(err, BTC_ERR_NOMEM, "no memory for a window");
  st = btc_scene_read(p->scene.scene, (int)w[0], (int)w[1], (int)w[2], (int)w[3], out[0].rgb, out[1].rgb, NULL, NULL, &f);
  if (st != BTC_OK) return btc_fail(err, st, "%s", f.error.message);
  for (int i = 0; i < 2 && st == BTC_OK; i++) st = shrink(&out[i], w[2], w[3], p->side, err);
  return st;
}

btc_status btc_pictures_read(btc_pictures *p, const btc_pair_source *s, btc_image out[2], btc_error *err) {
  btc_status st;
  out[0] = out[1] = (btc_image){0};
  if (s->window) {
    st = window_of(p, s, out, err);
  } else {
    st = whole(s->before, p->side, &out[0], err);
    if (st == BTC_OK) st = whole(s->after, p->side, &out[1], err);
  }
  if (st != BTC_OK) {
    btc_image_free(&out[0]);
    btc_image_free(&out[1]);
  }
  return st;
}

btc_status btc_pictures_colour(const float *cosine, int64_t g, btc_image *out, double *top, btc_error *err) {
  *top = 0;
  if (!cosine) return btc_fail(err, BTC_ERR_ARG, "no cosines");
  for (int64_t i = 0; i < g * g; i++) *top = fmax(*top, (1 - (double)cosine[i]) / 2);
  return btc_heatmap_render(cosine, g, NULL, BTC_HEATMAP_LEGEND_SIDE - 1, out, err); /* so small that it has no legend */
}

/* The map is float32 from 0 to 1; as a scene stretched over 0..1 it comes in 255 steps, enough for a picture. */
btc_status btc_pictures_heat(btc_pictures *p, const char *tif, int64_t scene_width, const int64_t window[4], btc_image *out,
                             double *top, btc_error *err) {
  btc_scene_options o = btc_scene_options_defaults();
  btc_geo_failure f = {0};
  o.pixels = true;
  o.stretch = BTC_STRETCH_RANGE;
  o.stretch_min = 0;
  o.stretch_max = 1;
  *out = (btc_image){0};
  if (scene_width < 1 || !window_fits(window)) return btc_fail(err, BTC_ERR_ARG, "no window of a scene");
  btc_status st = scene_for(&p->heat, tif, tif, &o, err);
  if (st != BTC_OK) return st;
  double scale = (double)btc_scene_get_info(p->heat.scene)->width / (double)scene_width;
  int x = (int)lround((double)window[0] * scale), y = (int)lround((double)window[1] * scale);
  int g = (int)lround((double)window[2] * scale);
  g = g < 1 ? 1 : g > HEAT_MAX ? HEAT_MAX : g;
  size_t n = (size_t)g * (size_t)g;
  uint8_t *rgb = btc_alloc(n, 3);
  float *cosine = btc_alloc(n, sizeof *cosine);
  const bool room = rgb && cosine;
  if (!room) st = btc_fail(err, BTC_ERR_NOMEM, "no memory for a change map");
  if (room && btc_scene_read(p->heat.scene, x, y, g, g, rgb, NULL, NULL, NULL, &f) != BTC_OK)
    st = btc_fail(err, f.error.code, "%s", f.error.message);
  for (size_t i = 0; room && st == BTC_OK && i < n; i++) cosine[i] = 1 - 2 * (float)rgb[3 * i] / 255;
  if (st == BTC_OK) st = btc_pictures_colour(cosine, g, out, top, err);
  free(rgb);
  free(cosine);
  return st;
}
