#!/usr/bin/env bash
# The Slurm scripts of deploy/slurm, unchanged, on a real controller and a real node of our own: slurm.sh BTCCHAT CHECKER SOURCE
# While 20,000 items run, a worker is warned (it drains and comes back), one is requeued, one is cancelled (it stays away) and the
# broker with its Redis is warned, requeued and given another address; afterwards each item is done exactly once. KEEP=1 keeps the folder.
set -euo pipefail
btcchat=$(readlink -f "$1") checker=$(readlink -f "$2") scripts=$(readlink -f "$3")/deploy/slurm
items=20000
us=4000 # of one item
skip() { echo "[  SKIPPED ] slurm: $*"; exit 0; }
fail() { echo "slurm.sh: FAILED: $*"; exit 1; }
say() { echo "$(date +%T) $*"; }
PATH=$PATH:/usr/sbin:/sbin
for program in munged munge slurmctld slurmd sbatch scontrol squeue scancel sinfo redis-server flock; do
  command -v $program >/dev/null || skip "$program is not installed"
done

dir=$(mktemp -d /tmp/btc-slurm.XXXXXX)
me=$(id -un)
unset "${!SLURM_@}" "${!SBATCH_@}" "${!SQUEUE_@}" "${!SINFO_@}" # we may be a job of a real cluster
export SLURM_CONF=$dir/slurm.conf TMPDIR=$dir BTCCHAT_HOME=$dir/home BTCCHAT=$btcchat

