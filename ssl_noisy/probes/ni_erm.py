# SPDX-License-Identifier: Apache-2.0
"""NI-ERM: logistic regression on frozen features, as if no label were wrong."""

import concurrent.futures
import dataclasses
import os
import warnings

import numpy as np

from ssl_noisy.probes import held_out

STRENGTHS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
ITERATIONS = (10, 20, 50, 100)


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """A fitted logistic regression. See `fit`.

    Attributes:
        strength: Float, the chosen inverse strength of the L2 penalty, scikit-learn's `C`.
        iterations: Integer, the chosen largest number of iterations, scikit-learn's `max_iter`.
        accuracies: Float array `(num_strengths, num_iterations)`, the mean over the folds of the
            accuracy on held-out given labels, of every setting.
        held_out: Float64 array `(n, num_classes)`: the probabilities of the training examples by
            the chosen setting, each fitted without the example's fold. Rows of NaN are unknown: no
            other fold had a label of that class.
        model: The classifier of scikit-learn, fitted to all labels.
        num_classes: Integer.
    """

    strength: float
    iterations: int
    accuracies: np.ndarray
    held_out: np.ndarray
    model: object
    num_classes: int

    @property
    def accuracy(self):
        """The mean accuracy over the folds of the chosen setting, a float in [0, 1]."""
        return float(self.accuracies.max())

    def probs(self, features):
        """Returns the probabilities of the classes, float64 `(n, num_classes)`.

        Args:
            features: Float array `(n, num_features)`.
        """
        return _probs(self.model, features, self.num_classes)


def fit(features, labels, num_classes, strengths=STRENGTHS, iterations=ITERATIONS, seed=0):
    """Fits a logistic regression to given labels, with the setting of the best cross-validation.

    The regression is multinomial, with an L2 penalty, by L-BFGS, on features as they are: neither
    standardized nor normalized. Five folds choose the strength of the penalty and the number of
    iterations, by the accuracy on the given labels, wrong ones included. Few iterations are a
    penalty, too. Of equal settings, the first one wins: the stronger penalty, then the fewer
    iterations. The same folds give the held-out probabilities.

    Two departures from the authors' code (allan-z/label_noise_ignorance, 1ab7e87). The folds are
    shuffled, because data may be sorted. A class with fewer labels than folds is allowed: it is
    missing from the folds that train without it, where its probability is 0.

    Args:
        features: Float array `(n, num_features)`, finite.
        labels: Integer array `(n,)` in `[0, num_classes)`, at least two classes.
        num_classes: Integer.
        strengths: Increasing floats, values of scikit-learn's `C`.
        iterations: Increasing integers, values of its `max_iter`.
        seed: Seed of the folds.

    Returns:
        A `Probe`.

    Raises:
        ValueError: If the labels have fewer than two classes.

    Reference:
        [Zhu et al., 2024](https://arxiv.org/abs/2411.00079).
    """
    from threadpoolctl import threadpool_limits  # late, as scikit-learn in `_path`

    labels = np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"The labels must have at least two classes. Received: {set(labels)}.")
    num_folds = min(held_out.NUM_FOLDS, len(labels))
    fold = held_out.folds(labels, num_folds, seed)

    def train(number):
        rest = fold != number
        return _path(features[rest], labels[rest], strengths, iterations)

    # One thread per fit: several threads of a linear algebra library disturb each other on small
    # matrices. On the digits and 2 cores, they took 120 times as long.
    with (
        warnings.catch_warnings(),
        threadpool_limits(1),
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        warnings.simplefilter("ignore")  # a fit that ends before it converges is wanted
        paths = list(pool.map(train, range(num_folds)))
        shape = (len(strengths), len(iterations))
        accuracies = np.zeros((num_folds, *shape))
        for number, models in enumerate(paths):
            left, wanted = features[fold == number], labels[fold == number]
            for place in np.ndindex(shape):
                predicted = models[place].predict(left)
                accuracies[number][place] = np.mean(predicted == wanted)
        accuracies = accuracies.mean(axis=0)
        best = np.unravel_index(np.argmax(accuracies), shape)
        probs = np.full((len(labels), num_classes), np.nan)
        for number, models in enumerate(paths):
            rows = np.flatnonzero(fold == number)
            rows = rows[np.isin(labels[rows], models[best].classes_)]
            if len(rows):
                probs[rows] = _probs(models[best], features[rows], num_classes)
        strength, count = strengths[best[0]], iterations[best[1]]
        model = _path(features, labels, (strength,), (count,))[0, 0]
    return Probe(strength, count, accuracies, probs, model, num_classes)


def _path(features, labels, strengths, iterations):
    """Returns the fitted classifier of each setting, an object array.

    L-BFGS does not depend on its largest number of iterations before it reaches that. So a fit
    that has converged is that of all larger numbers.
    """
    from sklearn.dummy import DummyClassifier  # late: it takes a second
    from sklearn.linear_model import LogisticRegression

    models = np.empty((len(strengths), len(iterations)), object)
    if len(np.unique(labels)) == 1:
        models[:] = DummyClassifier().fit(features, labels)
        return models
    for row, strength in enumerate(strengths):
        model, has_converged = None, False
        for column, count in enumerate(iterations):
            if not has_converged:
                model = LogisticRegression(C=strength, max_iter=count).fit(features, labels)
                has_converged = model.n_iter_.max() < count
            models[row, column] = model
    return models


def _probs(model, features, num_classes):
    """Returns probabilities for all classes: 0 for those that the model has not seen."""
    probs = np.zeros((len(features), num_classes))
    probs[:, model.classes_] = model.predict_proba(features)
    return probs
