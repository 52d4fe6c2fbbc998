/* Any bytes as an envelope: refused with a reason, or an envelope whose texts are clean and which packs and unpacks again. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "proto/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_text(const char *s) {
  if (!s || btc_utf8_valid(s, strlen(s)) != strlen(s)) abort();
}

/* Texts of a message and of the messages in it: repeated and single fields alike are found by the descriptor. */
static void check_texts(const ProtobufCMessage *m) {
  for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
    const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
    const char *at = (const char *)m + f->offset;
    bool repeated = f->label == PROTOBUF_C_LABEL_REPEATED;
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF &&
        *(const uint32_t *)(const void *)((const char *)m + f->quantifier_offset) != f->id)
      continue;
    if (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE) continue;
    size_t n = repeated ? *(const size_t *)(const void *)((const char *)m + f->quantifier_offset) : 1;
    void *const *list = repeated ? *(void *const *const *)(const void *)at : (void *const *)(const void *)at;
    for (size_t k = 0; k < n; k++) {
      if (f->type == PROTOBUF_C_TYPE_STRING)
        check_text(list[k]);
      else if (list[k])
        check_texts(list[k]);
    }
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  Btc__Envelope *e, *again;
  btc_error err = {0};
  btc_status st = btc_wire_unpack(data, size, &e, &err);
  uint64_t req_id = btc_wire_req_id(data, size);
  if (st != BTC_OK) {
    if (e || !err.message[0]) abort();
    return 0;
  }
  if (e->req_id != req_id) abort();
  btc_wire_body_name(e->body_case);
  check_texts(&e->base);
  uint8_t *packed;
  size_t len;
  if (btc_wire_pack(e, &packed, &len, &err) == BTC_OK) {
    if (btc_wire_unpack(packed, len, &again, &err) != BTC_OK) abort();
    if (again->body_case != e->body_case || again->req_id != e->req_id) abort();
    btc_wire_free(&again);
    free(packed);
  }
  btc_wire_free(&e);
  return 0;
}
