/*
 * Places where a test may kill the process: BTC_FAIL=name:n in the environment makes the n-th passage of BTC_FAILPOINT("name")
 * raise SIGKILL, as the step-crash tests do at every arrow between Redis, broker and worker. Always compiled in: the code that is
 * tested is the code that ships. name:n! stops it there (SIGSTOP), until it is sent SIGCONT. Without the variable a passage costs
 * one load and a branch. Several: BTC_FAIL=a:1,b:3.
 *
 * Where something may go wrong short of death, BTC_FAILS("name") is true at the n-th passage, and at all later ones with name:n+.
 */
#ifndef BTC_FAILPOINT_H
#define BTC_FAILPOINT_H

#include <stdbool.h>

extern int btc_failpoints_armed;            /* -1: not looked yet, 0: none */
void btc_failpoint_pass(const char *name);  /* any thread */
bool btc_failpoint_fails(const char *name); /* likewise */

#define BTC_FAILPOINT(name)                             \
  do {                                                  \
    if (btc_failpoints_armed) btc_failpoint_pass(name); \
  } while (0)
#define BTC_FAILS(name) (btc_failpoints_armed && btc_failpoint_fails(name))

#endif
