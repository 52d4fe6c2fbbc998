/* The management library's stand-in: a device is busy for FAKE_NVML percent; without that there is no such library. */
#include <stdlib.h>
#include <string.h>

#include "ops/cuda_parts.h"

static int find(const char *bus, void **device) {
  *device = (void *)bus; /* nobody follows it */
  return strcmp(bus, "0000:00:00.0") != 0;
}

static int busy(void *device, unsigned percent[2]) {
  (void)device;
  percent[0] = (unsigned)atoi(getenv("FAKE_NVML"));
  percent[1] = 0;
  return 0;
}

const cuda_nvml *cuda_nvml_load(void) {
  static const cuda_nvml functions = {find, busy};
  return getenv("FAKE_NVML") ? &functions : NULL;
}
