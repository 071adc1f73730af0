#!/usr/bin/env bash
# The main job at 32k tokens on a GPU: calibrate, cluster, prefill by every method, compare with
# dense.   benchmarks/main_job.sh MODEL_FOLDER OUT_FOLDER
set -euo pipefail
model=$1 out=$2
profile=$out/smollm2-135m-32k
mkdir -p "$out"
run() { echo "\$ $*"; "$@"; }
run sp-run env
run sp-profile calibrate --model "$model" --length 8192 --length 16384 --length 32768 \
  --dtype bfloat16 --device cuda --block-size 128 -o "$out/run"
run sp-profile cluster "$out/run" -o "$profile"
run sp-profile show "$profile"
run python3 benchmarks/make_prompts.py "$model" "$out/prompts.jsonl" --length 32000
for method in "share --rule plan" "share --rule paper" "share --rule release" vertical_slash \
  flexprefill streaming; do
  # shellcheck disable=SC2086  # the rule is an option of its own
  run sp-run prefill --model "$model" --profile "$profile" --method $method --compare dense \
    --dtype bfloat16 --device cuda --generate 24 --repeat 3 -o "$out/${method##* }.jsonl" \
    "$out/prompts.jsonl"
done
