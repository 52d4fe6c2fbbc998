/*
 * Pipelines of real processes: the answers of any cut are those of one process, byte for byte, whatever happens to ranks while
 * items are under way; survivors keep their processes.
 */
#define _GNU_SOURCE
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon.h"
#include "tiny_checkpoint.h"
#include "usage.h"
#include "worker/pipe.h"
#include "worker/shard.h"

enum { MOST = 320, TOKENS = 12, PATIENCE_MS = 60000, WEDGE_MS = 1500 };

/* ---- items and their answers ---- */

typedef struct work {
  const char *model;
  btc_item items[MOST];
  const char *pictures[MOST][2];
  btc_result want[MOST];
  size_t n;
  btc_precision precision;
} work;

static work w; /* of the running test */

/* Lives until 64 later calls. */
static const char *path_in(const char *dir, const char *name) {
  static char *keep[64];
  static int at;
  char **slot = &keep[at++ % 64];
  free(*slot);
  assert_non_null(*slot = btc_path_join(dir, name));
  return *slot;
}

static const char *nano(void) {
  return path_in(getenv("BTCCHAT_SOURCE"), "models/nano");
}

static void answer_whole(void) {
  btc_model *m;
  btc_session *s;
  btc_error err;
  btc_session_options o = btc_session_options_default();
  o.threads = 1;
  o.max_batch = 3;
  o.max_tokens = TOKENS;
  o.precision = w.precision;
  if (btc_model_open(w.model, &m, &err) != BTC_OK || btc_session_create(m, &o, &s, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_int_equal(btc_session_run(s, w.items, w.n, w.want, &err), BTC_OK);
  btc_session_destroy(&s);
  btc_model_close(&m);
}

/* n items of all sorts: pairs, images, questions, drawn and greedy, and bad ones. */
static void make_work(const char *model, size_t n, bool bad, btc_precision precision) {
  static const char *const questions[] = {NULL, "a", "abcabc aab", "cab?", NULL, "What?"};
  memset(&w, 0, sizeof w);
  w.model = model;
  w.n = n;
  w.precision = precision;
  for (size_t i = 0; i < n; i++) {
    for (int k = 0; k < 2; k++)
      w.pictures[i][k] = tiny_picture(40 + (int)(i % 7) * 9, 61 + 20 * k, (unsigned)((2 * i + (size_t)k) % 12));
    w.items[i] = (btc_item){.images = w.pictures[i],
                            .n_images = i % 3 == 2 ? 1 : 2,
                            .question = questions[i % 6],
                            .max_tokens = 2 + (int)(i % 10),
                            .temperature = i % 2 ? 0.9f : 0,
                            .seed = i};
    if (bad && i % 11 == 5) w.pictures[i][0] = "/nowhere.png";
    if (bad && i % 13 == 7) w.items[i].max_tokens = TOKENS + 1;
  }
  answer_whole();
}

static void clear_work(void) {
  for (size_t i = 0; i < w.n; i++) btc_result_clear(&w.want[i]);
  w.n = 0;
}

static void assert_same(size_t i, const btc_result *got) {
  const btc_result *want = &w.want[i];
  if (got->status != want->status)
    fail_msg("item %zu: %s instead of %s (%s)", i, btc_status_text(got->status), btc_status_text(want->status), got->error.message);
  assert_int_equal(got->phase, want->phase);
  if (want->status != BTC_OK) {
    assert_string_equal(got->error.message, want->error.message);
    return;
  }
  if (strcmp(got->text, want->text) != 0) fail_msg("item %zu: '%s' instead of '%s'", i, got->text, want->text);
  assert_int_equal(got->n_ids, want->n_ids);
  assert_int_equal(got->stop, want->stop);
  assert_memory_equal(got->ids, want->ids, (size_t)got->n_ids * sizeof *got->ids);
  assert_memory_equal(&got->logprob, &want->logprob, sizeof got->logprob);
  assert_memory_equal(&got->score, &want->score, sizeof got->score);
  assert_int_equal(got->cosine != NULL, want->cosine != NULL);
  if (got->cosine) assert_memory_equal(got->cosine, want->cosine, (size_t)(got->grid * got->grid) * sizeof *got->cosine);
}

/* ---- pipelines ---- */

/* What is promised is 3 s; it is asked for where nothing else runs. A machine that is shared by other tests only has to get there.
 */
static void assert_formed_in_time(const pipe_state *s) {
  const double limit = getenv("BTCCHAT_LONG") ? 3000 : PATIENCE_MS;
  if (s->form_ms >= limit) fail_msg("formed after %.0f ms", s->form_ms);
}

static pipe_options quick(void) {
  pipe_options o = pipe_options_default();
  o.program = getenv("BTCCHAT_BINARY");
  o.threads = 1;
  o.slots = 8;
  o.max_tokens = TOKENS;
  o.precision = w.precision;
  o.wedge_ms = PATIENCE_MS; /* nobody stands still but where a test stops it */
  return o;
}

static void even_cuts(int ranks, int *cuts) {
  btc_model *m;
  btc_error err;
  assert_int_equal(btc_model_open(w.model, &m, &err), BTC_OK);
  assert_int_equal(pipe_even_cuts(m, ranks, cuts, &err), BTC_OK);
  btc_model_close(&m);
}

static pipe_driver *open_pipe(const pipe_options *o, const int *cuts, int ranks) {
  pipe_driver *p;
  btc_error err;
  if (pipe_create(w.model, cuts, ranks, o, &p, &err) != BTC_OK) fail_msg("%s", err.message);
  return p;
}

static pipe_driver *open_even(const pipe_options *o, int ranks) {
  int cuts[PIPE_MAX_RANKS + 1];
  even_cuts(ranks, cuts);
  return open_pipe(o, cuts, ranks);
}

static void run_and_compare(pipe_driver *p) {
  static btc_result got[MOST];
  btc_error err;
  if (pipe_run(p, w.items, w.n, got, &err) != BTC_OK) fail_msg("%s", err.message);
  for (size_t i = 0; i < w.n; i++) assert_same(i, &got[i]);
  for (size_t i = 0; i < w.n; i++) btc_result_clear(&got[i]);
}

/* Every rank but `changed` has the process it had. */
static void assert_survivors(const pipe_state *before, const pipe_state *after, int changed) {
  for (int r = 0; r < before->ranks; r++) {
    if (r == changed)
      assert_int_not_equal(after->pid[r], before->pid[r]);
    else
      assert_int_equal(after->pid[r], before->pid[r]);
  }
}

/* ---- any cut ---- */

static void test_pipe_every_cut_of_nano(void **state) {
  (void)state;
  btc_model *m;
  btc_error err;
  make_work(nano(), 5, true, BTC_PRECISION_F32);
  pipe_options o = quick();
  assert_int_equal(btc_model_open(w.model, &m, &err), BTC_OK);
  const int n = btc_block_count(m);
  btc_model_close(&m);
  for (int at = 1; at < n; at++) {
    pipe_driver *p = open_pipe(&o, (int[]){0, at, n}, 2);
    run_and_compare(p);
    pipe_destroy(&p);
  }
  const int cuts[][5] = {{0, 1, 2, n, 0}, {0, 5, 9, n, 0}, {0, n - 2, n - 1, n, 0}, {0, 1, 2, 3, n}, {0, n - 3, n - 2, n - 1, n},
                         {0, 3, 8, 11, n}};
  for (int i = 0; i < 6; i++) {
    pipe_driver *p = open_pipe(&o, cuts[i], i < 3 ? 3 : 4);
    run_and_compare(p);
    pipe_destroy(&p);
  }
  clear_work();
}

/* Tokens come back, not the rows of logits that they are taken from. */
static void test_pipe_greedy_answers_are_small(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 20, false, BTC_PRECISION_F32);
  for (size_t i = 0; i < w.n; i++) {
    w.items[i].temperature = 0;
    btc_result_clear(&w.want[i]);
  }
  answer_whole();
  pipe_options o = quick();
  pipe_driver *p = open_even(&o, 3);
  run_and_compare(p);
  pipe_state s = pipe_get_state(p);
  assert_true(s.rows > 20);
  if (s.row_bytes >= 100 * s.rows) fail_msg("%lld bytes of %lld tokens", (long long)s.row_bytes, (long long)s.rows);
  pipe_destroy(&p);
  clear_work();
}

/* The last norm of a copy of the checkpoint becomes what no number is. */
static const char *broken_checkpoint(void) {
  static const char name[] = "\"model.norm.weight\"";
  char command[600];
  uint64_t header = 0;
  const char *dir = path_in(test_tmp_dir(), "broken");
  snprintf(command, sizeof command, "cp -r '%s' '%s'", tiny_checkpoint(), dir);
  assert_int_equal(system(command), 0);
  FILE *f = fopen(path_in(dir, "llm/model.safetensors"), "r+");
  assert_non_null(f);
  assert_int_equal(fread(&header, sizeof header, 1, f), 1);
  char *json = calloc(1, header + 1);
  assert_non_null(json);
  assert_int_equal(fread(json, header, 1, f), 1);
  const char *at = strstr(json, name);
  assert_non_null(at);
  assert_non_null(at = strstr(at, "data_offsets"));
  long begin = strtol(strchr(at, '[') + 1, NULL, 10);
  free(json);
  assert_int_equal(fseek(f, (long)(sizeof header + header) + begin, SEEK_SET), 0);
  assert_int_equal(fwrite("\xff\xff\xff\xff", 4, 1, f), 1); /* NaN as float32, and two of them as bf16 or float16 */
  fclose(f);
  return dir;
}

static void test_pipe_broken_logits_are_named(void **state) {
  (void)state;
  make_work(broken_checkpoint(), 4, false, BTC_PRECISION_F32);
  for (size_t i = 0; i < w.n; i++) {
    assert_int_equal(w.want[i].status, BTC_ERR_MODEL);
    assert_non_null(strstr(w.want[i].error.message, "not a number"));
  }
  pipe_options o = quick();
  pipe_driver *p = open_even(&o, 2);
  run_and_compare(p);
  assert_int_equal(pipe_get_state(p).breaks, 0);
  pipe_destroy(&p);
  clear_work();
}

static void check_many(const char *model, size_t n, int fewest, int most, btc_precision precision) {
  make_work(model, n, true, precision);
  for (int ranks = fewest; ranks <= most; ranks++) {
    pipe_options o = quick();
    o.slots = 15 - 3 * ranks;
    pipe_driver *p = open_even(&o, ranks);
    run_and_compare(p);
    pipe_state s = pipe_get_state(p);
    assert_int_equal(s.epoch, 1);
    assert_int_equal(s.breaks, 0);
    pipe_destroy(&p);
  }
  clear_work();
}

static void test_pipe_300_items_of_nano(void **state) {
  (void)state;
  check_many(nano(), 300, 3, 3, BTC_PRECISION_F32);
}

static void test_pipe_300_items(void **state) {
  (void)state;
  check_many(tiny_checkpoint(), 300, 2, 4, BTC_PRECISION_F32);
}

static void test_pipe_bf16(void **state) {
  (void)state;
  check_many(nano(), 24, 2, 4, BTC_PRECISION_BF16);
}

static void test_pipe_one_rank_one_group(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 9, true, BTC_PRECISION_F32);
  pipe_options o = quick();
  o.groups = 1;
  pipe_driver *p = open_even(&o, 1);
  run_and_compare(p);
  run_and_compare(p); /* the second run finds what the first left */
  pipe_destroy(&p);
  clear_work();
}

