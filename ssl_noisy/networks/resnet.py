# SPDX-License-Identifier: Apache-2.0
"""ResNets for small images."""

from keras import layers

from ssl_noisy.networks import blocks


def preact_resnet_18(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    normalization=None,
):
    """Builds the pre-activation ResNet-18 of the M-correction code.

    Projections are 1x1 convolutions of the activated input, without normalization. As in that
    code, and unlike the paper, nothing normalizes the last unit before pooling.

    Reference:
        [He et al., 2016](https://arxiv.org/abs/1603.05027), as used by
        [Arazo et al., 2019](https://arxiv.org/abs/1904.11238).
    """
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon)
    inputs, x = blocks.pixels(image_shape, normalization)
    x = normalize(blocks.convolve(x, 64, 3))
    for filters in (64, 128, 256, 512):
        for _ in range(2):
            strides = 1 if x.shape[-1] == filters else 2
            activated = normalize(x)
            shortcut = x if strides == 1 else blocks.convolve(activated, filters, 1, strides)
            y = blocks.convolve(activated, filters, 3, strides)
            x = layers.Add()([blocks.convolve(normalize(y), filters, 3), shortcut])
    return blocks.classifier(inputs, x, num_classes, "preact_resnet_18")


def resnet_18(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    normalization=None,
):
    """Builds ResNet-18 with a 3x3 stem and no first pooling, as ProMix's code does.

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1512.03385), table 1;
        [Justherozen/ProMix](https://github.com/Justherozen/ProMix).
    """
    units = (2, 2, 2, 2)
    batch_norm = (batch_norm_momentum, batch_norm_epsilon)
    return _basic_resnet("resnet_18", units, image_shape, num_classes, batch_norm, normalization)


def resnet_34(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    normalization=None,
):
    """Builds ResNet-34 with a 3x3 stem and no first pooling, as the CIFAR-N code does.

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1512.03385), table 1;
        [UCSC-REAL/cifar-10-100n](https://github.com/UCSC-REAL/cifar-10-100n).
    """
    units = (3, 4, 6, 3)
    batch_norm = (batch_norm_momentum, batch_norm_epsilon)
    return _basic_resnet("resnet_34", units, image_shape, num_classes, batch_norm, normalization)


def _basic_resnet(name, units, image_shape, num_classes, batch_norm, normalization):
    """Builds a ResNet of two-layer units, whose shortcuts are projected where the size changes."""
    normalize = blocks.normalizer(*batch_norm)
    linear = blocks.normalizer(*batch_norm, leaky_slope=None)

    def project(x, filters):
        return linear(blocks.convolve(x, filters, 1, 2))

    inputs, x = blocks.pixels(image_shape, normalization)
    stages = tuple(zip((64, 128, 256, 512), units))
    return _resnet(name, stages, project, normalize, linear, inputs, x, num_classes)


def resnet_32(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    normalization=None,
):
    """Builds ResNet-32 for CIFAR as AUM uses it: its shortcuts have no parameters.

    Where the size changes, a shortcut is 2x2 average pooling with channels of zeros appended.

    Reference:
        [He et al., 2015](https://arxiv.org/abs/1512.03385), section 4.2, option A;
        [Pleiss et al., 2020](https://arxiv.org/abs/2001.10528).
    """
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon)
    linear = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope=None)

    def pool_and_pad(x, filters):
        padding = ((0, 0), (0, filters - x.shape[-1]))
        x = layers.AveragePooling2D(2, padding="same")(x)
        # "channels_first" makes the layer pad the last two axes: width by 0, and the channels.
        return layers.ZeroPadding2D(padding, data_format="channels_first")(x)

    inputs, x = blocks.pixels(image_shape, normalization)
    stages = ((16, 5), (32, 5), (64, 5))
    return _resnet("resnet_32", stages, pool_and_pad, normalize, linear, inputs, x, num_classes)


def _resnet(name, stages, resize, normalize, linear, inputs, x, num_classes):
    x = normalize(blocks.convolve(x, stages[0][0], 3))
    for filters, num_units in stages:
        for _ in range(num_units):
            strides = 1 if x.shape[-1] == filters else 2
            shortcut = x if strides == 1 else resize(x, filters)
            y = normalize(blocks.convolve(x, filters, 3, strides))
            x = layers.Add()([linear(blocks.convolve(y, filters, 3)), shortcut])
            x = layers.ReLU()(x)
    return blocks.classifier(inputs, x, num_classes, name)
