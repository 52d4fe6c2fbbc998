/* For tests of the queue's functions: a redis-server with the library in it, and short words for what they do all the time. One per
 * test program. */
#ifndef TEST_QUEUE_FIXTURE_H
#define TEST_QUEUE_FIXTURE_H

#include <stdio.h>

#include "daemon.h"
#include "redis_server.h"
#include "test.h"

static redis_server *server;

/* Only memory: each test has its own server and ends it. */
static int queue_setup(void **state) {
  (void)state;
  server = redis_server_start(NULL, NULL);
  redis_server_load_queue(server);
  return 0;
}

static int queue_teardown(void **state) {
  (void)state;
  redis_server_stop(&server);
  return 0;
}

#define SAY(...) redis_say(server, "t", __VA_ARGS__)
#define NUMBER(...) strtoll(SAY(__VA_ARGS__), NULL, 10)

static inline void expect_reply(const char *want, const char *got, const char *command, int line) {
  if (strcmp(want, got) != 0) fail_msg("line %d: %s\n  expected %s\n  got      %s", line, command, want, got);
}
/* The command's reply as text is exactly this. */
#define EXPECT(want, ...) expect_reply(want, SAY(__VA_ARGS__), #__VA_ARGS__, __LINE__)

static inline void expect_begin(const char *want, const char *got, const char *command, int line) {
  if (strncmp(want, got, strlen(want)) != 0) fail_msg("line %d: %s\n  expected %s...\n  got      %s", line, command, want, got);
}
#define EXPECT_BEGIN(want, ...) expect_begin(want, SAY(__VA_ARGS__), #__VA_ARGS__, __LINE__)

/* An inline job of n items with the ids a0, a1, ... More of the arguments are tested by their own tests. */
static inline void submit_as(const char *jid, int n, const char *tenant, int pri, const char *class, const char *route) {
  char text[65536];
  int len =
      snprintf(text, sizeof text, "btc_submit %s inline %s %d %s %s '' {} '' '' 0 0 '' '' 0 ''", jid, tenant, pri, class, route);
  for (int i = 0; i < n; i++) len += snprintf(text + len, sizeof text - (size_t)len, " {\"id\":\"a%d\"}", i);
  assert_true((size_t)len < sizeof text);
  expect_begin("[NEW ", SAY("%s", text), "btc_submit", __LINE__);
}

static inline void submit(const char *jid, int n) {
  submit_as(jid, n, "default", 1, "''", "files");
}

#endif
