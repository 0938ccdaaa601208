# SPDX-License-Identifier: Apache-2.0
"""What a finished run of an entry says about its labels and about the test images."""

import os
import typing

import numpy as np
from scipy import special

from ssl_noisy import model_file
from ssl_noisy.labels import detection
from ssl_noisy.runs import folder

_BATCH_SIZE = 250


class Results(typing.NamedTuple):
    """The arrays of a run, in the order of the published ids.

    Attributes:
        detection: Bool array `(num_train,)`: whether a label is called corrupted.
        test_logits: float32 array `(num_test, num_classes)`.
    """

    detection: np.ndarray
    test_logits: np.ndarray


def measure(run_dir, data, test_images):
    """Returns the `Results` of a finished run.

    Args:
        run_dir: The run folder.
        data: Dict of the arrays of its regime, as `isolation.read` returns it.
        test_images: uint8 array `(num_test, height, width, channels)`.

    Raises:
        UserError: If a file of the run cannot be read.
    """
    network, _ = model_file.read(os.path.join(run_dir, folder.MODEL))
    examples = detection.read_examples(os.path.join(run_dir, folder.EXAMPLES))
    of_train = np.zeros(len(data["ids_train"]), bool)
    of_train[np.searchsorted(data["ids_train"], examples["index"])] = examples["is_label_issue"]
    of_validation = held_out(
        _logits(network, data["images_validation"]), data["labels_validation"], of_train.mean()
    )
    ids = np.concatenate([data["ids_train"], data["ids_validation"]])
    flagged = np.concatenate([of_train, of_validation])[np.argsort(ids, kind="stable")]
    return Results(flagged, _logits(network, test_images))


def held_out(logits, given_labels, fraction):
    """Flags labels on which a network was not trained.

    Their margins cannot be compared with those in the record of the training: that network has
    seen them, and its record is a mean over many views and epochs. But both are random parts of
    one set, so they have the same fraction of wrong labels. As many are flagged, those with the
    smallest margin of the probabilities: that of the given label minus the largest other one.

    Args:
        logits: Float array `(n, num_classes)`.
        given_labels: Integer array `(n,)`.
        fraction: Float in [0, 1], that of the flagged training labels.

    Returns:
        Bool array `(n,)`. The number of flags is rounded; of equal margins the earlier ones count.
    """
    probs = special.softmax(np.asarray(logits, "float64"), axis=-1)
    rows = np.arange(len(probs))
    own = probs[rows, given_labels]
    probs[rows, given_labels] = -np.inf
    order = np.argsort(own - probs.max(axis=-1), kind="stable")
    flagged = np.zeros(len(order), bool)
    flagged[order[: round(float(fraction) * len(order))]] = True
    return flagged


def _logits(network, images):
    """Returns the float32 logits of images. The last batch is filled up, as in evaluations."""
    size = min(_BATCH_SIZE, len(images))
    padded = np.take(images, np.arange(-(-len(images) // size) * size), axis=0, mode="wrap")
    return np.asarray(network.predict(padded, batch_size=size, verbose=0), "float32")[: len(images)]
