/* Allocation with checked products and one place where tests make it fail. */
#include "base.h"

#include <stdlib.h>
#include <string.h>

bool (*btc_alloc_hook)(size_t bytes);

static bool allowed(size_t count, size_t size, size_t *bytes) {
  if (__builtin_mul_overflow(count, size, bytes)) return false;
  if (*bytes == 0) *bytes = 1; /* a NULL must always mean "no memory" */
  return !btc_alloc_hook || btc_alloc_hook(*bytes);
}

void *btc_alloc(size_t count, size_t size) {
  size_t bytes;
  return allowed(count, size, &bytes) ? malloc(bytes) : NULL;
}

void *btc_alloc_zero(size_t count, size_t size) {
  size_t bytes;
  return allowed(count, size, &bytes) ? calloc(1, bytes) : NULL;
}

void *btc_realloc(void *p, size_t count, size_t size) {
  size_t bytes;
  return allowed(count, size, &bytes) ? realloc(p, bytes) : NULL;
}

char *btc_strndup(const char *s, size_t n) {
  if (!s) return NULL;
  char *copy = btc_alloc(n + 1, 1);
  if (!copy) return NULL;
  memcpy(copy, s, n);
  copy[n] = 0;
  return copy;
}

char *btc_strdup(const char *s) {
  return s ? btc_strndup(s, strlen(s)) : NULL;
}
