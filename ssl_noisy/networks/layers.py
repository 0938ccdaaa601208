# SPDX-License-Identifier: Apache-2.0
"""Layers that Keras lacks, and their replacement by layers of Keras."""

import keras
import numpy as np
from keras import layers, ops

from ssl_noisy import contract
from ssl_noisy.networks.batch_norm import BatchNormalization


@keras.saving.register_keras_serializable(package="ssl_noisy")
class WeightNormConv2D(layers.Layer):
    """Convolution with a kernel that is a direction times a gain for each filter.

    Keras 3 has no weight normalization, and the kernel of its `Conv2D` cannot be recomputed in each
    call. The first four arguments are those of `Conv2D`, with square kernels. Kernel and bias are
    initialized as in PyTorch: uniform within 1 / sqrt(fan-in), 0.41 times the deviation of He
    normal. The initial gain is the norm of the direction.

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
        self.kernel = self.add_weight(shape, pytorch_uniform(fan_in), name="kernel", autocast=False)
        self.gain = self.add_weight((self.filters,), "ones", name="gain", autocast=False)
        self.gain.assign(1 / self._scale())
        if self.use_bias:
            self.bias = self.add_weight((self.filters,), pytorch_uniform(fan_in), name="bias")

    def _scale(self):
        return self.gain * ops.rsqrt(ops.sum(ops.square(self.kernel), axis=(0, 1, 2)))

    def call(self, inputs):
        kernel = ops.cast(self.kernel * self._scale(), inputs.dtype)
        outputs = ops.conv(inputs, kernel, padding=self.padding)
        return outputs + self.bias if self.use_bias else outputs

    def plain_weights(self):
        """Returns the weights of an equivalent `Conv2D`: the kernel and any bias."""
        return [ops.convert_to_numpy(self.kernel * self._scale()), *self.get_weights()[2:]]

    def get_config(self):
        own = ("filters", "kernel_size", "padding", "use_bias")
        return super().get_config() | {name: getattr(self, name) for name in own}


def pytorch_uniform(fan_in):
    """Returns PyTorch's initializer of convolutions, dense layers and their biases."""
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def portable(network):
    """Copies a `keras.Model` into plain Keras layers, with the same outputs.

    Save the copy if the file must load without this kit; it trains more slowly on TensorFlow.
    Layers of this kit are replaced in Sequential and functional models, including nested ones.
    Your own layers and subclassed models are copied unchanged, by their `get_config`: the file
    loads where Keras knows those classes.

    Raises:
        UserError: If their configs do not describe them.
    """
    if not hasattr(network, "output_shape"):  # a subclassed model
        copy = contract.new_copy(network)
        contract.set_weights(copy, network.get_weights())
        return copy
    plain = {BatchNormalization: layers.BatchNormalization, WeightNormConv2D: layers.Conv2D}

    def replace(layer):
        if type(layer) not in plain:
            return None
        copy = plain[type(layer)].from_config(layer.get_config())
        return copy, layer.plain_weights

    return _cloned(network, replace)


def fused(network):
    """Copies a Sequential or functional model with this kit's batch normalization for Keras's.

    It is the inverse of `portable`: the outputs stay the same. Training normalizes by batches of
    the new data, so the running statistics, too, forget at once what they had before. With Keras's
    momentum of 0.99, a model that was saved untrained still had 13% of its initial statistics after
    200 steps of Co-teaching on the digits: its test accuracy was 11% instead of 56%. Frozen
    statistics stay.
    """

    def replace(layer):
        if type(layer) is not layers.BatchNormalization:
            return None
        copy = BatchNormalization.from_config(layer.get_config())
        return copy, lambda: [*layer.get_weights(), np.float32(0)]

    return _cloned(network, replace)


def _cloned(network, replace):
    """Copies a Sequential or functional model and its weights.

    Args:
        network: A `keras.Model`.
        replace: Function of a layer that returns None, or the layer for its place and a function
            that returns the weights of that.
    """
    copies = []

    def clone(layer):
        if isinstance(layer, keras.Model):
            return _cloned(layer, replace) if hasattr(layer, "output_shape") else portable(layer)
        copy, weights = replace(layer) or (type(layer).from_config(layer.get_config()), None)
        if isinstance(layer, layers.Layer):  # not an operation, such as `x / 255`
            copies.append((copy, weights or layer.get_weights))
        return copy

    copy_of_network = keras.models.clone_model(network, clone_function=clone)
    for copy, weights in copies:
        copy.set_weights(weights())
        if isinstance(copy, layers.Normalization):
            copy.finalize_state()  # the constants that it computes with, from the weights
    return copy_of_network
