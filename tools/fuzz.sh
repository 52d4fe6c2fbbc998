#!/usr/bin/env bash
# Runs every fuzz target for a number of seconds: fuzz.sh SECONDS [TARGET...]. Needs clang. Fails at the first finding.
# Seeds are taken from the golden vectors and the shipped model where they are. The bytes of a finding stay in build/fuzz/findings.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1
shift
tools/setup.sh --if-missing clang libclang-rt-14-dev
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz -j "$(nproc)" | tail -n 1
shared=${SHARED:-../shared}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
findings=$PWD/build/fuzz/findings
mkdir -p "$findings"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cd build/fuzz/fuzz && ls fuzz_*)
for target in "${targets[@]}"; do
  corpus=$work/$target
  mkdir -p "$corpus"
  tests/fuzz/seeds.sh "$target" "$corpus" "$shared"
  echo "== $target, $seconds s, $(ls "$corpus" | wc -l) seeds"
  build/fuzz/fuzz/"$target" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
    -artifact_prefix="$findings/$target-" "$corpus" >"$work/log" 2>&1 || { tail -n 60 "$work/log"; exit 1; }
  grep -E 'stat::(number_of_executed_units|average_exec_per_sec)' "$work/log"
done
echo "no findings"
