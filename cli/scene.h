/*
 * btcchat scene, cut into its parts: plan (what there is to do), run (windows through the model, into a journal), record (a
 * window's line), output (files out of the journal). Private to cmd_scene.c and scene_*.c.
 */
#ifndef BTC_CLI_SCENE_H
#define BTC_CLI_SCENE_H

#include <jansson.h>

#include "broker_options.h"
#include "geo/journal.h"
#include "geo/window.h"
#include "model_options.h"
#include "worker/record.h"

typedef struct scene_options {
  model_options model;
  broker_options queue; /* queue.broker NULL: in this process */
  const char *before, *after, *out;
  const char *before_date, *after_date, *stretch, *bands, *shift, *roots;
  double gsd_m, max_nodata;
  int64_t tile, overlap;
  bool pixels, allow_vsi, dry_run, json, restart, overwrite;
} scene_options;

/* ---- scene_plan.c ---- */

typedef struct scene_plan {
  const scene_options *o;
  btc_scene *scene;
  const btc_scene_info *info;
  btc_grid grid;
  char dates[2][24]; /* before, after: "2019-05-31", "2019-05-31T10:20:30" or "" */
} scene_plan;

/* Opens the scene and cuts it. Prints what is wrong and returns an exit code other than CLI_OK. */
int scene_plan_make(const scene_options *o, scene_plan *out);
void scene_plan_clear(scene_plan *p);
/* How the images are read, as the parameter `scene` of a job and the table of a GeoPackage have it (formats.md); NULL: no memory.
 */
json_t *scene_plan_options(const scene_options *o);
int64_t scene_plan_outside(const scene_plan *p); /* windows outside the common ground */
/* What stands for everything that decides the results: 64 hex digits. */
void scene_plan_key(const scene_plan *p, const record_model *model, const char *prompt, char hex[65]);

/* ---- scene_record.c ---- */

/* Room for "r16000000c16000000". */
typedef char scene_id[48];
void scene_window_id(const btc_grid *g, int64_t index, scene_id out);
/* The record with window, crs, bbox, geometry and dates; takes and frees line. NULL: no memory. */
char *scene_record_place(const scene_plan *p, int64_t index, char *line);

/* ---- scene_run.c ---- */

typedef struct scene_job {
  const scene_plan *plan;
  btc_model *m;
  const char *prompt; /* NULL: the caption instruction */
  /* The next window, -1: no more. */
  int64_t (*next)(void *ctx);
  /* A finished window; cells: [grid, grid] as in heat.h, or NULL. An error ends the run. */
  btc_status (*take)(void *ctx, int64_t index, const char *record, const uint16_t *cells, bool failed, bool captioned,
                     btc_error *err);
  void (*tick)(void *ctx); /* often; may be NULL */
  void *ctx;
} scene_job;

typedef struct scene_runner scene_runner;

btc_status scene_runner_create(const scene_job *job, scene_runner **out, btc_error *err);
const record_model *scene_runner_model(const scene_runner *r);
/* Takes every window that next names. CANCELLED when the user interrupted. */
btc_status scene_runner_run(scene_runner *r, btc_error *err);
void scene_runner_destroy(scene_runner **r);

/* ---- scene_output.c ---- */

/* Names of the files; texts owned, scene_files_clear frees. */
typedef struct scene_files {
  char *work;                                           /* folder */
  char *journal, *records, *raw, *gpkg, *geojson, *tif; /* in it */
  char *out_gpkg, *out_geojson, *out_records, *out_tif, *out_qml, *out_heat_qml;
} scene_files;
int scene_files_make(const char *out, scene_files *f); /* exit code */
void scene_files_clear(scene_files *f);
/* Removes what is unfinished of the outputs; all: the journal and the folder too. */
void scene_files_remove(const scene_files *f, bool all);

typedef struct scene_counts {
  int64_t ok, changed, skipped[4], failed; /* skipped: by btc_verdict */
} scene_counts;
/* Writes and publishes all outputs. */
btc_status scene_write(const scene_plan *p, const scene_files *f, btc_journal *j, int64_t cells, const record_model *model,
                       const char *prompt, scene_counts *counts, btc_error *err);

/* ---- scene_queue.c ---- */

/* The whole run over a broker. Returns CLI_OK, or the exit code of what was said. */
int scene_queue_run(const scene_plan *p, const scene_files *f, const broker_options *b, const char *prompt, scene_counts *counts);

#endif
