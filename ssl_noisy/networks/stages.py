# SPDX-License-Identifier: Apache-2.0
"""The stages of a network, and what an image is at the end of one of them: pooled features."""

import keras
from keras import layers

from ssl_noisy import contract

ACTIVATIONS = (layers.ReLU, layers.LeakyReLU, layers.Activation)


def stage_ends(network):
    """Finds where the stages of a network end, the first stage first.

    A stage is all that has one height and width, from one stride or pooling to the next: a group of
    a ResNet. It ends with its last addition, that of a residual unit, and the activation that takes
    the sum, if there is one; without an addition, with its last layer. What has no weights, such as
    a pooling before a layer without padding, is not a stage. Layers of models within the network do
    not count.

    Args:
        network: A `keras.Model`, Sequential or functional.

    Returns:
        A list of symbolic tensors `(None, height, width, channels)`.
    """
    return _ends(_graph(network)[1])


def with_stage(network, stage, user):
    """Returns a network with one more output: the pooled features at the end of a stage.

    Args:
        network: A `keras.Model`, Sequential or functional.
        stage: Positive integer. If the network has fewer stages, the features are those that its
            last layer with weights takes, as of `contract.with_features`.
        user: Who needs the features, for the error message.

    Returns:
        A `keras.Model` of the same layers, from images to a tuple: float32 features
        `(batch_size, num_features)`, and logits.

    Raises:
        UserError: If it is subclassed, or ends in a model.
    """
    last = contract.with_features(network, user)
    inputs, outputs, logits = _graph(network)
    found = _ends(outputs)
    if stage > len(found):
        return last
    pooled = layers.GlobalAveragePooling2D(dtype="float32")(found[stage - 1])
    return keras.Model(inputs, [pooled, logits])


def _graph(network):
    """Returns the images, pairs of an operation and its output in order, and the logits."""
    if not isinstance(network, keras.Sequential):
        pairs = [(one, one.output) for one in network.operations]
        return network.inputs[0], pairs, network.outputs[0]
    # Its layers may belong to no graph yet.
    x = inputs = keras.Input(network.input_shape[1:])
    pairs = []
    for layer in network.layers:
        x = layer(x)
        pairs.append((layer, x))
    return inputs, pairs, x


def _ends(outputs):
    groups = []  # of one size each: pairs of an operation and its output
    head = max(place for place, (one, _) in enumerate(outputs) if getattr(one, "weights", ()))
    for operation, output in outputs[:head]:
        shape = getattr(output, "shape", ())
        if len(shape) != 4 or None in shape[1:]:
            continue
        size = shape[1] * shape[2]
        if not groups or size < groups[-1][0]:
            groups.append((size, []))
        if size == groups[-1][0]:  # a larger one is padded for the next layer
            groups[-1][1].append((operation, output))
    with_weights = [
        group for _, group in groups if any(getattr(one, "weights", ()) for one, _ in group)
    ]
    return [_end(group) for group in with_weights]


def _end(group):
    sums = [output for one, output in group if type(one).__name__ == "Add"]
    if not sums:
        return group[-1][1]
    for operation, output in group:
        if isinstance(operation, ACTIVATIONS) and operation.input is sums[-1]:
            return output
    return sums[-1]
