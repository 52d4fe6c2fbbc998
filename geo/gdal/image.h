/* One image in the decoder: opened by a named driver, held against the limits, described. */
#ifndef GEO_GDAL_IMAGE_H
#define GEO_GDAL_IMAGE_H

#include <gdal.h>
#include <ogr_srs_api.h>

#include "geo/geo.h"

typedef enum image_mask {
  IMAGE_ALL_VALID,
  IMAGE_NODATA, /* a pixel is invalid when all chosen bands hold their nodata value */
  IMAGE_MASK    /* GDAL's mask of the dataset: an alpha band or a mask band */
} image_mask;

typedef struct image_limits {
  int64_t max_pixels, max_block_bytes;
  int max_side, max_bands;
  double max_ratio;
} image_limits;

typedef struct image {
  const char *label; /* for messages; borrowed */
  GDALDatasetH ds;
  char driver[16];
  int64_t file_bytes; /* 0: not known */
  int width, height, bands;
  int band[3], n_bands;    /* those that are read: 1 (grey or palette) or 3 */
  GDALDataType type;       /* of band[0] */
  bool plain_8bit;         /* Byte that uses its whole range: may be shown as it is */
  GDALColorTableH palette; /* borrowed from ds; NULL: none */
  image_mask mask;
  int alpha; /* band number, 0: none */
  bool has_nodata;
  double nodata[3];
  bool georeferenced, world_file;
  double gt[6];             /* 0,1,0,0,0,1 when not georeferenced */
  OGRSpatialReferenceH srs; /* owned; NULL: none */
  double gsd_x, gsd_y;      /* metres a pixel at the centre; 0: not known */
} image;

#define IMAGE_RATIO_FREE_BYTES ((int64_t)256 << 20) /* images up to this many decoded bytes may have any ratio */

/* name: GDAL's. wanted: band numbers or 0,0,0. world: geotransform of a world file or NULL. Blocks on the disk. */
btc_status image_open(image *im, const char *name, const char *driver, const char *label, int64_t file_bytes, const int wanted[3],
                      const double *world, const image_limits *lim, btc_geo_failure *f);
void image_close(image *im);

/* Metres a pixel of a geotransform in a CRS (NULL: unknown, 0), at pixel (px, py). */
void image_gsd(const double gt[6], OGRSpatialReferenceH srs, double px, double py, double *gsd_x, double *gsd_y);

/* The last error of GDAL as a failure of this image: OOM or DECODE. */
btc_status image_fail(const image *im, const char *what, btc_geo_failure *f);

#endif
