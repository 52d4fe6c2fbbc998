#!/usr/bin/env bash
# Everything that needs a card, in one call of at most 8 minutes: builds, tests, compares with the CPU, measures, and prints a table for
# docs/performance.md with a list of what did not run and why. Exit status 0 only when every part ran and held.
#   gpu.sh [--vectors DIR] [--device cuda:N] [--out DIR] [--keep] [--only "PART ..."]   on the machine with the card
#   gpu.sh --pack FILE.tar.gz       without a card: builds, and packs what a machine with a card and this source tree needs
#   gpu.sh --prebuilt FILE.tar.gz   runs that, where the libraries for building are missing (or the folder it was unpacked into)
#   gpu.sh --rehearse               the same on the CPU with a small model, to try the script: its figures mean nothing
# DIR of --vectors holds the golden cases (default ../shared/vectors); --out (default build/gpu/report) gets three files, anew after every
# part, so that a run that is killed leaves what it knew: table.md, logs.txt (every part's) and figures.txt (every figure and caption).
# --keep leaves the full-size random model (6.3 GB below BTCCHAT_BENCH_DIR, default /var/tmp/btcchat-bench) for the next call; --only runs
# some parts (and build, card and model, which others need). The parts that matter most come first.
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
export VECTORS=../shared/vectors DEVICE=cuda OUT REPORT=build/gpu/report # OUT: where parts write
export BUILD=build/gpu BENCH=${BTCCHAT_BENCH_DIR:-/var/tmp/btcchat-bench} PREBUILT='' REHEARSE='' KEEP='' PACK='' ONLY=''

usage() {
  sed -n '2,14s/^# \{0,1\}//p' bench/gpu.sh >&2
  exit 2
}

needs() { [ $# -ge 2 ] || usage; }
while [ $# -gt 0 ]; do
  case $1 in
    --vectors) needs "$@"; VECTORS=$2; shift ;;
    --device) needs "$@"; DEVICE=$2; shift ;;
    --out) needs "$@"; REPORT=$2; shift ;;
    --only) needs "$@"; ONLY=$2; shift ;;
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
  OUT=$BUILD/parts
  rm -rf "$OUT"
  mkdir -p "$OUT" "$REPORT" || exit 1
  : >"$OUT/parts.tsv"
}

# What is known so far.
publish() {
  local file
  python3 bench/gpu_report.py "$OUT" >"$OUT/table.tmp" 2>&1 || {
    echo 'The table needs python3 (bench/gpu_report.py); the parts:'
    cat "$OUT/parts.tsv"
  } >>"$OUT/table.tmp"
  mv "$OUT/table.tmp" "$REPORT/table.md"
  for file in "$OUT"/*.log; do
    printf '==== %s\n' "$(basename "$file")"
    tail -c 1000000 "$file"
  done >"$REPORT/logs.txt"
  for file in "$OUT"/*.jsonl; do
    [ ! -f "$file" ] || { printf '==== %s\n' "$(basename "$file")"; cat "$file"; }
  done >"$REPORT/figures.txt"
}

finish() {
  trap - EXIT TERM INT HUP
  # shellcheck disable=SC2046 # numbers
  kill "$CHILD" $(jobs -p) 2>/dev/null
  [ -z "$PACK" ] || exit "$1"
  publish
  [ -n "$KEEP" ] || rm -rf "$MODEL"
  cat "$REPORT/table.md"
  exit "$1"
}

# part NAME SECONDS WHAT: runs part_NAME, at most that long and never past the limit of all; its end goes into parts.tsv.
part() {
  local name=$1 seconds=$2 what=$3 left state why status begin=$SECONDS
  left=$((LIMIT - SECONDS - 5))
  if [ -n "$PACK" ]; then left=3600 seconds=3600; fi
  case " ${ONLY:-$name} build card model pack " in
    *" $name "*) ;;
    *) return ;;
  esac
  if ! why=$(blocked "$name"); then
    state='not run'
  elif [ "$left" -lt 5 ]; then
    state='not run' why="no time left of $LIMIT s"
  else
    [ "$seconds" -le "$left" ] || seconds=$left
    printf '%s ...\n' "$what" >&2
    timeout -k 5 "$seconds" "$BASH" bench/gpu.sh --part "$name" >"$OUT/$name.log" 2>&1 &
    CHILD=$!
    wait "$CHILD" # a signal to this script ends the waiting
    status=$?
    CHILD=''
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
  [ "$BASHPID" != $$ ] || [ -n "$PACK" ] || publish
}

all_held() {
  if grep -qv $'\tok\t' "$OUT/parts.tsv"; then return 1; fi
}

CHILD=''
set_up
trap 'finish 1' EXIT
trap 'finish 143' TERM INT HUP
part build 300 'build with CUDA'
if [ -n "$PACK" ]; then
  part pack 300 'programs and data for another machine'
  all_held
  finish $?
fi
part card 30 'a card answers'
# A minute of the CPU's, beside what uses the card.
{
  trap 'kill "$CHILD"; exit 143' TERM
  part model 180 'full-size random model'
} &
making=$!
part roofs 45 "the card's roofs"
part tests 100 'GPU tests'
part golden 60 'golden cases'
wait "$making"
part stages 130 'stages and one pair'
part pairs 80 'pairs a second'
part ops 60 'products and parts of decode'
part torch 90 'PyTorch in the same run'
part captions 60 'captions against the CPU'
part batches 70 'a caption does not depend on its batch'
part sanitizer 110 'compute-sanitizer'
part ranks 90 'NCCL with several ranks'
all_held
finish $?
