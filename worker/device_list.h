/* Devices as messages have them: "cuda:0, NVIDIA H200", memory, use. */
#ifndef BTC_WORKER_DEVICE_LIST_H
#define BTC_WORKER_DEVICE_LIST_H

#include "ops/ops.h"
#include "proto/devices.h"

/* n devices of this machine; those beyond BTC_DEVICES are left out. */
void device_list_set(btc_devices *d, const btc_device_info *info, size_t n);

#endif
