/* Which devices there are, and which one a name means. The one place outside cuda*.c that asks whether CUDA was built. */
#include <stdlib.h>
#include <string.h>

#include "ops/backend.h"

bool btc_device_known(const char *kind) {
  if (!strcmp(kind, "auto") || !strcmp(kind, "cpu") || !strcmp(kind, "plain")) return true;
  if (strncmp(kind, "cuda", 4) != 0) return false;
  if (kind[4] == 0) return true;
  size_t digits = kind[4] == ':' ? strspn(kind + 5, "0123456789") : 0;
  return digits > 0 && digits <= 3 && kind[5 + digits] == 0;
}

int btc_device_index(const char *kind) {
  return strncmp(kind, "cuda:", 5) == 0 ? (int)strtol(kind + 5, NULL, 10) : 0;
}

bool btc_device_has_bf16(const char *kind) {
  return !strncmp(kind, "cuda", 4) || btc_cpu_has_bf16(); /* every GPU we build for multiplies bf16 */
}

int btc_device_count(btc_error *err) {
#ifdef BTC_HAVE_CUDA
  return btc_cuda_device_count(err);
#else
  btc_fail(err, BTC_ERR_UNSUPPORTED, "no CUDA device: this build has no CUDA backend");
  return 0;
#endif
}

btc_status btc_device_query(int index, btc_device_info *out, btc_error *err) {
#ifdef BTC_HAVE_CUDA
  return btc_cuda_device_query(index, out, err);
#else
  (void)index;
  (void)out;
  return btc_fail(err, BTC_ERR_UNSUPPORTED, "no CUDA device: this build has no CUDA backend");
#endif
}

const char *btc_device_choose(const char *kind) {
  btc_error ignored;
  if (kind && strcmp(kind, "auto") != 0) return kind;
  return btc_device_count(&ignored) > 0 ? "cuda" : "cpu";
}
