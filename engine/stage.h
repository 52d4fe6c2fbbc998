/*
 * The model as one line of blocks (architecture: "The model as one line of blocks"):
 *
 *   patch | vision 0.. | change+project | splice | llm 0.. | head
 *
 * A stage runs any contiguous range [first,last) of it on its own backend, with its own working memory and key/value slots. A
 * whole model is the range of all blocks; a pipeline is several stages whose flow tensor is handed from one to the next.
 * Cutting changes no bit: every operator's rows depend on their own inputs only (ops.h).
 *
 * The flow tensor at a cut is float32 [rows, width], items one after another:
 *   before patch            images      [3*side*side]          pixels
 *   patch .. last vision    images*T    [C]                    features
 *   after change+project    blocks*T'   [D]                    visual tokens (one block an image, pair or frame)
 *   after splice .. llm     positions   [D]                    embeddings / hidden states
 *   after head              items       [vocab]                logits of the last position
 * In a decode step only splice, llm and head take part, with one row an item; splice then reads the item's token.
 *
 * Private to engine/ (and to worker/ later). Thread: one stage, one thread at a time.
 */
#ifndef BTC_STAGE_H
#define BTC_STAGE_H

#include "model.h"

typedef enum btc_block_kind {
  BTC_BLOCK_PATCH,
  BTC_BLOCK_VISION,
  BTC_BLOCK_CHANGE,
  BTC_BLOCK_SPLICE,
  BTC_BLOCK_LLM,
  BTC_BLOCK_HEAD
} btc_block_kind;

typedef struct btc_block {
  btc_block_kind kind;
  int64_t index;        /* which vision or llm block */
  int64_t weight_bytes; /* matrices and vectors it reads, as stored */
} btc_block;

/* What a block costs for a load: images (as pairs if pairs), positions prefilled, and decode steps of one position. */
typedef struct btc_load {
  int64_t images, blocks, positions;
  bool pairs;
} btc_load;

int btc_block_count(const btc_model *m);
btc_block btc_block_at(const btc_model *m, int i);
void btc_block_name(const btc_model *m, int i, char out[32]); /* "patch", "vision 3", "change", "splice", "llm 0", "head" */
double btc_block_flops(const btc_model *m, int i, const btc_load *load); /* multiply and add count as two */

/* What every stage of a pipeline knows of an item. ids are prompt ids with BTC_IMAGE_ID holes. */
typedef struct btc_stage_item {
  int n_images;       /* 1, 2 or video_frames */
  const int32_t *ids; /* prefill: the prompt */
  int64_t n_ids;
  int64_t positions; /* prefill: rows of the spliced prompt that are computed, from past on; decode: 1 */
  int64_t past;      /* positions already in the slot: 0 for a whole prefill, more for its later chunks or behind a copied prefix */
  int32_t token;     /* decode: the token to feed */
  int slot;          /* key/value slot, 0..slots-1 */
  float *cosine;     /* [T] receives the change map of a pair, on the host or in the backend's memory; may be NULL */
  float *visual; /* its visual blocks in the backend's memory instead of in the flow, NULL: in the flow. splice reads them; a run
                  * that ends before it writes them */
  bool greedy;   /* head: a device's pick is all that is wanted of its logits (btc_stage_picks) */
} btc_stage_item;

int btc_item_blocks(const btc_stage_item *it); /* visual blocks it becomes: 1 for an image or a pair, else one a frame */

/* Sees intermediate tensors as they are computed (verify); names as in the golden vectors: "tower.embed", "ce.out", ... */
typedef void btc_tap(void *user, const char *name, const float *data, int64_t rows, int64_t cols);

typedef struct btc_stage_options {
  const char *backend; /* "cpu" or "plain" */
  int threads;
  btc_compute compute;
  int slots;                  /* items with live keys and values, and most items of a batch */
  const volatile int *cancel; /* checked between blocks; may be NULL */
  uint64_t *progress;         /* grows atomically with every block; may be NULL */
  int64_t pick_vocab;         /* a device picks among the first so many logits of a row; 0: it does not */
} btc_stage_options;

typedef struct btc_stage btc_stage;

