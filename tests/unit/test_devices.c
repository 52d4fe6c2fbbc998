/* Devices as a message tells them, kept: whatever it holds, the copy is bounded and makes sense. */
#include "test.h"

#include <stdio.h>

#include "base/base.h"
#include "proto/devices.h"

static btc_devices kept;

static void test_devices_are_kept_beyond_the_message(void **state) {
  (void)state;
  char name[] = "cuda:0, NVIDIA H200";
  Btc__Device d = BTC__DEVICE__INIT, *list = &d;
  d.name = name;
  d.memory_bytes = 100;
  d.free_bytes = 40;
  d.busy = 0.5;
  d.busy_known = true;
  btc_devices_set(&kept, &list, 1);
  name[0] = 'X';
  assert_int_equal(kept.n, 1);
  assert_string_equal(kept.list[0]->name, "cuda:0, NVIDIA H200");
  assert_true(kept.list[0]->memory_bytes == 100 && kept.list[0]->free_bytes == 40 && kept.list[0]->busy == 0.5);
  btc_devices_set(&kept, NULL, 0);
  assert_int_equal(kept.n, 0);
}

static void test_devices_of_nonsense_are_bounded(void **state) {
  (void)state;
  enum { MANY = BTC_DEVICES + 5 };
  static Btc__Device of[MANY], *list[MANY];
  char name[400];
  for (size_t i = 0; i < sizeof name - 1; i += 3) memcpy(name + i, "\xe2\x82\xac", 3); /* euro signs */
  name[sizeof name - 1] = 0;
  for (int i = 0; i < MANY; i++) {
    list[i] = &of[i];
    btc__device__init(list[i]);
    of[i].name = name;
    of[i].memory_bytes = 10;
    of[i].free_bytes = 11;
    of[i].busy = 1.5;
    of[i].busy_known = true;
  }
  btc_devices_set(&kept, list, MANY);
  assert_int_equal(kept.n, BTC_DEVICES);
  for (size_t i = 0; i < kept.n; i++) {
    size_t n = strlen(kept.list[i]->name);
    assert_true(n > 120 && n < BTC_DEVICE_NAME && btc_utf8_valid(kept.list[i]->name, n) == n);
    assert_true(kept.list[i]->free_bytes == 10);
    assert_false(kept.list[i]->busy_known);
  }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_devices_are_kept_beyond_the_message),
    cmocka_unit_test(test_devices_of_nonsense_are_bounded),
};

BTC_TEST_MAIN(tests)
