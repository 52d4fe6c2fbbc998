/* Health, readiness and metrics over a real socket; hostile requests; bounds of connections. */
#define _GNU_SOURCE
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "broker/http.h"

static btc_metrics *metrics;
static btc_http *http;

static void start(void) {
  btc_error err;
  metrics = btc_metrics_create("q\"1", "b1");
  assert_non_null(metrics);
  if (btc_http_start("127.0.0.1:*", metrics, &http, &err) != BTC_OK) fail_msg("%s", err.message);
}

static void stop(void) {
  btc_http_stop(&http);
  btc_metrics_destroy(&metrics);
}

static int dial(void) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  a.sin_port = htons((uint16_t)atoi(strchr(btc_http_address(http), ':') + 1));
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct timeval wait = {.tv_sec = 20};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
  return fd;
}

/* The whole answer to bytes sent as they are; lives until the next call. */
static const char *ask_raw(const char *request) {
  static char answer[1 << 18];
  size_t n = 0;
  int fd = dial();
  if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0) fail_msg("send");
  ssize_t got;
  while (n < sizeof answer - 1 && (got = recv(fd, answer + n, sizeof answer - 1 - n, 0)) > 0) n += (size_t)got;
  close(fd);
  answer[n] = 0;
  return answer;
}

static const char *get(const char *path) {
  char request[256];
  snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path);
  return ask_raw(request);
}

static void expect(const char *answer, int status, const char *text) {
  assert_int_equal(strncmp(answer, "HTTP/1.1 ", 9), 0);
  assert_int_equal(atoi(answer + 9), status);
  if (!strstr(answer, text)) fail_msg("'%s' lacks '%s'", answer, text);
}

static void test_http_health(void **state) {
  (void)state;
  start();
  expect(get("/healthz"), 200, "ok\n");
  expect(get("/readyz"), 503, "redis: not yet\n");
  btc_metrics_beat(metrics);
  expect(get("/healthz"), 200, "ok\n");
  btc_metrics_health(metrics, BTC_HEALTH_REDIS, true, NULL);
  btc_metrics_health(metrics, BTC_HEALTH_LIBRARY, true, NULL);
  btc_metrics_health(metrics, BTC_HEALTH_SINK, false, "no space left on device");
  expect(get("/readyz"), 503, "sink: no space left on device\n");
  btc_metrics_health(metrics, BTC_HEALTH_SINK, true, NULL);
  expect(get("/readyz"), 200, "ok\n");
  stop();
}

static void test_http_metrics(void **state) {
  (void)state;
  start();
  btc_metrics_set(metrics, BTC_METRIC_READY, 17);
  btc_metrics_add(metrics, BTC_METRIC_ITEMS_DONE, 3000000000.0);
  btc_metrics_add(metrics, BTC_METRIC_ITEMS_DONE, 1);
  btc_metrics_worker(metrics, "w\\1", true, 4, 2, 1.5);
  btc_metrics_worker(metrics, "w2", true, 4, 2, 1.5);
  btc_metrics_worker(metrics, "w2", false, 0, 0, 0);
  const char *text = get("/metrics");
  expect(text, 200, "\nbtc_ready{queue=\"q\\\"1\",broker=\"b1\"} 17\n");
  expect(text, 200, "\nbtc_items_total{queue=\"q\\\"1\",broker=\"b1\",state=\"done\"} 3000000001\n");
  expect(text, 200, "\n# TYPE btc_items_total counter\n");
  expect(text, 200, "\nbtc_worker_up{queue=\"q\\\"1\",worker=\"w\\\\1\"} 1\n");
  expect(text, 200, "\nbtc_worker_up{queue=\"q\\\"1\",worker=\"w2\"} 0\n");
  expect(text, 200, "Content-Type: text/plain; version=0.0.4");
  btc_metrics_forget_worker(metrics, "w\\1");
  assert_null(strstr(get("/metrics"), "w\\\\1"));
  stop();
}

