#include "device_list.h"

#include <stdio.h>

#include "child.h"

void device_list_set(btc_devices *d, const btc_device_info *info, size_t n) {
  Btc__Device of[BTC_DEVICES], *list[BTC_DEVICES];
  char name[BTC_DEVICES][BTC_DEVICE_NAME];
  if (n > BTC_DEVICES) n = BTC_DEVICES;
  for (size_t i = 0; i < n; i++) {
    btc__device__init(list[i] = &of[i]);
    snprintf(name[i], sizeof name[i], "cuda:%d, %s", info[i].index, info[i].name);
    child_clean_text(name[i]);
    of[i].name = name[i];
    of[i].memory_bytes = info[i].memory_bytes;
    of[i].free_bytes = info[i].free_bytes;
    of[i].busy_known = info[i].busy >= 0;
    of[i].busy = info[i].busy;
  }
  btc_devices_set(d, list, n);
}
