/* The client against a broker that a thread plays: repeating, waiting, refusals, versions, deadlines. */
#define _GNU_SOURCE
#include "test.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#include <zmq.h>

#include "client/client.h"
#include "net/socket.h"

#define MS INT64_C(1000000)

/* What the thread does with the requests it gets, one after the other; the last is repeated. */
typedef enum play {
  PLAY_END,
  PLAY_IGNORE,
  PLAY_BUSY,
  PLAY_OK,
  PLAY_REFUSE,
  PLAY_DENY,
  PLAY_VERSION,
  PLAY_NEWER,
  PLAY_UNKNOWN,
  PLAY_STRANGER,
  PLAY_GARBAGE,
  PLAY_STATUS
} play;

/* What a Submit said, in brief. */
typedef struct submission {
  char key[64];
  uint64_t items, dups;
} submission;

typedef struct fake {
  void *zmq, *router;
  char endpoint[160];
  const play *script;
  pthread_t thread;
  int stop;
  int requests;
  uint64_t first_id;
  bool same_id; /* every request had the number of the first */
  pthread_mutex_t submitted_lock;
  submission submitted; /* the last one */
} fake;

static void reply(fake *f, const btc_message *m, bool ok, const char *jid, const char *text, uint64_t in_reply_to) {
  Btc__Reply r = BTC__REPLY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_REPLY);
  r.in_reply_to = in_reply_to;
  r.ok = ok;
  r.jid = (char *)jid;
  r.message = (char *)text;
  r.count = 3;
  e.reply = &r;
  btc_socket_send(f->router, &m->from, &e, NULL);
}

static void nack(fake *f, const btc_message *m, Btc__NackCode code, const char *text, uint32_t retry_ms) {
  Btc__Nack n = BTC__NACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_NACK);
  n.req_id = m->req_id;
  n.code = code;
  n.message = (char *)text;
  n.retry_ms = retry_ms;
  e.nack = &n;
  btc_socket_send(f->router, &m->from, &e, NULL);
}

static void newer(fake *f, const btc_message *m) {
  Btc__Ack a = BTC__ACK__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_ACK);
  e.ver = e.min_ver = 9;
  e.ack = &a;
  btc_socket_send(f->router, &m->from, &e, NULL);
}

static void status(fake *f, const btc_message *m) {
  Btc__StatusReply s = BTC__STATUS_REPLY__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_STATUS_REPLY);
  s.in_reply_to = m->req_id;
  s.ready = 7;
  e.status_reply = &s;
  btc_socket_send(f->router, &m->from, &e, NULL);
}

static void act(fake *f, const btc_message *m, play p) {
  switch (p) {
    case PLAY_BUSY:
      nack(f, m, BTC__NACK_CODE__NACK_BUSY, "too many jobs", 20);
      break;
    case PLAY_OK:
      reply(f, m, true, "j1", "", m->req_id);
      break;
    case PLAY_REFUSE:
      reply(f, m, false, "", "there is no such job", m->req_id);
      break;
    case PLAY_DENY:
      nack(f, m, BTC__NACK_CODE__NACK_DENIED, "only an admin", 0);
      break;
    case PLAY_VERSION:
      nack(f, m, BTC__NACK_CODE__NACK_VERSION, "too old", 0);
      break;
    case PLAY_UNKNOWN:
      nack(f, m, BTC__NACK_CODE__NACK_UNKNOWN, "", 0);
      break;
    case PLAY_NEWER:
      newer(f, m);
      break;
    case PLAY_STATUS:
      status(f, m);
      break;
    case PLAY_STRANGER: /* an answer to something else, then the right one */
      reply(f, m, false, "", "not for you", m->req_id + 1);
      reply(f, m, true, "j2", "", m->req_id);
      break;
    case PLAY_GARBAGE:
      zmq_send(f->router, m->from.bytes, m->from.len, ZMQ_SNDMORE);
      zmq_send(f->router, "\xff\xff", 2, 0);
      reply(f, m, true, "j3", "", m->req_id);
      break;
    default:
      break;
  }
}

static void note(fake *f, const btc_message *m) {
  if (!f->requests++) f->first_id = m->req_id, f->same_id = true;
  if (m->req_id != f->first_id) f->same_id = false;
  if (!m->envelope || m->envelope->body_case != BTC__ENVELOPE__BODY_SUBMIT) return;
  pthread_mutex_lock(&f->submitted_lock);
  snprintf(f->submitted.key, sizeof f->submitted.key, "%s", m->envelope->submit->key);
  f->submitted.items = m->envelope->submit->manifest_items + m->envelope->submit->n_items;
  f->submitted.dups = m->envelope->submit->n_duplicates;
  pthread_mutex_unlock(&f->submitted_lock);
}

