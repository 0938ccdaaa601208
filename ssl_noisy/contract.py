# SPDX-License-Identifier: Apache-2.0
"""What a learner requires of a network: any Keras model from images to logits of classes.

Sequential, functional, nested and subclassed models are supported.
"""

import math

import keras
import numpy as np
from keras import ops

from ssl_noisy.errors import UserError


def logits_shape(network, image_shape=None):
    """Returns the output shape of a network, and builds the network if it has no weights.

    Args:
        network: A `keras.Model`.
        image_shape: Tuple `(height, width, channels)` of the images that it will see. None means
            the shape of its first call.

    Raises:
        UserError: If it was never called and `image_shape` is None.
    """
    if hasattr(network, "output_shape"):
        return network.output_shape
    # A Sequential model without weights or a subclassed model has no output shape.
    called_on = (network.get_build_config() or {}).get("input_shape")
    if image_shape is None and called_on is None:
        raise UserError(
            "The network has no weights yet. Pass the task to the learner too, or call the network "
            f"once: network(images[:1]). Received: {network.name!r}, a {type(network).__name__}"
        )
    image_shape = called_on[1:] if image_shape is None else image_shape
    return getattr(network(keras.KerasTensor((None, *image_shape))), "shape", None)


def num_logits(network, task=None):
    """Returns the number of outputs of a network per image, as in `logits_shape`."""
    shape = logits_shape(network, None if task is None else task.image_shape)
    return None if shape is None else shape[-1]


def check(network, image_shape, num_classes):
    """Checks that a network maps images to one logit per class.

    Raises:
        UserError: If it takes images of another shape, has other outputs, or ends in a softmax.
    """
    takes = getattr(network, "input_shape", None)
    if takes is not None and not matches(takes, (None, *image_shape)):
        raise UserError(
            f"The network must take the task's images, of shape {tuple(image_shape)}. Received: "
            f"network.input_shape={takes}"
        )
    shape = logits_shape(network, image_shape)
    if not matches(shape, (None, num_classes)):
        raise UserError(
            f"The network must have one output for each of the task's {num_classes} "
            f"classes. Received: network.output_shape={shape}"
        )
    activation = last_activation(network, num_classes)
    if activation is not None:
        raise UserError(
            f"The network must return logits. Remove its last activation: the losses apply their "
            f"own. Received: {network.name!r}, which ends in a {activation}"
        )


def check_teacher(teacher, image_shape, num_classes):
    """Checks that a teacher maps the images of a task to one logit per class.

    Raises:
        UserError: As `check`, with words about the teacher.
    """
    takes, shape = getattr(teacher, "input_shape", None), logits_shape(teacher, image_shape)
    if takes is not None and not matches(takes, (None, *image_shape)):
        raise UserError(
            f"The teacher must take the task's images, of shape {tuple(image_shape)}. Received: "
            f"one of images of shape {takes[1:]}"
        )
    if not matches(shape, (None, num_classes)):
        raise UserError(
            f"The teacher must know the task's {num_classes} classes. Received: one of "
            f"{shape[-1]} classes"
        )
    check(teacher, image_shape, num_classes)  # a softmax


def last_activation(network, num_classes):
    """Returns `softmax` or `sigmoid` if the last layer of a network is known to be one."""
    last = network
    while isinstance(last, keras.Model) and last.layers:
        last = last.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    # A subclassed model need not call its layers in the order of their creation.
    if not hasattr(network, "output_shape") and getattr(last, "units", None) != num_classes:
        return None
    for activation in (keras.activations.softmax, keras.activations.sigmoid):
        if getattr(last, "activation", None) is activation:
            return activation.__name__
    return None


