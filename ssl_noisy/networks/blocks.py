# SPDX-License-Identifier: Apache-2.0
"""Building blocks of all networks: input, convolutions, normalization and logits."""

import keras
from keras import layers

from ssl_noisy.errors import UserError
from ssl_noisy.networks.batch_norm import BatchNormalization
from ssl_noisy.networks.normalization import Normalization


def pixels(image_shape, normalization):
    """Returns the input and its pixels, scaled to [-1, 1] or as a `Normalization` says."""
    inputs = keras.Input(image_shape, name="images")
    scale, offset, kernel = 1 / 127.5, -1.0, None
    if normalization is not None:
        means, deviations, kernel = Normalization(*normalization)
        if not len(means) == len(deviations) == image_shape[-1]:
            raise UserError(
                f"The normalization must have one mean and one deviation for each channel of "
                f"images of shape {image_shape}. Received: {len(means)} means and "
                f"{len(deviations)} deviations."
            )
        scale = [1 / float(deviation) for deviation in deviations]
        offset = [-float(mean) / float(deviation) for mean, deviation in zip(means, deviations)]
    # float32 under mixed precision too: bfloat16 would round 200.5 to 200 before scaling.
    x = layers.Rescaling(scale, offset, dtype="float32")(inputs)
    if kernel is None:
        return inputs, x
    whiten = layers.Conv2D(
        kernel.shape[-1],
        kernel.shape[0],
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(kernel),  # for copies of the network too
        trainable=False,
        name="whitening",
    )
    return inputs, whiten(x)


def convolve(x, filters, side, strides=1, initializer="he_normal", padding="same"):
    """Applies a square convolution without a bias."""
    return layers.Conv2D(
        filters, side, strides, padding, use_bias=False, kernel_initializer=initializer
    )(x)


def normalizer(momentum, epsilon, leaky_slope=0.0):
    """Returns batch normalization followed by a leaky ReLU, unless the slope is None."""

    def normalize(x):
        x = BatchNormalization(momentum=momentum, epsilon=epsilon)(x)
        if leaky_slope is None:
            return x
        return layers.LeakyReLU(leaky_slope)(x) if leaky_slope else layers.ReLU()(x)

    return normalize


def classifier(
    inputs, features, num_classes, name, kernel_start="glorot_normal", bias_start="zeros"
):
    x = layers.GlobalAveragePooling2D()(features) if len(features.shape) > 2 else features
    logits = layers.Dense(
        num_classes,
        kernel_initializer=kernel_start,
        bias_initializer=bias_start,
        dtype="float32",
        name="logits",
    )(x)
    return keras.Model(inputs, logits, name=name)
