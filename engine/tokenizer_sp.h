/* The one place that talks to libsentencepiece (C++). Nothing thrown there leaves it. */
#ifndef BTC_TOKENIZER_SP_H
#define BTC_TOKENIZER_SP_H

#include "base/base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct btc_sp btc_sp;

/* A growing list of ids; v is malloc'ed. */
typedef struct btc_ids {
  int32_t *v;
  size_t n, capacity;
} btc_ids;

/* Room for `more` further ids; on failure the list is unchanged. */
btc_status btc_ids_reserve(btc_ids *ids, size_t more, btc_error *err);

/* model[len]: a ModelProto written by btc_spm_serialize; it is copied. */
btc_status btc_sp_create(const uint8_t *model, size_t len, btc_sp **out, btc_error *err);
void btc_sp_destroy(btc_sp **sp);

/* Appends the ids of text[len], without BOS, after leaving out the first `skip` of them. Any thread. */
btc_status btc_sp_encode(const btc_sp *sp, const char *text, size_t len, size_t skip, btc_ids *ids, btc_error *err);

#ifdef __cplusplus
}
#endif
#endif
