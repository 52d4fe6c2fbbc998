/* Keys: files, allow-lists, and who gets in over a real CURVE connection. */
#define _GNU_SOURCE
#include "test.h"

#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#include "net/keys.h"
#include "net/socket.h"

#define MS INT64_C(1000000)
enum { PATIENCE_MS = 10000, SILENCE_MS = 400 };

static const char *in_tmp(const char *name) {
  static char path[4][512];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", test_tmp_dir(), name);
  return path[turn];
}

static const char *write_text(const char *name, const char *text) {
  const char *path = in_tmp(name);
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  assert_true(fputs(text, f) >= 0);
  assert_int_equal(fclose(f), 0);
  return path;
}

static void make(const char *name, char public_key[41]) {
  btc_error err;
  if (btc_keys_generate(in_tmp(name), public_key, &err) != BTC_OK) fail_msg("%s", err.message);
}

static btc_keys *load(const char *own, const char *server_pub, const char *allow) {
  btc_keys *k;
  btc_error err;
  if (btc_keys_load(in_tmp(own), server_pub ? in_tmp(server_pub) : NULL, allow, &k, &err) != BTC_OK) fail_msg("%s", err.message);
  return k;
}

/* ---- files ---- */

static void test_keys_generate_writes_a_pair(void **state) {
  (void)state;
  char key[41], again[41];
  struct stat sb;
  btc_error err;
  make("pair", key);
  assert_int_equal(strlen(key), 40);
  assert_int_equal(stat(in_tmp("pair.key"), &sb), 0);
  assert_int_equal(sb.st_mode & 0777, 0600);
  btc_keys *k = load("pair.key", "pair.pub", NULL);
  assert_string_equal(btc_keys_public(k), key);
  btc_keys_destroy(&k);
  assert_null(k);
  assert_int_equal(btc_keys_generate(in_tmp("pair"), again, &err), BTC_ERR_ARG); /* never overwritten */
  assert_non_null(strstr(err.message, "pair.pub"));
  unlink(in_tmp("pair.pub"));
  assert_int_equal(btc_keys_generate(in_tmp("pair"), again, &err), BTC_ERR_ARG);
  assert_int_equal(btc_keys_generate(in_tmp("no/such/folder"), again, &err), BTC_ERR_NOT_FOUND);
}

static void expect_refused(const char *own, const char *server_pub, const char *allow, btc_status want, const char *text) {
  btc_keys *k;
  btc_error err = {0};
  assert_int_equal(btc_keys_load(own, server_pub, allow, &k, &err), want);
  assert_null(k);
  if (!strstr(err.message, text)) fail_msg("'%s' lacks '%s'", err.message, text);
}

static void test_keys_secret_must_be_private(void **state) {
  (void)state;
  char key[41];
  make("open", key);
  assert_int_equal(chmod(in_tmp("open.key"), 0640), 0);
  expect_refused(in_tmp("open.key"), NULL, NULL, BTC_ERR_IO, "chmod 600");
}

static void test_keys_bad_files(void **state) {
  (void)state;
  char a[41], b[41], text[256];
  make("bad_a", a);
  make("bad_b", b);
  expect_refused(in_tmp("none.key"), NULL, NULL, BTC_ERR_NOT_FOUND, "none.key");
  const char *junk = write_text("junk.key", "hello\n");
  chmod(junk, 0600);
  expect_refused(junk, NULL, NULL, BTC_ERR_FORMAT, "keygen");
  expect_refused(in_tmp("bad_a.key"), in_tmp("bad_b.key"), NULL, BTC_ERR_FORMAT, ".pub file belongs here");
  expect_refused(in_tmp("bad_a.key"), junk, NULL, BTC_ERR_FORMAT, "not a public key");
  /* another's public half beside our secret one */
  uint8_t *data;
  size_t len;
  assert_int_equal(btc_file_read(in_tmp("bad_a.key"), 4096, &data, &len, NULL), BTC_OK);
  const char *secret = strstr((char *)data, "secret ") ? strstr((char *)data, "\nsecret ") + 1 : "";
  snprintf(text, sizeof text, "public %s\n%s", b, secret);
  free(data);
  const char *mixed = write_text("mixed.key", text);
  chmod(mixed, 0600);
  expect_refused(mixed, NULL, NULL, BTC_ERR_FORMAT, "does not belong");
}

