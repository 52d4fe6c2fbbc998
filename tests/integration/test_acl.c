/* deploy/redis.conf and deploy/users.acl on a real Redis: it starts with them, and each role can do its work and nothing else. */
#define _GNU_SOURCE
#include "test.h"

#include <fcntl.h>
#include <hiredis/hiredis.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"
#include "redis_server.h"

static pid_t server;
static char dir[PATH_MAX - 64], sock[PATH_MAX];

static char *read_deploy(const char *name) {
  const char *source = getenv("BTCCHAT_SOURCE");
  char path[PATH_MAX];
  uint8_t *data;
  size_t len;
  btc_error err;
  snprintf(path, sizeof path, "%s/deploy/%s", source ? source : ".", name);
  if (btc_file_read(path, 1 << 20, &data, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  return (char *)data;
}

/* The text with each of `from` replaced, to a file of the test's folder. */
static void put_with(const char *name, const char *text, const char *const (*swap)[2], size_t n) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  FILE *f = fopen(path, "w");
  while (*text) {
    size_t i = 0;
    while (i < n && strncmp(text, swap[i][0], strlen(swap[i][0])) != 0) i++;
    if (i < n) {
      fputs(swap[i][1], f);
      text += strlen(swap[i][0]);
    } else {
      fputc(*text++, f);
    }
  }
  fclose(f);
}

static void start(void) {
  char acl[PATH_MAX], conf[PATH_MAX], hash[3][66];
  snprintf(dir, sizeof dir, "%s", test_tmp_dir());
  snprintf(sock, sizeof sock, "%s/s", dir);
  snprintf(acl, sizeof acl, "%s/users.acl", dir);
  static const char *const words[] = {"broker-word", "integrator-word", "monitor-word"};
  for (int i = 0; i < 3; i++) {
    hash[i][0] = '#';
    btc_sha256_hex(words[i], strlen(words[i]), hash[i] + 1);
  }
  char *text = read_deploy("users.acl");
  put_with("users.acl", text,
           (const char *const[][2]){{"#BROKER_SHA256", hash[0]}, {"#INTEGRATOR_SHA256", hash[1]}, {"#MONITOR_SHA256", hash[2]}}, 3);
  free(text);
  text = read_deploy("redis.conf");
  put_with("redis.conf", text,
           (const char *const[][2]){{"/var/lib/btcchat/redis", dir},
                                    {"/run/btcchat/redis.sock", sock},
                                    {"/etc/redis/btcchat.acl", acl},
                                    {"supervised systemd", "supervised no"}},
           4);
  free(text);
  snprintf(conf, sizeof conf, "%s/redis.conf", dir);
  server = fork();
  if (!server) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int log = open("/dev/null", O_WRONLY);
    dup2(log, 1);
    execlp("redis-server", "redis-server", conf, (char *)NULL);
    _exit(127);
  }
  for (int i = 0;; i++) {
    redisContext *c = redisConnectUnix(sock);
    bool up = c && !c->err;
    if (c) redisFree(c);
    if (up) break;
    usleep(20000);
    assert_true(i < 500 && waitpid(server, NULL, WNOHANG) == 0);
  }
}

static void stop(void) {
  kill(server, SIGTERM);
  waitpid(server, NULL, 0);
}

static redisContext *as(const char *user) {
  redisContext *c = redisConnectUnix(sock);
  assert_non_null(c);
  assert_int_equal(c->err, 0);
  if (!user) return c;
  redisReply *r = redisCommand(c, "AUTH %s %s-word", user, user);
  if (r->type == REDIS_REPLY_ERROR) fail_msg("%s: %s", user, r->str);
  freeReplyObject(r);
  return c;
}

/* Each command is refused for lack of rights, or is not. */
static void check(const char *user, bool may, const char *const *commands) {
  redisContext *c = as(user);
  for (; *commands; commands++) {
    redisReply *r = redisCommand(c, *commands);
    assert_non_null(r);
    bool refused = r->type == REDIS_REPLY_ERROR && (strncmp(r->str, "NOPERM", 6) == 0 || strncmp(r->str, "NOAUTH", 6) == 0);
    if (refused == may)
      fail_msg("%s: %s: %s", user ? user : "nobody", *commands, r->type == REDIS_REPLY_ERROR ? r->str : "allowed");
    freeReplyObject(r);
  }
  redisFree(c);
}

#define MAY(user, ...) check(user, true, (const char *const[]){__VA_ARGS__, NULL})
#define MAY_NOT(user, ...) check(user, false, (const char *const[]){__VA_ARGS__, NULL})

