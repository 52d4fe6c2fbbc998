/*
 * The agent's part in pipelines that span workers: its rank's process, the driver when it is rank 0, and what the broker orders. An
 * agent without --memory, or whose memory holds the whole model, is no member and all of this does nothing.
 */
#ifndef BTC_WORKER_AGENT_MEMBER_H
#define BTC_WORKER_AGENT_MEMBER_H

#include "agent_parts.h"

btc_status member_open(agent *a, btc_error *err); /* listens; a->member */
void member_close(agent *a);

/* The engine child of a member is the driver. extra: what it inherits; NULL: nothing. Before and after it is started. */
btc_status member_before_child(agent *a, child_extra *storage, const child_extra **extra, btc_error *err);
void member_after_child(agent *a, const child_extra *extra);
btc_status member_child_ready(agent *a, const Btc__ChildReady *r, btc_error *err);
void member_child_died(agent *a);

void member_fill_hello(const agent *a, Btc__Hello *h); /* borrows */
void member_fill_beat(agent *a, Btc__Heartbeat *beat); /* borrows */

bool member_waits(const agent *a); /* a member that drives no pipe now: no items are asked for, none are given to the engine */

bool member_refuses(const agent *a); /* grants: another worker drives, or nobody */

void member_take(agent *a, const Btc__Envelope *e); /* PipeForm, PipeGo, PipeAbort */

#endif
