/* A list with a length in bytes, and the numbers of what it has dropped. */
#include "journal.h"

#include <stdlib.h>

typedef struct dropped {
  uint64_t seq;
  uint32_t items;
} dropped;

struct btc_journal {
  btc_call *head, **tail;
  size_t bytes, max_bytes;
  dropped *gone; /* [BTC_JOURNAL_DROPPED], a ring */
  size_t n_gone;
};

btc_journal *btc_journal_create(int64_t max_bytes) {
  btc_journal *j = btc_alloc_zero(1, sizeof *j);
  dropped *gone = btc_alloc_zero(BTC_JOURNAL_DROPPED, sizeof *gone);
  if (!j || !gone) {
    free(j);
    free(gone);
    return NULL;
  }
  j->tail = &j->head;
  j->max_bytes = (size_t)max_bytes;
  j->gone = gone;
  return j;
}

void btc_journal_destroy(btc_journal **journal) {
  btc_journal *j = *journal;
  *journal = NULL;
  if (!j) return;
  for (btc_call *c; (c = j->head); free(c)) j->head = c->next;
  free(j->gone);
  free(j);
}

static void drop_first(btc_journal *j) {
  btc_call *c = j->head;
  j->head = c->next;
  if (!j->head) j->tail = &j->head;
  j->bytes -= c->bytes;
  if (c->seq) j->gone[j->n_gone++ % BTC_JOURNAL_DROPPED] = (dropped){c->seq, c->items};
  free(c);
}

void btc_journal_trim(btc_journal *j, int64_t now_ns) {
  int64_t oldest_ns = now_ns - (int64_t)BTC_JOURNAL_KEEP_MS * 1000000;
  while (j->head && (j->bytes > j->max_bytes || j->head->at_ns < oldest_ns)) drop_first(j);
}

void btc_journal_add(btc_journal *j, btc_call *c, int64_t now_ns) {
  c->next = NULL;
  c->at_ns = now_ns;
  *j->tail = c;
  j->tail = &c->next;
  j->bytes += c->bytes;
  btc_journal_trim(j, now_ns);
}

btc_call *btc_journal_take(btc_journal *j) {
  btc_call *list = j->head;
  j->head = NULL;
  j->tail = &j->head;
  j->bytes = 0;
  return list;
}

void btc_journal_put_back(btc_journal *j, btc_call *list) {
  btc_call **end = &list;
  for (; *end; end = &(*end)->next) j->bytes += (*end)->bytes;
  *end = j->head;
  if (!j->head) j->tail = end == &list ? &j->head : end;
  j->head = list;
}

size_t btc_journal_bytes(const btc_journal *j) {
  return j->bytes;
}

uint64_t btc_journal_dropped(const btc_journal *j, uint64_t seq) {
  uint64_t items = 0;
  for (size_t i = 0; i < j->n_gone && i < BTC_JOURNAL_DROPPED; i++)
    if (j->gone[i].seq > seq) items += j->gone[i].items;
  return items;
}
