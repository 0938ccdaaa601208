# SPDX-License-Identifier: Apache-2.0
"""Models of label noise: how labels go wrong, and the draw of given labels from true ones."""

import dataclasses

import numpy as np
from scipy import special

from ssl_noisy.data.dataset import check_examples, fixed_shuffle
from ssl_noisy.errors import UserError

_STREAM = 0x7015E  # keeps the noise independent of other uses of the same seed
DRAWS = ("exact", "coin")

# CIFAR-10: truck -> automobile, bird -> airplane, cat <-> dog, deer -> horse.
_CIFAR10 = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
# The superclass, 0 to 19, of each fine class of CIFAR-100: both are numbered alphabetically.
_COARSE = """
 4  1 14  8  0  6  7  7 18  3  3 14  9 18  7 11  3  9  7 11  6 11  5 10  7
 6 13 15  3 15  0 11  1 10 12 14 16  9 11  5  5 19  8  8 15 13 14 17 18 10
16  4 17  4  2  0 17  4 18 17 10  3  2 12 12 16 12  1  9 19  2 10  0  1 16
12  9 13 15 13 16 19  2  4  6 19  5  5  8 19 18  1  2 15  6  0 17  8 14 13
"""


class NoiseError(UserError):
    """Noise that cannot be made or read. One line: what is required, what was received."""


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseModel:
    """How labels go wrong, depending only on the true class.

    Attributes:
        rates: Float array of shape `(num_classes,)`, in [0, 1]: the probability that an
            example of each class is chosen.
        targets: Float array of shape `(num_classes, num_classes)`, rows sum to 1: the
            distribution of a chosen example's given label, which may be the true one.

    Raises:
        NoiseError: If the arrays do not have this form.
    """

    rates: np.ndarray
    targets: np.ndarray

    def __post_init__(self):
        rates = np.asarray(self.rates, float)
        targets = _stochastic(self.targets, "`targets`")
        if rates.shape != targets.shape[:1] or not ((rates >= 0) & (rates <= 1)).all():
            raise NoiseError(
                f"`rates` must be {len(targets)} numbers in [0, 1]. Received: {self.rates!r}."
            )
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "targets", targets)

    @property
    def transition_matrix(self) -> np.ndarray:
        """P(given j given true i), of shape `(num_classes, num_classes)`."""
        return np.diag(1 - self.rates) + self.rates[:, None] * self.targets


@dataclasses.dataclass(frozen=True, eq=False)
class Noise:
    """The labels that a learner is given, and their origin.

    Attributes:
        given_labels: int32 array of shape `(num_labels,)`.
        definition: Their definition, as in `label_noise.make`.
        seed: Seed of the draw.
        draw: `exact` or `coin` as in `corrupt`, or `published`.
    """

    given_labels: np.ndarray
    definition: str
    seed: int
    draw: str


def symmetric(num_classes: int, rate: float, include_true: bool = False) -> NoiseModel:
    """Replaces labels of every class by any other class, all equally likely.

    Args:
        num_classes: Integer of at least 2.
        rate: Float in [0, 1).
        include_true: Whether a chosen example may get its true label, as in the tables of Arazo
            et al., DivideMix and ELR: the rate of wrong labels is then rate (1 - 1/num_classes).
    """
    others = np.ones((num_classes, num_classes)) - (not include_true) * np.eye(num_classes)
    return _uniform_rate(rate, others / others.sum(axis=1, keepdims=True))


def pair_flip(num_classes: int, rate: float) -> NoiseModel:
    """Replaces labels of every class by the next class, cyclically, with a `rate` in [0, 1)."""
    return _uniform_rate(rate, np.roll(np.eye(num_classes), 1, axis=1))


