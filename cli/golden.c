/* Runs a golden case and compares. See golden.h. */
#include "golden.h"

#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/image.h"
#include "engine/prompt.h"
#include "engine/safetensors.h"
#include "engine/session.h"
#include "engine/text.h"

#define MAX_IMAGES 1024 /* of a run: the most frames a model may have (config.c) */
#define EXPECTED_MAX_BYTES (64u << 20)

typedef struct difference {
  double max, square, ref_square;
  bool nan;
} difference;

typedef struct golden {
  const char *dir;
  const golden_options *o;
  json_t *doc;
  btc_safetensors *values;
  btc_model *m;
  btc_session *s;
  golden_report *report;
  const json_t *run; /* being run */
  const char *run_id;
  int64_t logit_rows; /* rows of "logits" seen so far */
  difference logits;  /* over all steps of the run */
} golden;

static void problem(golden *g, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void problem(golden *g, const char *fmt, ...) {
  golden_report *r = g->report;
  if (r->n_problems < GOLDEN_MAX_PROBLEMS) {
    int used = snprintf(r->problem[r->n_problems], sizeof r->problem[0], "%s: ", g->run_id ? g->run_id : "case");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(r->problem[r->n_problems] + used, sizeof r->problem[0] - (size_t)used, fmt, ap);
    va_end(ap);
  }
  r->n_problems++;
}

static golden_tensor *report_of(golden *g, const char *name) {
  golden_report *r = g->report;
  for (int i = 0; i < r->n_tensors; i++)
    if (strcmp(r->tensor[i].name, name) == 0) return &r->tensor[i];
  if (r->n_tensors == GOLDEN_MAX_TENSORS) return NULL;
  golden_tensor *t = &r->tensor[r->n_tensors++];
  *t = (golden_tensor){.ok = true};
  snprintf(t->name, sizeof t->name, "%s", name);
  return t;
}

/* NULL where the run lacks the text; one of another kind is a problem. */
static const json_t *text_of(golden *g, const char *key) {
  const json_t *v = json_object_get(g->run, key);
  if (v && !json_is_string(v)) problem(g, "'%s' is no text", key);
  return json_is_string(v) ? v : NULL;
}

static double number(const json_t *o, const char *key) {
  return json_number_value(json_object_get(o, key));
}

/* ---- comparing tensors ---- */

static void compare(difference *d, const float *got, const float *want, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    double e = fabs((double)got[i] - (double)want[i]);
    if (isnan(e)) d->nan = true;
    if (e > d->max) d->max = e;
    d->square += e * e;
    d->ref_square += (double)want[i] * want[i];
  }
}

static void judge(golden *g, const char *name, const json_t *spec, const difference *d) {
  golden_tensor *t = report_of(g, name);
  if (!t) {
    problem(g, "%s is one tensor too many: %d are compared", name, GOLDEN_MAX_TENSORS);
    return;
  }
  double tol = number(spec, g->o->bf16 ? "tol_bf16" : "tol_f32");
  double noise = fmax(number(spec, "f32_err"), 1e-6 * number(spec, "max"));
  double rel = d->ref_square > 0 ? sqrt(d->square / d->ref_square) : 0, limit = g->o->bf16 ? 2 * number(spec, "bf16_rel_rms") : 0;
  bool ok = !d->nan && d->max <= tol && (!g->o->bf16 || rel <= limit);
  if (t->runs == 0 || d->max * t->tolerance > t->max_diff * tol) {
    t->max_diff = d->max;
    t->tolerance = tol;
  }
  if (noise > 0) t->noise_ratio = fmax(t->noise_ratio, d->max / noise);
  t->rel_rms = fmax(t->rel_rms, g->o->bf16 ? rel : 0);
  t->rel_rms_limit = fmax(t->rel_rms_limit, limit);
  t->runs++;
  t->in_run = true;
  if (ok) return;
  t->ok = false;
  problem(g, "%s differs by %.3g (tolerance %.3g)%s%s", name, d->max, tol, d->nan ? ", not a number" : "",
          g->o->bf16 && rel > limit ? ", relative rms too large" : "");
}

static const btc_tensor_view *expected(const golden *g, const char *name, const char *suffix) {
  char full[96];
  snprintf(full, sizeof full, "%s.%s%s", g->run_id, name, suffix);
  const btc_tensor_view *t = btc_safetensors_find(g->values, full);
  return t && t->dtype == BTC_F32 ? t : NULL;
}