/* ---- prompts in chunks, items that come at any time ---- */

typedef struct arrivals {
  btc_result got[MOST];
  size_t done;
} arrivals;

static arrivals came;

static void keep_answer(void *ctx, void *tag, btc_result *r) {
  (void)ctx;
  came.got[(size_t)(uintptr_t)tag] = *r;
  came.done++;
}

/* In an order and at moments drawn from seed. */
static void arrive_and_compare(pipe_driver *p, unsigned seed) {
  size_t order[MOST], next = 0;
  btc_error err;
  came.done = 0;
  for (size_t i = 0; i < w.n; i++) {
    seed = seed * 1664525u + 1013904223u;
    size_t k = seed / 65536 % (i + 1);
    order[i] = order[k];
    order[k] = i;
  }
  while (came.done < w.n) {
    seed = seed * 1664525u + 1013904223u;
    for (unsigned n = seed / 65536 % 4; n && next < w.n && pipe_room(p); n--, next++)
      if (pipe_submit(p, &w.items[order[next]], (void *)(uintptr_t)order[next], &err) != BTC_OK) fail_msg("%s", err.message);
    if (pipe_step(p, &err) != BTC_OK) fail_msg("%s", err.message);
  }
  for (size_t i = 0; i < w.n; i++) assert_same(i, &came.got[i]);
  for (size_t i = 0; i < w.n; i++) btc_result_clear(&came.got[i]);
}

