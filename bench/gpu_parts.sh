# shellcheck shell=bash
# The parts of bench/gpu.sh, each run in a process of its own with its own time limit. The last line a part prints is its summary, or the
# reason why it failed or did not run.
MISSING=77 # a part's exit status when what it needs is not there

missing() {
  echo "$*"
  exit "$MISSING"
}

fail() {
  echo "$*"
  exit 1
}

# Why a part cannot run after what came before it; status 0 when it can.
blocked() {
  local after='build card'
  case $1 in
    build) return 0 ;;
    card | pack) after=build ;;
    torch) after='card model' ;; # PyTorch needs nothing that was built but the model
    stages | pairs | ranks) after='build card model' ;;
    model) after='build card' ;;
  esac
  for need in $after; do
    if ! grep -q "^$need"$'\tok\t' "$OUT/parts.tsv"; then
      awk -F '\t' -v need="$need" '$1 == need { print "needs: " $3 }' "$OUT/parts.tsv"
      return 1
    fi
  done
}

# A program that was built, with the libraries it needs: those that were packed with it, and cuBLASLt and NCCL where only PyTorch or the
# toolkit has them.
python_library() {
  python3 -c 'import sys, nvidia, glob; print((glob.glob(list(nvidia.__path__)[0] + "/*/lib/" + sys.argv[1] + ".so*") or [""])[0].rpartition("/")[0])' "$1" 2>/dev/null || true
}
libraries() {
  local nvcc dir
  [ -z "$PREBUILT" ] || printf '%s/lib:' "$(realpath "$PREBUILT")"
  nvcc=$(command -v nvcc || true)
  for dir in "${nvcc:+$(dirname "$(realpath "${nvcc:-/}")")/../lib64}" /usr/local/cuda/lib64 /usr/local/nvidia/lib64 \
    "$(python_library libcublasLt)" "$(python_library libnccl)"; do
    [ -z "$dir" ] || [ ! -d "$dir" ] || printf '%s:' "$dir"
  done
  printf '%s' "${LD_LIBRARY_PATH:-}"
}
ours() {
  local program=$1
  shift
  LD_LIBRARY_PATH=$(libraries) "$BUILD/$program" "$@"
}

device_programs() {
  for file in tests/gpu_host/test_*.c; do
    name=$(basename "$file" .c)
    case $name in
      test_shim | test_race | test_traffic) ;; # of the shim itself
      *) echo "gpu_${name#test_}" ;;
    esac
  done
  echo gpu_pictures
}

