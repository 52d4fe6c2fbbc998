/* Links between ranks: frames whole or not at all, strangers and old epochs kept out, every wait over in time. */
#define _GNU_SOURCE
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "worker/link.h"
#include "worker/shard_post.h"

enum { SOON_MS = 150, PATIENCE_MS = 60000, VERSION = 2 /* of the links */ };

static btc_link_wait within(int ms) {
  return (btc_link_wait){.deadline_ns = btc_now_ns() + (int64_t)ms * 1000000};
}

static btc_link_id some_id(uint64_t epoch) {
  btc_link_id id = {.epoch = epoch, .from = 1, .to = 2, .ranks = 3};
  memset(id.secret, 7, sizeof id.secret);
  return id;
}

/* ---- two ends ---- */

typedef struct joining {
  int port;
  btc_link_id id;
  btc_link_limits limits;
  btc_link *link;
  btc_status status;
  btc_error err;
} joining;

static void *join(void *ctx) {
  joining *j = ctx;
  btc_link_wait w = within(PATIENCE_MS);
  j->status = btc_link_connect("127.0.0.1", j->port, &j->id, &j->limits, &w, &j->link, &j->err);
  return NULL;
}

typedef struct two {
  btc_link *out, *in; /* out sends to in */
  btc_status accepted;
  joining joined;
  btc_error err;
} two;

static void open_two(two *t, const btc_link_id *server, const btc_link_id *client, const btc_link_limits *l, int ms) {
  pthread_t thread;
  int fd;
  memset(t, 0, sizeof *t);
  t->joined.id = *client;
  t->joined.limits = *l;
  assert_int_equal(btc_link_listen("127.0.0.1", &fd, &t->joined.port, &t->err), BTC_OK);
  assert_int_equal(pthread_create(&thread, NULL, join, &t->joined), 0);
  btc_link_wait w = within(ms);
  t->accepted = btc_link_accept(fd, server, l, &w, &t->in, &t->err);
  close(fd);
  pthread_join(thread, NULL);
  t->out = t->joined.link;
}

static void close_two(two *t) {
  btc_link_close(&t->out);
  btc_link_close(&t->in);
}

static void good_two(two *t, const btc_link_limits *l) {
  btc_link_id id = some_id(5);
  open_two(t, &id, &id, l, PATIENCE_MS);
  if (t->accepted != BTC_OK || t->joined.status != BTC_OK) fail_msg("%s / %s", t->err.message, t->joined.err.message);
}

static uint8_t *noise(size_t n, uint32_t seed) {
  uint8_t *p = malloc(n + 1);
  assert_non_null(p);
  for (size_t i = 0; i < n; i++) p[i] = (uint8_t)((seed = seed * 1664525u + 1013904223u) >> 24);
  return p;
}

typedef struct sending {
  btc_link *link;
  const uint8_t *data;
  size_t bytes;
  int frames;
  btc_status status;
} sending;

static void *send_frames(void *ctx) {
  sending *s = ctx;
  for (int i = 0; i < s->frames && s->status == BTC_OK; i++) {
    size_t first = s->bytes / 3;
    btc_link_part parts[] = {{s->data, first}, {s->data + first, s->bytes - first}};
    btc_link_wait w = within(PATIENCE_MS);
    s->status = btc_link_send(s->link, &(btc_link_head){.step = (uint64_t)i + 1, .kind = 3}, parts, 2, &w, NULL);
  }
  return NULL;
}

