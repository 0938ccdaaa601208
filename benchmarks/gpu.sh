#!/usr/bin/env bash
# Times the training step on a GPU with JAX, then trains FixMatch with 250 labels for as long as
# given. It needs no TensorFlow: jax[cuda], keras, scikit-learn, matplotlib, tensorboardX, absl-py.
#
#   benchmarks/gpu.sh DATASET OUT [MINUTES]
#
# DATASET  npz:FILE with CIFAR-10 as images_train, labels_train, images_test, labels_test,
#          or cifar10, if its decoded arrays are in the cache.
# OUT      folder for the JSON of each part and for the run.
# MINUTES  of training, 5 unless given; with the timings before it, under 9 in all.
set -euo pipefail
dataset=${1:?usage: benchmarks/gpu.sh DATASET OUT [MINUTES]}
out=${2:?usage: benchmarks/gpu.sh DATASET OUT [MINUTES]}
minutes=${3:-5}
export KERAS_BACKEND=jax
mkdir -p "$out"
out=$(realpath "$out")
case $dataset in npz:*) dataset=npz:$(realpath "${dataset#npz:}") ;; esac
cd "$(dirname "$0")/.."

for precision in float32 mixed_bfloat16; do
  python3 -m ssl_noisy.benchmark --flagfile=flags/fixmatch_cifar10_250_google_code.cfg \
    --dataset="$dataset" --precision="$precision" --timed_steps="${TIMED_STEPS:-100}" \
    | tee "$out/step_$precision.json"
done

# As many steps as fit into the time by the figure just measured, evaluations left a tenth, and
# the schedule scaled to them.
steps=$(python3 - "$out/step_mixed_bfloat16.json" "$minutes" <<'EOF'
import json, sys
seconds = json.load(open(sys.argv[1]))["seconds_per_step"]
print(max(int(0.9 * 60 * float(sys.argv[2]) / seconds), 1))
EOF
)
python3 -m ssl_noisy.train --flagfile=flags/fixmatch_cifar10_250_google_code.cfg \
  --dataset="$dataset" --precision=mixed_bfloat16 --steps="$steps" --run_dir="$out/run_$steps"
cp "$out/run_$steps/result.json" "$out/fixmatch_cifar10_250.json"
