/* SentencePiece's space (spec 2.6). */
#ifndef BTC_MARKER_H
#define BTC_MARKER_H

#define BTC_MARKER "\xE2\x96\x81" /* U+2581 */
#define BTC_MARKER_BYTES 3

#endif
