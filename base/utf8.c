/* Well-formed UTF-8, byte by byte after table 3-7 of the Unicode standard. */
#include "base.h"

static bool in(unsigned char c, unsigned low, unsigned high) {
  return c >= low && c <= high;
}

size_t btc_utf8_char(const char *p, size_t left) {
  const unsigned char *b = (const unsigned char *)p;
  if (b[0] < 0x80) return 1;
  if (in(b[0], 0xC2, 0xDF)) return left >= 2 && in(b[1], 0x80, 0xBF) ? 2 : 0;
  if (in(b[0], 0xE0, 0xEF)) {
    unsigned low = b[0] == 0xE0 ? 0xA0 : 0x80, high = b[0] == 0xED ? 0x9F : 0xBF;
    return left >= 3 && in(b[1], low, high) && in(b[2], 0x80, 0xBF) ? 3 : 0;
  }
  if (in(b[0], 0xF0, 0xF4)) {
    unsigned low = b[0] == 0xF0 ? 0x90 : 0x80, high = b[0] == 0xF4 ? 0x8F : 0xBF;
    return left >= 4 && in(b[1], low, high) && in(b[2], 0x80, 0xBF) && in(b[3], 0x80, 0xBF) ? 4 : 0;
  }
  return 0;
}

size_t btc_utf8_valid(const char *p, size_t n) {
  size_t at = 0;
  while (at < n) {
    size_t step = btc_utf8_char(p + at, n - at);
    if (!step) break;
    at += step;
  }
  return at;
}
