/*
 * A manifest as a submission names it: where it is, how many items it has, which of them bring an id that came before, and the
 * digest that pins it. Read once by the client, whose memory pays for the comparison of ids; brokers then read with the comparison
 * off.
 */
#ifndef BTC_MANIFEST_DIGEST_H
#define BTC_MANIFEST_DIGEST_H

#include "manifest.h"

#define BTC_MANIFEST_MAX_DUPLICATES 10000

typedef struct btc_manifest_digest_options {
  bool strict;                                              /* a bad line is an error */
  const char *dir;                                          /* as in btc_manifest_options */
  const volatile int *cancel;                               /* non-zero: CANCELLED; may be NULL */
  void (*progress)(void *ctx, uint64_t items, double part); /* every 65,536 items; may be NULL */
  void *ctx;
} btc_manifest_digest_options;

typedef struct btc_manifest_summary {
  char *path;           /* absolute, without symbolic links */
  char sha256[65];      /* of the bytes of a file; of a folder: btc_manifest_folder_sha256 */
  uint64_t bytes;       /* of a file */
  uint64_t items, bad;  /* bad ones are among the items, duplicates among the bad */
  uint64_t *duplicates; /* ascending indices */
  size_t n_duplicates;
  char problem[512]; /* of the first bad item: "line 3: ..." */
} btc_manifest_summary;

/* ARG for pipes and for a manifest without items; LIMIT for more than BTC_MANIFEST_MAX_DUPLICATES; IO when it changes while it is
 * read. Free with btc_manifest_summary_free (also after a failure). options may be NULL. */
btc_status btc_manifest_digest(const char *path, const btc_manifest_digest_options *options, btc_manifest_summary *out,
                               btc_error *err);
void btc_manifest_summary_free(btc_manifest_summary *s);

#endif