static void test_http_metrics_of_pipes(void **state) {
  (void)state;
  start();
  const btc_metric_pipe p = {.id = "p1", .epoch = 7, .active = true, .stages = 2, .bubble = 0.25, .ms = {3, 4}, .busy = {1, 0.5}};
  btc_metrics_pipes(metrics, &p, 1);
  const char *text = get("/metrics");
  expect(text, 200, "\nbtc_pipe_epoch{queue=\"q\\\"1\",pipe=\"p1\"} 7\n");
  expect(text, 200, "\nbtc_pipe_bubble_ratio{queue=\"q\\\"1\",pipe=\"p1\"} 0.25\n");
  expect(text, 200, "\nbtc_stage_ms{queue=\"q\\\"1\",pipe=\"p1\",rank=\"1\"} 4\n");
  btc_metrics_pipes(metrics, NULL, 0);
  assert_null(strstr(get("/metrics"), "pipe=\"p1\""));
  stop();
}

static void test_http_metrics_text_is_well_formed(void **state) {
  (void)state;
  btc_metrics *m = btc_metrics_create("q", "b");
  char *text = btc_metrics_render(m), *save = NULL;
  int series = 0;
  char typed[64] = "";
  for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
    if (strncmp(line, "# HELP ", 7) == 0) continue;
    if (sscanf(line, "# TYPE %63s", typed) == 1) continue;
    assert_int_equal(strncmp(line, typed, strlen(typed)), 0); /* series stand under their type */
    assert_int_equal(line[strlen(typed)], '{');
    assert_string_equal(strrchr(line, ' '), " 0");
    series++;
  }
  assert_int_equal(series, BTC_METRIC_COUNT + 1);
  free(text);
  btc_metrics_destroy(&m);
}

static void test_http_refuses_everything_else(void **state) {
  (void)state;
  start();
  expect(get("/"), 404, "/metrics");
  expect(get("/metrics/../etc/passwd"), 404, "");
  expect(ask_raw("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"), 405, "only GET");
  expect(ask_raw("DELETE /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), 405, "only GET");
  char *long_one = malloc(40000);
  memset(long_one, 'a', 40000);
  memcpy(long_one, "GET /", 5);
  strcpy(long_one + 39900, " HTTP/1.1\r\n\r\n");
  ask_raw(long_one); /* refused or dropped, and alive */
  free(long_one);
  ask_raw("\x16\x03\x01 no HTTP\r\n\r\n");
  expect(get("/healthz"), 200, "ok\n");
  stop();
}

/* One address holds at most 8 connections; when they go, others are served again. */
static void test_http_connections_are_bounded(void **state) {
  (void)state;
  start();
  int fd[80];
  for (int i = 0; i < 80; i++) fd[i] = dial();
  for (int i = 0; i < 80; i++) close(fd[i]);
  for (int tries = 0; tries < 100; tries++) {
    const char *answer = get("/healthz");
    if (answer[0]) {
      expect(answer, 200, "ok\n");
      break;
    }
    usleep(50000);
    assert_true(tries < 99);
  }
  stop();
}

static void test_http_addresses(void **state) {
  (void)state;
  static const char *const bad[] = {"",           "127.0.0.1", "host.example:1", "127.0.0.1:65536", "127.0.0.1:x", "[::1]",
                                    "127.0.0.1:", ":80",       "[zz]:1",         "127.0.0.1:-1"};
  btc_error err;
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
    if (btc_http_start(bad[i], NULL, &http, &err) != BTC_ERR_ARG) fail_msg("'%s' was taken", bad[i]);
  start();
  btc_http *second;
  assert_int_equal(btc_http_start(btc_http_address(http), metrics, &second, &err), BTC_ERR_IO);
  assert_non_null(strstr(err.message, "in use"));
  stop();
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_http_health),
    cmocka_unit_test(test_http_metrics),
    cmocka_unit_test(test_http_metrics_of_pipes),
    cmocka_unit_test(test_http_metrics_text_is_well_formed),
    cmocka_unit_test(test_http_refuses_everything_else),
    cmocka_unit_test(test_http_connections_are_bounded),
    cmocka_unit_test(test_http_addresses),
};

BTC_TEST_MAIN(tests)
