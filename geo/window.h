/* One window of a scene, read and judged: is there something to caption? Thread: that of its scene. */
#ifndef BTC_GEO_WINDOW_H
#define BTC_GEO_WINDOW_H

#include "geo/grid.h"
#include "geo/scene.h"

typedef enum btc_verdict {
  BTC_VERDICT_CAPTION,
  BTC_VERDICT_UNCHANGED, /* both images have the same pixels */
  BTC_VERDICT_NODATA,    /* too many pixels are missing in either image */
  BTC_VERDICT_NO_OVERLAP /* outside the ground that both images show */
} btc_verdict;

/* "", "unchanged", "nodata", "no-overlap". */
const char *btc_verdict_reason(btc_verdict v);

typedef struct btc_window_pixels {
  btc_verdict verdict;
  uint8_t *before, *after; /* CAPTION: [height, width, 3], malloc'ed; pixels that either image lacks are 0 in both */
  double missing;          /* share of pixels that either image lacks, 0..1 */
  uint8_t *cell;           /* [cells, cells] malloc'ed: 1 where at least half of the pixels are there; not for NO_OVERLAP */
} btc_window_pixels;
void btc_window_pixels_clear(btc_window_pixels *p);
const char *btc_verdict_message(const btc_window_pixels *p); /* why there is no caption, a sentence; static text */

/* cells: a side of the change grid. max_missing: 0..1. On failure *out is empty. */
btc_status btc_window_read(btc_scene *s, const btc_window *w, double max_missing, int64_t cells, btc_window_pixels *out,
                           btc_geo_failure *f);

/* Share of the window that lies on the common ground, 0..1, from its polygon: no file is read. */
double btc_window_overlap(const btc_scene_info *info, const btc_window *w);

#endif
