#!/usr/bin/env bash
# Everything about accuracy, blocks, recall and time of the plan and its peers, on a machine with
# one or several GPUs: profiles and their controls, evaluation, recall and timing pass, report.
#   benchmarks/plan_evidence.sh MODEL OUT          the same command goes on where it stopped
#   benchmarks/plan_evidence.sh --methods [NAME..] the methods, with those of the profiles named
# What was made before is not made again:
#   PROFILES=FOLDER  any of the profiles tuned, upper, narrow, r80, all, base, onetask, other,
#                    patterns and controls/{random,lenders,other}, curves.parquet, layer.json, a
#                    finished run, prompts and other-prompts (folder `prompts` of an evaluation).
#                    With tuned in it nothing is calibrated. upper: a plan above recall 0.95, for
#                    the recall pass; narrow: calibrated on fewer tasks, its plan is a control, and
#                    the published rules run on its clusters too.
# Without tuned:     CALIBRATION lengths; PLAN_LENGTHS that the plan is made for; RECALL (0.95) of
#                    its balanced point; LAYER, ONE_TASK: empty to leave them out
# Evaluation:        SAMPLES (25) and FEW (10) prompts a task and length; LENGTHS; TASKS; EXTRA
#                    methods; PATTERNS: empty to search none. OTHER: a model of the same shape, whose
#                    plan is a control; it is evaluated with it on OTHER_TASKS at OTHER_LENGTHS
# Passes after it:   RECALLS (4) and TIMED (3) prompts of a task; 0: leave it out
# Machine:           RANKS processes a GPU (6); MAX_SECONDS (540): nothing begins later, of which
#                    FOR_RECALL (100) and FOR_TIMING (60) are kept for the passes; DEVICE (cuda),
#                    DTYPE (bfloat16); REPORT: empty to leave it out
set -euo pipefail
here=$(dirname "$0")
# shellcheck source=benchmarks/plan_methods.sh
. "$here/plan_methods.sh"
if [ "$1" = --methods ]; then
  list_methods "${@:2}"
  exit
fi

model=$1 out=$2 given=${PROFILES:-}
gpus=$(python3 -c 'import torch; print(torch.cuda.device_count() or 1)')
per_gpu=${RANKS:-6}
ranks=$((gpus * per_gpu)) budget=${MAX_SECONDS:-540}
lengths=${LENGTHS:-4096,8192,16384,32000} other_lengths=${OTHER_LENGTHS:-2048,4096,8000}
tasks=${TASKS:-retrieval} samples=${SAMPLES:-25} recalls=${RECALLS:-4} timed=${TIMED:-3}
precision=(--dtype "${DTYPE:-bfloat16}" --device "${DEVICE:-cuda}")
mkdir -p "$out/logs"

left() { echo $((budget - SECONDS)); }
# step NAME TARGET COMMAND...: unless TARGET exists; a failure is told and ends nothing.
step() {
  local name=$1 target=$2 begin=$SECONDS
  shift 2
  [ -e "$target" ] && return
  if [ "$(left)" -lt 20 ]; then
    echo "$name: no time left"
    return
  fi
  rm -f "$out/logs/$name.ok"
  if "$@" > "$out/logs/$name.log" 2>&1; then
    touch "$out/logs/$name.ok"
    echo "$name: $((SECONDS - begin)) s"
  else
    echo "$name: FAILED after $((SECONDS - begin)) s: $(tail -n 1 "$out/logs/$name.log")"
  fi
}
on_gpu() { CUDA_VISIBLE_DEVICES=$(($1 % gpus)) "${@:2}"; }
group() { torchrun --standalone --nproc-per-node "$1" --no-python "${@:2}"; }
beside() { # with one GPU one after the other, else at once
  "$@" &
  [ "$gpus" -gt 1 ] || wait $!
}
# shellcheck source=benchmarks/plan_profiles.sh
. "$here/plan_profiles.sh"

# Profiles.
for name in tuned upper narrow r80 all base onetask other patterns controls/{random,lenders,other} \
  curves.parquet layer.json run; do
  take "$name"
done
[ -z "$given" ] || [ ! -e "$given/run" ] || touch "$out/run.done"
for name in "" other-; do take "${name}prompts" "${name}eval/prompts"; done
[ -e "$out/tuned/profile.json" ] || make_profiles
[ -e "$out/tuned/profile.json" ] || exit 1
controls=("$out/tuned" "$out/controls")
[ ! -e "$out/other/profile.json" ] || controls+=(--other "$out/other")
step controls "$out/controls/lenders/profile.json" \
  python3 "$here/control_profiles.py" "${controls[@]}"
