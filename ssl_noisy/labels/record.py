# SPDX-License-Identifier: Apache-2.0
"""A record of how the label of each example was learned, which the step keeps on the device."""

import numpy as np
from keras import ops

from ssl_noisy import losses

# The columns of a record: sums, and values of the last observation. They are followed by a sum of
# probabilities for each class.
SUMS = ("margin_sum", "loss_sum", "cores_sum", "observations", "margins", "agreements", "forgotten")
LAST = ("margin", "loss", "is_correct")
COLUMNS = (*SUMS, *LAST)
UNKNOWN = -1  # a prediction, or whether it was right


def initial(num_examples, num_classes):
    """Returns an empty record: float32 zeros.

    The shape is `(num_examples, len(COLUMNS) + num_classes)`, 22 MB for CIFAR-100. Counts are exact
    up to 2^24. One array is updated faster than several.
    """
    return np.zeros((num_examples, len(COLUMNS) + num_classes), "float32")


def updated(rows, indices, given_labels, logits):
    """Updates the record with the logits of a batch. No gradient flows.

    An observation is one forward pass of an example. The margin of the first observation does not
    count: it reflects the initial weights more than the example (Pleiss et al., 2020, skip the
    first epoch). Unlabeled examples are not recorded. An example that occurs twice in a batch
    counts twice, and its last place determines its last prediction.

    Args:
        rows: Float32 tensor, of the shape of `initial`.
        indices: int32 `(batch_size,)`, positions of the examples.
        given_labels: int32 `(batch_size,)`, -1 for unlabeled examples.
        logits: Float `(batch_size, num_classes)`.

    Returns:
        The new `rows`.
    """
    logits = ops.cast(ops.stop_gradient(logits), "float32")
    is_labeled, labels = given_labels >= 0, ops.maximum(given_labels, 0)
    # (batch_size, batch_size): the same example at a later place. Keras's `fit` feeds batches of
    # unknown size on TensorFlow.
    place = ops.arange(ops.shape(indices)[0])
    later = (indices[None] == indices[:, None]) & (place[None] > place[:, None])
    later = later & is_labeled[None]
    is_last = is_labeled & ~ops.any(later, axis=1)
    old = ops.take(rows, indices, axis=0)

    margin, loss = losses.margin(labels, logits), losses.cross_entropy(labels, logits)
    probs = ops.softmax(logits, axis=-1)
    is_correct = ops.equal(ops.cast(ops.argmax(logits, axis=-1), "int32"), labels)
    again = is_labeled & (old[:, COLUMNS.index("observations")] > 0)
    was_correct = old[:, COLUMNS.index("is_correct")] > 0
    forgotten = is_last & was_correct & ~is_correct
    flags = [ops.cast(flag, "float32") for flag in (is_labeled, again, is_correct, forgotten)]
    labeled, again, correct, forgotten = flags
    cores = loss - losses.uniform_cross_entropy(logits)  # `losses.cores`
    sums = (margin * again, loss * labeled, cores * labeled, labeled, again, correct * labeled)
    last = ops.stack([margin, loss, correct], axis=-1)
    # Values of the last observation change by their difference, and only at the last place:
    # additions to one row may occur in any order.
    last = ops.where(is_last[:, None], last - old[:, len(SUMS) : len(COLUMNS)], 0.0)
    sums = ops.stack([*sums, forgotten], axis=-1)
    change = ops.concatenate([sums, last, probs * labeled[:, None]], axis=-1)
    return ops.scatter_update(rows, indices[:, None], change, reduction="add")


