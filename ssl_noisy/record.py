# SPDX-License-Identifier: Apache-2.0
"""A record of every example, kept on the device by the step itself: how its label was learned."""

import numpy as np
from keras import ops

from ssl_noisy import losses

SUMS = ("margin_sum", "loss_sum", "cores_sum", "margin", "loss")
COUNTS = ("observations", "margins", "agreements", "forgetting_events", "prediction", "is_correct")


def initial(num_examples):
    """Returns the record of examples that were never seen.

    Returns:
        A dict of arrays: `record_sums`, float32 `(num_examples, len(SUMS))`, and
        `record_counts`, int32 `(num_examples, len(COUNTS))`, zeros.
    """
    return {
        "record_sums": np.zeros((num_examples, len(SUMS)), "float32"),
        "record_counts": np.zeros((num_examples, len(COUNTS)), "int32"),
    }


def updated(sums, counts, indices, given_labels, logits):
    """Takes the logits of a batch into the record, without gradient.

    An observation is one passage of an example through the network. The margin of the first is
    left out: it says more of the initial weights than of the example (Pleiss et al., 2020, leave
    out the first epoch). Unlabeled examples are not recorded. An example that comes twice in a
    batch counts twice; its last place decides what is remembered as its last prediction.

    Args:
        sums, counts: Tensors, of the shapes of `initial`.
        indices: int32 `(batch_size,)`, the examples.
        given_labels: int32 `(batch_size,)`, -1 where there is none.
        logits: Float `(batch_size, num_classes)`.

    Returns:
        The new `(sums, counts)`.
    """
    logits = ops.cast(ops.stop_gradient(logits), "float32")
    is_labeled, labels = given_labels >= 0, ops.maximum(given_labels, 0)
    # (batch_size, batch_size): the same example at a later place.
    place = ops.arange(indices.shape[0])
    later = (indices[None] == indices[:, None]) & (place[None] > place[:, None])
    is_last = is_labeled & ~ops.any(later, axis=1)
    old_sums, old_counts = ops.take(sums, indices, axis=0), ops.take(counts, indices, axis=0)

    margin, loss = losses.margin(labels, logits), losses.cross_entropy(labels, logits)
    again = is_labeled & (old_counts[:, COUNTS.index("observations")] > 0)
    change = {
        "margin_sum": ops.where(again, margin, 0.0),
        "loss_sum": ops.where(is_labeled, loss, 0.0),
        "cores_sum": ops.where(is_labeled, losses.cores(labels, logits), 0.0),
        # What is remembered and not summed changes by its difference, at its last place alone:
        # additions to one place may come in any order.
        "margin": ops.where(is_last, margin - old_sums[:, SUMS.index("margin")], 0.0),
        "loss": ops.where(is_last, loss - old_sums[:, SUMS.index("loss")], 0.0),
    }
    sums = _added(sums, indices, change, SUMS)

    prediction = ops.cast(ops.argmax(logits, axis=-1), "int32")
    is_correct = prediction == labels
    was_correct = old_counts[:, COUNTS.index("is_correct")]
    correct = ops.cast(is_correct, "int32")
    change = {
        "observations": is_labeled,
        "margins": again,
        "agreements": is_labeled & is_correct,
        "forgetting_events": is_last & ~is_correct & (was_correct == 1),
        "prediction": ops.where(is_last, prediction - old_counts[:, COUNTS.index("prediction")], 0),
        "is_correct": ops.where(is_last, correct - was_correct, 0),
    }
    return sums, _added(counts, indices, change, COUNTS)


def _added(values, indices, change, names):
    rows = ops.stack([ops.cast(change[name], values.dtype) for name in names], axis=-1)
    return ops.scatter_update(values, indices[:, None], rows, reduction="add")


def read(sums, counts, positions=slice(None)):
    """Returns the record of the examples at `positions` as a dict of arrays of shape `(n,)`.

    Args:
        sums, counts: Arrays, of the shapes of `initial`.
        positions: Integer array of shape `(n,)`, or a slice.

    Returns:
        `observations`, int; `aum`, the mean margin from the second observation on; `margin` and
        `loss`, the last; `mean_loss`; `agreement`, the share of observations whose prediction was
        the given label; `prediction` and `last_correct`, int, -1 where there is none;
        `forgetting_events`, int: from right to wrong; `cores`, the mean of `losses.cores`. Floats
        are float64, NaN where unknown.
    """
    sums = dict(zip(SUMS, np.asarray(sums, "float64")[positions].T))
    counts = dict(zip(COUNTS, np.asarray(counts)[positions].T))
    seen, observations = counts["observations"] > 0, counts["observations"]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "observations": observations,
            "aum": sums["margin_sum"] / counts["margins"],
            "margin": np.where(seen, sums["margin"], np.nan),
            "loss": np.where(seen, sums["loss"], np.nan),
            "mean_loss": sums["loss_sum"] / observations,
            "agreement": counts["agreements"] / observations,
            "cores": sums["cores_sum"] / observations,
            "prediction": np.where(seen, counts["prediction"], -1),
            "last_correct": np.where(seen, counts["is_correct"], -1),
            "forgetting_events": counts["forgetting_events"],
        }


def masked(kept, is_known):
    """Returns a record in which the examples outside of a bool array `(n,)` were never seen."""
    blanks = {"prediction": -1, "last_correct": -1, "observations": 0, "forgetting_events": 0}
    return {k: np.where(is_known, v, blanks.get(k, np.nan)) for k, v in kept.items()}


def average(records):
    """Returns the mean of several records of the same examples, each where it knows them.

    Args:
        records: Sequence of dicts, as `read` gives them; one with NaN and 0 `observations` for an
            example leaves that example to the others.

    Returns:
        Such a dict. `prediction` and `last_correct` are those of the last record that knows them.
    """
    weights = np.stack([one["observations"] > 0 for one in records]).astype("float64")
    result = {"observations": sum(one["observations"] for one in records)}
    for name in ("aum", "margin", "loss", "mean_loss", "agreement", "cores"):
        values = np.stack([one[name] for one in records])
        known = weights * np.isfinite(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            result[name] = np.sum(np.where(known > 0, values, 0), axis=0) / known.sum(axis=0)
    for name in ("prediction", "last_correct"):
        result[name] = np.full(len(result["observations"]), -1)
        for one in records:
            result[name] = np.where(one[name] >= 0, one[name], result[name])
    result["forgetting_events"] = sum(one["forgetting_events"] for one in records)
    return result
