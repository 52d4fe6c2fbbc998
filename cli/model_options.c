#define _GNU_SOURCE
#include "model_options.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/prompt.h"
#include "ops/ops.h"

const model_options model_options_default = {
    .device = "auto", .dtype = "auto", .batch = 1, .max_tokens = 128, .top_k = 50, .top_p = 1};

const char *default_model_dir(void) {
  static char dir[PATH_MAX];
  static const char *const places[] = {"../share/btcchat/models/nano", "../models/nano", "../../models/nano"};
  char exe[PATH_MAX / 2];
  ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
  if (n <= 0) return NULL;
  exe[n] = 0;
  char *slash = strrchr(exe, '/');
  if (slash) *slash = 0;
  for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
    snprintf(dir, sizeof dir, "%s/%s/config.json", exe, places[i]);
    if (access(dir, R_OK) == 0) {
      dir[strlen(dir) - strlen("/config.json")] = 0;
      return dir;
    }
  }
  return NULL;
}

int open_model(const model_options *o, btc_model **m) {
  const char *dir = o->model ? o->model : default_model_dir();
  btc_error err;
  *m = NULL;
  if (!dir) {
    cli_error("no model: give one with -m DIR or BTCCHAT_MODEL (the nano model is not beside the program)");
    return CLI_FAILED;
  }
  if (!*dir) {
    cli_error("the model's folder is empty: give one with -m DIR or BTCCHAT_MODEL");
    return CLI_FAILED;
  }
  if (btc_model_open(dir, m, &err) == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return CLI_FAILED;
}

const char *chosen_device(const model_options *o) {
  if (btc_device_known(o->device)) return btc_device_choose(o->device);
  cli_error("--device %s: not one of auto, cpu, plain, cuda, cuda:N", o->device);
  return NULL;
}

int open_session(const model_options *o, btc_model *m, btc_session **s) {
  btc_session_options so = btc_session_options_default();
  btc_error err;
  *s = NULL;
  if (!(so.device = chosen_device(o))) return CLI_USAGE;
  so.threads = (int)o->threads;
  so.precision = !strcmp(o->dtype, "f32") ? BTC_PRECISION_F32 : !strcmp(o->dtype, "bf16") ? BTC_PRECISION_BF16 : BTC_PRECISION_AUTO;
  so.max_batch = (int)o->batch;
  so.max_tokens = (int)o->max_tokens;
  so.cancel = &cli_interrupted;
  if (btc_session_create(m, &so, s, &err) == BTC_OK) return CLI_OK;
  cli_error("%s", err.message);
  return CLI_FAILED;
}

int read_prompt(const model_options *o, const char **prompt, char **owned) {
  btc_error err;
  *owned = NULL;
  *prompt = o->prompt;
  if (!o->prompt_file) return CLI_OK;
  if (o->prompt) {
    cli_error("give either --prompt or --prompt-file, not both");
    return CLI_USAGE;
  }
  if (btc_prompt_read_file(o->prompt_file, owned, &err) != BTC_OK) {
    cli_error("%s", err.message);
    return CLI_FAILED;
  }
  *prompt = *owned;
  return CLI_OK;
}

void set_sampling(const model_options *o, btc_item *item) {
  item->temperature = (float)o->temperature;
  item->top_p = (float)o->top_p;
  item->top_k = o->top_k == 0 ? -1 : (int)o->top_k;
  item->seed = (uint64_t)o->seed;
  item->max_tokens = (int)o->max_tokens;
}