# Whatever carries our SLURM_CONF in its environment is ours: daemons, batch shells and what those started. Redis writes its title over
# its environment, but the title names its socket.
ours() {
  local p words
  for p in /proc/[0-9]*; do
    [ "${p#/proc/}" = "$BASHPID" ] && continue
    { mapfile -d '' -t words < <(cat "$p/environ" "$p/cmdline"); } 2>/dev/null
    [[ " ${words[*]} " == *" SLURM_CONF=$SLURM_CONF "* || " ${words[*]} " == *":$dir/"* ]] && echo "${p#/proc/}"
  done
  return 0
}
clean() {
  local code=$?
  trap - EXIT
  set +e
  if [ $code != 0 ]; then
    echo "--- what is left (exit code $code)"
    timeout 10 squeue -a 2>&1
    for f in "$dir"/*.log "$dir"/home/redis/log; do echo "--- $f"; tail -n 40 "$f"; done 2>/dev/null
  fi
  timeout 10 scancel -u "$me" 2>/dev/null
  local signal
  for signal in TERM KILL; do
    # shellcheck disable=SC2046
    kill -$signal $(ours) 2>/dev/null
    for _ in $(seq 20); do [ -n "$(ours)" ] || break 2; sleep 0.2; done
  done
  [ -n "${KEEP:-}" ] || rm -rf "$dir"
  exit $code
}
trap clean EXIT
trap 'exit 130' INT TERM

# until_true SECONDS COMMAND...: waits for it
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.3
  done
}

free_port() { # what listens answers; below the range that the kernel gives to others
  local port
  while port=$((10000 + (RANDOM * 32768 + RANDOM) % 20000)); do
    (exec 3<>/dev/tcp/127.0.0.1/$port) 2>/dev/null || break
  done
  echo $port
}

# ---- a cluster of one node ----

host=$(hostname -s)
chmod 711 "$dir"
mkdir -m 711 "$dir/munge"
mkdir "$dir/state" "$dir/spool" "$dir/home"
(umask 077; head -c 1024 /dev/urandom >"$dir/munge/key")
# The resources are invented (config_overrides), so that the scripts run with what they ask for on a machine of any size.
cat >"$SLURM_CONF" <<EOF
ClusterName=btcchat
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
JobRequeue=1
KillWait=15
MessageTimeout=20
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 CPUs=64 RealMemory=131072
PartitionName=main Nodes=node1 Default=YES MaxTime=INFINITE State=UP
EOF
printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no ConstrainCores=no ConstrainRAMSpace=no >"$dir/cgroup.conf"

munged --foreground --key-file "$dir/munge/key" --socket "$dir/munge/socket" --pid-file "$dir/munge/pid" --seed-file "$dir/munge/seed" \
  --log-file "$dir/munge/log" >"$dir/munged.log" 2>&1 &
works() { munge -S "$dir/munge/socket" -n >/dev/null 2>&1; }
until_true 10 works || skip "munged cannot start here: $(tail -n 2 "$dir/munged.log" "$dir/munge/log" 2>/dev/null | tr '\n' ' ')"
slurmctld -D >"$dir/slurmctld.log" 2>&1 &
slurmd -D -N node1 >"$dir/slurmd.log" 2>&1 &
idle() { [ "$(sinfo -h -o %T 2>/dev/null)" = idle ]; }
until_true 40 idle || skip "slurmctld and slurmd cannot start here: $(tail -qn 3 "$dir/slurmctld.log" "$dir/slurmd.log" | tr '\n' ' ')"
say "$(slurmd -V) runs as $me"

# ---- the scripts ----

BTCCHAT_CLIENT_PORT=$(free_port) BTCCHAT_WORKER_PORT=$(free_port)
export BTCCHAT_CLIENT_PORT BTCCHAT_WORKER_PORT BTCCHAT_WORKER_OPTIONS="--engine stub --stub-us $us"
cd "$dir"
client() {
  local command=$1
  shift
  "$btcchat" "$command" --broker "tcp://127.0.0.1:$BTCCHAT_CLIENT_PORT" --keys "$BTCCHAT_HOME/keys/client.key" \
    --server-key "$BTCCHAT_HOME/keys/broker.pub" --timeout 60 "$@"
}
broker=$(sbatch --parsable "$scripts/broker.sbatch")
array=$(sbatch --parsable --array=0-2 "$scripts/workers.sbatch")
until_true 60 test -s "$BTCCHAT_HOME/broker" || fail "the broker is not ready"
three() { [ "$(grep -hc '^ready ' btcchat-worker-"$array"_*.log 2>/dev/null | awk '{n += $1} END {print n + 0}')" -ge 3 ]; }
until_true 60 three || fail "the workers are not ready"
say "broker $broker on $(cat "$BTCCHAT_HOME/broker"), workers $array are ready"

awk -v n=$items 'BEGIN {for (i = 0; i < n; i++) printf "{\"id\":\"i%06d\",\"before\":\"/a/%d_before.png\",\"after\":\"/a/%d_after.png\"}\n", i, i, i}' \
  >manifest.jsonl
client submit manifest.jsonl --wait >submit.out 2>submit.log &
submit=$!
count() { { cat "$BTCCHAT_HOME"/results/*/part-*.jsonl 2>/dev/null || true; } | wc -l; }
beyond() { [ "$(count)" -gt "$1" ]; }
state() { squeue -h -j "$1" -o %T 2>/dev/null || true; }
in_state() { [ "$(state "$1")" = "$2" ]; }
starts() { grep -cE '^ready |event=ready ' "$1" || true; }
back() { in_state "$1" RUNNING && [ "$(starts "$dir"/btcchat-*-"$1".log)" = "$2" ]; } # times that it served, from the log
until_true 60 beyond 1000 || fail "no results"

