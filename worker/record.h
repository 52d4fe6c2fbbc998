/* The result record (formats.md): one JSON object a line. Everything but timing_ms is a pure function of the inputs. */
#ifndef BTC_WORKER_RECORD_H
#define BTC_WORKER_RECORD_H

#include "engine/engine.h"

typedef struct record_model {
  char name[128], fingerprint[72], dtype[8];
} record_model;

/* Fills name, fingerprint (reads the weights once) and dtype. */
btc_status record_model_fill(btc_model *m, btc_precision p, record_model *out, btc_error *err);

/* One line without the newline, malloc'ed, or NULL when there is no memory. meta_json: object text to copy, or NULL. pair: the
 * record carries score and changed. m NULL (the stub engine): every caption tells of a change. */
char *record_line(const btc_model *m, const record_model *rm, const char *id, const char *prompt, const char *meta_json, bool pair,
                  const btc_result *r);

/* The record of an item that failed for a reason outside record_reason's reach ("policy"); otherwise like record_line. */
char *record_failed(const record_model *rm, const char *id, const char *prompt, const char *meta_json, const char *reason,
                    const char *message);

/* The record of an item that is not captioned (scenes). unchanged: because both images are the same, which it says. */
char *record_skipped(const record_model *rm, const char *id, const char *prompt, const char *meta_json, const char *reason,
                     const char *message, bool unchanged);

/* The closed list of reasons: "not-found", "decode", "dims", "oom", "bad-request", "cancelled", "internal". */
const char *record_reason(btc_status st, btc_phase phase);

#endif
