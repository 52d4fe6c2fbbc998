/* A manifest of pairs through one session, in batches: records on stdout in manifest order (architecture: no queue). */
#ifndef BTC_CLI_PAIRS_H
#define BTC_CLI_PAIRS_H

#include "model_options.h"

/* Returns an exit code: 0 all fine, 3 some failed, 1 could not go on, 130 interrupted (records so far are whole lines). */
int caption_pairs(const model_options *o, btc_model *m, btc_session *s, const char *prompt, const char *manifest, bool strict);

#endif
