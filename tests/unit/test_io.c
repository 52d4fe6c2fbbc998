/* The disk thread under a real loop: expansion and texts agree with reading the manifest, digests, path policy, hostile manifests.
 */
#define _GNU_SOURCE
#include "test.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "broker/io.h"

static btc_loop *loop;
static btc_io *io;
static char tmp[PATH_MAX];

/* What the last answer said. */
static struct {
  int answers;
  btc_status status;
  char message[BTC_ERROR_TEXT], sha256[65];
  char *text[1000];
  size_t n;
  uint32_t count[BTC_IO_CHUNKS];
  btc_manifest_pos pos[BTC_IO_CHUNKS], end;
  size_t n_chunks;
  uint64_t items;
  bool at_end;
} got;

static void take(void *ctx, const btc_io_reply *r) {
  (void)ctx;
  for (size_t i = 0; i < got.n; i++) free(got.text[i]);
  int answers = got.answers;
  memset(&got, 0, sizeof got);
  got.answers = answers + 1;
  got.status = r->status;
  snprintf(got.message, sizeof got.message, "%s", r->message);
  snprintf(got.sha256, sizeof got.sha256, "%s", r->sha256 ? r->sha256 : "");
  got.n = r->status == BTC_OK ? r->n : 0;
  for (size_t i = 0; i < got.n; i++) got.text[i] = strdup(r->text[i]);
  got.n_chunks = r->n_chunks;
  for (size_t i = 0; i < r->n_chunks; i++) got.count[i] = r->count[i], got.pos[i] = r->pos[i];
  got.end = r->end;
  got.items = r->items;
  got.at_end = r->at_end;
}

static void start(const char *roots) {
  btc_error err;
  snprintf(tmp, sizeof tmp, "%s", test_tmp_dir());
  memset(&got, 0, sizeof got);
  assert_int_equal(btc_loop_create(&loop, &err), BTC_OK);
  if (btc_io_create(loop, &(btc_io_options){.results = tmp, .roots = roots}, &io, &err) != BTC_OK) fail_msg("%s", err.message);
}

static void stop(void) {
  btc_io_destroy(&io);
  btc_loop_destroy(&loop);
  for (size_t i = 0; i < got.n; i++) free(got.text[i]);
  got.n = 0;
}

static void wait_answers(int n) {
  for (int64_t end = btc_now_ns() + 60000000000; got.answers < n;) {
    assert_int_equal(btc_loop_turn(loop, 100, NULL), BTC_OK);
    assert_true(btc_now_ns() < end);
  }
}

static const char *at(const char *name) {
  static char path[4][PATH_MAX + 64];
  static int turn;
  turn = (turn + 1) % 4;
  snprintf(path[turn], sizeof path[turn], "%s/%s", tmp, name);
  return path[turn];
}

static void put(const char *name, const char *text) {
  FILE *f = fopen(at(name), "wb");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
}

static btc_status verify(const char *path, const char *sha256) {
  int before = got.answers;
  assert_int_equal(btc_io_verify(io, &(btc_io_manifest){.path = path, .sha256 = sha256}, take, NULL, NULL), BTC_OK);
  wait_answers(before + 1);
  return got.status;
}

static btc_status expand(const btc_io_manifest *m, const char *pos, uint64_t from, uint64_t total, uint32_t items,
                         uint32_t chunks) {
  int before = got.answers;
  assert_int_equal(btc_io_expand(io, m, pos, from, total, items, chunks, take, NULL, NULL), BTC_OK);
  wait_answers(before + 1);
  return got.status;
}

static btc_status texts(const btc_io_manifest *m, const char *pos, uint64_t lo, uint32_t n, uint32_t mask, uint32_t dups) {
  int before = got.answers;
  assert_int_equal(btc_io_texts(io, m, pos, lo, n, mask, dups, take, NULL, NULL), BTC_OK);
  wait_answers(before + 1);
  return got.status;
}

enum { ITEMS = 5000 };

static void put_big(const char *name) {
  FILE *f = fopen(at(name), "wb");
  for (int i = 0; i < ITEMS; i++)
    fprintf(f,
            i % 101 == 7  ? "broken %d\n"
            : i % 97 == 3 ? "\n{\"id\":\"dup\",\"before\":\"a%d\",\"after\":\"b\"}\n"
                          : "{\"before\":\"a%d\",\"after\":\"b\",\"meta\":{\"k\":1.0}}\n",
            i);
  fclose(f);
}

