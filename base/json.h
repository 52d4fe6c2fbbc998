/*
 * JSON out of files that we do not trust, with bounds of our own in front of libjansson: bytes, number of values (a value of
 * two bytes costs the parser up to 300 bytes of memory), nesting (jansson's 2048), no duplicate keys, no NaN.
 *
 * The typed getters name file and key in every refusal. Thread: any; a document belongs to its caller.
 */
#ifndef BTC_JSON_H
#define BTC_JSON_H

#include <jansson.h>

#include "base.h"

typedef struct btc_json_limits {
  size_t max_bytes;  /* of the text */
  size_t max_values; /* of commas, colons and opening brackets, strings included: an upper bound of what is allocated */
} btc_json_limits;

extern const btc_json_limits btc_json_config_limits; /* 1 MiB, 100,000 values */

/* Parses text; the top level must be an object. label names it in messages. FORMAT: not JSON; LIMIT: over the limits.
 * Integers beyond 64 bits become reals, so that one in a key that nobody reads does no harm. *out: json_decref. */
btc_status btc_json_parse(const char *text, size_t len, const char *label, const btc_json_limits *lim, json_t **out,
                          btc_error *err);
btc_status btc_json_read(const char *path, const btc_json_limits *lim, json_t **out, btc_error *err);

/* What the getters look into. key_prefix ("vision_config." or "") stands before keys in messages. */
typedef struct btc_json_object {
  const json_t *value;
  const char *label;
  const char *key_prefix;
} btc_json_object;

typedef enum btc_json_need {
  BTC_JSON_REQUIRED, /* absent or null is an error */
  BTC_JSON_OPTIONAL, /* may be absent; null is an error */
  BTC_JSON_NULLABLE  /* may be absent or null */
} btc_json_need;

/* Each leaves *out alone when the key is absent (or null) and that is allowed: set the default before. */
btc_status btc_json_get_int(const btc_json_object *o, const char *key, btc_json_need need, int64_t min, int64_t max, int64_t *out,
                            btc_error *err);
/* Integers are numbers too. Bounds are inclusive. */
btc_status btc_json_get_number(const btc_json_object *o, const char *key, btc_json_need need, double min, double max, double *out,
                               btc_error *err);
btc_status btc_json_get_bool(const btc_json_object *o, const char *key, btc_json_need need, bool *out, btc_error *err);
/* *out is borrowed from the document. */
btc_status btc_json_get_string(const btc_json_object *o, const char *key, btc_json_need need, const char **out, btc_error *err);
/* Exactly `count` finite numbers. */
btc_status btc_json_get_numbers(const btc_json_object *o, const char *key, btc_json_need need, size_t count, float *out,
                                btc_error *err);

/* "'FILE': key 'KEY' must be WHAT, is VALUE" */
btc_status btc_json_refuse(const btc_json_object *o, const char *key, const char *what, btc_error *err);

#endif
