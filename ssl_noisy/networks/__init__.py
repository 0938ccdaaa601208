# SPDX-License-Identifier: Apache-2.0
"""Classifiers for small images: functional Keras models from raw pixels to logits.

Every network maps pixels in 0..255, of shape `(batch_size, height, width, channels)`, to float32
logits of shape `(batch_size, num_classes)`. The first layer scales or standardizes pixels, so
augmentation, padding and cutout work on raw pixels. No convolution has a bias, since batch
normalization cancels it. Strides pad as TensorFlow does ("same"), except in `nin` and in the
TorchSSL and USB wide ResNets. Kernels are initialized He normal, except in these, the other wide
ResNets, `cnn_13` and `cnn_9`. `build` describes the arguments.

Users bring other networks: those of `keras.applications`, files, and functions.
"""

import difflib
import functools
import inspect
import re

from ssl_noisy.errors import UserError
from ssl_noisy.networks import applications, own
from ssl_noisy.networks.batch_norm import BatchNormalization, apart, can_pass_apart
from ssl_noisy.networks.body import copy_body
from ssl_noisy.networks.cnn import cnn_9, cnn_13, nin, small_cnn, wide_lenet
from ssl_noisy.networks.freezing import freeze
from ssl_noisy.networks.heads import TRAINING as HEAD_TRAINING
from ssl_noisy.networks.heads import feature_statistics, linear, mlp
from ssl_noisy.networks.layers import WeightNormConv2D, portable
from ssl_noisy.networks.normalization import NORMALIZATIONS, pixel_normalization
from ssl_noisy.networks.resnet import preact_resnet_18, resnet_18, resnet_32, resnet_34
from ssl_noisy.networks.stages import stage_ends, with_stage
from ssl_noisy.networks.wide_resnet import (
    check_size,
    wide_resnet,
    wide_resnet_torchssl,
    wide_resnet_uda,
    wide_resnet_usb,
)

__all__ = [
    "HEADS",
    "HEAD_TRAINING",
    "NETWORKS",
    "NORMALIZATIONS",
    "BatchNormalization",
    "WeightNormConv2D",
    "absolute",
    "accepted_options",
    "apart",
    "build",
    "can_pass_apart",
    "check_there",
    "copy_body",
    "feature_statistics",
    "find",
    "freeze",
    "is_file",
    "is_head",
    "is_own",
    "names",
    "takes_weights",
    "usage",
    "pixel_normalization",
    "portable",
    "stage_ends",
    "with_stage",
]

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
    "nin": nin,
    "preact_resnet_18": preact_resnet_18,
    "resnet_18": resnet_18,
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
_INTERNAL = ("notes", "statistics")  # arguments that are no options of a user
HEADS = {"linear": linear, "mlp": mlp}  # of frozen features


def names():
    """Returns names that `build` takes; `wrn_DEPTH_WIDTH` may have any depth and width."""
    return list(NETWORKS)


def usage():
    """Returns what `build` takes beside `names()`, for help texts."""
    return (
        "wrn_DEPTH_WIDTH, keras:APPLICATION, FILE.keras, module:function or FILE.py:function; or "
        "for frozen features (--features) linear or mlp"
    )


def is_head(name):
    """Returns whether a network takes frozen features, not images."""
    return name in HEADS


def takes_weights(name):
    """Returns whether a network has weights to choose: those of `keras.applications` have."""
    return name.startswith(applications.PREFIX)


def is_own(name):
    """Returns whether a network may begin with trained weights: users' own and Keras's may."""
    return takes_weights(name) or own.is_file(name) or own.is_function(name)


def is_file(name):
    """Returns whether a network is a file, with its weights."""
    return own.is_file(name)


def absolute(name, absolute_path):
    """Returns the name of a network with an absolute path, if there is a path in it.

    Args:
        name: String, as in `build`.
        absolute_path: Function of a path that returns it as absolute.
    """
    if takes_weights(name):
        return name
    place, colon, function = name.rpartition(":")
    if own.is_file(name):
        return absolute_path(name)
    return f"{absolute_path(place)}:{function}" if colon and place.endswith(".py") else name


