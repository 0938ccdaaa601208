# SPDX-License-Identifier: Apache-2.0
"""Classifiers for small images: functional Keras models from raw pixels to logits.

Every network maps pixels in 0..255, of shape `(batch_size, height, width, channels)`, to float32
logits of shape `(batch_size, num_classes)`. Its first layer scales or standardizes the pixels, so
augmentation, padding and cutout work on raw pixels. No convolution has a bias, since batch
normalization cancels it. Strides pad as TensorFlow does ("same"), except in the TorchSSL and USB
wide ResNets. Kernels start He normal, except in the wide ResNets, `cnn_13` and `cnn_9`. `build`
describes the arguments.
"""

import contextlib
import difflib
import functools
import inspect
import re

import keras
import numpy as np
from keras import layers, ops

from ssl_noisy import contract, schedules
from ssl_noisy.errors import UserError

# Of a wide ResNet. WRN-28-10, the largest in the literature on CIFAR, has 36.5 million parameters.
MAX_DEPTH = 1000
MAX_PARAMETERS = 10**9


@keras.saving.register_keras_serializable(package="ssl_noisy")
class BatchNormalization(layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, by TensorFlow's fused kernel where that applies.

    The numbers are Keras's: the biased batch variance normalizes, and enters the moving average
    (PyTorch puts the unbiased one there). `keras.ops` has no fused operation. On two cores of an
    AMD EPYC, forward and backward of `(128, 32, 32, 32)` with a leaky ReLU took 28 ms composed of
    moments and products, 7 ms fused. XLA fuses by itself, so JAX keeps the composed form.

    Departure: the running statistics' momentum warms up (`schedules.warmed_up`), so that they
    forget their initial values, mean 0 and variance 1, in a short training too. A pass in training
    mode is an update. The last weight, `num_updates`, counts them.
    """

    def build(self, input_shape):
        super().build(input_shape)
        # Floating point, for TensorFlow keeps integers on the host; exact up to 2^24.
        self.num_updates = self.add_weight(
            (), "zeros", "float32", name="num_updates", trainable=False, autocast=False
        )

    def plain_weights(self):
        """Returns the arrays of a `keras.layers.BatchNormalization` that computes the same."""
        return self.get_weights()[:-1]

    @contextlib.contextmanager
    def next_update(self):
        """Within this context `momentum` is the share that the next update keeps."""
        momentum = self.momentum
        self.num_updates.assign_add(1.0)
        self.momentum = schedules.warmed_up(momentum, self.num_updates)
        try:
            yield
        finally:
            self.momentum = momentum

    def call(self, inputs, training=None, mask=None):
        updates = training and self.trainable
        with self.next_update() if updates else contextlib.nullcontext():
            return self.normalize(inputs, training, mask)

    def normalize(self, inputs, training, mask):
        custom = self.renorm or self.synchronized or not (self.scale and self.center)
        on_last_axis = len(inputs.shape) == 4 and self.axis in (-1, 3)
        half_or_single = keras.backend.standardize_dtype(inputs.dtype) != "float64"
        fusable = on_last_axis and half_or_single and mask is None and not custom
        if keras.backend.backend() != "tensorflow" or not fusable:
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf  # Imported here, so that the kit runs on JAX without TensorFlow.

        use_batch = bool(training) and self.trainable
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=ops.convert_to_tensor(self.gamma),
            offset=ops.convert_to_tensor(self.beta),
            mean=ops.convert_to_tensor(self.moving_mean),
            variance=ops.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=use_batch,
        )
        if use_batch:
            count = ops.cast(ops.size(inputs) // inputs.shape[-1], variance.dtype)
            variance *= (count - 1) / count  # The kernel returns the unbiased one.
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable(package="ssl_noisy")
class WeightNormConv2D(layers.Layer):
    """Convolution whose kernel is a direction times a gain for each filter.

    A layer of its own, for Keras 3 has no weight normalization and the kernel of its `Conv2D`
    cannot be recomputed in each call. The first four arguments are those of `Conv2D`, with square
    kernels, but kernel and bias start as PyTorch's: uniform within 1 / sqrt(fan-in), 0.41 times
    the deviation of He normal. The gain starts as the norm of the direction.

    Reference:
        [Salimans and Kingma, 2016](https://arxiv.org/abs/1602.07868).
    """

    def __init__(self, filters, kernel_size, padding="same", use_bias=False, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.kernel_size = filters, kernel_size
        self.padding, self.use_bias = padding, use_bias

    def build(self, input_shape):
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        fan_in = self.kernel_size**2 * input_shape[-1]
        self.kernel = self.add_weight(
            shape, _pytorch_uniform(fan_in), name="kernel", autocast=False
        )
        self.gain = self.add_weight((self.filters,), "ones", name="gain", autocast=False)
        self.gain.assign(1 / self._scale())
        if self.use_bias:
            self.bias = self.add_weight((self.filters,), _pytorch_uniform(fan_in), name="bias")

    def _scale(self):
        return self.gain * ops.rsqrt(ops.sum(ops.square(self.kernel), axis=(0, 1, 2)))

    def call(self, inputs):
        kernel = ops.cast(self.kernel * self._scale(), inputs.dtype)
        outputs = ops.conv(inputs, kernel, padding=self.padding)
        return outputs + self.bias if self.use_bias else outputs

    def plain_weights(self):
        """Returns the arrays of a `Conv2D` that computes the same: the kernel and any bias."""
        return [ops.convert_to_numpy(self.kernel * self._scale()), *self.get_weights()[2:]]

    def get_config(self):
        own = ("filters", "kernel_size", "padding", "use_bias")
        return super().get_config() | {name: getattr(self, name) for name in own}


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

    The published WRN-28-2 for 10 classes has 1,469,642 parameters with them, this 1,467,610. The
    first unit of the first group also activates its shortcut; all others take the raw input.
    `depth` is 6n + 4 for n units in each of three groups, else a ValueError; `width` multiplies
    their 16, 32 and 64 filters.

    Reference:
        [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146), as in
        [google-research/fixmatch](https://github.com/google-research/fixmatch).
    """
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def enter(x, is_first, is_wider):
        del is_wider
        activated = normalize(x)
        return activated, activated if is_first else x

    inputs, x = _pixels(image_shape, normalization)
    x = _wide_units(x, depth, width, enter, normalize)
    return _classifier(inputs, normalize(x), num_classes, f"wrn_{depth}_{width}")


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
    """Builds the wide ResNet of UDA's code: every shortcut takes the raw input, plain ReLUs.

    The kernel of the last layer starts uniform within 1 / sqrt(num_classes).

    Reference:
        [google-research/uda](https://github.com/google-research/uda), `image/randaugment/wrn.py`.
    """
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def enter(x, is_first, is_wider):
        del is_first, is_wider
        return normalize(x), x

    inputs, x = _pixels(image_shape, normalization)
    x = normalize(_wide_units(x, depth, width, enter, normalize))
    start = keras.initializers.RandomUniform(-(num_classes**-0.5), num_classes**-0.5)
    return _classifier(inputs, x, num_classes, f"wrn_{depth}_{width}_uda", start)


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

    The first unit of the first group activates its input for both branches. That of the other
    groups activates it for neither: its first convolution takes the raw input. (The code computes
    a batch normalization there that nothing uses; this leaves it out.) A unit that keeps the
    number of filters is an ordinary one. Strides pad both sides, as in PyTorch.

    Reference:
        [TorchSSL/TorchSSL](https://github.com/TorchSSL/TorchSSL), `models/nets/wrn.py`.
    """
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)
    inputs, x = _pixels(image_shape, normalization)
    x = _wide_units(x, depth, width, _enter_torchssl(normalize), normalize, pads_both_sides=True)
    return _classifier(inputs, normalize(x), num_classes, f"wrn_{depth}_{width}_torchssl")


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

    They are 1e-5 within the units and 1e-3 after the last one, unless `batch_norm_epsilon` sets
    all of them.

    Reference:
        [microsoft/Semi-supervised-learning](https://github.com/microsoft/Semi-supervised-learning),
        `semilearn/nets/wrn/wrn.py`.
    """
    inside, last = (
        _normalizer(
            batch_norm_momentum,
            default if batch_norm_epsilon is None else batch_norm_epsilon,
            leaky_slope,
        )
        for default in (1e-5, 1e-3)
    )
    inputs, x = _pixels(image_shape, normalization)
    x = _wide_units(x, depth, width, _enter_torchssl(inside), inside, pads_both_sides=True)
    return _classifier(inputs, last(x), num_classes, f"wrn_{depth}_{width}_usb")


def _enter_torchssl(normalize):
    def enter(x, is_first, is_wider):
        if not is_wider:
            return normalize(x), x
        x = normalize(x) if is_first else x
        return x, x

    return enter


def _wide_units(x, depth, width, enter, normalize, pads_both_sides=False):
    """Applies the stem and the units of a wide ResNet.

    `enter(x, is_first, is_wider)` returns what the first convolution of a unit and its shortcut
    take, for the input `x`, the first unit of all, and units with more filters than their input.
    """
    _check_wide_resnet(depth, width)

    def convolve(x, filters, side, strides=1):
        padding = "same"
        if pads_both_sides and strides > 1 and side > 1:
            x, padding = layers.ZeroPadding2D(side // 2)(x), "valid"
        start = keras.initializers.RandomNormal(0.0, (2 / (side * side * filters)) ** 0.5)
        return _convolve(x, filters, side, strides, start, padding)

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


def _check_wide_resnet(depth, width):
    if depth < 10 or depth % 6 != 4 or width < 1:
        below = max(10, (depth - 4) // 6 * 6 + 4)
        raise UserError(
            "A wide ResNet needs a depth of 6n + 4 with n >= 1, and a width >= 1. "
            f"Received: depth={depth}, width={width}. Nearest depths: {below}, {below + 6}."
        )
    # Two 3x3 kernels a unit in each of the three groups; the stem and shortcuts are small.
    parameters = 18 * (16**2 + 32**2 + 64**2) * (depth - 4) // 6 * width**2
    if depth > MAX_DEPTH or parameters > MAX_PARAMETERS:
        raise UserError(
            f"A wide ResNet may have a depth of at most {MAX_DEPTH} and {MAX_PARAMETERS:.0e} "
            f"parameters. Received: depth={depth}, width={width}, about {parameters:.1e} "
            "parameters. Choose a smaller --network."
        )


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
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon)
    inputs, x = _pixels(image_shape, normalization)
    x = normalize(_convolve(x, 64, 3))
    for filters in (64, 128, 256, 512):
        for _ in range(2):
            strides = 1 if x.shape[-1] == filters else 2
            activated = normalize(x)
            shortcut = x if strides == 1 else _convolve(activated, filters, 1, strides)
            y = _convolve(activated, filters, 3, strides)
            x = layers.Add()([_convolve(normalize(y), filters, 3), shortcut])
    return _classifier(inputs, x, num_classes, "preact_resnet_18")


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
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon)
    linear = _normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope=None)

    def project(x, filters):
        return linear(_convolve(x, filters, 1, 2))

    inputs, x = _pixels(image_shape, normalization)
    stages = ((64, 3), (128, 4), (256, 6), (512, 3))
    return _resnet("resnet_34", stages, project, normalize, linear, inputs, x, num_classes)


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
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon)
    linear = _normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope=None)

    def pool_and_pad(x, filters):
        padding = ((0, 0), (0, filters - x.shape[-1]))
        x = layers.AveragePooling2D(2, padding="same")(x)
        # "channels_first" makes the layer pad the last two axes: width by 0, and the channels.
        return layers.ZeroPadding2D(padding, data_format="channels_first")(x)

    inputs, x = _pixels(image_shape, normalization)
    stages = ((16, 5), (32, 5), (64, 5))
    return _resnet("resnet_32", stages, pool_and_pad, normalize, linear, inputs, x, num_classes)


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

    `weight_norm` applies to every layer, the last one too; `dropout` is the share of values
    dropped after each of the two poolings. All layers start as PyTorch's (see `WeightNormConv2D`).

    Reference:
        [Arazo et al., 2020](https://arxiv.org/abs/1908.02983), as in
        [EricArazo/PseudoLabeling](https://github.com/EricArazo/PseudoLabeling).
    """
    if min(image_shape[:2]) < 12:
        raise UserError(f"`cnn_13` needs images of at least 12x12. Received: {image_shape}.")
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def convolve(x, filters, side, padding="same"):
        if weight_norm:
            return normalize(WeightNormConv2D(filters, side, padding)(x))
        start = _pytorch_uniform(side**2 * x.shape[-1])
        return normalize(_convolve(x, filters, side, initializer=start, padding=padding))

    inputs, x = _pixels(image_shape, normalization)
    for filters in (128, 256):
        for _ in range(3):
            x = convolve(x, filters, 3)
        x = layers.Dropout(dropout)(layers.MaxPooling2D()(x))
    x = convolve(convolve(convolve(x, 512, 3, "valid"), 256, 1), 128, 1)
    if not weight_norm:
        return _classifier(inputs, x, num_classes, "cnn_13", *[_pytorch_uniform(128)] * 2)
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

    `dropout` is the share of channels dropped after each of the two poolings, in training only.
    All layers start as PyTorch's: uniform within 1 / sqrt(fan-in).

    Reference:
        [Han et al., 2018](https://arxiv.org/abs/1804.06872), table 2, as in
        [bhanML/Co-teaching](https://github.com/bhanML/Co-teaching).
    """
    if min(image_shape[:2]) < 28:
        raise UserError(f"`cnn_9` needs images of at least 28x28. Received: {image_shape}.")
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon, leaky_slope)

    def convolve(x, filters, padding="same"):
        start = _pytorch_uniform(9 * x.shape[-1])
        return normalize(_convolve(x, filters, 3, initializer=start, padding=padding))

    inputs, x = _pixels(image_shape, normalization)
    for filters in (128, 256):
        for _ in range(3):
            x = convolve(x, filters)
        x = layers.SpatialDropout2D(dropout)(layers.MaxPooling2D()(x))
    for filters in (512, 256, 128):
        x = convolve(x, filters, "valid")
    return _classifier(inputs, x, num_classes, "cnn_9", *[_pytorch_uniform(128)] * 2)


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
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon)
    inputs, x = _pixels(image_shape, normalization)
    x = layers.MaxPooling2D()(normalize(_convolve(x, 32, 3)))
    x = normalize(_convolve(normalize(_convolve(x, 64, 3)), 64, 3))
    return _classifier(inputs, x, num_classes, "small_cnn")


