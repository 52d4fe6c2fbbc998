/*
 * Pictures on their way to a CUDA device: what they become is the CPU's bit for bit, whatever their size and their number, with
 * pinned memory and without; and the orders of copies and operators are kept. Two programs: test_cuda_pictures over the stand-in
 * (tests/gpu_host/fake), whose copies from pinned memory come as late as they may and which counts; gpu_pictures on a card
 * (BTC_TEST_ON_CARD), where there is time for more rounds.
 */
#define _GNU_SOURCE
#include "engine/parcel_pool.h"
#include "tests/gpu_host/fake/fake.h"
#include "tests/unit/ops_fixture.h"

#ifdef BTC_TEST_ON_CARD
enum { ROUNDS = 25 };
#define FAKE_ONLY(check) ((void)0)
static void require_device(void) {
  btc_error err;
  if (!btc_device_count(&err)) skip();
}
#else
enum { ROUNDS = 1 };
#define FAKE_ONLY(check) check
static void require_device(void) {
}
#endif

enum { SIDE = 14, PIXELS = 3 * SIDE * SIDE, MOST = BTC_PICTURE_SQUARES * SIDE };

static const btc_shades shades = {0.00392156862745098, {0.5f, 0.48145466f, 0.40821073f}, {0.5f, 0.26862954f, 0.27577711f}};

static btc_backend *device_new(void) {
  btc_backend *b;
  btc_error err;
  btc_backend_options o = {.kind = "cuda", .max_cols = 8, .picture_side = SIDE};
  if (btc_backend_create(&o, &b, &err) != BTC_OK) fail_msg("%s", err.message);
  return b;
}

static btc_parcel *parcel_new(btc_backend *b) {
  btc_parcel *p;
  btc_error err;
  if (btc_parcel_create(b, btc_picture_bytes(SIDE), &p, &err) != BTC_OK) fail_msg("%s", err.message);
  return p;
}

static btc_picture picture_new(int64_t width, int64_t height, bool pad) {
  uint8_t *rgb = malloc((size_t)(width * height) * 3);
  assert_non_null(rgb);
  for (int64_t i = 0; i < width * height * 3; i++) rgb[i] = (uint8_t)random_u32();
  return (btc_picture){.rgb = rgb, .width = width, .height = height, .pad = pad};
}

static size_t bytes_of(const btc_picture *p) {
  return (size_t)(p->width * p->height) * 3;
}

/* On the device, from there, and the CPU's. */
typedef struct made {
  float *device;
  float got[PIXELS], want[PIXELS];
} made;

static void make_wanted(made *m, const btc_picture *p) {
  btc_backend *cpu = backend_new("cpu", 1, BTC_COMPUTE_F32, 8);
  btc_op_resize_normalise(cpu, m->want, p, 1, SIDE, &shades);
  btc_backend_destroy(&cpu);
}

static made *made_new(btc_backend *b, const btc_picture *p) {
  made *m = calloc(1, sizeof *m);
  btc_error err;
  void *place;
  assert_non_null(m);
  assert_int_equal(btc_backend_alloc(b, sizeof m->got, &place, &err), BTC_OK);
  m->device = place;
  make_wanted(m, p);
  return m;
}