/* Whatever the chunks, with the longest prompts among short ones: the same bytes, and tokens of others come amid a prompt. */
static void test_pipe_prompts_in_chunks(void **state) {
  (void)state;
  static const int chunks[] = {1, 3, 16, 50, 4096};
  static const char *film[MOST];
  make_work(tiny_checkpoint(), 24, true, BTC_PRECISION_F32);
  for (size_t i = 0; i < w.n; i++) btc_result_clear(&w.want[i]);
  btc_model *m;
  btc_error err;
  assert_int_equal(btc_model_open(w.model, &m, &err), BTC_OK);
  const int frames = (int)m->cfg->num_video_frames;
  for (int i = 0; i < frames; i++) film[i] = w.pictures[i][0];
  btc_model_close(&m);
  for (size_t i = 0; i < w.n && frames > 2; i += 9) w.items[i] = (btc_item){.images = film, .n_images = frames, .max_tokens = 4};
  answer_whole();
  for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++)
    for (int ranks = 2; ranks <= 4; ranks++) {
      pipe_options o = quick();
      o.chunk = chunks[i];
      o.done = keep_answer;
      pipe_driver *p = open_even(&o, ranks);
      arrive_and_compare(p, (unsigned)(7 * i) + (unsigned)ranks);
      pipe_state s = pipe_get_state(p);
      assert_int_equal(s.breaks, 0);
      if (o.chunk <= 3) assert_true(s.chunks > 4 * (int64_t)w.n && s.amid > 0);
      if (o.chunk == 4096) assert_true(s.chunks <= (int64_t)w.n);
      pipe_destroy(&p);
    }
  clear_work();
}

