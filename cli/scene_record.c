/* A window's record: see docs/formats.md, "Scenes". */
#define _GNU_SOURCE
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scene.h"

void scene_window_id(const btc_grid *g, int64_t index, scene_id out) {
  snprintf(out, sizeof(scene_id), "r%lldc%lld", (long long)(index / g->columns), (long long)(index % g->columns));
}

static json_t *crs_of(const btc_scene_info *info) {
  if (*info->epsg) return json_string(info->epsg);
  return *info->crs_wkt ? json_string("WKT") : json_null();
}

/* Corners from the top left, downward first: counterclockwise on a map with north up. */
static void corners_of(const btc_scene_info *info, const btc_window *w, double xy[5][2]) {
  const double px[4] = {0, 0, 1, 1}, py[4] = {0, 1, 1, 0};
  for (int i = 0; i < 5; i++)
    btc_scene_pixel_to_crs(info, (double)w->x + px[i % 4] * (double)w->width, (double)w->y + py[i % 4] * (double)w->height,
                           &xy[i][0], &xy[i][1]);
}

static json_t *bbox_of(double xy[5][2]) {
  double low[2] = {xy[0][0], xy[0][1]}, high[2] = {xy[0][0], xy[0][1]};
  for (int i = 1; i < 4; i++) {
    for (int k = 0; k < 2; k++) {
      low[k] = xy[i][k] < low[k] ? xy[i][k] : low[k];
      high[k] = xy[i][k] > high[k] ? xy[i][k] : high[k];
    }
  }
  return json_pack("[f,f,f,f]", low[0], low[1], high[0], high[1]);
}

static json_t *polygon_of(double xy[5][2]) {
  json_t *ring = json_array();
  for (int i = 0; i < 5; i++) json_array_append_new(ring, json_pack("[f,f]", xy[i][0], xy[i][1]));
  return json_pack("{s:s, s:[o]}", "type", "Polygon", "coordinates", ring);
}

static json_t *date_or_null(const char *date) {
  return *date ? json_string(date) : json_null();
}

char *scene_record_place(const scene_plan *p, int64_t index, char *line) {
  btc_window w = btc_grid_window(&p->grid, index);
  double xy[5][2];
  corners_of(p->info, &w, xy);
  json_t *place = json_pack("{s:[I,I,I,I], s:o, s:o, s:o, s:{s:o, s:o}}", "window", (json_int_t)w.x, (json_int_t)w.y,
                            (json_int_t)w.width, (json_int_t)w.height, "crs", crs_of(p->info), "bbox", bbox_of(xy), "geometry",
                            polygon_of(xy), "dates", "before", date_or_null(p->dates[0]), "after", date_or_null(p->dates[1]));
  char *text = place ? json_dumps(place, JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL, *out = NULL;
  size_t n = line ? strlen(line) : 0; /* both are objects: {a} and {b} become {a,b} */
  if (text && n > 2 && line[n - 1] == '}' && asprintf(&out, "%.*s,%s", (int)(n - 1), line, text + 1) < 0) out = NULL;
  json_decref(place);
  free(text);
  free(line);
  return out;
}
