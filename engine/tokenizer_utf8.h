/* UTF-8 as the tokenizer and the prompt see it: one question, answered in one place. */
#ifndef BTC_TOKENIZER_UTF8_H
#define BTC_TOKENIZER_UTF8_H

#include <stdbool.h>
#include <stddef.h>

#define BTC_MARKER "\xE2\x96\x81" /* U+2581, SentencePiece's space */
#define BTC_MARKER_BYTES 3

/* Bytes (1..4) of the well-formed character at p, 0 when there is none: overlong forms, surrogates, values over U+10FFFF and
 * truncated sequences are not characters (Unicode 15, table 3-7). left > 0. */
size_t btc_utf8_char(const char *p, size_t left);

/* Offset of the first byte that is not part of a well-formed character; n when there is none. */
size_t btc_utf8_valid(const char *p, size_t n);

#endif
