/*
 * NCCL as far as worker/link_nccl.c uses it, without a GPU: a library to load in its place (BTCCHAT_NCCL). Ranks are processes or
 * threads of one machine; bytes pass through a file that all of them map, below FAKE_NCCL_DIR (default /tmp). Streams are those of
 * tests/gpu_host/fake: one is busy until what was put on it has been moved.
 *
 * As the real one: nothing but non-blocking communicators, a rank that is gone raises no error, two ranks on one card of one host
 * are refused (NCCL_HOSTID tells hosts apart), an abort frees a communicator and nothing else does.
 *
 * FAKE_NCCL_FAIL=RANK:WHAT[:N],...  what goes wrong at a rank, at the Nth transfer after joining (the proof counts), N from 1:
 *   init-hang, init-fail  joining never ends; fails    abort-hang  so does ncclCommAbort
 *   hang, async, call     the transfer never moves; fails later; is refused at once    flip  it brings a wrong byte
 *   kill                  the process is killed        no-id       ncclGetUniqueId fails, at any rank
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <nccl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

enum { RANKS = 8, RING = 1 << 16, OPS = 16, VERSION = 22809 };

typedef struct ring {
  atomic_ulong head, tail;
  char data[RING];
} ring;

typedef struct shared {
  atomic_int joined[RANKS];
  int device[RANKS];
  char host[RANKS][64];
  ring ring[RANKS][RANKS]; /* [from][to] */
} shared;

typedef struct op {
  bool out, hang, flip;
  char *data;
  size_t bytes, done;
  int peer;
  cudaStream_t stream;
} op;

struct ncclComm {
  struct ncclComm *next;
  shared *s;
  char path[200];
  int rank, ranks, polls; /* polls: so often it is still in progress */
  bool joined, hangs;
  ncclResult_t error;
  long transfers;
  op ops[OPS];
  int n_ops;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ncclComm *comms;
static atomic_int live, aborts;
static _Thread_local int depth;

ncclResult_t ncclGroupStart(void); /* nccl.h declares these without prototypes */
ncclResult_t ncclGroupEnd(void);
int fake_nccl_live(void);
int fake_nccl_aborts(void);

int fake_nccl_live(void) {
  return atomic_load(&live);
}
int fake_nccl_aborts(void) {
  return atomic_load(&aborts);
}

/* ---- what goes wrong ---- */

static bool fails(int rank, const char *what, long at) {
  const char *text = getenv("FAKE_NCCL_FAIL");
  for (; text && *text; text = strchr(text, ',') ? strchr(text, ',') + 1 : NULL) {
    char name[32];
    int r;
    long n = 0;
    if (sscanf(text, "%d:%31[a-z-]:%ld", &r, name, &n) >= 2 && r == rank && strcmp(name, what) == 0 && n == at) return true;
  }
  return false;
}

/* ---- bytes ---- */

/* With the lock held. */
static void move(struct ncclComm *c, op *o) {
  ring *r = o->out ? &c->s->ring[c->rank][o->peer] : &c->s->ring[o->peer][c->rank];
  while (o->done < o->bytes && !o->hang) {
    unsigned long head = atomic_load(&r->head), tail = atomic_load(&r->tail);
    size_t n = o->out ? RING - (head - tail) : head - tail, at = (o->out ? head : tail) % RING;
    if (n > o->bytes - o->done) n = o->bytes - o->done;
    if (n > RING - at) n = RING - at;
    if (!n) return;
    if (o->out)
      memcpy(r->data + at, o->data + o->done, n);
    else
      memcpy(o->data + o->done, r->data + at, n);
    if (o->out && o->flip && !o->done) r->data[at] ^= 1;
    atomic_store(o->out ? &r->head : &r->tail, (o->out ? head : tail) + n);
    o->done += n;
  }
}

static void move_all(struct ncclComm *c) {
  while (c->n_ops) {
    move(c, &c->ops[0]);
    if (c->ops[0].done < c->ops[0].bytes) return;
    memmove(c->ops, c->ops + 1, (size_t)--c->n_ops * sizeof *c->ops);
  }
}

static int busy(cudaStream_t s) {
  int n = 0;
  pthread_mutex_lock(&lock);
  for (struct ncclComm *c = comms; c; c = c->next) {
    move_all(c);
    for (int i = 0; i < c->n_ops; i++) n += c->ops[i].stream == s;
  }
  pthread_mutex_unlock(&lock);
  return n > 0;
}

__attribute__((constructor)) static void hook(void) {
  int (**place)(cudaStream_t);
  void *found = dlsym(RTLD_DEFAULT, "fake_cuda_busy");
  memcpy(&place, &found, sizeof place);
  if (place) *place = busy;
}

/* ---- life ---- */

ncclResult_t ncclGetVersion(int *version) {
  const char *other = getenv("FAKE_NCCL_VERSION");
  *version = other ? atoi(other) : VERSION;
  return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t rc) {
  static const char *const texts[] = {"no error",
                                      "unhandled cuda error",
                                      "unhandled system error",
                                      "internal error",
                                      "invalid argument",
                                      "invalid usage",
                                      "remote process exited or there was a network error",
                                      "in progress"};
  return (unsigned)rc < 8 ? texts[rc] : "unknown";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  unsigned long r[2];
  if (fails(0, "no-id", 0) || getrandom(r, sizeof r, 0) != sizeof r) return ncclSystemError;
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "fake-nccl-%lx%lx", r[0], r[1]);
  return ncclSuccess;
}

