/* What an operator, a neighbour or an attacker does to a queue that works: wrong settings are refused with words that help, garbage
 * and reconnects cost nothing that stays. */
#define _GNU_SOURCE
#include "test.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "cli/run_home.h"
#include "daemon.h"
#include "fake_peer.h"
#include "net/keys.h"
#include "program.h"
#include "redis_server.h"

static redis_server *redis;
static daemon_process broker, worker;
static int client_port, worker_port, http_port;
static char clients[64], workers[64];

static const char *path_of(const char *name) {
  static char path[8][256];
  static int turn;
  turn = (turn + 1) % 8;
  snprintf(path[turn], sizeof path[0], "%s/%s", test_tmp_dir(), name);
  return path[turn];
}

static void write_file(const char *path, const char *text, mode_t mode) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) fail_msg("%s: %s", path, strerror(errno));
  close(fd);
}

static void launch_broker(const char *url, const char *results, const char *keys, const char *allow) {
  client_port = test_free_port(), worker_port = test_free_port(), http_port = test_free_port();
  char http[64];
  snprintf(clients, sizeof clients, "tcp://127.0.0.1:%d", client_port);
  snprintf(workers, sizeof workers, "tcp://127.0.0.1:%d", worker_port);
  snprintf(http, sizeof http, "127.0.0.1:%d", http_port);
  const char *args[24] = {"broker", "--redis", url,  "--name",      "b1",  "--clients", clients, "--workers",
                          workers,  "--http",  http, "--heartbeat", "200", "--dead",    "1000"};
  int n = 15;
  if (results) args[n++] = "--results", args[n++] = results;
  if (keys) args[n++] = "--keys", args[n++] = keys, args[n++] = "--allow", args[n++] = allow;
  daemon_init(&broker, "broker", args);
  daemon_start(&broker);
}

static void start_broker(const char *results, const char *keys, const char *allow) {
  launch_broker(redis_server_url(redis), results, keys, allow);
  daemon_wait_log(&broker, "ready clients=", 40000);
}

static int set_up(void **state) {
  (void)state;
  redis = redis_server_start("always", NULL);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  daemon_kill(&worker);
  daemon_kill(&broker);
  redis_server_stop(&redis);
  return 0;
}

static int dial(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
  struct timeval wait = {.tv_sec = 10};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) fail_msg("connect: %s", strerror(errno));
  return fd;
}

/* The status code that a page answers; its text in `answer`. */
static int get(const char *page, char answer[512]) {
  char request[128];
  snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", page);
  int fd = dial(http_port), code = 0;
  size_t n = 0;
  ssize_t got;
  if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0) fail_msg("send");
  while (n < 511 && (got = recv(fd, answer + n, 511 - n, 0)) > 0) n += (size_t)got;
  answer[n] = 0;
  close(fd);
  sscanf(answer, "HTTP/1.1 %d", &code); /* NOLINT(cert-err34-c) */
  return code;
}

/* ---- an operator ---- */

static void test_abuse_ready_when_it_writes_files(void **state) {
  (void)state;
  char answer[512];
  int code = 0;
  start_broker(path_of("results"), NULL, NULL);
  for (int64_t end = test_now_ms() + 40000; code != 200 && test_now_ms() < end; test_sleep_ms(50)) code = get("/readyz", answer);
  if (code != 200) fail_msg("%s", answer);
}

/* Whatever the name server does: it says that there is no such host, or it does not answer for 5 s. */
static void test_abuse_a_redis_whose_name_is_not_found(void **state) {
  (void)state;
  char answer[512];
  launch_broker("redis://no-such-host.invalid:6379", NULL, NULL, NULL);
  for (int64_t end = test_now_ms() + 40000; !daemon_said(&broker, "host 'no-such-host.invalid'"); test_sleep_ms(20)) {
    if (test_now_ms() > end) fail_msg("the broker does not say what is wrong");
  }
  assert_int_equal(get("/healthz", answer), 200);
  for (int64_t end = test_now_ms() + 40000; get("/readyz", answer) == 503 && !strstr(answer, "no-such-host"); test_sleep_ms(50))
    if (test_now_ms() > end) fail_msg("/readyz does not say why: %s", answer);
  assert_true(daemon_alive(&broker));
  daemon_kill(&broker);
}

