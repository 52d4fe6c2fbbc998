/*
 * Two runs' records side by side, joined by id through a scratch database: memory does not grow with the runs. Records with an id
 * that came before in their run (bad lines of a manifest bring such) are matched in order.
 */
#ifndef BTC_COMPARE_H
#define BTC_COMPARE_H

#include "results.h"

typedef struct btc_compare_record {
  const char *status, *caption, *reason; /* NULL: has none */
  bool has_changed, changed, has_score;
  double score;
} btc_compare_record;

typedef struct btc_difference {
  const char *id;                       /* all texts are borrowed during the call */
  bool removed, added;                  /* only in A, only in B */
  bool status, verdict, caption, score; /* of both: what differs; status: also the reason */
  btc_compare_record a, b;              /* a is empty of an added one, b of a removed one */
} btc_difference;

typedef struct btc_compare_counts {
  uint64_t a, b, equal, removed, added; /* records; the rest: records that differ in it, one may be in several */
  uint64_t status, verdict, caption, score;
  uint64_t bad; /* lines that are no records */
  char first_bad[320];
  double mean_score_delta; /* B - A, over records with a score in both; 0 when there are none */
} btc_compare_counts;

/* In byte order of the ids. tolerance: scores that are further apart differ. Stops with CANCELLED when cancelled (may be NULL) says
 * so. Timings, tokens and models are not compared. */
btc_status btc_compare(const btc_results_files *a, const btc_results_files *b, double tolerance, bool (*cancelled)(void),
                       void (*each)(void *ctx, const btc_difference *d), void *ctx, btc_compare_counts *out, btc_error *err);

#endif
