# SPDX-License-Identifier: Apache-2.0
"""Label propagation: few labels spread along a graph of nearest neighbors."""

import dataclasses

import numpy as np

from ssl_noisy.probes import held_out, neighbors

NUM_NEIGHBORS = 50
SHARPNESS = 3  # the exponent of similarities
PERSISTENCE = 0.99  # the weight of the neighbors against the given labels
MOST_ITERATIONS = 20
TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Propagation:
    """Labels that have spread. See `fit`.

    Attributes:
        features: Float array `(n, num_features)`.
        degrees: Float64 array `(n,)`, the sum of each example's edges.
        scores: Float64 array `(n, num_classes)`, at least 0.
        held_out: Float64 array `(n, num_classes)`: the probabilities of the labeled examples, each
            without the labels of the example's fold. Rows of NaN are unlabeled or unknown.
        num_neighbors: Integer.
    """

    features: np.ndarray
    degrees: np.ndarray
    scores: np.ndarray
    held_out: np.ndarray
    num_neighbors: int

    def probs(self, features):
        """Returns the probabilities of new examples, float64 `(n, num_classes)`.

        A new example gets what the propagation would give it if it joined the graph without
        changing anything else: the sum of its neighbors' scores, each times its edge and divided by
        the square root of the neighbor's degree. The authors classify them with a network.

        Args:
            features: Float array `(n, num_features)`.
        """
        positions, similarities = neighbors.nearest(features, self.num_neighbors, self.features)
        edges = np.maximum(similarities, 0).astype("float64") ** SHARPNESS
        scaled = self.scores / np.sqrt(np.maximum(self.degrees, 1e-300))[:, None]
        total = np.zeros((len(features), scaled.shape[1]))
        for edge, column in zip(edges.T, positions.T):
            total += edge[:, None] * scaled[column]
        return probabilities(total)


def graph(positions, similarities):
    """Returns the weights of the edges, a symmetric sparse matrix.

    Args:
        positions, similarities: Arrays `(n, k)` as from `neighbors.nearest`.

    Returns:
        A `scipy.sparse.csr_array` of shape `(n, n)`: A + A^T, where A[i, j] is the similarity of i
        to its neighbor j to the third power, or 0 if it is negative.
    """
    from scipy import sparse  # late: few commands need it

    num_examples, count = positions.shape
    values = np.maximum(similarities, 0).astype("float64").ravel() ** SHARPNESS
    starts = np.arange(0, num_examples * count + 1, count)
    shape = (num_examples, num_examples)
    edges = sparse.csr_array((values, positions.ravel(), starts), shape=shape)
    return sparse.csr_array(edges + edges.T)


def propagate(edges, labels, num_classes):
    """Spreads labels along a graph.

    It solves (I - 0.99 S) Z = Y by conjugate gradients, at most 20 iterations for each class. S is
    the edges divided by the square roots of both degrees. Y[i, c] is 1 over the number of labels of
    class c if i is one of them.

    Args:
        edges: Symmetric sparse matrix `(n, n)`, as from `graph`.
        labels: Integer array `(n,)`; -1 is unlabeled.
        num_classes: Integer.

    Returns:
        A float64 array `(n, num_classes)`, negative numbers cut off.
    """
    from scipy import sparse  # late, as above

    labels, degrees = np.asarray(labels), edges.sum(axis=1)
    scale = sparse.diags_array(np.where(degrees > 0, 1 / np.sqrt(np.maximum(degrees, 1e-300)), 0))
    smooth = sparse.csr_array(scale @ edges @ scale)
    labeled = np.flatnonzero(labels >= 0)
    wanted = np.zeros((len(labels), num_classes))
    sizes = np.bincount(labels[labeled], minlength=num_classes)
    wanted[labeled, labels[labeled]] = 1 / sizes[labels[labeled]]
    return np.maximum(_solve(lambda x: x - PERSISTENCE * (smooth @ x), wanted), 0)


def _solve(product, wanted):
    """Solves the systems of all columns at once by conjugate gradients, from zero.

    A column stays as soon as its residual is at most 1e-6 of the right side.
    """
    found, residual = np.zeros_like(wanted), wanted.copy()
    direction, squares = residual.copy(), (residual**2).sum(axis=0)
    least = TOLERANCE**2 * squares
    for _ in range(MOST_ITERATIONS):
        is_open = squares > least
        if not is_open.any():
            break
        applied = product(direction)
        curvature = (direction * applied).sum(axis=0)
        step = np.where(is_open, squares / np.where(is_open, curvature, 1), 0)
        found += step * direction
        residual -= step * applied
        before, squares = squares, (residual**2).sum(axis=0)
        direction = (
            residual + np.where(is_open, squares / np.maximum(before, 1e-300), 0) * direction
        )
    return found


def probabilities(scores):
    """Returns scores divided by the sums of their rows; equal ones where nothing arrived."""
    totals = scores.sum(axis=1, keepdims=True)
    return np.where(totals > 0, scores / np.maximum(totals, 1e-300), 1 / scores.shape[1])


def fit(features, labels, num_classes, num_neighbors=NUM_NEIGHBORS, seed=0):
    """Spreads the labels of a few examples to all.

    It uses the authors' settings: 50 neighbors by cosine similarity, edges of the third power, 20
    iterations (ahmetius/LP-DeepSSL, d609a11). There, the features are those of a network that
    learns from the result; here they stay. As there, each class has the same total weight.

    Args:
        features: Float array `(n, num_features)`, finite.
        labels: Integer array `(n,)`; -1 is unlabeled.
        num_classes: Integer, at least 2.
        num_neighbors: Positive integer; of fewer other examples, all are neighbors.
        seed: Seed of the folds of `held_out`.

    Returns:
        A `Propagation`.

    Reference:
        [Iscen et al., 2019](https://arxiv.org/abs/1904.04717).
    """
    labels = np.asarray(labels)
    edges = graph(*neighbors.nearest(features, num_neighbors))
    labeled = np.flatnonzero(labels >= 0)
    num_folds = min(held_out.NUM_FOLDS, len(labeled))
    fold = held_out.folds(labels[labeled], num_folds, seed)
    probs = np.full((len(labels), num_classes), np.nan)
    for number in range(num_folds):
        rest, rows = labels.copy(), labeled[fold == number]
        rest[rows] = -1
        rows = rows[np.isin(labels[rows], rest)]  # of the others, nothing is known
        probs[rows] = probabilities(propagate(edges, rest, num_classes)[rows])
    scores = propagate(edges, labels, num_classes)
    return Propagation(np.asarray(features), edges.sum(axis=1), scores, probs, num_neighbors)