static void test_link_carries_frames_of_any_size(void **state) {
  (void)state;
  static const size_t sizes[] = {0, 1, 7, 48, 4096, 65537, 9000001};
  two t;
  btc_link_limits l = btc_link_limits_default();
  good_two(&t, &l);
  for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
    pthread_t thread;
    uint8_t *data = noise(sizes[i], (uint32_t)i);
    sending s = {.link = t.out, .data = data, .bytes = sizes[i], .frames = 3};
    assert_int_equal(pthread_create(&thread, NULL, send_frames, &s), 0);
    for (uint64_t step = 1; step <= 3; step++) {
      btc_link_head h;
      const uint8_t *got;
      size_t bytes;
      btc_error err;
      btc_link_wait w = within(PATIENCE_MS);
      if (btc_link_receive(t.in, &h, &got, &bytes, &w, &err) != BTC_OK) fail_msg("%s", err.message);
      assert_int_equal(h.step, step);
      assert_int_equal(h.kind, 3);
      assert_int_equal(bytes, sizes[i]);
      if (bytes) assert_memory_equal(got, data, bytes);
    }
    pthread_join(thread, NULL);
    assert_int_equal(s.status, BTC_OK);
    free(data);
  }
  close_two(&t);
}

static void test_link_frame_over_the_bound_is_refused(void **state) {
  (void)state;
  two t;
  btc_link_limits l = btc_link_limits_default();
  l.max_bytes = 1000;
  good_two(&t, &l);
  uint8_t *data = noise(1001, 1);
  btc_error err;
  btc_link_wait w = within(PATIENCE_MS);
  assert_int_equal(btc_link_send(t.out, &(btc_link_head){.step = 1}, &(btc_link_part){data, 1001}, 1, &w, &err), BTC_ERR_LIMIT);
  assert_int_equal(btc_link_send(t.out, &(btc_link_head){.step = 1}, &(btc_link_part){data, 1000}, 1, &w, &err), BTC_OK);
  free(data);
  close_two(&t);
}

/* ---- bytes that are not as they should be: a link's own bytes, changed on the way ---- */

/* One frame of `bytes` as it leaves: the sender's socket is swapped for a pipe end that the test reads. */
static size_t recorded(two *t, size_t bytes, uint8_t *wire, size_t room) {
  int pair[2];
  uint8_t *data = noise(bytes, 9);
  btc_link_wait w = within(PATIENCE_MS);
  assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
  int saved = dup(btc_link_fd(t->out));
  dup2(pair[0], btc_link_fd(t->out));
  assert_int_equal(btc_link_send(t->out, &(btc_link_head){.step = 1, .kind = 1}, &(btc_link_part){data, bytes}, 1, &w, NULL),
                   BTC_OK);
  dup2(saved, btc_link_fd(t->out));
  ssize_t n = read(pair[1], wire, room);
  assert_true(n > 0);
  close(saved);
  close(pair[0]);
  close(pair[1]);
  free(data);
  return (size_t)n;
}

static btc_status receive_within(btc_link *l, int ms, btc_error *err) {
  btc_link_head h;
  const uint8_t *data;
  size_t bytes;
  btc_link_wait w = within(ms);
  return btc_link_receive(l, &h, &data, &bytes, &w, err);
}

static void test_link_damage_anywhere_is_seen(void **state) {
  (void)state;
  uint8_t wire[200];
  btc_link_limits l = btc_link_limits_default();
  l.frame_ms = SOON_MS;
  two t;
  good_two(&t, &l);
  size_t n = recorded(&t, 60, wire, sizeof wire);
  close_two(&t);
  assert_int_equal(n, 48 + 60);
  for (size_t at = 0; at < n; at += at < 48 ? 1 : 7) {
    btc_error err = {0};
    good_two(&t, &l);
    wire[at] ^= 0x10;
    assert_int_equal(send(btc_link_fd(t.out), wire, n, 0), n);
    wire[at] ^= 0x10;
    assert_int_equal(receive_within(t.in, PATIENCE_MS, &err), BTC_ERR_FORMAT);
    close_two(&t);
  }
}

static void test_link_frame_cut_anywhere_is_an_error(void **state) {
  (void)state;
  uint8_t wire[200];
  btc_link_limits l = btc_link_limits_default();
  two t;
  good_two(&t, &l);
  size_t n = recorded(&t, 60, wire, sizeof wire);
  close_two(&t);
  for (size_t at = 0; at < n; at += 5) {
    btc_error err = {0};
    good_two(&t, &l);
    assert_int_equal(send(btc_link_fd(t.out), wire, at, 0), at);
    btc_link_close(&t.out);
    assert_int_equal(receive_within(t.in, PATIENCE_MS, &err), BTC_ERR_IO);
    assert_non_null(strstr(err.message, at ? "closed the link within a frame" : "closed the link"));
    close_two(&t);
  }
}

