#include "record.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const char *record_reason(btc_status st, btc_phase phase) {
  switch (st) {
    case BTC_ERR_NOT_FOUND:
      return "not-found";
    case BTC_ERR_NOMEM:
      return "oom";
    case BTC_ERR_CANCELLED:
      return "cancelled";
    case BTC_ERR_LIMIT:
      return phase == BTC_PHASE_IMAGE ? "dims" : "bad-request";
    case BTC_ERR_FORMAT:
    case BTC_ERR_UNSUPPORTED:
    case BTC_ERR_IO:
      return phase == BTC_PHASE_IMAGE ? "decode" : "bad-request";
    case BTC_ERR_ARG:
      return "bad-request";
    default:
      return "internal";
  }
}

btc_status record_model_fill(btc_model *m, btc_precision p, record_model *out, btc_error *err) {
  btc_model_info info;
  btc_model_get_info(m, &info);
  snprintf(out->name, sizeof out->name, "%s", info.name);
  snprintf(out->dtype, sizeof out->dtype, "%s", p == BTC_PRECISION_BF16 ? "bf16" : "f32");
  return btc_model_fingerprint(m, out->fingerprint, err);
}

/* Texts from the command line may hold bytes that are no UTF-8, which JSON cannot carry: each becomes U+FFFD. */
static json_t *text(const char *s) {
  json_t *j = json_string(s);
  if (j) return j;
  size_t n = strlen(s);
  char *clean = btc_alloc(3 * n + 1, 1), *w = clean;
  if (!clean) return NULL;
  for (size_t i = 0; i < n;) {
    size_t len = 1;
    while (len < 4 && i + len < n && ((unsigned char)s[i + len] & 0xc0) == 0x80) len++;
    json_t *one = json_stringn(s + i, len);
    if (one) {
      memcpy(w, s + i, len);
      w += len;
      i += len;
    } else {
      memcpy(w, "\xef\xbf\xbd", 3);
      w += 3;
      i++;
    }
    json_decref(one);
  }
  j = json_stringn(clean, (size_t)(w - clean));
  free(clean);
  return j;
}

/* Rounded for readers; still exact to reproduce, since equal inputs round to equal digits. */
static json_t *rounded(double x, double step) {
  return json_real(isfinite(x) ? round(x / step) * step : 0);
}

static void set_timing(json_t *record, const btc_timing *t) {
  json_t *o = json_object();
  json_object_set_new(o, "decode", rounded(t->decode_ms, 0.01));
  json_object_set_new(o, "vision", rounded(t->vision_ms, 0.01));
  json_object_set_new(o, "prefill", rounded(t->prefill_ms, 0.01));
  json_object_set_new(o, "generate", rounded(t->generate_ms, 0.01));
  json_object_set_new(record, "timing_ms", o);
}

static void set_answer(json_t *record, const btc_model *m, bool pair, const btc_result *r) {
  json_object_set_new(record, "caption", text(r->text));
  if (pair) {
    json_object_set_new(record, "changed", json_boolean(!m || btc_model_says_change(m, r->text)));
    json_object_set_new(record, "score", rounded(r->score, 1e-6));
  }
  json_object_set_new(record, "logprob", rounded(r->logprob, 1e-4));
  json_object_set_new(record, "tokens", json_integer(r->n_ids));
}

static json_t *begin(const char *id, const char *status) {
  json_t *record = json_object();
  json_object_set_new(record, "v", json_integer(1));
  json_object_set_new(record, "id", text(id));
  json_object_set_new(record, "status", json_string(status));
  return record;
}

/* The part that all records share, and the text; takes ownership of the record. */
static char *finish(json_t *record, const record_model *rm, const char *prompt, const btc_timing *timing, const char *meta_json) {
  json_t *model = json_object();
  json_object_set_new(model, "name", text(rm->name));
  json_object_set_new(model, "fingerprint", json_string(rm->fingerprint));
  json_object_set_new(model, "dtype", json_string(rm->dtype));
  json_object_set_new(record, "model", model);
  json_object_set_new(record, "prompt", text(prompt));
  if (timing) set_timing(record, timing);
  if (meta_json) json_object_set_new(record, "meta", json_loads(meta_json, JSON_DECODE_ANY, NULL));
  char *line = json_dumps(record, JSON_COMPACT | JSON_REAL_PRECISION(12));
  json_decref(record);
  return line;
}

char *record_failed(const record_model *rm, const char *id, const char *prompt, const char *meta_json, const char *reason,
                    const char *message) {
  json_t *record = begin(id, "failed");
  json_object_set_new(record, "reason", json_string(reason));
  json_object_set_new(record, "message", text(message));
  return finish(record, rm, prompt, NULL, meta_json);
}

char *record_skipped(const record_model *rm, const char *id, const char *prompt, const char *meta_json, const char *reason,
                     const char *message, bool unchanged) {
  json_t *record = begin(id, "skipped");
  json_object_set_new(record, "reason", json_string(reason));
  json_object_set_new(record, "message", text(message));
  if (unchanged) {
    json_object_set_new(record, "changed", json_false());
    json_object_set_new(record, "score", json_real(0));
  }
  return finish(record, rm, prompt, NULL, meta_json);
}

char *record_line(const btc_model *m, const record_model *rm, const char *id, const char *prompt, const char *meta_json, bool pair,
                  const btc_result *r) {
  if (r->status != BTC_OK) return record_failed(rm, id, prompt, meta_json, record_reason(r->status, r->phase), r->error.message);
  json_t *record = begin(id, "ok");
  set_answer(record, m, pair, r);
  return finish(record, rm, prompt, &r->timing, meta_json);
}
