# SPDX-License-Identifier: Apache-2.0
"""Batch normalization: fused on each backend, and of several batches in one pass."""

import contextlib

import keras
import numpy as np
from keras import layers, ops

from ssl_noisy import contract, machine, schedules


@keras.saving.register_keras_serializable(package="ssl_noisy")
class BatchNormalization(layers.BatchNormalization):
    """`keras.layers.BatchNormalization` in fewer passes over the data.

    The numbers equal Keras's: the biased batch variance normalizes and enters the moving average
    (in PyTorch, the unbiased one does).

    - On TensorFlow it is the fused kernel, which `keras.ops` lacks. On two cores of an AMD EPYC,
      forward and backward passes of `(128, 32, 32, 32)` with a leaky ReLU took 28 ms composed of
      moments and products and 7 ms fused.
    - On JAX with a GPU or TPU, and in `apart`, it is `normalized`, in one pass over the data for
      mean and variance and one for their gradients. XLA fuses the rest. A step of FixMatch with
      WRN-28-2, compiled for an H100, has 857 kernels that move 10.4 GB instead of 1,331 and 12.3,
      with `apart` included. On a CPU no gain was seen.

    Departure: the momentum of the running statistics warms up (`schedules.warmed_up`), so they
    forget their initial values, mean 0 and variance 1, in short trainings too. Each pass in
    training mode is an update. The last weight, `num_updates`, counts them.
    """

    sizes = None  # of concatenated batches that are normalized separately: see `apart`
    follows_all = False  # whether the running statistics follow all of them, or the first

    def build(self, input_shape):
        super().build(input_shape)
        # A float, because TensorFlow keeps integers on the host; exact up to 2^24.
        self.num_updates = self.add_weight(
            (), "zeros", "float32", name="num_updates", trainable=False, autocast=False
        )

    def plain_weights(self):
        """Returns the weights of an equivalent `keras.layers.BatchNormalization`."""
        return self.get_weights()[:-1]

    @contextlib.contextmanager
    def next_update(self):
        """Sets `momentum` to the fraction that the next update keeps, within this context."""
        momentum = self.momentum
        self.num_updates.assign_add(1.0)
        self.momentum = schedules.warmed_up(momentum, self.num_updates)
        try:
            yield
        finally:
            self.momentum = momentum

    def is_fusable(self, shape):
        """Returns whether it normalizes the channels of images of this shape as the papers do."""
        custom = self.renorm or self.synchronized or not (self.scale and self.center)
        return len(shape) == 4 and self.axis in (-1, 3) and not custom

    def call(self, inputs, training=None, mask=None):
        """Normalizes by the batch if `training`, which also updates the running statistics."""
        is_double = keras.backend.standardize_dtype(inputs.dtype) == "float64"
        by_tensorflow = keras.backend.backend() == "tensorflow"
        pays = by_tensorflow or self.sizes or machine.launches_kernels()
        by_keras = not (pays and self.is_fusable(inputs.shape)) or is_double or mask is not None
        if not (training and self.trainable):
            if by_keras or not by_tensorflow:
                return super().call(inputs, training=False, mask=mask)
            running = self.moving_mean, self.moving_variance
            return _fused(inputs, *self.scaling(), self.epsilon, running)[0]
        with self.next_update():
            if by_keras:
                return super().call(inputs, training=True, mask=mask)
            normalize = _normalized_by_tensorflow if by_tensorflow else normalized
            sizes = self.sizes or (inputs.shape[0],)
            outputs, *found = normalize(inputs, *self.scaling(), self.epsilon, sizes)
            for moving, batch in zip((self.moving_mean, self.moving_variance), found):
                batch = ops.mean(ops.stack([*batch]), axis=0) if self.follows_all else batch[0]
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs

    def scaling(self):
        return ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)


