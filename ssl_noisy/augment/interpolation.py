# SPDX-License-Identifier: Apache-2.0
"""Mixup: convex combinations of images and of labels."""

import keras
import numpy as np
from keras import ops
from scipy import special


def mixup(images, soft_labels, seed, *, alpha, per_image=False, keep_larger=False):
    """Mixes each image and its label with those of another example of the batch.

    Args:
        images: Float tensor of shape `(batch, height, width, channels)`.
        soft_labels: Float tensor of shape `(batch, num_classes)`.
        seed, alpha, per_image, keep_larger: As `mixing`.

    Returns:
        A tuple of mixed images and labels, float32, of the same shapes.

    Reference:
        [Zhang et al., 2018](https://arxiv.org/abs/1710.09412), section 2.
    """
    partners, shares = mixing(
        images.shape[0], seed, alpha=alpha, per_image=per_image, keep_larger=keep_larger
    )
    return mix(images, partners, shares), mix(soft_labels, partners, shares)


def mixing(size, seed, *, alpha, per_image=False, keep_larger=False):
    """Draws the partner of each example of a batch and the share of the example itself.

    Args:
        size: Positive integer, the size of the batch.
        seed: A `keras.random.SeedGenerator`; its state advances.
        alpha: Float >= 0. Shares are drawn from Beta(alpha, alpha). With 0 nothing is mixed.
        per_image: Whether to draw a share for each image instead of one for the batch.
        keep_larger: Whether to replace a share by max(share, 1 - share), so that the image itself
            dominates ([Berthelot et al., 2019](https://arxiv.org/abs/1905.02249), equation 9).

    Returns:
        A tuple `(partners, shares)` for `mix`: int32 `(size,)`, the batch in random order, and
        float32 `(size,)` in [0, 1].
    """
    if alpha == 0:
        return ops.arange(size, dtype="int32"), ops.ones((size,), "float32")
    uniform = keras.random.uniform((2, size), dtype="float32", seed=seed)
    shares = _beta_quantile(uniform[0] if per_image else ops.repeat(uniform[0, :1], size), alpha)
    if keep_larger:
        shares = ops.maximum(shares, 1 - shares)
    return ops.cast(ops.argsort(uniform[1]), "int32"), shares


def mix(values, partners, shares):
    """Returns `shares * values + (1 - shares) * values[partners]`, row by row, in float32."""
    values = ops.cast(values, "float32")
    shares = ops.reshape(shares, (-1, *[1] * (len(values.shape) - 1)))
    return shares * values + (1 - shares) * ops.take(values, partners, axis=0)


def _beta_quantile(uniform, alpha):
    """Turns uniform numbers into draws from Beta(alpha, alpha), with a table of 4096 quantiles.

    `keras.random.beta` needs a gamma distribution, which XLA does not have on TensorFlow.
    """
    table = special.betaincinv(alpha, alpha, np.linspace(0, 1, 4097)).astype("float32")
    place = 4096 * uniform
    low = ops.cast(ops.floor(place), "int32")
    low = ops.minimum(low, 4095)
    below, above = ops.take(table, low), ops.take(table, low + 1)
    return below + (place - ops.cast(low, "float32")) * (above - below)