part_build() {
  if [ -n "$PREBUILT" ]; then
    [ -x "$BUILD/btcchat" ] || missing "no btcchat in $BUILD: gpu.sh --pack makes such an archive"
    ours btcchat --version || fail "the packed btcchat does not start on this machine"
    return
  fi
  local cuda=ON nvcc targets
  [ -z "$REHEARSE" ] || cuda=AUTO
  nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null || true)
  [ -n "$nvcc" ] || [ -n "$REHEARSE" ] || missing "no nvcc on the PATH or in /usr/local/cuda/bin"
  command -v cmake >/dev/null || missing "no cmake"
  command -v ninja >/dev/null || missing "no ninja"
  PATH=$PATH:${nvcc%/*} cmake --preset release -B "$BUILD" -DBTC_CUDA=$cuda ||
    fail "cmake failed; $BUILD/CMakeFiles and $OUT/build.log say why. Where libraries are missing: gpu.sh --pack on a machine that has them"
  targets='btcchat btcchat-bench-ops'
  [ -n "$REHEARSE" ] || targets="$targets btcchat-gpu-roofs btcchat-gpu-products $(device_programs)"
  # shellcheck disable=SC2086 # a list of words
  cmake --build "$BUILD" -j "${JOBS:-$(nproc)}" --target $targets ||
    fail "the build failed: $(grep -m 1 -E 'error|FAILED' "$OUT/build.log")"
  ours btcchat --version
}

part_pack() {
  dir=$(mktemp -d) # not local: the trap runs after the function
  trap 'rm -rf "$dir"' EXIT
  mkdir "$dir/tests" "$dir/lib"
  for program in btcchat btcchat-bench-ops btcchat-gpu-roofs btcchat-gpu-products; do cp "$BUILD/$program" "$dir/"; done
  for program in $(device_programs); do cp "$BUILD/tests/$program" "$dir/tests/"; done
  ! command -v strip >/dev/null || strip --strip-debug "$dir"/btcchat* "$dir"/tests/gpu_*
  # Not the C and C++ runtimes and not CUDA's: the other machine has its own, and they belong to its system and driver.
  ldd "$dir/btcchat" "$dir"/tests/gpu_* | awk '$2 == "=>" { print $3 }' | sort -u |
    grep -Ev '/(libc|libm|libdl|libpthread|librt|libresolv|libstdc\+\+|libgcc_s|libcuda.*|libcublas.*|ld-linux.*)\.so' |
    xargs -I FILE cp -L FILE "$dir/lib/"
  [ ! -d "$VECTORS" ] || cp -rL "$VECTORS" "$dir/vectors"
  mkdir -p "$(dirname "$PACK")"
  tar -czf "$PACK" -C "$dir" .
  local mb
  mb=$(du -sm "$PACK" | cut -f 1)
  [ "$mb" -le "${PACK_MB:-48}" ] || fail "$mb MB in $PACK: more than the ${PACK_MB:-48} MB (PACK_MB) that may travel"
  echo "$mb MB in $PACK"
}

part_card() {
  local found
  found=$(BTCCHAT_MODEL=models/nano ours btcchat doctor || true) # its status is about the whole machine
  echo "$found"
  nvidia-smi || echo 'nvidia-smi is not there'
  [ -z "$REHEARSE" ] || { echo 'a rehearsal on the CPU'; return; }
  if ! grep -q '^ok *gpu *cuda:' <<<"$found"; then
    # What a doctor misses, a library for products say, is no reason to leave a card unasked.
    nvidia-smi -L 2>/dev/null | grep -q '^GPU' || missing "$(sed -n 's/^note *gpu *\(.*\): the CPU is used/\1/p' <<<"$found")"
    echo "nvidia-smi lists a card, btcchat doctor does not: $(sed -n 's/^[a-z]* *gpu *//p' <<<"$found" | tail -n 1)"
    return
  fi
  sed -n 's/^ok *gpu *cuda:/cuda:/p' <<<"$found" | tail -n 1
}

