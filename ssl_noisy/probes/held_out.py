# SPDX-License-Identifier: Apache-2.0
"""Folds for cross-validation, and what predictions on held-out examples say about labels."""

import numpy as np

NUM_FOLDS = 5


def folds(labels, num_folds=NUM_FOLDS, seed=0):
    """Deals examples out to folds of equal size, class by class.

    Each class is shuffled and dealt out where the class before it ended. So the folds differ by at
    most one example, overall and in each class. A class with fewer labels than folds is in as many
    folds as it has labels.

    Args:
        labels: Integer array `(n,)`.
        num_folds: Positive integer.
        seed: Non-negative integer.

    Returns:
        An int64 array `(n,)` in `[0, num_folds)`.
    """
    labels = np.asarray(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    found = np.empty(len(labels), np.int64)
    found[order] = np.arange(len(labels)) % num_folds
    return found


def margins(probs, labels):
    """Returns the probability of each label minus the largest probability of another class.

    Args:
        probs: Float array `(n, num_classes)`; a row of NaN is unknown.
        labels: Integer array `(n,)` in `[0, num_classes)`.

    Returns:
        A float array `(n,)` in [-1, 1], NaN where unknown. It is negative where the likeliest class
        is another one.
    """
    rows = np.arange(len(labels))
    others = np.array(probs, "float64")
    own = others[rows, labels]
    others[rows, labels] = -np.inf
    return own - others.max(axis=1)


def accuracy(probs, labels):
    """Returns the fraction of labels that are the likeliest class, None if none is known.

    Args:
        probs, labels: As for `margins`. Rows of NaN do not count.
    """
    known = np.isfinite(probs).all(axis=1)
    if not known.any():
        return None
    return float(np.mean(np.argmax(probs[known], axis=1) == np.asarray(labels)[known]))
