/* What the files of the batcher share: the items and who may touch them when. */
#ifndef BTC_BATCHER_INTERNAL_H
#define BTC_BATCHER_INTERNAL_H

#include <pthread.h>

#include "batcher.h"
#include "feature_cache.h"
#include "request.h"

/* The reading threads turn WAITING into READING and that into READ or FAILED, and one owns a READING job; all else is the caller's
 * thread. */
typedef enum job_state { JOB_FREE, JOB_WAITING, JOB_READING, JOB_READ, JOB_FAILED, JOB_PREFILL, JOB_DECODE } job_state;

enum { BATCHER_READERS = 16 };

typedef struct batch_job {
  job_state state; /* under the lock */
  bool cancelled;
  uint64_t order; /* of arrival */
  void *tag;
  btc_request q;
  btc_result result;
  btc_features **image; /* [n_images]; the first n_read are held */
  int n_read;
  int64_t end;   /* positions of the prompt */
  float *visual; /* its visual blocks, until it is prefilled, in the backend's memory; behind them, on a device, its change map */
  bool visual_alone; /* not of the pool: an allocation of its own */
} batch_job;

struct btc_batcher {
  btc_model *m;
  btc_batcher_options o;
  btc_precision precision;
  btc_stage *stage;
  btc_backend *be; /* the stage's */
  bool host;       /* its memory is the host's */
  btc_sampler *sampler;
  int change, splice, head, end; /* where the line of blocks is cut */

  batch_job *jobs; /* [n_jobs], slots + ahead */
  int n_jobs, open, live;
  uint64_t arrivals;
  bool *slot_used; /* [slots] */

  pthread_mutex_t lock;
  pthread_cond_t to_read, has_read, has_decoded;
  pthread_t reader[BATCHER_READERS];
  int n_readers;
  bool stop;
  btc_feature_cache *cache;
  btc_block_pool *feature_pool, *visual_pool;
  btc_parcel_pool *parcels; /* two batches of images: one that is computed, one on its way */
  btc_shades shades;

  int32_t *prefix; /* ids of every caption's beginning; their keys and values are in slot number `slots` */
  int64_t n_prefix, first_positions;
  bool prefix_ready;
  int64_t positions; /* reserved in every slot */
  int64_t images;    /* of one item or one batch that buffers hold */

  float *pixels, *features; /* of one pass of the tower, or of one item; in the backend's memory */
  float *logits;            /* [slots, vocab] on the host */
  btc_features **batch;     /* [vision_batch] */
  btc_picture *pictures;    /* [vision_batch] theirs */
  batch_job **batch_job;    /* [vision_batch] whose image it is */
  btc_features **ahead;     /* [vision_batch] of the next batch */
  btc_stage_item *steps;    /* [slots] */
  batch_job **step_job;     /* [slots] */
  btc_batcher_counts counts;
};

/* batcher_read.c */
void *batcher_read_thread(void *b);
void batcher_drop_images(btc_batcher *b, batch_job *j); /* with the lock held */

void batcher_call_back(btc_batcher *b, batch_job *j); /* the parcels of its images, which may not have arrived; lock held */

/* batcher.c */
batch_job *batcher_first(btc_batcher *b, job_state s, uint64_t from); /* the earliest arrival >= from in that state; lock held */
void batcher_answer(btc_batcher *b, batch_job *j);                    /* frees the job and hands the result out */

/* batcher_run.c: parts of a step. An error is fatal; what is wrong with one job ends that job. *worked: something was computed. */
btc_status batcher_admit(btc_batcher *b, bool *worked, btc_error *err);
btc_status batcher_encode(btc_batcher *b, bool *worked, btc_error *err);
btc_status batcher_prefill(btc_batcher *b, bool *worked, btc_error *err);
btc_status batcher_decode(btc_batcher *b, bool *worked, btc_error *err);
btc_status batcher_reserve(btc_batcher *b, int64_t images, int64_t positions, btc_error *err);
void batcher_drop_visual(btc_batcher *b, batch_job *j);
void batcher_drop_features(btc_batcher *b); /* the buffer of one pass */

/* batcher_shrink.c: after a step that failed with NOMEM for the reason `why`. False: it cannot be smaller. */
bool batcher_shrink(btc_batcher *b, const btc_error *why);
bool batcher_can_shrink(const btc_batcher *b);

#endif
