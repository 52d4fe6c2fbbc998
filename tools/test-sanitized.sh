#!/usr/bin/env bash
# The tests again under sanitizers: test-sanitized.sh SHARED JOBS asan tsan
set -euo pipefail
shared=$1 jobs=$2
shift 2
for kind in "$@"; do
  targets=() select=()
  if [ "$kind" = tsan ]; then # only what runs threads; the parsers' tests would be slow there and show nothing
    for f in tests/unit/test_{ops,kernels,session,stage}*.c; do targets+=(--target "$(basename "$f" .c)"); done
    select=(-R '^test_(ops|kernels|session|stage)')
  fi
  cmake --preset "$kind" -DBTC_SHARED="$shared" >/dev/null
  cmake --build --preset "$kind" -j "$jobs" "${targets[@]}" | tail -n 1
  ctest --test-dir "build/$kind" -j "$jobs" --output-on-failure --no-tests=error "${select[@]}"
done
