/* redis_say: commands and replies as text, so that a test of the queue reads like a session of redis-cli. */
#define _GNU_SOURCE
#include <stdio.h>

#include "redis_server.h"
#include "test.h"

static void print_reply(FILE *f, const redisReply *r) {
  switch (r->type) {
    case REDIS_REPLY_INTEGER:
      fprintf(f, "%lld", r->integer);
      break;
    case REDIS_REPLY_NIL:
      fputs("nil", f);
      break;
    case REDIS_REPLY_ERROR:
      fprintf(f, "!%s", r->str);
      break;
    case REDIS_REPLY_ARRAY:
      fputc('[', f);
      for (size_t i = 0; i < r->elements; i++) {
        if (i > 0) fputc(' ', f);
        print_reply(f, r->element[i]);
      }
      fputc(']', f);
      break;
    default:
      fputs(r->len > 0 ? r->str : "''", f);
  }
}

/* Splits the text in place. Words that begin with $ are made anew; the caller frees those from `fresh` on. */
static int split_words(char *text, const char *prefix, const char **words, int max, char **fresh) {
  int n = 0, made = 0;
  for (char *save = NULL, *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
    assert_true(n < max);
    if (*w == '$') {
      assert_true(asprintf(&fresh[made], "%s%s", prefix, w + 1) > 0);
      words[n++] = fresh[made++];
    } else {
      words[n++] = strcmp(w, "''") == 0 ? "" : w;
    }
  }
  fresh[made] = NULL;
  return n;
}

const char *redis_say(redis_server *r, const char *queue, const char *format, ...) {
  enum { WORDS = 4096 };
  static char *kept[16];
  static int turn;
  char prefix[96], *text = NULL;
  const char **words = calloc(WORDS, sizeof *words);
  char **fresh = calloc(WORDS + 1, sizeof *fresh);
  assert_true(words && fresh);
  va_list ap;
  va_start(ap, format);
  assert_true(vasprintf(&text, format, ap) >= 0);
  va_end(ap);
  snprintf(prefix, sizeof prefix, "btc:{%s}:", queue);
  int n = split_words(text, prefix, words, WORDS, fresh);
  redisContext *c = redis_server_context(r);
  redisReply *reply = strncmp(words[0], "btc_", 4) == 0 ? redis_fcall_argv(c, queue, words[0], n - 1, words + 1, NULL)
                                                        : redisCommandArgv(c, n, words, NULL);
  if (!reply) fail_msg("%s: %s", words[0], c->errstr);

  int slot = turn++ % 16;
  size_t len;
  free(kept[slot]);
  FILE *f = open_memstream(&kept[slot], &len);
  assert_non_null(f);
  print_reply(f, reply);
  fclose(f);
  freeReplyObject(reply);
  for (int i = 0; fresh[i]; i++) free(fresh[i]);
  free(fresh);
  free(words);
  free(text);
  return kept[slot];
}
