# SPDX-License-Identifier: Apache-2.0
"""What a run costs, estimated before it starts."""

import math
import time

import keras
import numpy as np

from ssl_noisy import machine
from ssl_noisy.errors import UserError


def check_memory(learner):
    """Raises the `UserError` of a step that cannot fit into the memory of this machine.

    A step keeps what every layer gives out, for the backward pass. Measured on a CPU it took 0.9
    to 1.3 times that on TensorFlow (WRN-28-2, WRN-10-2, ResNet-34 and the small CNN), and 1.6 to
    2.8 times on JAX. Keras does not tell how much memory an accelerator has.
    """
    outputs = sum(math.prod(layer.output.shape[1:]) for layer in learner.network.layers)
    size = keras.backend.standardize_dtype(learner.network.compute_dtype)
    needed = learner.images_per_step() * outputs * (4 if size == "float32" else 2)
    limit = 10**12 if machine.accelerators() else machine.memory()
    if needed > limit:
        sizes = ("batch_size", "unlabeled_ratio", "unlabeled_batch_size", "num_strong_views")
        given = [f"--{n}={getattr(learner, n)}" for n in sizes if hasattr(learner, n)]
        raise UserError(
            f"A step of {learner.images_per_step():,} images through {learner.network.name} takes "
            f"about {needed / 1e9:,.0f} GB of memory, and there are {limit / 1e9:,.0f} GB. "
            f"Received: {' '.join(given)}. Lower one of them."
        )


def duration(learner, steps, batch_size=250):
    """Estimates the time of a training, without a change to the learner.

    A step takes four times as long as its images do in a forward pass: a backward pass costs two,
    and views that only tell a pseudo-label, distortions and the update about one more.

    Args:
        learner: A `Learner` with a task.
        steps: Integer, how many steps there are to do.
        batch_size: Positive integer, images at a time, as in the evaluations: the compiled
            function is theirs.

    Returns:
        Seconds. On two busy cores they were 0.3 to 2 times what the training took (WRN-28-2,
        WRN-10-2 and the small CNN, six methods).
    """
    images = np.zeros((batch_size, *learner.task.image_shape), "uint8")
    times = []
    for _ in range(3):  # the first compiles, on JAX the second too
        began = time.monotonic()
        learner.network.predict_on_batch(images)
        times.append(time.monotonic() - began)
    return 4 * min(times) / batch_size * learner.images_per_step() * steps


def describe(learner, steps, batch_size=250):
    """Returns how many steps there are to do, and how long they take unless that is short."""
    text = f"{steps:,} steps"
    if steps * learner.images_per_step() < 50_000:  # an estimate would cost more than it tells
        return text
    minutes = duration(learner, steps, batch_size) / 60
    if minutes < 10:
        return text
    # No more digits than such an estimate has.
    units = (("days", 24 * 60), ("hours", 60), ("minutes", 1))
    unit, size = next((unit, minutes / size) for unit, size in units if minutes >= 2 * size)
    size = f"{size:,.0f} {unit}"
    return f"{text}, about {size} on this machine (--steps shortens it)"
