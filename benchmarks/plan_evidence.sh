#!/usr/bin/env bash
# Everything about accuracy, blocks and time of the plan and its peers, on a machine with one or
# several GPUs: calibration, profiles and their controls, curves, evaluation, timing pass, report.
#   benchmarks/plan_evidence.sh MODEL OUT          the same command goes on where it stopped
#   benchmarks/plan_evidence.sh --methods [NAME..] the methods, with those of the profiles named
# Variables: RANKS processes a GPU (6); MAX_SECONDS (540): nothing begins later; SAMPLES (25) and
# FEW (10) prompts a task and length; LENGTHS, TASKS of the evaluation; CALIBRATION lengths;
# PLAN_LENGTHS that the plan is made for; RECALL (0.95) of the balanced point; TIMED (3) prompts of
# the timing pass; LAYER, ONE_TASK: empty to leave them out; PATTERNS_FROM: a profile of the model,
# so that its patterns are searched beside the calibration; OTHER: a model of the same shape, whose
# plan is a control; EXTRA: methods.
set -euo pipefail
few=${FEW:-10}

# Most important first. Every method runs from 1024 tokens on, so that all are compared at 4k too.
list_methods() { # names of the profiles there are
  local main rest plan=min_tokens=1024:local_blocks=1 small=min_budget=256
  main="dense,vertical_slash:gamma=0.9,vertical_slash:gamma={0.7,0.8}:$small"
  main+=",point:{fast,balanced}:$plan"
  for name in "$@"; do
    case $name in r[0-9]*) main+=",point:balanced:$plan%$name" ;; esac
  done
  main+=",flexprefill:gamma=0.95,flexprefill:gamma=0.8:$small,xattention:tau={0.8,0.9}"
  for rule in paper release; do
    main+=",share:$rule:gamma=0.9,share:$rule:gamma=0.8:$small"
  done
  # Ablations, the exact mask as an oracle, controls, and the rest.
  rest="point:safe:$plan sampled:gamma={0.8,0.9}:stride=16:local_blocks=1 point:{fast,balanced}:min_tokens=1024:local_blocks=0 sampled:gamma={0.8,0.9}:stride=1:local_blocks=1"
  rest+=" share:paper:gamma=0.9:$small:delta=1.01 share:paper:gamma=0.9:$small:tau=0"
  for name in "$@"; do
    case $name in
      lenders | onetask | other) rest+=" point:balanced:$plan%$name" ;;
      all) rest+=" share:paper:gamma=0.9:$small%all share:paper:gamma=0.9:$small:delta=1.01%all" ;;
      random) rest+=" share:paper:gamma=0.9:$small%random" ;;
      patterns) rest+=" minference%patterns moa%patterns" ;;
    esac
  done
  rest+=" streaming:sink=128:window={1024,4096} lm_infinite infllm:window={1024,4096}"
  rest+=" hip:top_k={512,2048}"
  for method in $rest; do main+=",$method@$few"; done
  echo "$main${EXTRA:+,$EXTRA}"
}
if [ "$1" = --methods ]; then
  list_methods "${@:2}"
  exit
fi

model=$1 out=$2
here=$(dirname "$0")
gpus=$(python3 -c 'import torch; print(torch.cuda.device_count())')
ranks=$((gpus * ${RANKS:-6}))
budget=${MAX_SECONDS:-540} plan_lengths=${PLAN_LENGTHS:-16384,32000} recall=${RECALL:-0.95}
calibration=${CALIBRATION:-4096,8192,16384,32000}
mkdir -p "$out/logs"

left() { echo $((budget - SECONDS)); }
# step NAME TARGET COMMAND...: unless TARGET exists; a failure is told and ends nothing.
step() {
  local name=$1 target=$2 begin=$SECONDS
  shift 2
  [ -e "$target" ] && return
  if [ "$(left)" -lt 30 ]; then
    echo "$name: no time left"
    return
  fi
  if "$@" > "$out/logs/$name.log" 2>&1; then
    echo "$name: $((SECONDS - begin)) s"
  else
    echo "$name: FAILED after $((SECONDS - begin)) s: $(tail -n 1 "$out/logs/$name.log")"
  fi
}
on_gpu() { CUDA_VISIBLE_DEVICES=$(($1 % gpus)) "${@:2}"; }
group() { torchrun --standalone --nproc-per-node "$1" --no-python "${@:2}"; }
common=(--model "$model" --dtype bfloat16 --device cuda --chat-template)
small=(--quiet --overwrite)

