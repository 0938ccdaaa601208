# SPDX-License-Identifier: Apache-2.0
"""Classifiers of frozen features: functional Keras models from rows of numbers to logits."""

import keras
import numpy as np
from keras import layers

from ssl_noisy.networks import blocks

WIDTH = 256  # of the hidden layer of `mlp`
# How heads are trained by all methods, unless flags say otherwise: they learn in seconds.
TRAINING = {"steps": 1000, "steps_per_epoch": 100}


def linear(num_features, num_classes, *, statistics=None):
    """A linear classifier.

    Args:
        num_features: Tuple `(num_features,)`.
        num_classes: Integer, the number of logits.
        statistics: As from `feature_statistics`: features are centered by the mean and divided by
            the scale. None leaves them.

    Returns:
        A `keras.Model` from float features `(batch_size, num_features)` to float32 logits.
    """
    inputs, x = _inputs(num_features, statistics)
    return blocks.classifier(inputs, x, num_classes, "linear")


def mlp(num_features, num_classes, *, statistics=None):
    """A classifier with one hidden layer of 256 rectified units. See `linear`."""
    inputs, x = _inputs(num_features, statistics)
    x = layers.Dense(WIDTH, "relu", kernel_initializer="he_normal")(x)
    return blocks.classifier(inputs, x, num_classes, "mlp")


def feature_statistics(features):
    """Returns the mean of features, and the root of the mean variance of all of them.

    One scale for all keeps the features that vary little small.

    Args:
        features: Float array `(num_examples, num_rows, num_features)`, of which the first row of
            each example counts, or something that is indexed as one.

    Returns:
        A dict with `mean`, a list of floats, and `scale`, a float above 0.
    """
    size, sums, squares = len(features), 0.0, 0.0
    for start in range(0, size, 1024):
        sums = sums + np.asarray(features[start : start + 1024, 0], "float64").sum(axis=0)
    mean = sums / size
    for start in range(0, size, 1024):
        rows = np.asarray(features[start : start + 1024, 0], "float64") - mean
        squares = squares + (rows**2).sum(axis=0)
    scale = float(np.sqrt(np.mean(squares / size)))
    return {"mean": mean.tolist(), "scale": scale or 1.0}


def _inputs(num_features, statistics):
    inputs = x = keras.Input(num_features, name="features")
    if statistics is not None:
        scale = 1 / statistics["scale"]
        offset = [-scale * value for value in statistics["mean"]]
        x = layers.Rescaling(scale, offset, dtype="float32")(inputs)
    return inputs, x
