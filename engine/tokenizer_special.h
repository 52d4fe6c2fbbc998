/*
 * What the JSON files beside a tokenizer.model say about special tokens: special_tokens_map.json names bos, eos, unk, pad and
 * others (tokenizer_config.json where it does not), added_tokens.json gives ids to tokens behind the model's pieces.
 */
#ifndef BTC_TOKENIZER_SPECIAL_H
#define BTC_TOKENIZER_SPECIAL_H

#include "base/base.h"

#define BTC_SPECIAL_MAX 256       /* special tokens of one tokenizer; the release has three, VILA adds up to three */
#define BTC_SPECIAL_MAX_BYTES 256 /* the longest of them */

typedef enum btc_special_role {
  BTC_SPECIAL_BOS,
  BTC_SPECIAL_EOS,
  BTC_SPECIAL_UNK,
  BTC_SPECIAL_PAD,
  BTC_SPECIAL_OTHER
} btc_special_role;

typedef struct btc_special {
  char *text;
  size_t len;
  int32_t id; /* -1: no file gives one */
  btc_special_role role;
} btc_special;

typedef struct btc_special_list {
  btc_special v[BTC_SPECIAL_MAX];
  size_t n;
} btc_special_list;

/* Reads what is there of the three files in dir; a file that is there must be good. */
btc_status btc_special_read(const char *dir, btc_special_list *list, btc_error *err);

/* Copies text[len] to the end of the list; where names the file in messages. */
btc_status btc_special_add(btc_special_list *list, btc_special_role role, const char *text, size_t len, int32_t id,
                           const char *where, btc_error *err);

/* First entry of that role, NULL when there is none. */
const btc_special *btc_special_of(const btc_special_list *list, btc_special_role role);

void btc_special_free(btc_special_list *list);

#endif
