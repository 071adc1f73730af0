#!/usr/bin/env bash
# Hardware counters of both attention kernels under Nsight Compute, on one GPU of compute capability
# 9.0.   benchmarks/profile_counters.sh OUT_FOLDER
#
# Leaves counters.csv (as ncu prints it), launches.json (what was launched), counters.json and
# counters.md (the table), and ncu.log.
#
# NCU=...     Nsight Compute (ncu, else /usr/local/cuda/bin/ncu)
# PYTHON=...  the interpreter (python3)
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
ncu=${NCU:-$(command -v ncu || echo /usr/local/cuda/bin/ncu)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# Names differ between chips and versions: ask for those that this one has.
"$ncu" --query-metrics > "$work/available.txt" 2>&1 || true
metrics=$("$python" benchmarks/counter_table.py metrics "$work/available.txt")
"$ncu" --version | tail -n 1 > "$out/ncu.log"

# One process makes every launch, after compiling and building masks outside of the profiled range.
# Clocks are left as they are, so that durations are those of ordinary runs.
status=0
"$ncu" --force-overwrite --export "$work/counters" --target-processes application-only \
  --profile-from-start off --kernel-name-base function \
  --kernel-name 'regex:hopper_kernel|block_sparse_kernel' \
  --clock-control none --cache-control all --metrics "$metrics" \
  "$python" benchmarks/counter_launches.py "$out/launches.json" >> "$out/ncu.log" 2>&1 || status=$?
if [ "$status" -ne 0 ]; then
  tail -n 40 "$out/ncu.log"
  exit "$status"
fi
"$ncu" --import "$work/counters.ncu-rep" --csv --page raw --print-units base > "$out/counters.csv"
"$python" benchmarks/counter_table.py table "$out"
