/* What there is to do for a scene: the two images on one grid, its windows, the dates, and the key that says which run is which. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/prompt.h"
#include "geo/cells.h"
#include "scene.h"

static bool interrupted(void *ctx) {
  (void)ctx;
  return cli_interrupted;
}

/* A date, or date and time, without a zone. */
static bool read_date(const char *text, char out[24]) {
  int d[6] = {0}, used = 0;
  if (!text) return true;
  size_t n = strlen(text);
  // NOLINTNEXTLINE(cert-err34-c): the widths bound the numbers
  bool date = n == 10 && sscanf(text, "%4d-%2d-%2d%n", d, d + 1, d + 2, &used) == 3 && used == 10;
  // NOLINTNEXTLINE(cert-err34-c): the widths bound the numbers
  bool time = n == 19 && sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d%n", d, d + 1, d + 2, d + 3, d + 4, d + 5, &used) == 6 && used == 19;
  if ((!date && !time) || d[0] < 0 || d[1] < 1 || d[1] > 12 || d[2] < 1 || d[2] > 31 || d[3] < 0 || d[3] > 23 || d[4] < 0 ||
      d[4] > 59 || d[5] < 0 || d[5] > 60)
    return false;
  snprintf(out, 24, "%s", text);
  return true;
}

static int read_options(const scene_options *o, btc_scene_options *so, scene_plan *p) {
  *so = btc_scene_options_defaults();
  so->roots = o->roots;
  so->allow_vsi = o->allow_vsi;
  so->pixels = o->pixels;
  so->gsd_m = o->gsd_m;
  so->cancelled = interrupted;
  btc_error err;
  btc_status st = btc_scene_options_bands(o->bands, so, &err);
  if (st == BTC_OK) st = btc_scene_options_stretch(o->stretch, so, &err);
  if (st == BTC_OK) st = btc_scene_options_shift(o->shift, so, &err);
  if (st == BTC_OK && (!read_date(o->before_date, p->dates[0]) || !read_date(o->after_date, p->dates[1])))
    st = btc_fail(&err, BTC_ERR_ARG, "dates are written 2019-05-31 or 2019-05-31T10:20:30");
  if (st != BTC_OK) cli_error("scene: %s", err.message);
  return st == BTC_OK ? CLI_OK : CLI_USAGE;
}

int scene_plan_make(const scene_options *o, scene_plan *p) {
  btc_scene_options so;
  btc_geo_failure f = {0};
  btc_error err;
  *p = (scene_plan){.o = o};
  int code = read_options(o, &so, p);
  if (code != CLI_OK) return code;
  if (btc_scene_open(o->before, o->after, &so, &p->scene, &f) != BTC_OK) {
    if (f.reason == BTC_GEO_CANCELLED) return CLI_INTERRUPTED;
    cli_error("%s (%s)", f.error.message, btc_geo_reason_text(f.reason));
    return CLI_FAILED;
  }
  p->info = btc_scene_get_info(p->scene);
  if (!*p->dates[0]) snprintf(p->dates[0], sizeof p->dates[0], "%s", p->info->before.date);
  if (!*p->dates[1]) snprintf(p->dates[1], sizeof p->dates[1], "%s", p->info->after.date);
  if (*p->info->note) cli_error("note: %s", p->info->note);
  if (btc_grid_make(p->info->width, p->info->height, o->tile, o->overlap, &p->grid, &err) == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return err.code == BTC_ERR_ARG ? CLI_USAGE : CLI_FAILED;
}

void scene_plan_clear(scene_plan *p) {
  btc_scene_close(&p->scene);
}

json_t *scene_plan_options(const scene_options *o) {
  json_t *scene = json_pack("{s:f,s:f,s:s,s:s,s:b}", "gsd_m", o->gsd_m, "max_nodata", o->max_nodata, "stretch", o->stretch, "shift",
                            o->shift, "pixels", (int)o->pixels);
  if (scene && o->bands) json_object_set_new(scene, "bands", json_string(o->bands));
  return scene;
}

int64_t scene_plan_outside(const scene_plan *p) {
  int64_t n = 0;
  for (int64_t i = 0; i < p->grid.count && !cli_interrupted; i++) {
    btc_window w = btc_grid_window(&p->grid, i);
    n += btc_window_overlap(p->info, &w) < 1e-6;
  }
  return n;
}

/* ---- key ---- */

static void add(btc_sha256 *s, const char *name, const char *text) {
  btc_sha256_update(s, name, strlen(name) + 1);
  btc_sha256_update(s, text ? text : "", text ? strlen(text) + 1 : 1);
}

/* Reading terabytes to know whether they are the same costs more than the run: size and time of change must do. */
static void add_file(btc_sha256 *s, const char *path, int64_t bytes) {
  struct stat info;
  char text[128], *real = realpath(path, NULL);
  if (stat(path, &info) == 0)
    snprintf(text, sizeof text, "%" PRId64 " %" PRId64 ".%09ld", (int64_t)info.st_size, (int64_t)info.st_mtim.tv_sec,
             info.st_mtim.tv_nsec);
  else
    snprintf(text, sizeof text, "%" PRId64, bytes);
  add(s, real ? real : path, text);
  free(real);
}

void scene_plan_key(const scene_plan *p, const record_model *model, const char *prompt, char hex[65]) {
  const scene_options *o = p->o;
  btc_sha256 s;
  uint8_t digest[32];
  char text[512];
  btc_sha256_init(&s);
  add_file(&s, o->before, p->info->before.file_bytes);
  add_file(&s, o->after, p->info->after.file_bytes);
  snprintf(text, sizeof text, "%d %" PRId64 " %" PRId64 " %.17g %.17g %.17g %.17g %" PRId64 " %" PRId64 " %" PRId64, (int)o->pixels,
           p->grid.tile, p->grid.step, o->gsd_m, o->max_nodata, o->model.temperature, o->model.top_p, o->model.top_k, o->model.seed,
           o->model.max_tokens);
  add(&s, "numbers", text);
  add(&s, "stretch", o->stretch);
  add(&s, "bands", o->bands);
  add(&s, "shift", o->shift);
  add(&s, p->dates[0], p->dates[1]);
  add(&s, model->fingerprint, model->dtype);
  add(&s, "prompt", prompt ? prompt : btc_prompt_caption);
  btc_sha256_final(&s, digest);
  for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}