/* Copies stored floats to aligned memory: the mapping promises no alignment. */
static float *floats_of(const btc_tensor_view *t) {
  float *f = btc_alloc(t->bytes, 1);
  if (f) memcpy(f, t->data, t->bytes);
  return f;
}

/* Compares listed token rows only: expected [groups, n_rows, cols], got [groups * tokens, cols]. */
static bool compare_rows(golden *g, difference *d, const btc_tensor_view *want, const float *got, int64_t rows, int64_t cols) {
  const btc_tensor_view *index = btc_safetensors_find(g->values, "rows");
  if (!index || index->dtype != BTC_I64 || index->rank != 1) return false;
  int64_t listed = index->dim[0], groups = (int64_t)(want->bytes / sizeof(float)) / (listed * cols);
  if (groups < 1 || groups * listed * cols * (int64_t)sizeof(float) != (int64_t)want->bytes || rows % groups) return false;
  float *w = floats_of(want);
  for (int64_t i = 0; w && i < groups * listed; i++) {
    int64_t row;
    memcpy(&row, (const char *)index->data + i % listed * 8, sizeof row);
    if (row < 0 || row >= rows / groups) break;
    compare(d, got + (i / listed * (rows / groups) + row) * cols, w + i * cols, cols);
  }
  free(w);
  return w != NULL;
}

/* What the tower was given, made on the device that computes: to the last bit. */
static void compare_pixels(golden *g, const float *data, int64_t floats) {
  const btc_tensor_view *want = expected(g, "pixels", "");
  const size_t bytes = (size_t)floats * sizeof *data;
  if (want && (want->bytes != bytes || memcmp(want->data, data, bytes) != 0)) problem(g, "the pixels given to the tower differ");
}

static void on_tensor(void *user, const char *name, const float *data, int64_t rows, int64_t cols) {
  golden *g = user;
  if (strcmp(name, "pixels") == 0) {
    compare_pixels(g, data, rows * cols);
    return;
  }
  const json_t *spec = json_object_get(json_object_get(g->run, "tensors"), name);
  const btc_tensor_view *want = expected(g, name, ""), *listed = expected(g, name, "@rows");
  if (!json_is_object(spec) || (!want && !listed)) return; /* not stored for this case */
  difference d = {0};
  bool fits = true;
  if (strcmp(name, "logits") == 0) { /* one row a step: judged together when the run ends */
    int64_t at = g->logit_rows++ * cols;
    fits = want && (at + rows * cols) * (int64_t)sizeof(float) <= (int64_t)want->bytes;
    float *w = fits ? floats_of(want) : NULL;
    if (w) compare(&g->logits, data, w + at, rows * cols);
    free(w);
    if (fits) return;
  } else if (want) {
    fits = rows * cols * (int64_t)sizeof(float) == (int64_t)want->bytes;
    float *w = fits ? floats_of(want) : NULL;
    if (w) compare(&d, data, w, rows * cols);
    free(w);
  } else {
    fits = compare_rows(g, &d, listed, data, rows, cols);
  }
  if (fits)
    judge(g, name, spec, &d);
  else
    problem(g, "%s has another shape than the expected one: %lld x %lld here", name, (long long)rows, (long long)cols);
}

/* ---- the parts of a run ---- */

static size_t strings(const json_t *array, const char *dir, char **out, size_t max) {
  size_t n = 0;
  for (size_t i = 0; i < json_array_size(array) && n < max; i++) {
    const char *s = json_string_value(json_array_get(array, i));
    if (s && (out[n] = btc_path_join(dir, s))) n++;
  }
  return n;
}

static void check_ids(golden *g, const char *what, const json_t *want, const int32_t *got, size_t n, size_t upto) {
  size_t total = json_array_size(want);
  if (upto > total) upto = total;
  for (size_t i = 0; i < upto; i++) {
    long long w = (long long)json_integer_value(json_array_get(want, i));
    if (i >= n || got[i] != w) {
      problem(g, "%s differ at %zu: expected %lld, got %lld", what, i, w, i < n ? (long long)got[i] : -1LL);
      return;
    }
  }
  if (upto == total && n != total) problem(g, "%s: expected %zu, got %zu", what, total, n);
}

/* An image in the prompt becomes the positions of a block. */
static void check_positions(golden *g, const int32_t *ids, size_t n) {
  const json_t *want = json_object_get(g->run, "positions");
  int64_t positions = (int64_t)n;
  for (size_t i = 0; ids && i < n; i++)
    if (ids[i] < 0) positions += g->m->block_tokens - 1;
  if (ids && want && json_integer_value(want) != positions)
    problem(g, "the prompt takes %lld positions, expected %lld", (long long)positions, (long long)json_integer_value(want));
}

