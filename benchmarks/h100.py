# SPDX-License-Identifier: Apache-2.0
"""Compiles the training step for an NVIDIA H100, on a machine without one, and counts its work.

    python3 -m venv h100 && h100/bin/pip install -e . 'jax[cuda12]==0.10.2'
    h100/bin/python benchmarks/h100.py --network=wrn_28_2 --precision=mixed_bfloat16 --batch_size=64

It takes the flags of ssl_noisy.train. The wheels of jax[cuda12] are 3 GB; XLA's compiler in them
takes the properties of the card from `h100.txtpb`. The data are 50,000 images of CIFAR-10's shape,
and their pixels do not matter. 1 to 3 minutes on 2 cores. Prints one JSON line:

- `kernels`: what the step launches, that is, fused loops, convolutions and other calls of
  libraries, and copies. `small_kernels` move less than 2 MB: the launch is most of their time.
- `gigabytes`: what the kernels read and write. Of an operand of which a kernel only takes rows or a
  slice, such as the resident images, these count. `floor_ms` is the time that these bytes take at
  3.35 TB/s: a lower bound of the step's.
- `temporary_gigabytes`: memory of the step beside weights, state and data.
- `parts`: kernels and megabytes of each kind of layer, and of each function of the project outside
  of the network, in the forward and the backward pass. A kernel counts where its last operation
  belongs. `learner.Learner.train_step()` is the optimizer.
- `layers`: the same of each layer of the network.
- `collectives`: with `--num_devices` above 1, what the cards exchange: the number of operations
  and the bytes that each card gives, by opcode and part. XLA combines small ones of several parts.
  All other figures are those of one card.

The branches of a conditional, such as the fits of a mixture once a pass, count as one kernel
without bytes. Which algorithms cuDNN picks on the card, and real times, only a card can tell.
"""

import json
import os
import pathlib
import sys
from unittest import mock

# Before the imports, which read it.
os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu", KERAS_BACKEND="jax")

import jax  # noqa: E402
import kernels  # noqa: E402
import numpy as np  # noqa: E402
from absl import flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from ssl_noisy import command, contract, machine, work  # noqa: E402
from ssl_noisy.data.task import Task  # noqa: E402
from ssl_noisy.runs.training import make_learner  # noqa: E402


def compiled_step(settings):
    """Compiles the step of a run for an H100, and returns it with the names of its layers."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(len(images), dtype=np.int32) % 10
    given = np.where(np.arange(len(images)) < (settings.num_labels or len(images)), labels, -1)
    num_cards = settings.num_devices or 1
    # What is made for a card alone, such as `shared_pass=auto`, is made here too.
    names = [f"gpu:{i}" for i in range(num_cards)]
    with mock.patch.object(machine, "accelerators", return_value=names):
        return compiled_on(num_cards, make_learner(settings, Task(images, given)), labels)


def compiled_on(num_cards, learner, labels):
    """Compiles the step of a learner for so many H100s, and returns it as `compiled_step` does."""
    cards = topologies.get_topology_desc(
        "h100",
        "cuda",
        topology=f"1x1x{num_cards}",
        target_config=pathlib.Path(__file__).with_suffix(".txtpb").read_text(),
    )
    # As `keras.distribution.DataParallel`: each card has the state, and its part of the batch.
    mesh = jax.sharding.Mesh(cards.devices, "batch")
    copied, divided = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), ("batch",))
    )
    step = jax.jit(
        learner.train_step,
        donate_argnums=0,
        in_shardings=(copied, divided),
        out_shardings=(None, copied),
    )
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (work.jax_state(learner), learner.batches(true_labels=labels)[0]),
    )
    compiled = step.lower(*shapes).compile()
    return compiled, {one.name for network in learner.networks for one in contract.leaves(network)}


def main(settings, hlo=None):
    compiled, layers = compiled_step(settings)
    text = compiled.as_text()
    if hlo:
        pathlib.Path(hlo).write_text(text)
    result = {
        "program": "benchmarks/h100.py",
        "flags": sys.argv[1:],
        "jax": jax.__version__,
        **kernels.report(text, layers),
        "temporary_gigabytes": round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    _HLO = flags.DEFINE_string("hlo", None, "file to write the compiled program to")
    command.start("benchmarks/h100.py", lambda settings: main(settings, _HLO.value))
