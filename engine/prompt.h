/*
 * Conversations to text (template v1, spec 4.1) and text with <image> holes to ids (spec 4.3).
 */
#ifndef BTC_PROMPT_H
#define BTC_PROMPT_H

#include "tokenizer.h"

#define BTC_IMAGE_ID (-200) /* stands for one block of visual tokens */
#define BTC_IMAGE_TAG "<image>"
#define BTC_PROMPT_MAX_BYTES (1u << 20) /* longest rendered prompt */
extern const char btc_prompt_system[];  /* the v1 system text */
extern const char btc_prompt_caption[]; /* "Please briefly describe the main changes ..." (spec 4.2) */

typedef struct btc_message {
  const char *role; /* "USER" or "ASSISTANT" */
  const char *text; /* NULL or "": rendered as ROLE + ":" */
} btc_message;

/* Renders with template v1. *text malloc'ed, caller frees. LIMIT when longer than BTC_PROMPT_MAX_BYTES. */
btc_status btc_prompt_render(const btc_message *messages, size_t n, char **text, btc_error *err);

/* USER: "<image>\n" * n_images + question, open ASSISTANT turn. A question that itself contains "<image>" is refused
 * (BTC_ERR_ARG): it would ask for a block that does not exist (spec 4.2). */
btc_status btc_prompt_question(const char *question, size_t n_images, char **text, btc_error *err);

/* Splits at <image>, encodes every chunk, joins with BTC_IMAGE_ID; only the first BOS survives. *ids malloc'ed. */
btc_status btc_prompt_encode(const btc_tokenizer *t, const char *text, int32_t **ids, size_t *n, btc_error *err);

/* A question out of a file: at most BTC_PROMPT_MAX_BYTES, valid UTF-8, no NUL; one trailing newline is removed. */
btc_status btc_prompt_read_file(const char *path, char **question, btc_error *err);

#endif