static void check_prompt(golden *g, int n_images) {
  btc_stage_item it = {.n_images = n_images};
  btc_error err = {0};
  char *text = NULL;
  int32_t *ids = NULL;
  size_t n = 0;
  const char *question = json_string_value(text_of(g, "question"));
  if (btc_prompt_question(question ? question : btc_prompt_caption, (size_t)btc_item_blocks(&it), &text, &err) != BTC_OK ||
      btc_prompt_encode(g->m->tok, text, &ids, &n, &err) != BTC_OK)
    problem(g, "prompt: %s", err.message);
  const char *want = json_string_value(text_of(g, "prompt"));
  if (text && want && strcmp(text, want) != 0) problem(g, "the rendered prompt differs");
  if (ids) check_ids(g, "prompt ids", json_object_get(g->run, "prompt_ids"), ids, n, SIZE_MAX);
  check_positions(g, ids, n);
  free(text);
  free(ids);
}

static void check_pixels(golden *g, char **images, size_t n, bool pad) {
  const btc_config *c = g->m->cfg;
  const int64_t side = c->vision.image, image = 3 * side * side;
  const btc_tensor_view *want = expected(g, "pixels", "");
  float *got = btc_alloc((size_t)image, sizeof *got), *w = want ? floats_of(want) : NULL;
  const json_t *hashes = json_object_get(g->run, "u8_sha256");
  if (hashes && json_array_size(hashes) != n) problem(g, "'u8_sha256' does not list one hash an image");
  if (want && want->bytes != n * (size_t)image * sizeof *w) problem(g, "the expected pixels are not those of %zu images", n);
  for (size_t i = 0; i < n && got; i++) {
    btc_image im = {0};
    btc_error err;
    char hex[65];
    if (btc_image_load(images[i], side, pad ? BTC_IMAGE_PAD : BTC_IMAGE_SQUASH, NULL, &im, NULL, NULL, &err) != BTC_OK) {
      problem(g, "%s", err.message);
      continue;
    }
    btc_sha256_hex(im.rgb, (size_t)image, hex);
    const char *hash = json_string_value(json_array_get(hashes, i));
    if (hashes && (!hash || strcmp(hash, hex) != 0)) problem(g, "image %zu: the resized 8-bit pixels differ", i);
    btc_image_normalise(&im, c->pre.rescale, c->pre.mean, c->pre.std, got);
    btc_image_free(&im);
    if (w &&
        ((i + 1) * (size_t)image * sizeof *w > want->bytes || memcmp(got, w + i * (size_t)image, (size_t)image * sizeof *w) != 0))
      problem(g, "image %zu: the normalised pixels differ", i);
  }
  free(got);
  free(w);
}

/* Ids to be fed to the model, so all must be tokens: NULL otherwise. */
static int32_t *ids_of(const json_t *array, int64_t vocab, size_t *n) {
  *n = json_array_size(array);
  int32_t *ids = btc_alloc(*n, sizeof *ids);
  for (size_t i = 0; ids && i < *n; i++) {
    const json_t *v = json_array_get(array, i);
    json_int_t id = json_integer_value(v);
    if (!json_is_integer(v) || id < 0 || id >= vocab) {
      free(ids);
      return NULL;
    }
    ids[i] = (int32_t)id;
  }
  return ids;
}

/* bf16 products move logits, so free-running ids must agree only up to the first near tie (vectors README). */
static size_t comparable_ids(const golden *g) {
  const json_t *margins = json_object_get(g->run, "margins");
  double limit = 2 * number(g->run, "bf16_logit_err");
  if (!g->o->bf16) return SIZE_MAX;
  for (size_t i = 0; i < json_array_size(margins); i++)
    if (json_number_value(json_array_get(margins, i)) < limit) return i;
  return SIZE_MAX;
}

static void check_text(golden *g, const btc_result *r) {
  char *raw = NULL;
  size_t len = 0;
  btc_error err;
  const json_t *want_raw = text_of(g, "text_raw"), *want = text_of(g, "text");
  if (btc_tokenizer_decode(g->m->tok, r->ids, (size_t)r->n_ids, &raw, &len, &err) != BTC_OK) {
    problem(g, "decoding: %s", err.message);
    return;
  }
  if (want_raw && (json_string_length(want_raw) != len || memcmp(json_string_value(want_raw), raw, len) != 0))
    problem(g, "text_raw differs");
  const char *answer = btc_text_answer(raw, &len);
  if (want && (json_string_length(want) != len || memcmp(json_string_value(want), answer, len) != 0)) problem(g, "text differs");
  free(raw);
}

