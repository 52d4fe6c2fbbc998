/* A TCP link that a test can cut: forwards connections from a loopback port to another, one thread, and stops passing bytes one way
 * or both while told to. What was on its way when the link was cut waits (as in a real network, until one end gives the connection
 * up). */
#ifndef TEST_LINK_H
#define TEST_LINK_H

#include <stdbool.h>

typedef struct test_link test_link;

/* Listens on a free port, forwards to 127.0.0.1:to_port. Never NULL (fails the test). */
test_link *link_create(int to_port);
int link_port(const test_link *l);
/* forth: from who connected to the target; back: the other way. */
void link_set(test_link *l, bool forth, bool back);
void link_destroy(test_link **l);

#endif
