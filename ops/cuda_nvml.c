/* NVIDIA's management library, which the driver brings: only it tells how busy a device is. Its types are plain: a device is a
 * pointer, and the use of one is two numbers in percent, of its processors and of its memory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#include "ops/cuda_parts.h"

static cuda_nvml functions;
static bool there;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool find(void *library, const char *name, void *function) {
  void *found = dlsym(library, name);
  memcpy(function, &found, sizeof found); /* data and function pointers are of one size wherever dlsym is */
  return found;
}

/* It stays loaded, and is not shut down: the process ends sooner or later. */
static void load(void) {
  int (*start)(void) = NULL;
  void *l = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  there = l && find(l, "nvmlInit_v2", &start) && find(l, "nvmlDeviceGetHandleByPciBusId_v2", &functions.find) &&
          find(l, "nvmlDeviceGetUtilizationRates", &functions.busy) && start() == 0;
}

const cuda_nvml *cuda_nvml_load(void) {
  pthread_once(&once, load);
  return there ? &functions : NULL;
}