static void test_link_old_epoch_frame_is_dropped(void **state) {
  (void)state;
  uint8_t old[200], now[200];
  btc_link_limits l = btc_link_limits_default();
  btc_link_id four = some_id(4);
  btc_error err;
  two t;
  open_two(&t, &four, &four, &l, PATIENCE_MS);
  size_t n_old = recorded(&t, 20, old, sizeof old);
  close_two(&t);
  good_two(&t, &l);
  size_t n_now = recorded(&t, 20, now, sizeof now);
  assert_int_equal(send(btc_link_fd(t.out), old, n_old, 0), n_old);
  assert_int_equal(receive_within(t.in, SOON_MS, &err), BTC_ERR_IO); /* nothing came */
  assert_int_equal(btc_link_dropped(t.in), 1);
  assert_int_equal(send(btc_link_fd(t.out), old, n_old, 0), n_old);
  assert_int_equal(send(btc_link_fd(t.out), now, n_now, 0), n_now);
  assert_int_equal(receive_within(t.in, PATIENCE_MS, &err), BTC_OK);
  assert_int_equal(btc_link_dropped(t.in), 2);
  close_two(&t);
}

/* ---- hello ---- */

static void check_turned_away(const btc_link_id *server, const btc_link_id *client, const char *why) {
  btc_link_limits l = btc_link_limits_default();
  two t;
  open_two(&t, server, client, &l, SOON_MS);
  assert_int_equal(t.accepted, BTC_ERR_IO); /* it went on waiting for the right one */
  assert_null(t.in);
  assert_non_null(strstr(t.err.message, why));
  assert_int_not_equal(t.joined.status, BTC_OK);
  assert_null(t.out);
}

static void test_link_wrong_hello_is_turned_away(void **state) {
  (void)state;
  btc_link_id good = some_id(5), other = good;
  other.secret[31] ^= 1;
  check_turned_away(&good, &other, "closed the connection"); /* the client sees it first, and tells nothing */
  other = some_id(4);
  check_turned_away(&good, &other, "epoch 4");
  other = good;
  other.from = 0;
  check_turned_away(&good, &other, "wrong rank");
  other = good;
  other.ranks = 4;
  check_turned_away(&good, &other, "wrong rank");
}

static int raw_connect(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
  return fd;
}

/* Strangers before the right peer: one says rubbish, one says nothing, one a hello without a proof. */
static void test_link_strangers_do_not_hinder(void **state) {
  (void)state;
  btc_link_limits l = btc_link_limits_default();
  btc_link_id id = some_id(5);
  joining j = {.id = id, .limits = l};
  pthread_t thread;
  int fd, stranger[3];
  uint8_t hello[64] = {'B', 'T', 'C', 'H', VERSION, 0, 0, 0, 5}, answer[64], wrong[32] = {0};
  btc_link *in = NULL;
  btc_error err = {0};
  hello[16] = 1, hello[20] = 2, hello[24] = 3;
  l.hello_ms = SOON_MS;
  assert_int_equal(btc_link_listen("127.0.0.1", &fd, &j.port, &err), BTC_OK);
  for (int i = 0; i < 3; i++) stranger[i] = raw_connect(j.port);
  assert_true(write(stranger[0], "GET / HTTP/1.1\r\nHost: somebody else, and long enough to be read\r\n\r\n", 67) > 0);
  assert_int_equal(write(stranger[2], hello, 64), 64);
  assert_int_equal(write(stranger[2], wrong, 32), 32);
  assert_int_equal(pthread_create(&thread, NULL, join, &j), 0);
  btc_link_wait w = within(PATIENCE_MS);
  if (btc_link_accept(fd, &id, &l, &w, &in, &err) != BTC_OK) fail_msg("%s", err.message);
  pthread_join(thread, NULL);
  assert_int_equal(j.status, BTC_OK);
  assert_int_equal(recv(stranger[2], answer, 64, MSG_WAITALL), 64); /* it got the challenge, and failed at it */
  for (int i = 0; i < 3; i++) close(stranger[i]);
  btc_link_close(&in);
  btc_link_close(&j.link);
  close(fd);
}

