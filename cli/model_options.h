/* What every command that runs the model shares: its options, opening the model, sampling, the record's model part. */
#ifndef BTC_CLI_MODEL_OPTIONS_H
#define BTC_CLI_MODEL_OPTIONS_H

#include "cli.h"

typedef struct model_options {
  const char *model, *device, *dtype, *prompt, *prompt_file;
  int64_t threads, batch, max_tokens, top_k, seed;
  double temperature, top_p;
} model_options;

extern const model_options model_options_default;

/* Table rows for an array of cli_option. */
#define MODEL_OPTION_ROWS(o)                                                                    \
  {.name = "model",                                                                             \
   .letter = 'm',                                                                               \
   .type = CLI_TEXT,                                                                            \
   .target = &(o).model,                                                                        \
   .value = "DIR",                                                                              \
   .help = "checkpoint (default: the nano model shipped beside the program)"},                  \
      {.name = "device",                                                                        \
       .type = CLI_TEXT,                                                                        \
       .target = &(o).device,                                                                   \
       .value = "D",                                                                            \
       .help = "auto, cpu, cuda, cuda:N, or plain: slow loops (default auto: cuda if usable)"}, \
      {.name = "dtype",                                                                         \
       .type = CLI_CHOICE,                                                                      \
       .target = &(o).dtype,                                                                    \
       .value = "T",                                                                            \
       .help = "products in f32 or bf16 (default auto: bf16 where the device has it)",          \
       .choices = "auto|f32|bf16"},                                                             \
  {                                                                                             \
    .name = "threads", .letter = 't', .type = CLI_INT, .target = &(o).threads, .value = "N",    \
    .help = "threads, 0 = all processors (default 0)", .low = 0, .high = 256                    \
  }

#define ANSWER_OPTION_ROWS(o)                                                                                            \
  {.name = "max-tokens",                                                                                                 \
   .type = CLI_INT,                                                                                                      \
   .target = &(o).max_tokens,                                                                                            \
   .value = "N",                                                                                                         \
   .help = "longest answer, tokens (default 128)",                                                                       \
   .low = 1,                                                                                                             \
   .high = 65536},                                                                                                       \
      {.name = "temperature",                                                                                            \
       .type = CLI_REAL,                                                                                                 \
       .target = &(o).temperature,                                                                                       \
       .value = "T",                                                                                                     \
       .help = "0 = greedy, else sample (default 0)",                                                                    \
       .low = 0,                                                                                                         \
       .high = 100},                                                                                                     \
      {.name = "top-p",                                                                                                  \
       .type = CLI_REAL,                                                                                                 \
       .target = &(o).top_p,                                                                                             \
       .value = "P",                                                                                                     \
       .help = "nucleus when sampling, 1 = off (default 1)",                                                             \
       .low = 1e-6,                                                                                                      \
       .high = 1},                                                                                                       \
      {.name = "top-k",                                                                                                  \
       .type = CLI_INT,                                                                                                  \
       .target = &(o).top_k,                                                                                             \
       .value = "K",                                                                                                     \
       .help = "most likely tokens when sampling, 0 = off (default 50)",                                                 \
       .low = 0,                                                                                                         \
       .high = 1000000},                                                                                                 \
  {                                                                                                                      \
    .name = "seed", .type = CLI_INT, .target = &(o).seed, .value = "S", .help = "of the sampling (default 0)", .low = 0, \
    .high = 9007199254740992.0                                                                                           \
  }

#define PROMPT_OPTION_ROWS(o)                                                                                                      \
  {.name = "prompt", .type = CLI_TEXT, .target = &(o).prompt, .value = "TEXT", .help = "instruction in place of the caption one"}, \
  {                                                                                                                                \
    .name = "prompt-file", .type = CLI_TEXT, .target = &(o).prompt_file, .value = "FILE", .help = "the same, from a UTF-8 file"    \
  }

/* Where the model is when nothing was said: installed beside the program, or in the source tree of a build. NULL if neither is
 * there. Lives until the next call. */
const char *default_model_dir(void);

/* What --device means on this machine; NULL: printed that there is no such device (CLI_USAGE). */
const char *chosen_device(const model_options *o);
/* Opens model and session by the options; prints the error and returns an exit code other than CLI_OK on failure. */
int open_model(const model_options *o, btc_model **m);
int open_session(const model_options *o, btc_model *m, btc_session **s);
/* --prompt or --prompt-file; *owned (may be NULL) is to be freed. Prints on failure. */
int read_prompt(const model_options *o, const char **prompt, char **owned);
/* Fills the sampling part of an item. */
void set_sampling(const model_options *o, btc_item *item);

#endif