/* All chunks of all expansions, read by mask, are the manifest. */
static void test_io_chunks_are_the_manifest(void **state) {
  (void)state;
  start(NULL);
  put_big("big.jsonl");
  btc_io_manifest m = {.path = at("big.jsonl"), .base = "/base"};
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s", m.path);
  m.path = path;
  btc_manifest *want;
  assert_int_equal(btc_manifest_open(path, &(btc_manifest_options){.duplicates_too = true, .dir = "/base"}, &want, NULL), BTC_OK);
  btc_manifest_pos pos = {""};
  uint64_t from = 0;
  for (bool end = false; !end;) {
    assert_int_equal(expand(&m, pos.text, from, ITEMS, 30, 50), BTC_OK);
    static btc_manifest_pos chunk[BTC_IO_CHUNKS];
    uint32_t count[BTC_IO_CHUNKS];
    size_t n = got.n_chunks;
    memcpy(chunk, got.pos, sizeof chunk);
    memcpy(count, got.count, sizeof count);
    pos = got.end;
    for (size_t c = 0; c < n; c++) {
      uint32_t mask = c % 3 ? 0xffffffff : 0x55555555;
      assert_int_equal(texts(&m, chunk[c].text, from, count[c], mask, 0), BTC_OK);
      size_t k = 0;
      for (uint32_t i = 0; i < count[c]; i++) {
        btc_manifest_item item;
        assert_int_equal(btc_manifest_next(want, &item, NULL), BTC_OK);
        if (!(mask >> i & 1)) continue;
        char *text = btc_manifest_item_text(&item, NULL);
        assert_string_equal(got.text[k++], text);
        free(text);
      }
      assert_int_equal(got.n, k);
      from += count[c];
    }
    end = from == ITEMS;
    assert_true(n > 0);
  }
  assert_int_equal(expand(&m, pos.text, from, ITEMS + 10, 32, 4), BTC_OK); /* the client claimed more than there is */
  assert_int_equal(got.n_chunks, 0);
  assert_true(got.at_end);
  btc_manifest_close(&want);
  stop();
}

static void test_io_duplicates_become_problems(void **state) {
  (void)state;
  start(NULL);
  put("d.jsonl",
      "{\"id\":\"x\",\"before\":\"a\",\"after\":\"b\"}\n{\"id\":\"x\",\"before\":\"a\",\"after\":\"b\"}\n{\"before\":\"a\"}\n");
  btc_io_manifest m = {.path = at("d.jsonl")};
  static const uint64_t dups[] = {1, 40, 41};
  assert_int_equal(btc_io_dup_mask(dups, 3, 0, 3), 2);
  assert_int_equal(btc_io_dup_mask(dups, 3, 10, 32), 0xc0000000u);
  assert_int_equal(btc_io_dup_mask(dups, 3, 10, 31), 0x40000000);
  assert_int_equal(btc_io_dup_mask(dups, 3, 42, 32), 0);
  assert_int_equal(btc_io_dup_mask(NULL, 0, 0, 32), 0);
  assert_int_equal(texts(&m, "", 0, 3, 7, 2), BTC_OK);
  assert_non_null(strstr(got.text[0], "\"before\""));
  assert_string_equal(got.text[1], "{\"id\":\"x\",\"problem\":\"line 2: the id 'x' was used before\"}");
  assert_string_equal(got.text[2], "{\"id\":\"3\",\"problem\":\"line 3: 'after' is missing\"}");
  stop();
}

static void test_io_digest_pins_the_manifest(void **state) {
  (void)state;
  start(NULL);
  put("p.jsonl", "{\"before\":\"a\",\"after\":\"b\"}\n");
  char hex[65], path[PATH_MAX];
  snprintf(path, sizeof path, "%s", at("p.jsonl"));
  btc_sha256_hex("{\"before\":\"a\",\"after\":\"b\"}\n", 27, hex);
  assert_int_equal(verify(path, ""), BTC_OK);
  assert_string_equal(got.sha256, hex);
  assert_int_equal(verify(path, hex), BTC_OK);
  btc_io_manifest m = {.path = path, .sha256 = hex};
  assert_int_equal(texts(&m, "", 0, 1, 1, 0), BTC_OK);
  put("p.jsonl", "{\"before\":\"c\",\"after\":\"b\"}\n"); /* in place, same length */
  assert_int_equal(texts(&m, "", 0, 1, 1, 0), BTC_ERR_FORMAT);
  assert_non_null(strstr(got.message, "not the manifest that was submitted"));
  assert_int_equal(verify(path, hex), BTC_ERR_FORMAT);
  put("other", "{\"before\":\"a\",\"after\":\"b\"}\n"); /* the right bytes come back under another inode */
  assert_int_equal(rename(at("other"), path), 0);
  assert_int_equal(texts(&m, "", 0, 1, 1, 0), BTC_OK);
  unlink(path);
  assert_int_equal(texts(&m, "", 0, 1, 1, 0), BTC_ERR_NOT_FOUND);
  stop();
}

