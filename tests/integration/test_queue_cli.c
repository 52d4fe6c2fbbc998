/* The commands of the queue as a user types them, against a real broker, Redis and stub workers. */
#define _GNU_SOURCE
#include "test.h"

#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include <jansson.h>

#include "base/base.h"
#include "cluster.h"
#include "program.h"

static cluster c;

static void begin(int workers, int stub_us, const char *faults) {
  cluster_start(&c, &(cluster_options){.brokers = 1, .workers = workers, .stub_us = stub_us, .faults = faults});
}

/* Runs a command against the cluster and expects its exit code. The result's out is the caller's. */
static program_result ask(int want, const char *const words[]) {
  const char *command = words[0], *args[40] = {command, "--broker", c.clients};
  int n = 3;
  while (*++words) args[n++] = *words;
  program_result r = program_run(args, NULL);
  if (r.code != want) {
    cluster_show(&c);
    fail_msg("%s: exit code %d, not %d: %s%s", command, r.code, want, r.err, r.out);
  }
  return r;
}
#define ASK(want, ...) ask(want, (const char *const[]){__VA_ARGS__, NULL})

static void expect(program_result r, const char *out, const char *err) {
  const char *said = r.out ? r.out : "";
  if (out && !strstr(said, out)) fail_msg("'%.1000s' lacks '%s'", said, out);
  if (err && !strstr(r.err, err)) fail_msg("'%s' lacks '%s'", r.err, err);
  program_clear(&r);
}

static char *path_of(const char *name) {
  static char path[4][256];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[0], "%s/%s", test_tmp_dir(), name);
  return path[turn];
}

/* 300 items, of which two are bad lines, one of these with an id that was there before. */
static const char *mixed_manifest(void) {
  char *path = path_of("mixed.jsonl");
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  for (int i = 0; i < 298; i++) fprintf(f, "{\"id\":\"m%03d\",\"before\":\"a.png\",\"after\":\"b.png\"}\n", i);
  fputs("{\"id\":\"m005\",\"before\":\"a.png\",\"after\":\"b.png\"}\nnonsense\n", f);
  fclose(f);
  return path;
}

static size_t count_lines(const char *text) {
  size_t n = 0;
  for (; (text = strchr(text, '\n')); text++) n++;
  return n;
}

static char *slurp(const char *path) {
  uint8_t *data;
  size_t len;
  btc_error err;
  if (btc_file_read(path, 64 << 20, &data, &len, &err) != BTC_OK) fail_msg("%s", err.message);
  return (char *)data;
}

/* Each record's id, in the order of the lines, against m000.. and then the bad ones. */
static void expect_manifest_order(const char *text, size_t n_items) {
  char want[8];
  size_t i = 0;
  for (const char *line = text; *line; line = strchr(line, '\n') + 1, i++) {
    json_t *o = json_loadb(line, (size_t)(strchr(line, '\n') - line), 0, NULL);
    assert_non_null(o);
    snprintf(want, sizeof want, "m%03zu", i);
    assert_string_equal(json_string_value(json_object_get(o, "id")), i < 298 ? want : i == 298 ? "m005" : "300");
    json_decref(o);
  }
  assert_int_equal(i, n_items);
}

static void submit(const char *manifest, const char *const more[], int want, char jid[80]) {
  const char *args[20] = {"submit", manifest};
  for (int n = 2; more && *more; more++) args[n++] = *more;
  program_result r = ask(want, args);
  snprintf(jid, 80, "%.*s", (int)strcspn(r.out, "\n"), r.out);
  assert_true(strlen(jid) > 0);
  program_clear(&r);
}

static void test_queue_cli_submit_to_results(void **state) {
  (void)state;
  char jid[80];
  begin(2, 200, NULL);
  submit(mixed_manifest(), (const char *const[]){"--wait", NULL}, 3, jid);
  expect(ASK(0, "status", jid), "298 done, 2 failed", NULL);
  expect(ASK(0, "status", "--json"), "\"state\":\"finished\"", NULL);
  expect(ASK(3, "status", jid, "--watch", "--json"), "\"failed\":2", NULL);
  expect(ASK(0, "dead", jid), "was used before", NULL);
  program_result r = ASK(3, "results", jid);
  assert_int_equal(count_lines(r.out), 300);
  program_clear(&r);
  r = ASK(3, "results", jid, "--sorted");
  expect_manifest_order(r.out, 300);
  program_clear(&r);
  expect(ASK(3, "results", jid, "-o", path_of("out"), "--sorted"), NULL, "298 records and 2 errors");
  char *good = slurp(path_of("out/results.jsonl")), *bad = slurp(path_of("out/errors.jsonl"));
  expect_manifest_order(good, 298);
  assert_int_equal(count_lines(bad), 2);
  assert_non_null(strstr(bad, "\"bad-request\""));
  free(good);
  free(bad);
  cluster_check(&c);
  cluster_stop(&c);
}

