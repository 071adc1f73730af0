#!/bin/sh
# compute-sanitizer over every kernel on small shapes; one log a tool and group of kernels in OUT.
#
#     sh tests/kernel/sanitize.sh OUT
#
# memcheck and synccheck must be clean for every kernel, racecheck for the kernels that load by
# pointer. The warp-specialised kernels order their shared memory by mbarriers between the copy
# engine and warpgroups, which racecheck does not model: its log is kept, its verdict is not used.
set -u
out=${1:?usage: sanitize.sh OUT}
here=$(dirname "$0")
check=$here/gpu_check.py
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0

run() { # run TOOL NAME SCRIPT OPTIONS...
  tool=$1 name=$2
  shift 2
  log=$out/$tool-$name.log
  echo "compute-sanitizer --tool $tool python3 $*" >"$log"
  compute-sanitizer --tool "$tool" --error-exitcode 3 "$python" "$@" >>"$log" 2>&1
  status=$?
  echo "$tool $name: exit $status; $(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" | tail -1)"
  return $status
}

# Fill Triton's cache first: the compiler is slow under the sanitizer.
for script in "gpu_check.py --sanitize all" "decision_check.py --sanitize" \
  "pooled_run.py --device cuda --small"; do
  # shellcheck disable=SC2086  # a script and its options
  "$python" "$here"/$script >"$out/plain.log" 2>&1 || failed=1
  tail -4 "$out/plain.log"
done
for tool in memcheck synccheck; do
  run $tool all "$check" --sanitize all || failed=1
  run $tool selection "$here/decision_check.py" --sanitize || failed=1
  run $tool pooled "$here/pooled_run.py" --device cuda --small || failed=1
done
run racecheck pointer "$check" --sanitize pointer || failed=1
run racecheck hopper "$check" --sanitize hopper || true
exit $failed
