/* btcchat diff: what is different between the records of two runs. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli.h"
#include "report/compare.h"

static int run(int argc, char **argv);

/* As of diff(1); the code of trouble is that of usage errors, so that 1 always means "they differ". */
enum { DIFF_EQUAL = 0, DIFF_DIFFERENT = 1, DIFF_TROUBLE = 2 };

const cli_command cmd_diff = {
    .name = "diff",
    .arguments = "RUN_A RUN_B",
    .summary = "compares the records of two runs by id",
    .details =
        "A run is a folder of `run`, `results -o` or a broker, a file of records (.jsonl), or a GeoPackage with its records beside "
        "it. One line for each\n"
        "record that is not the same in status, verdict, caption or score, in the order of ids: '-' only in A, '+' only in B, '!' "
        "in both; then a summary.\n"
        "Timings and models are not compared. Exit code as of diff(1): 0 equal, 1 they differ, 2 trouble (also: a line that is no "
        "record).",
    .run = run,
};

typedef struct diff_command {
  bool json, quiet;
  double tolerance;
} diff_command;

static bool interrupted(void) {
  return cli_interrupted != 0;
}

static void print_text(const char *s) {
  for (; *s; s++) putchar((unsigned char)*s < 0x20 || *s == 0x7f ? ' ' : *s);
}

static void print_value(const btc_compare_record *r) {
  if (r->caption) {
    putchar('"');
    print_text(r->caption);
    putchar('"');
  } else {
    print_text(r->status ? r->status : "?");
    if (r->reason) fputs(" (", stdout), print_text(r->reason), putchar(')');
  }
  if (r->has_changed) fputs(r->changed ? " changed" : " unchanged", stdout);
  if (r->has_score) printf(" %.3f", r->score);
}

static void print_line(const btc_difference *d) {
  fputs(d->removed ? "- " : d->added ? "+ " : "! ", stdout);
  print_text(d->id);
  fputs(": ", stdout);
  if (!d->added) print_value(&d->a);
  if (!d->added && !d->removed) fputs(" -> ", stdout);
  if (!d->removed) print_value(&d->b);
  putchar('\n');
}

static json_t *value_json(const btc_compare_record *r) {
  json_t *o = json_object();
  if (r->status) json_object_set_new(o, "status", json_string(r->status));
  if (r->caption) json_object_set_new(o, "caption", json_string(r->caption));
  if (r->reason) json_object_set_new(o, "reason", json_string(r->reason));
  if (r->has_changed) json_object_set_new(o, "changed", json_boolean(r->changed));
  if (r->has_score) json_object_set_new(o, "score", json_real(r->score));
  return o;
}

static void put_json(json_t *o) {
  char *line = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
  if (line) puts(line);
  free(line);
  json_decref(o);
}

static void print_json(const btc_difference *d) {
  json_t *what = json_array();
  if (d->status) json_array_append_new(what, json_string("status"));
  if (d->verdict) json_array_append_new(what, json_string("changed"));
  if (d->caption) json_array_append_new(what, json_string("caption"));
  if (d->score) json_array_append_new(what, json_string("score"));
  json_t *o = json_pack("{s:s, s:s, s:o}", "id", d->id, "kind",
                        d->removed ? "removed"
                        : d->added ? "added"
                                   : "different",
                        "what", what);
  if (!d->added) json_object_set_new(o, "a", value_json(&d->a));
  if (!d->removed) json_object_set_new(o, "b", value_json(&d->b));
  put_json(o);
}

static void print_difference(void *ctx, const btc_difference *d) {
  const diff_command *c = ctx;
  if (c->quiet) return;
  if (c->json)
    print_json(d);
  else
    print_line(d);
}

static void print_summary(const diff_command *c, const btc_compare_counts *n) {
  if (c->json) {
    put_json(json_pack("{s:{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f}}", "summary", "a", (json_int_t)n->a, "b", (json_int_t)n->b,
                       "equal", (json_int_t)n->equal, "removed", (json_int_t)n->removed, "added", (json_int_t)n->added, "status",
                       (json_int_t)n->status, "changed", (json_int_t)n->verdict, "caption", (json_int_t)n->caption, "score",
                       (json_int_t)n->score, "mean_score_delta", n->mean_score_delta));
    return;
  }
  printf("%" PRIu64 " records, then %" PRIu64 ": %" PRIu64 " equal, %" PRIu64 " removed, %" PRIu64
         " added; different in status %" PRIu64 ", verdict %" PRIu64 ", caption %" PRIu64 ", score %" PRIu64
         " (mean difference %+.4f)\n",
         n->a, n->b, n->equal, n->removed, n->added, n->status, n->verdict, n->caption, n->score, n->mean_score_delta);
}

static int compare(diff_command *c, char **args) {
  btc_results_files a = {0}, b = {0};
  btc_compare_counts n = {0};
  btc_error err = {0};
  btc_status st = btc_results_find(args[0], &a, &err);
  if (st == BTC_OK) st = btc_results_find(args[1], &b, &err);
  if (st == BTC_OK) st = btc_compare(&a, &b, c->tolerance, interrupted, print_difference, c, &n, &err);
  btc_results_files_free(&a);
  btc_results_files_free(&b);
  if (cli_interrupted) return CLI_INTERRUPTED;
  if (st != BTC_OK) {
    cli_error("%s", err.message);
    return DIFF_TROUBLE;
  }
  print_summary(c, &n);
  if (n.bad) cli_error("%" PRIu64 " lines are no result records; the first: %s", n.bad, n.first_bad);
  if (n.bad) return DIFF_TROUBLE;
  return n.equal == n.a && n.equal == n.b ? DIFF_EQUAL : DIFF_DIFFERENT;
}

static int run(int argc, char **argv) {
  diff_command c = {.tolerance = 0};
  cli_option table[] = {
      {.name = "tolerance",
       .type = CLI_REAL,
       .target = &c.tolerance,
       .value = "T",
       .help = "scores that are at most T apart are the same (default 0)",
       .low = 0,
       .high = 1},
      {.name = "quiet", .letter = 'q', .type = CLI_FLAG, .target = &c.quiet, .help = "the summary alone"},
      {.name = "json", .type = CLI_FLAG, .target = &c.json, .help = "one JSON object a difference, then one with the summary"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_diff, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 2) return cli_usage_error(&cmd_diff, "two runs expected, got %d", n);
  return compare(&c, args);
}
