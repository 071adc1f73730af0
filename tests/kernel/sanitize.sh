#!/bin/sh
# compute-sanitizer over every kernel on small shapes; one log a tool and kernel in OUT.
#
#     sh tests/kernel/sanitize.sh OUT
#
# memcheck and synccheck must be clean for every kernel, racecheck for the kernels that load by
# pointer. The warp-specialised kernels order their shared memory by mbarriers between the copy
# engine and warpgroups, which racecheck does not model: its log is kept, its verdict is not used.
set -u
out=${1:?usage: sanitize.sh OUT}
check=$(dirname "$0")/gpu_check.py
python=${PYTHON:-python3}
mkdir -p "$out"
failed=0

run() { # run TOOL KERNELS
  log=$out/$1-$2.log
  echo "compute-sanitizer --tool $1 $python tests/kernel/gpu_check.py --sanitize $2" >"$log"
  compute-sanitizer --tool "$1" --error-exitcode 3 "$python" "$check" --sanitize "$2" \
    >>"$log" 2>&1
  status=$?
  echo "$1 $2: exit $status; $(grep 'ERROR SUMMARY\|RACECHECK SUMMARY' "$log" | tail -1)"
  return $status
}

# Fill Triton's cache first: the compiler is slow under the sanitizer.
"$python" "$check" --sanitize all >"$out/plain.log" 2>&1 || failed=1
tail -4 "$out/plain.log"
for tool in memcheck synccheck; do
  run $tool all || failed=1
done
run racecheck pointer || failed=1
run racecheck hopper || true
exit $failed
