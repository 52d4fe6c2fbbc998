#!/usr/bin/env bash
# Speed of the queue: queue.sh BUILD_DIR. Everything on this machine: redis-server with appendfsync always, a broker and two workers with the stub
# engine (no delay), CURVE on. Beside it, in the same run, what redis-benchmark gets out of the same server. About two minutes; the figures go
# between the queue markers of docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "$1")
items=${ITEMS:-300000} rate=${RATE:-1000} seconds=${SECONDS_AT_RATE:-20}
work=$(mktemp -d)
pids=()
finish() {
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
cpu_ticks() { awk '{print $14 + $15}' "/proc/$1/stat"; }

mkdir "$work/redis" "$work/results"
redis-server --port 0 --unixsocket "$work/redis.sock" --dir "$work/redis" --appendonly yes --appendfsync always --save '' --daemonize no >"$work/redis.log" &
pids+=($!)
for _ in $(seq 100); do redis-cli -s "$work/redis.sock" ping >/dev/null 2>&1 && break; sleep 0.1; done
for who in broker worker client; do "$build/btcchat" keygen "$work/$who" >/dev/null; done
for who in worker client; do echo "$(cat "$work/$who.pub") $who $who"; done >"$work/allow"
clients=tcp://127.0.0.1:$(port) workers=tcp://127.0.0.1:$(port)
"$build/btcchat" broker --redis "unix://$work/redis.sock" --queue bench --clients "$clients" --workers "$workers" --http "127.0.0.1:$(port)" \
  --results "$work/results" --keys "$work/broker.key" --allow "$work/allow" >"$work/broker.log" 2>&1 &
broker=$!
pids+=("$broker")
for i in 1 2; do
  "$build/btcchat" worker --brokers "$workers" --name "w$i" --engine stub --stub-us 0 --credits 256 --keys "$work/worker.key" --server-key "$work/broker.pub" >"$work/w$i.log" 2>&1 &
  pids+=($!)
done
for _ in $(seq 100); do grep -q ready "$work/w1.log" && grep -q ready "$work/w2.log" && break; sleep 0.1; done

python3 -c "
for i in range($items): print('{\"id\":\"%d\",\"before\":\"/archive/before/%08d.png\",\"after\":\"/archive/after/%08d.png\"}' % (i, i, i))" >"$work/manifest.jsonl"
submit=("$build/btcchat" submit "$work/manifest.jsonl" --broker "$clients" --keys "$work/client.key" --server-key "$work/broker.pub")
before=$(cpu_ticks "$broker")
start=$(date +%s.%N)
"${submit[@]}" --wait >/dev/null 2>"$work/submit.log" || { cat "$work/submit.log" "$work/broker.log" | tail -n 20; exit 1; }
end=$(date +%s.%N)
after=$(cpu_ticks "$broker")
"$build/btcchat-bench-queue" "$work/redis.sock" bench "$rate" "$seconds" >"$work/latency.json"
rss=$(awk '/VmHWM/ {print $2}' "/proc/$broker/status")
redis-benchmark -s "$work/redis.sock" -t set,lpush -n 100000 -c 50 -P 16 -q --csv >"$work/redis.csv"
redis-benchmark -s "$work/redis.sock" -n 100000 -c 50 -P 16 -q --csv xadd rb '*' json '{"id":"1","before":"/a.png","after":"/b.png"}' >>"$work/redis.csv"
redis-benchmark -s "$work/redis.sock" -n 2000 -c 1 -q --csv -t set >"$work/redis1.csv"
python3 bench/queue_report.py docs/performance.md "$items" "$(echo "$end - $start" | bc)" "$((after - before))" "$(getconf CLK_TCK)" "$rss" "$work"
