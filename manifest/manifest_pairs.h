/*
 * The two kinds of lists behind manifests of folders and behind the check for duplicate ids.
 */
#ifndef BTC_MANIFEST_PAIRS_H
#define BTC_MANIFEST_PAIRS_H

#include "base/base.h"

/* ---- names of the files in a folder, in byte order ---- */
typedef struct btc_names {
  char *text; /* all names, each terminated */
  size_t *at; /* where each begins in text */
  size_t n;
  size_t text_used, text_room, at_room;
} btc_names;

/* Regular files and links to such; hidden ones (".x") and folders are left out. LIMIT above max names. */
btc_status btc_names_read(btc_names *l, const char *dir, size_t max, btc_error *err);
void btc_names_free(btc_names *l);
const char *btc_names_at(const btc_names *l, size_t i);

/* ---- a set of ids, each kept as the first 128 bits of its SHA-256 ---- */
typedef struct btc_id_set {
  uint64_t (*slot)[2]; /* {0,0}: free */
  size_t slots, used;
} btc_id_set;

/* *fresh: the id was not there before; it is now. LIMIT above max ids, NOMEM. */
btc_status btc_id_set_add(btc_id_set *s, const char *id, size_t max, bool *fresh, btc_error *err);
void btc_id_set_free(btc_id_set *s);

#endif
