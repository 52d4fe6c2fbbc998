/*
 * The fingerprint of a checkpoint: SHA-256 over a text that lists, one a line, the configuration values that change results,
 * the SHA-256 of the tokenizer, and name, dtype, shape and SHA-256 of every tensor in order of canonical name. So it does not
 * depend on how the tensors are spread over shards, on prefixes, on header padding, or on keys that we do not read.
 */
#define _GNU_SOURCE
#include "checkpoint_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_THREADS 16
#define MAX_TOKENIZER_BYTES (64u << 20)

static const char *const dtype_name[] = {[BTC_F32] = "f32", [BTC_F16] = "f16", [BTC_BF16] = "bf16", [BTC_I64] = "i64"};

static void describe_config(FILE *t, const btc_config *c) {
  const btc_vision_config *v = &c->vision;
  const btc_llm_config *l = &c->llm;
  fprintf(t, "btcchat checkpoint 1\n");
  fprintf(t, "vision %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %a\n", v->hidden, v->mlp,
          v->blocks, v->heads, v->image, v->patch, v->channels, (double)v->eps);
  fprintf(t, "llm %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %a %a %a %" PRId64 " %d %d\n", l->hidden,
          l->mlp, l->layers, l->heads, l->kv_heads, l->vocab, (double)l->eps, l->rope_theta, l->rope_factor, l->context, l->bos,
          l->tied_head);
  for (int i = 0; i < l->n_eos; i++) fprintf(t, "eos %d\n", l->eos[i]);
  fprintf(t, "preprocess %a", c->pre.rescale);
  for (int i = 0; i < 3; i++) fprintf(t, " %a %a", (double)c->pre.mean[i], (double)c->pre.std[i]);
  fprintf(t, "\nroot %" PRId64 " %" PRId64 " %d\n", c->cc_head, c->num_video_frames, c->aspect_pad);
  for (size_t i = 0; i < c->n_no_change; i++) fprintf(t, "no-change %zu %s\n", strlen(c->no_change[i]), c->no_change[i]);
}

static btc_status describe_tokenizer(FILE *t, const btc_checkpoint *c, btc_error *err) {
  char *dir = btc_path_join(c->dir, btc_part_folder[BTC_PART_LLM]);
  char *path = dir ? btc_path_join(dir, "tokenizer.model") : NULL;
  uint8_t *bytes = NULL;
  size_t len = 0;
  btc_status st = path ? btc_file_read(path, MAX_TOKENIZER_BYTES, &bytes, &len, err)
                       : btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", c->dir);
  if (st == BTC_OK) {
    char hex[65];
    btc_sha256_hex(bytes, len, hex);
    fprintf(t, "tokenizer %s\n", hex);
  }
  free(bytes);
  free(path);
  free(dir);
  return st;
}

/* ---- digests of all tensors, by as many threads as there are processors; each takes the next tensor ---- */

typedef struct tensor_digest {
  const btc_tensor_view *view;
  char hex[65];
} tensor_digest;

typedef struct work {
  tensor_digest *list;
  size_t n;
  atomic_size_t next;
} work;

static void *hash_tensors(void *arg) {
  work *w = arg;
  for (size_t i; (i = atomic_fetch_add(&w->next, 1)) < w->n;)
    btc_sha256_hex(w->list[i].view->data, (size_t)w->list[i].view->bytes, w->list[i].hex);
  return NULL;
}

/* The caller is one of the threads, so the work is done whether or not others can be had. */
static void hash_all(work *w) {
  pthread_t thread[MAX_THREADS];
  int started = 0;
  long processors = sysconf(_SC_NPROCESSORS_ONLN);
  while (started + 1 < processors && started < MAX_THREADS && pthread_create(&thread[started], NULL, hash_tensors, w) == 0)
    started++;
  hash_tensors(w);
  for (int i = 0; i < started; i++) pthread_join(thread[i], NULL);
}

