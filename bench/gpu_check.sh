#!/usr/bin/env bash
# Checks and measures the GPU kernels in two runs of a few minutes. No network, nothing is built or installed here:
# needs torch >= 2.11, Triton, pytest with xdist and timeout, hypothesis, and the library, compiled elsewhere if need be
# (`make gpu-library`, which says how to name it). MI_PRUNER_COMMIT names the commit where the checkout has no history.
#
#   bench/gpu_check.sh OUT first              smoke, tests, goals, ncu: under 3 minutes on 16 cores
#   bench/gpu_check.sh OUT second             plain, bench, then suite and sanitize side by side
#   bench/gpu_check.sh OUT goals ncu          some of the stages
#   BACKENDS=triton bench/gpu_check.sh OUT …  one backend
#
# A stage is cut off when its time is over; the others go on. OUT gets log.txt, stages.txt and what was measured.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
OUT=$(realpath -m "$1") && shift
for name in "$@"; do
  case $name in
  first | second | smoke | tests | goals | ncu | suite | sanitize | plain | bench | shared | host) ;;
  *) echo "stage: expected first, second, smoke, tests, goals, ncu, suite, sanitize, plain, bench, shared or host, got $name" >&2; exit 2 ;;
  esac
done
cd "$(dirname "$0")/.." || exit 2
mkdir -p "$OUT"
PY=${PY:-python3}
export PY PYTHONPATH=$PWD PYTHONUNBUFFERED=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/mi_pruner_triton} BACKENDS=${BACKENDS:-cuda,triton}
LOG=$OUT/log.txt
touch "$LOG" "$OUT/stages.txt"
before=$(wc -l <"$LOG") stages_before=$(wc -l <"$OUT/stages.txt") # of earlier runs

# A checkout that is not installed lacks the Triton kernels' place in the package.
if ! "$PY" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("mi_pruner.triton_kernels") is None)'; then
  ln -s ../triton_kernels mi_pruner/triton_kernels
  trap 'rm -f mi_pruner/triton_kernels' EXIT
fi

stage() { # name seconds command...
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  timeout -s KILL "$limit" "$@" >"$OUT/.$name" 2>&1
  code=$?
  [ $code -eq 137 ] && code="cut off after $limit s"
  echo "=== $name, above: exit status $code" >>"$OUT/.$name"
  cat "$OUT/.$name" >>"$LOG" # in one piece: some stages run side by side
  rm -f "$OUT/.$name"
  printf '%-14s %4d s   exit status %s\n' "$name" $((SECONDS - began)) "$code" | tee -a "$OUT/stages.txt"
}

smoke() {
  for way in gram rows rows-in-memory triton; do
    stage "$way" 60 "$PY" -m bench smoke "$way" &
  done
  wait
}

# Workers share the cores: the reference multiplies on the CPU.
gpu_tests() {
  local name=$1 limit=$2 workers=$3
  shift 3
  OMP_NUM_THREADS=2 MI_PRUNER_TEST_BACKENDS=$BACKENDS stage "$name" "$limit" "$PY" -m pytest -q -n "$workers" \
    --timeout 90 -p no:cacheprovider --durations 8 "$@"
}
tests() { gpu_tests tests 180 12 tests/test_gpu.py tests/test_cuda_gpu.py; }
suite() {
  gpu_tests suite 180 14 tests/test_properties.py tests/test_packed.py tests/test_invariances.py \
    tests/test_backends.py tests/test_histogram.py
}

goals() { stage goals 120 "$PY" -m bench goals --out "$OUT" --backends ${BACKENDS//,/ }; }
plain() { stage plain 110 "$PY" -m bench goals --out "$OUT" --backends ${BACKENDS//,/ } --compiled; }
host() { stage host 60 "$PY" -m bench host --out "$OUT"; }
shared() { stage shared 95 "$PY" -m bench shared --out "$OUT"; }
bench() { stage bench 140 "$PY" -m bench --cases {photograph-576,llava-1.5}/64 {photograph-2880,llava-next}/320 --budget 1 --out "$OUT"; }

# What bounds each kernel of one prune.
ncu() {
  stage ncu 80 ncu --clock-control none --set full --launch-count 4 --export "$OUT/kernels" --force-overwrite \
    --kernel-name 'regex:^(similarity|gram|normaliser|greedy_warp|gather)_kernel' "$PY" -c 'if True:
      import torch, mi_pruner
      visual, text = (torch.randn(1, n, 4096, device="cuda").bfloat16() for n in (576, 32))
      with mi_pruner.backend("cuda"):
          mi_pruner.prune(visual, text, 64)
      torch.cuda.synchronize()'
  command ncu --import "$OUT/kernels.ncu-rep" --page details >"$OUT/kernels.txt" 2>&1
  command ncu --import "$OUT/kernels.ncu-rep" --page source --csv >"$OUT/kernels-source.csv" 2>&1
}

# Fewer calls: a hundred times slower. It knows barriers only: what the warps of the greedy kernel tell
# one another by words in shared memory it takes for races. What fails is a report of another kernel.
racecheck() {
  compute-sanitizer --tool racecheck "$PY" -m tests.sanitizer_workload cuda few | awk '
    { print; fflush() }
    /(Read|Write) access at/ ? !/greedy_warp_kernel/ : /[Ii]nternal|Error:/ { failed = 1 }
    /all was run/ { whole = 1 }
    /RACECHECK SUMMARY/ { told = 1 }
    END { exit failed || !whole || !told ? 9 : 0 }'
}
export -f racecheck

sanitize() {
  local -x PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck synccheck; do
    stage $tool 170 compute-sanitizer --tool $tool --error-exitcode 9 "$PY" -m tests.sanitizer_workload cuda &
  done
  stage racecheck 170 bash -o pipefail -c racecheck &
  wait
}

{
  echo "commit ${MI_PRUNER_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}: $*"
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,memory.total --format=csv,noheader
  "$PY" -c 'import mi_pruner; mi_pruner.show_backends()'
} 2>&1 | tee -a "$LOG"
for name in "$@"; do
  case $name in
  first) smoke; tests; goals; ncu ;;
  second)
    plain
    bench
    suite & sanitize & wait
    ;;
  *) "$name" ;;
  esac
done
grep -E '^(FAILED|ERROR|smoke:|goals:)|deviations| passed| failed|met$|missed$|ERROR SUMMARY|RACECHECK SUMMARY|Error' <(tail -n "+$((before + 1))" "$LOG") | tail -80
cat "$OUT/stages.txt"
! tail -n "+$((stages_before + 1))" "$OUT/stages.txt" | grep -qv 'status 0$'
