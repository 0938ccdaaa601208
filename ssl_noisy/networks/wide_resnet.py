# SPDX-License-Identifier: Apache-2.0
"""Wide ResNets: those of FixMatch, UDA, TorchSSL and USB differ in details that change results."""

import keras
from keras import layers

from ssl_noisy.errors import UserError
from ssl_noisy.networks import blocks

# WRN-28-10, the largest in the literature on CIFAR, has 36.5 million parameters.
MAX_DEPTH = 1000
MAX_PARAMETERS = 10**9


def wide_resnet(
    depth,
    width,
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.999,
    batch_norm_epsilon=1e-3,
    leaky_slope=0.1,
    normalization=None,
):
    """Builds the wide ResNet of FixMatch's TensorFlow code, without its convolution biases.

    The published WRN-28-2 for 10 classes has 1,469,642 parameters with biases; this one has
    1,467,610. The first unit of the first group also activates its shortcut; all other shortcuts
    take the raw input. `depth` must be 6n + 4, for n units in each of three groups; `width`
    multiplies their 16, 32 and 64 filters.

    Reference:
        [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146), as in
        [google-research/fixmatch](https://github.com/google-research/fixmatch).
    """
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def enter(x, is_first, is_wider):
        del is_wider
        activated = normalize(x)
        return activated, activated if is_first else x

    inputs, x = blocks.pixels(image_shape, normalization)
    x = _wide_units(x, depth, width, enter, normalize)
    return blocks.classifier(inputs, normalize(x), num_classes, f"wrn_{depth}_{width}")


def wide_resnet_uda(
    depth,
    width,
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-5,
    leaky_slope=0.0,
    normalization=None,
):
    """Builds the wide ResNet of UDA's code: raw input to every shortcut, plain ReLUs.

    The kernel of the last layer is initialized uniform within 1 / sqrt(num_classes).

    Reference:
        [google-research/uda](https://github.com/google-research/uda), `image/randaugment/wrn.py`.
    """
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def enter(x, is_first, is_wider):
        del is_first, is_wider
        return normalize(x), x

    inputs, x = blocks.pixels(image_shape, normalization)
    x = normalize(_wide_units(x, depth, width, enter, normalize))
    start = keras.initializers.RandomUniform(-(num_classes**-0.5), num_classes**-0.5)
    return blocks.classifier(inputs, x, num_classes, f"wrn_{depth}_{width}_uda", start)


def wide_resnet_torchssl(
    depth,
    width,
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.999,
    batch_norm_epsilon=1e-3,
    leaky_slope=0.1,
    normalization=None,
):
    """Builds the wide ResNet of TorchSSL, without its convolution biases.

    The first unit of the first group activates its input for both branches. The first unit of the
    other groups activates it for neither: its first convolution takes the raw input. (The original
    computes an unused batch normalization there, which is omitted here.) Units that keep the
    number of filters are ordinary. Strides pad both sides, as in PyTorch.

    Reference:
        [TorchSSL/TorchSSL](https://github.com/TorchSSL/TorchSSL), `models/nets/wrn.py`.
    """
    normalize = blocks.normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)
    inputs, x = blocks.pixels(image_shape, normalization)
    x = _torchssl_units(x, depth, width, normalize)
    return blocks.classifier(inputs, normalize(x), num_classes, f"wrn_{depth}_{width}_torchssl")


def wide_resnet_usb(
    depth,
    width,
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.999,
    batch_norm_epsilon=None,
    leaky_slope=0.1,
    normalization=None,
):
    """Builds the wide ResNet of USB: TorchSSL's with other batch normalization epsilons.

    The epsilons are 1e-5 within units and 1e-3 after the last unit, unless `batch_norm_epsilon`
    sets all of them.

    Reference:
        [microsoft/Semi-supervised-learning](https://github.com/microsoft/Semi-supervised-learning),
        `semilearn/nets/wrn/wrn.py`.
    """
    inside, last = (
        blocks.normalizer(
            batch_norm_momentum,
            default if batch_norm_epsilon is None else batch_norm_epsilon,
            leaky_slope,
        )
        for default in (1e-5, 1e-3)
    )
    inputs, x = blocks.pixels(image_shape, normalization)
    x = _torchssl_units(x, depth, width, inside)
    return blocks.classifier(inputs, last(x), num_classes, f"wrn_{depth}_{width}_usb")


def _torchssl_units(x, depth, width, normalize):
    """Applies the stem and the units of TorchSSL and USB."""

    def enter(x, is_first, is_wider):
        if not is_wider:
            return normalize(x), x
        x = normalize(x) if is_first else x
        return x, x

    return _wide_units(x, depth, width, enter, normalize, pads_both_sides=True)


def _wide_units(x, depth, width, enter, normalize, pads_both_sides=False):
    """Applies the stem and the units of a wide ResNet.

    `enter(x, is_first, is_wider)` returns the inputs of the first convolution of a unit and of its
    shortcut. `x` is the input of the unit, `is_first` marks the first unit of the network, and
    `is_wider` a unit with more filters than its input.
    """
    check_size(depth, width)

    def convolve(x, filters, side, strides=1):
        padding = "same"
        if pads_both_sides and strides > 1 and side > 1:
            x, padding = layers.ZeroPadding2D(side // 2)(x), "valid"
        start = keras.initializers.RandomNormal(0.0, (2 / (side * side * filters)) ** 0.5)
        return blocks.convolve(x, filters, side, strides, start, padding)

    x = convolve(x, 16, 3)
    for group in range(3):
        filters = 16 * width * 2**group
        for unit in range((depth - 4) // 6):
            strides = 2 if group and not unit else 1
            is_wider = x.shape[-1] != filters
            entering, shortcut = enter(x, group == unit == 0, is_wider)
            if strides > 1 or is_wider:
                shortcut = convolve(shortcut, filters, 1, strides)
            y = convolve(entering, filters, 3, strides)
            x = layers.Add()([convolve(normalize(y), filters, 3), shortcut])
    return x


def check_size(depth, width):
    if depth < 10 or depth % 6 != 4 or width < 1:
        below = max(10, (depth - 4) // 6 * 6 + 4)
        raise UserError(
            "A wide ResNet needs a depth of 6n + 4 with n >= 1, and a width >= 1. "
            f"Received: depth={depth}, width={width}. Nearest depths: {below}, {below + 6}."
        )
    # Two 3x3 kernels per unit in each of three groups; stem and shortcuts are small.
    parameters = 18 * (16**2 + 32**2 + 64**2) * (depth - 4) // 6 * width**2
    if depth > MAX_DEPTH or parameters > MAX_PARAMETERS:
        raise UserError(
            f"A wide ResNet may have a depth of at most {MAX_DEPTH} and {MAX_PARAMETERS:.0e} "
            f"parameters. Received: depth={depth}, width={width}, about {parameters:.1e} "
            "parameters. Choose a smaller --network."
        )
