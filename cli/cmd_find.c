/* btcchat find: full-text search over captions. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "report/index.h"

static int run(int argc, char **argv);

const cli_command cmd_find = {
    .name = "find",
    .arguments = "DIR WORDS...",
    .summary = "finds records by words of their captions",
    .details =
        "DIR is the folder of a run or a scene, a file of records (.jsonl), or a GeoPackage with its records beside it. All words "
        "must be in a caption,\n"
        "in any form (road finds roads). \"new road\" within quotes of its own stands for the words next to each other, roa* for a "
        "beginning.\n"
        "The first search makes an index, DIR/" BTC_INDEX_NAME
        " (of files and folders that cannot be written: in "
        "~/.cache/btcchat); later ones read what\n"
        "is new. Lines: id, score, caption, best matches first. Exit code 3 when lines of the files are no records.",
    .run = run,
};

typedef struct find_command {
  bool json, changed, colour;
  int64_t limit;
  uint64_t hits;
} find_command;

static bool interrupted(void) {
  return cli_interrupted != 0;
}

/* Captions and ids are texts of others: no control characters reach a terminal, tabs and line ends would break the columns. */
static void print_text(const char *s, bool colour) {
  for (; *s; s++) {
    unsigned char c = (unsigned char)*s;
    if (c == 1 || c == 2) {
      if (colour) fputs(c == 1 ? "\033[1;33m" : "\033[0m", stdout);
    } else {
      putchar(c < 0x20 || c == 0x7f ? ' ' : c);
    }
  }
}

static bool print_hit(void *ctx, const btc_index_hit *h) {
  find_command *f = ctx;
  f->hits++;
  if (f->json) {
    json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "id", h->id, "status", h->status, "caption", h->caption, "file", h->file);
    if (h->has_score) json_object_set_new(o, "score", json_real(h->score));
    if (h->has_changed) json_object_set_new(o, "changed", json_boolean(h->changed));
    char *line = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    if (line) puts(line);
    free(line);
    json_decref(o);
  } else {
    print_text(h->id, false);
    if (h->has_score)
      printf("\t%.3f\t", h->score);
    else
      fputs("\t-\t", stdout);
    print_text(h->snippet, f->colour);
    putchar('\n');
  }
  return !cli_interrupted && !ferror(stdout);
}

static char *join_words(char **words, int n) {
  size_t len = 1;
  for (int i = 0; i < n; i++) len += strlen(words[i]) + 1;
  char *text = btc_alloc_zero(len, 1);
  for (int i = 0; text && i < n; i++) {
    if (i) strcat(text, " ");
    strcat(text, words[i]);
  }
  return text;
}

static int search(find_command *f, const char *where, const char *words) {
  btc_results_files files;
  btc_index *x = NULL;
  btc_index_counts n = {0};
  btc_error err = {0};
  const btc_index_query q = {
      .words = words, .changed_only = f->changed, .limit = (uint64_t)f->limit, .mark_begin = "\001", .mark_end = "\002"};
  btc_status st = btc_results_find(where, &files, &err);
  if (st == BTC_OK) st = btc_index_open(where, &x, &err);
  if (st == BTC_OK) st = btc_index_update(x, &files, interrupted, &n, &err);
  if (st == BTC_OK && n.rebuilt) fprintf(stderr, "btcchat: '%s' was no index of ours and was made anew\n", btc_index_path(x));
  if (st == BTC_OK) st = btc_index_search(x, &q, print_hit, f, &err);
  btc_index_close(&x);
  btc_results_files_free(&files);
  if (cli_interrupted) return CLI_INTERRUPTED;
  if (st != BTC_OK) {
    cli_error("%s", err.message);
    return st == BTC_ERR_ARG ? CLI_USAGE : CLI_FAILED;
  }
  if (!f->hits) fprintf(stderr, "btcchat: none of %" PRIu64 " records matches\n", n.records);
  if (n.bad) cli_error("'%s': %" PRIu64 " lines are no result records", where, n.bad);
  return n.bad ? CLI_SOME_FAILED : CLI_OK;
}

static int run(int argc, char **argv) {
  const char *no_colour = getenv("NO_COLOR");
  find_command f = {.limit = 20, .colour = isatty(STDOUT_FILENO) && !(no_colour && *no_colour)};
  cli_option table[] = {
      {.name = "limit",
       .letter = 'n',
       .type = CLI_INT,
       .target = &f.limit,
       .value = "N",
       .help = "records at most (default 20)",
       .low = 1,
       .high = 1e9},
      {.name = "changed", .type = CLI_FLAG, .target = &f.changed, .help = "only records whose verdict is a change"},
      {.name = "json", .type = CLI_FLAG, .target = &f.json, .help = "one JSON object a line"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_find, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n < 2) return cli_usage_error(&cmd_find, "a DIR and words to look for expected");
  char *words = join_words(args + 1, n - 1);
  if (!words) {
    cli_error("no memory");
    return CLI_FAILED;
  }
  code = search(&f, args[0], words);
  free(words);
  return code;
}
