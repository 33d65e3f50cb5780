#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without a network: build, tests, compute-sanitizer, benchmarks, whole steps,
# what the kernels take of the GPU and what they achieve.
#
#   bench/gpu.sh [--again] [--dry-run] [STEP ...]
#
# Steps already done for this commit are skipped unless --again; naming steps runs only those. A step that fails does not
# stop the others: the summary at the end names it, and the exit code is 1. No step takes longer than STEP_SECONDS.
#
# Needed: Python, torch, nvcc, and modules named below; wheels of missing ones are installed from .wheels/ (or
# COMET_WHEELS). Without those of other kernel libraries the benchmarks leave the libraries out and say so. Without git's
# history COMET_COMMIT names the commit. Logs lie in build/gpu/COMMIT, results in bench/results; where OUT is set they are
# copied there after every step, the logs as one file.
set -euo pipefail
cd "$(dirname "$0")/.."

STEP_SECONDS=${STEP_SECONDS:-470}
PYTHON=${PYTHON:-python3}
MODULES=(torch triton transformers yaml safetensors pytest pytest_benchmark pytest_timeout cpuinfo hypothesis setuptools)
PEERS=(liger_kernel fla einops textbrewer)
OPS=(softened_kl linear_softened_kl mean_attention attention_mse factorized_projection)
OWN_KERNELS='^(chunk|row|gradient|statistics|map|delta|(query|key)_gradient|row_(map|gradient))_kernel|sum_chains|sum_products|add_sets|mean_of_squares'
ALL_STEPS=(build tests kernels memcheck racecheck "${OPS[@]/#/ops-}" step-32 step-128 sweep-step "${OPS[@]/#/sweep-}"
  resources-0 resources-1 profile counters tables)

again=false
dry_run=false
chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    --again) again=true ;;
    --dry-run) dry_run=true ;;
    -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    -*) echo "bench/gpu.sh: unknown option $1; --help lists what there is" >&2; exit 2 ;;
    *)
      if [[ " ${ALL_STEPS[*]} " != *" $1 "* ]]; then
        echo "bench/gpu.sh: no step is called $1; there are ${ALL_STEPS[*]}" >&2
        exit 2
      fi
      chosen+=("$1")
      ;;
  esac
  shift
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${ALL_STEPS[@]}")

commit=${COMET_COMMIT:-$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)}
export COMET_COMMIT=$commit
logs=build/gpu/$commit
small='against_float64 and (shape0 or shape1 or shape2 or shape3)'
export COMET_CUDA=1
if [ -z "${COMET_PYBIND11_INCLUDE:-}" ]; then
  COMET_PYBIND11_INCLUDE=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent / "include")' || true)
  export COMET_PYBIND11_INCLUDE
fi

# Fills `command`.
command_of() {
  local sanitized=(--error-exitcode 9 "$PYTHON" -m pytest
    tests/kernels/test_factorized_projection.py tests/kernels/test_projection_cuda.py -m gpu -k "$small")
  case $1 in
    build) command=(bash -c "$PYTHON -m pip install --no-build-isolation --no-deps -e . ||
      $PYTHON setup.py build_ext --inplace") ;;
    tests) command=("$PYTHON" -m pytest tests/kernels -m gpu -rs) ;;
    # the kernels without the ops around them: interpreted where there is no GPU, compiled here
    kernels) command=("$PYTHON" -m pytest tests/kernels/test_mean_attention_kernels.py tests/kernels/test_softened_kl.py
      tests/kernels/test_softened_kl_properties.py tests/kernels/test_linear_softened_kl.py -m "not gpu" -rs) ;;
    # without torch's pool every tensor is an allocation of its own, and running over its end is seen
    memcheck) command=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck "${sanitized[@]}") ;;
    racecheck) command=(compute-sanitizer --tool racecheck "${sanitized[@]}") ;;
    ops-*) command=("$PYTHON" -m pytest "bench/bench_${1#ops-}.py" -m gpu --save) ;;
    sweep-step) command=("$PYTHON" -m bench.bench_step --sweep --device cuda --dtype bfloat16 --steps 5 --save) ;;
    sweep-*) command=("$PYTHON" -m pytest "bench/bench_${1#sweep-}.py" -m gpu --sweep --save) ;;
    step-*) command=("$PYTHON" -m bench.bench_step --device cuda --dtype bfloat16 --batch "${1#step-}" --steps 10 --save) ;;
    resources-*) command=("$PYTHON" -m bench.kernel_resources --target sm_90 --part "${1#resources-}/2") ;;
    profile) command=("$PYTHON" -m bench.kernel_times --device cuda) ;;
    # bandwidth and occupancy as the GPU counts them; small sizes, since every kernel is run several times over
    counters) command=(ncu --launch-count 60 --kernel-name "regex:$OWN_KERNELS" --section SpeedOfLight
      --section LaunchStats --section Occupancy
      "$PYTHON" -m pytest bench/ -m gpu --quick --benchmark-disable -k comet) ;;
    # the results of the steps before as tables of docs/performance.md, shares of the ceilings included
    tables) command=("$PYTHON" -m bench.performance) ;;
  esac
}

