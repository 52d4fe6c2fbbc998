/*
 * A program that knows the queue only through Redis: adds items to `in` and takes records from `out`, in a thread of its own, over
 * any number of Redis's ends. It does what docs/protocol.md asks of such a program: an add whose reply is lost is repeated with its
 * key, a record is noted before it is acknowledged and known again by its stream id.
 */
#ifndef TEST_INTEGRATOR_H
#define TEST_INTEGRATOR_H

#include <stdint.h>

#include "redis_server.h"

typedef struct integrator integrator;

/* Nothing is added yet. */
integrator *integrator_start(redis_server *r, const char *queue);
/* From now on there shall be n items in all, ids x-000000.. */
void integrator_want(integrator *g, int64_t n);
/* Those that Redis has taken. */
int64_t integrator_added(const integrator *g);
int64_t integrator_taken(const integrator *g);
/* Lines "JID IDX EPOCH JSON" of all it took, whole after integrator_stop. */
const char *integrator_path(const integrator *g);
void integrator_stop(integrator *g);
void integrator_destroy(integrator **g);

#endif
