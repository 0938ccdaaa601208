# SPDX-License-Identifier: Apache-2.0
"""The architectures of `keras.applications`, from raw pixels to logits: `keras:NAME`."""

import difflib
import inspect
import os
import re

import keras
import numpy as np
from keras import layers, ops

from ssl_noisy.errors import UserError, one_line
from ssl_noisy.networks import blocks
from ssl_noisy.networks.batch_norm import set_batch_norm
from ssl_noisy.networks.layers import fused

PREFIX = "keras:"
WEIGHTS = ("imagenet", "none")
# The standard deviations of ImageNet's channels. Keras's EfficientNets divide by their root.
DEVIATIONS = (0.229, 0.224, 0.225)


def names():
    """Returns the names of all architectures of the installed Keras."""
    members = inspect.getmembers(keras.applications, callable)
    return [name for name, make in members if "include_top" in inspect.signature(make).parameters]


def check(name):
    """Raises the `UserError` of an architecture that Keras does not have."""
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), 1, cutoff=0.0)[0]
        raise UserError(
            f"keras.applications has no {name!r}. Did you mean {PREFIX + nearest!r}? Available: "
            f"{', '.join(names())}."
        )


def check_weights(path):
    """Raises the `UserError` of a file of weights that is not there."""
    if not os.path.isfile(path):
        raise UserError(
            f"There is no file {path}. --weights must be {', '.join(WEIGHTS)} or a file of weights "
            "without the top, .h5 or .weights.h5."
        )


def build(
    name,
    image_shape,
    num_classes,
    *,
    weights="imagenet",
    batch_norm_momentum=None,
    batch_norm_epsilon=None,
):
    """Builds an architecture of `keras.applications` with a new last layer.

    Gray images are repeated to three channels. Then come the architecture's own preprocessing, its
    layers without the top, global average pooling and a dense layer.

    Args:
        name: String, one of `names()`.
        image_shape: Tuple `(height, width, channels)`, with 1 or 3 channels.
        num_classes: Integer, the number of logits.
        weights: `imagenet`, `none` for random ones, or a file of weights without the top, `.h5` or
            `.weights.h5`.
        batch_norm_momentum: As in `networks.build`. None means Keras's.
        batch_norm_epsilon: As in `networks.build`. None means Keras's.

    Returns:
        A `keras.Model` from pixels in 0..255 to float32 logits.

    Raises:
        UserError: If the images are too small, or if the weights cannot be loaded.
    """
    check(name)
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise UserError(
            f"{PREFIX}{name} takes images with 1 or 3 channels. Received: {tuple(image_shape)}"
        )
    backbone = fused(_backbone(name, (height, width, 3), weights))
    set_batch_norm(backbone, batch_norm_momentum, batch_norm_epsilon)
    x = inputs = keras.Input(image_shape, name="images")
    if channels == 1:
        x = layers.Concatenate(dtype="float32", name="gray_to_color")([x, x, x])
    features = backbone(preprocess(name, x))
    return blocks.classifier(inputs, features, num_classes, backbone.name + "_classifier")


def _backbone(name, image_shape, weights):
    """Returns the Keras model without its top."""
    make = getattr(keras.applications, name)
    initial = "imagenet" if weights == "imagenet" else None
    try:
        backbone = make(include_top=False, weights=initial, input_shape=image_shape)
    except ValueError as error:
        smallest = re.search(r"at least (\d+)", str(error))
        if smallest is None:
            raise
        raise UserError(
            f"{PREFIX}{name} needs images of at least {smallest[1]}x{smallest[1]}. Received: "
            f"{image_shape[0]}x{image_shape[1]}. Enlarge them with --image_size={smallest[1]}."
        ) from error
    except Exception as error:  # Keras raises this base class if a download fails
        url = re.search(r"https?://\S+", str(error))
        if initial is None or url is None:
            raise
        url = url[0].rstrip(".:,")
        home = os.environ.get("KERAS_HOME", "~/.keras")  # as Keras's documentation has it
        where = os.path.join(os.path.expanduser(home), "models", os.path.basename(url))
        raise UserError(
            f"The ImageNet weights of {PREFIX}{name} are not at {where} and cannot be downloaded. "
            f"Put {url} there, or pass --weights=FILE, or --weights=none for random weights."
        ) from error
    if weights not in WEIGHTS:
        check_weights(weights)
        _load(backbone, name, weights)
    return backbone


def _load(backbone, name, path):
    """Loads a file of weights into a backbone."""
    try:
        backbone.load_weights(path)
    except Exception as error:  # Keras and HDF5 raise many types
        raise UserError(
            f"--weights={path} cannot be loaded into {PREFIX}{name}, which takes its weights "
            f"without the top (`notop` in the names of Keras's files). Received: "
            f"{one_line(error)}"
        ) from error
    # Keras's published EfficientNets were trained with pixels divided by these deviations, but the
    # files have them in the place of variances. With `weights="imagenet"`, Keras adds a layer that
    # divides by their roots once more; with the same file at another place, it does not.
    for layer in backbone.layers:
        if isinstance(layer, layers.Normalization) and layer.input_mean is None:
            mean, variance, *count = layer.get_weights()
            if np.allclose(variance.ravel(), DEVIATIONS, atol=1e-4):
                layer.set_weights([mean, np.square(variance), *count])
                layer.finalize_state()


def preprocess(name, x):
    """Applies what `preprocess_input` of the architecture's module does, as layers."""
    matrix, offset = preprocessing(name)
    if np.array_equal(matrix, np.eye(3)) and not offset.any():
        return x
    scale = matrix.sum(axis=0)
    if not np.array_equal(matrix, np.diag(scale)):  # the channels in the order blue, green, red
        x = ops.flip(x, axis=-1)
    # float32 under mixed precision too: bfloat16 would round pixels before scaling.
    return layers.Rescaling(scale.tolist(), offset.tolist(), dtype="float32", name="preprocessing")(
        x
    )


def preprocessing(name):
    """Returns what an architecture's preprocessing does to pixels: `pixels @ matrix + offset`.

    Keras has a function for each module, some of which only return their input, because the
    architecture begins with the preprocessing. They are linear, so black and three primary colors
    show what they do.

    Returns:
        A matrix of shape `(3, 3)` and an offset of shape `(3,)`.
    """
    make = getattr(keras.applications, name)
    if "include_preprocessing" in inspect.signature(make).parameters:  # it is by default
        return np.eye(3), np.zeros(3)
    modules = [module for _, module in inspect.getmembers(keras.applications, inspect.ismodule)]
    module = next(module for module in modules if getattr(module, name, None) is make)
    pixels = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)])[None, None].astype("float32")
    black, *colors = module.preprocess_input(pixels)[0, 0].astype("float64")
    return (np.array(colors) - black) / 255, black