def leaves(network):
    """Yields the layers of a network in order, those of models within it in place of the models."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from leaves(layer)
        else:
            yield layer


def outputs_per_image(network):
    """Returns how many numbers the layers compute for an image, as far as their shapes are known.

    The layers of a subclassed model are not part of a graph, so they have no shapes.
    """
    shapes = [getattr(getattr(layer, "output", None), "shape", ()) for layer in leaves(network)]
    return sum(math.prod(side or 1 for side in shape[1:]) for shape in shapes)


def head(network):
    """Returns the layer of the logits: the one named `logits`, else the last with weights.

    Raises:
        UserError: If it has no weights, or a subclassed model does not say which layer it is.
    """
    with_weights = [layer for layer in leaves(network) if layer.weights]
    if not with_weights:
        raise UserError(
            f"The network has no layer with weights. If it was never called, call it once: "
            f"network(images[:1]). Received: {network.name!r}"
        )
    named = [layer for layer in with_weights if layer.name == "logits"]
    found = (named or with_weights)[-1]
    # A subclassed model need not call its layers in the order of their creation.
    if not named and not hasattr(network, "output_shape"):
        if getattr(found, "units", None) != num_logits(network):
            raise UserError(
                f"The last layer of {network.name!r} is unknown, since it is a subclassed model. "
                f"Name the layer that returns the logits 'logits'. Received: {found.name!r}"
            )
    return found


def with_features(network, user, as_probe=False):
    """Returns a network with one more output: what its last layer with weights takes.

    Args:
        network: A `keras.Model`, Sequential or functional.
        user: Who needs the features, for the error message.
        as_probe: Whether no gradient flows from the logits to what comes before that layer.

    Returns:
        A `keras.Model` of the same layers, from images to a tuple: float32 features
        `(batch_size, num_features)`, and logits.

    Raises:
        UserError: If it is subclassed, or ends in a model.
    """
    last = [layer for layer in network.layers if layer.weights][-1]
    if not hasattr(network, "output_shape") or isinstance(last, keras.Model):
        raise UserError(
            f"{user} trains a second head on the input of the network's last layer with weights. "
            "Use a Sequential or functional network that does not end in a model. Received: "
            f"{network.name!r}, which is subclassed or ends in a model"
        )
    if not isinstance(network, keras.Sequential):
        features = keras.layers.Flatten(dtype="float32")(last.input)
        logits = network.outputs[0]
        if as_probe:
            logits = keras.Model(last.input, logits)(ops.stop_gradient(last.input))
        return keras.Model(network.inputs[0], [features, logits])
    # Its layers may belong to no graph yet.
    x = inputs = keras.Input(network.input_shape[1:])
    for layer in network.layers:
        if layer is last:
            features = keras.layers.Flatten(dtype="float32")(x)
            x = ops.stop_gradient(x) if as_probe else x
        x = layer(x)
    return keras.Model(inputs, [features, x])


def summed(networks):
    """Returns a functional model of the sum of the logits of networks that take the same images."""
    first = networks[0]
    shape = getattr(first, "input_shape", None) or first.get_build_config()["input_shape"]
    inputs = keras.Input(shape[1:])
    # Models within a model need names of their own.
    parts = [keras.Sequential([one], name=f"{one.name}_{i}") for i, one in enumerate(networks, 1)]
    logits = [part(inputs) for part in parts]
    return keras.Model(inputs, keras.layers.Add(dtype="float32")(logits))


def backbone_variables(network):
    """Returns the trainable variables of all layers but the head."""
    own = {id(variable) for variable in head(network).variables}
    return [v for v in network.trainable_variables if id(v) not in own]


def restart(network, like, other):
    """Gives a network the initial weights of another one that was made the same way.

    A head that would be equal to that of `other` keeps its weights: two networks that are equal in
    each weight and train on the same images might stay equal.

    Args:
        network: A `keras.Model`. It changes.
        like: The `keras.Model` with the weights.
        other: The `keras.Model` beside which it trains.
    """
    own = head(network).get_weights()
    set_weights(network, like.get_weights())
    if all(
        np.array_equal(a, b) for a, b in zip(head(like).get_weights(), head(other).get_weights())
    ):
        head(network).set_weights(own)


def set_weights(network, weights):
    """Sets all weights of a network.

    Keras's `Normalization` computes with constants that it makes of its weights, and makes them
    again only in `adapt` and when it is loaded.
    """
    network.set_weights(weights)
    for layer in leaves(network):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def new_copy(network):
    """Copies a network, with new initial weights, by the configs of its layers.

    The statistics of `Normalization` layers, which are no initial weights, are copied.

    Raises:
        UserError: If the configs do not describe the network, for example if its class lacks a
            `get_config`.
    """
    cause = None
    try:
        copy = keras.models.clone_model(network)
        if [v.shape for v in copy.weights] == [v.shape for v in network.weights]:
            for layer, its_copy in zip(leaves(network), leaves(copy)):
                if isinstance(layer, keras.layers.Normalization):
                    its_copy.set_weights(layer.get_weights())
                    its_copy.finalize_state()
            return copy
    except Exception as error:  # the user's class may raise anything
        cause = error
    raise UserError(
        f"The network cannot be copied by its config. Give {type(network).__name__}, and your own "
        "layers, a `get_config` with the arguments of `__init__`. Received: "
        + (f"{type(cause).__name__} during the copy" if cause else "a copy with other weights")
    ) from cause


def matches(shape, expected):
    """Returns whether a shape has the expected length and sizes, where both are known."""
    return (
        isinstance(shape, (tuple, list))
        and len(shape) == len(expected)
        and all(a is None or b is None or a == b for a, b in zip(shape, expected))
    )
