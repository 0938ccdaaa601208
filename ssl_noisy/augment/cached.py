# SPDX-License-Identifier: Apache-2.0
"""Views that were made before the training: a step draws one of each image's rows."""

import keras
from keras import ops


def cached_view(rows, seed, *, first, count):
    """Draws one of several rows of each example, each with the same probability.

    Args:
        rows: Float tensor of shape `(batch_size, num_rows, num_features)`.
        seed: A `keras.random.SeedGenerator`; its state advances.
        first: Integer, the first row to draw.
        count: Positive integer, how many rows there are to draw, from that one on.

    Returns:
        A float32 tensor of shape `(batch_size, num_features)`.
    """
    uniform = keras.random.uniform((rows.shape[0],), dtype="float32", seed=seed)
    drawn = first + ops.minimum(ops.cast(ops.floor(count * uniform), "int32"), count - 1)
    return ops.cast(ops.take_along_axis(rows, drawn[:, None, None], axis=1)[:, 0], "float32")
