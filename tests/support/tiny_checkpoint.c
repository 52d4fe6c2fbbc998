#include "tiny_checkpoint.h"

#include <stdio.h>
#include <sys/stat.h>

#include "cli/make_model.h"
#include "engine/image.h"
#include "test.h"
#include "tiny_tokenizer.h"

static const make_model_size tiny_size = {.image = 74,
                                          .patch = 14,
                                          .vision_hidden = 36,
                                          .vision_mlp = 84,
                                          .vision_layers = 4,
                                          .vision_heads = 3,
                                          .hidden = 48,
                                          .mlp = 104,
                                          .layers = 3,
                                          .heads = 6,
                                          .kv_heads = 3,
                                          .vocab = 300,
                                          .context = 512};

static const char *build(char dir[128], const char *name, const make_model_size *size, int64_t shard_bytes) {
  char tokenizer[128], file[160];
  btc_error err = {0};
  if (dir[0]) return dir;
  snprintf(tokenizer, sizeof tokenizer, "%s/tokenizer", test_tmp_dir());
  mkdir(tokenizer, 0755);
  snprintf(file, sizeof file, "%s/tokenizer.model", tokenizer);
  tiny_model m = {0};
  tiny_default(&m);
  assert_int_equal(btc_file_publish(file, m.bytes, m.n, &err), BTC_OK);
  snprintf(dir, 128, "%s/%s", test_tmp_dir(), name);
  if (make_model_write(dir, size, tokenizer, shard_bytes, 7, &err) != BTC_OK) fail_msg("%s", err.message);
  return dir;
}

const char *tiny_checkpoint(void) {
  static char dir[128];
  return build(dir, "tiny", &tiny_size, 1 << 30);
}

const char *tiny_checkpoint_sharded(void) {
  static char dir[128];
  return build(dir, "tiny-sharded", &tiny_size, 60000);
}

const char *tiny_checkpoint_of_heads(int heads, int kv_heads) {
  static char dir[128];
  make_model_size size = tiny_size;
  size.heads = heads;
  size.kv_heads = kv_heads;
  return build(dir, "tiny-heads", &size, 1 << 30);
}

const char *tiny_picture(int w, int h, unsigned seed) {
  static char paths[64][160];
  static int n;
  char *path = paths[n++ % 64];
  btc_image im = {.width = w, .height = h, .rgb = malloc((size_t)w * (size_t)h * 3)};
  uint8_t *png;
  size_t len;
  btc_error err;
  uint32_t x = seed;
  assert_non_null(im.rgb);
  for (int i = 0; i < w * h * 3; i++) {
    x = x * 1664525u + 1013904223u;
    im.rgb[i] = (uint8_t)(x >> 24);
  }
  snprintf(path, sizeof paths[0], "%s/picture-%d-%d-%u.png", test_tmp_dir(), w, h, seed);
  assert_int_equal(btc_image_encode_png(&im, &png, &len, &err), BTC_OK);
  assert_int_equal(btc_file_publish(path, png, len, &err), BTC_OK);
  free(png);
  btc_image_free(&im);
  return path;
}
