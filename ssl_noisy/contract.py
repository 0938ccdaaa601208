# SPDX-License-Identifier: Apache-2.0
"""What a learner requires of a network: any Keras model from images to logits of classes.

Sequential, functional, nested and subclassed models are supported.
"""

import keras

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
    if takes is not None and not _matches(takes, (None, *image_shape)):
        raise UserError(
            f"The network must take the task's images, of shape {tuple(image_shape)}. Received: "
            f"network.input_shape={takes}"
        )
    shape = logits_shape(network, image_shape)
    if not _matches(shape, (None, num_classes)):
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


def new_copy(network):
    """Copies a network, with new initial weights, by the configs of its layers.

    Raises:
        UserError: If the configs do not describe the network, for example if its class lacks a
            `get_config`.
    """
    cause = None
    try:
        copy = keras.models.clone_model(network)
        if [v.shape for v in copy.weights] == [v.shape for v in network.weights]:
            return copy
    except Exception as error:  # the user's class may raise anything
        cause = error
    raise UserError(
        f"The network cannot be copied by its config. Give {type(network).__name__}, and your own "
        "layers, a `get_config` with the arguments of `__init__`. Received: "
        + (f"{type(cause).__name__} during the copy" if cause else "a copy with other weights")
    ) from cause


def _matches(shape, expected):
    """Returns whether a shape has the expected length and sizes, where both are known."""
    return (
        isinstance(shape, (tuple, list))
        and len(shape) == len(expected)
        and all(a is None or b is None or a == b for a, b in zip(shape, expected))
    )