/* Found as both ::1 and 127.0.0.1 on many machines, of which Redis has one. */
static void test_abuse_a_redis_by_name(void **state) {
  (void)state;
  char url[64];
  snprintf(url, sizeof url, "redis://localhost:%d", redis_server_port(redis));
  launch_broker(url, NULL, NULL, NULL);
  daemon_wait_log(&broker, "ready clients=", 40000);
}

static void refused(program_result r, int code, const char *text) {
  if (r.code != code || !strstr(r.err, text)) fail_msg("exit code %d, not %d, or no '%s': %s", r.code, code, text, r.err);
  program_clear(&r);
}

static void test_abuse_a_password_in_an_address_is_not_shown(void **state) {
  (void)state;
  program_result r = RUN("broker", "--redis", "redis://me:hunter2@127.0.0.1:6379", "--http", "off");
  if (strstr(r.err, "hunter2")) fail_msg("the password is shown: %s", r.err);
  refused(r, 2, "--redis-password-file");
  r = RUN("broker", "--redis", "rediss://me:hunter2@127.0.0.1:6379", "--http", "off");
  if (strstr(r.err, "hunter2")) fail_msg("the password is shown: %s", r.err);
  refused(r, 2, "--redis-password-file");
}

static void test_abuse_settings_that_do_not_go_together(void **state) {
  (void)state;
  program_result key = RUN("keygen", path_of("pair"));
  assert_int_equal(key.code, 0);
  program_clear(&key);
  const char *url = redis_server_url(redis), *secret = path_of("pair.key");
  refused(RUN("broker", "--redis", url, "--http", "off", "--redis-user", "me"), 2, "needs --redis-password-file");
  refused(RUN("broker", "--redis", url, "--http", "off", "--keys", secret), 2, "--allow");
  refused(RUN("broker", "--redis", url, "--http", "off", "--keys", secret, "--allow", path_of("none")), 1, "cannot open");
  refused(RUN("broker", "--redis", url, "--http", "off", "--roots", path_of("none")), 1, "No such file");
  refused(RUN("status", "--keys", secret), 2, "--server-key");
  refused(RUN("worker", "--keys", secret, "--engine", "stub"), 2, "public key");
}

static void test_abuse_redis_passwords(void **state) {
  (void)state;
  const char *url = redis_server_url(redis), *wrong = path_of("wrong");
  assert_string_equal(redis_say(redis, "q", "CONFIG SET requirepass right"), "OK");
  write_file(wrong, "hunter2\n", 0600);
  refused(RUN("broker", "--redis", url, "--http", "off", "--clients", "tcp://127.0.0.1:*", "--workers", "tcp://127.0.0.1:*"), 1,
          "Give --redis-password-file");
  program_result r = RUN("broker", "--redis", url, "--http", "off", "--clients", "tcp://127.0.0.1:*", "--workers",
                         "tcp://127.0.0.1:*", "--redis-password-file", wrong);
  if (strstr(r.err, "hunter2")) fail_msg("the password is shown: %s", r.err);
  refused(r, 1, "see --redis-password-file");
  assert_string_equal(redis_say(redis, "q", "CONFIG SET requirepass ''"), "OK");
}

static void start_worker(const char *const more[]) {
  const char *args[20] = {"worker", "--brokers", workers, "--engine", "stub", "--name", "twin"};
  for (int n = 7; more && *more; more++) args[n++] = *more;
  daemon_init(&worker, "worker", args);
  daemon_start(&worker);
}

static void test_abuse_a_second_worker_of_a_name_says_so(void **state) {
  (void)state;
  start_broker(NULL, NULL, NULL);
  fake_peer *first = peer_open(workers);
  peer_hello(first, "twin", 1, 16, NULL, 0);
  start_worker(NULL);
  for (int64_t end = test_now_ms() + 40000; !daemon_said(&worker, "a worker named twin is alive with broker b1");
       test_sleep_ms(50)) {
    peer_beat(first, NULL, 0, 0);
    if (test_now_ms() > end) fail_msg("the second worker does not say why it waits");
  }
  peer_close(&first);
  daemon_wait_log(&worker, "ready name=twin", 40000);
}