/* A worker of before a change of the wire: it is told apart from a stranger. */
static void test_link_other_versions_are_named(void **state) {
  (void)state;
  btc_link_limits l = btc_link_limits_default();
  btc_link_id id = some_id(5);
  int fd, port;
  uint8_t hello[64] = {'B', 'T', 'C', 'H', VERSION - 1, 0, 0, 0, 5}, answer;
  btc_link *in = NULL;
  btc_error err = {0};
  hello[16] = 1, hello[20] = 2, hello[24] = 3;
  assert_int_equal(btc_link_listen("127.0.0.1", &fd, &port, &err), BTC_OK);
  int old = raw_connect(port);
  assert_int_equal(write(old, hello, 64), 64);
  btc_link_wait w = within(SOON_MS);
  assert_int_equal(btc_link_accept(fd, &id, &l, &w, &in, &err), BTC_ERR_IO);
  assert_non_null(strstr(err.message, "links of version 1, but ours are of version 2"));
  assert_int_equal(recv(old, &answer, 1, 0), 0); /* no challenge for it */
  close(old);
  close(fd);
}

/* ---- beside what is computed ---- */

enum { LARGE = 32 << 20 /* more than the system takes */ };

static shard_post *make_post(void) {
  shard_post *p;
  btc_error err;
  if (shard_post_create(&p, &err) != BTC_OK) fail_msg("%s", err.message);
  return p;
}

static btc_status post(shard_post *p, btc_link *l, uint64_t step, const uint8_t *data, size_t bytes, const btc_link_wait *w,
                       btc_error *err) {
  return shard_post_send(p, l, &(btc_link_head){.step = step, .kind = 3}, &(btc_link_part){data, bytes}, 1, w, err);
}

