/*
 * Manifests at hand: open readers that stand somewhere, and which files were found to have which SHA-256. One thread: the disk
 * thread's.
 */
#ifndef BTC_BROKER_SHELF_H
#define BTC_BROKER_SHELF_H

#include <time.h>

#include "broker/roots.h"
#include "manifest/manifest.h"

/* What a file was when it was hashed; a folder's A and B count with it. */
typedef struct btc_identity {
  struct {
    uint64_t device, inode, size;
    struct timespec changed, written;
  } of[3];
} btc_identity;

typedef struct btc_shelf btc_shelf;

btc_status btc_shelf_create(const char *roots, btc_shelf **out, btc_error *err);
void btc_shelf_destroy(btc_shelf **s);
btc_roots *btc_shelf_roots(btc_shelf *s);

/* Path policy and digest of what lies at path now. sha256 "": any. OK with *known: may be read, *identity says what it is, and *hex
 * its digest ("" when none was asked for). OK without: it must be hashed first. NOT_FOUND, ARG, FORMAT, IO as in io.h. */
btc_status btc_shelf_check(btc_shelf *s, const char *path, const char *sha256, bool *known, btc_identity *identity,
                           const char **hex, btc_error *err);
/* Remembers a digest. */
void btc_shelf_learn(btc_shelf *s, const btc_identity *identity, const char hex[65]);
bool btc_identity_equal(const btc_identity *a, const btc_identity *b);

/* A reader that stands at pos, borrowed until the next call. base: what relative paths stand on, "" the manifest's folder. */
btc_status btc_shelf_reader(btc_shelf *s, const char *path, const char *base, const btc_identity *identity, const char *pos,
                            btc_manifest **out, btc_error *err);

/* ---- hashing, in slices ---- */
typedef struct btc_hashing btc_hashing;
btc_status btc_hashing_begin(const char *path, const btc_identity *identity, btc_hashing **out, btc_error *err);
/* One slice. *done: hex is the digest. */
btc_status btc_hashing_step(btc_hashing *h, bool *done, char hex[65], btc_error *err);
void btc_hashing_end(btc_hashing **h);

#endif
