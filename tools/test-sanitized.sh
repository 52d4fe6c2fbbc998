#!/usr/bin/env bash
# The tests again under sanitizers: test-sanitized.sh SHARED BUILD_JOBS TEST_JOBS asan tsan
set -euo pipefail
shared=$1 jobs=$2 test_jobs=$3
shift 3
# What hurts whole queues for minutes runs in the release build only (cmake/tests.cmake), and so does what runs none of our C; of scenes
# one runs, the others take the same way.
heavy='^(test_(captions|chaos|chaos_long|members|partition|pipe|pipe_full|pipes|run|step_crash)[.]|model_queue$|members_hosts$|slurm$|bench_)'
heavy+='|^test_scene[.]test_scene_(in|of|that|with|records|dry|gallery|goes|leaves|full|says|over)_'
# Minutes of one operator's bits against another's, whose memory smaller tests of the same programs and the shim itself look at.
heavy+='|^test_(verify[.]test_verify_plain_loops|matvec[.]test_matvec_row_does_not_see_others|norms[.]test_norms_many_rows_have_the_bits_of_few)$'
# What has threads; the parsers' tests would be slow under TSan and show nothing.
threads='ops|kernels|session|stage|batcher|loop|keys|link|socket|client|io|results|http|sink|worker'
for kind in "$@"; do
  targets=() select=(-E "$heavy")
  if [ "$kind" = tsan ]; then
    for f in tests/{unit,integration}/test_*.c; do
      name=$(basename "$f" .c)
      [[ $name =~ ^test_($threads)(_|$) ]] && targets+=(--target "$name")
    done
    select=(-R "^test_($threads)(_[a-z_]+)?[.]")
  fi
  cmake --preset "$kind" -DBTC_SHARED="$shared" >/dev/null
  cmake --build --preset "$kind" -j "$jobs" "${targets[@]}" | tail -n 1
  ctest --test-dir "build/$kind" -j "$test_jobs" --output-on-failure --no-tests=error "${select[@]}"
done