static void made_check(btc_backend *b, made *m) {
  btc_error err;
  btc_op_copy(b, m->got, m->device, sizeof m->got);
  if (btc_backend_finish(b, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_same_bits(m->got, m->want, PIXELS, "pixels");
  btc_backend_free(b, m->device);
  free(m);
}

static const int64_t sizes[][2] = {
    {1, 1},   {SIDE, SIDE}, {2 * SIDE, 2 * SIDE}, {MOST, SIDE}, {SIDE, MOST}, {MOST, 1}, {1, MOST}, {13, 15},
    {15, 14}, {3, 20},      {SIDE, 2 * SIDE},     {27, 25},     {SIDE, 1},    {5, 7}};
enum { SIZES = sizeof sizes / sizeof sizes[0], MANY = 40 };

/* More than a tower's batch, by two parcels in turn, as a session sends them; what was sent may be overwritten at once. */
static void check_many(void) {
  btc_backend *b = device_new();
  btc_parcel *parcel[2] = {parcel_new(b), parcel_new(b)};
  made *all[MANY];
  btc_error err;
  for (int i = 0; i < MANY; i++) {
    const int64_t *size = sizes[i % SIZES];
    btc_picture p = picture_new(size[0], size[1], i / SIZES % 2);
    assert_true(btc_picture_fits(p.width, p.height, SIDE));
    all[i] = made_new(b, &p);
    p.parcel = parcel[i % 2];
    btc_op_send(b, p.parcel, p.rgb, bytes_of(&p));
    memset((uint8_t *)(uintptr_t)p.rgb, 0xa5, bytes_of(&p));
    btc_op_resize_normalise(b, all[i]->device, &p, 1, SIDE, &shades);
    free((uint8_t *)(uintptr_t)p.rgb);
  }
  for (int i = 0; i < MANY; i++) made_check(b, all[i]);
  for (int k = 0; k < 2; k++) btc_parcel_destroy(b, &parcel[k]);
  assert_int_equal(btc_backend_finish(b, &err), BTC_OK);
  btc_backend_destroy(&b);
  FAKE_ONLY(assert_int_equal(fake_streams(), 0));
}

/* The pictures of one call, more than share a launch, side by side; and each is read before its parcel travels again. */
static void test_cuda_pictures_of_one_call_lie_side_by_side(void **state) {
  (void)state;
  require_device();
  enum { N = 11 };
  btc_backend *b = device_new();
  btc_parcel *parcel[N];
  btc_picture p[N];
  float *want = malloc((size_t)N * PIXELS * sizeof *want), *got = malloc((size_t)N * PIXELS * sizeof *got);
  btc_error err;
  void *place;
  assert_non_null(want);
  assert_non_null(got);
  assert_int_equal(btc_backend_alloc(b, (size_t)N * PIXELS * sizeof *got, &place, &err), BTC_OK);
  btc_backend *cpu = backend_new("cpu", 1, BTC_COMPUTE_F32, 8);
  for (int i = 0; i < N; i++) {
    p[i] = picture_new(sizes[i][0], sizes[i][1], i % 2);
    p[i].parcel = parcel[i] = parcel_new(b);
    btc_op_send(b, parcel[i], p[i].rgb, bytes_of(&p[i]));
  }
  btc_op_resize_normalise(cpu, want, p, N, SIDE, &shades);
  btc_op_resize_normalise(b, place, p, N, SIDE, &shades);
  for (int i = 0; i < N; i++) {
    memset((uint8_t *)(uintptr_t)p[i].rgb, 0xa5, bytes_of(&p[i]));
    btc_op_send(b, parcel[i], p[i].rgb, bytes_of(&p[i]));
  }
  btc_op_copy(b, got, place, (size_t)N * PIXELS * sizeof *got);
  if (btc_backend_finish(b, &err) != BTC_OK) fail_msg("%s", err.message);
  assert_same_bits(got, want, N * PIXELS, "pixels");
  for (int i = 0; i < N; i++) {
    btc_parcel_destroy(b, &parcel[i]);
    free((uint8_t *)(uintptr_t)p[i].rgb);
  }
  btc_backend_free(b, place);
  btc_backend_destroy(&b);
  btc_backend_destroy(&cpu);
  free(want);
  free(got);
}

static void test_cuda_pictures_equal_the_cpu(void **state) {
  (void)state;
  require_device();
  for (int i = 0; i < ROUNDS; i++) check_many();
}

#ifndef BTC_TEST_ON_CARD
static void test_cuda_pictures_without_pinned_memory(void **state) {
  (void)state;
  require_device();
  setenv("FAKE_CUDA_UNPINNED", "1", 1);
  check_many();
  btc_backend *b = device_new();
  const char *said = btc_backend_remark(b);
  assert_non_null(said);
  assert_non_null(strstr(said, "cannot be pinned"));
  btc_parcel *p = parcel_new(b);
  assert_null(btc_backend_remark(b)); /* once */
  btc_parcel_destroy(b, &p);
  btc_backend_destroy(&b);
  unsetenv("FAKE_CUDA_UNPINNED");
}
#endif

/* All go before any is looked at: nothing waits for a copy but the operator that needs it. */
static void test_cuda_pictures_travel_beside_the_operators(void **state) {
  (void)state;
  require_device();
  enum { N = 5 };
  btc_backend *b = device_new();
  btc_parcel *parcel[N];
  btc_picture p[N];
  made *all[N];
  btc_error err;
  for (int i = 0; i < N; i++) {
    p[i] = picture_new(sizes[i][0], sizes[i][1], i % 2);
    all[i] = made_new(b, &p[i]);
    p[i].parcel = parcel[i] = parcel_new(b);
  }
  assert_int_equal(btc_backend_finish(b, &err), BTC_OK);
  FAKE_ONLY(memset(&fake, 0, sizeof fake));
  for (int i = 0; i < N; i++) btc_op_send(b, parcel[i], p[i].rgb, bytes_of(&p[i]));
  assert_int_equal(btc_backend_finish(b, &err), BTC_OK); /* of the operators only */
  FAKE_ONLY(assert_int_equal(fake.most_beside, N));
  FAKE_ONLY(assert_int_equal(fake.waits, 0));
  for (int i = 0; i < N; i++) btc_op_resize_normalise(b, all[i]->device, &p[i], 1, SIDE, &shades);
  FAKE_ONLY(assert_int_equal(fake.waits, N));
  for (int i = 0; i < N; i++) {
    made_check(b, all[i]);
    btc_parcel_destroy(b, &parcel[i]);
    free((uint8_t *)(uintptr_t)p[i].rgb);
  }
  btc_backend_destroy(&b);
}

/* A parcel is written anew behind its journey, and the next journey begins behind the operators that read the last one. */
static void test_cuda_pictures_parcel_is_sent_again(void **state) {
  (void)state;
  require_device();
  btc_backend *b = device_new();
  btc_parcel *parcel = parcel_new(b);
  btc_picture first = picture_new(20, 20, false), second = picture_new(9, 30, true);
  made *one = made_new(b, &first), *two = made_new(b, &second);
  first.parcel = second.parcel = parcel;
  btc_op_send(b, parcel, second.rgb, bytes_of(&second));
  btc_op_send(b, parcel, first.rgb, bytes_of(&first)); /* nobody has read the second */
  FAKE_ONLY(memset(&fake, 0, sizeof fake));
  btc_op_resize_normalise(b, one->device, &first, 1, SIDE, &shades);
  FAKE_ONLY(assert_int_equal(fake.waits, 1));
  btc_op_send(b, parcel, second.rgb, bytes_of(&second));
  FAKE_ONLY(assert_int_equal(fake.waits, 2));
  btc_op_resize_normalise(b, two->device, &second, 1, SIDE, &shades);
  made_check(b, one);
  made_check(b, two);
  btc_op_send(b, parcel, first.rgb, bytes_of(&first));
  btc_parcel_destroy(b, &parcel); /* on its way */
  btc_backend_destroy(&b);
  free((uint8_t *)(uintptr_t)first.rgb);
  free((uint8_t *)(uintptr_t)second.rgb);
}

/* Constants are read from the same two buffers again and again: each only behind its own copy. */
static void test_cuda_pictures_constants_wait_for_their_buffer(void **state) {
  (void)state;
  require_device();
  enum { N = 7 };
  btc_backend *b = device_new();
  btc_error err;
  float w[N][64], x[64], y[N];
  for (int i = 0; i < 64; i++) x[i] = i == 3;
  for (int k = 0; k < N; k++)
    for (int i = 0; i < 64; i++) w[k][i] = (float)(100 * k + i);
  for (int k = 0; k < N; k++) assert_int_equal(btc_backend_hold(b, &(btc_weight){w[k], BTC_F32, 8, 8}, false, &err), BTC_OK);
  for (int k = 0; k < N; k++) {
    void *p;
    assert_int_equal(btc_backend_alloc(b, sizeof x, &p, &err), BTC_OK);
    btc_op_add(b, p, w[k], w[k], 64);
    btc_op_copy(b, &y[k], (float *)p + 3, sizeof y[k]);
    assert_int_equal(btc_backend_finish(b, &err), BTC_OK);
    btc_backend_free(b, p);
    assert_true(y[k] == 2 * w[k][3]);
  }
  btc_backend_destroy(&b);
}

/* What steps say of their items is written in a few places in turn: each only behind its own copy. */
static void test_cuda_pictures_items_wait_for_their_place(void **state) {
  (void)state;
  require_device();
  btc_backend *b;
  btc_error err;
  btc_backend_options o = {
      .kind = "cuda", .max_cols = 8, .max_items = 2, .max_layers = 1, .max_positions = 16, .heads = 2, .head_dim = 8};
  if (btc_backend_create(&o, &b, &err) != BTC_OK) fail_msg("%s", err.message);
  for (int64_t i = 0; i < 10; i++) {
    const int64_t rows = 1;
    const int32_t id = (int32_t)i;
    btc_op_set_items(b, &(btc_items){.n = 1, .pos = &i, .rows = &rows, .ids = &id});
  }
  assert_int_equal(btc_backend_finish(b, &err), BTC_OK);
  btc_backend_destroy(&b);
}

static void test_cuda_pictures_pool_is_bounded(void **state) {
  (void)state;
  require_device();
  btc_backend *b = device_new();
  btc_parcel_pool *pool;
  btc_parcel *p[3];
  btc_error err;
  assert_int_equal(btc_parcel_pool_create(b, 64, 2, &pool, &err), BTC_OK);
  assert_int_equal(btc_parcel_pool_take(pool, &p[0], &err), BTC_OK);
#ifndef BTC_TEST_ON_CARD
  setenv("FAKE_CUDA_FAIL", "1:2", 1); /* out of memory: nothing is taken */
  assert_int_equal(btc_parcel_pool_take(pool, &p[1], &err), BTC_ERR_NOMEM);
  assert_null(p[1]);
  unsetenv("FAKE_CUDA_FAIL");
#endif
  assert_int_equal(btc_parcel_pool_take(pool, &p[1], &err), BTC_OK);
  assert_ptr_not_equal(p[0], p[1]);
  assert_int_equal(btc_parcel_pool_take(pool, &p[2], &err), BTC_ERR_LIMIT);
  assert_null(p[2]);
  btc_parcel_pool_put(pool, p[0]);
  btc_parcel_pool_put(pool, NULL);
  assert_int_equal(btc_parcel_pool_take(pool, &p[2], &err), BTC_OK);
  assert_ptr_equal(p[2], p[0]); /* used again */
  btc_parcel_pool_put(pool, p[2]);
  btc_parcel_pool_trim(pool);
  assert_int_equal(btc_parcel_pool_take(pool, &p[0], &err), BTC_OK);
  btc_op_send(b, p[0], "0123456789", 10);
  btc_parcel_pool_destroy(&pool); /* while one travels */
  btc_backend_destroy(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_cuda_pictures_equal_the_cpu),
    cmocka_unit_test(test_cuda_pictures_of_one_call_lie_side_by_side),
#ifndef BTC_TEST_ON_CARD
    cmocka_unit_test(test_cuda_pictures_without_pinned_memory),
#endif
    cmocka_unit_test(test_cuda_pictures_travel_beside_the_operators),
    cmocka_unit_test(test_cuda_pictures_parcel_is_sent_again),
    cmocka_unit_test(test_cuda_pictures_constants_wait_for_their_buffer),
    cmocka_unit_test(test_cuda_pictures_items_wait_for_their_place),
    cmocka_unit_test(test_cuda_pictures_pool_is_bounded),
};

BTC_TEST_MAIN(tests)
