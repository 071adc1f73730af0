# shellcheck shell=bash
# The profiles that plan_evidence.sh evaluates: taken from PROFILES, or calibrated. Sourced by it.
# shellcheck disable=SC2154  # given, out, model, gpus, ranks, precision, left_out: the caller's
run=$out/run base=$out/base
plan_lengths=${PLAN_LENGTHS:-16384,32000} recall=${RECALL:-0.95}
small_output=(--quiet --overwrite)

take() { # NAME [AS]: a copy of what PROFILES holds, whole or not at all
  local target=$out/${2:-$1}
  [ -n "$given" ] && [ -e "$given/$1" ] && [ ! -e "$target" ] || return 0
  mkdir -p "$(dirname "$target")"
  rm -rf "$out/part" && cp -r "$given/$1" "$out/part" && mv "$out/part" "$target"
}
measure() { # PROCESSES RUN MODEL LENGTHS MORE...: calibrate; the command itself resumes
  local processes=$1 folder=$2 of=$3 at=$4
  shift 4
  group "$processes" sp-profile calibrate --model "$of" "${precision[@]}" --chat-template \
    --block-size 128 --min-budget "${MIN_BUDGET:-1024}" --samples 2 --length "$at" "$@" \
    -o "$folder" && touch "$folder.done"
}
tuned() { # RUN BASE RECALL TARGET MORE...
  sp-profile tune "$2" "$1" --target-recall "$3" "${@:5}" "${small_output[@]}" -o "$4"
}
one_task() {
  on_gpu 1 measure 1 "$out/run-onetask" "$model" "$plan_lengths" --task json_kv &&
    sp-profile cluster "$out/run-onetask" "${small_output[@]}" -o "$out/base-onetask" &&
    tuned "$out/run-onetask" "$out/base-onetask" "$recall" "$out/onetask" "${crossover[@]}"
}
foreign() {
  local longest=${other_lengths##*,}
  on_gpu 3 measure 1 "$out/run-other" "$OTHER" "$longest" &&
    sp-profile cluster "$out/run-other" "${small_output[@]}" -o "$out/base-other" &&
    tuned "$out/run-other" "$out/base-other" "$recall" "$out/other" --min-tokens 1024 \
      --length "$longest"
}
# Patterns of minference (on the longest prompts) and moa, on the profile's own prompts.
search_patterns() { # PROFILE
  on_gpu 2 sp-profile search minference --model "$model" --profile "$1" "${precision[@]}" \
    "${small_output[@]}" -o "$out/minference" &&
    on_gpu 2 sp-profile search moa --model "$model" --profile "$out/minference" \
      "${precision[@]}" --length "$plan_lengths" --density "${MOA_DENSITY:-0.2}" \
      "${small_output[@]}" -o "$out/patterns"
}
shape_of() { # PROFILE: the options of `sp-run bench layer`
  python3 - "$1" << 'PYTHON'
import sys
from sp_runtime.profile import load_profile
profile = load_profile(sys.argv[1])
model = profile.model
print("--heads", model.num_heads, "--kv-heads", model.num_kv_heads, "--head-dim", model.head_dim,
      "--block-size", profile.calibration.block_size, "--layers", model.num_layers)
PYTHON
}
make_profiles() { # everything that an evaluation can have, from a calibration on
  step calibrate "$run.done" measure "$ranks" "$run" "$model" \
    "${CALIBRATION:-4096,8192,16384,32000}" --peers
  step cluster "$base/profile.json" sp-profile cluster "$run" "${small_output[@]}" -o "$base"
  [ -e "$base/profile.json" ] || return 0
  # Alone: these are times.
  # shellcheck disable=SC2046  # the shape is several options
  [ -z "${LAYER-1}" ] || step layer "$out/layer.json" on_gpu 0 sp-run bench layer \
    --profile "$base" $(shape_of "$base") --quiet --method plan,vertical_slash \
    --length 4096,8192,16384,32768 --density 0.15 -o "$out/layer.json"
  crossover=(--crossover "$out/layer.json" --length "$plan_lengths")
  [ ! -e "$out/layer.json" ] || step tune "$out/tuned/profile.json" \
    tuned "$run" "$base" "$recall" "$out/tuned" "${crossover[@]}"
  # Where plan was faster nowhere, its points are for all long prompts.
  crossover=(--min-tokens "${MIN_TOKENS:-8192}" --length "$plan_lengths")
  step tune_unmeasured "$out/tuned/profile.json" \
    tuned "$run" "$base" "$recall" "$out/tuned" "${crossover[@]}"
  beside step all "$out/all/profile.json" \
    sp-profile cluster "$run" --enable all "${small_output[@]}" -o "$out/all"
  beside step r80 "$out/r80/profile.json" \
    tuned "$run" "$base" 0.80 "$out/r80" "${crossover[@]}"
  beside step curves "$out/curves.parquet" \
    sp-profile curves "$run" --quiet -o "$out/curves.parquet"
  # The planner's own controls (chance, parts left out, one task at a time) are in the step's log.
  beside step planned "$out/planned/profile.json" sp-profile plan "$run" --from "$base" \
    --name planned --controls --target-recall "$recall" \
    --min-length $((${plan_lengths%%,*} / 2 + 1)) --overwrite -o "$out/planned"
  [ -z "${ONE_TASK-1}" ] || beside step onetask "$out/onetask/profile.json" one_task
  [ -z "${OTHER:-}" ] || beside step foreign "$out/other/profile.json" foreign
  wait
}
