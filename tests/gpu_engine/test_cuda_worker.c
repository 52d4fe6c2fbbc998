/*
 * A queue whose worker computes on a CUDA device (the stand-in of tests/gpu_host/fake): what the device is, and how full and busy,
 * comes by way of child, agent, broker and Redis to the commands that show it.
 */
#define _GNU_SOURCE
#include "test.h"

#include <jansson.h>

#include "cluster.h"
#include "program.h"

enum { PATIENCE_MS = 60000 };

static cluster c;

static int set_up(void **state) {
  (void)state;
  if (!getenv("BTCCHAT_GPU_HOST")) return -1;
  setenv("BTCCHAT_BINARY", getenv("BTCCHAT_GPU_HOST"), 1);
  setenv("FAKE_NVML", "93", 1);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  cluster_stop(&c);
  return 0;
}

static json_t *parsed(const program_result *r) {
  json_error_t why;
  json_t *o = json_loads(r->out, 0, &why);
  if (!o) fail_msg("%s: %.500s", why.text, r->out);
  return o;
}

/* The devices of worker `at`, once it has told of n. */
static json_t *devices_of_worker(size_t at, size_t n) {
  for (int64_t end = test_now_ms() + PATIENCE_MS; test_now_ms() < end; test_sleep_ms(100)) {
    program_result r = RUN("workers", "--broker", c.clients, "--json");
    assert_int_equal(r.code, 0);
    json_t *all = parsed(&r), *list = json_object_get(json_array_get(all, at), "devices");
    program_clear(&r);
    json_incref(list);
    json_decref(all);
    if (json_array_size(list) == n) return list;
    json_decref(list);
  }
  cluster_show(&c);
  fail_msg("%zu devices are not shown", n);
  return NULL;
}

static void check_device(const json_t *d, const char *name, double busy) {
  assert_string_equal(json_string_value(json_object_get(d, "name")), name);
  assert_true(json_integer_value(json_object_get(d, "memory_bytes")) == (json_int_t)1 << 34);
  assert_true(json_integer_value(json_object_get(d, "free_bytes")) == ((json_int_t)1 << 34) / 4 * 3);
  assert_true(json_real_value(json_object_get(d, "busy")) == busy);
}

static void expect(program_result r, const char *text) {
  assert_int_equal(r.code, 0);
  if (!strstr(r.out, text)) fail_msg("'%.1500s' lacks '%s'", r.out, text);
  program_clear(&r);
}

static void test_cuda_worker_tells_of_its_device(void **state) {
  (void)state;
  skip_without_shared();
  cluster_start(
      &c,
      &(cluster_options){
          .model = shared_path("vectors/pair-l0/ckpt"), .device = "cuda", .dead_ms = 20000, .lease_ms = 30000, .stall_ms = 60000});
  json_t *list = devices_of_worker(0, 1);
  check_device(json_array_get(list, 0), "cuda:0, host shim", 0.93);
  json_decref(list);
  program_result r = RUN("status", "--broker", c.clients, "--json");
  json_t *status = parsed(&r), *first = json_array_get(json_object_get(status, "devices"), 0);
  check_device(first, "cuda:0, host shim", 0.93);
  assert_non_null(json_string_value(json_object_get(first, "worker")));
  json_decref(status);
  program_clear(&r);
  const char *const shown = "cuda:0, host shim: 4.0 of 16.0 GiB in use, 93 % busy";
  expect(RUN("status", "--broker", c.clients), shown);
  expect(RUN("workers", "--broker", c.clients), shown);
  expect(RUN("top", "--broker", c.clients, "-n", "1"), shown);
}

/* The driver has no card; each rank tells of its own, and one that two share is shown once. */
static void test_cuda_worker_tells_of_the_cards_of_its_ranks(void **state) {
  (void)state;
  skip_without_shared();
  setenv("FAKE_CUDA", "2", 1);
  cluster_start(&c, &(cluster_options){.model = shared_path("vectors/pair-l0/ckpt"),
                                       .device = "cuda",
                                       .pipe = 3,
                                       .dead_ms = 30000,
                                       .lease_ms = 60000,
                                       .stall_ms = 60000});
  json_t *list = devices_of_worker(0, 2);
  check_device(json_array_get(list, 0), "cuda:0, host shim", 0.93);
  check_device(json_array_get(list, 1), "cuda:1, host shim", 0.94);
  json_decref(list);
  expect(RUN("status", "--broker", c.clients), "cuda:1, host shim: 4.0 of 16.0 GiB in use, 94 % busy");
  unsetenv("FAKE_CUDA");
}

static void test_cuda_worker_doctor_shows_the_device(void **state) {
  (void)state;
  skip_without_shared();
  expect(RUN("doctor", "-m", shared_path("vectors/pair-l0/ckpt")),
         "cuda:0, host shim, compute capability 9.0, 17.2 GB, 12.9 GB free, 93 % busy");
}

static void test_cuda_worker_doctor_tells_of_nccl(void **state) {
  (void)state;
  skip_without_shared();
  const char *model = shared_path("vectors/pair-l0/ckpt"), *library = getenv("BTCCHAT_NCCL");
  if (!library) skip();
  char *there = strdup(library);
  expect(RUN("doctor", "-m", model), "2.28.9 (/");
  setenv("BTCCHAT_NCCL", "/nowhere/libnccl.so.2", 1);
  expect(RUN("doctor", "-m", model), "NCCL cannot be used: /nowhere/libnccl.so.2");
  setenv("FAKE_CUDA", "0", 1); /* without a device nobody misses it */
  program_result r = RUN("doctor", "-m", model);
  assert_int_equal(r.code, 0);
  assert_null(strcasestr(r.out, "nccl"));
  program_clear(&r);
  unsetenv("FAKE_CUDA");
  setenv("BTCCHAT_NCCL", there, 1);
  free(there);
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_cuda_worker_tells_of_its_device, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_cuda_worker_tells_of_the_cards_of_its_ranks, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_cuda_worker_doctor_shows_the_device, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_cuda_worker_doctor_tells_of_nccl, set_up, tear_down),
  };
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  return cmocka_run_group_tests(tests, NULL, NULL);
}
