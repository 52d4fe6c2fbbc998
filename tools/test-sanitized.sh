#!/usr/bin/env bash
# The tests again under sanitizers: test-sanitized.sh SHARED JOBS asan tsan
set -euo pipefail
shared=$1 jobs=$2
shift 2
for kind in "$@"; do
  cmake --preset "$kind" -DBTC_SHARED="$shared" >/dev/null
  cmake --build --preset "$kind" -j "$jobs" | tail -n 1
  # Threads are what TSan looks at; the parsers' tests are single-threaded and would only be slow there.
  select=()
  [ "$kind" = tsan ] && select=(-R 'test_(ops|session|stage|pool)')
  ctest --test-dir "build/$kind" -j "$jobs" --output-on-failure --no-tests=error "${select[@]}"
done
