#!/usr/bin/env bash
# Builds, tests, sanitizes and measures the GPU kernels: torch >= 2.11, Triton, nvcc and pytest have to be there, no
# network is needed. Each stage takes under 8 minutes and can be run alone.
#
#   bench/gpu_check.sh OUT                         all stages
#   bench/gpu_check.sh OUT build test              some of them; `build` comes first on a new machine
#
# OUT gets a log a stage, the measurements as CSV, and ends with a table; the exit code is 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${1:?usage: bench/gpu_check.sh OUT [build] [test] [sanitize] [bench]}")
shift
STAGES=("${@:-}")
[ -n "${STAGES[0]}" ] || STAGES=(build test sanitize bench)
LIMIT=470 # seconds a stage
VENV=${VENV:-/tmp/mi_pruner_gpu}
PY="$VENV/bin/python"
BACKENDS=${BACKENDS:-triton,cuda} # those that are not built are skipped with the reason
mkdir -p "$OUT"

build() {
  python3 -m venv --system-site-packages "$VENV" &&
    CUDAARCHS=${CUDAARCHS:-$(python3 -c 'import torch; print("%d%da-real" % torch.cuda.get_device_capability())')} \
      "$PY" -m pip install --quiet --no-build-isolation --no-deps --editable . &&
    nvidia-smi && git log -1 --format='commit %h %s' && "$PY" -c 'import mi_pruner; mi_pruner.show_backends()'
}

# The guarantees of every backend, on the GPU: Triton compiles many variants, on as many cores as there are.
test_() {
  local workers=()
  "$PY" -c 'import xdist' 2>/dev/null && workers=(-n 8)
  "$PY" -m pytest -q -m gpu tests &&
    MI_PRUNER_TEST_BACKENDS=$BACKENDS "$PY" -m pytest -q "${workers[@]}" \
      tests/test_properties.py tests/test_packed.py tests/test_invariances.py tests/test_backends.py tests/test_triton.py
}

sanitize() {
  local failed=0
  for backend in ${BACKENDS//,/ }; do
    "$PY" -c "import mi_pruner; mi_pruner.backend('$backend').__enter__()" || continue
    for tool in memcheck racecheck synccheck initcheck; do
      echo "== compute-sanitizer $tool, $backend"
      PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 110 compute-sanitizer --tool "$tool" --error-exitcode 9 \
        "$PY" -m tests.sanitizer_workload "$backend" | tail -20 || failed=1
    done
  done
  return $failed
}

bench() {
  "$PY" -m bench --out "$OUT/bench.csv"
}

failures=0
for stage in "${STAGES[@]}"; do
  began=$SECONDS
  export -f build test_ sanitize bench
  export OUT VENV PY BACKENDS
  timeout "$LIMIT" bash -o pipefail -c "${stage/test/test_}" 2>&1 | tee "$OUT/$stage.log"
  code=${PIPESTATUS[0]}
  result=passed
  [ "$code" -eq 0 ] || result="failed ($code)"
  [ "$code" -ne 124 ] || result="cut off after $LIMIT s"
  [ "$code" -eq 0 ] || failures=1
  printf '%-10s %-24s %4d s   %s\n' "$stage" "$result" $((SECONDS - began)) "$OUT/$stage.log" >>"$OUT/stages.txt"
done
echo
cat "$OUT/stages.txt"
exit $failures