static void test_queue_cli_key_gives_the_same_job(void **state) {
  (void)state;
  char a[80], b[80], other[80];
  begin(1, 0, NULL);
  const char *manifest = mixed_manifest();
  submit(manifest, (const char *const[]){"--key", "k1", NULL}, 0, a);
  submit(manifest, (const char *const[]){"--key", "k1", NULL}, 0, b);
  submit(manifest, NULL, 0, other);
  assert_string_equal(a, b);
  assert_string_not_equal(a, other);
  expect(ASK(0, "submit", manifest, "--key", "k1", "--json"), "\"existed\":true", NULL);
  expect(ASK(1, "submit", manifest, "--strict"), "", "line 299");
  cluster_wait(&c, a, 30000);
  cluster_wait(&c, other, 30000);
  cluster_stop(&c);
}

static void test_queue_cli_follow_and_cursor(void **state) {
  (void)state;
  char jid[80];
  begin(1, 1000, NULL);
  submit(cluster_manifest("f", 500), NULL, 0, jid);
  const char *cursor = path_of("cursor");
  program_result first = ASK(0, "results", jid, "--cursor", cursor); /* so far */
  program_result rest = ASK(0, "results", jid, "--follow", "--cursor", cursor);
  assert_int_equal(count_lines(first.out) + count_lines(rest.out), 500);
  program_clear(&first);
  program_clear(&rest);
  program_result none = ASK(0, "results", jid, "--cursor", cursor);
  assert_int_equal(none.out_len, 0);
  program_clear(&none);
  expect(ASK(1, "results", "other", "--cursor", cursor), "", "no cursor of job other");
  cluster_stop(&c);
}

static void test_queue_cli_pause_resume_cancel(void **state) {
  (void)state;
  char jid[80];
  begin(1, 2000, NULL);
  submit(cluster_manifest("p", 5000), NULL, 0, jid);
  /* a script whose variable is empty means no job, not all of them */
  for (int i = 0; i < 5; i++) {
    static const char *const about[] = {"pause", "cancel", "status", "results", "replay"};
    expect(ASK(2, about[i], ""), "", "the JOB is empty");
  }
  expect(ASK(2, "drain", ""), "", "the WORKER is empty");
  expect(ASK(0, "pause", jid), "", NULL);
  expect(ASK(0, "status", jid), "paused", NULL);
  expect(ASK(0, "resume", jid), "", NULL);
  expect(ASK(0, "status", jid), "running", NULL);
  expect(ASK(0, "pause"), "", NULL);
  expect(ASK(0, "status"), "PAUSED", NULL);
  expect(ASK(0, "resume"), "", NULL);
  expect(ASK(0, "cancel", jid), "", NULL);
  cluster_wait(&c, jid, 30000);
  expect(ASK(1, "status", jid, "--watch"), "cancelled", NULL);
  expect(ASK(0, "cancel", jid), "", NULL);
  cluster_stop(&c);
}

static void test_queue_cli_dead_and_replay(void **state) {
  (void)state;
  char jid[80];
  begin(1, 0, "bad=0.1");
  submit(cluster_manifest("d", 400), (const char *const[]){"--wait", NULL}, 3, jid);
  program_result dead = ASK(0, "dead", jid, "--json");
  size_t n = count_lines(dead.out);
  assert_true(n > 10 && n < 100);
  assert_non_null(strstr(dead.out, "\"reason\":\"decode\""));
  program_clear(&dead);
  program_result r = ASK(0, "replay", jid, "--reason", "oom");
  assert_string_equal(r.out, "0\n");
  program_clear(&r);
  r = ASK(0, "replay", jid);
  assert_int_equal(atoi(r.out), n);
  program_clear(&r);
  expect(ASK(3, "status", jid, "-w"), "finished", NULL); /* they fail again */
  cluster_check(&c);
  cluster_stop(&c);
}

static void test_queue_cli_workers_and_drain(void **state) {
  (void)state;
  begin(1, 0, NULL);
  program_result r = ASK(0, "workers", "--json");
  json_t *list = json_loads(r.out, 0, NULL);
  assert_int_equal(json_array_size(list), 1);
  char name[80];
  snprintf(name, sizeof name, "%s", json_string_value(json_object_get(json_array_get(list, 0), "worker")));
  json_decref(list);
  program_clear(&r);
  expect(ASK(0, "top", "-n", "1"), name, NULL);
  expect(ASK(0, "drain", name, "--grace", "1"), "", NULL);
  assert_int_equal(daemon_wait(&c.worker[0], 20000), 0);
  expect(ASK(1, "drain", "nobody"), "", "nobody");
  cluster_stop(&c);
}

static void test_queue_cli_lines_on_stdin_need_no_file(void **state) {
  (void)state;
  begin(1, 0, NULL);
  /* program_run gives /dev/null: a manifest without items is refused before anything is sent */
  expect(ASK(1, "submit", "-"), "", "0 items");
  cluster_stop(&c);
}

static void test_queue_cli_refuses_what_is_not_there(void **state) {
  (void)state;
  begin(1, 0, NULL);
  expect(ASK(1, "status", "nosuch"), "", "no such job");
  expect(ASK(1, "results", "nosuch"), "", "no such job");
  expect(ASK(1, "dead", "nosuch"), "", "no such job");
  expect(ASK(1, "cancel", "nosuch"), "", "no such job");
  expect(ASK(1, "replay", "nosuch"), "", "no such job");
  expect(ASK(1, "submit", path_of("nosuch.jsonl")), "", "nosuch.jsonl");
  expect(ASK(2, "submit"), "", "MANIFEST");
  expect(ASK(2, "status", "a", "b"), "", "JOB");
  expect(ASK(2, "cancel"), "", "JOB");
  cluster_stop(&c);
}

