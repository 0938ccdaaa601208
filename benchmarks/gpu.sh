#!/usr/bin/env bash
# Times the training step on a GPU with JAX, then trains a method, with 250 labels or with half of
# all labels wrong, for as long as given. It needs no TensorFlow: jax[cuda], keras, scikit-learn, matplotlib, tensorboardX, absl-py.
#
#   benchmarks/gpu.sh DATASET OUT [MINUTES] [METHOD]
#
# DATASET  npz:FILE with CIFAR-10 as images_train, labels_train, images_test, labels_test,
#          or cifar10, if its decoded arrays are in the cache.
# OUT      folder for the JSON of each part and for the run.
# MINUTES  of training, 5 unless given; with the timings before it, under 9 in all.
# METHOD   fixmatch unless given, or uda: those that have a recipe of their authors' code. The
#          moving average's momentum is 0.999 for both: UDA's own 0.9999 is for 500,000 steps.
#          beta_mixture: M-DYR-H with PreAct ResNet-18 and 50 % symmetric noise.
set -euo pipefail
usage="usage: benchmarks/gpu.sh DATASET OUT [MINUTES] [METHOD]"
dataset=${1:?$usage}
out=${2:?$usage}
minutes=${3:-5}
method=${4:-fixmatch}
export KERAS_BACKEND=jax
mkdir -p "$out"
out=$(realpath "$out")
case $dataset in npz:*) dataset=npz:$(realpath "${dataset#npz:}") ;; esac
cd "$(dirname "$0")/.."
recipe=flags/${method}_cifar10_google_code.cfg average=--ema_momentum=0.999
if [ "$method" = beta_mixture ]; then
  recipe=flags/beta_mixture_cifar10_sym_m_dyr_h.cfg average=--ema_momentum=0
fi

for precision in float32 mixed_bfloat16; do
  python3 -m ssl_noisy.benchmark --flagfile="$recipe" \
    --dataset="$dataset" --precision="$precision" --timed_steps="${TIMED_STEPS:-100}" \
    | tee "$out/${method}_step_$precision.json"
done

# As many steps as fit into the time by the figure just measured, evaluations left a tenth, and
# the schedule scaled to them.
steps=$(python3 - "$out/${method}_step_mixed_bfloat16.json" "$minutes" <<'PYTHON'
import json, sys
seconds = json.load(open(sys.argv[1]))["seconds_per_step"]
print(max(int(0.9 * 60 * float(sys.argv[2]) / seconds), 1))
PYTHON
)
run_dir=$out/${method}_run_$steps
python3 -m ssl_noisy.train --flagfile="$recipe" \
  --dataset="$dataset" --precision=mixed_bfloat16 --steps="$steps" "$average" \
  --run_dir="$run_dir"
cp "$run_dir/result.json" "$out/$(basename "$recipe" .cfg).json"