/* What the last submission said. The client repeats itself while the broker is slow, so one may still come in. */
static submission last_submission(fake *f) {
  pthread_mutex_lock(&f->submitted_lock);
  submission s = f->submitted;
  pthread_mutex_unlock(&f->submitted_lock);
  return s;
}

static void *broker_thread(void *ctx) {
  fake *f = ctx;
  while (!__atomic_load_n(&f->stop, __ATOMIC_RELAXED)) {
    btc_message m;
    zmq_pollitem_t item = {.socket = f->router, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, 10);
    while (btc_socket_take(f->router, true, NULL, &m)) {
      note(f, &m);
      act(f, &m, *f->script);
      if (f->script[1] != PLAY_END) f->script++;
      btc_message_clear(&m);
    }
  }
  return NULL;
}

static int n_fakes;

static void start(fake *f, const play *script) {
  btc_error err;
  *f = (fake){.zmq = zmq_ctx_new(), .script = script, .submitted_lock = PTHREAD_MUTEX_INITIALIZER};
  snprintf(f->endpoint, sizeof f->endpoint, "ipc://%s/b%d", test_tmp_dir(), n_fakes++);
  if (btc_socket_bind_router(f->zmq, f->endpoint, NULL, 100, &f->router, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(pthread_create(&f->thread, NULL, broker_thread, f), 0);
}

static void stop(fake *f) {
  __atomic_store_n(&f->stop, 1, __ATOMIC_RELAXED);
  pthread_join(f->thread, NULL);
  btc_socket_close(&f->router);
  zmq_ctx_term(f->zmq);
  pthread_mutex_destroy(&f->submitted_lock);
}

static btc_client *client(const char *brokers, int64_t timeout_ms) {
  btc_client_options o = btc_client_options_default();
  btc_client *c;
  btc_error err;
  o.brokers = brokers;
  o.timeout_ms = timeout_ms;
  if (btc_client_open(&o, &c, &err) != BTC_OK) fail_msg("%s", err.message);
  return c;
}

static btc_status pause_job(btc_client *c, uint64_t *count, btc_error *err) {
  return btc_client_command(c, BTC__VERB__VERB_PAUSE, "j1", NULL, count, err);
}

static void expect(const play *script, btc_status want, const char *text, int requests) {
  fake f;
  btc_error err = {0};
  start(&f, script);
  btc_client *c = client(f.endpoint, 5000);
  assert_int_equal(pause_job(c, NULL, &err), want);
  if (text && !strstr(err.message, text)) fail_msg("'%s' lacks '%s'", err.message, text);
  assert_false(btc_client_unreachable(c));
  btc_client_close(&c);
  assert_null(c);
  stop(&f);
  if (f.requests < requests) fail_msg("%d requests, %d expected", f.requests, requests);
  assert_true(f.same_id);
}

static void test_client_repeats_until_answered(void **state) {
  (void)state;
  static const play script[] = {PLAY_IGNORE, PLAY_IGNORE, PLAY_OK, PLAY_END};
  fake f;
  uint64_t count = 0;
  btc_error err;
  start(&f, script);
  btc_client *c = client(f.endpoint, 20000);
  int64_t begin = btc_now_ns();
  assert_int_equal(pause_job(c, &count, &err), BTC_OK);
  assert_true(btc_now_ns() - begin >= 1500 * MS); /* 0.5 s, then 1 s */
  assert_int_equal(count, 3);
  btc_client_close(&c);
  stop(&f);
  assert_int_equal(f.requests, 3);
  assert_true(f.same_id);
}

static void test_client_waits_while_busy(void **state) {
  (void)state;
  static const play script[] = {PLAY_BUSY, PLAY_BUSY, PLAY_OK, PLAY_END};
  expect(script, BTC_OK, NULL, 3);
}

static void test_client_busy_until_the_deadline(void **state) {
  (void)state;
  static const play script[] = {PLAY_BUSY, PLAY_END};
  fake f;
  btc_error err;
  start(&f, script);
  btc_client *c = client(f.endpoint, 300);
  assert_int_equal(pause_job(c, NULL, &err), BTC_ERR_LIMIT);
  assert_non_null(strstr(err.message, "too many jobs"));
  assert_false(btc_client_unreachable(c)); /* somebody answered */
  btc_client_close(&c);
  stop(&f);
}

static void test_client_refusals(void **state) {
  (void)state;
  static const play refuse[] = {PLAY_REFUSE, PLAY_END}, deny[] = {PLAY_DENY, PLAY_END}, unknown[] = {PLAY_UNKNOWN, PLAY_END};
  expect(refuse, BTC_ERR_NOT_FOUND, "no such job", 1);
  expect(deny, BTC_ERR_IO, "only an admin", 1);
  expect(unknown, BTC_ERR_UNSUPPORTED, "another version", 1);
}

static void test_client_other_versions(void **state) {
  (void)state;
  static const play old[] = {PLAY_VERSION, PLAY_END}, future[] = {PLAY_NEWER, PLAY_END};
  expect(old, BTC_ERR_UNSUPPORTED, "too old", 1);
  expect(future, BTC_ERR_UNSUPPORTED, "version 9", 1);
}

static void test_client_wrong_kind_of_answer(void **state) {
  (void)state;
  static const play script[] = {PLAY_STATUS, PLAY_END};
  expect(script, BTC_ERR_UNSUPPORTED, "status_reply", 1);
}

static void test_client_ignores_what_is_not_its_answer(void **state) {
  (void)state;
  static const play stranger[] = {PLAY_STRANGER, PLAY_END}, garbage[] = {PLAY_GARBAGE, PLAY_END};
  expect(stranger, BTC_OK, NULL, 1);
  expect(garbage, BTC_OK, NULL, 1);
}

static void test_client_nobody_there(void **state) {
  (void)state;
  char endpoint[160];
  btc_error err;
  snprintf(endpoint, sizeof endpoint, "ipc://%s/nobody", test_tmp_dir());
  btc_client *c = client(endpoint, 200);
  int64_t begin = btc_now_ns();
  assert_int_equal(pause_job(c, NULL, &err), BTC_ERR_IO);
  assert_true(btc_now_ns() - begin >= 200 * MS);
  assert_true(btc_client_unreachable(c));
  assert_non_null(strstr(err.message, endpoint));
  btc_client_close(&c);
}

static void test_client_goes_to_the_next_broker(void **state) {
  (void)state;
  static const play script[] = {PLAY_OK, PLAY_END}, deaf[] = {PLAY_IGNORE, PLAY_END};
  fake silent, good;
  char list[400];
  btc_error err;
  start(&silent, deaf);
  start(&good, script);
  snprintf(list, sizeof list, "%s, %s", silent.endpoint, good.endpoint);
  btc_client *c = client(list, 30000);
  assert_int_equal(pause_job(c, NULL, &err), BTC_OK);
  assert_int_equal(pause_job(c, NULL, &err), BTC_OK); /* and stays there */
  btc_client_close(&c);
  stop(&silent);
  stop(&good);
  assert_true(silent.requests >= 1);
  assert_int_equal(good.requests, 2);
}

static void test_client_can_be_interrupted(void **state) {
  (void)state;
  static volatile int cancel = 1;
  btc_client_options o = btc_client_options_default();
  btc_client *c;
  btc_error err;
  o.cancel = &cancel;
  assert_int_equal(btc_client_open(&o, &c, &err), BTC_OK);
  assert_int_equal(pause_job(c, NULL, &err), BTC_ERR_CANCELLED);
  btc_client_close(&c);
}

static void test_client_bad_options(void **state) {
  (void)state;
  btc_client_options o = btc_client_options_default();
  btc_client *c;
  btc_error err;
  o.brokers = " ,";
  assert_int_equal(btc_client_open(&o, &c, &err), BTC_ERR_ARG);
  o.brokers = "tcp://127.0.0.1:7411,tcp://192.0.2.1:7411";
  assert_int_equal(btc_client_open(&o, &c, &err), BTC_ERR_ARG);
  assert_non_null(strstr(err.message, "keygen"));
  o = btc_client_options_default();
  o.keys = "x.key";
  assert_int_equal(btc_client_open(&o, &c, &err), BTC_ERR_ARG);
  assert_non_null(strstr(err.message, "--server-key"));
  assert_null(c);
}

/* ---- submit ---- */

static void write_lines(const char *path, int n, bool twice) {
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  for (int i = 0; i < n; i++) fprintf(f, "{\"id\":\"%d\",\"before\":\"a.png\",\"after\":\"b.png\"}\n", twice ? i / 2 : i);
  fclose(f);
}

static void test_client_submits_a_manifest(void **state) {
  (void)state;
  static const play script[] = {PLAY_IGNORE, PLAY_OK, PLAY_END};
  char path[160], jid[BTC_CLIENT_JID], hex[65];
  fake f;
  submission first, again;
  bool existed;
  btc_error err;
  btc_manifest_summary m;
  uint8_t *data;
  size_t len;
  snprintf(path, sizeof path, "%s/m.jsonl", test_tmp_dir());
  write_lines(path, 10, true);
  assert_int_equal(btc_manifest_digest(path, NULL, &m, &err), BTC_OK);
  assert_int_equal(m.items, 10);
  assert_int_equal(m.bad, 5);
  assert_int_equal(m.n_duplicates, 5);
  assert_int_equal(m.duplicates[0], 1);
  assert_non_null(strstr(m.problem, "line 2"));
  assert_int_equal(btc_file_read(path, 1 << 20, &data, &len, &err), BTC_OK);
  btc_sha256_hex(data, len, hex);
  assert_string_equal(m.sha256, hex);
  free(data);
  start(&f, script);
  btc_client *c = client(f.endpoint, 20000);
  assert_int_equal(btc_client_submit(c, &(btc_submission){.manifest = &m}, jid, &existed, &err), BTC_OK);
  assert_string_equal(jid, "j1");
  first = last_submission(&f);
  assert_true(strlen(first.key) == 33); /* made up, so that the repetition made no second job */
  assert_true(first.items == 10 && first.dups == 5);
  assert_int_equal(btc_client_submit(c, &(btc_submission){.manifest = &m, .key = "mine"}, jid, &existed, &err), BTC_OK);
  again = last_submission(&f);
  assert_string_equal(again.key, "mine");
  assert_int_equal(btc_client_submit(c, &(btc_submission){.manifest = &m}, jid, &existed, &err), BTC_OK);
  again = last_submission(&f);
  assert_string_not_equal(again.key, first.key);
  assert_int_equal(btc_client_submit(c, &(btc_submission){.manifest = NULL}, jid, &existed, &err), BTC_ERR_ARG);
  btc_client_close(&c);
  stop(&f);
  btc_manifest_summary_free(&m);
}

static void test_client_bounds_duplicates(void **state) {
  (void)state;
  char path[160];
  btc_error err;
  btc_manifest_summary m;
  snprintf(path, sizeof path, "%s/many.jsonl", test_tmp_dir());
  write_lines(path, 20002, true);
  assert_int_equal(btc_manifest_digest(path, NULL, &m, &err), BTC_ERR_LIMIT);
  btc_manifest_summary_free(&m);
  assert_int_equal(btc_manifest_digest(path, &(btc_manifest_digest_options){.strict = true}, &m, &err), BTC_ERR_FORMAT);
  btc_manifest_summary_free(&m);
  write_lines(path, 0, false);
  assert_int_equal(btc_manifest_digest(path, NULL, &m, &err), BTC_ERR_ARG);
  btc_manifest_summary_free(&m);
  assert_int_equal(btc_manifest_digest("/dev/null", NULL, &m, &err), BTC_ERR_ARG);
  btc_manifest_summary_free(&m);
  assert_int_equal(btc_manifest_digest("/no/such", NULL, &m, &err), BTC_ERR_NOT_FOUND);
  btc_manifest_summary_free(&m);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_client_repeats_until_answered),
    cmocka_unit_test(test_client_waits_while_busy),
    cmocka_unit_test(test_client_busy_until_the_deadline),
    cmocka_unit_test(test_client_refusals),
    cmocka_unit_test(test_client_other_versions),
    cmocka_unit_test(test_client_wrong_kind_of_answer),
    cmocka_unit_test(test_client_ignores_what_is_not_its_answer),
    cmocka_unit_test(test_client_nobody_there),
    cmocka_unit_test(test_client_goes_to_the_next_broker),
    cmocka_unit_test(test_client_can_be_interrupted),
    cmocka_unit_test(test_client_bad_options),
    cmocka_unit_test(test_client_submits_a_manifest),
    cmocka_unit_test(test_client_bounds_duplicates),
};
BTC_TEST_MAIN(tests)
