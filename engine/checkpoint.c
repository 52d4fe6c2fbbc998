/*
 * A checkpoint directory: opens what config.c and safetensors.c read, finds tensors by their canonical names whatever the
 * exporter called them, and checks once, before anything runs, that all that the configs ask for is there.
 * Sharded parts are in shards.c, the list of needed tensors in layout.c, the fingerprint in fingerprint.c.
 */
#define _GNU_SOURCE
#include "checkpoint_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const btc_part_folder[BTC_PART_COUNT] = {"llm", "vision_tower", "mm_projector"};

/* What whole-model states put in front of a part's names; cut after its last occurrence (spec 8.1 item 30). */
static const char *const part_prefix[BTC_PART_COUNT] = {"llm.", "vision_tower.vision_tower.", "mm_projector."};

static const char *without_prefix(const char *name, const char *prefix) {
  size_t n = strlen(prefix);
  for (const char *at = strstr(name, prefix); at; at = strstr(name, prefix)) name = at + n;
  return name;
}

/* ---- names ---- */

static bool starts(const char *s, const char *with) {
  return strncmp(s, with, strlen(with)) == 0;
}

/* VILA 1.5 stores the projector without the branch: layers.1.weight for layers.single.1.weight (spec 2.4). */
static btc_status rename_vila(btc_part_tensors *p, btc_error *err) {
  for (size_t i = 0; i < p->n; i++)
    if (starts(p->entry[i].name, "layers.single.")) return BTC_OK;
  for (size_t i = 0; i < p->n; i++) {
    btc_entry *e = &p->entry[i];
    if (!starts(e->name, "layers.1.") && !starts(e->name, "layers.2.") && !starts(e->name, "layers.4.")) continue;
    if (asprintf(&e->owned, "layers.single.%s", e->name + strlen("layers.")) < 0) {
      e->owned = NULL;
      return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", p->label);
    }
    e->name = e->owned;
    p->vila = true;
  }
  return BTC_OK;
}

static int by_name(const void *a, const void *b) {
  return strcmp(((const btc_entry *)a)->name, ((const btc_entry *)b)->name);
}

static btc_status index_names(btc_part_tensors *p, btc_part part, btc_error *err) {
  size_t n = 0;
  for (size_t i = 0; i < p->n_files; i++) n += btc_safetensors_count(p->file[i]);
  p->entry = btc_alloc_zero(n, sizeof *p->entry);
  p->order = btc_alloc_zero(n, sizeof *p->order);
  if (!p->entry || !p->order) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory for %zu tensors", p->label, n);
  for (size_t i = 0; i < p->n_files; i++) {
    for (size_t k = 0; k < btc_safetensors_count(p->file[i]); k++) {
      const btc_tensor_view *v = btc_safetensors_at(p->file[i], k);
      p->order[p->n] = v;
      p->entry[p->n++] = (btc_entry){.name = without_prefix(v->name, part_prefix[part]), .view = v};
    }
  }
  if (part == BTC_PART_PROJECTOR) {
    btc_status st = rename_vila(p, err);
    if (st != BTC_OK) return st;
  }
  qsort(p->entry, p->n, sizeof *p->entry, by_name);
  for (size_t i = 1; i < p->n; i++) {
    const btc_entry *a = &p->entry[i - 1], *b = &p->entry[i];
    if (strcmp(a->name, b->name) == 0)
      return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor '%.256s' is there twice, the other one is in '%s'", b->view->path,
                      b->view->name, a->view->path);
  }
  return BTC_OK;
}

/* ---- opening ---- */

static void close_part(btc_part_tensors *p) {
  for (size_t i = 0; i < p->n && p->entry; i++) free(p->entry[i].owned);
  free(p->entry);
  free(p->order);
  for (size_t i = 0; i < p->n_files; i++) btc_safetensors_close(&p->file[i]);
  free(p->file);
  free(p->label);
  *p = (btc_part_tensors){0};
}

