#!/usr/bin/env bash
# Builds, tests, sanitizes and measures the GPU kernels. Needs torch >= 2.11, Triton, pytest and (for the compiled
# kernels) nvcc, cmake and ninja; no network. Each stage takes under 8 minutes and can be run alone.
#
#   bench/gpu_check.sh OUT                         all stages
#   bench/gpu_check.sh OUT build test              some of them; `build` comes first on a new machine
#   BACKENDS=triton bench/gpu_check.sh OUT test    on one backend
#
# Stages: build, test, suite (every backend's guarantees, on the GPU), sanitize, bench, prefill, ncu (skipped where
# there is none). OUT gets a log a stage and the measurements, and ends with a table; the exit code is 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
STAGES=(build test suite sanitize bench prefill ncu)
[ $# -ge 1 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }
export OUT VENV=${VENV:-/tmp/mi_pruner_gpu} BACKENDS=${BACKENDS:-triton,cuda}
OUT=$(realpath -m "$1")
shift
LIMIT=470 # seconds a stage
mkdir -p "$OUT"
export PY="$VENV/bin/python"

# An environment that sees the packages of the Python that runs here, and this checkout in place.
build() {
  set -e
  python3 -m venv "$VENV"
  python3 -c 'import site; print("\n".join(site.getsitepackages()))' >"$("$PY" -c 'import site; print(site.getsitepackages()[0])')/outer.pth"
  local arch
  arch=$(python3 -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + ("a-real" if a >= 9 else "-real"))')
  CUDAARCHS=${CUDAARCHS:-$arch} python3 -m pip --python "$PY" install --quiet --no-build-isolation --no-deps --editable .
  nvidia-smi
  git log -1 --format='commit %h %s' || true
  "$PY" -c 'import mi_pruner; mi_pruner.show_backends()'
}

available() {
  for backend in ${BACKENDS//,/ }; do
    "$PY" -c "import mi_pruner; mi_pruner.backend('$backend').__enter__()" 2>/dev/null && echo "$backend"
  done
}

gpu_tests() { "$PY" -m pytest -q -m gpu tests; }

# Triton compiles on as many cores as there are.
suite() {
  local workers=()
  "$PY" -c 'import xdist' 2>/dev/null && workers=(-n 8)
  MI_PRUNER_TEST_BACKENDS=$(available | paste -sd,) "$PY" -m pytest -q "${workers[@]}" tests/test_properties.py \
    tests/test_packed.py tests/test_invariances.py tests/test_backends.py tests/test_triton.py &&
    MI_PRUNER_TEST_BACKENDS=triton "$PY" -m pytest -q tests/test_histogram.py
}

# The workload once without a sanitizer, which also fills Triton's cache; then under all tools at the same time.
sanitize() {
  local failed=0 jobs=()
  for backend in $(available); do
    "$PY" -m tests.sanitizer_workload "$backend" || return 1
    for tool in memcheck racecheck synccheck initcheck; do
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$PY" -m tests.sanitizer_workload "$backend" >"$OUT/sanitize-$backend-$tool.log" 2>&1 &
      jobs+=("$!:$backend $tool")
    done
  done
  for job in "${jobs[@]}"; do
    wait "${job%%:*}" && echo "${job#*:}: clean" || { failed=1 && echo "${job#*:}: FAILED"; }
  done
  tail -n 3 "$OUT"/sanitize-*.log
  return $failed
}

bench() {
  "$PY" -m bench --quick --budget 1 --out "$OUT/quick" &&
    "$PY" -m bench --sets models packed --budget 2 --out "$OUT"
}

prefill() { "$PY" -m bench prefill --out "$OUT" && "$PY" -m bench robustness --out "$OUT"; }

# What bounds each compiled kernel: one prune for each way of selecting.
profile() {
  command -v ncu && available | grep -x cuda || { echo "skipped: no ncu, or no compiled kernels"; return 0; }
  for tokens in 576 4100; do
    ncu --clock-control none --set basic --kernel-name 'regex:^(similarity|normaliser|score|greedy|rows|gather)_kernel' \
      "$PY" -c "import torch, mi_pruner; mi_pruner.backend('cuda').__enter__()
v, t = (torch.randn(1, n, 4096, device='cuda').bfloat16() for n in ($tokens, 32)); mi_pruner.prune(v, t, 64)" || return 1
  done
}

run_stage() {
  case $1 in
    test) gpu_tests ;;
    ncu) profile ;;
    *) "$1" ;;
  esac
}
export -f build available gpu_tests suite sanitize bench prefill profile run_stage

failures=0
: >"$OUT/stages.txt"
for stage in "${@:-${STAGES[@]}}"; do
  if [[ " ${STAGES[*]} " != *" $stage "* ]]; then
    echo "stage: expected one of ${STAGES[*]}, got $stage" >&2
    exit 2
  fi
  began=$SECONDS
  timeout "$LIMIT" bash -o pipefail -c "run_stage $stage" 2>&1 | tee "$OUT/$stage.log"
  code=${PIPESTATUS[0]}
  case $code in
    0) result=passed ;;
    124) result="cut off after $LIMIT s" ;;
    *) result="failed ($code)" ;;
  esac
  [ "$code" -eq 0 ] || failures=1
  printf '%-10s %-24s %4d s   %s\n' "$stage" "$result" $((SECONDS - began)) "$stage.log" >>"$OUT/stages.txt"
done
echo
cat "$OUT/stages.txt"
exit $failures
