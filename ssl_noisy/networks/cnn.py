# SPDX-License-Identifier: Apache-2.0
"""Convolutional networks without shortcuts."""

import keras
from keras import layers

from ssl_noisy.errors import UserError
from ssl_noisy.networks import blocks
from ssl_noisy.networks.layers import WeightNormConv2D, pytorch_uniform


def cnn_13(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    leaky_slope=0.1,
    weight_norm=True,
    dropout=0.1,
    normalization=None,
):
    """Builds the 13-layer network of Arazo et al. 2020, for images of at least 12x12.

    `weight_norm` applies to every layer, including the last one. `dropout` is the fraction of
    values dropped after each of the two poolings. All layers are initialized as in PyTorch (see
    `WeightNormConv2D`).

    Reference:
        [Arazo et al., 2020](https://arxiv.org/abs/1908.02983), as in
        [EricArazo/PseudoLabeling](https://github.com/EricArazo/PseudoLabeling).
    """
    if min(image_shape[:2]) < 12:
        raise UserError(f"`cnn_13` needs images of at least 12x12. Received: {image_shape}.")
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def convolve(x, filters, side, padding="same"):
        if weight_norm:
            return normalize(WeightNormConv2D(filters, side, padding)(x))
        start = pytorch_uniform(side**2 * x.shape[-1])
        return normalize(blocks.convolve(x, filters, side, initializer=start, padding=padding))

    inputs, x = blocks.pixels(image_shape, normalization)
    for filters in (128, 256):
        for _ in range(3):
            x = convolve(x, filters, 3)
        x = layers.Dropout(dropout)(layers.MaxPooling2D()(x))
    x = convolve(convolve(convolve(x, 512, 3, "valid"), 256, 1), 128, 1)
    if not weight_norm:
        return blocks.classifier(inputs, x, num_classes, "cnn_13", *[pytorch_uniform(128)] * 2)
    x = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = WeightNormConv2D(num_classes, 1, use_bias=True, dtype="float32", name="logits")(x)
    return keras.Model(inputs, layers.Flatten(dtype="float32")(x), name="cnn_13")


def cnn_9(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    leaky_slope=0.01,
    dropout=0.25,
    normalization=None,
):
    """Builds the 9-layer network of Co-teaching, for images of at least 28x28.

    `dropout` is the fraction of channels dropped after each of the two poolings, only in training.
    All layers are initialized as in PyTorch: uniform within 1 / sqrt(fan-in).

    Reference:
        [Han et al., 2018](https://arxiv.org/abs/1804.06872), table 2, as in
        [bhanML/Co-teaching](https://github.com/bhanML/Co-teaching).
    """
    if min(image_shape[:2]) < 28:
        raise UserError(f"`cnn_9` needs images of at least 28x28. Received: {image_shape}.")
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def convolve(x, filters, padding="same"):
        start = pytorch_uniform(9 * x.shape[-1])
        return normalize(blocks.convolve(x, filters, 3, initializer=start, padding=padding))

    inputs, x = blocks.pixels(image_shape, normalization)
    for filters in (128, 256):
        for _ in range(3):
            x = convolve(x, filters)
        x = layers.SpatialDropout2D(dropout)(layers.MaxPooling2D()(x))
    for filters in (512, 256, 128):
        x = convolve(x, filters, "valid")
    return blocks.classifier(inputs, x, num_classes, "cnn_9", *[pytorch_uniform(128)] * 2)


def nin(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    normalization=None,
):
    """Builds the Network-in-Network of RotNet, with four blocks of three convolutions.

    Maximum pooling after the first block and average pooling after the second one take 3x3 pixels
    in steps of 2, and pad with a zero on each side, which counts for an average. Kernels of
    convolutions start with the fan-out deviation, that of the last layer as in PyTorch.

    Reference:
        [Gidaris et al., 2018](https://arxiv.org/abs/1803.07728), as in
        [gidariss/FeatureLearningRotNet](https://github.com/gidariss/FeatureLearningRotNet), with
        `num_stages=4` and `use_avg_on_conv3=False`.
    """
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon)
    stages = ((5, (192, 160, 96)), (5, (192,) * 3), (3, (192,) * 3), (3, (192,) * 3))
    poolings = (layers.MaxPooling2D, layers.AveragePooling2D, None, None)
    inputs, x = blocks.pixels(image_shape, normalization)
    for (side, widths), pooling in zip(stages, poolings):
        for filters, size in zip(widths, (side, 1, 1)):
            start = keras.initializers.RandomNormal(0.0, (2 / (size**2 * filters)) ** 0.5)
            x = normalize(blocks.convolve(x, filters, size, initializer=start))
        if pooling is not None:
            x = pooling(3, 2)(layers.ZeroPadding2D()(x))
    return blocks.classifier(inputs, x, num_classes, "nin", pytorch_uniform(192))


def small_cnn(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-3,
    normalization=None,
):
    """Builds three convolutions, for 8x8 digits and quick trials on larger images."""
    if min(image_shape[:2]) < 2:
        raise UserError(f"`small_cnn` needs images of at least 2x2. Received: {image_shape}.")
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon)
    inputs, x = blocks.pixels(image_shape, normalization)
    x = layers.MaxPooling2D()(normalize(blocks.convolve(x, 32, 3)))
    x = normalize(blocks.convolve(normalize(blocks.convolve(x, 64, 3)), 64, 3))
    return blocks.classifier(inputs, x, num_classes, "small_cnn")


def wide_lenet(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-3,
    normalization=None,
):
    """Builds two convolutions and a wide dense layer on all their features, like LeNet-5.

    It memorizes wrong labels within minutes on a CPU, as large networks do within hours.
    """
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon)
    inputs, x = blocks.pixels(image_shape, normalization)
    for filters in (32, 64):
        x = normalize(blocks.convolve(x, filters, 3, strides=2))
    dense = layers.Dense(512, use_bias=False, kernel_initializer="he_normal")
    return blocks.classifier(
        inputs, normalize(dense(layers.Flatten()(x))), num_classes, "wide_lenet"
    )