static void assert_arrives(btc_link *in, uint64_t step, const uint8_t *want, size_t want_bytes) {
  btc_link_head h;
  const uint8_t *data;
  size_t bytes;
  btc_error err;
  btc_link_wait w = within(PATIENCE_MS);
  if (btc_link_receive(in, &h, &data, &bytes, &w, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(h.step, step);
  assert_int_equal(bytes, want_bytes);
  assert_memory_equal(data, want, bytes);
}

static bool at_once(void *ctx) {
  (void)ctx;
  return true;
}

/* The sender goes on although nobody reads, but not to a second frame. */
static void test_link_post_goes_on_beside_its_owner(void **state) {
  (void)state;
  btc_link_limits l = btc_link_limits_default();
  uint8_t *data = noise(LARGE, 5), *copy = noise(LARGE, 5);
  btc_link_wait patient = within(PATIENCE_MS), soon = within(SOON_MS), never = {.stop = at_once};
  shard_post *p = make_post();
  btc_error err = {0};
  two t;
  l.frame_ms = PATIENCE_MS;
  good_two(&t, &l);
  assert_int_equal(post(p, t.out, 1, data, LARGE, &patient, &err), BTC_OK);
  memset(data, 0, LARGE); /* it is the caller's again */
  assert_int_equal(post(p, t.out, 2, data, 100, &soon, &err), BTC_ERR_IO);
  assert_int_equal(post(p, t.out, 2, data, 100, &never, &err), BTC_ERR_CANCELLED);
  assert_false(shard_post_has_failed(p));
  assert_arrives(t.in, 1, copy, LARGE);
  for (int i = 2; i < 6; i++) {
    patient = within(PATIENCE_MS);
    assert_int_equal(post(p, t.out, (uint64_t)i, copy, (size_t)i * 1000, &patient, &err), BTC_OK);
  }
  for (int i = 2; i < 6; i++) assert_arrives(t.in, (uint64_t)i, copy, (size_t)i * 1000);
  assert_int_equal(shard_post_wait(p, &patient, &err), BTC_OK);
  shard_post_destroy(&p);
  close_two(&t);
  free(data);
  free(copy);
}

/* What fails after its owner went on is told at the next call, once. */
static void check_late_failure(bool closes) {
  btc_link_limits l = btc_link_limits_default();
  uint8_t *data = noise(LARGE, 6);
  btc_link_wait patient = within(PATIENCE_MS);
  shard_post *p = make_post();
  btc_error err = {0};
  two t;
  l.frame_ms = closes ? PATIENCE_MS : SOON_MS;
  good_two(&t, &l);
  btc_status first = post(p, t.out, 1, data, LARGE, &patient, &err);
  if (closes) btc_link_close(&t.in);
  for (int64_t end = btc_now_ns() + (int64_t)PATIENCE_MS * 1000000;
       first == BTC_OK && !shard_post_has_failed(p) && btc_now_ns() < end;)
    usleep(5000);
  if (first == BTC_OK) { /* or, on a machine that stood still meanwhile, it is late already */
    assert_true(shard_post_has_failed(p));
    assert_int_equal(post(p, t.out, 2, data, 100, &patient, &err), BTC_ERR_IO);
  }
  assert_true(strstr(err.message, closes ? "rank 2 cannot be reached" : "took nothing for 150 ms") ||
              (!closes && strstr(err.message, "too late")));
  assert_false(shard_post_has_failed(p));
  shard_post_destroy(&p);
  close_two(&t);
  free(data);
}

static void test_link_post_tells_of_late_failures(void **state) {
  (void)state;
  check_late_failure(true);
  check_late_failure(false);
}

/* The epoch is over while a frame is on its way: the next one has a link of its own. */
static void test_link_post_is_dropped(void **state) {
  (void)state;
  btc_link_limits l = btc_link_limits_default();
  uint8_t *data = noise(LARGE, 7);
  shard_post *p = make_post();
  btc_error err = {0};
  two t;
  l.frame_ms = PATIENCE_MS;
  for (int i = 0; i < 3; i++) {
    btc_link_wait patient = within(PATIENCE_MS);
    good_two(&t, &l);
    assert_int_equal(post(p, t.out, 1, data, 100, &patient, &err), BTC_OK);
    assert_int_equal(post(p, t.out, 2, data, LARGE, &patient, &err), BTC_OK);
    shard_post_drop(p);
    assert_false(shard_post_has_failed(p));
    assert_arrives(t.in, 1, data, 100);
    close_two(&t);
  }
  good_two(&t, &l);
  btc_link_wait patient = within(PATIENCE_MS);
  assert_int_equal(post(p, t.out, 1, data, LARGE, &patient, &err), BTC_OK);
  shard_post_destroy(&p); /* and so is a process */
  close_two(&t);
  free(data);
}

/* ---- time ---- */

static void test_link_slow_peer_is_given_up(void **state) {
  (void)state;
  uint8_t wire[200];
  btc_link_limits l = btc_link_limits_default();
  btc_error err = {0};
  two t;
  l.frame_ms = SOON_MS;
  good_two(&t, &l);
  size_t n = recorded(&t, 60, wire, sizeof wire);
  assert_int_equal(send(btc_link_fd(t.out), wire, n - 1, 0), n - 1); /* and then nothing */
  int64_t start = btc_now_ns();
  assert_int_equal(receive_within(t.in, PATIENCE_MS, &err), BTC_ERR_IO);
  assert_true(btc_now_ns() - start < (int64_t)PATIENCE_MS * 500000);
  close_two(&t);
  /* nobody reads: what the system holds is not endless */
  good_two(&t, &l);
  uint8_t *data = noise(64 << 20, 3);
  btc_link_wait w = within(PATIENCE_MS);
  assert_int_equal(btc_link_send(t.out, &(btc_link_head){.step = 1}, &(btc_link_part){data, 64 << 20}, 1, &w, &err), BTC_ERR_IO);
  free(data);
  close_two(&t);
}

static bool say_stop(void *ctx) {
  return ++*(int *)ctx >= 2;
}

static void test_link_wait_can_be_stopped(void **state) {
  (void)state;
  btc_link_limits l = btc_link_limits_default();
  btc_link_id id = some_id(5);
  btc_link_head h;
  const uint8_t *data;
  size_t bytes;
  btc_link *in = NULL;
  two t;
  int asked = 0, fd, port;
  btc_link_wait w = {.stop = say_stop, .ctx = &asked};
  good_two(&t, &l);
  assert_int_equal(btc_link_receive(t.in, &h, &data, &bytes, &w, NULL), BTC_ERR_CANCELLED);
  close_two(&t);
  asked = 0;
  assert_int_equal(btc_link_listen("127.0.0.1", &fd, &port, NULL), BTC_OK);
  assert_int_equal(btc_link_accept(fd, &id, &l, &w, &in, NULL), BTC_ERR_CANCELLED);
  close(fd);
}

typedef struct trickle {
  int fd;
  uint8_t wire[8000];
  size_t n, at;
} trickle;

static void *send_slowly(void *ctx) {
  trickle *k = ctx;
  for (; k->at < k->n && send(k->fd, k->wire + k->at, 1, MSG_NOSIGNAL) == 1; k->at++) usleep(1000);
  return NULL;
}

/* A frame over a slow network: bytes come all the time, and an order is heard all the same. */
static void test_link_slow_frame_delays_no_stop(void **state) {
  (void)state;
  static trickle k;
  btc_link_limits l = btc_link_limits_default();
  btc_link_head h;
  const uint8_t *data;
  size_t bytes;
  pthread_t thread;
  two t;
  int asked = 0;
  btc_link_wait w = {.stop = say_stop, .ctx = &asked};
  good_two(&t, &l);
  k.n = recorded(&t, sizeof k.wire - 48, k.wire, sizeof k.wire);
  assert_int_equal(k.n, sizeof k.wire);
  k.fd = btc_link_fd(t.out);
  assert_int_equal(pthread_create(&thread, NULL, send_slowly, &k), 0);
  assert_int_equal(btc_link_receive(t.in, &h, &data, &bytes, &w, NULL), BTC_ERR_CANCELLED);
  btc_link_close(&t.in); /* which ends the sender, too */
  pthread_join(thread, NULL);
  assert_true(k.at < k.n);
  close_two(&t);
}

/* A rank of the next epoch knocks without a pause at one that still waits in the last: its next order is seen all the same. */
static void test_link_who_is_refused_delays_no_stop(void **state) {
  (void)state;
  btc_link_limits l = btc_link_limits_default();
  btc_link_id id = some_id(5);
  btc_link *in = NULL;
  int asked = 0, fd, port;
  btc_link_wait w = {.stop = say_stop, .ctx = &asked};
  assert_int_equal(btc_link_listen("127.0.0.1", &fd, &port, NULL), BTC_OK);
  for (int i = 0; i < 8; i++) close(raw_connect(port));
  assert_int_equal(btc_link_accept(fd, &id, &l, &w, &in, NULL), BTC_ERR_CANCELLED);
  struct pollfd more = {.fd = fd, .events = POLLIN};
  assert_int_equal(poll(&more, 1, 0), 1); /* others still stand at the door */
  close(fd);
}

static void test_link_peer_killed_within_a_frame(void **state) {
  (void)state;
  btc_link_limits l = btc_link_limits_default();
  btc_error err = {0};
  uint8_t wire[200];
  two t;
  good_two(&t, &l);
  size_t n = recorded(&t, 60, wire, sizeof wire);
  pid_t pid = fork();
  if (pid == 0) {
    if (send(btc_link_fd(t.out), wire, n / 2, 0) != (ssize_t)(n / 2)) _exit(1);
    raise(SIGKILL);
  }
  close(btc_link_fd(t.out)); /* the child alone holds it */
  int64_t start = btc_now_ns();
  assert_int_equal(receive_within(t.in, PATIENCE_MS, &err), BTC_ERR_IO);
  assert_true(btc_now_ns() - start < (int64_t)PATIENCE_MS * 500000);
  assert_non_null(strstr(err.message, "within a frame"));
  int status;
  assert_int_equal(waitpid(pid, &status, 0), pid);
  assert_true(WIFSIGNALED(status));
  dup2(btc_link_fd(t.in), btc_link_fd(t.out)); /* a descriptor for it to close */
  close_two(&t);
}

/* ---- known answers ---- */

static void test_link_crc32c_known_answers(void **state) {
  (void)state;
  uint8_t zeros[32] = {0}, ones[32];
  memset(ones, 255, sizeof ones);
  assert_int_equal(btc_link_crc32c(0, "123456789", 9), 0xe3069283); /* the check value of CRC-32/ISCSI */
  assert_int_equal(btc_link_crc32c(0, zeros, 32), 0x8a9136aa);      /* RFC 3720 B.4 */
  assert_int_equal(btc_link_crc32c(0, ones, 32), 0x62a8ab43);
  assert_int_equal(btc_link_crc32c(btc_link_crc32c(0, "1234", 4), "56789", 5), 0xe3069283);
  assert_int_equal(btc_link_crc32c_tables(0, "123456789", 9), 0xe3069283);
}

static void test_link_crc32c_instruction_and_tables_agree(void **state) {
  (void)state;
  uint8_t bytes[300];
  uint32_t random = 7;
  for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)((random = random * 1664525u + 1013904223u) >> 24);
  for (size_t from = 0; from < 9; from++)
    for (size_t n = 0; n <= sizeof bytes - from; n++)
      assert_int_equal(btc_link_crc32c(random, bytes + from, n), btc_link_crc32c_tables(random, bytes + from, n));
}

static void test_link_hmac_is_over_all_parts(void **state) {
  (void)state;
  /* computed with: printf 'what do ya want for nothing?' | openssl dgst -sha256 -mac HMAC -macopt hexkey:0b0b..0b (32 bytes) */
  static const uint8_t want[32] = {0xc3, 0xf2, 0x64, 0x9c, 0x34, 0xea, 0x24, 0xe4, 0xd6, 0x2a, 0x2c, 0x7e, 0x86, 0x8b, 0xbe, 0xa0,
                                   0x23, 0x3c, 0x9d, 0x4c, 0x2c, 0xc3, 0x00, 0x79, 0x4d, 0xb7, 0x6a, 0xa1, 0x8d, 0x68, 0x22, 0xd8};
  uint8_t key[BTC_LINK_SECRET], mac[32];
  memset(key, 0x0b, sizeof key);
  btc_link_hmac(key, (btc_link_part[]){{"what do ya want ", 16}, {"for nothing?", 12}}, 2, mac);
  assert_memory_equal(mac, want, 32);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_link_carries_frames_of_any_size),  cmocka_unit_test(test_link_frame_over_the_bound_is_refused),
    cmocka_unit_test(test_link_damage_anywhere_is_seen),     cmocka_unit_test(test_link_frame_cut_anywhere_is_an_error),
    cmocka_unit_test(test_link_old_epoch_frame_is_dropped),  cmocka_unit_test(test_link_wrong_hello_is_turned_away),
    cmocka_unit_test(test_link_other_versions_are_named),    cmocka_unit_test(test_link_post_goes_on_beside_its_owner),
    cmocka_unit_test(test_link_post_tells_of_late_failures), cmocka_unit_test(test_link_post_is_dropped),
    cmocka_unit_test(test_link_strangers_do_not_hinder),     cmocka_unit_test(test_link_slow_peer_is_given_up),
    cmocka_unit_test(test_link_wait_can_be_stopped),         cmocka_unit_test(test_link_who_is_refused_delays_no_stop),
    cmocka_unit_test(test_link_slow_frame_delays_no_stop),   cmocka_unit_test(test_link_peer_killed_within_a_frame),
    cmocka_unit_test(test_link_crc32c_known_answers),        cmocka_unit_test(test_link_crc32c_instruction_and_tables_agree),
    cmocka_unit_test(test_link_hmac_is_over_all_parts),
};

BTC_TEST_MAIN(tests)
