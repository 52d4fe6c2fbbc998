/* Where an item stands in its manifest, by its id: records bring ids, not places. Items whose id came before, and bad lines, are
 * not in it (their records are failed ones, which the queue lists with their places). 24 bytes an item. */
#ifndef CLI_ORDER_H
#define CLI_ORDER_H

#include <stddef.h>
#include <stdint.h>

typedef struct id_order {
  struct id_place {
    uint64_t hash;
    uint32_t more; /* of the hash; together 96 bits, so that two ids never meet in practice */
    uint32_t index;
  } * slot; /* index UINT32_MAX: free */
  size_t slots;
  uint64_t items;
} id_order;

/* Reads the manifest. items: how many it must have. Returns CLI_OK or the exit code of what was said. */
int order_read(const char *manifest, uint64_t items, id_order *out);
void order_free(id_order *o);
/* -1: not there. */
int64_t order_find(const id_order *o, const char *id, size_t len);

#endif
