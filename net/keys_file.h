/* The files of keys.h: key pairs and allow-lists. Private to net/. */
#ifndef BTC_NET_KEYS_FILE_H
#define BTC_NET_KEYS_FILE_H

#include "net/keys.h"

#define BTC_ALLOW_MAX_BYTES (1u << 20)
#define BTC_ALLOW_MAX_KEYS 10000
#define BTC_ALLOW_MAX_TENANTS 512 /* bytes of a key's tenants */

typedef struct btc_allowed {
  char key[41];
  btc_role role;
  char name[65];
  char *tenants;       /* comma-separated; NULL: any */
  unsigned priorities; /* bit p: priority p; 0: any */
} btc_allowed;

/* IO when group or others may read the file; FORMAT when it is none or its halves do not belong together. */
btc_status btc_keys_read_secret(const char *path, char public_key[41], char secret_key[41], btc_error *err);
btc_status btc_keys_read_public(const char *path, char public_key[41], btc_error *err);
/* Sorted by key; freed with btc_keys_free_allow. FORMAT names file and line. */
btc_status btc_keys_read_allow(const char *path, btc_allowed **list, size_t *n, btc_error *err);
void btc_keys_free_allow(btc_allowed *list, size_t n); /* NULL: nothing */
/* Overwrites secrets in a way that the compiler keeps. */
void btc_keys_wipe(void *p, size_t len);

#endif