static void test_io_folder_digest(void **state) {
  (void)state;
  start(NULL);
  mkdir(at("f"), 0755);
  assert_int_equal(verify(at("f"), ""), BTC_ERR_NOT_FOUND);
  mkdir(at("f/A"), 0755);
  mkdir(at("f/B"), 0755);
  put("f/A/1.png", "");
  put("f/B/1.png", "");
  assert_int_equal(verify(at("f"), ""), BTC_OK);
  char hex[65];
  memcpy(hex, got.sha256, 65);
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%s", at("f"));
  btc_io_manifest m = {.path = path, .sha256 = hex};
  assert_int_equal(expand(&m, "", 0, 1, 32, 256), BTC_OK);
  assert_int_equal(got.items, 1);
  put("f/B/2.png", "");
  assert_int_equal(expand(&m, "", 0, 1, 32, 256), BTC_ERR_FORMAT);
  stop();
}

/* A large manifest is hashed in slices: a small request behind it is answered first. */
static void test_io_hashing_starves_nobody(void **state) {
  (void)state;
  start(NULL);
  put("small.jsonl", "{\"before\":\"a\",\"after\":\"b\"}\n");
  int fd = open(at("large.jsonl"), O_WRONLY | O_CREAT, 0644);
  assert_int_equal(ftruncate(fd, 256 << 20), 0);
  close(fd);
  assert_int_equal(btc_io_verify(io, &(btc_io_manifest){.path = at("large.jsonl")}, take, NULL, NULL), BTC_OK);
  btc_loop_turn(loop, 20, NULL);
  assert_int_equal(btc_io_texts(io, &(btc_io_manifest){.path = at("small.jsonl")}, "", 0, 1, 1, 0, take, NULL, NULL), BTC_OK);
  wait_answers(1);
  assert_int_equal(got.n, 1); /* the small one */
  assert_int_equal(btc_io_pending(io), 1);
  wait_answers(2);
  assert_string_equal(got.sha256, "a6d72ac7690f53be6ae46ba88506bd97302a093f7108472bd9efc3cefda06484");
  stop();
}

static void test_io_path_policy(void **state) {
  (void)state;
  start(NULL);
  stop();
  mkdir(at("in"), 0755);
  mkdir(at("in/sub"), 0755);
  mkdir(at("inside-out"), 0755);
  char root[PATH_MAX], text[4 * PATH_MAX];
  snprintf(root, sizeof root, "%s", at("in"));
  put("in/a.png", "");
  put("in/sub/b.png", "");
  put("out.png", "");
  put("inside-out/x.png", "");
  assert_int_equal(symlink(at("out.png"), at("in/leak.png")), 0);
  assert_int_equal(symlink(tmp, at("in/up")), 0);
  assert_int_equal(symlink("loop", at("in/loop")), 0);
  assert_int_equal(symlink(at("nowhere"), at("in/dangling.png")), 0);
  static const struct {
    const char *before;
    bool good;
  } cases[] = {{"a.png", true},
               {"sub/b.png", true},
               {"sub/../a.png", true},
               {"missing.png", true},
               {"no/such/x.png", true},
               {"../out.png", false},
               {"leak.png", false},
               {"up/out.png", false},
               {"up/in/a.png", true},
               {"loop", false},
               {"loop/x", false},
               {"dangling.png", false},
               {"/etc/passwd", false},
               {"no/../../out.png", false},
               {"../inside-out/x.png", false},
               {"no/such/../../../out.png", false}};
  FILE *f = fopen(at("in/m.jsonl"), "wb");
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
    fprintf(f, "{\"before\":\"a.png\",\"after\":\"%s\"}\n", cases[i].before);
  fclose(f);
  start(root);
  btc_io_manifest m = {.path = at("in/m.jsonl")};
  size_t n = sizeof cases / sizeof cases[0];
  assert_int_equal(texts(&m, "", 0, (uint32_t)n, 0xffffffff, 0), BTC_OK);
  for (size_t i = 0; i < n; i++)
    if (cases[i].good != (strstr(got.text[i], "problem") == NULL)) fail_msg("'%s': %s", cases[i].before, got.text[i]);
  assert_non_null(strstr(got.text[5], "line 6: 'after' lies outside the folders that are served"));
  /* manifests themselves */
  put("out.jsonl", "{}\n");
  assert_int_equal(symlink(at("out.jsonl"), at("in/link.jsonl")), 0);
  assert_int_equal(verify(at("out.jsonl"), ""), BTC_ERR_ARG);
  assert_int_equal(verify(at("in/link.jsonl"), ""), BTC_ERR_ARG);
  assert_int_equal(verify(at("in/loop"), ""), BTC_ERR_ARG);
  assert_int_equal(verify("m.jsonl", ""), BTC_ERR_ARG);
  assert_int_equal(verify(at("in/m.jsonl"), ""), BTC_OK);
  /* inline items */
  snprintf(text, sizeof text, "{\"id\":\"q\",\"before\":\"%s\",\"after\":\"%s\"}", at("in/a.png"), at("out.png"));
  const char *items[] = {text, "{\"id\":\"p\",\"problem\":\"x\"}"};
  int before = got.answers;
  assert_int_equal(btc_io_check_items(io, items, 2, take, NULL, NULL), BTC_OK);
  wait_answers(before + 1);
  assert_int_equal(got.n, 2);
  assert_string_equal(got.text[0], "{\"id\":\"q\",\"problem\":\"'after' lies outside the folders that are served\"}");
  assert_string_equal(got.text[1], items[1]);
  stop();
}