/* The whole queue's functions, with the broker's rights only. */
static void test_acl_broker_can_do_its_work(void **state) {
  (void)state;
  start();
  redisContext *c = as("broker");
  redisReply *r = redisCommand(c, "FUNCTION LOAD REPLACE %s", redis_queue_library());
  if (r->type == REDIS_REPLY_ERROR) fail_msg("%s", r->str);
  freeReplyObject(r);
  static const char *const calls[] = {"btc_version",
                                      "btc_setup",
                                      "btc_submit j inline t 1 %b files %b {} %b %b 1 0 %b %b 0 %b text",
                                      "btc_claim w#1 1000 32 %b",
                                      "btc_commit 1 1 j 0 1000 w#1 0 a {}",
                                      "btc_totals",
                                      "btc_tidy 10",
                                      "btc_promote 10",
                                      "btc_reap 10",
                                      "btc_lead sink b 100",
                                      "btc_hello w 1 1000 b {}",
                                      "btc_bye w 1",
                                      "btc_pause %b %b",
                                      "btc_resume %b",
                                      "btc_cancel j",
                                      "btc_forget j"};
  for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
    char command[400], name[40];
    sscanf(calls[i], "%39s", name);
    snprintf(command, sizeof command, "FCALL %s 1 btc:{q}:%s", name, calls[i] + strlen(name));
    r = redisCommand(c, command, "", (size_t)0, "", (size_t)0, "", (size_t)0, "", (size_t)0, "", (size_t)0, "", (size_t)0, "",
                     (size_t)0);
    if (r->type == REDIS_REPLY_ERROR) fail_msg("%s: %s", calls[i], r->str);
    freeReplyObject(r);
  }
  redisFree(c);
  MAY("broker", "PING", "INFO", "CONFIG GET maxmemory-policy", "FUNCTION LIST",
      "XREADGROUP GROUP sink me COUNT 1 STREAMS btc:{q}:res >", "XREADGROUP GROUP brk me COUNT 1 STREAMS btc:{q}:in >",
      "XAUTOCLAIM btc:{q}:res sink me 0 0", "XREAD STREAMS btc:{q}:ev 0", "XREVRANGE btc:{q}:ev + - COUNT 1",
      "ZRANGE btc:{q}:jobs 0 1", "HMGET btc:{q}:job:j st", "HKEYS btc:{q}:dd:j");
  MAY_NOT("broker", "FLUSHALL", "FLUSHDB", "CONFIG SET appendonly no", "SHUTDOWN", "KEYS *", "ACL LIST", "ACL SETUSER x on",
          "GET other", "SET other 1", "FUNCTION FLUSH", "FUNCTION DELETE btc", "REPLICAOF no one", "MODULE LIST", "MONITOR",
          "CLIENT KILL ID 1", "SAVE", "BGREWRITEAOF", "SWAPDB 0 1");
  stop();
}

static void test_acl_integrator_submits_and_takes(void **state) {
  (void)state;
  start();
  MAY("integrator", "PING", "XADD btc:{q}:in * json {}", "XGROUP CREATE btc:{q}:out mine 0 MKSTREAM",
      "XREADGROUP GROUP mine me COUNT 1 STREAMS btc:{q}:out >", "XACK btc:{q}:out mine 0-1", "XAUTOCLAIM btc:{q}:out mine me 0 0",
      "XLEN btc:{q}:out");
  MAY_NOT("integrator", "XADD btc:{q}:out * json {}", "XADD btc:{q}:res * json {}", "XADD btc:{q}:ev * type x",
          "XRANGE btc:{q}:in - +", "XREADGROUP GROUP brk me STREAMS btc:{q}:in >", "XDEL btc:{q}:in 0-1", "XACK btc:{q}:in brk 0-1",
          "XGROUP DESTROY btc:{q}:out mine", "XGROUP DELCONSUMER btc:{q}:out mine me", "XTRIM btc:{q}:out MAXLEN 0",
          "HGETALL btc:{q}:job:j", "DEL btc:{q}:cfg", "GET btc:{q}:tok", "SET btc:{q}:tok 0", "FCALL btc_forget 1 btc:{q}: j",
          "EVAL return 1 0", "INFO", "CONFIG GET *", "KEYS *", "FLUSHALL", "SUBSCRIBE x", "ACL WHOAMI", "CLIENT LIST");
  stop();
}

static void test_acl_monitor_reads_only(void **state) {
  (void)state;
  start();
  MAY("monitor", "PING", "INFO", "HGETALL btc:{q}:stat", "XLEN btc:{q}:res", "ZCARD btc:{q}:lease", "LLEN btc:{q}:sus:");
  MAY_NOT("monitor", "HSET btc:{q}:stat dead 0", "DEL btc:{q}:cfg", "XADD btc:{q}:in * json {}", "FCALL btc_forget 1 btc:{q}: j",
          "EVAL return 1 0", "CONFIG GET *", "KEYS *", "GET other", "FLUSHALL");
  stop();
}

static void test_acl_nobody_may_nothing(void **state) {
  (void)state;
  start();
  MAY_NOT(NULL, "PING", "INFO", "GET x", "XADD btc:{q}:in * json {}", "FLUSHALL");
  redisContext *c = redisConnectUnix(sock);
  redisReply *r = redisCommand(c, "AUTH broker wrong");
  assert_int_equal(r->type, REDIS_REPLY_ERROR);
  freeReplyObject(r);
  redisFree(c);
  stop();
}

/* The settings that the promise rests on are in force, and the placeholders stop a start. */
static void test_acl_settings_in_force(void **state) {
  (void)state;
  start();
  redisContext *c = as("broker");
  static const char *const want[][2] = {
      {"appendonly", "yes"}, {"appendfsync", "always"}, {"maxmemory-policy", "noeviction"}, {"save", ""}, {"port", "0"}};
  for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
    redisReply *r = redisCommand(c, "CONFIG GET %s", want[i][0]);
    assert_int_equal(r->elements, 2);
    assert_string_equal(r->element[1]->str, want[i][1]);
    freeReplyObject(r);
  }
  redisFree(c);
  stop();
  char *text = read_deploy("users.acl");
  put_with("users.acl", text, NULL, 0);
  free(text);
  server = fork();
  if (!server) {
    char conf[PATH_MAX];
    snprintf(conf, sizeof conf, "%s/redis.conf", dir);
    int log = open("/dev/null", O_WRONLY);
    dup2(log, 1);
    dup2(log, 2);
    execlp("redis-server", "redis-server", conf, (char *)NULL);
    _exit(127);
  }
  int status;
  assert_int_equal(waitpid(server, &status, 0), server);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_acl_broker_can_do_its_work), cmocka_unit_test(test_acl_integrator_submits_and_takes),
    cmocka_unit_test(test_acl_monitor_reads_only),     cmocka_unit_test(test_acl_nobody_may_nothing),
    cmocka_unit_test(test_acl_settings_in_force),
};

BTC_TEST_MAIN(tests)
