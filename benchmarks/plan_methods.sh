# shellcheck shell=bash
# The methods that plan_evidence.sh evaluates, as lists for `sp-run eval --method`. Sourced.
# Every method runs from 1024 tokens on, so that all are compared at 4k too.
few=${FEW:-10}
small=min_budget=256 planned=min_tokens=1024:local_blocks=1:last_rows=1:row_slack=2
dense_and_slash="dense,vertical_slash:gamma=0.9,vertical_slash:gamma={0.7,0.8}:$small"
points="point:{fast,balanced,safe}:$planned"
queries="flexprefill:gamma=0.95,flexprefill:gamma=0.8:$small,xattention:tau={0.8,0.9}"
rules="share:{paper,release}:gamma=0.9 share:{paper,release}:gamma=0.8:$small"
ablated=share:paper:gamma=0.8:$small # one of the rules above
sampled="sampled:gamma={0.8,0.9}:stride={16,32}:local_blocks=1"
exact="sampled:gamma={0.8,0.9,0.95}:stride=1:local_blocks=1"

list_methods() { # NAMES of the profiles there are beside the first one; most important first
  local main=$dense_and_slash,$points rest name method on=
  for name in "$@"; do
    case $name in
      r[0-9]*) main+=",point:balanced:$planned%$name" ;;
      narrow) on=%$name main+=",$points%$name" ;;
    esac
  done
  main+=",$queries"
  for method in $rules; do main+=",$method$on"; done
  # Cheap masks, the exact mask as an oracle, ablations, controls, and the rest.
  rest="$sampled ${exact/0.8,0.9,0.95/0.8,0.9} point:{fast,balanced}:${planned/blocks=1/blocks=0}"
  rest+=" point:{fast,balanced}:${planned/rows=1/rows=0} point:{fast,balanced}:${planned/slack=2/slack=1}"
  [ -z "$on" ] || rest+=" share:{paper,release}:gamma=0.8:$small"
  for name in "$@"; do
    case $name in
      lenders | onetask | other) rest+=" point:balanced:$planned%$name" ;;
      all) rest+=" $ablated:delta=1.01 $ablated:tau=0 $ablated%all $ablated:delta=1.01%all" ;;
      random) rest+=" $ablated%random" ;;
      patterns) rest+=" minference%patterns moa%patterns" ;;
    esac
  done
  rest+=" streaming:sink=128:window={1024,4096} lm_infinite infllm:window={1024,4096}"
  rest+=" hip:top_k={512,2048}"
  for method in $rest; do main+=",$method@$few"; done
  echo "$main${EXTRA:+,$EXTRA}"
}
# Of the other model, whose own plan is the first profile.
list_other() { echo "$dense_and_slash,$points,$queries,${rules/ /,},$sampled"; }
# Those whose time is taken are among those evaluated.
list_timed() {
  echo "$dense_and_slash,$points,$queries,share:{paper,release}:gamma=0.8:$small,$sampled"
}
list_recalls() { # NAMES: of profiles, as above. At recalls on both sides of 0.95
  local points=$points name
  for name in "$@"; do
    [ "$name" != upper ] || points+=",point:safe:$planned%upper"
  done
  local slash="vertical_slash:gamma={0.8,0.9,0.95}" cheap="${sampled/0.8,0.9/0.95,0.97}"
  local rows="sampled:gamma={0.9,0.95}:stride={1,32}:local_blocks=1:row_slack=1"
  local peers="flexprefill:gamma={0.9,0.95},xattention:tau={0.9,0.95,0.98}"
  echo "$points,$slash,$peers,$cheap,$exact,$rows"
}