static void test_abuse_a_key_that_is_not_on_the_list(void **state) {
  (void)state;
  program_result r = RUN("keygen", path_of("broker"));
  write_file(path_of("allow"), r.out, 0600); /* the broker's own, as a client */
  program_clear(&r);
  r = RUN("keygen", path_of("stranger"));
  program_clear(&r);
  start_broker(NULL, path_of("broker.key"), path_of("allow"));
  start_worker((const char *const[]){"--keys", path_of("stranger.key"), "--server-key", path_of("broker.pub"), NULL});
  daemon_wait_log(&worker, "does its allow-list hold our key", 40000);
  daemon_kill(&worker);
  start_worker((const char *const[]){"--keys", path_of("broker.key"), "--server-key", path_of("broker.pub"), NULL});
  daemon_wait_log(&worker, "its role in the allow-list is not worker", 40000);
  assert_int_equal(daemon_wait(&worker, 40000), 1);
}

static program_result submit_as(const char *name, const char *tenant, const char *priority) {
  return RUN("submit", path_of("one.jsonl"), "--broker", clients, "--keys", path_of("limited.key"), "--server-key",
             path_of("limited.pub"), "--key", name, "--tenant", tenant, "--priority", priority);
}

static void test_abuse_a_tenant_that_is_not_the_key_s(void **state) {
  (void)state;
  char line[256];
  program_result r = RUN("keygen", path_of("limited"));
  snprintf(line, sizeof line, "%.*s tenants=north priorities=1,2\n", (int)strcspn(r.out, "\n"), r.out);
  write_file(path_of("allow"), line, 0600);
  write_file(path_of("one.jsonl"), "{\"id\":\"a\",\"before\":\"/a.png\",\"after\":\"/b.png\"}\n", 0644);
  program_clear(&r);
  start_broker(NULL, path_of("limited.key"), path_of("allow"));
  r = submit_as("k1", "north", "1");
  assert_int_equal(r.code, 0);
  program_clear(&r);
  refused(submit_as("k2", "south", "1"), 1, "tenant 'south' with priority 1");
  refused(submit_as("k3", "north", "0"), 1, "tenant 'north' with priority 0");
}

/* Adds a line for a new key NAME to the allow-list. */
static void allow_key(const char *name, const char *role, const char *limits) {
  char public_key[41] = "", text[160], file[32];
  btc_error err;
  if (btc_keys_generate(path_of(name), public_key, &err) != BTC_OK) fail_msg("%s", err.message);
  snprintf(text, sizeof text, "%s %s %s %s\n", public_key, role, name, limits);
  snprintf(file, sizeof file, "%s", "allow");
  int fd = open(path_of(file), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
  close(fd);
}

/* A command about a job, with the key NAME; job may be NULL. */
static program_result command_as(const char *name, const char *command, const char *job) {
  char key[64];
  snprintf(key, sizeof key, "%s.key", name);
  return RUN(command, "--broker", clients, "--keys", path_of(key), "--server-key", path_of("server.pub"), "--timeout", "30", job);
}

static void expect_as(const char *name, const char *command, const char *job, int code) {
  program_result r = command_as(name, command, job);
  if (r.code != code) fail_msg("%s, %s: exit code %d: %s", name, command, r.code, r.err);
  program_clear(&r);
}

static void expect_listed(const char *name, const char *job, bool listed) {
  program_result r = command_as(name, "status", NULL);
  assert_int_equal(r.code, 0);
  if ((strstr(r.out, job) != NULL) != listed) fail_msg("%s %s in the list of %s: %s", job, listed ? "is not" : "is", name, r.out);
  program_clear(&r);
}

static void test_abuse_a_job_of_another_tenant(void **state) {
  (void)state;
  static const char *const commands[] = {"status", "pause", "resume", "replay", "cancel", "results"};
  char job[80], keys[] = "north.key";
  allow_key("server", "client", "");
  allow_key("north", "client", "tenants=north");
  allow_key("south", "client", "tenants=south,east");
  allow_key("boss", "admin", "");
  allow_key("chief", "admin", "tenants=south");
  write_file(path_of("one.jsonl"), "{\"id\":\"a\",\"before\":\"/a.png\",\"after\":\"/b.png\"}\n", 0644);
  start_broker(path_of("results"), path_of("server.key"), path_of("allow"));
  program_result r = RUN("submit", path_of("one.jsonl"), "--broker", clients, "--keys", path_of(keys), "--server-key",
                         path_of("server.pub"), "--tenant", "north");
  if (r.code) fail_msg("submit: %s", r.err);
  snprintf(job, sizeof job, "%.*s", (int)strcspn(r.out, "\n"), r.out);
  program_clear(&r);
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
    refused(command_as("south", commands[i], job), 1, "no such job");
    refused(command_as("chief", commands[i], job), 1, "no such job");
  }
  r = command_as("south", "dead", job);
  assert_null(strstr(r.out, "\"a\""));
  program_clear(&r);
  expect_listed("north", job, true);
  expect_listed("boss", job, true);
  expect_listed("south", job, false);
  expect_listed("chief", job, false);
  refused(command_as("chief", "pause", NULL), 1, "without tenants=");
  expect_as("boss", "pause", NULL, 0);
  expect_as("boss", "resume", NULL, 0);
  expect_as("north", "pause", job, 0);
  expect_as("boss", "resume", job, 0);
  expect_as("north", "cancel", job, 0);
}

