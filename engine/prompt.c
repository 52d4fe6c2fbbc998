/* Template v1 (spec 4.1) as text, and text with <image> holes as ids (spec 4.3). */
#include "prompt.h"

#include <stdlib.h>
#include <string.h>

#include "tokenizer_sp.h"

const char btc_prompt_system[] =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
    "answers to the user's questions.";
const char btc_prompt_caption[] = "Please briefly describe the main changes between the above two remote sensing images.";

/* ---- rendering ---- */

/* Text that grows by append; the first failure stays. */
typedef struct text_buffer {
  char *text;
  size_t n, capacity;
  btc_status status;
} text_buffer;

static void append(text_buffer *b, const char *text) {
  size_t len = strlen(text);
  if (b->status != BTC_OK) return;
  if (len > BTC_PROMPT_MAX_BYTES - b->n) {
    b->status = BTC_ERR_LIMIT;
    return;
  }
  if (b->n + len + 1 > b->capacity) {
    size_t capacity = 2 * (b->n + len) + 1; /* at most 2 MiB */
    char *grown = btc_realloc(b->text, capacity, 1);
    if (!grown) {
      b->status = BTC_ERR_NOMEM;
      return;
    }
    b->text = grown;
    b->capacity = capacity;
  }
  memcpy(b->text + b->n, text, len + 1);
  b->n += len;
}

static btc_status take_text(text_buffer *b, char **text, btc_error *err) {
  *text = NULL;
  if (b->status == BTC_OK) {
    *text = b->text;
    return BTC_OK;
  }
  free(b->text);
  if (b->status == BTC_ERR_LIMIT)
    return btc_fail(err, BTC_ERR_LIMIT, "the prompt is too long: more than %u bytes", BTC_PROMPT_MAX_BYTES);
  return btc_fail(err, b->status, "no memory for the prompt");
}

static void append_message(text_buffer *b, const btc_message *m, const char *separator) {
  append(b, m->role);
  append(b, ":");
  if (!m->text || !m->text[0]) return; /* an open turn: nothing after the colon, not even a space */
  append(b, " ");
  append(b, m->text);
  append(b, separator);
}

btc_status btc_prompt_render(const btc_message *messages, size_t n, char **text, btc_error *err) {
  text_buffer b = {0};
  *text = NULL;
  for (size_t i = 0; i < n; i++)
    if (!messages[i].role || (strcmp(messages[i].role, "USER") != 0 && strcmp(messages[i].role, "ASSISTANT") != 0))
      return btc_fail(err, BTC_ERR_ARG, "message %zu has the role '%s'; it must be USER or ASSISTANT", i + 1,
                      messages[i].role ? messages[i].role : "");
  append(&b, btc_prompt_system);
  append(&b, " ");
  for (size_t i = 0; i < n; i++) append_message(&b, &messages[i], messages[i].role[0] == 'U' ? " " : "</s>");
  return take_text(&b, text, err);
}

btc_status btc_prompt_question(const char *question, size_t n_images, char **text, btc_error *err) {
  text_buffer b = {0};
  *text = NULL;
  if (!question) return btc_fail(err, BTC_ERR_ARG, "there is no question");
  if (strstr(question, BTC_IMAGE_TAG))
    return btc_fail(err, BTC_ERR_ARG, "the question must not contain %s: it is put in front of the question for every image",
                    BTC_IMAGE_TAG);
  for (size_t i = 0; i < n_images && b.status == BTC_OK; i++) append(&b, BTC_IMAGE_TAG "\n");
  append(&b, question);
  char *message = NULL;
  btc_status st = take_text(&b, &message, err);
  if (st != BTC_OK) return st;
  const btc_message turns[] = {{"USER", message}, {"ASSISTANT", NULL}};
  st = btc_prompt_render(turns, 2, text, err);
  free(message);
  return st;
}

/* ---- ids ---- */

/* Appends the ids of one chunk without its BOS. */
static btc_status encode_chunk(const btc_tokenizer *t, const char *text, size_t len, btc_ids *ids, btc_error *err) {
  int32_t *chunk = NULL;
  size_t n = 0;
  btc_status st = btc_tokenizer_encode(t, text, len, &chunk, &n, err);
  if (st == BTC_OK) st = btc_ids_reserve(ids, n, err);
  if (st == BTC_OK) {
    memcpy(ids->v + ids->n, chunk + 1, (n - 1) * sizeof *chunk);
    ids->n += n - 1;
  }
  free(chunk);
  return st;
}

btc_status btc_prompt_encode(const btc_tokenizer *t, const char *text, int32_t **ids, size_t *n, btc_error *err) {
  btc_ids list = {0};
  size_t len = strlen(text);
  *ids = NULL;
  *n = 0;
  if (len > BTC_PROMPT_MAX_BYTES)
    return btc_fail(err, BTC_ERR_LIMIT, "the prompt is too long: %zu bytes, at most %u", len, BTC_PROMPT_MAX_BYTES);
  btc_status st = btc_ids_reserve(&list, 1, err);
  if (st == BTC_OK) list.v[list.n++] = btc_tokenizer_bos(t);
  for (const char *from = text; st == BTC_OK;) {
    const char *tag = strstr(from, BTC_IMAGE_TAG);
    st = encode_chunk(t, from, tag ? (size_t)(tag - from) : strlen(from), &list, err);
    if (!tag) break;
    if (st == BTC_OK) st = btc_ids_reserve(&list, 1, err);
    if (st == BTC_OK) list.v[list.n++] = BTC_IMAGE_ID;
    from = tag + strlen(BTC_IMAGE_TAG);
  }
  if (st != BTC_OK) {
    free(list.v);
    return st;
  }
  *ids = list.v;
  *n = list.n;
  return BTC_OK;
}

/* ---- questions in files ---- */

btc_status btc_prompt_read_file(const char *path, char **question, btc_error *err) {
  uint8_t *data = NULL;
  size_t len = 0;
  *question = NULL;
  btc_status st = btc_file_read(path, BTC_PROMPT_MAX_BYTES, &data, &len, err);
  if (st != BTC_OK) return st;
  char *text = (char *)data; /* btc_file_read puts a 0 behind it */
  size_t valid = btc_utf8_valid(text, len);
  if (valid < len || memchr(text, 0, len)) {
    st = valid < len ? btc_fail(err, BTC_ERR_FORMAT, "'%s' is not UTF-8 text: byte %zu", path, valid)
                     : btc_fail(err, BTC_ERR_FORMAT, "'%s' is not text: it holds a NUL byte", path);
    free(data);
    return st;
  }
  if (len && text[len - 1] == '\n') text[--len] = 0;
  if (len && text[len - 1] == '\r') text[--len] = 0; /* the newline of a file with CR LF lines */
  *question = text;
  return BTC_OK;
}