/* With every cut near the change module, and a rank that dies while prompts are half sent. */
static void test_pipe_chunks_at_any_cut(void **state) {
  (void)state;
  btc_model *m;
  btc_error err;
  make_work(tiny_checkpoint(), 12, true, BTC_PRECISION_F32);
  assert_int_equal(btc_model_open(w.model, &m, &err), BTC_OK);
  const int n = btc_block_count(m), change = (int)m->cfg->vision.blocks + 1;
  btc_model_close(&m);
  const int cuts[][4] = {
      {0, change, change + 1, n}, {0, change + 1, change + 2, n}, {0, change - 1, change + 1, n}, {0, change, n - 1, n}};
  for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++)
    for (int kill_rank = -1; kill_rank < 3; kill_rank++) {
      pipe_options o = quick();
      o.chunk = 6;
      o.fail_rank = kill_rank;
      o.fail = kill_rank < 0 ? NULL : cuts[i][kill_rank + 1] > change ? "shard_prefill:8" : "shard_vision:3";
      pipe_driver *p = open_pipe(&o, cuts[i], 3);
      run_and_compare(p);
      assert_int_equal(pipe_get_state(p).breaks, kill_rank >= 0);
      pipe_destroy(&p);
    }
  clear_work();
}

/* A golden case's images, as its runs group them. */
static bool load_case(const char *dir) {
  json_error_t e;
  json_t *doc = json_load_file(path_in(dir, "expected.json"), JSON_ALLOW_NUL, &e), *run, *image;
  size_t i, k;
  static char paths[MOST][600];
  static const char *groups[MOST];
  size_t n_paths = 0;
  if (!doc) return false;
  memset(&w, 0, sizeof w);
  w.model = path_in(dir, "ckpt");
  w.precision = BTC_PRECISION_F32;
  json_array_foreach(json_object_get(doc, "runs"), i, run) {
    size_t first = n_paths;
    json_array_foreach(json_object_get(run, "images"), k, image) {
      snprintf(paths[n_paths], sizeof paths[0], "%s/%s", dir, json_string_value(image));
      groups[n_paths] = paths[n_paths];
      n_paths++;
    }
    for (int twice = 0; twice < 2; twice++)
      w.items[w.n++] =
          (btc_item){.images = &groups[first], .n_images = (int)(n_paths - first), .temperature = (float)twice, .seed = 7};
  }
  json_decref(doc);
  if (w.n) answer_whole();
  return w.n > 0;
}

static void test_pipe_golden_models(void **state) {
  (void)state;
  char root[500];
  int cases = 0;
  skip_without_shared();
  snprintf(root, sizeof root, "%s", shared_path("vectors"));
  DIR *d = opendir(root);
  assert_non_null(d);
  for (struct dirent *e; (e = readdir(d));) {
    struct stat sb;
    const char *dir = path_in(root, e->d_name);
    if (e->d_name[0] == '.' || stat(path_in(dir, "expected.json"), &sb) != 0 || !load_case(dir)) continue;
    for (int ranks = 2; ranks <= 4; ranks++) {
      pipe_options o = quick();
      pipe_driver *p = open_even(&o, ranks);
      run_and_compare(p);
      pipe_destroy(&p);
    }
    clear_work();
    cases++;
  }
  closedir(d);
  assert_true(cases >= 6);
}

/* ---- ranks that die ---- */

static void check_death(int rank, const char *where, bool run_first) {
  pipe_options o = quick();
  o.fail_rank = rank;
  o.fail = where;
  pipe_driver *p = open_even(&o, 3);
  pipe_state before = pipe_get_state(p);
  if (run_first) run_and_compare(p);
  for (int64_t end = test_now_ms() + PATIENCE_MS; strstr(where, "idle") && pipe_get_state(p).breaks == 0;) {
    btc_error err;
    if (test_now_ms() > end) fail_msg("rank %d never died at %s", rank, where);
    assert_int_equal(pipe_check(p, &err), BTC_OK);
    test_sleep_ms(20);
  }
  run_and_compare(p);
  pipe_state after = pipe_get_state(p);
  assert_int_equal(after.breaks, 1);
  assert_int_equal(after.epoch, 2);
  assert_survivors(&before, &after, rank);
  assert_formed_in_time(&after);
  if (!strstr(after.cause, "signal 9")) fail_msg("%s", after.cause);
  run_and_compare(p);
  pipe_destroy(&p);
}

