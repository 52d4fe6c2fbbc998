/* Workers as the queue's commands show them. */
#ifndef CLI_FLEET_H
#define CLI_FLEET_H

#include <stddef.h>

#include "proto/wire.h"

void workers_print(Btc__WorkerInfo *const *workers, size_t n); /* a table on stdout */

#endif
