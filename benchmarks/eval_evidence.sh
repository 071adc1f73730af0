#!/usr/bin/env bash
# Accuracy and cost of every method on the retrieval tasks at 4k to 32k tokens, on GPUs.
#   benchmarks/eval_evidence.sh MODEL PROFILE OUT [RANKS_PER_GPU]
# Variables: SAMPLES (25) and FEW (10) prompts a task and length; LENGTHS; TASKS; MAX_SECONDS (420):
# no cell begins later, and the same command goes on; TIMED (5) prompts of the timing pass, 0: none;
# PROFILES: further profiles as NAME=PATH, such as "r80=DIR r95=DIR", each adds a point of the plan;
# EXTRA: further methods for the list.
set -euo pipefail
model=$1 profile=$2 out=$3 ranks=${4:-4}
samples=${SAMPLES:-25} few=${FEW:-10} timed=${TIMED:-5}
lengths=${LENGTHS:-4096,8192,16384,32000} tasks=${TASKS:-retrieval}

# Papers' settings, and points of equal method with smaller budgets: at 4k tokens the published
# minimum budget of 1024 is nearly dense.
methods="dense"
methods+=",vertical_slash:gamma={0.9,0.95}"
methods+=",vertical_slash:gamma={0.7,0.8,0.9}:min_budget=256"
methods+=",flexprefill:gamma=0.95"
methods+=",flexprefill:gamma={0.8,0.9}:min_budget=256"
methods+=",xattention:tau={0.8,0.9}"
methods+=",share:paper:gamma=0.9,share:paper:gamma={0.8,0.9}:min_budget=256"
methods+=",share:release:gamma=0.9,share:release:gamma={0.8,0.9}:min_budget=256"
methods+=",plan"
profiles=(--profile "$profile")
for named in ${PROFILES:-}; do
  profiles+=(--profile "$named")
  methods+=",plan%${named%%=*}"
done
[ -n "${PROFILES:-}" ] || methods+=",plan:min_budget=256"
methods+=",streaming:sink=128:window={1024,4096}@$few,lm_infinite@$few"
methods+=",infllm:window={1024,4096}@$few,hip:top_k={512,2048}@$few"
methods+=",sampled:gamma={0.8,0.9}@$few"
patterns=$(python3 - "$profile" <<'PYTHON'
import json, pathlib, sys
profile = pathlib.Path(sys.argv[1])
document = json.loads((profile / "profile.json" if profile.is_dir() else profile).read_text())
found = document.get("head_patterns") or {}
print(*(name for name in ("minference", "moa") if found.get(name)))
PYTHON
)
for name in $patterns; do methods+=",$name@$few"; done
[ -z "${EXTRA:-}" ] || methods+=",$EXTRA"

gpus=$(python3 -c 'import torch; print(torch.cuda.device_count())')
common=(--model "$model" "${profiles[@]}" --methods "$methods" --lengths "$lengths"
  --samples "$samples" --dtype bfloat16 --device cuda --chat-template -o "$out")
echo "methods: $methods"
echo "patterns in the profile: ${patterns:-none; minference and moa are left out}"
start=$SECONDS
torchrun --standalone --nproc-per-node $((gpus * ranks)) --no-python \
  sp-run eval "${common[@]}" --tasks "$tasks" --max-seconds "${MAX_SECONDS:-420}" --quiet --no-plot \
  > "$out.main.log"
echo "evaluated in $((SECONDS - start)) s by $((gpus * ranks)) processes on $gpus GPUs"
if [ "$timed" -gt 0 ]; then
  start=$SECONDS
  CUDA_VISIBLE_DEVICES=0 sp-run eval "${common[@]}" --tasks niah_multikey_2 \
    --timing-pass "$timed" --quiet --no-plot > "$out.timing.log"
  echo "timed in $((SECONDS - start)) s"
fi
sp-run eval --report-only -o "$out" --verbose | tee "$out/table.txt"
