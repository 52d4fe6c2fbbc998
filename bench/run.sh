#!/usr/bin/env bash
# Every figure of docs/performance.md in one go: run.sh BUILD_DIR. About ten minutes on two cores, 14 GB of disk the first time.
# The machine's roofs, our stages and PyTorch's are measured in turns in the same run, since machines drift; figures go between the
# markers of docs/performance.md. CPU_TIME=1 is for a machine shared with others. BTCCHAT_BENCH_DIR holds the full-size random checkpoint and PyTorch (default below /var/tmp).
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
ours=("$build/btcchat" bench stages -m "$dir/full" --positions 253 --json)
rm -f "$dir"/{ours,torch,pairs}.jsonl "$dir/cpu-time"
touch "$dir"/{ours,torch,pairs}.jsonl
if [ -n "${CPU_TIME:-}" ]; then # a machine shared with others: processor time of one thread each, the two side by side
  touch "$dir/cpu-time"
  OMP_NUM_THREADS=1 "$build/btcchat-bench-kernels" --threads 1 --cpu-time --seconds 0.1 --json >"$dir/kernels.json" &
  for ((i = 0; i < rounds; i++)); do
    "${ours[@]}" --dtype bf16 -t 1 --cpu-time --runs 2 --tokens 6 "${pair[@]}" >>"$dir/ours.jsonl" &
    "$dir/venv/bin/python" bench/torch_peer.py "$dir/full" --threads 1 --cpu-time --runs 2 --stages vision,prefill,decode >>"$dir/torch.jsonl"
    wait
  done
else
  "$build/btcchat-bench-kernels" --json >"$dir/kernels.json"
  # Two runs each, the faster counts: the first one also maps the weights, which a peer that copied them has done before its clock starts.
  for ((i = 0; i < rounds; i++)); do
    "${ours[@]}" --dtype bf16 --runs 2 --tokens 20 "${pair[@]}" >>"$dir/ours.jsonl"
    "$dir/venv/bin/python" bench/torch_peer.py "$dir/full" --dtype bf16 --runs 2 >>"$dir/torch.jsonl"
  done
  "${ours[@]}" --dtype f32 --runs 1 --tokens 20 "${pair[@]}" >>"$dir/ours.jsonl"
  "$dir/venv/bin/python" bench/torch_peer.py "$dir/full" --dtype f32 --runs 1 --stages vision,prefill,decode >>"$dir/torch.jsonl"
  "${ours[@]}" --dtype bf16 --runs 1 --tokens 20 --batch 8 "${pair[@]}" >>"$dir/pairs.jsonl"
fi
python3 bench/report.py "$dir" docs/performance.md
