/* btcchat-check: the invariant checker as a program. One line a violation on stdout, a summary on stderr; exit 1 when there was
 * one, 2 usage, 4 no Redis. */
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checker.h"

static const char usage[] =
    "usage: btcchat-check [options]\n"
    "checks a queue that nothing changes meanwhile: Redis, sealed files, what was taken from `out`\n"
    "  --redis URL      unix:///PATH or redis://HOST:PORT (redis://127.0.0.1:6379)\n"
    "  --queue NAME     (default)\n"
    "  --results DIR    folder of sealed parts\n"
    "  --drained FILE   lines `JID IDX EPOCH JSON` of all records that an integrator took from `out`\n"
    "  --end            all jobs are over and all records sealed: nothing may be left\n"
    "  --stub           captions are the stub engine's\n";

static void say(void *ctx, const char *line) {
  (void)ctx;
  puts(line);
}

int main(int argc, char **argv) {
  static const struct option options[] = {{"redis", 1, NULL, 'r'},   {"queue", 1, NULL, 'q'}, {"results", 1, NULL, 'd'},
                                          {"drained", 1, NULL, 'o'}, {"end", 0, NULL, 'e'},   {"stub", 0, NULL, 's'},
                                          {"help", 0, NULL, 'h'},    {NULL, 0, NULL, 0}};
  checker_options o = {.redis = "redis://127.0.0.1:6379", .queue = "default"};
  checker_report r;
  btc_error err;
  for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
    if (c == 'r')
      o.redis = optarg;
    else if (c == 'q')
      o.queue = optarg;
    else if (c == 'd')
      o.results = optarg;
    else if (c == 'o')
      o.drained = optarg;
    else if (c == 'e')
      o.at_end = true;
    else if (c == 's')
      o.stub = true;
    else {
      fputs(usage, c == 'h' ? stdout : stderr);
      return c == 'h' ? 0 : 2;
    }
  }
  if (checker_run(&o, say, NULL, &r, &err) != BTC_OK) {
    fprintf(stderr, "btcchat-check: %s\n", err.message);
    return 4;
  }
  fprintf(stderr,
          "jobs=%" PRIu64 " items=%" PRIu64 " done=%" PRIu64 " dead=%" PRIu64 " cancelled=%" PRIu64 " records=%" PRIu64
          " captions=%" PRIu64 " violations=%" PRIu64 "\n",
          r.jobs, r.items, r.done, r.dead, r.cancelled, r.records, r.captions, r.violations);
  return r.violations ? 1 : 0;
}
