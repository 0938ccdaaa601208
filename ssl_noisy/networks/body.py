# SPDX-License-Identifier: Apache-2.0
"""The body of a network, all layers but the last one, with the weights of another network."""

import keras
import numpy as np

from ssl_noisy import contract
from ssl_noisy.errors import UserError
from ssl_noisy.networks.batch_norm import BatchNormalization
from ssl_noisy.networks.layers import WeightNormConv2D


def copy_body(network, other):
    """Gives all layers of a network but its last the weights of another network, in order.

    Training normalizes by batches of the new data, so the running statistics of batch norm forget
    at once what they had before, unless they are frozen.

    Args:
        network: A `keras.Model`. It changes.
        other: A `keras.Model` of the same layers, or what `portable` makes of it. Its last layer
            may be another one.

    Raises:
        UserError: If its other layers have other weights, if it takes other images, or if it scales
            pixels in another way. The network stays as it was.
    """
    takes = [getattr(one, "input_shape", None) for one in (network, other)]
    if None not in takes and not contract.matches(*takes):
        raise UserError(f"it takes images of shape {takes[1][1:]}, this one of {takes[0][1:]}")
    bodies = [_body(one) for one in (network, other)]
    own, weights = [[_plain_weights(layer) for layer in body] for body in bodies]
    shapes = [[[one.shape for one in of_layer] for of_layer in part] for part in (own, weights)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"it has another architecture: {other.name!r} with {len(shapes[1])} layers with "
            f"weights before the last, this one is {network.name!r} with {len(shapes[0])}"
        )
    scales = [_scaling(one) for one in (network, other)]
    if len(scales[0]) == len(scales[1]) and not np.allclose(*scales, rtol=0.1, atol=0.1):
        raise UserError("it scales pixels in another way. Use the same --normalization")
    for layer, of_layer in zip(bodies[0], weights):
        if isinstance(layer, BatchNormalization):
            of_layer = [*of_layer, np.float32(0)]
        if isinstance(layer, WeightNormConv2D):
            kernel, *bias = of_layer
            of_layer = [kernel, np.sqrt(np.sum(np.square(kernel), axis=(0, 1, 2))), *bias]
        layer.set_weights(of_layer)
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _body(network):
    """Returns the layers of a network that have weights, but for the last one."""
    head = contract.head(network)
    return [layer for layer in contract.leaves(network) if layer.weights and layer is not head]


def _plain_weights(layer):
    """Returns the weights of a layer as those of its equivalent of Keras."""
    return layer.plain_weights() if hasattr(layer, "plain_weights") else layer.get_weights()


def _scaling(network):
    """Returns by what the `Rescaling` layers of a network scale and shift pixels, of order 1."""
    found = [x for x in contract.leaves(network) if isinstance(x, keras.layers.Rescaling)]
    values = [[np.ravel(layer.scale) * 100, np.ravel(layer.offset)] for layer in found]
    return np.concatenate([part for pair in values for part in pair]) if values else np.zeros(0)