static void check_free_run(golden *g, btc_item *item) {
  btc_result r;
  btc_error err;
  btc_session_set_probe(g->s, NULL);
  btc_session_run(g->s, item, 1, &r, &err);
  if (r.status != BTC_OK) {
    problem(g, "%s", r.error.message);
  } else {
    size_t upto = comparable_ids(g);
    check_ids(g, "greedy ids", json_object_get(g->run, "ids"), r.ids, (size_t)r.n_ids, upto);
    const char *stop = json_string_value(text_of(g, "stop"));
    if (upto == SIZE_MAX) {
      check_text(g, &r);
      if (stop && strcmp(stop, r.stop == BTC_STOP_EOS ? "eos" : "length") != 0)
        problem(g, "stopped for another reason than '%s'", stop);
    }
  }
  btc_result_clear(&r);
}

static void check_forced_run(golden *g, btc_item *item) {
  size_t n;
  int32_t *ids = ids_of(json_object_get(g->run, "ids"), g->m->cfg->llm.vocab, &n);
  if (!ids || n == 0) {
    problem(g, n ? "the case lists ids that are no tokens" : "the case lists no ids");
    free(ids);
    return;
  }
  btc_session_probe probe = {.tap = on_tensor, .user = g, .force = ids, .n_force = n};
  btc_result r;
  btc_error err;
  g->logit_rows = 0;
  g->logits = (difference){0};
  for (int i = 0; i < g->report->n_tensors; i++) g->report->tensor[i].in_run = false;
  btc_session_set_probe(g->s, &probe);
  btc_session_run(g->s, item, 1, &r, &err);
  if (r.status != BTC_OK) problem(g, "%s", r.error.message);
  btc_session_set_probe(g->s, NULL);
  btc_result_clear(&r);
  free(ids);
  if (g->logit_rows == (int64_t)n)
    judge(g, "logits", json_object_get(json_object_get(g->run, "tensors"), "logits"), &g->logits);
  else
    problem(g, "%lld rows of logits were computed, expected %zu", (long long)g->logit_rows, n);
  const char *name;
  json_t *spec;
  json_object_foreach(json_object_get((json_t *)g->run, "tensors"), name, spec) {
    if (strcmp(name, "pixels") == 0 || (!expected(g, name, "") && !expected(g, name, "@rows"))) continue;
    const golden_tensor *t = report_of(g, name);
    if (!json_is_object(spec))
      problem(g, "nothing says how exact %s must be", name);
    else if (!t || !t->in_run)
      problem(g, "%s was never computed", name);
  }
}

static btc_aspect aspect_of(const json_t *run, bool *pad) {
  const char *mode = json_string_value(json_object_get(run, "image_mode"));
  *pad = mode && strcmp(mode, "pad") == 0;
  return *pad ? BTC_ASPECT_PAD : BTC_ASPECT_SQUASH;
}

static void check_run(golden *g, const json_t *run) {
  char *images[MAX_IMAGES] = {0};
  size_t n = strings(json_object_get(run, "images"), g->dir, images, MAX_IMAGES);
  bool pad;
  g->run = run;
  g->run_id = json_string_value(json_object_get(run, "id"));
  if (!g->run_id) g->run_id = "run without id";
  int64_t max_tokens = json_integer_value(json_object_get(run, "max_new_tokens"));
  btc_item item = {.images = (const char *const *)images,
                   .n_images = (int)n,
                   .aspect = aspect_of(run, &pad),
                   .question = json_string_value(json_object_get(run, "question")),
                   .max_tokens = (int)max_tokens};
  if (json_array_size(json_object_get(run, "counts")) > 1) {
    problem(g, "several groups of images in one prompt are not supported");
  } else {
    check_prompt(g, (int)n);
    check_pixels(g, images, n, pad);
    check_forced_run(g, &item);
    check_free_run(g, &item);
  }
  g->report->runs++;
  g->run_id = NULL;
  for (size_t i = 0; i < n; i++) free(images[i]);
}

