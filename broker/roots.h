/* Folders that manifests and images must lie in (--root). One thread at a time. */
#ifndef BTC_BROKER_ROOTS_H
#define BTC_BROKER_ROOTS_H

#include "base/base.h"

typedef struct btc_roots btc_roots;

/* text: colon-separated absolute folders; NULL: *out is NULL, which allows every path. ARG, NOT_FOUND. */
btc_status btc_roots_parse(const char *text, btc_roots **out, btc_error *err);
void btc_roots_free(btc_roots **r);

/* Is the absolute path inside a root, once all its links are followed? A file that is not there counts by its folder; a link that
 * leads nowhere, or in a circle, is outside. Touches the disk. */
bool btc_roots_allow(btc_roots *r, const char *path);
/* Forgets the folder that was allowed last: call it before each batch of questions, as links may change meanwhile. */
void btc_roots_refresh(btc_roots *r);

#endif
