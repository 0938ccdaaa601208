# SPDX-License-Identifier: Apache-2.0
"""SimiFeat: labels that disagree with those of the nearest neighbors in a feature space."""

import numpy as np

from ssl_noisy.data.feature_file import normalized

NUM_VOTERS = 10  # the example itself among them
CLIPPED = (0.05, 0.95)  # rates instead of those at or beyond 0 and 1
TINY = 1e-8


def nearest(features, count, among=None):
    """Finds the nearest examples by cosine similarity, exactly, in bounded memory.

    Args:
        features: Float array `(n, num_features)`.
        count: Positive integer, the neighbors of each example.
        among: Float array `(m, num_features)`, the examples to choose from. None: the others of
            `features`, without the example itself.

    Returns:
        `(positions, similarities)`, int64 and float32 arrays `(n, count)`, the most similar first.
        `count` is at most the number of examples to choose from.
    """
    from sklearn.neighbors import NearestNeighbors  # late: it takes a second

    unit = normalized(features)
    others = unit if among is None else normalized(among)
    count = min(count, len(others) - (among is None))
    # On unit vectors, the order of Euclidean distances is that of cosine similarities.
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(others)
    positions = search.kneighbors(None if among is None else unit, return_distance=False)
    similarities = np.stack(
        [np.einsum("ij,ij->i", unit, others[column]) for column in positions.T], axis=1
    )
    order = np.argsort(-similarities, axis=1, kind="stable")
    positions = np.take_along_axis(positions, order, axis=1).astype(np.int64)
    return positions, np.take_along_axis(similarities, order, axis=1)


def votes(labels, positions, similarities, num_classes, count=NUM_VOTERS):
    """Sums the similarities of each example's neighbors by their labels.

    The example itself votes, too, as in the authors' code (UCSC-REAL/SimiFeat, 2ef305a; Docta,
    01c9a75). Its similarity of 1 would outweigh the others. It counts as much as if it were one
    step nearer than the nearest neighbor, as far as that is from the second: 2 s1 - s2.
    One departure: a negative similarity counts as 0. In that code it makes a logarithm NaN.

    Args:
        labels: Integer array `(n,)`, the given labels.
        positions, similarities: Arrays `(n, k)` as from `nearest`, k at least 2.
        num_classes: Integer.
        count: Number of voters, the example itself among them. Of fewer, all vote.

    Returns:
        A float64 array `(n, num_classes)`. Rows have length 1, or 0 without positive similarity.
    """
    labels = np.asarray(labels)
    similarities = np.asarray(similarities, "float64")
    own = 2 * similarities[:, 0] - similarities[:, 1]
    weights = np.column_stack([own, similarities[:, : count - 1]])
    voters = np.column_stack([labels, labels[positions[:, : count - 1]]])
    found, rows = np.zeros((len(labels), num_classes)), np.arange(len(labels))
    for weight, label in zip(np.maximum(weights, 0).T, voters.T):
        found[rows, label] += weight
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.maximum(lengths, 1e-12)


def by_vote(found, labels):
    """Flags labels that lose the vote, SimiFeat-V.

    Args:
        found: Float array `(n, num_classes)`, as from `votes`.
        labels: Integer array `(n,)`.

    Returns:
        `(score, flagged)`: the largest vote for another class minus that for the label, float
        `(n,)`, NaN where nobody votes; and where it is positive, bool `(n,)`.

    Reference:
        [Zhu et al., 2022](https://arxiv.org/abs/2110.06283).
    """
    rows, others = np.arange(len(labels)), np.array(found)
    own = others[rows, labels]
    others[rows, labels] = -1
    score = np.where(found.any(axis=1), others.max(axis=1) - own, np.nan)
    return score, score > 0


def by_rank(found, labels, transition_matrix, prior):
    """Flags in each class the labels with the smallest votes, as many as are wrong, SimiFeat-R.

    Of the labels of a class c, the fraction 1 - T[c, c] P(c) / P(given c) is estimated to be wrong.
    At or below 0 it counts as 5 %, at or above 1 as 95 %, as in the authors' code, so some labels
    of each class are always flagged. Those with a score at or above that percentile are.

    Args:
        found, labels: As for `by_vote`.
        transition_matrix, prior: Float arrays `(num_classes, num_classes)` and `(num_classes,)`, as
            from `consensus.estimate`.

    Returns:
        `(score, flagged)`: minus the logarithm of the vote for the label, float `(n,)`, NaN where
        nobody votes; and a bool array `(n,)`.

    Reference:
        [Zhu et al., 2022](https://arxiv.org/abs/2110.06283).
    """
    labels = np.asarray(labels)
    score = -np.log(found[np.arange(len(labels)), labels] + TINY)
    score = np.where(found.any(axis=1), score, np.nan)
    flagged = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = labels == label
        known = members & np.isfinite(score)
        if known.any():
            right = transition_matrix[label, label] * prior[label] / members.mean()
            rate = 1 - min(right, 1)
            rate = CLIPPED[0] if rate <= 0 else CLIPPED[1] if rate >= 1 else rate
            flagged |= known & (score >= np.percentile(score[known], 100 * (1 - rate)))
    return score, flagged