say "warning worker ${array}_0 as the end of its time would, requeueing ${array}_1, cancelling ${array}_2"
scancel --batch --signal=TERM "${array}_0"
scontrol requeue "${array}_1"
scancel "${array}_2"
until_true 60 back "${array}_0" 2 || fail "the warned worker is not back"
until_true 60 back "${array}_1" 2 || fail "the requeued worker is not back"
grep -q hurry btcchat-worker-"$array"_*.log && fail "a worker was hurried: it had a second signal"
say "both are back with $(count) of $items records sealed; warning the broker"
[ "$(count)" -lt $items ] || fail "too early at the end: the broker's turn would show nothing"
scancel --batch --signal=TERM "$broker"
until_true 60 back "$broker" 2 || fail "the warned broker is not back"
say "the broker is back with $(count) records sealed; requeueing it, which gives its processes no order"
[ "$(count)" -lt $items ] || fail "too early at the end: the second turn would show nothing"
sleep 3
rm "$BTCCHAT_HOME/broker"
scontrol requeue "$broker"
until_true 60 back "$broker" 3 || fail "the requeued broker is not back"
say "the broker is back with $(count) records sealed; giving it another address, as if it had come back on another node"
[ "$(count)" -lt $items ] || fail "too early at the end: the move would show nothing"
until_true 20 test -s "$BTCCHAT_HOME/broker" || fail "the broker did not say where it is"
echo 127.0.0.1 >"$BTCCHAT_HOME/broker"
until_true 60 back "${array}_0" 3 || fail "the first worker did not follow the broker"
until_true 60 back "${array}_1" 3 || fail "the second worker did not follow the broker"

end=$((SECONDS + 150))
while kill -0 $submit 2>/dev/null && [ $SECONDS -lt $end ]; do sleep 0.5; done
kill -0 $submit 2>/dev/null && fail "the job does not end"
code=0
wait $submit || code=$?
cat submit.out
[ $code = 0 ] || { cat submit.log; fail "submit --wait: exit code $code"; }
say "submit --wait is through"

# ---- what came of it ----

published() { [ -n "$(find "$BTCCHAT_HOME/results" -name .finished.json)" ]; }
until_true 30 published || fail "the results folder is not complete"
job=$(sed -n 's/^\([A-Za-z0-9-]*\).*/\1/p' submit.out | head -n 1)
client status --json "$job" >status.json
tr -d ' \n' <status.json | grep -q "\"done\":${items}[,}]" || { cat status.json; fail "status does not say that all are done"; }
ids=$(cat "$BTCCHAT_HOME"/results/*/part-*.jsonl | grep -o '"id": *"i[0-9]*"' | sort | uniq -c | awk '{n[$1 == 1]++} END {print n[1] + 0, n[0] + 0}')
[ "$ids" = "$items 0" ] || fail "ids once and more than once: $ids"

scancel "$array" # the broker last, so that all is written
gone() { [ -z "$(state "$1")" ]; }
until_true 40 gone "$array" || fail "cancelled workers do not end, or come back"
scancel --batch --signal=TERM "$broker"
until_true 40 in_state "$broker" PENDING || fail "the broker does not end"
scancel "$broker"
grep -h 'sbatch: ' btcchat-*.log
w=btcchat-worker-$array
grep -q 'worker exit=0 end=warned' "${w}_0.log" || fail "the warned worker did not drain with exit code 0"
[ "$(starts "${w}_0.log")$(starts "${w}_1.log")" = 33 ] || fail "a worker did not come back"
[ "$(starts "${w}_2.log")" = 1 ] || fail "the cancelled worker came back"
[ "$(grep -c 'broker exit=0 end=warned' "btcchat-broker-$broker.log")" = 2 ] || fail "the warned broker did not end well"

# Redis's files are what a broker would begin with on another node: the invariants hold in them.
redis-server --port 0 --unixsocket "$dir/check.sock" --dir "$BTCCHAT_HOME/redis" --save '' --appendonly yes >"$dir/check.log" 2>&1 &
loaded() { [ "$(redis-cli -s "$dir/check.sock" ping 2>/dev/null)" = PONG ]; }
until_true 30 loaded || fail "Redis does not start from the broker's files"
"$checker" --redis "unix://$dir/check.sock" --results "$BTCCHAT_HOME/results" --end --stub || fail "an invariant is broken"
say "passed"
