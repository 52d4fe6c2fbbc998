/* btcchat plan: a manifest of pairs out of dated images. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "report/archive.h"

static int run(int argc, char **argv);

const cli_command cmd_plan = {
    .name = "plan",
    .arguments = "DIR|ITEMS.json",
    .summary = "makes a manifest of pairs out of dated images: same tile, apart by an interval, not too cloudy",
    .details =
        "DIR: images, also in folders, whose names hold a date (2019-05-31 or 20190531), or those of their folders do; what is "
        "left of\n"
        "the names without dates and times is the tile, but of Landsat and Sentinel-2 names the path/row or MGRS tile is. "
        "ITEMS.json: a\n"
        "STAC ItemCollection; of an item the asset visual, rendered or data (or --asset), datetime, eo:cloud_cover, and "
        "grid:code,\n"
        "s2:mgrs_tile, landsat:wrs_path and wrs_row, or else proj:code (proj:epsg) and proj:bbox (proj:shape and proj:transform) "
        "are read. Before is always the "
        "earlier\n"
        "date.",
    .run = run,
};

typedef struct plan_command {
  btc_pairing_options pairing;
  const char *out, *interval, *kind, *asset;
} plan_command;

/* MIN or MIN..MAX, days. */
static bool read_interval(const char *text, double *low, double *high) {
  char *end;
  if (!text) return true;
  *low = (double)strtol(text, &end, 10);
  if (end == text || !(*low >= 0 && *low <= 1e6)) return false;
  if (!*end) return true;
  if (strncmp(end, "..", 2) != 0) return false;
  const char *from = end + 2;
  *high = (double)strtol(from, &end, 10);
  return end != from && !*end && *high >= *low && *high <= 1e6;
}

static int plan(plan_command *c, const char *where) {
  btc_archive a = {0};
  btc_pairing_counts n = {0};
  btc_error err = {0};
  char *text = NULL;
  size_t len = 0;
  btc_status st = btc_archive_read(where, c->asset, &a, &err);
  if (st == BTC_OK) st = btc_archive_pairs(&a, &c->pairing, &text, &len, &n, &err);
  if (st == BTC_OK && c->out) st = btc_file_publish(c->out, text, len, &err);
  if (st == BTC_OK && !c->out && len) fwrite(text, 1, len, stdout);
  if (st == BTC_OK) {
    fprintf(stderr, "btcchat: %zu images of %" PRIu64 " tiles: %" PRIu64 " pairs; %" PRIu64 " too cloudy", a.n, n.tiles, n.pairs,
            n.cloudy);
    fprintf(stderr, "; %" PRIu64 " left out%s%s\n", a.left_out, a.left_out ? ", the first: " : "", a.first_left_out);
  } else {
    cli_error("%s", err.message);
  }
  free(text);
  btc_archive_free(&a);
  return st == BTC_OK ? CLI_OK : CLI_FAILED;
}

static int run(int argc, char **argv) {
  plan_command c = {.pairing = {.min_days = 0, .max_days = 1e6, .cloud_limit = 100}, .kind = "consecutive"};
  cli_option table[] = {
      {.name = "output",
       .letter = 'o',
       .type = CLI_TEXT,
       .target = &c.out,
       .value = "F.jsonl",
       .help = "the manifest (default: stdout)"},
      {.name = "interval",
       .type = CLI_TEXT,
       .target = &c.interval,
       .value = "MIN[..MAX]",
       .help = "days between the two dates (default: any)"},
      {.name = "cloud-limit",
       .type = CLI_REAL,
       .target = &c.pairing.cloud_limit,
       .value = "PCT",
       .help = "images with more cloud are left out, percent (default 100; unknown counts as none)",
       .low = 0,
       .high = 100},
      {.name = "pairing",
       .type = CLI_CHOICE,
       .target = &c.kind,
       .value = "P",
       .help = "consecutive: each image with the next one that is MIN days later; first-last (default consecutive)",
       .choices = "consecutive|first-last"},
      {.name = "asset", .type = CLI_TEXT, .target = &c.asset, .value = "NAME", .help = "asset of STAC items to take"},
  };
  char **args;
  int n, code;
  if (!cli_parse(&cmd_plan, table, sizeof table / sizeof table[0], argc, argv, &args, &n, &code)) return code;
  if (n != 1) return cli_usage_error(&cmd_plan, "one folder or item collection expected, got %d", n);
  if (!read_interval(c.interval, &c.pairing.min_days, &c.pairing.max_days))
    return cli_usage_error(&cmd_plan, "--interval: '%s' is not MIN or MIN..MAX days", c.interval);
  c.pairing.first_last = strcmp(c.kind, "first-last") == 0;
  return plan(&c, args[0]);
}