def normalized(x, gamma, beta, epsilon, sizes):
    """Normalizes batches that are concatenated, each by its own mean and variance.

    A GPU reads `x` once for the statistics, once for the outputs, and twice for the gradient.
    Pixels enter the sums less the first one of the batch: without that, the variance, as the mean
    of squares less the square of the mean, would lose digits where the mean is large.

    Args:
        x: Float tensor of shape `(batch_size, height, width, channels)`, in half or single
            precision.
        gamma, beta: Float32 tensors of shape `(channels,)`.
        epsilon: Float, added to the variance.
        sizes: Tuple of the sizes of the batches, whose sum is `batch_size`.

    Returns:
        A tuple: the outputs, of the shape and type of `x`, and float32 means and biased variances
        of shape `(len(sizes), channels)`, through which no gradient flows.

    Reference:
        [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167), section 3.
    """
    part_of_image = np.repeat(np.arange(len(sizes)), sizes)
    belongs = (np.arange(len(sizes))[:, None] == part_of_image).astype("float32")[..., None]
    counts = x.shape[1] * x.shape[2] * np.array(sizes, "float32")[:, None]

    def means(*values):
        """Returns the mean of each channel over the pixels of each batch."""
        of_images = ops.stack([ops.sum(one, axis=(1, 2)) for one in values])
        return ops.sum(of_images[:, None] * belongs, axis=2) / counts

    def spread(values):
        """Repeats what each batch has for its images."""
        return ops.take(values, part_of_image, axis=0)[:, None, None]

    @ops.custom_gradient
    def apply(x, gamma, beta):
        shift = ops.cast(x[0, 0, 0], "float32")
        shifted = ops.cast(x, "float32") - shift
        mean, mean_square = means(shifted, ops.square(shifted))
        variance = ops.maximum(mean_square - ops.square(mean), 0.0)
        scale = ops.rsqrt(variance + epsilon)
        mean += shift
        factor, offset = scale * gamma, beta - mean * scale * gamma
        outputs = ops.cast(x, "float32") * spread(factor) + spread(offset)

        def gradient(*args, upstream=None):
            dy = ops.cast((args[0] if upstream is None else upstream)[0], "float32")
            centered = (ops.cast(x, "float32") - spread(mean)) * spread(scale)
            d_beta, d_gamma = means(dy, dy * centered)
            dx = spread(factor) * (dy - spread(d_beta) - centered * spread(d_gamma))
            sums = ops.sum(ops.stack([d_gamma, d_beta]) * counts, axis=1)
            return ops.cast(dx, x.dtype), sums[0], sums[1]

        return (ops.cast(outputs, x.dtype), mean, variance), gradient

    return apply(x, gamma, beta)


def _normalized_by_tensorflow(x, gamma, beta, epsilon, sizes):
    """Does the same by TensorFlow's kernel, for each batch."""
    outputs, means, variances = [], [], []
    for part in _parts(x, sizes):
        output, mean, variance = _fused(part, gamma, beta, epsilon)
        count = ops.cast(ops.size(part) // part.shape[-1], variance.dtype)
        outputs.append(output)
        means.append(mean)
        variances.append(variance * (count - 1) / count)  # the kernel returns the unbiased one
    return outputs[0] if len(sizes) == 1 else ops.concatenate(outputs), means, variances


def _fused(x, gamma, beta, epsilon, running=()):
    """Calls TensorFlow's kernel: it normalizes by running statistics, or else by the batch."""
    import tensorflow as tf  # Imported here, so that the kit runs on JAX without TensorFlow.

    mean, variance = (ops.convert_to_tensor(one) for one in running or ([], []))
    return tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=epsilon,
        is_training=not running,
    )[:3]


def _parts(x, sizes):
    """Splits a tensor into parts of these sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [x] if len(sizes) == 1 else ops.split(x, ends[:-1])


@contextlib.contextmanager
def apart(network, sizes, follows_all=False):
    """Within this context concatenated batches pass through a network as if each were alone.

    Each is normalized by its own statistics. The running statistics follow the first.

    Args:
        network: A `keras.Model` that `can_pass_apart`.
        sizes: Tuple of the sizes of the batches.
        follows_all: Whether the running statistics follow the mean of all batches instead.
    """
    sizes = tuple(sizes)  # an iterator would end at the first layer
    found = [one for one in contract.leaves(network) if isinstance(one, BatchNormalization)]
    for layer in found:
        layer.sizes, layer.follows_all = sizes, follows_all
    try:
        yield
    finally:
        for layer in found:
            layer.sizes, layer.follows_all = None, False


def can_pass_apart(network):
    """Returns whether the images of a batch meet only in batch normalization of this kit.

    That is known of Sequential and functional models of Keras's layers and this kit's.
    """
    if not hasattr(network, "output_shape"):  # subclassed
        return False
    for layer in contract.leaves(network):
        kind = type(layer)
        is_of_keras = getattr(layers, kind.__name__, None) is kind and kind is not layers.Lambda
        if not is_of_keras and not kind.__module__.startswith("ssl_noisy."):
            return False
        if isinstance(layer, layers.BatchNormalization):
            own = isinstance(layer, BatchNormalization)
            if not own or not layer.is_fusable(layer.input.shape):
                return False
    return True


def set_batch_norm(network, momentum=None, epsilon=None):
    """Sets momentum and epsilon of all batch normalization in a network, unless they are None."""
    for layer in contract.leaves(network):
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = layer.momentum if momentum is None else momentum
            layer.epsilon = layer.epsilon if epsilon is None else epsilon