measure() { # PROCESSES RUN MODEL LENGTHS MORE...: calibrate; the command itself resumes
  local processes=$1 run=$2 of=$3 lengths=$4
  shift 4
  group "$processes" sp-profile calibrate --model "$of" --dtype bfloat16 --device cuda \
    --chat-template --block-size 128 --min-budget 1024 --samples 2 --length "$lengths" "$@" \
    -o "$run" && touch "$run.done"
}
tuned() { # RUN BASE RECALL TARGET MORE...
  sp-profile tune "$2" "$1" --target-recall "$3" "${@:5}" "${small[@]}" -o "$4"
}

run=$out/run base=$out/base
# Patterns of minference and moa need a profile of the model only for what the model is.
patterns() {
  on_gpu 2 sp-profile search minference --model "$model" --profile "$1" --dtype bfloat16 \
    --device cuda --length 32000 "${small[@]}" -o "$out/minference" &&
    on_gpu 2 sp-profile search moa --model "$model" --profile "$out/minference" --dtype bfloat16 \
      --device cuda --density 0.2 "${small[@]}" -o "$out/patterns"
}
if [ -n "${PATTERNS_FROM:-}" ]; then
  step patterns "$out/patterns/profile.json" patterns "$PATTERNS_FROM" &
fi
step calibrate "$run.done" measure "$ranks" "$run" "$model" "$calibration" --peers
step cluster "$base/profile.json" sp-profile cluster "$run" "${small[@]}" -o "$base"
shape=$(python3 - "$base" << 'PYTHON'
import sys
from sp_runtime.profile import load_profile
profile = load_profile(sys.argv[1])
model = profile.model
print("--heads", model.num_heads, "--kv-heads", model.num_kv_heads, "--head-dim", model.head_dim,
      "--block-size", profile.calibration.block_size, "--layers", model.num_layers)
PYTHON
)
# Alone: these are times.
# shellcheck disable=SC2086  # the shape is several options
[ -z "${LAYER-1}" ] || step layer "$out/layer.json" on_gpu 0 sp-run bench layer --profile "$base" $shape --quiet \
  --method plan,vertical_slash --length 4096,8192,16384,32768 --density 0.15 -o "$out/layer.json"
crossover=(--crossover "$out/layer.json" --length "$plan_lengths")
[ ! -e "$out/layer.json" ] || step tune "$out/tuned/profile.json" tuned "$run" "$base" "$recall" "$out/tuned" "${crossover[@]}"
# Where plan was faster nowhere, its points are for all long prompts.
crossover=(--min-tokens 8192 --length "$plan_lengths")
step tune_unmeasured "$out/tuned/profile.json" \
  tuned "$run" "$base" "$recall" "$out/tuned" "${crossover[@]}"

one_task() {
  on_gpu 1 measure 1 "$out/run-onetask" "$model" "$plan_lengths" --task json_kv &&
    sp-profile cluster "$out/run-onetask" "${small[@]}" -o "$out/base-onetask" &&
    tuned "$out/run-onetask" "$out/base-onetask" "$recall" "$out/onetask" "${crossover[@]}"
}
foreign() {
  on_gpu 3 measure 1 "$out/run-other" "$OTHER" 8000 &&
    sp-profile cluster "$out/run-other" "${small[@]}" -o "$out/base-other" &&
    tuned "$out/run-other" "$out/base-other" "$recall" "$out/other" --min-tokens 1024 --length 8000
}
sequence() { # with one GPU one after the other, else at once
  "$@" &
  [ "$gpus" -gt 1 ] || wait $!
}
sequence step all "$out/all/profile.json" \
  sp-profile cluster "$run" --enable all "${small[@]}" -o "$out/all"
