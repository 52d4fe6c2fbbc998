/* Workers as the queue's commands show them. */
#ifndef CLI_FLEET_H
#define CLI_FLEET_H

#include <jansson.h>
#include <stddef.h>

#include "proto/wire.h"

void workers_print(Btc__WorkerInfo *const *workers, size_t n);   /* a table on stdout, each with its devices below */
void devices_print(Btc__WorkerInfo *const *workers, size_t n);   /* a line a device, with its worker */
json_t *devices_json(Btc__WorkerInfo *const *workers, size_t n); /* the same as an array */

#endif