static void test_pipe_rank_killed_at_vision(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 20, true, BTC_PRECISION_F32);
  check_death(0, "shard_vision:2", false);
  clear_work();
}

static void test_pipe_rank_killed_at_prefill(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 20, true, BTC_PRECISION_F32);
  for (int r = 1; r < 3; r++) check_death(r, "shard_prefill:3", false); /* rank 0 has nothing but a part of the tower */
  clear_work();
}

static void test_pipe_rank_killed_at_decode(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 20, true, BTC_PRECISION_F32);
  check_death(0, "shard_vision:4", false);
  for (int r = 1; r < 3; r++) check_death(r, "shard_decode:17", false);
  clear_work();
}

/* Tokens that the journal has are fed again one by one: the bits are those of the first time, in either type. */
static void test_pipe_bytes_after_a_formation(void **state) {
  (void)state;
  for (int bf16 = 0; bf16 < 2; bf16++) {
    make_work(nano(), 16, true, bf16 ? BTC_PRECISION_BF16 : BTC_PRECISION_F32);
    check_death(2, "shard_decode:9", false);
    check_death(2, "shard_decode:25", false);
    clear_work();
  }
}

static void test_pipe_rank_killed_at_idle(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 8, true, BTC_PRECISION_F32);
  for (int r = 0; r < 3; r++) check_death(r, "shard_idle:60", false);
  clear_work();
}

/* At the first formation, and at one that another death makes necessary. */
static void test_pipe_rank_killed_at_form(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 8, true, BTC_PRECISION_F32);
  for (int r = 0; r < 3; r++) {
    pipe_options o = quick();
    o.fail_rank = r;
    o.fail = "shard_form:1";
    pipe_driver *p = open_even(&o, 3);
    run_and_compare(p);
    assert_int_equal(pipe_get_state(p).epoch, 2);
    pipe_destroy(&p);
    o.fail = "shard_form:2";
    p = open_even(&o, 3);
    pipe_state before = pipe_get_state(p);
    kill(before.pid[(r + 1) % 3], SIGKILL);
    run_and_compare(p);
    pipe_state after = pipe_get_state(p);
    assert_int_equal(after.pid[(r + 2) % 3], before.pid[(r + 2) % 3]);
    assert_int_not_equal(after.pid[r], before.pid[r]);
    pipe_destroy(&p);
  }
  clear_work();
}

/* A rank that dies whenever it decodes: an error, in time, and the pipeline is good for other work. */
static void test_pipe_gives_up_in_the_end(void **state) {
  (void)state;
  static btc_result got[MOST];
  btc_error err;
  make_work(tiny_checkpoint(), 3, false, BTC_PRECISION_F32);
  pipe_options o = quick();
  o.max_breaks = 2;
  setenv("BTC_FAIL", "shard_prefill:1", 1);
  pipe_driver *p = open_even(&o, 2);
  assert_int_not_equal(pipe_run(p, w.items, w.n, got, &err), BTC_OK);
  assert_non_null(strstr(err.message, "died by signal 9"));
  for (size_t i = 0; i < w.n; i++) assert_int_not_equal(got[i].status, BTC_OK);
  for (size_t i = 0; i < w.n; i++) btc_result_clear(&got[i]);
  unsetenv("BTC_FAIL");
  for (int r = 0; r < 2; r++)
    if (pipe_get_state(p).pid[r]) kill(pipe_get_state(p).pid[r], SIGKILL);
  run_and_compare(p);
  pipe_destroy(&p);
  clear_work();
}

/* ---- ranks without memory ---- */

static char last_note[600];

static void keep_note(void *ctx, const char *text) {
  (void)ctx;
  snprintf(last_note, sizeof last_note, "%s", text);
}

static pipe_options without_memory(int rank, const char *where) {
  pipe_options o = quick();
  o.fail_rank = rank;
  o.fail = where;
  o.note = keep_note;
  last_note[0] = 0;
  return o;
}

