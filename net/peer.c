/* Routing ids: opaque bytes that a ROUTER made up. */
#include <string.h>

#include "net/socket.h"

bool btc_peer_id_equal(const btc_peer_id *a, const btc_peer_id *b) {
  return a->len == b->len && memcmp(a->bytes, b->bytes, a->len) == 0;
}