def asymmetric(dataset_name: str, rate: float, legacy_blocks: bool = False) -> NoiseModel:
    """Replaces labels by a similar class.

    CIFAR-10: truck to automobile, bird to airplane, cat to dog and dog to cat, deer to horse;
    the other five classes stay, so the rate of wrong labels is half of `rate`. CIFAR-100: the
    next class inside the superclass, cyclically.

    Args:
        dataset_name: `cifar10` or `cifar100`, or TFDS's `cifar10_n` or `cifar100_n`.
        rate: Float in [0, 1), of the classes that change.
        legacy_blocks: CIFAR-100 only: use blocks of fine classes, 5i to 5i + 4, as superclasses,
            as in the code of ELR and CrossSplit. They are neighbors only in the alphabet.
    """
    name = dataset_name.removesuffix("_n")
    if name not in ("cifar10", "cifar100") or (legacy_blocks and name == "cifar10"):
        raise NoiseError(
            f"{'legacy_blocks' if legacy_blocks else 'asymmetric'} noise is defined for "
            f"{'' if legacy_blocks else 'cifar10 and '}cifar100. Received: {dataset_name!r}. "
            "Use pair or matrix."
        )
    if name == "cifar10":
        following = np.array([_CIFAR10.get(index, index) for index in range(10)])
    else:
        groups = np.arange(100) // 5 if legacy_blocks else coarse_labels(np.arange(100))
        members = np.argsort(groups, kind="stable").reshape(20, 5)
        following = np.empty(100, int)
        following[members] = np.roll(members, -1, axis=1)
    stays = following == np.arange(len(following))
    return NoiseModel(np.where(stays, 0.0, checked_rate(rate)), np.eye(len(following))[following])


def coarse_labels(fine) -> np.ndarray:
    """Returns the CIFAR-100 superclasses, 0 to 19, of fine labels: int32 of the same shape."""
    return np.array(_COARSE.split(), np.int32)[np.asarray(fine)]


def from_matrix(matrix) -> NoiseModel:
    """Returns the noise model of a transition matrix.

    Args:
        matrix: Float array of shape `(num_classes, num_classes)`, rows sum to 1:
            P(given j given true i).

    Raises:
        NoiseError: If the array does not have this form.
    """
    matrix = _stochastic(matrix, "The transition matrix")
    rates = 1 - np.diag(matrix)
    others = matrix - np.diag(np.diag(matrix))
    # The targets have no effect where no label changes.
    targets = np.where(others.sum(axis=1, keepdims=True) > 0, others, np.eye(len(matrix)))
    return NoiseModel(rates, targets / targets.sum(axis=1, keepdims=True))


def corrupt(labels, model: NoiseModel, *, seed: int, draw: str = "exact") -> np.ndarray:
    """Draws given labels from true labels. The same arguments give the same labels everywhere.

    With the same seed, a higher rate changes the examples of a lower rate and more.

    Args:
        labels: Integer array of shape `(num_labels,)`, the true labels.
        model: A `NoiseModel` of their classes.
        seed: Non-negative integer.
        draw: `exact`: exactly this fraction, rounded down, of all examples whose classes have
            the same rate is chosen, as in DivideMix. `coin`: each example is chosen
            independently, as in AUM, so the number of wrong labels varies.

    Returns:
        int32 array of shape `(num_labels,)`.

    Raises:
        NoiseError: If an argument is invalid.
    """
    labels = _checked(labels, len(model.rates), seed)
    if draw not in DRAWS:
        raise NoiseError(f"draw must be one of {', '.join(DRAWS)}. Received: {draw!r}.")
    if draw == "coin":
        chosen = np.flatnonzero(_random(seed, 1).random(len(labels)) < model.rates[labels])
    else:
        order = fixed_shuffle(len(labels), [seed, _STREAM])
        # Rows of one rate may differ in the last bits. 0.29 * 100 is 28.999999999999996.
        _, shared = np.unique(np.round(model.rates, 9), return_inverse=True)
        groups = [order[shared[labels[order]] == group] for group in np.unique(shared[labels])]
        sizes = [int(round(model.rates[labels[group[0]]] * len(group), 6)) for group in groups]
        chosen = np.concatenate([group[:size] for group, size in zip(groups, sizes)])
    given_labels = labels.copy()
    uniform = _random(seed, 2).random(len(labels))
    given_labels[chosen] = _inverse_cdf(model.targets[labels[chosen]], uniform[chosen])
    return given_labels