find_patterns() { # beside an evaluation that does without them
  local searched=$out/tuned
  [ ! -e "$base/profile.json" ] || searched=$base
  [ -z "${PATTERNS-1}" ] || step patterns "$out/patterns/profile.json" search_patterns "$searched"
}

# Evaluation. A cell that cannot be computed makes the command fail and the others stay.
find_profiles() { # what is there now: options in profiles, names in names
  local name folder
  profiles=(--profile "$out/tuned") names=()
  for name in upper narrow r80 all random lenders onetask other patterns; do
    case $name in
      random | lenders | other) folder=$out/controls/$name ;;
      *) folder=$out/$name ;;
    esac
    [ -e "$folder/profile.json" ] || continue
    profiles+=(--profile "$name=$folder")
    names+=("$name")
  done
}
# evaluate NAME KEPT LAUNCHER... -- FOLDER OPTIONS...: `sp-run eval`, which resumes, until KEPT
# seconds are left; NAME.done where it is complete.
evaluate() {
  local name=$1 seconds=$(($(left) - $2)) launcher=()
  shift 2
  while [ "$1" != -- ]; do
    launcher+=("$1")
    shift
  done
  [ ! -e "$out/$name.done" ] || return 0
  if [ "$seconds" -lt 20 ]; then
    echo "$name: no time left"
    return
  fi
  step "$name" "$out/$name.done" "${launcher[@]}" sp-run eval "${precision[@]}" --chat-template \
    --samples "$samples" --quiet --no-plot --max-seconds "$seconds" "${@:3}" -o "$2"
  if [ -e "$out/logs/$name.ok" ] && ! grep -q "stopped at --max-seconds" "$out/logs/$name.log"; then
    touch "$out/$name.done"
  fi
}
for_timing=$(((timed > 0) * ${FOR_TIMING:-60}))
for_passes=$(((recalls > 0) * ${FOR_RECALL:-100} + for_timing))
ours=(--model "$model" --task "$tasks") theirs=(--model "${OTHER:-}" --profile "$out/other")
evaluate_all() {
  find_profiles
  evaluate "eval-${#names[@]}" "$for_passes" group "$ranks" -- "$out/eval" "${ours[@]}" \
    "${profiles[@]}" --method "$(list_methods "${names[@]}")" --length "$lengths" --extend
}
evaluate_other() { # on the last GPU
  evaluate other "$for_passes" on_gpu $((gpus - 1)) group "$per_gpu" -- "$out/other-eval" \
    "${theirs[@]}" --task "${OTHER_TASKS:-$tasks}" --method "$(list_other)" \
    --length "$other_lengths" --extend
}
if [ -z "${OTHER:-}" ] || [ ! -e "$out/other/profile.json" ]; then
  evaluate_other() { :; }
fi
# One GPU works at what matters most first.
if [ "$gpus" -gt 1 ]; then
  find_patterns &
  evaluate_other &
fi
evaluate_all
before=${#names[@]}
wait
[ "$gpus" -gt 1 ] || find_patterns
find_profiles
[ "${#names[@]}" -eq "$before" ] || evaluate_all
[ "$gpus" -gt 1 ] || evaluate_other

# Passes: what part of the attention the methods keep, and, in a process alone, times.
[ "$recalls" -eq 0 ] || evaluate recall "$for_timing" group "$ranks" -- "$out/eval" "${ours[@]}" \
  "${profiles[@]}" --method "$(list_recalls "${names[@]}")" --length "$plan_lengths" \
  --recall-pass "$recalls" --audit "${AUDIT:-0.25}"
time_of() { # NAME FOLDER OPTIONS...
  [ "$timed" -eq 0 ] || evaluate "$1" 0 on_gpu 0 -- "$2" "${@:3}" --method "$(list_timed)" \
    --timing-pass "$timed"
}
time_of timing "$out/eval" --model "$model" --profile "$out/tuned" \
  --task "${TIMED_TASK:-niah_multikey_2}" --length "${TIMED_LENGTHS:-8192,16384,32000}"
[ ! -e "$out/other-eval/run.json" ] || time_of other-timing "$out/other-eval" "${theirs[@]}" \
  --task niah_single_1 --length "${other_lengths#*,}"

if [ -n "${REPORT-1}" ]; then
  for name in "" other-; do
    [ -e "$out/${name}eval/run.json" ] || continue
    sp-run eval --report-only -o "$out/${name}eval" --verbose > "$out/${name}table.txt" || true
  done
  [ -e "$out/eval/summary.json" ] || exit 1
  find_profiles
  report=("$out/eval" "${profiles[@]}")
  [ ! -e "$out/curves.parquet" ] || report+=(--curves "$out/curves.parquet")
  python3 "$here/plan_report.py" "${report[@]}" > "$out/report.md"
  echo "report: $out/report.md"
fi
echo "all in $SECONDS s"