# Prints why a step cannot be done here, or nothing.
missing_for() {
  case $1 in
    memcheck | racecheck) command -v compute-sanitizer >/dev/null || echo "no compute-sanitizer on the PATH" ;;
    build) [ -n "${CUDACXX:-}" ] || command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] ||
      echo "no nvcc: set CUDACXX or CUDA_HOME" ;;
    counters) if ! command -v ncu >/dev/null; then
        echo "no ncu on the PATH; profile shows times without it"
      elif grep -qs 'RmProfilingAdminOnly: 1' /proc/driver/nvidia/params && [ "$(id -u)" -ne 0 ]; then
        echo "this driver lets only root read the GPU's counters"
      fi ;;
    tables) compgen -G 'bench/results/*.json' >/dev/null || echo "no results: run the steps ops-... and step-... first" ;;
  esac
}

# Prints which of the modules named are not there.
missing_modules() {
  "$PYTHON" - "$@" <<'PYTHON'
import importlib.util
import sys

print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))
PYTHON
}

require_modules() {
  local wheels=${COMET_WHEELS:-.wheels} missing
  if [ -n "$(missing_modules "${MODULES[@]}" "${PEERS[@]}")" ] && [ -d "$wheels" ]; then
    "$PYTHON" -m pip install --no-index --no-deps "$wheels"/*.whl || true
  fi
  missing=$(missing_modules "${MODULES[@]}")
  [ -z "$missing" ] && return
  missing=${missing//yaml/pyyaml}
  missing=${missing//cpuinfo/py-cpuinfo}
  missing=${missing//pytest_/pytest-}
  echo "bench/gpu.sh: this Python has no $missing; elsewhere: pip download --no-deps -d $wheels $missing" >&2
  exit 1
}

keep() {
  [ -n "${OUT:-}" ] || return 0
  mkdir -p "$OUT/results"
  tail -v -n +1 "$logs"/*.log >"$OUT/gpu.log" 2>/dev/null || true
  cp bench/results/*.json "$OUT/results/" 2>/dev/null || true
}

if $dry_run; then
  echo "commit $commit, logs in $logs"
  for step in "${chosen[@]}"; do
    command_of "$step"
    echo "$step: ${command[*]@Q}"
  done
  exit 0
fi

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "bench/gpu.sh: torch finds no GPU here, and every step needs one; --dry-run shows the steps" >&2
  exit 1
fi
require_modules
mkdir -p "$logs"
trap keep EXIT

summary=()
failed=0
for step in "${chosen[@]}"; do
  reason=$(missing_for "$step")
  if [ -n "$reason" ]; then
    summary+=("$step: left out, $reason")
    continue
  fi
  if [ -e "$logs/$step.done" ] && ! $again; then
    summary+=("$step: done before")
    continue
  fi
  command_of "$step"
  echo "== $step: ${command[*]@Q}"
  started=$SECONDS
  rm -f "$logs/$step.done"
  status=0
  timeout --kill-after=20 "$STEP_SECONDS" "${command[@]}" 2>&1 | tee "$logs/$step.log" || status=$?
  if [ "$status" -eq 0 ]; then
    touch "$logs/$step.done"
    summary+=("$step: done in $((SECONDS - started)) s")
  else
    failed=1
    summary+=("$step: FAILED with exit code $status after $((SECONDS - started)) s, see $logs/$step.log")
  fi
  keep
done

echo
printf '%s\n' "commit $commit" "${summary[@]}" | tee "$logs/summary.log"
exit "$failed"