/* ---- the allow-list ---- */

static void test_keys_allow_list_errors_name_the_line(void **state) {
  (void)state;
  static const char good[] = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
  static const struct {
    const char *format, *want;
  } bad[] = {
      {"# comment\n\n%s client\n", "line 3: a line is"},
      {"%s boss anna\n", "line 1: the role"},
      {"%s client an/na\n", "line 1: the name"},
      {"%s client anna x\n", "line 1: behind the name only"},
      {"%s client anna tenants=a,,b\n", "line 1: tenants="},
      {"%s client anna tenants=\n", "line 1: tenants="},
      {"%s client anna tenants=a tenants=b\n", "line 1: behind the name only"},
      {"%s client anna priorities=1,\n", "line 1: priorities="},
      {"%s client anna priorities=3\n", "line 1: priorities="},
      {"%s client anna tenants=a priorities=12\n", "line 1: priorities="},
      {"short client anna # %s\n", "line 1: the first word"},
      {"%s client anna\n%s worker bert\n", "is there twice"},
  };
  char key[41], text[512];
  make("listed", key);
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(text, sizeof text, bad[i].format, good, good);
#pragma GCC diagnostic pop
    expect_refused(in_tmp("listed.key"), NULL, write_text("list", text), BTC_ERR_FORMAT, bad[i].want);
  }
  expect_refused(in_tmp("listed.key"), NULL, in_tmp("nolist"), BTC_ERR_NOT_FOUND, "nolist");
}

