#!/usr/bin/env bash
# Captions image pairs with the shipped model: demo.sh PROGRAM [SHARED]
# The generated pairs and the Landsat pair ship with the project; a real LEVIR pair is added when test data lies beside it.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1 shared=${2:-../shared}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

echo
echo "btcchat demo: what changed between two overhead images, by the small model in models/nano"
echo
"$program" caption -m models/nano --pairs samples/manifest.jsonl >"$out/records.jsonl"
while IFS= read -r line; do
  id=$(sed -E 's/.*"id":"([^"]*)".*/\1/' <<<"$line")
  caption=$(sed -E 's/.*"caption":"([^"]*)".*/\1/' <<<"$line")
  score=$(sed -E 's/.*"score":([0-9.]+).*/\1/' <<<"$line")
  printf '  %-24s %s   (score %.2f)\n' "$id" "$caption" "$score"
done <"$out/records.jsonl"

levir=$shared/data/levir
if [ -f "$levir/A/train_000016.png" ]; then
  printf '  %-24s %s   (a real pair of LEVIR-CC)\n' train_000016 \
    "$("$program" caption -m models/nano "$levir/A/train_000016.png" "$levir/B/train_000016.png")"
fi

first=$(sed -nE '1s/.*"before": *"([^"]*)".*"after": *"([^"]*)".*/samples\/\1 samples\/\2/p' samples/manifest.jsonl)
# shellcheck disable=SC2086  # two paths without spaces
"$program" caption -m models/nano --heatmap demo-change-map.png $first >/dev/null
echo
echo "The change map of the first pair is in demo-change-map.png. Try your own:"
echo "  $program caption BEFORE.png AFTER.png"
