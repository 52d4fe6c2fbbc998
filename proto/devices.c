#include "proto/devices.h"

#include <string.h>

#include "base/base.h"

static void copy_name(char to[BTC_DEVICE_NAME], const char *from) {
  size_t n = strlen(from), most = BTC_DEVICE_NAME - 1;
  n = btc_utf8_valid(from, n < most ? n : most);
  memcpy(to, from, n);
  to[n] = 0;
}

void btc_devices_set(btc_devices *d, Btc__Device *const *from, size_t n) {
  d->n = n < BTC_DEVICES ? n : BTC_DEVICES;
  for (size_t i = 0; i < d->n; i++) {
    Btc__Device *to = d->list[i] = &d->of[i];
    btc__device__init(to);
    copy_name(d->name[i], from[i]->name);
    to->name = d->name[i];
    to->memory_bytes = from[i]->memory_bytes;
    to->free_bytes = from[i]->free_bytes < to->memory_bytes ? from[i]->free_bytes : to->memory_bytes;
    to->busy_known = from[i]->busy_known && from[i]->busy >= 0 && from[i]->busy <= 1;
    to->busy = to->busy_known ? from[i]->busy : 0;
  }
}
