# SPDX-License-Identifier: Apache-2.0
"""Distances between many rows of features, in bounded memory."""

import numpy as np

_ENTRIES = 2**25  # similarities in memory at once, 128 MB


def mean_distances(features, num_neighbors) -> np.ndarray:
    """Returns the mean Euclidean distance of each row to its nearest other rows.

    Args:
        features: float32 array of shape `(num_examples, num_features)`.
        num_neighbors: Integer in `[1, num_examples)`.

    Returns:
        A float array of shape `(num_examples,)`.
    """
    from sklearn.neighbors import NearestNeighbors  # late: it takes a second

    found = NearestNeighbors(n_neighbors=num_neighbors, algorithm="brute").fit(features)
    distances, _ = found.kneighbors()  # without rows leaves out each row itself
    return distances.mean(axis=1)


def counts_within(features, others, radius) -> np.ndarray:
    """Counts, for each row, the rows of `others` at a distance below `radius`.

    Args:
        features: float32 array of shape `(num_examples, num_features)`, of length 1.
        others: float32 array of shape `(num_others, num_features)`, of length 1.
        radius: Float above 0.

    Returns:
        An int64 array of shape `(num_examples,)`.
    """
    counts = np.zeros(len(features), np.int64)
    step = max(_ENTRIES // max(len(others), 1), 1)
    for start in range(0, len(features), step):
        block = slice(start, start + step)
        counts[block] = _is_within(features[block], others, radius).sum(axis=1)
    return counts


def within(features, center, radius) -> np.ndarray:
    """Returns which rows are at a distance below `radius` of `center`, a row, as bools."""
    return _is_within(features, center[None], radius)[:, 0]


def _is_within(features, others, radius):
    # |a - b|^2 = 2 - 2 ab, for rows of length 1.
    return features @ others.T > 1 - radius**2 / 2


def pure_radius(features, clusters, purity, num_queries=5000) -> float:
    """Returns the largest radius at which most balls hold members of one cluster alone.

    A ball around an example is pure if all examples at a distance below the radius are of its
    cluster. So it is pure up to the distance of the nearest example of another cluster.

    Args:
        features: float32 array of shape `(num_examples, num_features)`, of length 1.
        clusters: Integer array of shape `(num_examples,)`, of at least two clusters.
        purity: Float in (0, 1], the fraction of balls that must be pure.
        num_queries: Positive integer. Of more examples, so many balls, evenly spaced, are looked
            at, each among all examples.

    Returns:
        A float in [0, 2].
    """
    spaced = np.linspace(0, len(features) - 1, min(num_queries, len(features)))
    queries = np.unique(spaced.astype(np.int64))
    largest = np.empty(len(queries), np.float32)  # similarity to another cluster
    step = max(_ENTRIES // len(features), 1)
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        similarities = features[rows] @ features.T
        similarities[clusters[rows][:, None] == clusters] = -1
        largest[start : start + step] = similarities.max(axis=1)
    radii = np.sqrt(np.maximum(2 - 2 * np.sort(largest)[::-1].astype(np.float64), 0))
    impure = int((1 - purity) * len(radii) + 1e-9)  # so many balls may be impure
    return float(radii[impure])
