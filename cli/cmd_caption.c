/* btcchat caption: one pair, or a manifest of pairs without a queue. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/heatmap.h"
#include "engine/prompt.h"
#include "model_options.h"
#include "pairs.h"
#include "worker/record.h"

static int run(int argc, char **argv);

const cli_command cmd_caption = {
    .name = "caption",
    .arguments = "BEFORE AFTER | --pairs MANIFEST",
    .summary = "captions what changed between two images, or between all pairs of a manifest",
    .details =
        "BEFORE and AFTER are PNG or JPEG files of the same place. MANIFEST is JSONL, CSV (before,after[,id]) or a directory with "
        "A/ and B/;\n"
        "then one JSON record a line goes to stdout, in manifest order.",
    .run = run,
};

typedef struct caption_options {
  model_options model;
  const char *pairs, *heatmap;
  bool json, strict;
} caption_options;

static int write_heatmap(const btc_result *r, const char *after, const char *path) {
  btc_image over = {0}, map = {0};
  uint8_t *png = NULL;
  size_t len = 0;
  btc_error err;
  const int64_t side = 768; /* pixels: large enough to look at, whatever the grid */
  btc_status st = btc_image_load(after, side, BTC_IMAGE_SQUASH, NULL, &over, NULL, NULL, &err);
  if (st == BTC_OK) st = btc_heatmap_render(r->cosine, r->grid, &over, side, &map, &err);
  if (st == BTC_OK) st = btc_image_encode_png(&map, &png, &len, &err);
  if (st == BTC_OK) st = btc_file_publish(path, png, len, &err);
  if (st != BTC_OK) cli_error("%s", err.message);
  btc_image_free(&over);
  btc_image_free(&map);
  free(png);
  return st == BTC_OK ? CLI_OK : CLI_FAILED;
}

static int print_record(btc_model *m, btc_session *s, const char *prompt, const btc_result *r) {
  record_model rm;
  btc_error err;
  char *line = NULL;
  if (record_model_fill(m, btc_session_precision(s), &rm, &err) != BTC_OK)
    cli_error("%s", err.message);
  else if (!(line = record_line(m, &rm, "1", prompt, NULL, true, r)))
    cli_error("out of memory");
  if (line) puts(line);
  free(line);
  return line ? CLI_OK : CLI_FAILED;
}

static int caption_one(const caption_options *o, btc_model *m, btc_session *s, const char *prompt, char **images) {
  btc_item item = {.images = (const char *const *)images, .n_images = 2, .question = prompt};
  btc_result r;
  btc_error err;
  set_sampling(&o->model, &item);
  btc_session_run(s, &item, 1, &r, &err);
  int code = r.status == BTC_OK ? CLI_OK : r.status == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
  if (r.status != BTC_OK) cli_error("%s", r.error.message);
  if (code == CLI_OK && o->heatmap) code = write_heatmap(&r, images[1], o->heatmap);
  if (o->json && code != CLI_INTERRUPTED) {
    int printed = print_record(m, s, prompt ? prompt : btc_prompt_caption, &r);
    if (code == CLI_OK) code = printed;
  } else if (r.status == BTC_OK) {
    puts(r.text);
  }
  btc_result_clear(&r);
  return code;
}

static int check_arguments(const caption_options *o, int n) {
  if (o->pairs && n > 0) return cli_usage_error(&cmd_caption, "give either --pairs or two images");
  if (!o->pairs && n != 2) return cli_usage_error(&cmd_caption, "two images expected, before and after; got %d", n);
  if (o->pairs && o->heatmap) return cli_usage_error(&cmd_caption, "--heatmap is for one pair");
  if (o->strict && !o->pairs) return cli_usage_error(&cmd_caption, "--strict is for --pairs");
  return CLI_OK;
}

static int run(int argc, char **argv) {
  caption_options o = {.model = model_options_default};
  cli_option table[] = {
      MODEL_OPTION_ROWS(o.model),
      PROMPT_OPTION_ROWS(o.model),
      ANSWER_OPTION_ROWS(o.model),
      {.name = "json", .type = CLI_FLAG, .target = &o.json, .help = "print the whole record"},
      {.name = "heatmap",
       .type = CLI_TEXT,
       .target = &o.heatmap,
       .value = "F.png",
       .help = "write the change map over the after image"},
      {.name = "pairs",
       .type = CLI_TEXT,
       .target = &o.pairs,
       .value = "MANIFEST",
       .help = "caption every pair of it; - is JSONL on stdin"},
      {.name = "batch",
       .letter = 'b',
       .type = CLI_INT,
       .target = &o.model.batch,
       .value = "N",
       .help = "pairs computed together, with --pairs (default 8)",
       .low = 1,
       .high = 256},
      {.name = "strict",
       .type = CLI_FLAG,
       .target = &o.strict,
       .help = "a bad manifest line ends the run instead of being a failed record"},
  };
  o.model.batch = 0;
  char **args, *owned = NULL;
  const char *prompt = NULL;
  int n, code;
  if (!cli_parse(&cmd_caption, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if ((code = check_arguments(&o, n)) != CLI_OK) return code;
  if (!o.model.batch) o.model.batch = o.pairs ? 8 : 1;
  btc_model *m = NULL;
  btc_session *s = NULL;
  if ((code = read_prompt(&o.model, &prompt, &owned)) == CLI_OK && (code = open_model(&o.model, &m)) == CLI_OK &&
      (code = open_session(&o.model, m, &s)) == CLI_OK)
    code = o.pairs ? caption_pairs(&o.model, m, s, prompt, o.pairs, o.strict) : caption_one(&o, m, s, prompt, args);
  btc_session_destroy(&s);
  btc_model_close(&m);
  free(owned);
  return code;
}