static shared *map(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  void *m = MAP_FAILED;
  if (fd >= 0 && ftruncate(fd, sizeof(shared)) == 0) m = mmap(NULL, sizeof(shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd >= 0) close(fd);
  return m == MAP_FAILED ? NULL : m;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
  const char *dir = getenv("FAKE_NCCL_DIR"), *host = getenv("NCCL_HOSTID");
  cudaError_t (*get_device)(int *);
  void *found = dlsym(RTLD_DEFAULT, "cudaGetDevice");
  *out = NULL;
  memcpy(&get_device, &found, sizeof get_device);
  if (ranks < 1 || ranks > RANKS || rank < 0 || rank >= ranks || config->magic != 0xcafebeef || config->blocking != 0 ||
      strncmp(id.internal, "fake-nccl-", 10) != 0 || memchr(id.internal, '/', sizeof id.internal))
    return ncclInvalidArgument;
  struct ncclComm *c = calloc(1, sizeof *c);
  if (!c) return ncclSystemError;
  snprintf(c->path, sizeof c->path, "%s/%.60s", dir ? dir : "/tmp", id.internal);
  c->s = map(c->path);
  if (!c->s) {
    free(c);
    return ncclSystemError;
  }
  c->rank = rank;
  c->ranks = ranks;
  c->polls = 3;
  c->hangs = fails(rank, "init-hang", 0);
  if (get_device) get_device(&c->s->device[rank]);
  snprintf(c->s->host[rank], sizeof c->s->host[rank], "%s", host ? host : "this");
  if (!c->hangs) atomic_store(&c->s->joined[rank], 1);
  pthread_mutex_lock(&lock);
  c->next = comms;
  comms = c;
  pthread_mutex_unlock(&lock);
  atomic_fetch_add(&live, 1);
  *out = c;
  return ncclInProgress;
}

/* Once all are there. */
static ncclResult_t finish_joining(struct ncclComm *c) {
  if (fails(c->rank, "init-fail", 0)) return ncclSystemError;
  if (c->hangs) return ncclInProgress;
  for (int i = 0; i < c->ranks; i++)
    if (!atomic_load(&c->s->joined[i])) return ncclInProgress;
  for (int i = 0; i < c->ranks; i++)
    if (i != c->rank && c->s->device[i] == c->s->device[c->rank] && !strcmp(c->s->host[i], c->s->host[c->rank]))
      return ncclInvalidUsage; /* Duplicate GPU detected */
  unlink(c->path);
  c->joined = true;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state) {
  if (c->error == ncclSuccess && !c->joined) {
    ncclResult_t rc = finish_joining(c);
    if (rc != ncclSuccess && rc != ncclInProgress) c->error = rc;
    *state = rc;
    return ncclSuccess;
  }
  *state = c->error != ncclSuccess ? c->error : c->polls > 0 ? ncclInProgress : ncclSuccess;
  c->polls -= c->polls > 0;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t c) {
  atomic_fetch_add(&aborts, 1);
  while (fails(c->rank, "abort-hang", 0)) usleep(10000);
  pthread_mutex_lock(&lock);
  struct ncclComm **at = &comms;
  while (*at && *at != c) at = &(*at)->next;
  if (*at) *at = c->next;
  pthread_mutex_unlock(&lock);
  unlink(c->path);
  munmap(c->s, sizeof *c->s);
  free(c);
  atomic_fetch_sub(&live, 1);
  return ncclSuccess;
}

/* ---- transfers ---- */

ncclResult_t ncclGroupStart(void) {
  depth++;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
  return --depth < 0 ? ncclInvalidUsage : ncclInProgress;
}

static ncclResult_t put(struct ncclComm *c, bool out, void *data, size_t bytes, int peer, cudaStream_t stream) {
  if (!depth || !c->joined || peer < 0 || peer >= c->ranks || peer == c->rank || c->n_ops == OPS) return ncclInvalidUsage;
  long at = ++c->transfers;
  if (fails(c->rank, "call", at)) return ncclInternalError;
  if (fails(c->rank, "kill", at)) kill(getpid(), SIGKILL);
  if (fails(c->rank, "async", at)) c->error = ncclRemoteError;
  op o = {.out = out, .data = data, .bytes = bytes, .peer = peer, .stream = stream};
  o.hang = c->error != ncclSuccess || fails(c->rank, "hang", at);
  o.flip = fails(c->rank, "flip", at);
  pthread_mutex_lock(&lock);
  c->ops[c->n_ops++] = o;
  pthread_mutex_unlock(&lock);
  c->polls = 2;
  return ncclSuccess;
}

ncclResult_t ncclSend(const void *data, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
  return type == ncclUint8 ? put(c, true, (void *)(uintptr_t)data, n, peer, stream) : ncclInvalidArgument;
}

ncclResult_t ncclRecv(void *data, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
  return type == ncclUint8 ? put(c, false, data, n, peer, stream) : ncclInvalidArgument;
}
