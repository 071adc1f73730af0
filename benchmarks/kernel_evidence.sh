#!/usr/bin/env bash
# Everything behind the kernel figures, on one GPU: checks, kernels beside their peers, masks, a
# layer, a model.   benchmarks/kernel_evidence.sh OUT_FOLDER
#
# WHEELS=FOLDER  optional peers that this machine lacks: wheels, or fa4_site.tar.xz (whole, or cut
#                into .partNN) with an unpacked site folder
# STEPS="..."    some of: checks kernel-32k kernel-128k kernel-d64 masks layer model (all)
# PYTHON=...     the interpreter (python3)
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
steps=${STEPS:-checks kernel-32k kernel-128k kernel-d64 masks layer model}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root" || exit 1

# The commands run from the source tree: package sp_cli is the folder cli.
mkdir "$work/packages" && ln -s "$root/cli" "$work/packages/sp_cli"
export PYTHONPATH="$root:$work/packages${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
  site=$work/site && mkdir "$site"
  if compgen -G "$WHEELS/fa4_site.tar.xz*" > /dev/null; then
    archive=$WHEELS/fa4_site.tar.xz
    [ -e "$archive" ] || { archive=$work/site.tar.xz; cat "$WHEELS"/fa4_site.tar.xz.part* > "$archive"; }
    "$python" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' \
      "$archive" "$site"
  else
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
  fi
  export PYTHONPATH="$PYTHONPATH:$site:$site/nvidia_cutlass_dsl/dsl_packages"
fi
export FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED=1 PYTHONUNBUFFERED=1

step() { # step NAME SECONDS COMMAND...: its output is shown where it fails, in full with VERBOSE=1
  local name=$1 seconds=$2 code
  shift 2
  [[ " $steps " == *" $name "* ]] || return 0
  local start=$SECONDS
  timeout --kill-after=10 "$seconds" "$@" > "$work/$name.log" 2>&1
  code=$?
  echo "== $name: exit $code after $((SECONDS - start)) s"
  if [ "$code" -ne 0 ] || [ -n "${VERBOSE:-}" ]; then tail -n 40 "$work/$name.log"; fi
}
bench() { # bench NAME SECONDS KIND OPTIONS...: `sp-run bench KIND OPTIONS`, into OUT/NAME.json
  local name=$1 seconds=$2
  shift 2
  step "$name" "$seconds" "$python" -c 'from sp_cli.run_main import main; main()' \
    bench "$@" -o "$out/$name.json" --overwrite
}
all="--density 1 --density 0.25 --density 0.1 --density 0.05"
narrow="--head-dim 64 --heads 9 --kv-heads 3"

step checks 150 "$python" tests/kernel/gpu_check.py --quick --no-timing
# shellcheck disable=SC2086  # lists of options
bench kernel-32k 150 kernel --length 32768 $all --portable --mass --roofline
# FlexAttention is left out: compiling and making its masks takes minutes at this length.
# shellcheck disable=SC2086
bench kernel-128k 150 kernel --length 131072 $all --portable --mass --roofline \
  --peer fa4-sparse,flexprefill,fa4,cudnn
# shellcheck disable=SC2086
bench kernel-d64 120 kernel --length 32768 $narrow --density 1 --density 0.25 --density 0.05 \
  --peer fa4-sparse,flex,cudnn
bench masks 120 kernel --length 32768 --length 131072 --density 0.1 --mask random \
  --mask shared --mask neighbours --mask pivot --mask planted \
  --mask recorded:profiles/smollm2-135m-32k --peer none
methods=vertical_slash,share:paper:delta=1.01,plan,recorded:profiles/smollm2-135m-32k
bench layer 200 layer --method "$methods"
bench model 300 model --repeat 2 --method "$methods"
"$python" benchmarks/kernel_ratios.py "$out" | tee "$out/ratios.txt"
if compgen -G "$out/kernel-*k.json" > /dev/null; then
  "$python" benchmarks/plot_kernel.py "$out/kernel.png" "$out"/kernel-*k.json
fi
