/*
 * The smallest program around the engine: two image files in, one caption out.
 *
 *   cc caption.c $(pkg-config --cflags --libs btcchat) -o caption
 *   ./caption models/nano before.png after.png
 */
#include <engine/engine.h>
#include <stdio.h>

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: %s MODEL BEFORE AFTER\n", argv[0]);
    return 2;
  }
  btc_model *model = NULL;
  btc_session *session = NULL;
  btc_result result = {0};
  btc_error error;

  /* NULL options: one item at a time, all processors, bf16 products where the CPU has them. */
  if (btc_model_open(argv[1], &model, &error) != BTC_OK || btc_session_create(model, NULL, &session, &error) != BTC_OK) {
    fprintf(stderr, "%s\n", error.message);
    btc_model_close(&model);
    return 1;
  }

  const char *pair[] = {argv[2], argv[3]};
  btc_item item = {.images = pair, .n_images = 2};
  btc_session_run(session, &item, 1, &result, &error);

  int failed = result.status != BTC_OK;
  if (failed)
    fprintf(stderr, "%s\n", result.error.message);
  else
    printf("%s\nchanged: %s, score %.3f\n", result.text, btc_model_says_change(model, result.text) ? "yes" : "no", result.score);

  btc_result_clear(&result);
  btc_session_destroy(&session);
  btc_model_close(&model);
  return failed;
}
