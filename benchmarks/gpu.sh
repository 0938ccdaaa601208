#!/usr/bin/env bash
# benchmarks/gpu.py with JAX: FixMatch on CIFAR-10 with 250 labels, WRN-28-2.
#
#   benchmarks/gpu.sh DATASET OUTPUT [other flags of gpu.py, such as --minutes=2 or --peer='COMMAND']
#
# DATASET  npz:FILE with CIFAR-10 as images_train, labels_train, images_test, labels_test,
#          or cifar10, if its decoded arrays are in the cache.
# OUTPUT   JSON file.
#
# It needs jax[cuda12], keras, scikit-learn, matplotlib, tensorboardX and absl-py.
set -euo pipefail
usage="usage: benchmarks/gpu.sh DATASET OUTPUT [flags of gpu.py]"
dataset=${1:?$usage}
output=${2:?$usage}
shift 2
case $dataset in npz:*) dataset=npz:$(realpath "${dataset#npz:}") ;; esac
project=$(realpath "$(dirname "$0")/..")
export KERAS_BACKEND=jax PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
exec python3 "$project/benchmarks/gpu.py" --method=fixmatch --network=wrn_28_2 --num_labels=250 \
  --dataset="$dataset" --output="$output" "$@"