def read(rows, given_labels):
    """Returns the record of n examples as a dict of arrays of shape `(n,)`.

    Args:
        rows: Float array `(n, len(COLUMNS) + num_classes)`, rows of a record.
        given_labels: Integer array `(n,)`, -1 for unlabeled examples.

    Returns:
        `observations`, int; `aum`, the mean margin from the second observation on; `margin` and
        `loss`, the last; `mean_loss`; `agreement`, the fraction of observations whose prediction
        was the given label, and `wrong_predictions`, the number of the others; `prediction`, the
        class of the largest mean probability; `label_probability`, the mean probability of the
        given label, and `probability_margin`, that minus the largest mean probability of another
        class; `last_correct`, whether the last prediction was the given label;
        `forgetting_events`, int: from right to wrong; `cores`, the mean of `losses.cores`.
        Floats are float64, NaN where unknown; `prediction` and `last_correct` are -1 there.

    Reference:
        [Pickler et al., 2025](https://arxiv.org/abs/2510.16211), margins of averaged
        probabilities; [Zhang et al., 2025](https://arxiv.org/abs/2505.00812), wrong predictions
        ("wrong events").
    """
    rows = np.asarray(rows, "float64")
    kept = dict(zip(COLUMNS, rows.T))
    observations = kept["observations"]
    seen = observations > 0
    probs = mean_probabilities(rows)
    with np.errstate(invalid="ignore", divide="ignore"):
        others = probs.copy()
        each, labels = np.arange(len(rows)), np.maximum(given_labels, 0)
        others[each, labels] = -np.inf
        probability = probs[each, labels]
        return {
            "observations": observations.astype("int64"),
            "aum": kept["margin_sum"] / kept["margins"],
            "margin": np.where(seen, kept["margin"], np.nan),
            "loss": np.where(seen, kept["loss"], np.nan),
            "mean_loss": kept["loss_sum"] / observations,
            "label_probability": probability,
            "probability_margin": probability - others.max(axis=1),
            "agreement": kept["agreements"] / observations,
            "wrong_predictions": (observations - kept["agreements"]).astype("int64"),
            "cores": kept["cores_sum"] / observations,
            "prediction": np.where(seen, probs.argmax(axis=1), UNKNOWN),
            "last_correct": np.where(seen, kept["is_correct"], UNKNOWN).astype("int64"),
            "forgetting_events": kept["forgotten"].astype("int64"),
        }


def mean_probabilities(rows):
    """Returns the mean probabilities of n examples, float64 `(n, num_classes)`; NaN if unseen.

    Args:
        rows: Float array `(n, len(COLUMNS) + num_classes)`, rows of a record.
    """
    rows = np.asarray(rows, "float64")
    with np.errstate(invalid="ignore", divide="ignore"):
        return rows[:, len(COLUMNS) :] / rows[:, COLUMNS.index("observations"), None]


# `average` sums the counts of several records and averages the others.
COUNTS = ("observations", "wrong_predictions", "forgetting_events")
MEANS = ("aum", "margin", "loss", "mean_loss", "label_probability", "probability_margin")
MEANS += ("agreement", "cores")


def masked(kept, is_known):
    """Returns a record without the examples where a bool array `(n,)` is False."""
    blanks = {"prediction": UNKNOWN, "last_correct": UNKNOWN, **dict.fromkeys(COUNTS, 0)}
    return {k: np.where(is_known, v, blanks.get(k, np.nan)) for k, v in kept.items()}


def average(records):
    """Returns the mean of several records of the same examples.

    Args:
        records: Sequence of dicts, as from `read`. A record that has NaN and 0 `observations` for
            an example does not count for it.

    Returns:
        Such a dict, with sums of counts, and `passes`, int: the number of records that know an
        example.
        `prediction` and `last_correct` are those of the last record that knows them.
    """
    weights = np.stack([one["observations"] > 0 for one in records]).astype("float64")
    result = {name: sum(one[name] for one in records) for name in COUNTS}
    result["passes"] = weights.sum(axis=0).astype("int64")
    for name in MEANS:
        values = np.stack([one[name] for one in records])
        known = weights * np.isfinite(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[name] = np.sum(np.where(known > 0, values, 0), axis=0) / known.sum(axis=0)
    for name in ("prediction", "last_correct"):
        result[name] = np.full(len(result["observations"]), UNKNOWN)
        for one in records:
            result[name] = np.where(one[name] != UNKNOWN, one[name], result[name])
    return result
