/*
 * libsentencepiece behind a C face. It reports through its own status objects, but may also throw (std::bad_alloc, the trie
 * builder): every entry catches all. Its messages on stderr are switched off: libraries never print.
 */
#include "tokenizer_sp.h"

#include <sentencepiece_processor.h>

#include <exception>
#include <mutex>
#include <new>
#include <string_view>
#include <vector>

/* exported by the library, but declared in none of its installed headers */
namespace sentencepiece {
namespace logging {
void SetMinLogLevel(int level);
}
}  // namespace sentencepiece

struct btc_sp {
  sentencepiece::SentencePieceProcessor processor;
};

static btc_status caught(const char *what, btc_error *err) {
  try {
    throw;
  } catch (const std::bad_alloc &) {
    return btc_fail(err, BTC_ERR_NOMEM, "no memory to %s", what);
  } catch (const std::exception &e) {
    return btc_fail(err, BTC_ERR_INTERNAL, "sentencepiece cannot %s: %s", what, e.what());
  } catch (...) {
    return btc_fail(err, BTC_ERR_INTERNAL, "sentencepiece cannot %s", what);
  }
}

btc_status btc_sp_create(const uint8_t *model, size_t len, btc_sp **out, btc_error *err) {
  const int only_fatal = 3;
  static std::once_flag quiet;
  *out = nullptr;
  btc_sp *sp = nullptr;
  try {
    std::call_once(quiet, [] { sentencepiece::logging::SetMinLogLevel(only_fatal); });
    sp = new btc_sp;
    auto status = sp->processor.LoadFromSerializedProto(std::string_view(reinterpret_cast<const char *>(model), len));
    if (status.ok()) {
      *out = sp;
      return BTC_OK;
    }
    btc_fail(err, BTC_ERR_FORMAT, "sentencepiece cannot load it: %s", status.message());
    delete sp;
    return BTC_ERR_FORMAT;
  } catch (...) {
    delete sp;
    return caught("load a tokenizer", err);
  }
}

void btc_sp_destroy(btc_sp **sp) {
  delete *sp;
  *sp = nullptr;
}

btc_status btc_sp_encode(const btc_sp *sp, const char *text, size_t len, size_t skip, btc_ids *ids, btc_error *err) {
  try {
    std::vector<int> found;
    auto status = sp->processor.Encode(std::string_view(text, len), &found);
    if (!status.ok()) return btc_fail(err, BTC_ERR_INTERNAL, "sentencepiece cannot encode: %s", status.message());
    if (found.size() <= skip) return BTC_OK;
    btc_status st = btc_ids_reserve(ids, found.size() - skip, err);
    if (st != BTC_OK) return st;
    for (size_t i = skip; i < found.size(); i++) ids->v[ids->n++] = found[i];
    return BTC_OK;
  } catch (...) {
    return caught("encode text", err);
  }
}
