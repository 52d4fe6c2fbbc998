#!/usr/bin/env bash
# What every CUDA kernel takes on every chip it was compiled for, by the compiler's own report: resources.sh OBJECT...
# Reads OBJECT.ptxas (cmake/nvcc_log.sh) and prints a table. Fails when an attention or few-row product kernel keeps registers in memory
# (spills) or when a chip, a kernel's figures or a report is missing.
set -euo pipefail
chips='sm_80 sm_90'
rows='' bad=0
for object; do
  if [ ! -s "$object.ptxas" ]; then
    echo "no compiler's report beside $object: build it again"
    bad=1
    continue
  fi
  file=$(basename "$object" .cu.o)
  rows+=$(awk -v file="$file" '
    function flush() { if (name != "") print chip, file, registers, shared, stack, stores, loads, name }
    /Compiling entry function/ {
      flush()
      split($0, quoted, "\047")
      name = quoted[2]; chip = quoted[4]
      registers = "?"; stack = "?"; stores = "?"; loads = "?"; shared = 0; own = 0
    }
    /Function properties for/ { own = $NF == name } # not those of a function that it calls
    /bytes stack frame/ && own { stack = $1; stores = $5; loads = $9 }
    /Used [0-9]+ registers/ {
      for (i = 1; i < NF; i++) {
        if ($i == "Used") registers = $(i + 1)
        if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
      }
    }
    END { flush() }' "$object.ptxas")$'\n'
done
rows=$(grep . <<<"$rows" | sort || true)
readable='cat'
if command -v c++filt >/dev/null; then readable='c++filt'; fi
printf '%-6s %-18s %5s %7s %6s %7s  %s\n' chip file regs shared stack spilled kernel
while read -r chip file registers shared stack stores _ name; do
  printf '%-6s %-18s %5s %7s %6s %7s  %s\n' "$chip" "$file" "$registers" "$shared" "$stack" "$stores" "$name"
done <<<"$rows" | "$readable" | sed -E 's/\(anonymous namespace\):://g; s/void //; s/\(([a-z_ ]+)\)([0-9])/\2/g; s/\(.*$//'
awk -v chips="$chips" -v bad="$bad" '
  { count[$1]++ }
  $2 ~ /^(attention|matvec)/ { decisive[$2]++; if ($6 + $7 > 0) { print "spills: " $0; bad = 1 } }
  /\?/ { print "no figures: " $0; bad = 1 }
  END {
    n = split(chips, chip, " ")
    for (i = 1; i <= n; i++) {
      printf "%s: %d kernels\n", chip[i], count[chip[i]]
      if (count[chip[i]] == 0 || count[chip[i]] != count[chip[1]]) { print "not the same kernels for " chips; bad = 1 }
    }
    if (length(decisive) < 5) { print "attention and product kernels are missing"; bad = 1 }
    exit bad
  }' <<<"$rows"
