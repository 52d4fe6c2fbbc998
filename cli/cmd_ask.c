/* btcchat ask: a question about one image, a pair, or the frames of a video. */
#include <stdio.h>
#include <stdlib.h>

#include "model_options.h"
#include "worker/record.h"

static int run(int argc, char **argv);

const cli_command cmd_ask = {
    .name = "ask",
    .arguments = "QUESTION IMAGE...",
    .summary = "answers a question about an image, a pair (--pair) or a video's frames (--video)",
    .details =
        "One image by default. With --pair the two images are before and after. With --video give exactly the number of frames "
        "that the\n"
        "model takes (see 'btcchat inspect').",
    .run = run,
};

typedef struct ask_options {
  model_options model;
  bool pair, video, json;
} ask_options;

static int check_images(const ask_options *a, int n) {
  if (a->pair && a->video) return cli_usage_error(&cmd_ask, "give either --pair or --video");
  if (a->pair && n != 2) return cli_usage_error(&cmd_ask, "--pair takes two images, before and after; got %d", n);
  if (!a->pair && !a->video && n != 1)
    return cli_usage_error(&cmd_ask, "one image expected, got %d (use --pair for two dates, --video for frames)", n);
  return CLI_OK;
}

static int answer(const ask_options *a, btc_model *m, btc_session *s, const btc_item *item) {
  btc_result r;
  btc_error err;
  btc_session_run(s, item, 1, &r, &err);
  int code = r.status == BTC_OK ? CLI_OK : r.status == BTC_ERR_CANCELLED ? CLI_INTERRUPTED : CLI_FAILED;
  if (a->json) {
    record_model rm;
    char *line = NULL;
    if (record_model_fill(m, btc_session_precision(s), &rm, &err) == BTC_OK)
      line = record_line(m, &rm, "1", item->question, NULL, item->n_images == 2, &r);
    if (line)
      puts(line);
    else
      code = CLI_FAILED;
    free(line);
  } else if (code == CLI_OK) {
    puts(r.text);
  }
  if (r.status != BTC_OK) cli_error("%s", r.error.message);
  btc_result_clear(&r);
  return code;
}

static int run(int argc, char **argv) {
  ask_options a = {.model = model_options_default};
  cli_option table[] = {
      MODEL_OPTION_ROWS(a.model),
      ANSWER_OPTION_ROWS(a.model),
      {.name = "pair", .type = CLI_FLAG, .target = &a.pair, .help = "the two images are before and after"},
      {.name = "video", .type = CLI_FLAG, .target = &a.video, .help = "the images are the frames of a video"},
      {.name = "json", .type = CLI_FLAG, .target = &a.json, .help = "print the whole record"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_ask, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n < 2) return cli_usage_error(&cmd_ask, "a question and at least one image expected");
  if ((code = check_images(&a, n - 1)) != CLI_OK) return code;
  btc_model *m = NULL;
  btc_session *s = NULL;
  if ((code = open_model(&a.model, &m)) == CLI_OK && (code = open_session(&a.model, m, &s)) == CLI_OK) {
    btc_model_info info;
    btc_model_get_info(m, &info);
    if (a.video && n - 1 != info.video_frames) {
      cli_error("this model takes videos of %lld frames, got %d", (long long)info.video_frames, n - 1);
      code = CLI_USAGE;
    } else {
      btc_item item = {.images = (const char *const *)(args + 1), .n_images = n - 1, .question = args[0]};
      set_sampling(&a.model, &item);
      code = answer(&a, m, s, &item);
    }
  }
  btc_session_destroy(&s);
  btc_model_close(&m);
  return code;
}
