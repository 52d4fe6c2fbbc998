/* Image files: the first byte chooses mode and side, the rest is the file. Bounds are small so that a run stays fast. */
#include "engine/image.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const int64_t sides[] = {1, 7, 56, 384};
  if (size == 0) return 0;
  btc_image_mode mode = data[0] & 1 ? BTC_IMAGE_PAD : BTC_IMAGE_SQUASH;
  btc_image_limits limits = {.max_pixels = 1000000, .max_bytes = (size_t)64 << 20};
  btc_image im = {0};
  btc_error err = {0};
  int64_t width = 0, height = 0;
  btc_status status =
      btc_image_load_memory(data + 1, size - 1, "fuzz", sides[data[0] >> 1 & 3], mode, &limits, &im, &width, &height, &err);
  if (status == BTC_OK ? !im.rgb || width * height > limits.max_pixels : im.rgb || !err.message[0]) abort();
  btc_image_free(&im);
  if (data[0] & 8) {
    status = btc_image_decode_memory(data + 1, size - 1, "fuzz", &limits, &im, &err);
    if (status == BTC_OK && (im.width != width || im.height != height)) abort();
    btc_image_free(&im);
  }
  return 0;
}
