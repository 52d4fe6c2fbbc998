/* Tapes: launches and other work kept in their order instead of done, as the capture of a stream keeps them. */
#include <utility>
#include <vector>

#include "kernels/cuda/shim/shim.h"

struct btc_shim_tape {
  std::vector<std::function<int()>> work;
};

static thread_local btc_shim_tape *recording;

btc_shim_tape *btc_shim_tape_begin(void) {
  if (!recording) recording = new btc_shim_tape;
  return recording;
}

void btc_shim_tape_end(void) {
  recording = nullptr;
}

bool btc_shim_keep(std::function<int()> work) {
  if (!recording) return false;
  recording->work.push_back(std::move(work));
  return true;
}

int btc_shim_tape_add(int (*work)(const void *), const void *context, size_t bytes) {
  auto *from = static_cast<const unsigned char *>(context);
  return btc_shim_keep([work, copy = std::vector<unsigned char>(from, from + bytes)] { return work(copy.data()); });
}

int btc_shim_tape_run(const btc_shim_tape *t) {
  for (const auto &work : t->work) {
    int status = work();
    if (status != 0) return status;
  }
  return 0;
}

void btc_shim_tape_destroy(btc_shim_tape *t) {
  delete t;
}