/* A server that says it is Redis, of an older kind. */
static void serve_old_redis(int fd) {
  static const char info[] = "# Server\r\nredis_version:6.2.14\r\nrole:master\r\nmaxmemory_policy:noeviction\r\n";
  char buf[4096], reply[512];
  snprintf(reply, sizeof reply, "$%zu\r\n%s\r\n", sizeof info - 1, info);
  for (int c; (c = accept(fd, NULL, NULL)) >= 0; close(c))
    while (read(c, buf, sizeof buf) > 0 && write(c, reply, strlen(reply)) > 0) continue;
}

static void test_abuse_redis_too_old(void **state) {
  (void)state;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof a;
  char url[64];
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
  assert_int_equal(listen(fd, 8), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
  snprintf(url, sizeof url, "redis://127.0.0.1:%d", ntohs(a.sin_port));
  pid_t server = fork();
  if (server == 0) {
    alarm(120);
    serve_old_redis(fd);
    _exit(0);
  }
  close(fd);
  program_result r =
      RUN("broker", "--redis", url, "--http", "off", "--clients", "tcp://127.0.0.1:*", "--workers", "tcp://127.0.0.1:*");
  kill(server, 9);
  refused(r, 1, "6.2.14 is too old");
}

static void test_abuse_a_manifest_that_goes_away_pauses_its_job(void **state) {
  (void)state;
  char jid[80];
  const char *manifest = path_of("gone.jsonl");
  write_file(manifest, "{\"id\":\"a\",\"before\":\"a.png\",\"after\":\"b.png\"}\n", 0600);
  start_broker(NULL, NULL, NULL);
  program_result r = RUN("submit", "--broker", clients, manifest, "--delay", "0.5");
  assert_int_equal(r.code, 0);
  snprintf(jid, sizeof jid, "%.*s", (int)strcspn(r.out, "\n"), r.out);
  program_clear(&r);
  unlink(manifest);
  start_worker(NULL);
  for (int64_t end = test_now_ms() + 40000;; test_sleep_ms(100)) {
    r = RUN("status", "--broker", clients, jid);
    bool said = strstr(r.out, "state     paused: cannot open") != NULL;
    if (!said && test_now_ms() > end) fail_msg("%s", r.out);
    program_clear(&r);
    if (said) break;
  }
}

/* ---- an attacker ---- */

static int open_files(pid_t pid) {
  char path[64];
  int n = 0;
  snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
  DIR *d = opendir(path);
  assert_non_null(d);
  while (readdir(d)) n++;
  closedir(d);
  return n;
}

/* Bytes that are no ZeroMQ, then a right greeting with nonsense behind it. */
static void throw_garbage(int port, unsigned seed) {
  uint8_t bytes[4096] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 0, 'N', 'U', 'L', 'L'};
  int fd = dial(port);
  for (size_t i = seed % 2 ? 64 : 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)((seed = seed * 1103515245u + 12345u) >> 16);
  (void)!send(fd, bytes, sizeof bytes, MSG_NOSIGNAL); /* it may have hung up */
  close(fd);
}

static void test_abuse_garbage_on_every_port(void **state) {
  (void)state;
  char answer[512];
  start_broker(path_of("results"), NULL, NULL);
  for (unsigned i = 0; i < 90; i++) throw_garbage(i % 3 == 0 ? client_port : i % 3 == 1 ? worker_port : http_port, i + 1);
  fake_peer *p = peer_open(workers);
  for (size_t len = 0; len < 200; len++) {
    uint8_t frame[200];
    memset(frame, (int)len, sizeof frame);
    peer_send_bytes(p, frame, len);
  }
  peer_hello(p, "after", 1, 16, NULL, 0); /* it still works */
  peer_close(&p);
  assert_true(daemon_alive(&broker));
  assert_true(get("/readyz", answer) > 0);
}