/* At its first room, and in the midst of things: half the slots, the same bytes, all processes. */
static void test_pipe_rank_out_of_memory_halves_the_slots(void **state) {
  (void)state;
  static const struct {
    int rank;
    const char *where;
  } cases[] = {{0, "shard_reserve_memory:1"}, {0, "shard_step_memory:1"}, /* rank 0 has a part of the tower only */
               {1, "shard_reserve_memory:1"}, {1, "shard_reserve_memory:2"}, {1, "shard_step_memory:1"}, {1, "shard_step_memory:2"},
               {2, "shard_reserve_memory:1"}, {2, "shard_reserve_memory:2"}, {2, "shard_step_memory:1"}};
  char who[32];
  make_work(tiny_checkpoint(), 30, true, BTC_PRECISION_F32);
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    pipe_options o = without_memory(cases[i].rank, cases[i].where);
    pipe_driver *p = open_even(&o, 3);
    pipe_state before = pipe_get_state(p);
    run_and_compare(p);
    pipe_state after = pipe_get_state(p);
    if (after.breaks != 1 || after.slots != 4) fail_msg("rank %d, %s: %d slots", cases[i].rank, cases[i].where, after.slots);
    assert_survivors(&before, &after, -1);
    snprintf(who, sizeof who, "with 4 slots: rank %d: not", cases[i].rank);
    if (!strstr(last_note, who)) fail_msg("'%s' does not say '%s'", last_note, who);
    pipe_destroy(&p);
  }
  clear_work();
}

/* Never enough: all items fail in the end, each try holds less than the one before, and the next run is not worse. */
static void test_pipe_rank_never_has_memory(void **state) {
  (void)state;
  static btc_result got[MOST];
  btc_error err;
  make_work(tiny_checkpoint(), 30, false, BTC_PRECISION_F32);
  pipe_options o = without_memory(1, "shard_reserve_memory:1+");
  pipe_driver *p = open_even(&o, 3);
  pipe_state before = pipe_get_state(p);
  for (int run = 0; run < 2; run++) {
    assert_int_equal(pipe_run(p, w.items, w.n, got, &err), BTC_ERR_NOMEM);
    if (!strstr(err.message, "rank 1: not enough memory")) fail_msg("%s", err.message);
    for (size_t i = 0; i < w.n; i++) assert_int_equal(got[i].status, BTC_ERR_NOMEM);
    for (size_t i = 0; i < w.n; i++) btc_result_clear(&got[i]);
    pipe_state after = pipe_get_state(p);
    assert_int_equal(after.slots, 1);
    assert_int_equal(after.breaks, 4 + run); /* 8, 4, 2, 1 */
    assert_survivors(&before, &after, -1);
  }
  pipe_destroy(&p);
  clear_work();
}

/* With one slot it is the item under way: that one alone says so. */
static void test_pipe_rank_out_of_memory_for_one_item(void **state) {
  (void)state;
  static btc_result got[MOST];
  btc_error err;
  size_t failed = 0;
  make_work(tiny_checkpoint(), 12, false, BTC_PRECISION_F32);
  pipe_options o = without_memory(1, "shard_step_memory:2");
  o.slots = 1;
  pipe_driver *p = open_even(&o, 3);
  if (pipe_run(p, w.items, w.n, got, &err) != BTC_OK) fail_msg("%s", err.message);
  for (size_t i = 0; i < w.n; i++) {
    if (got[i].status == BTC_ERR_NOMEM && strstr(got[i].error.message, "rank 1: not enough memory"))
      failed++;
    else
      assert_same(i, &got[i]);
    btc_result_clear(&got[i]);
  }
  assert_int_equal(failed, 1);
  assert_int_equal(pipe_get_state(p).breaks, 1);
  pipe_destroy(&p);
  clear_work();
}

/* ---- signals while it works ---- */

typedef struct trouble {
  pid_t pid;
  int ms, signal;
} trouble;

static void *make_trouble(void *ctx) {
  const trouble *t = ctx;
  test_sleep_ms(t->ms);
  kill(t->pid, t->signal);
  return NULL;
}

static void run_with_trouble(pipe_driver *p, int rank, int ms, int signal) {
  pthread_t thread;
  trouble t = {pipe_get_state(p).pid[rank], ms, signal};
  assert_int_equal(pthread_create(&thread, NULL, make_trouble, &t), 0);
  run_and_compare(p);
  pthread_join(thread, NULL);
}

