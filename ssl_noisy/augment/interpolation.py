# SPDX-License-Identifier: Apache-2.0
"""Mixup and FMix: mixtures of two images, and of their labels."""

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


def mixing(size, seed, *, alpha, per_image=False, keep_larger=False, kept=None):
    """Draws the partner of each example of a batch and the share of the example itself.

    Args:
        size: Positive integer, the size of the batch.
        seed: A `keras.random.SeedGenerator`; its state advances.
        alpha: Float >= 0. Shares are drawn from Beta(alpha, alpha). With 0 nothing is mixed.
        per_image: Whether to draw a share for each image instead of one for the batch.
        keep_larger: Whether to replace a share by max(share, 1 - share), so that the image itself
            dominates ([Berthelot et al., 2019](https://arxiv.org/abs/1905.02249), equation 9).
        kept: Bool tensor `(size,)`. Kept examples are partners of one another, as the others are:
            a batch of the kept examples alone would be mixed in the same way. None means all.

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
    partners = ops.argsort(uniform[1])
    if kept is not None:
        # The kept ones come first, in random order; the place of each in the batch's own order.
        partners = ops.argsort(uniform[1] + ops.where(kept, 0.0, 1.0))
        order = ops.argsort(ops.arange(size) + ops.where(kept, 0, size))
        partners = ops.take(partners, ops.argsort(order))
    return ops.cast(partners, "int32"), shares


def mix(values, partners, shares):
    """Returns `shares * values + (1 - shares) * values[partners]`, row by row, in float32."""
    values = ops.cast(values, "float32")
    shares = ops.reshape(shares, (-1, *[1] * (len(values.shape) - 1)))
    return shares * values + (1 - shares) * ops.take(values, partners, axis=0)


def fmix(images, partners, shares, seed, *, decay_power=3.0):
    """Mixes images by a mask: each pixel comes from the image itself or from its partner.

    The mask is one for the batch. Its pixels are those where a `low_frequency_field` is largest:
    the share of all pixels, rounded up or down with probability 1/2 each.

    Args:
        images: Float tensor of shape `(batch, height, width, channels)`.
        partners: int32 `(batch,)`, as from `mixing`.
        shares: Float `(batch,)`. Only the first one counts, that of the batch.
        seed: A `keras.random.SeedGenerator`; its state advances.
        decay_power: Float >= 0, of `low_frequency_field`.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        [Harris et al., 2020](https://arxiv.org/abs/2002.12047), section 4.
    """
    images = ops.cast(images, "float32")
    height, width = images.shape[1:3]
    field = ops.reshape(low_frequency_field((height, width), seed, decay_power=decay_power), (-1,))
    rounding = keras.random.uniform((), dtype="float32", seed=seed)
    count = height * width * ops.cast(shares[0], "float32")
    count = ops.where(rounding > 0.5, ops.ceil(count), ops.floor(count))
    ranks = ops.argsort(ops.argsort(-field))
    mask = ops.reshape(ops.cast(ranks, "float32") < count, (1, height, width, 1))
    return ops.where(mask, images, ops.take(images, partners, axis=0))


def low_frequency_field(shape, seed, *, decay_power=3.0):
    """Draws a random field in which low frequencies prevail: the inverse FFT of Gaussian noise.

    The standard deviation of a frequency f, in cycles per pixel, is max(f, 1 / longer side) to the
    power -`decay_power`.

    Args:
        shape: Tuple `(height, width)`.
        seed: A `keras.random.SeedGenerator`; its state advances.
        decay_power: Float >= 0.

    Returns:
        A float32 tensor of shape `(height, width)`.
    """
    height, width = shape
    frequencies = np.hypot(np.fft.rfftfreq(width)[:, None], np.fft.fftfreq(height))
    scale = np.maximum(frequencies, 1 / max(shape)) ** -decay_power
    noise = keras.random.normal((2, *scale.shape), dtype="float32", seed=seed)
    real, imaginary = ops.unstack(noise * (scale / scale.max()).astype("float32"))
    # Keras has no inverse FFT of one axis. It is conj(fft(conj(x))) / height.
    real, imaginary = (ops.transpose(part) / height for part in ops.fft((real, -imaginary)))
    return ops.irfft((real, -imaginary), fft_length=width)


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
