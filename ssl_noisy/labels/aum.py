# SPDX-License-Identifier: Apache-2.0
"""The area under the margin: the labels that it flags, and a calculator for your own loop."""

import numpy as np
from keras import ops

from ssl_noisy import losses
from ssl_noisy.data.dataset import fixed_shuffle
from ssl_noisy.errors import UserError

_STREAM = 0xA0A  # keeps the draw of threshold samples independent of other uses of the seed

COMBINE = ("and", "or")
THRESHOLD_SAMPLES = ("paper", "authors_code")


def threshold_sets(labeled, num_classes, *, seed, size="paper"):
    """Draws the threshold samples of two passes: examples that get an extra class.

    Nothing about that class can be learned, so its members have the margins of wrong labels.

    Args:
        labeled: Integer array, the positions of the labeled examples.
        num_classes: Integer, of the data.
        seed: Non-negative integer.
        size: `paper`: the average size of a class including the extra one, num_labeled //
            (num_classes + 1); `authors_code`: num_labeled // num_classes.

    Returns:
        Two disjoint increasing arrays of positions of the same size.

    Raises:
        ValueError: If there are too few labeled examples for one threshold sample.
    """
    count = len(labeled) // (num_classes + (size == "paper"))
    if count < 1:
        raise UserError(
            f"AUM needs at least {num_classes + 1} labeled examples, one of each class and of the "
            f"threshold samples. Received: {len(labeled)}. Label more of them."
        )
    order = np.asarray(labeled)[fixed_shuffle(len(labeled), [seed, _STREAM])]
    return np.sort(order[:count]), np.sort(order[count : 2 * count])


def threshold(threshold_aum, percentile=99.0):
    """Returns the area below which an example is flagged, a float.

    It is the area of the threshold sample above which `100 - percentile` percent of them lie: an
    example is flagged if more than that fraction have a strictly larger area. Without such a
    sample it is minus infinity, which flags nothing.

    Args:
        threshold_aum: Float array, the areas of the threshold samples. NaN do not count.
        percentile: Float in [0, 100].

    Reference:
        [Pleiss et al., 2020](https://arxiv.org/abs/2001.10528), section 3.2; the exact rule is
        that of asappresearch/aum at 892e76e.
    """
    known = np.sort(threshold_aum[np.isfinite(threshold_aum)])[::-1]
    # 100 - 99.9 is slightly below 0.1.
    too_many = int(round((100 - percentile) * len(known) / 100, 6)) + 1
    return float(known[too_many - 1]) if too_many <= len(known) else -float("inf")


def combined(flags, is_judge, combine="and"):
    """Combines the flags of several passes.

    An example is judged by the passes in which it was not a threshold sample.

    Args:
        flags: Sequence of bool arrays `(n,)`, one per pass.
        is_judge: Sequence of bool arrays `(n,)`: where that pass may judge.
        combine: `and`: flagged by all passes that judge it, as in the authors' code; `or`: by one
            of them.

    Returns:
        A bool array `(n,)`; False where no pass judges.
    """
    votes = sum(flag & judge for flag, judge in zip(flags, is_judge))
    judges = sum(judge.astype(int) for judge in is_judge)
    return (votes > 0) & (votes >= (judges if combine == "and" else 1))


class AUMCalculator:
    """The area under the margin of every example, for a training loop of your own.

    ```python
    aum = ssl_noisy.AUMCalculator(num_examples=len(images))
    for indices in batches:
        logits = network(images[indices], training=True)
        aum.update(logits, given_labels[indices], indices)  # before the weights are updated
        ...
    suspicious = np.argsort(aum.values)  # NaN, never seen, comes last
    ```

    The margin of an example is the logit of its given label minus the largest other logit. It is
    computed from logits, never from probabilities. The area is the mean of all margins, including
    the first ones, as in the package `aum` of the paper's authors. Skip the first epoch yourself,
    as they do.
    Sums are float64 on the host; a learner of this package keeps its own record, in float32, in
    the compiled step.

    Args:
        num_examples: Positive integer.

    Reference:
        [Pleiss et al., 2020](https://arxiv.org/abs/2001.10528), section 3.
    """

    def __init__(self, num_examples):
        if num_examples < 1:
            raise UserError(f"`num_examples` must be positive. Received: {num_examples}")
        self._sums = np.zeros(num_examples)
        self._counts = np.zeros(num_examples, "int64")

    def update(self, logits, labels, indices):
        """Adds one batch.

        Args:
            logits: Float array or tensor of shape `(batch_size, num_classes)`.
            labels: Integer array or tensor of shape `(batch_size,)`, the given labels, in
                `[0, num_classes)`.
            indices: Integer array or tensor of shape `(batch_size,)`, the positions of the
                examples, in `[0, num_examples)`. A repeated example counts repeatedly.

        Raises:
            ValueError: If shapes differ, or labels or indices are out of range.
        """
        logits, labels, indices = (ops.convert_to_numpy(v) for v in (logits, labels, indices))
        for name, values, size in (
            ("labels", labels, logits.shape[-1]),
            ("indices", indices, len(self._sums)),
        ):
            is_whole = values.dtype.kind in "iu" and values.shape == logits.shape[:1]
            if not is_whole or np.any((values < 0) | (values >= size)):
                raise UserError(
                    f"`{name}` must be integers of shape {logits.shape[:1]} in [0, {size}). "
                    f"Received: {values.dtype} {values.shape}, {values.min(initial=0)} to "
                    f"{values.max(initial=0)}"
                )
        margins = ops.convert_to_numpy(losses.margin(labels, logits))
        np.add.at(self._sums, indices, margins)
        np.add.at(self._counts, indices, 1)

    @property
    def values(self):
        """float64 array of shape `(num_examples,)`: the mean margins, NaN for unseen examples."""
        with np.errstate(invalid="ignore"):
            return self._sums / self._counts
