#define _GNU_SOURCE
#include "link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#include "test.h"

enum { MAX_CONNECTIONS = 64, CHUNK = 16384 };

typedef struct pipe_half {
  char data[CHUNK];
  size_t from, to; /* what is held: data[from..to) */
} pipe_half;

typedef struct connection {
  int fd[2]; /* 0: who connected, 1: the target; -1: free */
  pipe_half half[2];
} connection;

struct test_link {
  int listener, port, to_port;
  atomic_bool pass[2], stop;
  pthread_t thread;
  connection c[MAX_CONNECTIONS];
};

static void drop(connection *c) {
  close(c->fd[0]);
  close(c->fd[1]);
  c->fd[0] = c->fd[1] = -1;
}

static void take(test_link *l) {
  struct sockaddr_in a = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)l->to_port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int in = accept4(l->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
  if (in < 0) return;
  int out = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  connection *c = NULL;
  for (int i = 0; i < MAX_CONNECTIONS && !c; i++)
    if (l->c[i].fd[0] < 0) c = &l->c[i];
  if (!c || out < 0 || connect(out, (struct sockaddr *)&a, sizeof a) != 0) {
    close(in);
    if (out >= 0) close(out);
    return;
  }
  setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(out, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  *c = (connection){.fd = {in, out}};
}

/* Moves what can be moved in one direction; false when the connection is over. */
static bool move(connection *c, int side) {
  pipe_half *h = &c->half[side];
  if (h->from == h->to) {
    ssize_t n = recv(c->fd[side], h->data, CHUNK, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
    h->from = 0;
    h->to = n > 0 ? (size_t)n : 0;
  }
  if (h->from == h->to) return true;
  ssize_t n = send(c->fd[!side], h->data + h->from, h->to - h->from, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN && errno != EINTR) return false;
  if (n > 0) h->from += (size_t)n;
  return true;
}

static void *run(void *arg) {
  test_link *l = arg;
  while (!atomic_load(&l->stop)) {
    struct pollfd p[1 + 2 * MAX_CONNECTIONS] = {{.fd = l->listener, .events = POLLIN}};
    bool open = atomic_load(&l->pass[0]) && atomic_load(&l->pass[1]);
    if (!open) p[0].fd = -1; /* a cut link makes no new connections */
    for (int i = 0; i < MAX_CONNECTIONS; i++)
      for (int s = 0; s < 2; s++) {
        const pipe_half *h = &l->c[i].half[s];
        bool held = h->from != h->to;
        p[1 + 2 * i + s].fd = l->c[i].fd[s] >= 0 && atomic_load(&l->pass[s]) && !held ? l->c[i].fd[s] : -1;
        p[1 + 2 * i + s].events = POLLIN;
      }
    poll(p, 1 + 2 * MAX_CONNECTIONS, 5);
    if (p[0].revents & POLLIN) take(l);
    for (int i = 0; i < MAX_CONNECTIONS; i++)
      for (int s = 0; s < 2 && l->c[i].fd[0] >= 0; s++)
        if (atomic_load(&l->pass[s]) && !move(&l->c[i], s)) drop(&l->c[i]);
  }
  return NULL;
}

test_link *link_create(int to_port) {
  test_link *l = calloc(1, sizeof *l);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof a;
  assert_non_null(l);
  for (int i = 0; i < MAX_CONNECTIONS; i++) l->c[i].fd[0] = l->c[i].fd[1] = -1;
  l->to_port = to_port;
  l->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  assert_true(l->listener >= 0);
  assert_return_code(bind(l->listener, (struct sockaddr *)&a, sizeof a), errno);
  assert_return_code(listen(l->listener, 64), errno);
  assert_return_code(getsockname(l->listener, (struct sockaddr *)&a, &len), errno);
  l->port = ntohs(a.sin_port);
  atomic_store(&l->pass[0], true);
  atomic_store(&l->pass[1], true);
  assert_int_equal(pthread_create(&l->thread, NULL, run, l), 0);
  return l;
}

int link_port(const test_link *l) {
  return l->port;
}

void link_set(test_link *l, bool forth, bool back) {
  atomic_store(&l->pass[0], forth);
  atomic_store(&l->pass[1], back);
}

void link_destroy(test_link **l) {
  if (!*l) return;
  atomic_store(&(*l)->stop, true);
  pthread_join((*l)->thread, NULL);
  for (int i = 0; i < MAX_CONNECTIONS; i++)
    if ((*l)->c[i].fd[0] >= 0) drop(&(*l)->c[i]);
  close((*l)->listener);
  free(*l);
  *l = NULL;
}
