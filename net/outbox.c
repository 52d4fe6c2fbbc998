/* Messages that must arrive: see outbox.h. */
#define _GNU_SOURCE
#include "net/outbox.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { TAG_SESSION = 4 << 3 /* Envelope.session, a varint */, SESSION_MAX = 11, ORDINARY = 64 << 10 };
#define MS INT64_C(1000000)
static const int64_t first_wait_ns = 500 * MS, longest_wait_ns = 8000 * MS, full_wait_ns = 100 * MS;

typedef struct kept {
  uint64_t req_id;
  uint8_t *data; /* packed without its session */
  size_t len;
  int64_t due_ns, wait_ns; /* wait 0: not sent yet */
  void *cookie;
} kept;

struct btc_outbox {
  kept *list; /* [max], in the order of req_id, which is the order of adding */
  size_t n, max, bytes, max_bytes;
  uint64_t last_id;
};

btc_status btc_outbox_create(size_t max_messages, size_t max_bytes, btc_outbox **out, btc_error *err) {
  btc_outbox *o = *out = btc_alloc_zero(1, sizeof *o);
  if (o) o->list = btc_alloc_zero(max_messages, sizeof *o->list);
  if (!o || !o->list) {
    free(o);
    *out = NULL;
    return btc_fail(err, BTC_ERR_NOMEM, "outbox: out of memory");
  }
  o->max = max_messages;
  o->max_bytes = max_bytes;
  /* numbers of an earlier life of this program must not look like ours */
  uint32_t random = 1;
  if (getrandom(&random, sizeof random, GRND_NONBLOCK) < 0) random = (uint32_t)btc_now_ns();
  o->last_id = (uint64_t)random << 24;
  return BTC_OK;
}

void btc_outbox_destroy(btc_outbox **outbox, void (*forget)(void *cookie)) {
  btc_outbox *o = *outbox;
  *outbox = NULL;
  if (!o) return;
  for (size_t i = 0; i < o->n; i++) {
    free(o->list[i].data);
    if (forget) forget(o->list[i].cookie);
  }
  free(o->list);
  free(o);
}

btc_status btc_outbox_add(btc_outbox *o, Btc__Envelope *e, void *cookie, btc_error *err) {
  if (o->n == o->max) return btc_fail(err, BTC_ERR_LIMIT, "outbox: %zu messages wait for an answer", o->n);
  if (!e->req_id) e->req_id = o->last_id + 1;
  if (e->req_id <= o->last_id) return btc_fail(err, BTC_ERR_ARG, "outbox: req_id does not grow");
  kept k = {.req_id = e->req_id, .due_ns = INT64_MIN, .cookie = cookie};
  Btc__Envelope bare = *e;
  bare.session = 0;
  btc_status st = btc_wire_pack(&bare, &k.data, &k.len, err);
  if (st != BTC_OK) return st;
  if (o->n && (o->bytes > o->max_bytes ||
               k.len > o->max_bytes - o->bytes)) { /* an empty outbox takes one message of any size, or it would never go out */
    free(k.data);
    return btc_fail(err, BTC_ERR_LIMIT, "outbox: %zu bytes wait for an answer", o->bytes);
  }
  o->last_id = k.req_id;
  o->bytes += k.len;
  o->list[o->n++] = k;
  return BTC_OK;
}

/* Fields of a message may come in any order, so that the session can stand behind the rest. */
static btc_status send_one(const kept *k, void *socket, const btc_peer_id *to, uint64_t session) {
  uint8_t *copy = btc_alloc(k->len + SESSION_MAX, 1);
  if (!copy) return BTC_ERR_NOMEM;
  memcpy(copy, k->data, k->len);
  size_t len = k->len;
  if (session) {
    copy[len++] = TAG_SESSION;
    for (; session >= 0x80; session >>= 7) copy[len++] = (uint8_t)(session | 0x80);
    copy[len++] = (uint8_t)session;
  }
  return btc_socket_send_bytes(socket, to, copy, len, NULL);
}

int64_t btc_outbox_flush(btc_outbox *o, void *socket, const btc_peer_id *to, uint64_t session, int64_t now_ns, bool *gone) {
  int64_t next = INT64_MAX;
  bool full = false;
  if (gone) *gone = false;
  for (size_t i = 0; i < o->n; i++) {
    kept *k = &o->list[i];
    if (k->due_ns <= now_ns) {
      btc_status st = full ? BTC_ERR_LIMIT : send_one(k, socket, to, session);
      if (st == BTC_ERR_NOT_FOUND && gone) return *gone = true, now_ns + full_wait_ns;
      if (st == BTC_OK) {
        k->wait_ns = !k->wait_ns ? first_wait_ns : k->wait_ns >= longest_wait_ns / 2 ? longest_wait_ns : 2 * k->wait_ns;
        k->due_ns = now_ns + k->wait_ns;
      } else {
        full = true;
        k->due_ns = now_ns + full_wait_ns;
      }
    }
    if (k->due_ns < next) next = k->due_ns;
  }
  return next;
}

static kept *find(btc_outbox *o, uint64_t req_id) {
  size_t low = 0, high = o->n;
  while (low < high) {
    size_t mid = low + (high - low) / 2;
    if (o->list[mid].req_id < req_id)
      low = mid + 1;
    else
      high = mid;
  }
  return low < o->n && o->list[low].req_id == req_id ? &o->list[low] : NULL;
}

bool btc_outbox_settle(btc_outbox *o, uint64_t req_id, void **cookie) {
  kept *k = find(o, req_id);
  if (cookie) *cookie = k ? k->cookie : NULL;
  if (!k) return false;
  o->bytes -= k->len;
  free(k->data);
  memmove(k, k + 1, (size_t)(o->list + o->n - (k + 1)) * sizeof *k);
  o->n--;
  return true;
}

bool btc_outbox_delay(btc_outbox *o, uint64_t req_id, int64_t now_ns, int64_t delay_ms) {
  kept *k = find(o, req_id);
  if (k) k->due_ns = now_ns + delay_ms * MS;
  return k != NULL;
}

void btc_outbox_hurry(btc_outbox *o) {
  for (size_t i = 0; i < o->n; i++) o->list[i].due_ns = INT64_MIN, o->list[i].wait_ns = 0;
}

size_t btc_outbox_count(const btc_outbox *o) {
  return o->n;
}

size_t btc_outbox_bytes(const btc_outbox *o) {
  return o->bytes;
}

bool btc_outbox_full(const btc_outbox *o) {
  return o->n == o->max || (o->n && o->bytes + ORDINARY > o->max_bytes);
}
