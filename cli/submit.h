/* Giving a manifest to a broker: the options of a job, what the manifest must pass before it is sent. Shared by submit and run. */
#ifndef CLI_SUBMIT_H
#define CLI_SUBMIT_H

#include "broker_options.h"

typedef struct submit_options {
  const char *tenant, *key, *prompt, *prompt_file, *to, *model_class;
  int64_t priority, max_tokens;
  double delay_s;
  bool strict;
} submit_options;

extern const submit_options submit_options_default;

#define JOB_OPTION_ROWS(o)                                                        \
  {.name = "prompt",                                                              \
   .type = CLI_TEXT,                                                              \
   .target = &(o).prompt,                                                         \
   .value = "TEXT",                                                               \
   .help = "instruction for items that bring none, in place of the caption one"}, \
      {.name = "prompt-file",                                                     \
       .type = CLI_TEXT,                                                          \
       .target = &(o).prompt_file,                                                \
       .value = "FILE",                                                           \
       .help = "the same, from a UTF-8 file"},                                    \
      {.name = "max-tokens",                                                      \
       .type = CLI_INT,                                                           \
       .target = &(o).max_tokens,                                                 \
       .value = "N",                                                              \
       .help = "longest answer, tokens; 0 = the worker's setting (default 0)",    \
       .low = 0,                                                                  \
       .high = 65536},                                                            \
  {                                                                               \
    .name = "strict", .type = CLI_FLAG, .target = &(o).strict,                    \
    .help = "a bad manifest line is an error instead of a failed record"          \
  }

#define SUBMIT_OPTION_ROWS(o)                                                                          \
  {.name = "priority",                                                                                 \
   .type = CLI_INT,                                                                                    \
   .target = &(o).priority,                                                                            \
   .value = "P",                                                                                       \
   .help = "0 first, 1, or 2 (default 1)",                                                             \
   .low = 0,                                                                                           \
   .high = 2},                                                                                         \
      {.name = "tenant",                                                                               \
       .type = CLI_TEXT,                                                                               \
       .target = &(o).tenant,                                                                          \
       .value = "NAME",                                                                                \
       .help = "on whose account it is scheduled (default 'default')"},                                \
      {.name = "key",                                                                                  \
       .type = CLI_TEXT,                                                                               \
       .target = &(o).key,                                                                             \
       .value = "KEY",                                                                                 \
       .help = "idempotency key: the same key gives the same job, for 24 hours (default: a new job)"}, \
      {.name = "to",                                                                                   \
       .type = CLI_CHOICE,                                                                             \
       .target = &(o).to,                                                                              \
       .value = "WHERE",                                                                               \
       .help = "files: read with 'results'; stream: into Redis, for programs (default files)",         \
       .choices = "files|stream"},                                                                     \
      {.name = "class",                                                                                \
       .type = CLI_TEXT,                                                                               \
       .target = &(o).model_class,                                                                     \
       .value = "CLASS",                                                                               \
       .help = "only workers of this model class, as 'workers --json' names it (default any)"},        \
  {                                                                                                    \
    .name = "delay", .type = CLI_REAL, .target = &(o).delay_s, .value = "SECONDS",                     \
    .help = "begin no earlier than in so many seconds (default 0)", .low = 0, .high = 31536000         \
  }

/* Reads the manifest once (items, ids, digest) and submits it. Returns CLI_OK or the exit code of what was said. */
int submit_manifest(btc_client *c, const char *path, const submit_options *o, char jid[BTC_CLIENT_JID], uint64_t *items,
                    bool *existed);

/* The steps of it, for run. params: malloc'ed JSON. base: malloc'ed, or NULL when the manifest's folder is right. */
int read_manifest(const char *path, bool strict, btc_manifest_summary *out);
int job_params(const submit_options *o, char **params);
int manifest_base(const char *path, const btc_manifest_summary *s, char **base);
void warn_of_bad_lines(const btc_manifest_summary *s);

#endif