part_roofs() {
  [ -z "$REHEARSE" ] || missing 'a rehearsal has no card'
  [ -x "$BUILD/btcchat-gpu-roofs" ] || missing 'btcchat-gpu-roofs was not built: cuBLASLt is not in the toolkit'
  local number=${DEVICE#cuda}
  number=${number#:}
  ours btcchat-gpu-roofs "${number:-0}" >"$OUT/roofs.tmp"
  mv "$OUT/roofs.tmp" "$OUT/roofs.jsonl"
  cat "$OUT/roofs.jsonl"
  echo 'bf16 product and copy on the device'
}

part_tests() {
  [ -z "$REHEARSE" ] || missing 'a rehearsal has no card'
  local passed=0 bad='' program waiting=()
  # Beside one another: their time is the plain operators', on the CPU. One that hangs does not take the others' time.
  for program in $(device_programs); do
    { LD_LIBRARY_PATH=$(libraries) timeout -k 2 80 "$BUILD/tests/$program" >"$OUT/$program.tmp" 2>&1; echo "status $?" >>"$OUT/$program.tmp"; } &
    waiting+=($!)
  done
  wait "${waiting[@]}" || true
  for program in $(device_programs); do
    echo "== $program"
    cat "$OUT/$program.tmp"
    [ "$(tail -n 1 "$OUT/$program.tmp")" = 'status 0' ] || bad="$bad $program"
    # A test that was skipped did not run on the card: as bad as one that failed.
    ! grep -q 'SKIPPED' "$OUT/$program.tmp" || bad="$bad $program(skipped)"
    passed=$((passed + $(grep -c '^\[       OK \]' "$OUT/$program.tmp" || true)))
    rm -f "$OUT/$program.tmp"
  done
  [ -z "$bad" ] || fail "$passed tests passed; failed or skipped:$bad"
  [ "$passed" -gt 0 ] || fail 'no test ran'
  echo "$passed tests passed"
}

part_golden() {
  [ -d "$VECTORS" ] || missing "no golden cases: $VECTORS is not there (--vectors DIR)"
  local cases=() file bad='' n=0
  for file in "$VECTORS"/*/expected.json; do
    [ ! -f "$file" ] || cases+=("$(dirname "$file")")
  done
  [ ${#cases[@]} -gt 0 ] || missing "no golden cases in $VECTORS"
  for dtype in bf16 f32; do
    for file in "${cases[@]}"; do
      if LD_LIBRARY_PATH=$(libraries) timeout -k 2 20 "$BUILD/btcchat" verify --device "$DEVICE" --dtype $dtype "$file"; then n=$((n + 1)); else bad="$bad $(basename "$file"):$dtype"; fi
    done
  done
  if [ -n "$bad" ]; then
    local apart='they hold with BTCCHAT_CUDA_OVERLAP=0'
    for file in $bad; do
      BTCCHAT_CUDA_OVERLAP=0 LD_LIBRARY_PATH=$(libraries) timeout -k 2 20 "$BUILD/btcchat" verify --device "$DEVICE" --dtype "${file#*:}" "$VECTORS/${file%:*}" ||
        apart='and not with BTCCHAT_CUDA_OVERLAP=0'
    done
    fail "$n cases hold; not:$bad; $apart"
  fi
  echo "$n cases hold (f32 and bf16)"
}

# All ordered pairs of the sample images that a prime step reaches: 64 lines (a rehearsal 12), some with no change and some that make no
# sense.
write_pairs() {
  local images=(samples/*.png) n i lines=64
  [ -z "$REHEARSE" ] || lines=12
  n=${#images[@]}
  for ((i = 0; i < lines; i++)); do
    printf '{"id":"%02d","before":"%s","after":"%s"}\n' "$i" "$PWD/${images[i % n]}" "$PWD/${images[(i * 5 + i / n) % n]}"
  done
}

caption() { # OUT_FILE MANIFEST DEVICE DTYPE BATCH
  ours btcchat caption -m models/nano --pairs "$2" --device "$3" --dtype "$4" --batch "$5" >"$OUT/$1.jsonl" || fail "captions of $1 failed"
}

part_captions() {
  command -v python3 >/dev/null || missing 'no python3 to compare them with'
  write_pairs >"$OUT/pairs.manifest"
  for dtype in f32 bf16; do
    caption cpu-$dtype "$OUT/pairs.manifest" cpu $dtype 8
    caption card-$dtype "$OUT/pairs.manifest" "$DEVICE" $dtype 8
  done
  python3 bench/gpu_report.py --captions "$OUT"
}

part_batches() {
  command -v python3 >/dev/null || missing 'no python3 to compare them with'
  write_pairs >"$OUT/pairs.manifest"
  shuf --random-source=bench/gpu.sh "$OUT/pairs.manifest" >"$OUT/shuffled.manifest"
  for dtype in f32 bf16; do
    caption alone-$dtype "$OUT/pairs.manifest" "$DEVICE" $dtype 1
    for batch in 3 32 64; do caption "batch$batch-$dtype" "$OUT/pairs.manifest" "$DEVICE" $dtype $batch; done
    caption shuffled-$dtype "$OUT/shuffled.manifest" "$DEVICE" $dtype 13
  done
  python3 bench/gpu_report.py --batches "$OUT"
}

part_model() {
  local size=full need=9000000 free
  [ -z "$REHEARSE" ] || size=small need=500000
  mkdir -p "$BENCH"
  if [ ! -f "$MODEL/config.json" ]; then
    free=$(df --output=avail "$BENCH" | tail -n 1)
    [ "$free" -gt $need ] || missing "$((need / 1000000)) GB of disk are needed in $BENCH (BTCCHAT_BENCH_DIR)"
    rm -rf "$MODEL"
    ours btcchat bench make-model "$MODEL" --size $size --tokenizer models/nano/llm || fail "$(tail -n 1 "$OUT/model.log")"
  fi
  cat "$MODEL"/*/*.safetensors >/dev/null # a warm page cache for both sides
  echo "$(du -sm "$MODEL" | cut -f 1) MB"
}

part_stages() {
  local pair=(samples/landsat_before.png samples/landsat_after.png) batch batches='32 1 64 8' bad=''
  [ -z "$REHEARSE" ] || batches='1 2'
  for batch in $batches; do
    LD_LIBRARY_PATH=$(libraries) timeout -k 2 60 "$BUILD/btcchat" bench stages -m "$MODEL" --device "$DEVICE" --dtype bf16 --positions 253 --tokens 20 --runs 5 --batch "$batch" --json "${pair[@]}" >"$OUT/stage.tmp" || bad="$bad $batch"
    cat "$OUT/stage.tmp"
    cat "$OUT/stage.tmp" >>"$OUT/stages.jsonl"
  done
  # Decode once more with launches that do not overlap (docs/operations.md).
  for batch in ${batches%% *} 1; do
    BTCCHAT_CUDA_OVERLAP=0 LD_LIBRARY_PATH=$(libraries) timeout -k 2 40 "$BUILD/btcchat" bench stages -m "$MODEL" --device "$DEVICE" --dtype bf16 --positions 253 --tokens 20 --runs 2 --batch "$batch" --json "${pair[@]}" >"$OUT/stage.tmp" || bad="$bad $batch(apart)"
    cat "$OUT/stage.tmp"
    cat "$OUT/stage.tmp" >>"$OUT/stages-apart.jsonl"
  done
  rm -f "$OUT/stage.tmp"
  [ -z "$bad" ] || fail "with these batches:$bad"
  echo "with these batches: $batches"
}

part_pairs() {
  local pairs=192 slots=64
  [ -z "$REHEARSE" ] || pairs=6 slots=4
  ours btcchat bench batching -m "$MODEL" --device "$DEVICE" --dtype bf16 --pairs $pairs --slots $slots --tokens 20 --runs 2 --json >"$OUT/pairs.jsonl"
  cat "$OUT/pairs.jsonl"
  echo "$pairs pairs, $slots slots"
}

# What products reach of what cuBLASLt does when it is free, and what each part of a decode step takes.
part_ops() {
  local small='' number=${DEVICE#cuda}
  number=${number#:}
  [ -z "$REHEARSE" ] || small=small
  [ -x "$BUILD/btcchat-bench-ops" ] || missing 'btcchat-bench-ops was not built'
  # shellcheck disable=SC2086 # one word or none
  ours btcchat-bench-ops "$DEVICE" $small >"$OUT/ops.jsonl" || fail "$(tail -n 1 "$OUT/ops.log")"
  # shellcheck disable=SC2086
  BTCCHAT_CUDA_OVERLAP=0 ours btcchat-bench-ops "$DEVICE" $small decode >"$OUT/ops-apart.jsonl" || fail "launches that do not overlap: $(tail -n 1 "$OUT/ops.log")"
  cat "$OUT/ops.jsonl" "$OUT/ops-apart.jsonl"
  [ -z "$REHEARSE" ] || missing 'a rehearsal has no card: its products and the parts of its decode step ran on the CPU'
  [ -x "$BUILD/btcchat-gpu-products" ] || missing 'btcchat-gpu-products was not built: cuBLASLt is not in the toolkit'
  ours btcchat-gpu-products "${number:-0}" >"$OUT/free.jsonl" || fail "$(tail -n 1 "$OUT/ops.log")"
  cat "$OUT/free.jsonl"
  echo 'products and decode parts'
}

part_torch() {
  local batches='32 1' batch bad=''
  [ -z "$REHEARSE" ] || batches='1 2'
  python3 -c 'import torch' || missing 'python3 has no torch'
  [ "$DEVICE" = cpu ] || python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || missing "python3's torch sees no card"
  for batch in $batches; do
    timeout -k 2 50 python3 bench/torch_peer.py "$MODEL" --device "$DEVICE" --dtype bf16 --batch "$batch" --runs 5 >"$OUT/torch.tmp" || { bad="$bad $batch"; continue; }
    cat "$OUT/torch.tmp"
    cat "$OUT/torch.tmp" >>"$OUT/torch.jsonl"
  done
  rm -f "$OUT/torch.tmp"
  [ -z "$bad" ] || fail "PyTorch with these batches:$bad"
  echo "with these batches: $batches"
}

part_sanitizer() {
  local tool
  tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || missing 'compute-sanitizer is not installed'
  [ -z "$REHEARSE" ] || missing 'a rehearsal has no card'
  local run='' bad='' slow='' check program status
  for check in memcheck racecheck; do
    for program in gpu_norms gpu_sample gpu_elementwise gpu_layout gpu_convert gpu_matvec gpu_matvec_fused gpu_attention_cache gpu_attention; do
      echo "== $check $program"
      status=0
      LD_LIBRARY_PATH=$(libraries) timeout -k 2 12 "$tool" --tool $check --error-exitcode 9 "$BUILD/tests/$program" >"$OUT/check.tmp" 2>&1 || status=$?
      tail -n 60 "$OUT/check.tmp"
      ! grep -q 'Device not supported' "$OUT/check.tmp" || missing 'compute-sanitizer does not support this device or its virtual machine'
      case $status in
        0) run="$run $check/$program" ;;
        124 | 137) slow="$slow $check/$program" ;;
        *) bad="$bad $check/$program" ;;
      esac
    done
  done
  rm -f "$OUT/check.tmp"
  [ -z "$bad" ] || fail "errors:$bad; none:${run:- -}${slow:+; not done in time:$slow}"
  [ -n "$run" ] || fail "nothing was done in time:$slow"
  echo "no error:$run${slow:+; not done in time:$slow}"
}

# Pairs through a pipeline of RANKS processes: their figures go to ranks.jsonl.
ranks() { # RANKS DEVICE WAY
  local pairs=32 tokens=20
  [ -z "$REHEARSE" ] || pairs=4 tokens=4
  ours btcchat bench pipe -m "$MODEL" --device "$2" --dtype bf16 --ranks "$1" --pairs $pairs --slots 16 --tokens $tokens --tensors "$3" --json >"$OUT/ranks.tmp" 2>&1 || return 1
  tail -n 1 "$OUT/ranks.tmp" | tee -a "$OUT/ranks.jsonl"
}

# More cards: a rank on each. One card: its ranks are hosts of their own to NCCL, which takes their tensors by sockets of the loopback, slowly.
part_ranks() {
  if [ -n "$REHEARSE" ]; then
    ranks 2 cpu tcp || fail "2 ranks on the CPU: $(tail -n 1 "$OUT/ranks.tmp")"
    missing 'a rehearsal has no card: two ranks ran over their links only'
  fi
  local n on=cuda way=auto
  n=$(nvidia-smi --list-gpus | grep -c '^GPU' || true)
  [ "$n" -le 8 ] || n=8
  if [ "$n" -lt 2 ]; then
    n=2 on=$DEVICE way=nccl
    export NCCL_SOCKET_IFNAME=lo
  fi
  export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
  ranks "$n" "$on" tcp || fail "$n ranks over their links: $(tail -n 1 "$OUT/ranks.tmp")"
  if ! ranks "$n" "$on" nccl; then
    cat "$OUT/ranks.tmp"
    ! grep -q 'NCCL cannot be used' "$OUT/ranks.tmp" || missing "$(tail -n 1 "$OUT/ranks.tmp")"
    [ "$way" = auto ] || missing "one card, and NCCL does not take two ranks on it: $(tail -n 1 "$OUT/ranks.tmp")"
    fail "$n ranks over NCCL: $(tail -n 1 "$OUT/ranks.tmp")"
  fi
  python3 bench/gpu_report.py --ranks "$OUT"
}