def instance_dependent(images, labels, *, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Draws given labels that depend on the image, not only on the class.

    The rate of each example is drawn from N(rate, 0.1), truncated to (0, 1); a `rate` of 0
    changes nothing.
    Its class scores are the pixels, each image standardized, times a random normal projection of
    its class, and its wrong label is drawn from their softmax without the true class.

    Args:
        images: uint8 array of shape `(num_labels, height, width, channels)`.
        labels: Integer array of shape `(num_labels,)`, the true labels.
        rate: Float in [0, 1).
        num_classes: Integer of at least 2.
        seed: Non-negative integer.

    Returns:
        int32 array of shape `(num_labels,)`.

    Raises:
        NoiseError: If the rate or the seed is invalid.
        DatasetError: If the images or labels are invalid.

    Reference:
        [Xia et al., 2020](https://arxiv.org/abs/2006.07836). Here each image is standardized
        by itself, so the scores of an example do not depend on the others.
    """
    check_examples("noise", images, labels, num_classes)
    labels, rate = _checked(labels, num_classes, seed), checked_rate(rate)
    low, high = special.ndtr(np.array([0 - rate, 1 - rate]) / 0.1)
    quantiles = low + (high - low) * _random(seed, 3).random(len(labels))
    own_rates = (rate + 0.1 * special.ndtri(quantiles)) * (rate > 0)
    changed = _random(seed, 4).random(len(labels)) < own_rates
    uniform, given_labels = _random(seed, 5).random(len(labels)), labels.copy()
    for index in np.unique(labels[changed]):
        rows = np.flatnonzero(changed & (labels == index))
        pixels = images[rows].reshape(len(rows), -1).astype(np.float32)
        pixels -= pixels.mean(axis=1, keepdims=True)
        pixels /= pixels.std(axis=1, keepdims=True) + 1e-6
        projection = _random(seed, 6, index).standard_normal((pixels.shape[1], num_classes), "f4")
        scores = pixels @ projection
        scores[:, index] = -np.inf
        given_labels[rows] = _inverse_cdf(special.softmax(scores, axis=1), uniform[rows])
    return given_labels


def transition_counts(true_labels, given_labels, num_classes):
    cells = np.asarray(true_labels, np.int64) * num_classes + given_labels
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def checked_rate(rate, owner="The rate"):
    try:
        value = float(rate)
    except (TypeError, ValueError):
        value = np.nan
    if not 0 <= value < 1:
        raise NoiseError(f"{owner} must have a rate in [0, 1). Received: {rate!r}.")
    return value


def _stochastic(matrix, owner):
    """Returns the matrix with rows that sum to 1 exactly; they must do so up to rounding."""
    matrix = np.asarray(matrix)
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    if not square or matrix.dtype.kind not in "fiu":
        raise NoiseError(
            f"{owner} must be numbers of shape (num_classes, num_classes). Received: "
            f"{matrix.dtype} {matrix.shape}."
        )
    sums = matrix.sum(axis=1, keepdims=True)
    wrong = np.flatnonzero(~((np.abs(sums[:, 0] - 1) <= 1e-6) & (matrix >= 0).all(axis=1)))
    if wrong.size:
        row = wrong[0]
        raise NoiseError(
            f"{owner} must have rows of numbers >= 0 that sum to 1. Received: row {row} with "
            f"the sum {sums[row, 0]:g} and the minimum {matrix[row].min():g}. "
            "Divide each row by its sum."
        )
    return matrix / sums


def _uniform_rate(rate, targets):
    return NoiseModel(np.full(len(targets), checked_rate(rate)), targets)


def _checked(labels, num_classes, seed):
    labels = np.asarray(labels)
    integers = labels.dtype.kind in "iu" and labels.ndim == 1 and labels.size > 0
    if not integers or labels.min() < 0 or labels.max() >= num_classes or seed < 0:
        raise NoiseError(
            f"labels must be integers in [0, {num_classes}) of shape (num_labels,), and the seed "
            f"must be >= 0. Received: {labels.dtype} {labels.shape}"
            + (f", {labels.min()} to {labels.max()}" if integers else "")
            + f", seed {seed}."
        )
    return labels.astype(np.int32)


def _random(seed, *stream):
    return np.random.default_rng([seed, _STREAM, *stream])


def _inverse_cdf(probs, uniform):
    """Returns the class of each row into whose interval its number in [0, 1) falls."""
    edges = np.cumsum(probs, axis=1, dtype=np.float64)
    return np.argmax(uniform[:, None] < edges / edges[:, -1:], axis=1)
