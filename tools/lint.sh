#!/usr/bin/env bash
# clang-tidy and cppcheck over our own sources: lint.sh BUILD_DIR
set -euo pipefail
build=$1
tools/setup.sh --if-missing clang-tidy cppcheck
mapfile -t sources < <(git ls-files 'base/*.c' 'kernels/*.c' 'ops/*.c' 'engine/*.c' 'cli/*.c' 'manifest/*.c' 'worker/*.c' 'examples/*.c')
# jansson's loop macros are unknown to cppcheck; the two suppressions are values that cannot be (an empty vocabulary, an out
# parameter taken for an input).
cppcheck -D'json_object_foreach_safe(o,n,k,v)=for (;;)' -D'json_object_foreach(o,k,v)=for (;;)' -D'json_array_foreach(a,i,v)=for (;;)' \
  --suppress=invalidFunctionArg:engine/sampler.c --suppress=ctuuninitvar:worker/record.c --quiet --enable=warning,performance,portability --inline-suppr --suppress=missingIncludeSystem --error-exitcode=1 \
  --std=c11 -I . "${sources[@]}"
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet --warnings-as-errors='*'
