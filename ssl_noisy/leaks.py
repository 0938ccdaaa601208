# SPDX-License-Identifier: Apache-2.0
"""Results that no honest run has: labels of other regimes, another order, the opposite meaning."""

import itertools

import numpy as np

from ssl_noisy import challenge
from ssl_noisy.data import cifar_n

# Two sets of labels show errors without any learning. Where CIFAR-10N's three random sets are not
# unanimous, `worst` is wrong: F1 = 0.993; where `worst` and `aggre` differ: 0.915. The true mask of
# `worst` has a Jaccard index of 0.986 with the first, so that a perfect detector is no leak.
_SAME = 0.99
_BETTER = 0.1  # a gain in F1 or accuracy far above chance: its std is below 0.01 on CIFAR


def of_detection(flagged, truth, label_sets):
    """Returns why a detection cannot be that of an honest run, or None.

    Args:
        flagged: Bool array of shape `(num_train,)`.
        truth: The `challenge.Truth` of the regime.
        label_sets: Dict from name to the given labels of all noisy regimes of the data set.
    """
    for count in range(2, len(label_sets) + 1):
        for names in itertools.combinations(label_sets, count):
            first, *others = (label_sets[name] for name in names)
            differ = np.any([other != first for other in others], axis=0)
            either = np.sum(flagged | differ)
            if either and np.sum(flagged & differ) / either >= _SAME:
                return (
                    f"flags the labels that differ between {', '.join(names)}. A run must read "
                    "the labels of its own regime alone"
                )
    wrong = truth.corrupted
    if flagged.any() and not flagged.all() and wrong[flagged].mean() < wrong[~flagged].mean() / 2:
        return (
            f"seems inverted: {wrong[flagged].mean():.1%} of the flagged labels are wrong, and "
            f"{wrong[~flagged].mean():.1%} of the others. True must mean corrupted"
        )
    return _of_order(flagged, lambda v: challenge.detection_score(v, wrong)["f1"], "F1", "train")


def of_predictions(predictions, truth):
    """Returns why predictions cannot be those of an honest run, or None."""
    score = lambda v: np.mean(v == truth.test_labels)  # noqa: E731
    return _of_order(predictions, score, "accuracy", "test")


def _of_order(values, score, name, split):
    """Finds results in TFDS's order, which gives each label to another image."""
    if len(values) != {"train": challenge.NUM_TRAIN, "test": challenge.NUM_TEST}[split]:
        return None
    moved = np.empty_like(values)
    moved[cifar_n.tfds_order(split, len(values))] = values
    here, there = score(values), score(moved)
    if there <= here + _BETTER:
        return None
    return (
        f"is in the order of TFDS's files: {name} {there:.1%}, and {here:.1%} as it is. Sort by id"
    )
