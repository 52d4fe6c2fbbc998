#!/usr/bin/env bash
# Workers on hosts of their own: members_hosts.sh BTCCHAT SOURCE. Network namespaces, joined by a bridge, are the hosts: a broker's and
# three workers', two of which hold the model together while the third is a spare. Links, sessions and CURVE keys go over addresses
# that are not loopback. A host is cut off amid a job (frames vanish, nothing is closed), a spare takes its place; captions are those of
# one process. Once more with 20 ms on every host's way out, where the kernel has netem.
# All of it lives in namespaces of its own (network, mounts, processes) and ends with them. KEEP=1 keeps the folder.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
skip() { echo "[  SKIPPED ] members_hosts: $*"; exit 0; }
if [ "${1:-}" != --inside ]; then
  for program in ip tc unshare redis-server python3; do command -v $program >/dev/null || skip "$program is not installed"; done
  [ "$(id -u)" = 0 ] || skip "network namespaces are made by root only"
  unshare -n -m -p -f --mount-proc sh -c 'mount -t tmpfs none /run && mkdir /run/netns && ip link add bridge0 type bridge && ip netns add a &&
    ip link add va type veth peer name eth0 netns a' 2>/dev/null || skip "network namespaces, bridges or veth cannot be made here"
  exec unshare -n -m -p -f --mount-proc --kill-child "$0" --inside "$(readlink -f "$1")" "$(readlink -f "$2")"
fi
btcchat=$2 source=$3 items=1000
dir=$(mktemp -d "${TMPDIR:-/tmp}/btc-hosts.XXXXXX")
export XDG_CACHE_HOME=$dir/cache
say() { echo "$(date +%T) $*"; }
fail() { echo "members_hosts.sh: FAILED: $*"; exit 1; }
finish() {
  local code=$?
  trap - EXIT
  if [ $code != 0 ]; then for f in "$dir"/*.log; do echo "--- $f"; tail -n 25 "$f"; done; fi
  [ -n "${KEEP:-}" ] || rm -rf "$dir"
  exit $code # what still runs ends with our process namespace
}
trap finish EXIT
wait_for() { # wait_for SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "waited in vain: $what"
    sleep 0.1
  done
}

# ---- hosts
mount -t tmpfs none /run
mkdir /run/netns
ip link add bridge0 type bridge
ip link set bridge0 up
for h in 0 1 2 3; do
  ip netns add h$h
  ip link add v$h type veth peer name eth0 netns h$h
  ip link set v$h master bridge0 up
  ip -n h$h addr add 10.77.0.1$h/24 dev eth0
  ip -n h$h link set lo up
  ip -n h$h link set eth0 up
done
on() { local h=$1; shift; ip netns exec h$h "$@"; }

# ---- keys, manifest, what one process says
cd "$dir"
"$btcchat" keygen broker >/dev/null 2>&1
mkdir results
"$btcchat" keygen --role admin client 2>/dev/null >allow
for w in 0 1 2 3; do "$btcchat" keygen --role worker w$w 2>/dev/null >>allow; done
python3 - "$source/samples" $items >pairs.jsonl <<'P'
import json, sys
names = ['houses', 'building', 'road', 'removed', 'unchanged', 'landsat']
for i in range(int(sys.argv[2])):
    before, after = (f'{sys.argv[1]}/{names[i % 6]}_{k}.png' for k in ('before', 'after'))
    print(json.dumps({'id': f'{i:04d}', 'before': after if i % 7 == 3 else before, 'after': before if i % 7 == 3 else after}))
P
texts() { python3 -c 'import json, sys
for line in sorted(sys.stdin, key=lambda l: json.loads(l)["id"]):
    r = json.loads(line)
    r.pop("timing_ms", None)
    print(json.dumps(r, sort_keys=True))'; }
head -n 42 pairs.jsonl >distinct.jsonl # six samples, each seventh the other way round
"$btcchat" caption --pairs distinct.jsonl -m "$source/models/nano" --threads 1 2>/dev/null | texts >said
python3 - said $items >want <<'P'
import json, sys
said = [json.loads(line) for line in open(sys.argv[1])]
for i in range(int(sys.argv[2])):
    print(json.dumps(dict(said[i % len(said)], id=f'{i:04d}'), sort_keys=True))
P

# ---- the queue
on 0 redis-server --bind 127.0.0.1 --port 7499 --save '' --appendonly yes --appendfsync always --maxmemory-policy noeviction --dir "$dir" \
  >redis.log 2>&1 &
wait_for 60 "Redis" on 0 redis-cli -p 7499 ping
on 0 "$btcchat" broker --redis redis://127.0.0.1:7499 --clients tcp://10.77.0.10:7411 --workers tcp://10.77.0.10:7412 --http off \
  --keys broker.key --allow allow --results results --heartbeat 500 --dead 3000 --lease 4000 --pipe-form 20000 >broker.log 2>&1 &
wait_for 60 "the broker" grep -q '^ready' broker.log
worker() { # worker HOST MIB
  on "$1" "$btcchat" worker --brokers tcp://10.77.0.10:7412 --name "w$1" --keys "w$1.key" --server-key broker.pub -m "$source/models/nano" \
    --threads 1 --memory "$2" --link "10.77.0.1$1:7420" >"w$1.log" 2>&1 &
}
client() { local command=$1; shift; on 0 "$btcchat" "$command" --broker tcp://10.77.0.10:7411 --keys client.key --server-key broker.pub "$@"; }
worker 0 0.5 # says how much the whole takes
first=$!
wait_for 120 "the first worker" grep -q whole-mib w0.log
whole=$(sed -n 's/.*whole-mib=\([0-9.]*\).*/\1/p' w0.log | head -n 1)
kill $first
wait $first || true
mib=$(python3 -c "print($whole * 0.8)")
for w in 1 2 3; do worker $w "$mib"; done
for w in 1 2 3; do wait_for 120 "worker $w" grep -q '^ready' w$w.log; done
active() { client pipes | grep -q "ACTIVE, epoch $1"; }
wait_for 120 "a pipe that is active" active ''
say "whole $whole MiB, $mib each"
client pipes

run() { # run WHAT [cut]
  local jid cut='' waiter
  rm -f jid # of the run before
  client submit --wait pairs.jsonl >jid 2>/dev/null &
  waiter=$!
  wait_for 60 "the job's name" grep -q . jid
  jid=$(head -n 1 jid)
  if [ -n "${2:-}" ]; then
    sleep 1
    cut=$(client pipes | awk '$1 == "1" {print $2; exit}') # rank 1: rank 0 would take its items along
    cut=${cut#w}
    say "host of w$cut is cut off"
    ip link set "v$cut" down
  fi
  ( sleep 200; kill $waiter ) 2>/dev/null &
  wait $waiter || fail "$1: the job did not end"
  client results "$jid" | texts >got
  cmp want got || fail "$1: other captions than those of one process"
  say "$1: $items captions as of one process"
  [ -n "$cut" ] || return 0
  client pipes
  ! client pipes | grep -q " w$cut " || fail "the host that was cut off is still in the pipe"
  ip link set "v$cut" up
}
run "three hosts"
run "a host is cut off" yes
if on 1 tc qdisc add dev eth0 root netem delay 20ms 2>/dev/null; then
  for h in 0 2 3; do on $h tc qdisc add dev eth0 root netem delay 20ms; done
  run "20 ms on every way out"
else
  say "this kernel has no netem: no delay was tried"
fi
say "done"
