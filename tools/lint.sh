#!/usr/bin/env bash
# Format, cppcheck and clang-tidy over our own sources: lint.sh BUILD_DIR
set -euo pipefail
build=$1
tools/setup.sh --if-missing clang-format clang-tidy cppcheck
git ls-files '*.c' '*.h' '*.cc' '*.cu' | xargs clang-format --dry-run -Werror # make format mends it
mapfile -t sources < <(git ls-files 'base/*.c' 'kernels/*.c' 'ops/*.c' 'engine/*.c' 'manifest/*.c' 'proto/*.c' 'net/*.c' 'worker/*.c' \
  'broker/*.c' 'client/*.c' 'geo/*.c' 'geo/gdal/*.c' 'report/*.c' 'cli/*.c' 'examples/*.c')
# jansson's loop macros are unknown to cppcheck (tools/cppcheck.h tells it), and it cannot expand the macros of the kernel text and of
# CUDA calls that take a macro (clang-tidy reads those files). Packed rows of ops/cuda keep bf16 where float stood. NULL at the end of
# a list of texts is a pointer here. The other suppressions are values that cannot be: an empty vocabulary, an out parameter taken
# for an input.
cppcheck --include=tools/cppcheck.h --suppress='preprocessorErrorDirective:kernels/cpu/*_simd.h' \
  --suppress='preprocessorErrorDirective:ops/cuda*.c' --suppress='invalidPointerCast:ops/cuda*.c' --suppress=varFuncNullUB \
  --suppress=invalidFunctionArg:engine/sampler.c --suppress=ctuuninitvar:worker/record.c --quiet \
  --enable=warning,performance,portability --inline-suppr --suppress=missingIncludeSystem --error-exitcode=1 --std=c11 -I . "${sources[@]}"
printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p "$build" --quiet --warnings-as-errors='*'
