/*
 * NCCL under the links of a pipeline: takes tensors from one rank's GPU to the next one's (a carrier, link.h). One communicator of
 * all ranks for one epoch; when anything about it fails the epoch is over, and the next one gets another from a fresh id. There is
 * no repair, so there is one way for everything.
 *
 * NCCL neither authenticates nor encrypts, and a dead peer may raise no error in it: the TCP link beneath says who is there and who
 * has gone, and after joining both ends prove over the communicator itself that they know the epoch's secret. Communicators are
 * non-blocking: every call returns at once, every wait has a deadline and asks its `stop`, and no thread is inside a call of NCCL
 * when a communicator is aborted. An abort may hang all the same: a helper thread makes it, and after abort_ms the process is to
 * end.
 *
 * The library is loaded when it is first asked for: libnccl.so.2, or what BTCCHAT_NCCL names. Where nccl.h was not there when
 * btcchat was built, everything here answers UNSUPPORTED and says so. Thread: one, the one that made the lane.
 * Errors: IO (NCCL's own, too late), DEVICE (the device is lost, or an abort hangs: the process must end), CANCELLED, UNSUPPORTED.
 */
#ifndef BTC_WORKER_LINK_NCCL_H
#define BTC_WORKER_LINK_NCCL_H

#include "link.h"
#include "ops/ops.h"

#define LINK_NCCL_ID 128 /* bytes of a unique id */

typedef struct link_nccl link_nccl;

/* The library's version, as NCCL counts it (22809); 0: it cannot be used, and err says why. */
int link_nccl_version(btc_error *err);
/* The same for people, "2.28.9", and the file the library came from ("" where the loader does not tell). UNSUPPORTED as above. */
btc_status link_nccl_describe(char version[16], char *file, size_t len, btc_error *err);

/* A fresh id for one communicator; this process serves those who join by it, and must live until they have. */
btc_status link_nccl_make_id(uint8_t id[LINK_NCCL_ID], btc_error *err);

typedef struct link_nccl_options {
  btc_lane *lane; /* borrowed until link_nccl_leave */
  uint32_t rank, ranks;
  uint64_t epoch;
  uint8_t id[LINK_NCCL_ID], secret[BTC_LINK_SECRET]; /* of the epoch */
  int abort_ms;                                      /* 0: 10 s */
} link_nccl_options;

/* Joins, and proves itself to the ranks before and behind. All ranks do so within the wait, which has a deadline. A failure leaves
 * nothing behind, unless it is DEVICE. */
btc_status link_nccl_join(const link_nccl_options *o, const btc_link_wait *w, link_nccl **out, btc_error *err);

/* Device memory to or from another rank; returns when all bytes are there. Both ends do so in the same order. After a failure every
 * call fails. */
btc_status link_nccl_send(link_nccl *n, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err);
btc_status link_nccl_receive(link_nccl *n, uint32_t from, void *data, size_t bytes, const btc_link_wait *w, btc_error *err);
/* A send that is on the queue when this returns; what is put there later comes behind it. data stays until link_nccl_look has said
 * that the queue is empty. */
btc_status link_nccl_begin(link_nccl *n, uint32_t to, const void *data, size_t bytes, const btc_link_wait *w, btc_error *err);
btc_status link_nccl_look(link_nccl *n, bool *done, btc_error *err);
btc_link_carrier link_nccl_carrier(link_nccl *n);

/* Ends our part in it, whatever the others do. *n is NULL then. w's stop (w or it NULL: none) is called while it lasts and ends
 * nothing. DEVICE: the abort did not end; what it holds is lost until the process ends. */
btc_status link_nccl_leave(link_nccl **n, const btc_link_wait *w, btc_error *err);

#endif