sequence step r80 "$out/r80/profile.json" \
  tuned "$run" "$base" 0.80 "$out/r80" "${crossover[@]}"
sequence step curves "$out/curves.parquet" \
  sp-profile curves "$run" --quiet -o "$out/curves.parquet"
# The planner's own controls (chance, parts left out, one task at a time) are in the step's log.
sequence step planned "$out/planned/profile.json" sp-profile plan "$run" --from "$base" \
  --name planned --controls --target-recall "$recall" \
  --min-length $((${plan_lengths%%,*} / 2 + 1)) --overwrite -o "$out/planned"
[ -z "${ONE_TASK-1}" ] || sequence step onetask "$out/onetask/profile.json" one_task
[ -n "${PATTERNS_FROM:-}" ] || sequence step patterns "$out/patterns/profile.json" patterns "$base"
[ -z "${OTHER:-}" ] || sequence step foreign "$out/other/profile.json" foreign
wait

controls=("$out/tuned" "$out/controls")
[ ! -e "$out/other/profile.json" ] || controls+=(--other "$out/other")
step controls "$out/controls/lenders/profile.json" \
  python3 "$here/control_profiles.py" "${controls[@]}"

[ -e "$out/tuned/profile.json" ] || exit 1
# What exists when the evaluation begins is in it, and stays so: a folder's methods are fixed.
if [ ! -e "$out/profiles.txt" ]; then
  while read -r name path; do
    [ ! -e "$path/profile.json" ] || echo "$name=$path"
  done > "$out/profiles.txt" << PROFILES
r80 $out/r80
all $out/all
random $out/controls/random
lenders $out/controls/lenders
onetask $out/onetask
other $out/controls/other
patterns $out/patterns
PROFILES
fi
profiles=(--profile "$out/tuned") names=()
while read -r named; do
  profiles+=(--profile "$named")
  names+=("${named%%=*}")
done < "$out/profiles.txt"
methods=$(list_methods "${names[@]}")
evaluation=("${common[@]}" "${profiles[@]}" --method "$methods" --quiet --no-plot -o "$out/eval"
  --length "${LENGTHS:-4096,8192,16384,32000}" --task "${TASKS:-retrieval}"
  --samples "${SAMPLES:-25}")
echo "methods: $methods"

# A cell that cannot be computed makes the command fail and the others stay.
step prepare "$out/prepared" group "$ranks" sp-run eval "${evaluation[@]}" --prepare-only
[ ! -e "$out/eval/prompts/run.json" ] || touch "$out/prepared"
for_timing=${FOR_TIMING:-70}
if [ "$(left)" -gt $((for_timing + 30)) ]; then
  step eval "$out/evaluated" group "$ranks" sp-run eval "${evaluation[@]}" \
    --max-seconds $(($(left) - for_timing))
fi
timed="dense,point:{fast,balanced}:min_tokens=1024:local_blocks=1"
timed+=",vertical_slash:gamma=0.8:min_budget=256,vertical_slash:gamma=0.9"
timed+=",flexprefill:gamma=0.95,xattention:tau=0.9,share:paper:gamma=0.9,share:release:gamma=0.9"
step timing "$out/timed" on_gpu 0 sp-run eval "${common[@]}" "${profiles[@]}" --quiet --no-plot \
  --method "$timed" --length "$plan_lengths" --task niah_multikey_2 \
  --samples "${SAMPLES:-25}" --timing-pass "${TIMED:-3}" --max-seconds "$(left)" -o "$out/eval"
sp-run eval --report-only -o "$out/eval" --verbose > "$out/table.txt" || true
report=("$out/eval" --profile "$out/tuned")
[ ! -e "$out/curves.parquet" ] || report+=(--curves "$out/curves.parquet")
while read -r named; do report+=(--profile "$named"); done < "$out/profiles.txt"
python3 "$here/plan_report.py" "${report[@]}" > "$out/report.md"
tail -n 3 "$out/table.txt"
echo "all in $SECONDS s; report: $out/report.md"
