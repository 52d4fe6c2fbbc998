#!/usr/bin/env bash
# Fills a corpus directory with seeds for one fuzz target: seeds.sh TARGET DIR SHARED
set -euo pipefail
target=$1 dir=$2 shared=$3
take() { # take FILE... : copies under numbered names, files up to 64 KiB only
  for f in "$@"; do
    [ -f "$f" ] && [ "$(stat -c %s "$f")" -le 65536 ] && cp "$f" "$dir/seed-$((n = n + 1))" || true
  done
}
n=0
shopt -s nullglob
case $target in
fuzz_image)
  for f in "$shared"/vectors/preprocess/files/* samples/*.png; do # the first byte chooses mode and side
    [ "$(stat -c %s "$f")" -le 65536 ] && { printf '\x01'; cat "$f"; } >"$dir/seed-$((n = n + 1))"
  done ;;
fuzz_safetensors) take "$shared"/vectors/*/ckpt/mm_projector/model.safetensors models/nano/*/*.safetensors ;;
fuzz_config) # the first byte says which file it is
  kinds=(config.json llm/config.json vision_tower/config.json vision_tower/preprocessor_config.json mm_projector/config.json
    llm/generation_config.json llm/model.safetensors.index.json)
  for root in "$shared"/vectors/*/ckpt models/nano; do
    for k in "${!kinds[@]}"; do
      [ -f "$root/${kinds[k]}" ] && { printf "\\x0$k"; cat "$root/${kinds[k]}"; } >"$dir/seed-$((n = n + 1))"
    done
  done ;;
fuzz_tokenizer) take "$shared"/vectors/*/ckpt/llm/tokenizer.model models/nano/llm/tokenizer.model ;;
fuzz_tokenizer_text) printf 'USER: <image>\nWhat </s> changed?' >"$dir/seed-1" ;;
fuzz_wire) # a hello with a held chunk, results of one item, a status reply of two jobs, an acknowledgement
  printf '\x08\x01\x10\x01\x18\x07\xa2\x01\x15\x0a\x02w1\x10\x05\x1a\x03btc\x38\x20\x42\x04\x08\x01\x10\x02' >"$dir/seed-1"
  printf '\x08\x01\x10\x01\x20\x09\xb2\x01\x13\x08\x01\x10\x02\x1a\x02j1\x2a\x09\x08\x03\x1a\x01a\x32\x02{}' >"$dir/seed-2"
  printf '\x08\x01\x10\x01\x9a\x03\x0a\x12\x03\x0a\x01a\x12\x03\x0a\x01b' >"$dir/seed-3"
  printf '\x08\x01\x10\x01\x52\x04\x0a\x02\x01\x02' >"$dir/seed-4" ;;
fuzz_shard_step) # one good step of each kind, whole and with a byte changed
  for kind in 1 2 3 4 5; do
    for block in 0 6 7 8 12 13; do
      printf "\\x0$kind\\x$(printf %02x $block)\\x01\\x10" >"$dir/seed-$((n = n + 1))"
      printf "\\x0$kind\\x$(printf %02x $block)\\x01\\x00\\x08\\x00\\x07" >"$dir/seed-$((n = n + 1))"
    done
  done ;;
fuzz_link)
  printf '\x11\x03abc\x13\x02de\x11\x00' >"$dir/seed-1"
  printf '\x11\x03abc\x00\x05BTCFx\x15\x01z' >"$dir/seed-2" ;;
fuzz_pipes) # a hello of 12 equal blocks, a heartbeat with a load, a plan
  printf '\x00\x08\x01\x10\x01\x18\x07\xa2\x01\x35\x0a\x01a\x10\x01\x22\x01m\x38\x04\x4a\x18\x08\x04\x10\x0c\x18\x0a\x31\0\0\0\0\0\0\xf0\x3f\x39\0\0\0\0\0\0\xf0\x3f\x50\x3c\x60\x01\x72\x0b127.0.0.1:9' >"$dir/seed-1"
  printf '\x01{"class":"m","stages":[{"worker":"a","inc":"1","first":0,"last":6,"ms":30.0,"bytes":60},{"worker":"b","inc":"2","first":6,"last":12,"ms":30.0,"bytes":60}]}' >"$dir/seed-2" ;;
fuzz_pipe_form) # an order to form a pipe of two; then bytes of it changed
  rank='\x0a\x02w0\x12\x0c10.0.0.1:101\x18\x00\x20\x06' other='\x0a\x02w1\x12\x0c10.0.0.2:102\x18\x06\x20\x0c'
  body="\x0a\x02p1\x10\x07\x18\x01\x22\x16$rank\x22\x16$other\x2a\x01m\x32\x20$(printf '%032d' 0)\x38\x90\x4e"
  printf "\x00\x08\x01\x10\x01\x18\x07\x92\x02\x60$body" >"$dir/seed-1"
  printf '\x01\x02\x06\x0c\x01' >"$dir/seed-2" ;;
fuzz_geo) # a scene's description behind its length (little-endian)
  image='{"driver":"GTiff","dtype":"Byte","epsg":"","date":"","file_bytes":9,"width":4,"height":4,"bands":3,"band":[1,2,3],"block_width":4,"block_height":4,"overviews":0,"gsd_m":1,"geotransform":[0,1,0,0,0,1],"low":[0,0,0],"high":[9,9,9]}'
  body='{"crs_wkt":"","width":4,"height":4,"geotransform":[0,1,0,0,0,1],"epsg":"","note":"","gsd_m":1,"overlap_share":1,"stripe_width":4,"stretch":1,"shift":[1,2,0.5],"overlap":[[0,0],[4,0],[4,4]],"images":['$image,$image']}'
  printf "\\x$(printf %02x $((${#body} % 256)))\\x$(printf %02x $((${#body} / 256)))\\0\\0%s" "$body" >"$dir/seed-1" ;;
fuzz_manifest)
  printf '\x01{"id":"a","before":"a.png","after":"b.png","window":[0,0,1,1],"meta":{"k":1}}\n' >"$dir/seed-1"
  printf '\x00before,after,id\n"a ""x"".png",b.png,1\n' >"$dir/seed-2" ;;
esac
exit 0