static void test_pipe_stopped_rank_is_replaced(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 60, true, BTC_PRECISION_F32);
  pipe_options o = quick();
  o.wedge_ms = WEDGE_MS;
  pipe_driver *p = open_even(&o, 3);
  for (int r = 0; r < 3; r++) {
    btc_error err;
    pipe_state before = pipe_get_state(p);
    run_with_trouble(p, r, 10 + 20 * r, SIGSTOP);
    for (int64_t end = test_now_ms() + PATIENCE_MS; pipe_get_state(p).pid[r] == before.pid[r] && test_now_ms() < end;
         test_sleep_ms(20))
      assert_int_equal(pipe_check(p, &err), BTC_OK); /* it may have been stopped when all was done */
    pipe_state after = pipe_get_state(p);
    assert_survivors(&before, &after, r);
    assert_formed_in_time(&after);
    run_and_compare(p);
  }
  pipe_destroy(&p);
  clear_work();
}

static void test_pipe_50_formations_in_a_row(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 12, false, BTC_PRECISION_F32);
  pipe_options o = quick();
  pipe_driver *p = open_even(&o, 3);
  for (int i = 0; i < 50; i++) {
    btc_error err;
    pipe_state before = pipe_get_state(p);
    int rank = (i * 7 + i / 3) % 3;
    if (i % 2) {
      run_with_trouble(p, rank, i % 10, SIGKILL);
    } else {
      kill(before.pid[rank], SIGKILL);
    }
    for (int64_t end = test_now_ms() + PATIENCE_MS; pipe_get_state(p).pid[rank] == before.pid[rank] && test_now_ms() < end;
         test_sleep_ms(2))
      if (pipe_check(p, &err) != BTC_OK) fail_msg("formation %d: %s", i, err.message);
    pipe_state after = pipe_get_state(p);
    assert_survivors(&before, &after, rank);
    assert_int_equal(after.epoch, before.epoch + 1);
    assert_formed_in_time(&after);
  }
  run_and_compare(p);
  assert_int_equal(pipe_get_state(p).breaks, 50);
  pipe_destroy(&p);
  clear_work();
}

/* A rank of an old epoch that comes back to life, with its old orders in hand: nothing it says is heard. */
static void test_pipe_zombie_of_an_old_epoch(void **state) {
  (void)state;
  make_work(tiny_checkpoint(), 40, true, BTC_PRECISION_F32);
  for (int r = 0; r < 3; r++) {
    pipe_options o = quick();
    o.wedge_ms = WEDGE_MS;
    o.leave_wedged = true;
    pipe_driver *p = open_even(&o, 3);
    pid_t old = pipe_get_state(p).pid[r];
    btc_error err;
    run_with_trouble(p, r, 5, SIGSTOP);
    for (int64_t end = test_now_ms() + PATIENCE_MS; pipe_get_state(p).pid[r] == old && test_now_ms() < end; test_sleep_ms(20))
      assert_int_equal(pipe_check(p, &err), BTC_OK);
    assert_int_not_equal(pipe_get_state(p).pid[r], old);
    run_with_trouble(p, r, 0, 0); /* nothing: the zombie sleeps */
    kill(old, SIGCONT);
    uint64_t epoch = pipe_get_state(p).epoch;
    for (int i = 0; i < 3; i++) run_and_compare(p);
    assert_int_equal(pipe_get_state(p).epoch, epoch);
    assert_int_equal(waitpid(old, NULL, WNOHANG), 0); /* it lives */
    kill(old, SIGKILL);
    assert_int_equal(waitpid(old, NULL, 0), old);
    pipe_destroy(&p);
  }
  clear_work();
}

static void test_pipe_cancel_leaves_it_usable(void **state) {
  (void)state;
  static btc_result got[MOST];
  volatile int cancel = 1;
  btc_error err;
  make_work(tiny_checkpoint(), 20, false, BTC_PRECISION_F32);
  pipe_options o = quick();
  pipe_driver *p = open_even(&o, 2);
  run_and_compare(p);
  pipe_destroy(&p);
  o.cancel = &cancel;
  cancel = 0;
  p = open_even(&o, 2);
  cancel = 1;
  assert_int_equal(pipe_run(p, w.items, w.n, got, &err), BTC_ERR_CANCELLED);
  for (size_t i = 0; i < w.n; i++) assert_int_equal(got[i].status, BTC_ERR_CANCELLED);
  cancel = 0;
  run_and_compare(p);
  pipe_destroy(&p);
  clear_work();
}

/* ---- processes ---- */

