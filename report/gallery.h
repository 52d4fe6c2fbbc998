/*
 * A gallery: a folder with a static page that shows records with their pictures, from disk, without a network.
 *
 *   index.html gallery.css *.js    the page (report/page), the same in every gallery; leaflet.* when it was built in
 *   data/header.js                 title, digest, number of chunks
 *   data/NNNN.js                   500 records each, as scripts: a page from file:// may run a script, but not fetch a file
 *   images/NNN/NNNNNN-*.jpg|png    before, after and change map of a record; names are numbers, never ids
 *
 * Memory: one chunk. It is written beside its place and renamed when it is whole. Thread: one.
 */
#ifndef BTC_GALLERY_H
#define BTC_GALLERY_H

#include <jansson.h>

#include "engine/image.h"

#define BTC_GALLERY_MAX_RECORDS 1000000
#define BTC_GALLERY_CHUNK 500

typedef struct btc_gallery btc_gallery;

typedef struct btc_gallery_options {
  const char *title;
  const char *tiles; /* tile URL of the map, NULL: none */
  bool replace;      /* a gallery of ours that stands at the place is replaced */
  bool plane;        /* rings are in a plane of their own, not longitude and latitude */
} btc_gallery_options;

/* out: the folder to become. ARG: something stands there. IO, NOMEM. */
btc_status btc_gallery_create(const char *out, const btc_gallery_options *o, btc_gallery **g, btc_error *err);

typedef struct btc_gallery_pictures {
  const btc_image *before, *after, *heat; /* each may be NULL */
  double top;                             /* largest change of heat */
} btc_gallery_pictures;

/* record: what the page shows (report/card.h); it is taken, and gets the names of the pictures. */
btc_status btc_gallery_add(btc_gallery *g, json_t *record, const btc_gallery_pictures *p, btc_error *err);
uint64_t btc_gallery_count(const btc_gallery *g);
/* Writes what is left, syncs, and puts the folder in its place. */
btc_status btc_gallery_publish(btc_gallery *g, btc_error *err);
/* Before publish: removes what was written. */
void btc_gallery_close(btc_gallery **g);

#endif
