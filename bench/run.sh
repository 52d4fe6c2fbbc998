#!/usr/bin/env bash
# Every figure of docs/performance.md in one go: run.sh BUILD_DIR. About ten minutes on two cores, 14 GB of disk the first time.
# The machine's roofs, our stages and PyTorch's are measured in turns in the same run, since machines drift; figures go between the
# markers of docs/performance.md. BTCCHAT_BENCH_DIR holds the full-size random checkpoint and PyTorch (default below /var/tmp).
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
dir=${BTCCHAT_BENCH_DIR:-/var/tmp/btcchat-bench}
rounds=${ROUNDS:-2}
mkdir -p "$dir"
if [ ! -f "$dir/full/config.json" ]; then
  rm -rf "$dir/full"
  "$build/btcchat" bench make-model "$dir/full" --size full
fi
if [ ! -x "$dir/venv/bin/python" ]; then
  tools/setup.sh --if-missing python3-venv
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install -q torch numpy
fi
cat "$dir"/full/*/*.safetensors >/dev/null # a warm page cache for both sides
if [ ! -x "$build/btcchat-bench-kernels" ]; then # its peer is oneDNN, which only this bench needs
  tools/setup.sh --if-missing libdnnl-dev
  cmake -B "$build" >/dev/null
  cmake --build "$build" --target btcchat-bench-kernels | tail -n 1
fi
pair=(samples/landsat_before.png samples/landsat_after.png)
"$build/btcchat-bench-kernels" --json >"$dir/kernels.json"
: >"$dir/ours.jsonl"
: >"$dir/torch.jsonl"
for ((i = 0; i < rounds; i++)); do
  for dtype in f32 bf16; do
    "$build/btcchat" bench stages -m "$dir/full" --dtype "$dtype" --positions 253 --runs 1 --tokens 9 --json "${pair[@]}" >>"$dir/ours.jsonl"
    "$dir/venv/bin/python" bench/torch_peer.py "$dir/full" --dtype "$dtype" --runs 1 >>"$dir/torch.jsonl"
  done
done
python3 bench/report.py "$dir" docs/performance.md
