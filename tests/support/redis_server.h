/*
 * A private redis-server for one test: its own folder, a unix socket and a free loopback port, killed as hard as the test likes and
 * started again on the same data. And a way to talk to it, and to the queue's functions, in one line.
 */
#ifndef TEST_REDIS_SERVER_H
#define TEST_REDIS_SERVER_H

#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <sys/types.h>

typedef struct redis_server redis_server;

/* fsync: "always", "everysec", or NULL for no append-only file (kill then loses everything). config: further lines of redis.conf,
 * or NULL. The server dies with the test. Fails the test when it cannot be started in a minute. */
redis_server *redis_server_start(const char *fsync, const char *config);
void redis_server_stop(redis_server **r);
/* kill -9, and wait until it is gone. */
void redis_server_kill(redis_server *r);
/* Starts it again on its data and waits until it answers. The port and the socket stay. */
void redis_server_restart(redis_server *r);

/* History taken back: save copies the append-only file as it is now, also under load (a command that was half written is not
 * there); rollback kills the server and starts it on that copy. */
void redis_server_save(redis_server *r);
void redis_server_rollback(redis_server *r);

const char *redis_server_url(const redis_server *r);     /* unix:///PATH */
const char *redis_server_tcp_url(const redis_server *r); /* redis://127.0.0.1:PORT */
int redis_server_port(const redis_server *r);
pid_t redis_server_pid(const redis_server *r);
const char *redis_server_dir(const redis_server *r);

/* A connection of the caller's own (redisFree); commands on it time out after 10 s. NULL when the server is not there. */
redisContext *redis_server_connect(const redis_server *r);
/* The server's connection for the calls below; made anew after a restart. */
redisContext *redis_server_context(redis_server *r);

/* The queue's functions as they are in this build. */
void redis_server_load_queue(redis_server *r);
const char *redis_queue_library(void);

/* FCALL of a function of the queue. NULL when the connection is gone; may be an error reply. The caller frees. lengths: NULL for
 * texts. */
redisReply *redis_fcall_argv(redisContext *c, const char *queue, const char *function, int argc, const char *const *argv,
                             const size_t *lengths);

/* One command of words parted by spaces ('' is an empty one, '$' at the beginning of a word the queue's prefix; no quoting
 * otherwise) and its reply as text: 12, text, nil, [a b [c]], '' for an empty text, !ERR ... for errors. A command that begins with
 * btc_ is an FCALL. The text lives for 16 calls. redis_say(r, "q", "btc_claim w#1 30000 32 ''")  ->  "[[1 1 j 0 2 3 0 0 '' inline
 * {} [a b]]]" */
const char *redis_say(redis_server *r, const char *queue, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