static void come_and_go(int n) {
  for (int i = 0; i < n; i++) {
    char name[32];
    fake_peer *p = peer_open(workers);
    snprintf(name, sizeof name, "w%d", i);
    peer_hello(p, name, (uint64_t)i + 1, 16, NULL, 0);
    peer_close(&p);
  }
}

static void expect_text(const char *command, const char *want) {
  for (int64_t end = test_now_ms() + 40000; strcmp(redis_say(redis, "default", "%s", command), want) != 0; test_sleep_ms(100))
    if (test_now_ms() > end) fail_msg("%s: %s, not %s", command, redis_say(redis, "default", "%s", command), want);
}

static void test_abuse_workers_that_come_and_go_leave_nothing(void **state) {
  (void)state;
  start_broker(NULL, NULL, NULL);
  come_and_go(10);
  expect_text("EXISTS $workers", "0");
  int before = open_files(broker.pid), now = 0;
  come_and_go(60);
  expect_text("EXISTS $workers", "0");
  expect_text("EXISTS $inc", "0");
  for (int64_t end = test_now_ms() + 40000; test_now_ms() < end; test_sleep_ms(100))
    if ((now = open_files(broker.pid)) <= before + 2) break;
  if (now > before + 2) fail_msg("%d open files before, %d after", before, now);
}

/* ---- run ---- */

static void test_abuse_run_without_redis_says_what_to_install(void **state) {
  (void)state;
  const char *manifest = path_of("one.jsonl");
  write_file(manifest, "{\"id\":\"a\",\"before\":\"a.png\",\"after\":\"b.png\"}\n", 0600);
  refused(program_run((const char *const[]){"run", manifest, "-o", path_of("out"), "--engine", "stub", NULL}, "PATH=/nonexistent"),
          1, "install Redis 7.0 or newer");
}

static void test_abuse_run_knows_a_model_trained_anew(void **state) {
  (void)state;
  char first[PATH_MAX + 64], again[PATH_MAX + 64];
  const char *dir = path_of("model"), *weights = path_of("model/model.safetensors");
  mkdir(dir, 0700);
  write_file(path_of("model/config.json"), "{}", 0600);
  write_file(weights, "", 0600);
  assert_int_equal(truncate(weights, 3 << 20), 0);
  assert_int_equal(model_identity(dir, first, sizeof first), 0);
  assert_int_equal(model_identity(dir, again, sizeof again), 0);
  assert_string_equal(first, again);
  int fd = open(weights, O_WRONLY | O_CLOEXEC);
  uint8_t *other = calloc(2 << 20, 1); /* of the same size, other numbers in most of it */
  memset(other, 1, 2 << 20);
  assert_int_equal(pwrite(fd, other, 2 << 20, 1 << 19), 2 << 20);
  close(fd);
  free(other);
  assert_int_equal(model_identity(dir, again, sizeof again), 0);
  assert_string_not_equal(first, again);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_abuse_ready_when_it_writes_files, set_up, tear_down),
      cmocka_unit_test(test_abuse_a_password_in_an_address_is_not_shown),
      cmocka_unit_test_setup_teardown(test_abuse_settings_that_do_not_go_together, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_abuse_redis_passwords, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_abuse_a_second_worker_of_a_name_says_so, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_abuse_a_key_that_is_not_on_the_list, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_abuse_a_tenant_that_is_not_the_key_s, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_abuse_a_job_of_another_tenant, set_up, tear_down),
      cmocka_unit_test(test_abuse_a_redis_whose_name_is_not_found),
      cmocka_unit_test_setup_teardown(test_abuse_a_redis_by_name, set_up, tear_down),
      cmocka_unit_test(test_abuse_redis_too_old),
      cmocka_unit_test_setup_teardown(test_abuse_a_manifest_that_goes_away_pauses_its_job, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_abuse_garbage_on_every_port, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_abuse_workers_that_come_and_go_leave_nothing, set_up, tear_down),
      cmocka_unit_test(test_abuse_run_without_redis_says_what_to_install),
      cmocka_unit_test(test_abuse_run_knows_a_model_trained_anew),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
