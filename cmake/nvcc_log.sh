#!/bin/sh
# Runs a compilation with ptxas's -v and keeps what that says beside the object, as OBJECT.ptxas, for tests/gpu_host/resources.sh. All
# else the compiler prints passes. A compiler launcher: nvcc_log.sh [ccache] nvcc ... -o OBJECT. ccache repeats what nvcc printed.
object='' before=''
for argument; do
  [ "$before" != -o ] || object=$argument
  before=$argument
done
[ -n "$object" ] || exec "$@"
"$@" 2>"$object.ptxas.tmp"
status=$?
grep -Ev '^ptxas info|^ +[0-9]+ bytes (stack frame|cumulative stack)' "$object.ptxas.tmp" >&2
if [ $status -eq 0 ]; then
  mv "$object.ptxas.tmp" "$object.ptxas" || status=1
else
  rm -f "$object.ptxas.tmp" "$object.ptxas"
fi
exit $status
