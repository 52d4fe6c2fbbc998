#define _GNU_SOURCE
#include "redis_server.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "daemon.h"
#include "queue_lua.h"
#include "test.h"

struct redis_server {
  pid_t pid;
  int port;
  char dir[96], socket[128], url[160], tcp_url[64];
  redisContext *context;
};

enum { MAX_SERVERS = 8 };
static redis_server *servers[MAX_SERVERS];

static void kill_all(void) {
  for (int i = 0; i < MAX_SERVERS; i++)
    if (servers[i] && servers[i]->pid > 0) kill(servers[i]->pid, SIGKILL);
}

static void write_config(const redis_server *r, const char *fsync, const char *config) {
  char path[160], text[4096];
  int n = snprintf(
      text, sizeof text,
      "bind 127.0.0.1\nport %d\nunixsocket %s\ndir %s\nsave \"\"\nmaxmemory-policy noeviction\ndaemonize no\nlogfile %s/redis.log\n"
      "appendonly %s\nappendfsync %s\n%s\n",
      r->port, r->socket, r->dir, r->dir, fsync ? "yes" : "no", fsync ? fsync : "everysec", config ? config : "");
  assert_in_range(n, 1, (int)sizeof text - 1);
  snprintf(path, sizeof path, "%s/redis.conf", r->dir);
  assert_int_equal(btc_file_publish(path, text, (size_t)n, NULL), BTC_OK);
}

static void spawn(redis_server *r) {
  char path[160];
  pid_t parent = getpid();
  snprintf(path, sizeof path, "%s/redis.conf", r->dir);
  r->pid = fork();
  assert_true(r->pid >= 0);
  if (r->pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that crashes must not leave it behind */
    if (getppid() != parent) _exit(127);
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    execlp("redis-server", "redis-server", path, (char *)NULL);
    _exit(127);
  }
}

/* False when the process ended by itself. Loading an append-only file is waited for too. */
static bool wait_until_ready(redis_server *r) {
  for (int i = 0; i < 6000; i++, test_sleep_ms(10)) {
    int status;
    if (waitpid(r->pid, &status, WNOHANG) == r->pid) {
      r->pid = 0;
      return false;
    }
    redisContext *c = redis_server_connect(r);
    redisReply *reply = c ? redisCommand(c, "PING") : NULL;
    bool ready = reply && reply->type == REDIS_REPLY_STATUS;
    if (reply) freeReplyObject(reply);
    if (c) redisFree(c);
    if (ready) return true;
  }
  fail_msg("redis-server does not answer; see %s/redis.log", r->dir);
  return false;
}

redis_server *redis_server_start(const char *fsync, const char *config) {
  static int number;
  redis_server *r = calloc(1, sizeof *r);
  int slot = 0;
  assert_non_null(r);
  snprintf(r->dir, sizeof r->dir, "%s/redis-%d-%d", test_tmp_dir(), (int)getpid(), number);
  assert_int_equal(mkdir(r->dir, 0700), 0);
  if (number++ == 0) atexit(kill_all); /* after the folder's own handler, so it runs before it */
  while (slot < MAX_SERVERS - 1 && servers[slot]) slot++;
  assert_null(servers[slot]); /* no more than so many at once */
  servers[slot] = r;
  snprintf(r->socket, sizeof r->socket, "%s/redis.sock", r->dir);
  snprintf(r->url, sizeof r->url, "unix://%s", r->socket);
  for (int i = 0; i < 5; i++) {
    r->port = test_free_port(); /* another program may take it before redis-server does */
    snprintf(r->tcp_url, sizeof r->tcp_url, "redis://127.0.0.1:%d", r->port);
    write_config(r, fsync, config);
    spawn(r);
    if (wait_until_ready(r)) return r;
  }
  fail_msg("redis-server cannot be started; see %s/redis.log", r->dir);
  return NULL;
}

static void forget_context(redis_server *r) {
  if (r->context) redisFree(r->context);
  r->context = NULL;
}

void redis_server_kill(redis_server *r) {
  forget_context(r);
  if (r->pid <= 0) return;
  kill(r->pid, SIGKILL);
  while (waitpid(r->pid, NULL, 0) < 0 && errno == EINTR) continue;
  r->pid = 0;
}

void redis_server_restart(redis_server *r) {
  redis_server_kill(r);
  unlink(r->socket);
  spawn(r);
  if (!wait_until_ready(r)) fail_msg("redis-server does not start again; see %s/redis.log", r->dir);
}

static void shell(const char *format, const redis_server *r) {
  char command[512];
  snprintf(command, sizeof command, format, r->dir, r->dir, r->dir);
  if (system(command) != 0) fail_msg("failed: %s", command);
}

void redis_server_save(redis_server *r) {
  shell("rm -rf '%s/saved' && cp -r '%s/appendonlydir' '%s/saved'", r);
}

void redis_server_rollback(redis_server *r) {
  redis_server_kill(r);
  shell("rm -rf '%s/appendonlydir' && cp -r '%s/saved' '%s/appendonlydir'", r);
  redis_server_restart(r);
}

void redis_server_stop(redis_server **r) {
  if (!*r) return;
  redis_server_kill(*r);
  for (int i = 0; i < MAX_SERVERS; i++)
    if (servers[i] == *r) servers[i] = NULL;
  free(*r);
  *r = NULL;
}

const char *redis_server_url(const redis_server *r) {
  return r->url;
}

const char *redis_server_tcp_url(const redis_server *r) {
  return r->tcp_url;
}

int redis_server_port(const redis_server *r) {
  return r->port;
}

pid_t redis_server_pid(const redis_server *r) {
  return r->pid;
}

const char *redis_server_dir(const redis_server *r) {
  return r->dir;
}

redisContext *redis_server_connect(const redis_server *r) {
  struct timeval limit = {.tv_sec = 10};
  redisContext *c = redisConnectUnixWithTimeout(r->socket, limit);
  if (!c) return NULL;
  if (!c->err && redisSetTimeout(c, limit) == REDIS_OK) return c;
  redisFree(c);
  return NULL;
}

redisContext *redis_server_context(redis_server *r) {
  if (r->context && r->context->err) forget_context(r);
  if (!r->context) r->context = redis_server_connect(r);
  if (!r->context) fail_msg("no redis-server at %s", r->socket);
  return r->context;
}

const char *redis_queue_library(void) {
  return btc_queue_lua;
}

void redis_server_load_queue(redis_server *r) {
  redisReply *reply = redisCommand(redis_server_context(r), "FUNCTION LOAD REPLACE %s", btc_queue_lua);
  assert_non_null(reply);
  if (reply->type == REDIS_REPLY_ERROR) fail_msg("FUNCTION LOAD: %s", reply->str);
  freeReplyObject(reply);
}

redisReply *redis_fcall_argv(redisContext *c, const char *queue, const char *function, int argc, const char *const *argv,
                             const size_t *lengths) {
  char prefix[96];
  const char **all = calloc((size_t)argc + 4, sizeof *all);
  size_t *len = calloc((size_t)argc + 4, sizeof *len);
  assert_true(all && len);
  snprintf(prefix, sizeof prefix, "btc:{%s}:", queue);
  all[0] = "FCALL", all[1] = function, all[2] = "1", all[3] = prefix;
  for (int i = 0; i < argc; i++) all[i + 4] = argv[i];
  for (int i = 0; i < argc + 4; i++) len[i] = i >= 4 && lengths ? lengths[i - 4] : strlen(all[i]);
  redisReply *reply = redisCommandArgv(c, argc + 4, all, len);
  free(all);
  free(len);
  return reply;
}
