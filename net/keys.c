/* Keys in memory: our pair, the server's public key, the allow-list. Files are read in keys_file.c, peers are judged in zap.c. */
#define _GNU_SOURCE
#include "net/keys.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "net/keys_file.h"

typedef struct allow_list {
  pthread_rwlock_t lock; /* of list and n: the loop looks up at every message, a reload swaps */
  btc_allowed *list;
  size_t n;
} allow_list;

struct btc_keys {
  char public_key[41], secret_key[41], server_key[41];
  char *allow_path;
  allow_list *allow; /* behind a pointer, so that looking up needs no writable btc_keys */
};

const char *btc_role_text(btc_role r) {
  static const char *const texts[] = {[BTC_ROLE_NONE] = "none",
                                      [BTC_ROLE_CLIENT] = "client",
                                      [BTC_ROLE_WORKER] = "worker",
                                      [BTC_ROLE_ADMIN] = "admin",
                                      [BTC_ROLE_ANY] = "any"};
  _Static_assert(sizeof texts / sizeof texts[0] == BTC_ROLE_ANY + 1, "every role has its text");
  return (unsigned)r <= BTC_ROLE_ANY ? texts[r] : "unknown";
}

static btc_status load_parts(btc_keys *k, const char *own, const char *server_pub, const char *allow, btc_error *err) {
  btc_status st = btc_keys_read_secret(own, k->public_key, k->secret_key, err);
  if (st == BTC_OK && server_pub) st = btc_keys_read_public(server_pub, k->server_key, err);
  if (st != BTC_OK || !allow) return st;
  k->allow_path = btc_strdup(allow);
  if (!k->allow_path) return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", allow);
  return btc_keys_reload(k, err);
}

btc_status btc_keys_load(const char *own, const char *server_pub, const char *allow, btc_keys **out, btc_error *err) {
  *out = NULL;
  btc_keys *k = btc_alloc_zero(1, sizeof *k);
  allow_list *a = btc_alloc_zero(1, sizeof *a);
  if (!k || !a || pthread_rwlock_init(&a->lock, NULL) != 0) {
    free(k);
    free(a);
    return btc_fail(err, BTC_ERR_NOMEM, "'%s': out of memory", own);
  }
  k->allow = a;
  btc_status st = load_parts(k, own, server_pub, allow, err);
  if (st != BTC_OK) btc_keys_destroy(&k);
  *out = k;
  return st;
}

void btc_keys_destroy(btc_keys **keys) {
  btc_keys *k = *keys;
  *keys = NULL;
  if (!k) return;
  pthread_rwlock_destroy(&k->allow->lock);
  btc_keys_free_allow(k->allow->list, k->allow->n);
  free(k->allow);
  free(k->allow_path);
  btc_keys_wipe(k, sizeof *k);
  free(k);
}

btc_status btc_keys_reload(btc_keys *k, btc_error *err) {
  btc_allowed *fresh = NULL;
  size_t n = 0;
  if (!k->allow_path) return BTC_OK;
  btc_status st = btc_keys_read_allow(k->allow_path, &fresh, &n, err);
  if (st != BTC_OK) return st;
  pthread_rwlock_wrlock(&k->allow->lock);
  btc_allowed *old = k->allow->list;
  size_t n_old = k->allow->n;
  k->allow->list = fresh;
  k->allow->n = n;
  pthread_rwlock_unlock(&k->allow->lock);
  btc_keys_free_allow(old, n_old);
  return BTC_OK;
}

static int by_key(const void *key, const void *entry) {
  return strcmp(key, ((const btc_allowed *)entry)->key);
}

/* Under the lock. */
static const btc_allowed *find(const btc_keys *k, const char *public_key) {
  return k->allow->n ? bsearch(public_key, k->allow->list, k->allow->n, sizeof *k->allow->list, by_key) : NULL;
}

static bool look_up(const btc_keys *k, const char *public_key, btc_allowed *out) {
  pthread_rwlock_rdlock(&k->allow->lock);
  const btc_allowed *found = find(k, public_key);
  if (found) *out = *found;
  out->tenants = NULL; /* the list's own */
  pthread_rwlock_unlock(&k->allow->lock);
  return found != NULL;
}

btc_role btc_keys_role(const btc_keys *k, const char *public_key) {
  btc_allowed a;
  return look_up(k, public_key, &a) ? a.role : BTC_ROLE_NONE;
}

const char *btc_keys_name(const btc_keys *k, const char *public_key, char *buf, size_t len) {
  btc_allowed a;
  if (!look_up(k, public_key, &a) || strlen(a.name) >= len) return NULL;
  memcpy(buf, a.name, strlen(a.name) + 1);
  return buf;
}

static bool is_in(const char *list, const char *name) {
  size_t len = strlen(name);
  for (const char *at = list;; at++) {
    size_t n = strcspn(at, ",");
    if (n == len && strncmp(at, name, n) == 0) return true;
    at += n;
    if (!*at) return false;
  }
}

bool btc_keys_is_limited(const btc_keys *k, const char *public_key) {
  pthread_rwlock_rdlock(&k->allow->lock);
  const btc_allowed *a = find(k, public_key);
  bool limited = !a || a->tenants;
  pthread_rwlock_unlock(&k->allow->lock);
  return limited;
}

bool btc_keys_may_see(const btc_keys *k, const char *public_key, const char *tenant) {
  pthread_rwlock_rdlock(&k->allow->lock);
  const btc_allowed *a = find(k, public_key);
  bool may = a && (!a->tenants || is_in(a->tenants, tenant));
  pthread_rwlock_unlock(&k->allow->lock);
  return may;
}

bool btc_keys_may_submit(const btc_keys *k, const char *public_key, const char *tenant, uint32_t priority) {
  pthread_rwlock_rdlock(&k->allow->lock);
  const btc_allowed *a = find(k, public_key);
  bool may = a && (!a->tenants || is_in(a->tenants, tenant)) && (!a->priorities || (priority < 3 && a->priorities >> priority & 1));
  pthread_rwlock_unlock(&k->allow->lock);
  return may;
}

const char *btc_keys_public(const btc_keys *k) {
  return k->public_key;
}

btc_status btc_keys_apply(const btc_keys *k, void *socket, bool server, btc_error *err) {
  const int yes = 1;
  bool good = zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, k->public_key, 41) == 0 &&
              zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, k->secret_key, 41) == 0;
  if (good && server) {
    good = zmq_setsockopt(socket, ZMQ_CURVE_SERVER, &yes, sizeof yes) == 0 &&
           zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, "btcchat", 7) == 0;
  } else if (good) {
    if (!k->server_key[0])
      return btc_fail(err, BTC_ERR_ARG, "the broker's public key is missing: give its .pub file with --server-key");
    good = zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, k->server_key, 41) == 0;
  }
  return good ? BTC_OK
              : btc_fail(err, BTC_ERR_UNSUPPORTED, "cannot use keys: %s (a ZeroMQ library without CURVE?)", zmq_strerror(errno));
}