static void test_io_hostile_manifests(void **state) {
  (void)state;
  start(NULL);
  assert_int_equal(mkfifo(at("fifo"), 0600), 0);
  assert_int_equal(verify(at("fifo"), ""), BTC_ERR_ARG); /* and nobody waits for a writer */
  assert_int_equal(verify("/dev/zero", ""), BTC_ERR_ARG);
  put("few.jsonl", "{\"before\":\"a\",\"after\":\"b\"}\n");
  btc_io_manifest few = {.path = at("few.jsonl")};
  assert_int_equal(expand(&few, "", 0, 1000000000, 32, 256), BTC_OK); /* says it has 10^9 lines */
  assert_int_equal(got.items, 1);
  assert_true(got.at_end);
  assert_int_equal(texts(&few, "", 0, 2, 3, 0), BTC_ERR_ARG);
  assert_int_equal(texts(&few, "7:8:27", 7, 1, 1, 0), BTC_ERR_ARG);
  assert_int_equal(texts(&few, "1:2:27", 5, 1, 1, 0), BTC_ERR_ARG);
  assert_int_equal(texts(&few, "1:2:5", 1, 1, 1, 0), BTC_ERR_ARG);
  assert_int_equal(texts(&few, "x", 0, 1, 1, 0), BTC_ERR_ARG);
  FILE *f = fopen(at("odd.jsonl"), "wb");
  static const char lines[] =
      "{\xff\xfe\"id\":\"\xc3\x28\"}\n\0\n{\"before\":NaN}\n{\"before\":\"a\",\"after\":\"b\",\"meta\":{\"x\":\"";
  fwrite(lines, 1, sizeof lines - 1, f);
  for (int i = 0; i < 210000; i++) fputc('y', f);
  fputs("\"}}\n", f);
  fclose(f);
  btc_io_manifest odd = {.path = at("odd.jsonl")};
  assert_int_equal(texts(&odd, "", 0, 4, 15, 0), BTC_OK);
  for (int i = 0; i < 4; i++) assert_non_null(strstr(got.text[i], "problem"));
  assert_non_null(strstr(got.text[3], "line 4: the item is over 192 KiB"));
  stop();
}

static void count_only(void *ctx, const btc_io_reply *r) {
  (void)r;
  ++*(int *)ctx;
}

static void test_io_requests_are_bounded(void **state) {
  (void)state;
  int answers = 0;
  start(NULL);
  btc_io_destroy(&io);
  assert_int_equal(btc_io_create(loop, &(btc_io_options){.max_pending = 3}, &io, NULL), BTC_OK);
  btc_status st = BTC_OK;
  int taken = 0;
  for (int i = 0; i < 4; i++) {
    st = btc_io_verify(io, &(btc_io_manifest){.path = "/nowhere"}, count_only, &answers, NULL);
    taken += st == BTC_OK;
  }
  assert_int_equal(st, BTC_ERR_LIMIT);
  assert_int_equal(taken, 3);
  while (answers < 3) btc_loop_turn(loop, 100, NULL);
  assert_int_equal(btc_io_pending(io), 0);
  for (int i = 0; i < 3; i++) btc_io_verify(io, &(btc_io_manifest){.path = "/nowhere"}, count_only, &answers, NULL);
  stop(); /* what was not answered is freed and never called */
  assert_int_equal(answers, 3);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_io_chunks_are_the_manifest),  cmocka_unit_test(test_io_duplicates_become_problems),
    cmocka_unit_test(test_io_digest_pins_the_manifest), cmocka_unit_test(test_io_folder_digest),
    cmocka_unit_test(test_io_hashing_starves_nobody),   cmocka_unit_test(test_io_path_policy),
    cmocka_unit_test(test_io_hostile_manifests),        cmocka_unit_test(test_io_requests_are_bounded),
};

BTC_TEST_MAIN(tests)