static void test_pipe_ranks_die_with_their_driver(void **state) {
  (void)state;
  int out[2];
  pipe_state s;
  make_work(tiny_checkpoint(), 60, false, BTC_PRECISION_F32);
  assert_int_equal(pipe(out), 0);
  pid_t driver = fork();
  if (driver == 0) {
    pipe_options o = quick();
    pipe_driver *p = open_even(&o, 3);
    s = pipe_get_state(p);
    if (write(out[1], &s, sizeof s) != (ssize_t)sizeof s) _exit(1);
    for (;;) run_and_compare(p);
  }
  assert_int_equal(read(out[0], &s, sizeof s), sizeof s);
  test_sleep_ms(50);
  kill(driver, SIGKILL);
  assert_int_equal(waitpid(driver, NULL, 0), driver);
  for (int r = 0; r < 3; r++)
    for (int64_t end = test_now_ms() + PATIENCE_MS; kill(s.pid[r], 0) == 0; test_sleep_ms(10)) {
      char path[64], text[256] = "";
      snprintf(path, sizeof path, "/proc/%d/stat", s.pid[r]);
      FILE *f = fopen(path, "r");
      if (f && fgets(text, sizeof text, f) && strstr(text, ") Z ")) end = 0; /* dead; nobody waits for it here */
      if (f) fclose(f);
      if (!end) break;
      if (test_now_ms() > end) fail_msg("rank %d outlived its driver", r);
    }
  close(out[0]);
  close(out[1]);
  clear_work();
}

static void test_pipe_rank_holds_its_weights_only(void **state) {
  (void)state;
  btc_model *m;
  btc_error err;
  int cuts[4];
  make_work(nano(), 12, false, BTC_PRECISION_F32);
  even_cuts(3, cuts);
  assert_int_equal(btc_model_open(w.model, &m, &err), BTC_OK);
  pipe_options o = quick();
  pipe_driver *p = open_pipe(&o, cuts, 3);
  run_and_compare(p);
  int64_t whole = 0, bytes[3] = {0};
  for (int r = 0; r < 3; r++) {
    for (int i = cuts[r]; i < cuts[r + 1]; i++) bytes[r] += btc_block_at(m, i).weight_bytes;
    whole += bytes[r];
  }
  btc_model_close(&m);
  for (int r = 0; r < 3; r++) {
    int64_t have = 0, least = bytes[r] - bytes[r] / 10;
    for (int64_t end = test_now_ms() + PATIENCE_MS; have < least && test_now_ms() < end; test_sleep_ms(10))
      have = usage_mapped(pipe_get_state(p).pid[r], ".safetensors");
    if (have < least) fail_msg("rank %d has %lld of %lld bytes", r, (long long)have, (long long)bytes[r]);
    /* the system reads 64 kB around a fault, at both ends of the range in each of three files; nano is small for that */
    if (have > bytes[r] + bytes[r] / 10 + 6 * 65536)
      fail_msg("rank %d has %lld of %lld bytes, the model %lld", r, (long long)have, (long long)bytes[r], (long long)whole);
    assert_true(bytes[r] < whole);
  }
  int64_t own = usage_mapped(getpid(), ".safetensors");
  if (own > whole / 10 + 6 * 65536) fail_msg("the driver has %lld bytes of weights", (long long)own);
  pipe_destroy(&p);
  clear_work();
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_pipe_every_cut_of_nano),
    cmocka_unit_test(test_pipe_greedy_answers_are_small),
    cmocka_unit_test(test_pipe_broken_logits_are_named),
    cmocka_unit_test(test_pipe_300_items),
    cmocka_unit_test(test_pipe_300_items_of_nano),
    cmocka_unit_test(test_pipe_bf16),
    cmocka_unit_test(test_pipe_one_rank_one_group),
    cmocka_unit_test(test_pipe_golden_models),
    cmocka_unit_test(test_pipe_prompts_in_chunks),
    cmocka_unit_test(test_pipe_chunks_at_any_cut),
    cmocka_unit_test(test_pipe_rank_killed_at_vision),
    cmocka_unit_test(test_pipe_rank_killed_at_prefill),
    cmocka_unit_test(test_pipe_rank_killed_at_decode),
    cmocka_unit_test(test_pipe_rank_killed_at_idle),
    cmocka_unit_test(test_pipe_bytes_after_a_formation),
    cmocka_unit_test(test_pipe_rank_killed_at_form),
    cmocka_unit_test(test_pipe_rank_out_of_memory_halves_the_slots),
    cmocka_unit_test(test_pipe_rank_never_has_memory),
    cmocka_unit_test(test_pipe_rank_out_of_memory_for_one_item),
    cmocka_unit_test(test_pipe_gives_up_in_the_end),
    cmocka_unit_test(test_pipe_stopped_rank_is_replaced),
    cmocka_unit_test(test_pipe_50_formations_in_a_row),
    cmocka_unit_test(test_pipe_zombie_of_an_old_epoch),
    cmocka_unit_test(test_pipe_cancel_leaves_it_usable),
    cmocka_unit_test(test_pipe_ranks_die_with_their_driver),
    cmocka_unit_test(test_pipe_rank_holds_its_weights_only),
};

BTC_TEST_MAIN(tests)
