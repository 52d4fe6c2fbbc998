/* White space as Python's str.strip sees it, which is what the reference post-processes answers with (spec 4.5). */
#ifndef BTC_TEXT_H
#define BTC_TEXT_H

#include <stddef.h>

/* Narrows the UTF-8 text s[*len] (NULs allowed) to its part without surrounding Unicode white space: returns its start and
 * shortens *len. */
const char *btc_text_strip(const char *s, size_t *len);
/* The same, then one literal "</s>" at the end removed, then stripped again: an answer as users see it. */
const char *btc_text_answer(const char *s, size_t *len);

#endif
