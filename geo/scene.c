/*
 * A scene seen from the program: the files are opened here under the path policy, everything about their contents comes from the
 * decoder, whose answers are checked. A decoder that died is started again with the same descriptors.
 */
#define _GNU_SOURCE
#include "geo/scene.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "geo/process.h"
#include "geo/scene_wire.h"
#include "geo/source.h"

enum { MOST_DEATHS = 5 };

struct btc_scene {
  btc_scene_options o;
  char *roots;
  geo_source source[2];
  geo_process p;
  int shared_fd;
  uint8_t *shared;
  btc_scene_info info;
  int starts, deaths;
  btc_geo_failure last;
};

btc_scene_options btc_scene_options_defaults(void) {
  return (btc_scene_options){.percentile_low = 2,
                             .percentile_high = 98,
                             .max_pixels = 5000000000,
                             .max_side = BTC_SCENE_MAX_SIDE,
                             .max_bands = 512,
                             .max_block_bytes = (int64_t)128 << 20,
                             .max_ratio = 500,
                             .memory_bytes = (int64_t)1280 << 20,
                             .cache_bytes = (int64_t)384 << 20,
                             .open_ms = 120000,
                             .read_ms = 30000};
}

/* ---- the open request ---- */

static json_t *image_question(const geo_source *s, int i) {
  static const struct {
    const char *driver, *extension;
  } names[] = {{"GTiff", "tif"}, {"JP2OpenJPEG", "jp2"}, {"PNG", "png"}, {"JPEG", "jpg"}};
  char name[64] = "";
  for (size_t k = 0; s->driver && k < sizeof names / sizeof names[0]; k++)
    if (!strcmp(s->driver, names[k].driver))
      snprintf(name, sizeof name, "/vsibtc/%s.%s", i ? "after" : "before", names[k].extension);
  json_t *o = json_pack("{s:s,s:s,s:s,s:I}", "label", s->path, "name", s->fd < 0 ? s->path : name, "driver",
                        s->driver ? s->driver : "GTiff", "bytes", (json_int_t)s->bytes);
  if (o && s->has_world) {
    const double *w = s->world;
    json_object_set_new(o, "world", json_pack("[f,f,f,f,f,f]", w[0], w[1], w[2], w[3], w[4], w[5]));
  }
  return o;
}

static json_t *question_of(const btc_scene *s) {
  const btc_scene_options *o = &s->o;
  return json_pack("{s:{s:[o,o],s:b,s:b,s:f,s:[i,i,i],s:i,s:i,s:[f,f],s:[f,f],s:I,s:i,s:i,s:I,s:f,s:I,s:I}}", "open", "images",
                   image_question(&s->source[0], 0), image_question(&s->source[1], 1), "network", (int)o->allow_vsi, "pixels",
                   (int)o->pixels, "gsd_m", o->gsd_m, "bands", o->bands[0], o->bands[1], o->bands[2], "stretch", (int)o->stretch,
                   "shift", (int)o->shift, "percentiles", o->percentile_low, o->percentile_high, "range", o->stretch_min,
                   o->stretch_max, "max_pixels", (json_int_t)o->max_pixels, "max_side", o->max_side, "max_bands", o->max_bands,
                   "max_block_bytes", (json_int_t)o->max_block_bytes, "max_ratio", o->max_ratio, "memory_bytes",
                   (json_int_t)o->memory_bytes, "cache_bytes", (json_int_t)o->cache_bytes);
}

/* ---- starting and asking ---- */

static btc_status start(btc_scene *s, json_t **answer, btc_geo_failure *f) {
  int fds[3] = {s->shared_fd}, n = 1;
  for (int i = 0; i < 2; i++)
    if (s->source[i].fd >= 0) fds[n++] = s->source[i].fd;
  json_t *q = question_of(s);
  if (!q) return btc_geo_fail(f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG, "a path is not UTF-8 text");
  btc_status st = geo_process_start((const char *const[]){"decode", NULL}, &s->p, f);
  if (st == BTC_OK) {
    s->starts++;
    st = geo_process_ask(&s->p, q, fds, n, s->o.open_ms, s->o.cancelled, s->o.cancelled_ctx, answer, f);
    if (st != BTC_OK) geo_process_stop(&s->p);
  }
  json_decref(q);
  return st;
}

/* Memory is no file on a disk: the limit on their size, which counts for both, is not meant. */
static bool grow_shared(int fd) {
  struct rlimit old, most;
  bool limited = getrlimit(RLIMIT_FSIZE, &old) == 0 && old.rlim_cur != old.rlim_max;
  most = (struct rlimit){.rlim_cur = old.rlim_max, .rlim_max = old.rlim_max};
  if (limited) setrlimit(RLIMIT_FSIZE, &most);
  bool grown = ftruncate(fd, (off_t)SCENE_WIRE_BYTES) == 0;
  if (limited) setrlimit(RLIMIT_FSIZE, &old);
  return grown;
}

static btc_status make_shared(btc_scene *s, btc_geo_failure *f) {
  s->shared_fd = memfd_create("btcchat window", MFD_CLOEXEC);
  if (s->shared_fd >= 0 && grow_shared(s->shared_fd))
    s->shared = mmap(NULL, SCENE_WIRE_BYTES, PROT_READ, MAP_SHARED, s->shared_fd, 0);
  if (s->shared && s->shared != MAP_FAILED) return BTC_OK;
  s->shared = NULL;
  return btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "not enough memory for windows");
}

