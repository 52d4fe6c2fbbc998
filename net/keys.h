/*
 * CURVE keys: files, the allow-list with roles, and the ZAP handler that enforces it.
 *
 * A key pair is two files: NAME.key (secret, mode 0600, both keys) and NAME.pub. The broker's allow-list is a text file, one line a
 * key: `PUBLIC-KEY ROLE NAME [tenants=A,B] [priorities=1,2]`, roles client, worker, admin; # begins a comment. It is read again on
 * btc_keys_reload.
 * Secrets never appear in a message, a log or on a command line.
 */
#ifndef BTC_NET_KEYS_H
#define BTC_NET_KEYS_H

#include "base/base.h"

typedef enum btc_role { BTC_ROLE_NONE, BTC_ROLE_CLIENT, BTC_ROLE_WORKER, BTC_ROLE_ADMIN, BTC_ROLE_ANY } btc_role;
typedef struct btc_keys btc_keys;

/* Writes PREFIX.key and PREFIX.pub; refuses to overwrite (ARG). public_key: 41 bytes. */
btc_status btc_keys_generate(const char *prefix, char public_key[41], btc_error *err);
/* own: our secret key file. server_pub: the server's public key file (clients, workers), or NULL for a server.
 * allow: the allow-list (server), or NULL. IO when the secret file can be read by others. */
btc_status btc_keys_load(const char *own, const char *server_pub, const char *allow, btc_keys **out, btc_error *err);
void btc_keys_destroy(btc_keys **k);
btc_status btc_keys_reload(btc_keys *k,
                           btc_error *err); /* the allow-list; the old one stays when the new one is bad. Any thread. */
btc_role btc_keys_role(const btc_keys *k, const char *public_key);                           /* NONE when not listed. Any thread. */
const char *btc_keys_name(const btc_keys *k, const char *public_key, char *buf, size_t len); /* NULL when not listed */
/* May this key submit jobs of this tenant with this priority? As its line says; without a limit any. Any thread. */
bool btc_keys_may_submit(const btc_keys *k, const char *public_key, const char *tenant, uint32_t priority);
/* May it see and command jobs of this tenant? Likewise. */
bool btc_keys_may_see(const btc_keys *k, const char *public_key, const char *tenant);
bool btc_keys_is_limited(const btc_keys *k, const char *public_key); /* to some tenants; also when not listed. Any thread. */

const char *btc_keys_public(const btc_keys *k); /* our own */
const char *btc_role_text(btc_role r);          /* "client"; never NULL */

/* For net/socket.c: makes a socket that is not bound or connected yet speak CURVE. */
btc_status btc_keys_apply(const btc_keys *k, void *socket, bool server, btc_error *err);

/* Starts the ZAP thread of a ZeroMQ context (server side), which answers from the allow-list; stop it before zmq_ctx_term. */
typedef struct btc_zap btc_zap;
btc_status btc_zap_start(void *zmq, btc_keys *k, btc_zap **out, btc_error *err);
void btc_zap_stop(btc_zap **z);

#endif