def wide_lenet(
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=0.9,
    batch_norm_epsilon=1e-3,
    normalization=None,
):
    """Builds two convolutions and a wide dense layer on all their features, as LeNet-5.

    It memorizes wrong labels within minutes on a CPU, as large networks do within hours.
    """
    normalize = _normalizer(batch_norm_momentum, batch_norm_epsilon)
    inputs, x = _pixels(image_shape, normalization)
    for filters in (32, 64):
        x = normalize(_convolve(x, filters, 3, strides=2))
    dense = layers.Dense(512, use_bias=False, kernel_initializer="he_normal")
    return _classifier(inputs, normalize(dense(layers.Flatten()(x))), num_classes, "wide_lenet")


def _pixels(image_shape, normalization):
    """Returns the input and its pixels, scaled to [-1, 1] or by `(means, deviations)`."""
    inputs = keras.Input(image_shape, name="images")
    scale, offset = 1 / 127.5, -1.0
    if normalization is not None:
        means, deviations = normalization
        if not len(means) == len(deviations) == image_shape[-1]:
            raise UserError(
                f"The normalization has {len(means)} means and {len(deviations)} deviations, and "
                f"must have one for each channel. Received: images of shape {image_shape}."
            )
        scale = [1 / float(deviation) for deviation in deviations]
        offset = [-float(mean) / float(deviation) for mean, deviation in zip(means, deviations)]
    # In float32 under mixed precision too: bfloat16 would round 200.5 to 200 before scaling.
    return inputs, layers.Rescaling(scale, offset, dtype="float32")(inputs)