static void check_error_run(golden *g, const json_t *run) {
  char *images[MAX_IMAGES] = {0};
  size_t n = strings(json_object_get(run, "images"), g->dir, images, MAX_IMAGES);
  bool pad;
  btc_item item = {.images = (const char *const *)images,
                   .n_images = (int)n,
                   .aspect = aspect_of(run, &pad),
                   .question = json_string_value(json_object_get(run, "question"))};
  btc_result r;
  btc_error err;
  g->run_id = "error run";
  btc_session_run(g->s, &item, 1, &r, &err);
  const char *expect = json_string_value(json_object_get(run, "expect"));
  const bool by_chance = r.status == BTC_ERR_NOT_FOUND || r.status == BTC_ERR_NOMEM || r.status == BTC_ERR_INTERNAL;
  if (r.status == BTC_OK)
    problem(g, "answered, but must fail: %s", expect ? expect : "");
  else if (by_chance)
    problem(g, "failed for a reason of its own: %s", r.error.message);
  else if (g->report->error_runs < GOLDEN_MAX_REFUSALS)
    snprintf(g->report->refusal[g->report->error_runs], sizeof g->report->refusal[0], "%.255s", r.error.message);
  g->report->error_runs++;
  g->run_id = NULL;
  btc_result_clear(&r);
  for (size_t i = 0; i < n; i++) free(images[i]);
}

/* ---- the case ---- */

static btc_status load_expected(golden *g, btc_error *err) {
  char *path = btc_path_join(g->dir, "expected.json");
  uint8_t *data = NULL;
  size_t len;
  if (!path) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  btc_status st = btc_file_read(path, EXPECTED_MAX_BYTES, &data, &len, err);
  if (st == BTC_OK) {
    json_error_t je;
    g->doc = json_loadb((const char *)data, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &je);
    if (!g->doc)
      st = btc_fail(err, BTC_ERR_FORMAT, "'%s': not valid JSON: line %d: %s", path, je.line, je.text);
    else if (!json_is_object(g->doc))
      st = btc_fail(err, BTC_ERR_FORMAT, "'%s': not a JSON object", path);
  }
  free(data);
  free(path);
  if (st != BTC_OK) return st;
  if (!(path = btc_path_join(g->dir, "expected.safetensors"))) return btc_fail(err, BTC_ERR_NOMEM, "out of memory");
  st = btc_safetensors_open(path, &g->values, err);
  free(path);
  return st;
}

static int64_t longest_answer(const json_t *runs) {
  int64_t most = 16;
  for (size_t i = 0; i < json_array_size(runs); i++) {
    int64_t n = json_integer_value(json_object_get(json_array_get(runs, i), "max_new_tokens"));
    if (n > most && n <= 65536) most = n;
  }
  return most;
}

btc_status golden_run(const char *dir, const golden_options *o, golden_report *out, btc_error *err) {
  *out = (golden_report){0};
  golden g = {.dir = dir, .o = o, .report = out};
  char *ckpt = NULL;
  btc_status st = load_expected(&g, err);
  if (st != BTC_OK) goto out;
  snprintf(out->name, sizeof out->name, "%s",
           json_string_value(json_object_get(g.doc, "case")) ? json_string_value(json_object_get(g.doc, "case")) : dir);
  if (!(ckpt = btc_path_join(dir, "ckpt"))) {
    st = btc_fail(err, BTC_ERR_NOMEM, "out of memory");
    goto out;
  }
  if ((st = btc_model_open(ckpt, &g.m, err)) != BTC_OK) goto out;
  const json_t *runs = json_object_get(g.doc, "runs"), *errors = json_object_get(g.doc, "error_runs");
  btc_session_options so = btc_session_options_default();
  so.device = o->device;
  so.threads = o->threads;
  so.precision = o->bf16 ? BTC_PRECISION_BF16 : BTC_PRECISION_F32;
  so.max_tokens = (int)longest_answer(runs);
  if ((st = btc_session_create(g.m, &so, &g.s, err)) != BTC_OK) goto out;
  if (json_array_size(runs) == 0) problem(&g, "the case has no runs");
  if (errors && !json_is_array(errors)) problem(&g, "'error_runs' is no list");
  for (size_t i = 0; i < json_array_size(runs); i++) check_run(&g, json_array_get(runs, i));
  for (size_t i = 0; i < json_array_size(errors); i++) check_error_run(&g, json_array_get(errors, i));
out:
  btc_session_destroy(&g.s);
  btc_model_close(&g.m);
  btc_safetensors_close(&g.values);
  json_decref(g.doc);
  free(ckpt);
  return st;
}
