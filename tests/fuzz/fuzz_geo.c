/* What comes back from the sandboxed decoder: frames, and its description of a scene. */
#include <stdlib.h>

#include "geo/frame.h"
#include "geo/scene_wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len) {
  btc_error err;
  btc_scene_info info;
  json_t *message = NULL;
  if (geo_frame_parse(data, len, &message, &err) != BTC_OK) return 0;
  if (scene_info_read(message, &info) && (info.width < 1 || info.overlap_points > BTC_SCENE_MAX_OVERLAP_POINTS)) abort();
  free(info.crs_wkt);
  json_decref(message);
  return 0;
}
