#!/usr/bin/env bash
# Everything that needs a card, in one call of at most 8 minutes: builds, tests, compares with the CPU, measures, and prints a table for
# docs/performance.md with a list of what did not run and why. Exit status 0 only when every part ran and held.
#   gpu.sh [--vectors DIR] [--device cuda:N] [--out DIR] [--keep]   on the machine with the card
#   gpu.sh --pack FILE.tar.gz       without a card: builds, and packs what a machine with a card and this source tree needs
#   gpu.sh --prebuilt FILE.tar.gz   runs that, where the libraries for building are missing (or the folder it was unpacked into)
#   gpu.sh --rehearse               the same on the CPU with a small model, to try the script: its figures mean nothing
# DIR of --vectors holds the golden cases (default ../shared/vectors); --out (default build/gpu/report) takes logs and figures;
# --keep leaves the full-size random model (6.3 GB below BTCCHAT_BENCH_DIR, default /var/tmp/btcchat-bench) for the next call.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
# shellcheck source=bench/gpu_parts.sh
. bench/gpu_parts.sh
if [ "${1:-}" = --part ]; then # one part in a process of its own, as this script calls itself
  set -e
  "part_$2"
  exit 0
fi

export LIMIT=${LIMIT:-480} # seconds for all parts together
export VECTORS=../shared/vectors DEVICE=cuda OUT=build/gpu/report
export BUILD=build/gpu BENCH=${BTCCHAT_BENCH_DIR:-/var/tmp/btcchat-bench} PREBUILT='' REHEARSE='' KEEP='' PACK=''

usage() {
  sed -n '2,11s/^# \{0,1\}//p' bench/gpu.sh >&2
  exit 2
}

needs() { [ $# -ge 2 ] || usage; }
while [ $# -gt 0 ]; do
  case $1 in
    --vectors) needs "$@"; VECTORS=$2; shift ;;
    --device) needs "$@"; DEVICE=$2; shift ;;
    --out) needs "$@"; OUT=$2; shift ;;
    --pack) needs "$@"; PACK=$2; shift ;;
    --prebuilt) needs "$@"; PREBUILT=$2; shift ;;
    --rehearse) REHEARSE=1 ;;
    --keep) KEEP=1 ;;
    *) usage ;;
  esac
  shift
done

set_up() {
  [ -z "$REHEARSE" ] || DEVICE=cpu
  case $DEVICE in cuda | cuda:[0-9] | cpu) ;; *) usage ;; esac
  if [ -f "$PREBUILT" ]; then
    BUILD=build/packed
    rm -rf "$BUILD"
    mkdir -p "$BUILD" && tar -xzf "$PREBUILT" -C "$BUILD" || exit 1
    PREBUILT=$BUILD
  elif [ -n "$PREBUILT" ]; then
    BUILD=$PREBUILT
  fi
  if [ -n "$PREBUILT" ] && [ -d "$PREBUILT/vectors" ] && [ ! -d "$VECTORS" ]; then VECTORS=$PREBUILT/vectors; fi
  export MODEL=$BENCH/full
  [ -z "$REHEARSE" ] || MODEL=$BENCH/small
  [ ! -f "$MODEL/config.json" ] || KEEP=1 # made by another: make bench has its model there too
  mkdir -p "$OUT" || exit 1
  rm -f "$OUT"/*.log "$OUT"/*.jsonl "$OUT"/parts.tsv "$OUT"/table.md
  : >"$OUT/parts.tsv"
}

# part NAME SECONDS WHAT: runs part_NAME, at most that long and never past the limit of all; its end goes into parts.tsv.
part() {
  local name=$1 seconds=$2 what=$3 left state why status begin=$SECONDS
  left=$((LIMIT - SECONDS - 5))
  if [ -n "$PACK" ]; then left=3600 seconds=3600; fi
  if ! why=$(blocked "$name"); then
    state='not run'
  elif [ "$left" -lt 5 ]; then
    state='not run' why="no time left of $LIMIT s"
  else
    [ "$seconds" -le "$left" ] || seconds=$left
    printf '%s ...\n' "$what" >&2
    timeout -k 5 "$seconds" "$BASH" bench/gpu.sh --part "$name" >"$OUT/$name.log" 2>&1
    status=$?
    why=$(tail -n 1 "$OUT/$name.log" | tr '\t' ' ' | cut -c 1-300)
    case $status in
      0) state='ok' ;;
      "$MISSING") state='not run' ;;
      124 | 137) state='failed' why="stopped after $seconds s; before: $why" ;;
      *) state='failed' why="status $status: $why" ;;
    esac
  fi
  printf '  %s: %s (%d s)\n' "$state" "$why" $((SECONDS - begin)) >&2
  printf '%s\t%s\t%s\t%d\t%s\n' "$name" "$state" "$what" $((SECONDS - begin)) "$why" >>"$OUT/parts.tsv"
}

all_held() {
  if grep -qv $'\tok\t' "$OUT/parts.tsv"; then return 1; fi
}

set_up
part build 300 'build with CUDA'
if [ -n "$PACK" ]; then
  part pack 300 'programs and data for another machine'
  all_held
  exit
fi
part card 20 'a card answers'
part roofs 45 "the card's roofs"
part model 180 'full-size random model' & # a minute of the CPU's, beside what uses the card
part tests 120 'GPU tests'
part golden 60 'golden cases'
part captions 60 'captions against the CPU'
part batches 90 'a caption does not depend on its batch'
wait
part stages 150 'stages and one pair'
part pairs 100 'pairs a second'
part torch 100 'PyTorch in the same run'
part sanitizer 100 'compute-sanitizer'
part ranks 120 'NCCL with several ranks'
[ -n "$KEEP" ] || rm -rf "$MODEL"
python3 bench/gpu_report.py "$OUT" | tee "$OUT/table.md"
all_held
