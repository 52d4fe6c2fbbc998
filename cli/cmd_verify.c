/* btcchat verify: runs golden cases and prints the largest difference per stage. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "golden.h"
#include "ops/ops.h"

static int run(int argc, char **argv);

const cli_command cmd_verify = {
    .name = "verify",
    .arguments = "CASE...",
    .summary = "runs golden cases and prints the largest difference per stage",
    .details =
        "A case is a directory with ckpt/, expected.json and expected.safetensors. Exit code 0 only if everything in all of them "
        "holds:\n"
        "prompts, ids, pixels and texts exactly, tensors within their tolerances, error runs refused.\n"
        "'x noise' is the difference over the stated float32 error of the tensor.",
    .run = run,
};

static void print_report(const golden_report *r, bool bf16) {
  printf("%s: %d runs, %d error runs, %s products\n", r->name, r->runs, r->error_runs, bf16 ? "bf16" : "f32");
  printf("  %-24s %12s %12s %9s%s\n", "tensor", "largest diff", "tolerance", "x noise", bf16 ? "   rel rms     limit" : "");
  for (int i = 0; i < r->n_tensors; i++) {
    const golden_tensor *t = &r->tensor[i];
    printf("  %-24s %12.3g %12.3g", t->name, t->max_diff, t->tolerance);
    if (bf16)
      printf(" %9s %9.5f %9.5f", "-", t->rel_rms, t->rel_rms_limit);
    else
      printf(" %9.2f", t->noise_ratio);
    printf("  %s\n", t->ok ? "ok" : "FAILED");
  }
  for (int i = 0; i < r->error_runs && i < GOLDEN_MAX_REFUSALS; i++)
    if (r->refusal[i][0]) printf("  error run refused: %s\n", r->refusal[i]);
  for (int i = 0; i < r->n_problems && i < GOLDEN_MAX_PROBLEMS; i++) printf("  FAILED %s\n", r->problem[i]);
  if (r->n_problems > GOLDEN_MAX_PROBLEMS) printf("  FAILED and %d more\n", r->n_problems - GOLDEN_MAX_PROBLEMS);
  printf("  %s\n", r->n_problems ? "does NOT hold" : "holds");
}

static void print_json(const golden_report *r, bool bf16) {
  json_t *o = json_object(), *tensors = json_object(), *problems = json_array();
  for (int i = 0; i < r->n_tensors; i++) {
    const golden_tensor *t = &r->tensor[i];
    json_object_set_new(tensors, t->name,
                        json_pack("{s:f,s:f,s:f,s:f,s:f,s:b}", "max_diff", t->max_diff, "tolerance", t->tolerance, "noise_ratio",
                                  t->noise_ratio, "rel_rms", t->rel_rms, "rel_rms_limit", t->rel_rms_limit, "ok", t->ok));
  }
  for (int i = 0; i < r->n_problems && i < GOLDEN_MAX_PROBLEMS; i++) json_array_append_new(problems, json_string(r->problem[i]));
  json_object_set_new(o, "case", json_string(r->name));
  json_object_set_new(o, "dtype", json_string(bf16 ? "bf16" : "f32"));
  json_object_set_new(o, "holds", json_boolean(r->n_problems == 0));
  json_object_set_new(o, "tensors", tensors);
  json_object_set_new(o, "problems", problems);
  char *line = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6));
  if (line) puts(line);
  free(line);
  json_decref(o);
}

static int run(int argc, char **argv) {
  const char *dtype = "f32", *device = "cpu";
  int64_t threads = 0;
  bool json = false;
  cli_option table[] = {
      {.name = "dtype",
       .type = CLI_CHOICE,
       .target = &dtype,
       .value = "T",
       .help = "products in f32 or bf16, with that type's tolerances (default f32)",
       .choices = "f32|bf16"},
      {.name = "device",
       .type = CLI_TEXT,
       .target = &device,
       .value = "D",
       .help = "cpu, cuda, cuda:N, or plain: slow reference loops (default cpu)"},
      {.name = "threads",
       .letter = 't',
       .type = CLI_INT,
       .target = &threads,
       .value = "N",
       .help = "threads, 0 = all processors (default 0)",
       .low = 0,
       .high = 256},
      {.name = "json", .type = CLI_FLAG, .target = &json, .help = "one JSON object a case"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_verify, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n < 1) return cli_usage_error(&cmd_verify, "at least one case expected");
  if (!btc_device_known(device)) return cli_usage_error(&cmd_verify, "--device: not one of cpu, plain, cuda, cuda:N");
  golden_options o = {.device = device, .bf16 = !strcmp(dtype, "bf16"), .threads = (int)threads};
  code = CLI_OK;
  golden_report *r = malloc(sizeof *r);
  for (int i = 0; i < n && r && !cli_interrupted; i++) {
    btc_error err;
    if (golden_run(args[i], &o, r, &err) != BTC_OK) {
      cli_error("%s", err.message);
      code = CLI_FAILED;
      continue;
    }
    if (r->n_problems) code = CLI_FAILED;
    if (json)
      print_json(r, o.bf16);
    else
      print_report(r, o.bf16);
  }
  if (!r) {
    cli_error("out of memory");
    code = CLI_FAILED;
  }
  free(r);
  return cli_interrupted ? CLI_INTERRUPTED : code;
}