static void test_keys_limits_tenants_and_priorities(void **state) {
  (void)state;
  char a[41], b[41], c[41], text[512];
  make("limited", a);
  make("narrow", b);
  make("free", c);
  snprintf(text, sizeof text,
           "%s client anna tenants=north,south priorities=1,2\n%s client bert tenants=north # all\n%s admin carl\n", a, b, c);
  btc_keys *k = load("limited.key", NULL, write_text("limits", text));
  assert_true(btc_keys_may_submit(k, a, "north", 1));
  assert_true(btc_keys_may_submit(k, a, "south", 2));
  assert_false(btc_keys_may_submit(k, a, "south", 0));
  assert_false(btc_keys_may_submit(k, a, "sout", 1));
  assert_false(btc_keys_may_submit(k, a, "southern", 1));
  assert_false(btc_keys_may_submit(k, a, "", 1));
  assert_true(btc_keys_may_submit(k, b, "north", 0));
  assert_false(btc_keys_may_submit(k, b, "default", 1));
  assert_true(btc_keys_may_submit(k, c, "default", 0));
  assert_true(btc_keys_may_see(k, a, "south")); /* priorities limit submissions only */
  assert_false(btc_keys_may_see(k, b, "south"));
  assert_true(btc_keys_may_see(k, c, "south"));
  assert_true(btc_keys_is_limited(k, a) && btc_keys_is_limited(k, b) && !btc_keys_is_limited(k, c));
  assert_false(btc_keys_may_submit(k, "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "north", 1));
  snprintf(text, sizeof text, "%s client anna\n", a);
  write_text("limits", text);
  btc_error err;
  assert_int_equal(btc_keys_reload(k, &err), BTC_OK);
  assert_true(btc_keys_may_submit(k, a, "west", 0));
  btc_keys_destroy(&k);
}

static void test_keys_roles_and_reload(void **state) {
  (void)state;
  char own[41], a[41], b[41], text[512], name[65];
  btc_error err;
  make("server", own);
  make("anna", a);
  make("bert", b);
  snprintf(text, sizeof text, "# who may\n%s client anna # a colleague\r\n\n  %s\tworker  bert\n", a, b);
  btc_keys *k = load("server.key", NULL, write_text("roles", text));
  assert_int_equal(btc_keys_role(k, a), BTC_ROLE_CLIENT);
  assert_int_equal(btc_keys_role(k, b), BTC_ROLE_WORKER);
  assert_int_equal(btc_keys_role(k, own), BTC_ROLE_NONE);
  assert_int_equal(btc_keys_role(k, ""), BTC_ROLE_NONE);
  assert_string_equal(btc_keys_name(k, b, name, sizeof name), "bert");
  assert_null(btc_keys_name(k, own, name, sizeof name));
  snprintf(text, sizeof text, "%s admin anna\n", a);
  write_text("roles", text);
  assert_int_equal(btc_keys_reload(k, &err), BTC_OK);
  assert_int_equal(btc_keys_role(k, a), BTC_ROLE_ADMIN);
  assert_int_equal(btc_keys_role(k, b), BTC_ROLE_NONE);
  write_text("roles", "nonsense\n");
  assert_int_equal(btc_keys_reload(k, &err), BTC_ERR_FORMAT);
  assert_int_equal(btc_keys_role(k, a), BTC_ROLE_ADMIN); /* the old list stays */
  btc_keys_destroy(&k);
  assert_string_equal(btc_role_text(BTC_ROLE_WORKER), "worker");
}

/* ---- over a connection ---- */

typedef struct server {
  void *zmq, *router;
  btc_keys *keys;
  btc_zap *zap;
  char endpoint[64];
} server;

static void start(server *s, const char *own, const char *allow, bool with_zap) {
  btc_error err;
  *s = (server){.zmq = zmq_ctx_new(), .keys = load(own, NULL, allow)};
  if (with_zap && btc_zap_start(s->zmq, s->keys, &s->zap, &err) != BTC_OK) fail_msg("%s", err.message);
  if (btc_socket_bind_router(s->zmq, "tcp://127.0.0.1:*", s->keys, 10, &s->router, &err) != BTC_OK) fail_msg("%s", err.message);
  btc_socket_endpoint(s->router, s->endpoint, sizeof s->endpoint);
}

static void stop(server *s) {
  btc_socket_close(&s->router);
  btc_zap_stop(&s->zap);
  assert_null(s->zap);
  zmq_ctx_term(s->zmq);
  btc_keys_destroy(&s->keys);
}

/* Sends a Bye with these keys (NULL: none) and says whether it arrived, and as what, within a time. */
static bool arrives(server *s, const btc_keys *client, btc_message *m, int wait_ms) {
  void *zmq = zmq_ctx_new(), *d;
  btc_error err;
  if (btc_socket_connect_dealer(zmq, s->endpoint, client, 10, &d, &err) != BTC_OK) fail_msg("%s", err.message);
  Btc__Bye bye = BTC__BYE__INIT;
  Btc__Envelope e = btc_wire_envelope(BTC__ENVELOPE__BODY_BYE);
  e.bye = &bye;
  bool sent = false, got = false;
  for (int64_t end = btc_now_ns() + wait_ms * MS; !got && btc_now_ns() < end;) {
    sent = sent || btc_socket_send(d, NULL, &e, NULL) == BTC_OK;
    zmq_pollitem_t item = {.socket = s->router, .events = ZMQ_POLLIN};
    zmq_poll(&item, 1, 5);
    got = btc_socket_take(s->router, true, s->keys, m);
  }
  btc_socket_close(&d);
  zmq_ctx_term(zmq);
  return got;
}

static const char *allow_list(const char *key, const char *role) {
  char text[256];
  snprintf(text, sizeof text, "%s %s anna\n", key, role);
  return write_text("allow", text);
}

static void test_keys_listed_key_gets_in_with_its_role(void **state) {
  (void)state;
  char own[41], a[41];
  make("s1", own);
  make("c1", a);
  server s;
  start(&s, "s1.key", allow_list(a, "worker"), true);
  btc_keys *client = load("c1.key", "s1.pub", NULL);
  btc_message m;
  assert_true(arrives(&s, client, &m, PATIENCE_MS));
  assert_string_equal(m.key, a);
  assert_int_equal(m.role, BTC_ROLE_WORKER);
  btc_message_clear(&m);
  btc_keys_destroy(&client);
  stop(&s);
}

static void test_keys_unlisted_key_is_kept_out_until_reload(void **state) {
  (void)state;
  char own[41], a[41], b[41];
  make("s2", own);
  make("c2", a);
  make("d2", b);
  server s;
  start(&s, "s2.key", allow_list(a, "client"), true);
  btc_keys *client = load("d2.key", "s2.pub", NULL);
  btc_message m;
  assert_false(arrives(&s, client, &m, SILENCE_MS));
  allow_list(b, "client");
  assert_int_equal(btc_keys_reload(s.keys, NULL), BTC_OK);
  assert_true(arrives(&s, client, &m, PATIENCE_MS));
  btc_message_clear(&m);
  btc_keys_destroy(&client);
  stop(&s);
}

static void test_keys_wrong_server_key_and_plain_client_are_kept_out(void **state) {
  (void)state;
  char own[41], a[41];
  make("s3", own);
  make("c3", a);
  server s;
  start(&s, "s3.key", allow_list(a, "client"), true);
  btc_keys *client = load("c3.key", "c3.pub", NULL); /* takes itself for the server */
  btc_message m;
  assert_false(arrives(&s, client, &m, SILENCE_MS));
  assert_false(arrives(&s, NULL, &m, SILENCE_MS));
  btc_keys_destroy(&client);
  stop(&s);
}

/* A key taken off the list loses its rights at the next message, though its connection stays. */
static void test_keys_revoked_while_connected(void **state) {
  (void)state;
  char own[41], a[41];
  make("s4", own);
  make("c4", a);
  server s;
  start(&s, "s4.key", allow_list(a, "client"), true);
  btc_keys *client = load("c4.key", "s4.pub", NULL);
  btc_message m;
  assert_true(arrives(&s, client, &m, PATIENCE_MS));
  btc_message_clear(&m);
  assert_int_equal(btc_keys_role(s.keys, a), BTC_ROLE_CLIENT);
  write_text("allow", "# nobody\n");
  assert_int_equal(btc_keys_reload(s.keys, NULL), BTC_OK);
  assert_int_equal(btc_keys_role(s.keys, a), BTC_ROLE_NONE);
  assert_false(arrives(&s, client, &m, SILENCE_MS));
  btc_keys_destroy(&client);
  stop(&s);
}

/* Without the ZAP thread libzmq asks nobody; such a peer must have no role. */
static void test_keys_without_handler_nobody_has_a_role(void **state) {
  (void)state;
  char own[41], a[41];
  make("s5", own);
  make("c5", a);
  server s;
  start(&s, "s5.key", allow_list(a, "admin"), false);
  btc_keys *client = load("c5.key", "s5.pub", NULL);
  btc_message m;
  if (arrives(&s, client, &m, SILENCE_MS)) {
    assert_int_equal(m.role, BTC_ROLE_NONE);
    btc_message_clear(&m);
  }
  btc_keys_destroy(&client);
  stop(&s);
}

static void test_keys_client_needs_the_server_key(void **state) {
  (void)state;
  char a[41];
  make("c6", a);
  btc_keys *client = load("c6.key", NULL, NULL);
  void *zmq = zmq_ctx_new(), *d;
  btc_error err;
  assert_int_equal(btc_socket_connect_dealer(zmq, "tcp://127.0.0.1:9", client, 10, &d, &err), BTC_ERR_ARG);
  assert_non_null(strstr(err.message, "--server-key"));
  zmq_ctx_term(zmq);
  btc_keys_destroy(&client);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_keys_generate_writes_a_pair),
    cmocka_unit_test(test_keys_secret_must_be_private),
    cmocka_unit_test(test_keys_bad_files),
    cmocka_unit_test(test_keys_allow_list_errors_name_the_line),
    cmocka_unit_test(test_keys_limits_tenants_and_priorities),
    cmocka_unit_test(test_keys_roles_and_reload),
    cmocka_unit_test(test_keys_listed_key_gets_in_with_its_role),
    cmocka_unit_test(test_keys_unlisted_key_is_kept_out_until_reload),
    cmocka_unit_test(test_keys_wrong_server_key_and_plain_client_are_kept_out),
    cmocka_unit_test(test_keys_revoked_while_connected),
    cmocka_unit_test(test_keys_without_handler_nobody_has_a_role),
    cmocka_unit_test(test_keys_client_needs_the_server_key),
};
BTC_TEST_MAIN(tests)
