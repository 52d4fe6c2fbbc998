/* The sink against a real Redis: every record in exactly one sealed part, whatever dies when, and whatever the disk does. */
#define _GNU_SOURCE
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "broker/results.h"
#include "broker/sink.h"
#include "broker/sink_items.h"
#include "broker/sink_part.h"
#include "redis_server.h"

static redis_server *redis;
static char results[PATH_MAX];

static void start_redis(void) {
  static int turn;
  redis = redis_server_start("always", NULL);
  redis_server_load_queue(redis);
  assert_string_equal(redis_say(redis, "q", "btc_setup"), "[OK 1]");
  snprintf(results, sizeof results, "%s/results-%d", test_tmp_dir(), turn++);
}

static btc_sink *start_sink_as(const char *name, btc_metrics *metrics, int64_t seal_records) {
  btc_sink *s;
  btc_error err;
  btc_sink_options o = {.redis = redis_server_url(redis),
                        .queue = "q",
                        .broker = name,
                        .results = results,
                        .metrics = metrics,
                        .seal_records = seal_records,
                        .seal_min_ms = 50,
                        .seal_max_ms = 50,
                        .duty_ms = 400};
  if (btc_sink_start(&o, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  return s;
}

/* ---- jobs ---- */

static void submit(const char *jid, int total) {
  const char *argv[] = {jid, "manifest", "t", "1", "", "files", "", "{}", "/m.jsonl", "", "", "0", "", "", "0", ""};
  char n[16];
  snprintf(n, sizeof n, "%d", total);
  argv[10] = n;
  redisReply *r = redis_fcall_argv(redis_server_context(redis), "q", "btc_submit", 16, argv, NULL);
  assert_string_equal(r->element[0]->str, "NEW");
  freeReplyObject(r);
  for (int cur = 0; cur < total;) {
    const char *args[70] = {jid};
    char text[64][24], at[16];
    int k = 2;
    snprintf(at, sizeof at, "%d", cur);
    args[1] = at;
    for (int c = 0; c < 20 && cur < total; c++) {
      int some = total - cur < 32 ? total - cur : 32;
      snprintf(text[k - 2], sizeof text[0], "%d", some);
      args[k] = text[k - 2], k++;
      snprintf(text[k - 2], sizeof text[0], "%d:1:0", cur);
      args[k] = text[k - 2], k++;
      cur += some;
    }
    args[k++] = "end";
    r = redis_fcall_argv(redis_server_context(redis), "q", "btc_expand", k, args, NULL);
    assert_int_equal(r->integer, cur);
    freeReplyObject(r);
  }
}

/* Everything that is ready; items whose number % 50 == 7 die when `dying`. */
static int work_off(bool dying) {
  int done = 0;
  for (;;) {
    const char *argv[] = {"w#1", "30000", "32", ""};
    redisReply *r = redis_fcall_argv(redis_server_context(redis), "q", "btc_claim", 4, argv, NULL);
    assert_int_equal(r->type, REDIS_REPLY_ARRAY);
    if (!r->elements) {
      freeReplyObject(r);
      return done;
    }
    for (size_t c = 0; c < r->elements; c++) {
      redisReply **e = r->element[c]->element;
      char text[64][80], cid[24], tok[24], lo[24];
      snprintf(cid, sizeof cid, "%lld", e[0]->integer);
      snprintf(tok, sizeof tok, "%lld", e[1]->integer);
      snprintf(lo, sizeof lo, "%lld", e[3]->integer);
      const char *commit[200] = {cid, tok, e[2]->str, lo, "30000", "w#1"};
      int k = 6;
      for (long long i = 0; i < e[4]->integer; i++) {
        long long idx = e[3]->integer + i;
        if (!(e[5]->integer >> i & 1)) continue;
        if (dying && idx % 50 == 7) {
          /* one dies as the worker's record says, another took its worker along */
          redis_say(redis, "q", "btc_fail %s %s %s %s 30000 w#1 %lld p %s bad-request no %s", cid, tok, e[2]->str, lo, i,
                    idx % 100 == 7 ? "x" : "''", idx % 100 == 7 ? "{\"id\":\"x\"}" : "''");
          continue;
        }
        snprintf(text[2 * i], sizeof text[0], "%lld", i);
        snprintf(text[2 * i + 1], sizeof text[0], "{\"job\":\"%s\",\"n\":%lld}", e[2]->str, idx);
        commit[k++] = text[2 * i];
        commit[k++] = "i";
        commit[k++] = text[2 * i + 1];
        done++;
      }
      redisReply *reply = redis_fcall_argv(redis_server_context(redis), "q", "btc_commit", k, commit, NULL);
      assert_int_equal(reply->type, REDIS_REPLY_ARRAY);
      freeReplyObject(reply);
    }
    freeReplyObject(r);
  }
}

static long number(const char *format, const char *jid) {
  const char *say = redis_say(redis, "q", format, jid);
  return strtol(say, NULL, 10);
}

static bool published(const char *jid) {
  char path[2 * PATH_MAX];
  snprintf(path, sizeof path, "%s/%s/.finished.json", results, jid);
  return access(path, F_OK) == 0;
}

/* A minute without a record written is failure; slow is not: sinks that lapse all the time on a busy machine do get on. */
static void wait_published(const char *jid) {
  long recorded = -1;
  for (int64_t end = 0; !published(jid); usleep(10000)) {
    int64_t now = btc_now_ns();
    long seen = number("HGET $job:%s rec", jid);
    if (seen != recorded) {
      recorded = seen;
      end = now + 60000000000;
    }
    if (now > end)
      fail_msg("%s: %ld of %ld recorded, res %s", jid, recorded, number("HGET $job:%s done", jid),
               redis_say(redis, "q", "XLEN $res"));
  }
}

/* ---- the folder ---- */

/* The sidecar tells the truth about its part. */
static void check_sidecar(const char *jid, const btc_results_part *part) {
  char path[2 * PATH_MAX];
  uint8_t *data;
  size_t len;
  snprintf(path, sizeof path, "%s/%s/part-%06u.jsonl", results, jid, part->number);
  assert_int_equal(btc_file_read(path, 64 << 20, &data, &len, NULL), BTC_OK);
  snprintf(path, sizeof path, "%s/%s/.part-%06u.json", results, jid, part->number);
  json_t *doc = json_load_file(path, 0, NULL);
  assert_non_null(doc);
  char crc[16];
  snprintf(crc, sizeof crc, "%08x", btc_crc32(data, len));
  assert_string_equal(json_string_value(json_object_get(doc, "crc32")), crc);
  assert_int_equal(json_integer_value(json_object_get(doc, "bytes")), len);
  btc_items items = {0};
  assert_int_equal(btc_items_parse(&items, json_string_value(json_object_get(doc, "idx")), NULL), BTC_OK);
  assert_int_equal(items.count, json_integer_value(json_object_get(doc, "count")));
  json_decref(doc);
  for (char *line = strtok((char *)data, "\n"); line; line = strtok(NULL, "\n")) {
    json_t *record = json_loads(line, 0, NULL);
    assert_string_equal(json_string_value(json_object_get(record, "job")), jid);
    assert_true(btc_items_has(&items, (uint64_t)json_integer_value(json_object_get(record, "n"))));
    json_decref(record);
  }
  btc_items_free(&items);
  free(data);
}

/* Items 0..total-1 each exactly once in the parts (every 50th from 7 on in errors.jsonl when `dying`); nothing left in Redis. */
static void check_job(const char *jid, int total, bool dying) {
  char cursor[BTC_RESULTS_CURSOR] = "";
  uint8_t *seen = calloc(1, (size_t)total);
  int parts_lines = 0, error_lines = 0;
  for (bool end = false; !end;) {
    char *lines, next[BTC_RESULTS_CURSOR];
    size_t len;
    btc_error err;
    if (btc_results_read(results, jid, cursor, 100000, false, &lines, &len, next, &end, &err) != BTC_OK)
      fail_msg("%s", err.message);
    memcpy(cursor, next, sizeof cursor);
    char *save = NULL;
    for (char *line = strtok_r(lines, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
      json_t *record = json_loads(line, 0, NULL);
      json_int_t n = json_integer_value(json_object_get(record, "n"));
      assert_true(n >= 0 && n < total);
      if (seen[n]++) fail_msg("%s: item %lld twice", jid, (long long)n);
      json_decref(record);
      parts_lines++;
    }
    free(lines);
  }
  for (int i = 0; i < total; i++)
    if (seen[i] != !(dying && i % 50 == 7)) fail_msg("%s: item %d: %d records", jid, i, seen[i]);
  free(seen);
  uint64_t records, errors;
  assert_int_equal(btc_results_count(results, jid, &records, &errors, NULL), BTC_OK);
  assert_int_equal(records, parts_lines);
  error_lines = (int)errors;
  assert_int_equal(parts_lines + error_lines, total);
  btc_results_part *parts;
  size_t n;
  assert_int_equal(btc_results_list(results, jid, &parts, &n, NULL), BTC_OK);
  for (size_t i = 0; i < n; i++)
    if (parts[i].bytes) check_sidecar(jid, &parts[i]);
  free(parts);
}

/* What is acknowledged last may be so a moment after the files are there. */
static void check_redis(const char *jid) {
  for (int64_t end = btc_now_ns() + 10000000000; number("XLEN $res%.0s", ""); usleep(10000)) assert_true(btc_now_ns() < end);
  assert_string_equal(redis_say(redis, "q", "XPENDING $res sink"), "[0 nil nil nil]");
  assert_int_equal(number("HGET $job:%s rec", jid), number("HGET $job:%s done", jid));
}

/* ---- tests ---- */

static void test_sink_moves_records_to_parts(void **state) {
  (void)state;
  start_redis();
  btc_sink *s = start_sink_as("b1", NULL, 400);
  submit("j1", 3000);
  submit("j2", 10);
  assert_int_equal(work_off(true), 3010 - 60 - 1);
  wait_published("j1");
  wait_published("j2");
  check_job("j1", 3000, true);
  check_job("j2", 10, true);
  check_redis("j1");
  btc_sink_stop(&s, 1000);
  usleep(20000);                                                       /* it is given a millisecond more */
  assert_string_equal(redis_say(redis, "q", "EXISTS $ldr:sink"), "0"); /* handed back at once: the duty did not have to run out */
  redis_server_stop(&redis);
}

/* What is not sealed by size is sealed when the sink stops. */
static void test_sink_seals_at_stop(void **state) {
  (void)state;
  start_redis();
  btc_sink *s;
  btc_sink_options o = {.redis = redis_server_url(redis), .queue = "q", .broker = "b", .results = results, .seal_min_ms = 60000};
  assert_int_equal(btc_sink_start(&o, &s, NULL), BTC_OK);
  submit("j", 64);
  submit("open", 64);
  redis_say(redis, "q", "btc_claim w#2 60000 32 ''");
  int done = work_off(false);
  assert_int_equal(done, 96);
  for (int64_t end = btc_now_ns() + 10000000000;
       number("XPENDING $res sink%.0s", ""), strncmp(redis_say(redis, "q", "XPENDING $res sink"), "[0 ", 3) == 0; usleep(10000))
    assert_true(btc_now_ns() < end);
  usleep(600000);
  btc_sink_stop(&s, 5000);
  uint64_t records, a, errors;
  btc_results_count(results, "j", &a, &errors, NULL);
  btc_results_count(results, "open", &records, &errors, NULL);
  assert_int_equal(a + records, 96);
  assert_string_equal(redis_say(redis, "q", "XLEN $res"), "0");
  redis_server_stop(&redis);
}

static void test_sink_dead_letters_become_records(void **state) {
  (void)state;
  start_redis();
  char manifest[PATH_MAX];
  snprintf(manifest, sizeof manifest, "%s/m.jsonl", test_tmp_dir());
  FILE *f = fopen(manifest, "wb");
  fputs(
      "{\"id\":\"first\",\"before\":\"a\",\"after\":\"b\"}\n\n{\"id\":\"second\",\"before\":\"a\",\"after\":\"b\",\"meta\":{\"k\":"
      "1.5}}\n{\"before\":\"a\",\"after\":\"b\"}\n",
      f);
  fclose(f);
  redis_say(redis, "q", "btc_submit j manifest t 1 '' files '' {} %s '' 3 0 '' '' 0 ''", manifest);
  assert_string_equal(redis_say(redis, "q", "btc_expand j 0 3 0:1:0 end"), "3");
  redis_say(redis, "q", "btc_claim w#1 30000 32 ''");
  redis_say(redis, "q",
            "btc_fail 1 1 j 0 30000 w#1 0 p first decode broken {\"v\":1,\"id\":\"first\",\"from\":\"worker\"} 1 p '' internal "
            "no-id '' 2 p '' internal no-id ''");
  btc_sink *s = start_sink_as("b1", NULL, 100);
  wait_published("j");
  char path[2 * PATH_MAX];
  uint8_t *data;
  size_t len;
  snprintf(path, sizeof path, "%s/j/errors.jsonl", results);
  assert_int_equal(btc_file_read(path, 1 << 20, &data, &len, NULL), BTC_OK);
  assert_string_equal(
      (char *)data,
      "{\"v\":1,\"id\":\"first\",\"from\":\"worker\"}\n"
      "{\"v\":1,\"id\":\"second\",\"status\":\"failed\",\"reason\":\"internal\",\"message\":\"no-id\",\"meta\":{\"k\":1.5}}\n"
      "{\"v\":1,\"id\":\"4\",\"status\":\"failed\",\"reason\":\"internal\",\"message\":\"no-id\"}\n");
  free(data);
  /* a replay that saves all of them leaves no errors behind */
  assert_string_equal(redis_say(redis, "q", "btc_replay j '' 0 256"), "[3 0]");
  assert_int_equal(work_off(false), 3);
  for (int64_t end = btc_now_ns() + 20000000000; access(path, F_OK) == 0; usleep(10000)) assert_true(btc_now_ns() < end);
  check_job("j", 3, false);
  check_redis("j");
  btc_sink_stop(&s, 1000);
  redis_server_stop(&redis);
}

/* kill -9 at each step; the next sink, of another name, ends the work. */
static void kill_at(const char *point, int nth, bool must_die) {
  pid_t pid = fork();
  assert_true(pid >= 0);
  if (!pid) {
    char fail[64];
    snprintf(fail, sizeof fail, "%s:%d", point, nth);
    setenv("BTC_FAIL", fail, 1);
    btc_sink_options o = {.redis = redis_server_url(redis),
                          .queue = "q",
                          .broker = point,
                          .results = results,
                          .seal_records = 200,
                          .seal_min_ms = 50,
                          .seal_max_ms = 50,
                          .duty_ms = 300};
    btc_sink *s;
    if (btc_sink_start(&o, &s, NULL) != BTC_OK) _exit(3);
    for (int i = 0; i < 3000 && !published("j"); i++) usleep(10000);
    usleep(200000); /* the last steps come after the note of the finish */
    _exit(0);
  }
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  if (must_die && !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
    fail_msg("%s:%d was not passed: status %x", point, nth, (unsigned)status);
}

/* The sink that ends the work, in a process of its own: a process looks at BTC_FAIL once, and children of this one must find it
 * unread. */
static void finish_apart(int total) {
  pid_t pid = fork();
  if (!pid) {
    start_sink_as("last", NULL, 300);
    for (;;) pause();
  }
  wait_published("j");
  check_redis("j");
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  check_job("j", total, true);
  redis_server_stop(&redis);
}

static const char *const points[] = {"sink_read",          "sink_before_part", "sink_part_written",   "sink_sidecar_written",
                                     "sink_sidecar_named", "sink_part_named",  "sink_part_synced",    "sink_before_ack",
                                     "sink_acked_some",    "sink_acked",       "sink_errors_written", "sink_errors_named",
                                     "sink_finish_noted",  "sink_claimed"};

static void test_sink_killed_at_every_step(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
    start_redis();
    submit("j", 1000);
    work_off(true);
    if (strcmp(points[i], "sink_claimed") == 0) kill_at("sink_read", 1, true); /* leaves something to claim */
    kill_at(points[i], 1, true);
    kill_at(points[i], 2, false); /* not every step comes twice */
    finish_apart(1000);
  }
}

/* Many deaths one after the other, at whatever step comes. */
static void test_sink_killed_again_and_again(void **state) {
  (void)state;
  start_redis();
  submit("j", 4000);
  work_off(true);
  for (int i = 0; i < 28; i++) kill_at(points[(size_t)i * 5 % 14], 1 + i % 2, false);
  finish_apart(4000);
}

/* A sink that is stopped for longer than its duty and comes back while another works on: nothing twice, whoever seals. */
static void test_sink_zombies_double_nothing(void **state) {
  (void)state;
  start_redis();
  submit("j", 20000);
  pid_t pid[3];
  for (int i = 0; i < 3; i++) {
    pid[i] = fork();
    if (!pid[i]) {
      prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nothing behind */
      char name[24];
      snprintf(name, sizeof name, "z%d", i);
      btc_sink_options o = {.redis = redis_server_url(redis),
                            .queue = "q",
                            .broker = name,
                            .results = results,
                            .seal_records = 150,
                            .seal_min_ms = 5,
                            .seal_max_ms = 5,
                            .duty_ms = 150};
      btc_sink *s;
      if (btc_sink_start(&o, &s, NULL) != BTC_OK) _exit(3);
      for (;;) pause();
    }
  }
  unsigned random = 7;
  int done = 0;
  for (int round = 0; round < 36; round++) {
    random = random * 1103515245 + 12345;
    pid_t victim = pid[random >> 16 & 1 ? (random >> 20) % 3 : (unsigned)round % 3];
    kill(victim, SIGSTOP);
    if (round == 10) done = work_off(false);
    usleep(100000 + (random >> 8) % 150000);
    kill(victim, SIGCONT);
  }
  assert_int_equal(done, 20000);
  wait_published("j");
  check_redis("j");
  for (int i = 0; i < 3; i++) {
    kill(pid[i], SIGKILL);
    waitpid(pid[i], NULL, 0);
  }
  check_job("j", 20000, false);
  redis_server_stop(&redis);
}

/* Two writers of one folder that know nothing of each other, without any duty: the folder arbitrates. */
static void test_sink_folder_arbitrates(void **state) {
  (void)state;
  btc_part_job *a, *b;
  btc_part_added how;
  int conflicts, all = 0;
  snprintf(results, sizeof results, "%s/arbitrates", test_tmp_dir());
  mkdir(results, 0755);
  assert_int_equal(btc_part_open(results, "j", &a, NULL), BTC_OK);
  assert_int_equal(btc_part_open(results, "j", &b, NULL), BTC_OK);
  for (uint64_t i = 0; i < 600; i++) {
    char json[64];
    int len = snprintf(json, sizeof json, "{\"job\":\"j\",\n\"n\":%d}", (int)i);
    btc_part_job *one = i % 3 ? a : b;
    assert_int_equal(btc_part_add(one, (btc_stream_id){i + 1, 0}, i, json, (size_t)len, &how, NULL), BTC_OK);
    if (i % 2)
      assert_int_equal(btc_part_add(one == a ? b : a, (btc_stream_id){i + 1, 0}, i, json, (size_t)len, &how, NULL), BTC_OK);
    if (i % 40 == 39 || i % 55 == 54) {
      one = i % 40 == 39 ? a : b;
      assert_int_equal(btc_part_seal(one, &conflicts, NULL), BTC_OK);
      all += conflicts;
      btc_part_clear(one);
    }
  }
  assert_int_equal(btc_part_seal(a, &conflicts, NULL), BTC_OK);
  assert_int_equal(btc_part_seal(b, &conflicts, NULL), BTC_OK);
  assert_true(all > 5);
  btc_part_close(&a);
  btc_part_close(&b);
  check_job("j", 600, false);
}

static void test_sink_unfinished_numbers_are_closed(void **state) {
  (void)state;
  btc_part_job *j;
  btc_part_added how;
  int conflicts;
  char path[2 * PATH_MAX];
  snprintf(results, sizeof results, "%s/closed", test_tmp_dir());
  mkdir(results, 0755);
  snprintf(path, sizeof path, "%s/j", results);
  mkdir(path, 0755);
  snprintf(path, sizeof path, "%s/j/.part-000004.json", results); /* a sidecar without a part */
  FILE *f = fopen(path, "wb");
  fputs("{\"idx\":\"0-9\"}", f);
  fclose(f);
  assert_int_equal(btc_part_open(results, "j", &j, NULL), BTC_OK);
  assert_int_equal(btc_part_sealed(j), 0);
  assert_int_equal(btc_part_add(j, (btc_stream_id){1, 0}, 3, "{\"job\":\"j\",\"n\":3}", 17, &how, NULL), BTC_OK);
  assert_int_equal(how, BTC_PART_TAKEN);
  assert_int_equal(btc_part_seal(j, &conflicts, NULL), BTC_OK);
  assert_int_equal(btc_part_number(j), 5);
  btc_part_close(&j);
  snprintf(path, sizeof path, "%s/j/.part-000005.json", results); /* a sidecar that is broken: the job is refused, not doubled */
  assert_int_equal(truncate(path, 20), 0);
  assert_int_equal(btc_part_open(results, "j", &j, NULL), BTC_ERR_FORMAT);
}

static void test_sink_full_disk_loses_nothing(void **state) {
  (void)state;
  start_redis();
  mkdir(results, 0755);
  if (mount("none", results, "tmpfs", 0, "size=64k") != 0) {
    redis_server_stop(&redis);
    skip(); /* no right to mount */
  }
  btc_metrics *metrics = btc_metrics_create("q", "b");
  btc_sink *s = start_sink_as("b", metrics, 500);
  submit("j", 5000);
  assert_int_equal(work_off(false), 5000);
  char why[256];
  for (int64_t end = btc_now_ns() + 20000000000; !btc_metrics_get(metrics, BTC_METRIC_SINK_BLOCKED); usleep(10000))
    assert_true(btc_now_ns() < end);
  btc_metrics_health(metrics, BTC_HEALTH_REDIS, true, NULL);
  btc_metrics_health(metrics, BTC_HEALTH_LIBRARY, true, NULL);
  assert_false(btc_metrics_ready(metrics, why, sizeof why));
  assert_non_null(strstr(why, "No space left"));
  usleep(1500000);
  assert_false(published("j"));
  assert_true(number("XLEN $res%.0s", "") > 1000);
  assert_int_equal(mount("none", results, "tmpfs", MS_REMOUNT, "size=16m"), 0);
  wait_published("j");
  check_redis("j");
  check_job("j", 5000, false);
  assert_true(btc_metrics_get(metrics, BTC_METRIC_SINK_BLOCKED) == 0);
  btc_sink_stop(&s, 1000);
  btc_metrics_destroy(&metrics);
  umount2(results, MNT_DETACH);
  redis_server_stop(&redis);
}

/* Redis dies and comes back with what it had. */
static void test_sink_redis_killed(void **state) {
  (void)state;
  start_redis();
  btc_sink *s = start_sink_as("b", NULL, 200);
  submit("j", 3000);
  work_off(true);
  for (int i = 0; i < 3; i++) {
    usleep(80000);
    redis_server_kill(redis);
    usleep(100000);
    redis_server_restart(redis);
  }
  wait_published("j");
  check_redis("j");
  check_job("j", 3000, true);
  btc_sink_stop(&s, 1000);
  redis_server_stop(&redis);
}

static void test_sink_bad_entries_do_not_stand_in_the_way(void **state) {
  (void)state;
  start_redis();
  static const char *const bad[] = {"jid ../x idx 0 json {}", "jid j idx -1 json {}", "jid j idx 999999999 json {}",
                                    "jid j json {}",          "idx 0 json {}",        "jid j idx 0"};
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) redis_say(redis, "q", "XADD $res * %s", bad[i]);
  btc_sink *s = start_sink_as("b", NULL, 200);
  submit("j", 10);
  work_off(false);
  wait_published("j");
  check_redis("j");
  check_job("j", 10, false);
  btc_sink_stop(&s, 1000);
  redis_server_stop(&redis);
}

static void test_sink_item_sets(void **state) {
  (void)state;
  btc_items s = {0}, t = {0};
  static const uint64_t idx[] = {0, 1, 2, 64, 4095, 4096, 4097, 99999999, 5000000};
  for (size_t i = 0; i < 9; i++) assert_true(btc_items_add(&s, idx[i]));
  assert_true(btc_items_add(&s, 64));
  assert_int_equal(s.count, 9);
  assert_false(btc_items_add(&s, 100000000));
  char *text;
  size_t len;
  FILE *f = open_memstream(&text, &len);
  btc_items_print(&s, f);
  fclose(f);
  assert_string_equal(text, "0-2,64,4095-4097,5000000,99999999");
  assert_int_equal(btc_items_parse(&t, text, NULL), BTC_OK);
  assert_int_equal(t.count, 9);
  assert_true(btc_items_merge(&t, &s));
  assert_int_equal(t.count, 9);
  assert_true(btc_items_has(&t, 4096));
  assert_false(btc_items_has(&t, 63));
  static const char *const wrong[] = {"a", "1-", "-1", "1,", ",1", "2-1", "1--2", "100000000", "1 2", "1-2-3"};
  for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
    if (btc_items_parse(&t, wrong[i], NULL) != BTC_ERR_ARG) fail_msg("'%s' was taken", wrong[i]);
  free(text);
  btc_items_free(&s);
  btc_items_free(&t);
  assert_int_equal(btc_crc32("123456789", 9), 0xcbf43926);
}

static const struct CMUnitTest tests[] = {
    /* these two first: see finish_apart */
    cmocka_unit_test(test_sink_killed_at_every_step),
    cmocka_unit_test(test_sink_killed_again_and_again),
    cmocka_unit_test(test_sink_moves_records_to_parts),
    cmocka_unit_test(test_sink_seals_at_stop),
    cmocka_unit_test(test_sink_dead_letters_become_records),
    cmocka_unit_test(test_sink_zombies_double_nothing),
    cmocka_unit_test(test_sink_folder_arbitrates),
    cmocka_unit_test(test_sink_unfinished_numbers_are_closed),
    cmocka_unit_test(test_sink_full_disk_loses_nothing),
    cmocka_unit_test(test_sink_redis_killed),
    cmocka_unit_test(test_sink_bad_entries_do_not_stand_in_the_way),
    cmocka_unit_test(test_sink_item_sets),
};

BTC_TEST_MAIN(tests)