static void test_queue_cli_nobody_answers(void **state) {
  (void)state;
  static const char *const commands[][3] = {{"status"},     {"workers"},   {"top"},          {"cancel", "j"},
                                            {"pause", "j"}, {"dead", "j"}, {"results", "j"}, {"drain", "w"}};
  char endpoint[300];
  snprintf(endpoint, sizeof endpoint, "ipc://%s", path_of("nobody"));
  for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
    program_result r = RUN(commands[i][0], "--broker", endpoint, "--timeout", "0.2", commands[i][1]);
    if (r.code != 4) fail_msg("%s: exit code %d: %s", commands[i][0], r.code, r.err);
    expect(r, NULL, endpoint);
  }
}

static void test_queue_cli_interrupted_wait_leaves_the_job(void **state) {
  (void)state;
  char jid[80], key[] = "interrupted";
  begin(1, 3000, NULL);
  daemon_process d;
  daemon_init(&d, "submit",
              (const char *const[]){"submit", "--broker", c.clients, "--wait", "--key", key, cluster_manifest("i", 1000), NULL});
  daemon_start(&d);
  for (int i = 0; i < 200 && !strcmp(redis_say(c.redis, "t", "GET $key:%s", key), "nil"); i++) test_sleep_ms(50);
  test_sleep_ms(300);
  daemon_signal(&d, SIGINT);
  assert_int_equal(daemon_wait(&d, 20000), 130);
  char *log = slurp(d.log);
  assert_non_null(strstr(log, "goes on without this command"));
  snprintf(jid, sizeof jid, "%s", redis_say(c.redis, "t", "GET $key:%s", key));
  assert_non_null(strstr(log, jid)); /* the id was printed at once */
  free(log);
  cluster_wait(&c, jid, 60000);
  cluster_stop(&c);
}

/* ---- Redis by itself ---- */

/* Output of a shell command with the cluster's Redis in its environment. */
static char *shell(const char *format, const char *argument) {
  char command[1024], path[256];
  int n =
      snprintf(command, sizeof command, "cd %s && REDIS_URL=%s REDIS_CLI='redis-cli -s %s' timeout 30 %s/examples/", test_tmp_dir(),
               redis_server_url(c.redis), redis_server_url(c.redis) + strlen("unix://"), getenv("BTCCHAT_SOURCE"));
  snprintf(path, sizeof path, "%s", path_of("shell"));
  snprintf(command + n, sizeof command - (size_t)n, "%s %s > %s 2>&1", format, argument, path);
  if (system(command) != 0) {
    char *said = slurp(path);
    print_error("%s: %s\n", command, said);
    free(said);
    fail_msg("the example failed");
  }
  return slurp(path);
}

static void expect_records(char *text, const char *const ids[]) {
  for (size_t i = 0; ids[i]; i++) {
    char want[64];
    snprintf(want, sizeof want, "\"id\":\"%s\",\"status\":\"ok\"", ids[i]);
    if (!strstr(text, want)) fail_msg("'%s' lacks '%s'", text, want);
  }
  free(text);
}

static void test_queue_cli_examples_feed_and_drain(void **state) {
  (void)state;
  static const char *const ids[] = {"e1", "e2", NULL};
  if (system("command -v python3 > /dev/null && command -v redis-cli > /dev/null") != 0) skip();
  begin(1, 0, NULL);
  free(shell("queue_producer.py t", "e1 a.png b.png"));
  free(shell("queue.sh submit t", "e2 a.png b.png"));
  free(shell("queue.sh submit t", "e2 a.png b.png")); /* the same key: the same item */
  expect_records(shell("queue_consumer.py t", "python 2"), ids);
  expect_records(shell("queue.sh drain t", "shell"), ids);
  char *again = shell("queue.sh drain t", "shell");
  assert_string_equal(again, ""); /* both are acknowledged, and there was no third */
  free(again);
  cluster_stop(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_queue_cli_submit_to_results),
    cmocka_unit_test(test_queue_cli_key_gives_the_same_job),
    cmocka_unit_test(test_queue_cli_follow_and_cursor),
    cmocka_unit_test(test_queue_cli_pause_resume_cancel),
    cmocka_unit_test(test_queue_cli_dead_and_replay),
    cmocka_unit_test(test_queue_cli_workers_and_drain),
    cmocka_unit_test(test_queue_cli_lines_on_stdin_need_no_file),
    cmocka_unit_test(test_queue_cli_refuses_what_is_not_there),
    cmocka_unit_test(test_queue_cli_nobody_answers),
    cmocka_unit_test(test_queue_cli_interrupted_wait_leaves_the_job),
    cmocka_unit_test(test_queue_cli_examples_feed_and_drain),
};
BTC_TEST_MAIN(tests)