btc_status btc_stage_create(const btc_model *m, int first, int last, const btc_stage_options *o, btc_stage **out, btc_error *err);
void btc_stage_destroy(btc_stage **s);
/* Reads and maps all weights of blocks [first,last) of a model in host memory, so that no step waits for a page, and those read in
 * rows only (the table of embeddings) are there as well. progress as above. Waits for the disk; thread: any, steps may run. */
void btc_stage_fetch(const btc_model *m, int first, int last, uint64_t *progress);
/* Grows working memory so that these items can be prefilled and then decoded up to slot_positions positions each. All of the
 * stage's growing happens here; running allocates nothing. What slots hold is lost when they grow. NOMEM leaves it usable. */
btc_status btc_stage_reserve(btc_stage *s, const btc_stage_item *items, int n, int64_t slot_positions, btc_error *err);
/* Fewer slots from now on, with nothing reserved: the memory of slots and activations is given back. NOMEM: nothing changed. */
btc_status btc_stage_shrink(btc_stage *s, int slots, btc_error *err);
void btc_stage_set_tap(btc_stage *s, btc_tap *tap, void *user); /* NULL: none */
const char *btc_stage_describe(const btc_stage *s);
btc_backend *btc_stage_backend(btc_stage *s);                    /* to copy what it reads and has written, in order with its work */
bool btc_stage_device(const btc_stage *s, btc_device_info *out); /* as btc_backend_device; any thread */

/* Floats of the flow tensor before block i (i == block count: after the last) for a prefill or a decode step of these items. */
int64_t btc_flow_floats(const btc_model *m, int i, const btc_stage_item *items, int n, bool decode);

/* Runs the stage's range over n items: a prefill of their images and prompts, or one decode step. in and out are flow tensors at
 * its two ends (of btc_flow_floats floats, in host or the backend's memory; not overlapping). CANCELLED when asked to stop; then
 * the slots of these items hold nothing of use. A stage that ends before splice ignores decode steps. */
btc_status btc_stage_prefill(btc_stage *s, const btc_stage_item *items, int n, const float *in, float *out, btc_error *err);
btc_status btc_stage_decode(btc_stage *s, const btc_stage_item *items, int n, const float *in, float *out, btc_error *err);

/* The same prefill in parts, for a caller that keeps the flow at some cut, or that takes a prompt in chunks of positions: only
 * blocks [first,last) within the stage's range. A chunk is [past, past + positions) of the spliced prompt and changes no bit of any
 * row (ops.h); the item's whole ids and all its visual blocks are given each time. The head gives logits of a chunk's last row. */
btc_status btc_stage_prefill_part(btc_stage *s, int first, int last, const btc_stage_item *items, int n, const float *in,
                                  float *out, btc_error *err);
/* The same without waiting: in and out are the backend's memory, or NULL where nothing is read or wanted. What goes wrong on a
 * device is said by the next call that waits. */
btc_status btc_stage_issue_part(btc_stage *s, int first, int last, const btc_stage_item *items, int n, const float *in, float *out,
                                btc_error *err);
/* The greedy picks of the last run that ended behind the head, one an item; NULL: there are none, its logits are all there is. Rows
 * of logits of items that were `greedy` have not been written then. */
const btc_pick *btc_stage_picks(const btc_stage *s);
/* Bytes of a CUDA device's memory that a stage over all blocks and its batcher take: weights as they are kept there, keys and
 * values of one slot of so many positions, and all else for so many slots: activations of a pass, windows of products, tables. */
typedef struct btc_device_needs {
  int64_t weights, slot, activations;
} btc_device_needs;
#define BTC_DEVICE_IMAGES 32 /* of one pass of a device's tower */
btc_device_needs btc_stage_device_needs(const btc_model *m, btc_compute compute, int slots, int64_t positions);

/* Keys and values of the first positions of one slot, into another one. */
btc_status btc_stage_copy_slot(btc_stage *s, int from, int to, int64_t positions, btc_error *err);

/* Milliseconds spent so far per block kind, [BTC_BLOCK_HEAD + 1], prefill and decode apart. A device works behind our back: what a
 * kind took there is known only when `timed`, which waits for it wherever another kind begins. */
void btc_stage_set_timed(btc_stage *s, bool timed);
typedef struct btc_stage_times {
  double prefill_ms[BTC_BLOCK_HEAD + 1], decode_ms[BTC_BLOCK_HEAD + 1];
} btc_stage_times;
btc_stage_times btc_stage_get_times(const btc_stage *s);

#endif
