# SPDX-License-Identifier: Apache-2.0
"""HOC: the transition matrix of label noise from the labels of two nearest neighbors."""

import numpy as np


def frequencies(labels, positions, num_classes):
    """Returns how often labels occur, alone, with the nearest neighbor's, and with the next one's.

    Args:
        labels: Integer array `(n,)`, the given labels.
        positions: Integer array `(n, k)`, the neighbors, the nearest first, k at least 2.
        num_classes: Integer K.

    Returns:
        Three float64 arrays of shapes `(K,)`, `(K, K)` and `(K, K, K)`; each sums to 1.
    """
    labels = np.asarray(labels, np.int64)
    keys, found = np.zeros(len(labels), np.int64), []
    for order, column in enumerate([labels, *labels[positions[:, :2]].T], 1):
        keys = keys * num_classes + column
        counts = np.bincount(keys, minlength=num_classes**order) / len(labels)
        found.append(counts.reshape([num_classes] * order))
    return found


def expected(transition_matrix, prior):
    """Returns the frequencies if an example and its two neighbors have one true class.

    Args:
        transition_matrix: Float array `(K, K)`, P(given | true), one row per true class.
        prior: Float array `(K,)`, P(true).

    Returns:
        As `frequencies`: sum_y P(y) T[y, a], sum_y P(y) T[y, a] T[y, b], and likewise with T[y, c].
    """
    num_classes = len(prior)
    weighted = prior[:, None] * transition_matrix
    pairs = (transition_matrix[:, :, None] * transition_matrix[:, None, :]).reshape(num_classes, -1)
    triples = pairs.T @ weighted
    shape = (num_classes,) * 3
    return [weighted.sum(axis=0), transition_matrix.T @ weighted, triples.reshape(shape)]


def estimate(found, steps=400):
    """Estimates the transition matrix and the prior from frequencies.

    They minimize the sum of the Euclidean distances of the three arrays from those expected, by
    Adam with the learning rate 0.1. The best of all steps but the first six counts. Rows of the
    matrix are a softmax and start from 0.94 on the diagonal with ten classes. One departure from
    the authors' code (UCSC-REAL/SimiFeat, 2ef305a): the prior starts from equal classes, not from
    random ones.

    Args:
        found: As from `frequencies`.
        steps: Positive integer.

    Returns:
        `(transition_matrix, prior)`, float64 arrays `(K, K)` and `(K,)`.

    Reference:
        [Zhu et al., 2021](https://arxiv.org/abs/2102.05291).
    """
    from scipy import special  # late: few commands need it
    from threadpoolctl import threadpool_limits

    num_classes = len(found[0])
    values = np.vstack([5 * np.eye(num_classes) - 1, np.full(num_classes, 1 / num_classes)])
    mean, square = np.zeros_like(values), np.zeros_like(values)
    best, least = None, np.inf
    with threadpool_limits(1):  # see `ni_erm.fit`
        for step in range(1, steps + 1):
            matrix, prior = special.softmax(values[:-1], axis=1), special.softmax(values[-1])
            distance, slopes = _objective(matrix, prior, found)
            if best is None or (step > 6 and distance < least):
                best, least = (matrix, prior), distance if step > 6 else np.inf
            mean = 0.9 * mean + 0.1 * slopes
            square = 0.999 * square + 0.001 * slopes**2
            corrected = np.sqrt(square / (1 - 0.999**step)) + 1e-8
            values = values - 0.1 * mean / (1 - 0.9**step) / corrected
    return best


def _objective(matrix, prior, found):
    """Returns the sum of the distances, and its gradient by the logits, `(K + 1, K)`."""
    total, slopes = 0.0, []
    for here, there in zip(expected(matrix, prior), found):
        distance = np.linalg.norm(here - there)
        total += distance
        slopes.append((here - there) / max(distance, 1e-12))
    of_matrix, of_prior = _gradients(matrix, prior, *slopes)
    of_matrix = matrix * (of_matrix - (matrix * of_matrix).sum(axis=1, keepdims=True))
    return total, np.vstack([of_matrix, prior * (of_prior - prior @ of_prior)])


def _gradients(matrix, prior, first, second, third):
    """Returns the gradients with respect to the transition matrix and the prior.

    Args:
        matrix, prior: As for `expected`.
        first, second, third: The gradients with respect to what `expected` returns.
    """
    num_classes = len(prior)
    pairs = (matrix[:, :, None] * matrix[:, None, :]).reshape(num_classes, -1)
    # Of each pair of the three places, summed over the labels that the example has there.
    thirds = sum(
        pairs @ np.moveaxis(third, place, 2).reshape(-1, num_classes) for place in range(3)
    )
    of_matrix = prior[:, None] * (first + matrix @ (second + second.T) + thirds)
    of_prior = matrix @ first + ((matrix @ second) * matrix).sum(axis=1)
    of_prior += ((pairs @ third.reshape(-1, num_classes)) * matrix).sum(axis=1)
    return of_matrix, of_prior