static btc_status open_all(btc_scene *s, const char *before, const char *after, btc_geo_failure *f) {
  json_t *answer = NULL;
  btc_status st = s->roots || !s->o.roots ? BTC_OK : btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = geo_source_open(before, s->roots, s->o.allow_vsi, &s->source[0], f);
  if (st == BTC_OK) st = geo_source_open(after, s->roots, s->o.allow_vsi, &s->source[1], f);
  if (st == BTC_OK) st = make_shared(s, f);
  if (st == BTC_OK) st = start(s, &answer, f);
  if (st == BTC_OK && !scene_info_read(answer, &s->info))
    st = btc_geo_fail(f, BTC_GEO_CRASH, BTC_ERR_FORMAT, "the decoder gave an answer that makes no sense");
  json_decref(answer);
  return st;
}

btc_status btc_scene_open(const char *before, const char *after, const btc_scene_options *o, btc_scene **out, btc_geo_failure *f) {
  *out = NULL;
  btc_scene *s = btc_alloc_zero(1, sizeof *s);
  if (!s) return btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "out of memory");
  s->o = *o;
  s->roots = btc_strdup(o->roots);
  s->p.fd = s->shared_fd = s->source[0].fd = s->source[1].fd = -1;
  btc_status st = open_all(s, before, after, f);
  if (st == BTC_OK)
    *out = s;
  else
    btc_scene_close(&s);
  return st;
}

void btc_scene_close(btc_scene **sp) {
  btc_scene *s = *sp;
  if (!s) return;
  if (s->p.pid) geo_process_stop(&s->p);
  for (int i = 0; i < 2; i++) geo_source_close(&s->source[i]);
  if (s->shared) munmap(s->shared, SCENE_WIRE_BYTES);
  if (s->shared_fd >= 0) close(s->shared_fd);
  free(s->info.crs_wkt);
  free(s->roots);
  free(s);
  *sp = NULL;
}

const btc_scene_info *btc_scene_get_info(const btc_scene *s) {
  return &s->info;
}

int btc_scene_starts(const btc_scene *s) {
  return s->starts;
}

int btc_scene_pid(const btc_scene *s) {
  return (int)s->p.pid;
}

void btc_scene_pixel_to_crs(const btc_scene_info *info, double px, double py, double *x, double *y) {
  const double *g = info->geotransform;
  *x = g[0] + px * g[1] + py * g[2];
  *y = g[3] + px * g[4] + py * g[5];
}

/* ---- reading ---- */

static btc_status ask_for(btc_scene *s, int x, int y, int w, int h, btc_geo_failure *f) {
  json_t *answer = NULL;
  btc_status st = BTC_OK;
  if (!s->p.pid) st = start(s, &answer, f);
  json_decref(answer);
  answer = NULL;
  json_t *q = st == BTC_OK ? json_pack("{s:[i,i,i,i]}", "read", x, y, w, h) : NULL;
  if (st == BTC_OK && !q) st = btc_geo_fail(f, BTC_GEO_OOM, BTC_ERR_NOMEM, "out of memory");
  if (st == BTC_OK) st = geo_process_ask(&s->p, q, NULL, 0, s->o.read_ms, s->o.cancelled, s->o.cancelled_ctx, &answer, f);
  json_decref(q);
  json_decref(answer);
  return st;
}

static void copy(const btc_scene *s, size_t pixels, uint8_t *before, uint8_t *after, uint8_t *valid[2]) {
  if (before) memcpy(before, s->shared + SCENE_WIRE_RGB(0), 3 * pixels);
  if (after) memcpy(after, s->shared + SCENE_WIRE_RGB(1), 3 * pixels);
  for (int i = 0; i < 2; i++)
    for (size_t k = 0; valid[i] && k < pixels; k++) valid[i][k] = s->shared[SCENE_WIRE_VALID(i) + k] != 0;
}

btc_status btc_scene_read(btc_scene *s, int x, int y, int w, int h, uint8_t *before, uint8_t *after, uint8_t *valid_before,
                          uint8_t *valid_after, btc_geo_failure *f) {
  btc_geo_failure own = {0};
  if (w < 1 || h < 1 || w > BTC_SCENE_MAX_WINDOW || h > BTC_SCENE_MAX_WINDOW)
    return btc_geo_fail(f, BTC_GEO_BAD_REQUEST, BTC_ERR_ARG, "a window of %d x %d pixels; 1 to %d a side are read", w, h,
                        BTC_SCENE_MAX_WINDOW);
  if (s->deaths >= MOST_DEATHS) {
    if (f) *f = s->last;
    return s->last.error.code;
  }
  btc_status st = ask_for(s, x, y, w, h, &own);
  bool died = st != BTC_OK && !s->p.pid && own.reason != BTC_GEO_CANCELLED;
  s->deaths = died ? s->deaths + 1 : 0;
  if (st == BTC_OK)
    copy(s, (size_t)w * (size_t)h, before, after, (uint8_t *[]){valid_before, valid_after});
  else
    s->last = own;
  if (st != BTC_OK && f) *f = own;
  return st;
}
