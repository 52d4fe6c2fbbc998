/*
 * A scene: two images of one place on one grid of pixels, read by windows. The grid is that of the before image, or one of --gsd
 * metres over its extent; the after image is put on it (directly where its pixels lie on the grid, else warped: bilinear, averaging
 * when it is reduced, positions within 0.125 pixels of the exact transformation).
 *
 * All decoding happens in a sandboxed child (gdal/sandbox.h). A child that dies, hangs or runs out of memory costs the call that it
 * was in; the next call starts another. Thread: one at a time for a scene; several scenes in several threads are fine.
 */
#ifndef BTC_SCENE_H
#define BTC_SCENE_H

#include "geo/geo.h"

#define BTC_SCENE_MAX_WINDOW 2048 /* pixels a side of a window */
#define BTC_SCENE_MAX_SIDE 100000 /* pixels a side of an image, by default */
#define BTC_SCENE_MAX_OVERLAP_POINTS 128

typedef struct btc_scene btc_scene;

typedef enum btc_scene_stretch_kind {
  BTC_STRETCH_AUTO,  /* NONE for two 8-bit images; else JOINT, or EACH where the two dates' ranges do not meet */
  BTC_STRETCH_NONE,  /* values as they are, cut to 0..255 */
  BTC_STRETCH_JOINT, /* percentiles of both dates together: brightness stays comparable */
  BTC_STRETCH_EACH,  /* each date by its own percentiles: for two sensors */
  BTC_STRETCH_RANGE  /* stretch_min..stretch_max for all bands of both dates */
} btc_scene_stretch_kind;

typedef enum btc_scene_shift_kind {
  BTC_SHIFT_NONE,
  BTC_SHIFT_ESTIMATE, /* reported only */
  BTC_SHIFT_APPLY     /* and undone when its confidence is at least BTC_SCENE_MIN_CONFIDENCE */
} btc_scene_shift_kind;
#define BTC_SCENE_MIN_CONFIDENCE 0.1

typedef struct btc_scene_options {
  const char *roots; /* colon-separated absolute folders that files must lie in, links followed; NULL: anywhere */
  bool allow_vsi;    /* paths of GDAL's network file systems (/vsicurl/, /vsis3/, ...): the sandbox then lets it use sockets */
  bool pixels;       /* leave georeferences aside: the two images must have equal size */
  double gsd_m;      /* metres a pixel of the grid; 0: the before image's own */
  int bands[3];      /* 1-based, as red, green, blue, of both images; all 0: by colour interpretation, else the first ones */
  btc_scene_stretch_kind stretch;
  double percentile_low, percentile_high; /* default 2 and 98 */
  double stretch_min, stretch_max;
  btc_scene_shift_kind shift;
  int64_t max_pixels;           /* of an image; default 5e9 */
  int max_side, max_bands;      /* default BTC_SCENE_MAX_SIDE, 512 */
  int64_t max_block_bytes;      /* one decoded block of a file; default 128 MiB */
  double max_ratio;             /* decoded bytes to file bytes, for images of over 256 MiB decoded; default 500 */
  int64_t memory_bytes;         /* address space of the decoder; default 1.25 GiB */
  int64_t cache_bytes;          /* of decoded blocks in it; default 384 MiB */
  int open_ms, read_ms;         /* time limits; default 120,000 and 30,000 */
  bool (*cancelled)(void *ctx); /* asked some ten times a second while waiting; NULL: never */
  void *cancelled_ctx;
} btc_scene_options;
btc_scene_options btc_scene_options_defaults(void);

/* One of the two images. Texts are empty where the file says nothing. */
typedef struct btc_scene_image {
  char driver[16];    /* GTiff, JP2OpenJPEG, PNG, JPEG */
  char dtype[16];     /* Byte, UInt16, Int16, UInt32, Int32, Float32, Float64 */
  int64_t file_bytes; /* 0: not known */
  int width, height, bands, band[3];
  int block_width, block_height, overviews;
  bool georeferenced, has_crs, world_file;
  char epsg[32];             /* "EPSG:32618" or empty */
  char date[24];             /* TIFFTAG_DATETIME as "2019-05-31T10:20:30", or empty */
  double geotransform[6];    /* GDAL's order: x0, dx/dcol, dx/drow, y0, dy/dcol, dy/drow */
  double gsd_m;              /* mean of both directions at the centre; 0: not known */
  bool has_nodata, has_mask; /* mask: an alpha band or a mask of its own */
  double nodata;
  bool direct;            /* its pixels lie on the grid; no warping */
  double low[3], high[3]; /* values that become 0 and 255 */
} btc_scene_image;

typedef struct btc_scene_info {
  int width, height;      /* of the grid, pixels */
  double geotransform[6]; /* of the grid; 0,1,0,0,0,1 without georeference */
  bool georeferenced;
  char *crs_wkt; /* WKT 2 (2019), or ""; lives as long as the scene */
  char epsg[32];
  double gsd_m; /* 0: not known */
  btc_scene_image before, after;
  btc_scene_stretch_kind stretch; /* what was done: never AUTO */
  /* The common ground: a polygon in grid pixels (corner of the grid = 0,0), without the closing point. */
  int overlap_points;
  double overlap[BTC_SCENE_MAX_OVERLAP_POINTS][2];
  double overlap_share; /* of the grid's area, 0..1 */
  bool shift_estimated, shift_applied;
  double shift_x, shift_y; /* after(x + shift_x, y + shift_y) shows what before(x, y) shows; grid pixels */
  double shift_confidence; /* 0..1, see gdal/shift.h */
  /* Visit windows column stripe by column stripe of this width, each row by row from the top: then each block of the files is
   * decoded about once. At least the window's own width is always right. */
  int stripe_width;
  char note[256]; /* one line for the user, or "": an assumption that was made */
} btc_scene_info;

/* Opens and measures both images. Errors name the file. *out: btc_scene_close. Blocks for at most open_ms. */
btc_status btc_scene_open(const char *before, const char *after, const btc_scene_options *o, btc_scene **out, btc_geo_failure *f);
void btc_scene_close(btc_scene **s);

/* Borrowed until close. */
const btc_scene_info *btc_scene_get_info(const btc_scene *s);

/* The window of w x h pixels at (x, y) of the grid; it may reach over the grid's edges, where nothing is valid. Any of the outputs
 * may be NULL. before, after: [h, w, 3] RGB, 0 where not valid; valid_*: [h, w], 1 valid, 0 not. Nothing is written on failure.
 * Blocks for at most read_ms (and open_ms when the child must be started again). After 5 deaths in a row the scene gives up and
 * every call fails at once with the last reason. */
btc_status btc_scene_read(btc_scene *s, int x, int y, int w, int h, uint8_t *before, uint8_t *after, uint8_t *valid_before,
                          uint8_t *valid_after, btc_geo_failure *f);

/* Grid pixel (corner-based, fractions allowed) -> coordinates of the grid's CRS. */
void btc_scene_pixel_to_crs(const btc_scene_info *info, double px, double py, double *x, double *y);

/* Children started so far: 1 when none died. */
int btc_scene_starts(const btc_scene *s);
/* Process id of the running child, 0: none. For tests and monitors. */
int btc_scene_pid(const btc_scene *s);

#endif