static btc_status open_part(btc_checkpoint *c, btc_part part, btc_error *err) {
  btc_part_tensors *p = &c->part[part];
  char *dir = btc_path_join(c->dir, btc_part_folder[part]);
  if (!dir) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", c->dir);
  btc_status st = btc_part_open_files(p, dir, err);
  free(dir);
  return st == BTC_OK ? index_names(p, part, err) : st;
}

btc_status btc_checkpoint_open(const char *dir, btc_checkpoint **out, btc_error *err) {
  *out = NULL;
  btc_checkpoint *c = btc_alloc_zero(1, sizeof *c);
  if (!c || !(c->dir = btc_strdup(dir))) {
    free(c);
    return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", dir);
  }
  btc_status st = btc_config_load(dir, &c->config, err);
  for (int part = 0; part < BTC_PART_COUNT && st == BTC_OK; part++) st = open_part(c, (btc_part)part, err);
  if (st == BTC_OK) st = btc_checkpoint_check(c, err);
  if (st != BTC_OK) btc_checkpoint_close(&c);
  *out = c;
  return st;
}

void btc_checkpoint_close(btc_checkpoint **checkpoint) {
  btc_checkpoint *c = *checkpoint;
  *checkpoint = NULL;
  if (!c) return;
  for (int part = 0; part < BTC_PART_COUNT; part++) close_part(&c->part[part]);
  btc_config_free(&c->config);
  free(c->dir);
  free(c);
}

/* ---- looking up ---- */

const btc_entry *btc_part_find(const btc_part_tensors *p, const char *name) {
  const btc_entry key = {.name = name};
  return p->n ? bsearch(&key, p->entry, p->n, sizeof *p->entry, by_name) : NULL;
}

/* Which JSON file decided the shapes of a part. */
static const char *const part_config[BTC_PART_COUNT] = {"llm/config.json", "vision_tower/config.json",
                                                        "vision_tower/config.json with llm/config.json"};

static btc_status refuse_missing(const btc_part_tensors *p, btc_part part, const char *name, btc_error *err) {
  if (part == BTC_PART_PROJECTOR && p->vila && starts(name, "layers.single."))
    return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor 'layers.%s' (or '%s') is missing", p->label, name + strlen("layers.single."),
                    name);
  return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor '%s', which %s asks for, is missing", p->label, name, part_config[part]);
}

btc_status btc_checkpoint_tensor(const btc_checkpoint *c, btc_part part, const char *name, int rank, const int64_t *dim,
                                 const btc_tensor_view **out, btc_error *err) {
  const btc_part_tensors *p = &c->part[part];
  const btc_entry *e = btc_part_find(p, name);
  *out = NULL;
  if (!e) return refuse_missing(p, part, name, err);
  const btc_tensor_view *v = e->view;
  bool same = v->rank == rank;
  for (int i = 0; i < rank && same; i++) same = v->dim[i] == dim[i];
  if (!same) {
    char has[192], wants[192];
    btc_shape_text(v->rank, v->dim, has, sizeof has);
    btc_shape_text(rank, dim, wants, sizeof wants);
    return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor '%s' has shape %s, but %s asks for %s", v->path, v->name, has,
                    part_config[part], wants);
  }
  if (v->dtype == BTC_I64) return btc_fail(err, BTC_ERR_MODEL, "'%s': tensor '%s' holds integers, not weights", v->path, v->name);
  *out = v;
  return BTC_OK;
}

const btc_config *btc_checkpoint_config(const btc_checkpoint *c) {
  return &c->config;
}

const char *btc_checkpoint_dir(const btc_checkpoint *c) {
  return c->dir;
}

int64_t btc_checkpoint_ce_layers(const btc_checkpoint *c) {
  return c->ce_layers;
}

int64_t btc_checkpoint_ce_width(const btc_checkpoint *c) {
  return c->ce_width;
}

size_t btc_checkpoint_count(const btc_checkpoint *c, btc_part part) {
  return c->part[part].n;
}

const btc_tensor_view *btc_checkpoint_at(const btc_checkpoint *c, btc_part part, size_t i) {
  return c->part[part].order[i];
}