def pixel_normalization(kind, images):
    """Returns the `normalization` of `build` that a name stands for.

    Args:
        kind: `scale` (to [-1, 1]), `dataset` (by the mean and standard deviation of each channel
            over all of `images`) or `imagenet` (by ImageNet's, for color images).
        images: uint8 array of shape `(num_images, height, width, channels)`, the training images,
            labeled or not. `dataset` counts values, so the result is exact in any order.

    Returns:
        None for `scale`, else a tuple `(means, deviations)` of lists with one pixel value in
        [0, 255] for each channel. A channel without variation has the deviation 1.

    Raises:
        ValueError: If there is no such kind, or the images of `imagenet` are not in color.
    """
    if kind not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise UserError(f"`normalization` must be one of {known}. Received: {kind!r}")
    if kind == "scale":
        return None
    if kind == "imagenet":
        if images.shape[-1] != 3:
            raise UserError(
                "--normalization=imagenet needs color images, of 3 channels. Received: images of "
                f"shape {images.shape[1:]}. Use --normalization=dataset."
            )
        return [255 * share for share in IMAGENET_MEAN], [255 * share for share in IMAGENET_STD]
    values, counts = np.arange(256), np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 1024):
        for channel, count in enumerate(counts):
            pixels = images[start : start + 1024, ..., channel].ravel()
            count += np.bincount(pixels, minlength=256)
    means = counts @ values / counts.sum(axis=1)
    variances = np.sum(counts * (values - means[:, None]) ** 2, axis=1) / counts.sum(axis=1)
    return means.tolist(), np.sqrt(np.where(variances == 0, 1.0, variances)).tolist()


