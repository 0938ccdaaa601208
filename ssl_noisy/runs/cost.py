# SPDX-License-Identifier: Apache-2.0
"""What a run costs, estimated before it starts."""

import time

import keras
import numpy as np

from ssl_noisy import contract, devices, machine
from ssl_noisy.batches import stage_of
from ssl_noisy.errors import UserError


def check_memory(learner):
    """Raises a `UserError` if a step cannot fit into the memory of this machine.

    A step keeps the outputs of all layers for the backward pass. Measured on a CPU, it took 0.9 to
    1.3 times their size on TensorFlow (WRN-28-2, WRN-10-2, ResNet-34 and the small CNN) and 1.6 to
    2.8 times on JAX. On an accelerator the bound is 1 TB, which only catches typing errors: Keras
    and TensorFlow have no public function for the size of its memory, and XLA may keep much less
    than all outputs there.
    """
    outputs = contract.outputs_per_image(learner.network)
    size = keras.backend.standardize_dtype(learner.network.compute_dtype)
    needed = learner.images_per_step() * outputs * (4 if size == "float32" else 2)
    limit = 10**12 if machine.accelerators() else machine.memory()
    if needed > limit:
        sizes = ("batch_size", "unlabeled_ratio", "unlabeled_batch_size", "num_strong_views")
        given = [f"--{n}={getattr(learner, n)}" for n in sizes if hasattr(learner, n)]
        raise UserError(
            f"A step of {learner.images_per_step():,} images through {learner.network.name} needs "
            f"about {needed / 1e9:,.0f} GB of memory, but {limit / 1e9:,.0f} GB are available. "
            f"Received: {' '.join(given)}. Lower one of them."
        )


def duration(learner, steps, batch_size=250):
    """Estimates the time of a training. The learner stays unchanged.

    A step takes four times as long as a forward pass of its images: the backward pass costs two,
    and augmentation, the views for pseudo-labels and the update cost about one more.

    Args:
        learner: A `Learner` with a task.
        steps: Integer, the number of steps left.
        batch_size: Positive integer, images at a time. The batch size of the evaluations needs no
            second compilation.

    Returns:
        Seconds. On two busy cores the estimate was 0.3 to 2 times the real time (WRN-28-2,
        WRN-10-2 and the small CNN, six methods).
    """
    images = np.zeros((batch_size, *learner.task.image_shape), "uint8")
    times = []
    for _ in range(3):  # the first call compiles; on JAX the second does too
        began = time.monotonic()
        learner.network.predict_on_batch(devices.divided(images))
        times.append(time.monotonic() - began)
    images = learner.images_per_step() * steps * _mean_size(learner, steps)
    return 4 * min(times) / batch_size * images


def _mean_size(learner, steps):
    """Returns the mean size of the batches of the last `steps`, as a fraction of the final one."""
    stages = learner.stages()
    if len(stages) == 1:
        return 1.0

    def drawn(step):
        stage = stage_of(step, stages)
        return sum(stage.drawn_at(step, name) for name in stage.sizes)

    first = max(learner.steps - steps, 0)
    final = sum(stages[-1].sizes.values()) * (learner.steps - first)
    return (drawn(learner.steps) - drawn(first)) / final


def describe(learner, steps, batch_size=250):
    """Returns a text with the number of steps left and, if they take long, the time."""
    text = f"{steps:,} steps"
    if steps * learner.images_per_step() < 50_000:  # too short for an estimate
        return text
    minutes = duration(learner, steps, batch_size) / 60
    if minutes < 10:
        return text
    units = (("days", 24 * 60), ("hours", 60), ("minutes", 1))
    unit, size = next((unit, minutes / size) for unit, size in units if minutes >= 2 * size)
    size = f"{size:,.0f} {unit}"
    return f"{text}, about {size} on this machine (--steps shortens it)"