static btc_status describe_tensors(FILE *t, const btc_checkpoint *c, btc_error *err) {
  work w = {0};
  size_t total = 0;
  for (int part = 0; part < BTC_PART_COUNT; part++) total += c->part[part].n;
  if (!(w.list = btc_alloc_zero(total, sizeof *w.list))) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", c->dir);
  for (int part = 0; part < BTC_PART_COUNT; part++)
    for (size_t i = 0; i < c->part[part].n; i++) w.list[w.n++].view = c->part[part].entry[i].view;
  hash_all(&w);
  const tensor_digest *d = w.list;
  for (int part = 0; part < BTC_PART_COUNT; part++) {
    for (size_t i = 0; i < c->part[part].n; i++, d++) {
      const char *name = c->part[part].entry[i].name;
      char shape[192];
      btc_shape_text(d->view->rank, d->view->dim, shape, sizeof shape);
      fprintf(t, "%s %zu %s %s %s %s\n", btc_part_folder[part], strlen(name), name, dtype_name[d->view->dtype], shape, d->hex);
    }
  }
  free(w.list);
  return BTC_OK;
}

typedef btc_status describe_weights(FILE *t, const btc_checkpoint *c, btc_error *err);

/* SHA-256 of what is cheap to read and of how `weights` describes the rest. */
static btc_status digest(const btc_checkpoint *c, describe_weights *weights, char hex[65], btc_error *err) {
  char *text = NULL;
  size_t len = 0;
  FILE *t = open_memstream(&text, &len);
  if (!t) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", c->dir);
  describe_config(t, &c->config);
  btc_status st = describe_tokenizer(t, c, err);
  if (st == BTC_OK) st = weights(t, c, err);
  bool written = !ferror(t);
  if (fclose(t) != 0) written = false;
  if (st == BTC_OK && !written) st = btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", c->dir);
  if (st == BTC_OK) btc_sha256_hex(text, len, hex);
  free(text);
  return st;
}

btc_status btc_checkpoint_fingerprint(btc_checkpoint *c, char out[72], btc_error *err) {
  if (!c->fingerprint[0]) {
    char hex[65];
    btc_status st = digest(c, describe_tensors, hex, err);
    if (st != BTC_OK) return st;
    snprintf(c->fingerprint, sizeof c->fingerprint, "sha256:%s", hex);
  }
  memcpy(out, c->fingerprint, sizeof c->fingerprint);
  return BTC_OK;
}

/* ---- the same files again ---- */

static bool has_stamps(const btc_checkpoint *c) {
  char stamp[BTC_STAMP];
  for (int part = 0; part < BTC_PART_COUNT; part++)
    for (size_t i = 0; i < c->part[part].n_files; i++) {
      btc_safetensors_stamp(c->part[part].file[i], stamp);
      if (!stamp[0]) return false;
    }
  return true;
}

/* Which tensors are taken from which file is told by an index beside them: so they are listed too. */
static btc_status describe_files(FILE *t, const btc_checkpoint *c, btc_error *err) {
  char stamp[BTC_STAMP];
  (void)err;
  for (int k = 0; k < BTC_PART_COUNT; k++) {
    const btc_part_tensors *p = &c->part[k];
    for (size_t i = 0; i < p->n_files; i++) {
      btc_safetensors_stamp(p->file[i], stamp);
      fprintf(t, "%s file %s\n", btc_part_folder[k], stamp);
    }
    for (size_t i = 0; i < p->n; i++)
      fprintf(t, "%s is %s of %s\n", p->entry[i].name, p->entry[i].view->name, p->entry[i].view->path);
  }
  return BTC_OK;
}

btc_status btc_checkpoint_known(btc_checkpoint *c, char out[BTC_KNOWN], btc_error *err) {
  char files[65], fingerprint[72];
  out[0] = 0;
  btc_status st = btc_checkpoint_fingerprint(c, fingerprint, err);
  if (st != BTC_OK || !has_stamps(c)) return st;
  st = digest(c, describe_files, files, err);
  if (st == BTC_OK) snprintf(out, BTC_KNOWN, "%s %s", files, fingerprint);
  return st;
}

bool btc_checkpoint_recognise(btc_checkpoint *c, const char *known) {
  char files[65];
  const size_t whole = 64 + 1 + 7 + 64;
  if (strlen(known) != whole || strncmp(known + 64, " sha256:", 8) != 0 || !has_stamps(c)) return false;
  if (digest(c, describe_files, files, NULL) != BTC_OK || strncmp(known, files, 64) != 0) return false;
  snprintf(c->fingerprint, sizeof c->fingerprint, "%s", known + 65);
  return true;
}
