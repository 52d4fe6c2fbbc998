#include "text.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* One character of at most three bytes at s; all white space fits in three. *n is its length; 0 for anything else. */
static uint32_t character(const unsigned char *s, size_t len, size_t *n) {
  *n = 1;
  if (len >= 1 && s[0] < 0x80) return s[0];
  *n = 2;
  if (len >= 2 && s[0] >> 5 == 6 && s[1] >> 6 == 2) return (uint32_t)(s[0] & 31) << 6 | (s[1] & 63);
  *n = 3;
  if (len >= 3 && s[0] >> 4 == 14 && s[1] >> 6 == 2 && s[2] >> 6 == 2)
    return (uint32_t)(s[0] & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63);
  *n = 0;
  return 0;
}

const char *btc_text_strip(const char *s, size_t *len) {
  const unsigned char *p = (const unsigned char *)s;
  size_t n = *len, step;
  while (n && is_space(character(p, n, &step)) && step) {
    p += step;
    n -= step;
  }
  while (n) {
    size_t back = 1;
    while (back < 3 && back < n && p[n - back] >> 6 == 2) back++;
    uint32_t c = character(p + n - back, back, &step);
    if (step != back || !is_space(c)) break;
    n -= back;
  }
  *len = n;
  return (const char *)p;
}

const char *btc_text_answer(const char *s, size_t *len) {
  s = btc_text_strip(s, len);
  if (*len >= 4 && memcmp(s + *len - 4, "</s>", 4) == 0) {
    *len -= 4;
    s = btc_text_strip(s, len);
  }
  return s;
}