def _pytorch_uniform(fan_in):
    """Returns the start of PyTorch's convolutions and dense layers, and of their biases."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def _convolve(x, filters, side, strides=1, initializer="he_normal", padding="same"):
    return layers.Conv2D(
        filters, side, strides, padding, use_bias=False, kernel_initializer=initializer
    )(x)


def _normalizer(momentum, epsilon, leaky_slope=0.0):
    """Returns batch normalization, then a leaky ReLU unless the slope is None."""

    def normalize(x):
        x = BatchNormalization(momentum=momentum, epsilon=epsilon)(x)
        if leaky_slope is None:
            return x
        return layers.LeakyReLU(leaky_slope)(x) if leaky_slope else layers.ReLU()(x)

    return normalize


def _resnet(name, stages, resize, normalize, linear, inputs, x, num_classes):
    x = normalize(_convolve(x, stages[0][0], 3))
    for filters, num_units in stages:
        for _ in range(num_units):
            strides = 1 if x.shape[-1] == filters else 2
            shortcut = x if strides == 1 else resize(x, filters)
            y = normalize(_convolve(x, filters, 3, strides))
            x = layers.Add()([linear(_convolve(y, filters, 3)), shortcut])
            x = layers.ReLU()(x)
    return _classifier(inputs, x, num_classes, name)


def _classifier(
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


NORMALIZATIONS = ("scale", "dataset", "imagenet")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The wide ResNets, by what follows `wrn_DEPTH_WIDTH` in their names.
WIDE = {
    "": wide_resnet,
    "_torchssl": wide_resnet_torchssl,
    "_uda": wide_resnet_uda,
    "_usb": wide_resnet_usb,
}
NETWORKS = {
    "cnn_13": cnn_13,
    "cnn_9": cnn_9,
    "preact_resnet_18": preact_resnet_18,
    "resnet_32": resnet_32,
    "resnet_34": resnet_34,
    "small_cnn": small_cnn,
    "wide_lenet": wide_lenet,
    "wrn_28_2": functools.partial(wide_resnet, 28, 2),
    "wrn_28_2_torchssl": functools.partial(wide_resnet_torchssl, 28, 2),
    "wrn_28_2_uda": functools.partial(wide_resnet_uda, 28, 2),
    "wrn_28_2_usb": functools.partial(wide_resnet_usb, 28, 2),
    "wrn_28_8": functools.partial(wide_resnet, 28, 8),
    "wrn_28_8_torchssl": functools.partial(wide_resnet_torchssl, 28, 8),
}


def names():
    """Returns names that `build` takes; `wrn_DEPTH_WIDTH` may have any depth and width."""
    return list(NETWORKS)


def find(name):
    """Returns the function that builds the network `name`, one of `names()` or `wrn_DEPTH_WIDTH`.

    Raises:
        ValueError: If there is no such network, or if it is too large to build.
    """
    wide = re.fullmatch("wrn_([0-9]{1,99})_([0-9]{1,99})(|_torchssl|_uda|_usb)", name)
    if wide:
        _check_wide_resnet(int(wide[1]), int(wide[2]))
        return functools.partial(WIDE[wide[3]], int(wide[1]), int(wide[2]))
    if name not in NETWORKS:
        nearest = difflib.get_close_matches(name, names(), 1, cutoff=0.0)[0]
        raise UserError(
            f"Unknown network {name!r}. Did you mean {nearest!r}? "
            f"Available: {', '.join(names())}, wrn_DEPTH_WIDTH."
        )
    return NETWORKS[name]


def build(
    name,
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=None,
    batch_norm_epsilon=None,
    normalization=None,
    **options,
):
    """Builds a classifier by name.

    Args:
        name: String, one of `names()`, or `wrn_DEPTH_WIDTH` with a depth of 6n + 4, then nothing
            (FixMatch's), `_torchssl`, `_usb` or `_uda`.
        image_shape: Tuple `(height, width, channels)`.
        num_classes: Integer, the number of logits.
        batch_norm_momentum: Float in [0, 1], the share of the moving average kept in each step,
            once it has warmed up (see `BatchNormalization`). None takes the network's own.
            PyTorch's momentum is 1 minus this.
        batch_norm_epsilon: Float above 0, what is added to the variance. None takes the network's
            own.
        normalization: Tuple `(means, deviations)` with a pixel value in [0, 255] for each channel,
            as from `pixel_normalization`: the network subtracts the mean and divides by the
            deviation. None scales pixels to [-1, 1].
        **options: Keyword arguments of the network's function, for some `leaky_slope` (slope for
            negative inputs), `weight_norm`, `dropout`.

    Returns:
        A `keras.Model` from pixels (uint8, or float in 0..255) to float32 logits.

    Raises:
        ValueError: If there is no such network, or it does not take an option.
    """
    network = find(name)
    parameters = inspect.signature(network).parameters.values()
    accepted = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise UserError(f"{name!r} does not take {unknown}. It takes: {', '.join(accepted)}.")
    given = {
        "batch_norm_momentum": batch_norm_momentum,
        "batch_norm_epsilon": batch_norm_epsilon,
        "normalization": normalization,
    }
    options.update({key: value for key, value in given.items() if value is not None})
    return network(tuple(image_shape), num_classes, **options)


def portable(network):
    """Copies a `keras.Model` into plain Keras layers, with the same outputs.

    Save the copy where a file must load without this kit; it trains more slowly on TensorFlow.
    Layers of this kit are replaced in Sequential and functional models, nested ones included.
    Layers and subclassed models of your own are copied as they are, by their `get_config`: the
    file loads where those classes are known to Keras.

    Raises:
        UserError: If their configs do not describe them.
    """
    if not hasattr(network, "output_shape"):  # a subclassed model
        copy = contract.new_copy(network)
        copy.set_weights(network.get_weights())
        return copy
    plain = {BatchNormalization: layers.BatchNormalization, WeightNormConv2D: layers.Conv2D}

    copies = []

    def clone(layer):
        if isinstance(layer, keras.Model):
            return portable(layer)
        copies.append((layer, plain.get(type(layer), type(layer)).from_config(layer.get_config())))
        return copies[-1][1]

    network = keras.models.clone_model(network, clone_function=clone)
    for layer, copy in copies:
        copy.set_weights(layer.plain_weights() if type(layer) in plain else layer.get_weights())
    return network
