/*
 * Inside view of a session for golden checks: sees intermediate tensors and feeds given tokens. Private to engine/ and to
 * `btcchat verify`.
 */
#ifndef BTC_SESSION_H
#define BTC_SESSION_H

#include "stage.h"

typedef struct btc_session_probe {
  btc_tap *tap; /* sees every named tensor; use with one item at a time */
  void *user;
  const int32_t *force; /* tokens fed instead of the sampled ones; NULL: free running */
  size_t n_force;       /* generation then stops after this many */
  bool timed;           /* see btc_stage_set_timed */
} btc_session_probe;

/* NULL removes it. Borrowed until then. */
void btc_session_set_probe(btc_session *s, const btc_session_probe *p);
btc_stage_times btc_session_times(const btc_session *s);

#endif
