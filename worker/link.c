/* Checksum and message authentication of the links. */
#include "link.h"

#include <pthread.h>
#include <string.h>

/* ---- CRC-32C (Castagnoli): the processor's own instruction, or tables, eight bytes a turn ---- */

static uint32_t table[8][256];
static bool has_instruction;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_table(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
    table[0][i] = c;
  }
  for (uint32_t i = 0; i < 256; i++)
    for (int k = 1; k < 8; k++) table[k][i] = table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
#if defined(__x86_64__)
  has_instruction = __builtin_cpu_supports("sse4.2") > 0;
#endif
}

static uint32_t by_tables(uint32_t crc, const uint8_t *p, size_t n) {
  for (; n >= 8; n -= 8, p += 8) {
    crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    crc = table[7][crc & 255] ^ table[6][crc >> 8 & 255] ^ table[5][crc >> 16 & 255] ^ table[4][crc >> 24] ^ table[3][p[4]] ^
          table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
  }
  for (; n; n--, p++) crc = crc >> 8 ^ table[0][(crc ^ *p) & 255];
  return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
  uint64_t c = crc, word;
  for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
    memcpy(&word, p, sizeof word);
    c = __builtin_ia32_crc32di(c, word);
  }
  for (; n; n--, p++) c = __builtin_ia32_crc32qi((uint32_t)c, *p);
  return (uint32_t)c;
}
#else
static uint32_t by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
  return by_tables(crc, p, n);
}
#endif

uint32_t btc_link_crc32c(uint32_t crc, const void *data, size_t n) {
  pthread_once(&once, make_table);
  return ~(has_instruction ? by_instruction(~crc, data, n) : by_tables(~crc, data, n));
}

uint32_t btc_link_crc32c_tables(uint32_t crc, const void *data, size_t n) {
  pthread_once(&once, make_table);
  return ~by_tables(~crc, data, n);
}

/* ---- HMAC-SHA-256 (RFC 2104) ---- */

void btc_link_hmac(const uint8_t key[BTC_LINK_SECRET], const btc_link_part *parts, int n, uint8_t mac[32]) {
  uint8_t pad[64], inner[32];
  btc_sha256 s;
  memset(pad, 0x36, sizeof pad);
  for (int i = 0; i < BTC_LINK_SECRET; i++) pad[i] ^= key[i];
  btc_sha256_init(&s);
  btc_sha256_update(&s, pad, sizeof pad);
  for (int i = 0; i < n; i++) btc_sha256_update(&s, parts[i].data, parts[i].bytes);
  btc_sha256_final(&s, inner);
  for (int i = 0; i < 64; i++) pad[i] ^= 0x36 ^ 0x5c;
  btc_sha256_init(&s);
  btc_sha256_update(&s, pad, sizeof pad);
  btc_sha256_update(&s, inner, sizeof inner);
  btc_sha256_final(&s, mac);
}

btc_link_limits btc_link_limits_default(void) {
  return (btc_link_limits){.max_bytes = (size_t)256 << 20, .frame_ms = 10000, .hello_ms = 1000};
}