def check_there(name, weights=None):
    """Raises the `UserError` of a network or weights that are not there. It builds nothing."""
    if takes_weights(name):
        if weights not in (None, *applications.WEIGHTS):
            applications.check_weights(weights)
    elif own.is_file(name):
        own.check_file(name)
    elif own.is_function(name):
        own.find_function(name)


def find(name):
    """Returns the function that builds the network `name`: see `build`.

    It reads no file and imports no module of the user.

    Raises:
        ValueError: If there is no such network, or if it is too large to build.
    """
    if takes_weights(name):
        architecture = name.removeprefix(applications.PREFIX)
        applications.check(architecture)
        return functools.partial(applications.build, architecture)
    if own.is_file(name):
        return functools.partial(own.from_file, name)
    if own.is_function(name):
        return functools.partial(own.from_function, name)
    wide = re.fullmatch("wrn_([0-9]{1,99})_([0-9]{1,99})(|_torchssl|_uda|_usb)", name)
    if wide:
        check_size(int(wide[1]), int(wide[2]))
        return functools.partial(WIDE[wide[3]], int(wide[1]), int(wide[2]))
    if is_head(name):
        return HEADS[name]
    if name not in NETWORKS:
        nearest = difflib.get_close_matches(name, names(), 1, cutoff=0.0)[0]
        raise UserError(
            f"Unknown network {name!r}. Did you mean {nearest!r}? "
            f"Available: {', '.join(names())}, {usage()}."
        )
    return NETWORKS[name]


def accepted_options(name):
    """Returns the names of the keyword arguments that `build` takes for a network."""
    parameters = inspect.signature(find(name)).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in _INTERNAL]


def build(
    name,
    image_shape,
    num_classes,
    *,
    batch_norm_momentum=None,
    batch_norm_epsilon=None,
    normalization=None,
    notes=None,
    statistics=None,
    **options,
):
    """Builds a classifier by name.

    Args:
        name: String, one of `names()`; or `wrn_DEPTH_WIDTH` with a depth of 6n + 4, then nothing
            (FixMatch's), `_torchssl`, `_usb` or `_uda`; or `keras:NAME` for a member of
            `keras.applications`; or the path of a `.keras` file; or `module:function` or
            `path/to/file.py:function` for a function of `(image_shape, num_classes)` that returns
            a `keras.Model`; or a head, `linear` or `mlp`, which takes features in place of images.
        image_shape: Tuple `(height, width, channels)`; of a head, `(num_features,)`.
        num_classes: Integer, the number of logits.
        batch_norm_momentum: Float in [0, 1], the fraction of the moving average that each step
            keeps after warm-up (see `BatchNormalization`). None means the network's default.
            PyTorch's momentum is 1 minus this.
        batch_norm_epsilon: Float above 0, added to the variance. None means the network's default.
        normalization: Tuple `(means, deviations)` with a pixel value in [0, 255] for each channel,
            or a `Normalization`, as from `pixel_normalization`. The network subtracts the mean and
            divides by the deviation, and whitens patches if there is a kernel for it. None scales
            pixels to [-1, 1].
        notes: Optional list, to which lines about changes to a user's network are appended.
        statistics: For a head, what `feature_statistics` returns, or None.
        **options: Keyword arguments of the network's function. Some networks take `leaky_slope`
            (the slope for negative inputs), `weight_norm` or `dropout`; those of Keras take
            `weights`.

    Returns:
        A `keras.Model` from pixels (uint8, or float in 0..255) to float32 logits.

    Raises:
        ValueError: If there is no such network, or it does not take an option.
    """
    network, accepted = find(name), accepted_options(name)
    given = {
        "batch_norm_momentum": batch_norm_momentum,
        "batch_norm_epsilon": batch_norm_epsilon,
        "normalization": normalization,
    }
    options.update({key: value for key, value in given.items() if value is not None})
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise UserError(
            f"{name!r} does not take {unknown}. It takes: {', '.join(accepted) or 'nothing'}."
        )
    if own.is_file(name):
        options["notes"] = notes
    if is_head(name):
        options["statistics"] = statistics
    return network(tuple(image_shape), num_classes, **options)
