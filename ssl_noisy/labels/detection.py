# SPDX-License-Identifier: Apache-2.0
"""Which labels are suspicious: detectors based on a training record, their measures and files."""

import csv
import dataclasses
import io

import numpy as np

from ssl_noisy.errors import UserError
from ssl_noisy.files import replacing
from ssl_noisy.labels import mixture

LEAST_LOSSES = 10  # fewer are too few to fit four shapes and a weight

ORDERS = ("index", "suspicion")  # of the rows of a file of examples
COLUMNS = {
    "index": int,
    "file": str,
    "given_label": int,
    "given_class": str,
    "predicted_label": int,
    "predicted_class": str,
    "label_quality": float,
    "is_label_issue": bool,
    "margin": float,
    "aum": float,
    "loss": float,
    "mean_loss": float,
    "cores": float,
    "posterior": float,
    "label_probability": float,
    "probability_margin": float,
    "observations": int,
    "agreement": float,
    "wrong_predictions": int,
    "last_correct": int,
    "forgetting_events": int,
}

ENDS = (0.001, 0.999)  # normalized losses of those at and beyond the ends of the fitted range

# The columns of `describe` and their titles. The last one assumes a review of as many labels as are
# wrong.
TABLE = ("flagged", "precision", "recall", "f1", "average_precision", "false_negative_rate")
SHORT = {"average_precision": "AP", "false_negative_rate": "missed by review"}


class ExamplesFileError(UserError):
    """A file of examples that cannot be read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Detector:
    """The verdict of one detector on n labels.

    Attributes:
        score: Float array `(n,)`. Larger means more suspicious; NaN where unknown.
        flagged: Bool array `(n,)`, the labels considered wrong; False where the score is unknown.
    """

    score: np.ndarray
    flagged: np.ndarray


def fit_posterior(losses):
    """Fits a beta mixture to losses and computes each one's probability of being noisy.

    As in the authors' code, the losses between their 5th and 95th percentiles are fitted. Two
    departures: the posterior is computed from the densities, not from a table of 100 entries, and
    it never falls as the loss grows. Without correction it may fall at the largest losses (as
    corrected by the authors) or rise at the smallest ones; there it keeps the value of its turning
    point.

    Args:
        losses: Float array `(n,)`, such as `mean_loss` of a record; NaN where unknown.

    Returns:
        `(fitted, x, posterior)`: the `BetaMixtureModel`, the normalized losses, float `(n,)`
        in [0.001, 0.999], and the posterior, float `(n,)` in [0, 1]; both NaN where the loss is.
        If there is nothing to fit (fewer than 10 known losses, or all equal), `fitted` is None
        and the others are NaN.

    Reference:
        [Arazo et al., 2019](https://arxiv.org/abs/1904.11238), section 3.1.
    """
    from ssl_noisy.labels.mixture_model import BetaMixtureModel  # late: it needs scikit-learn

    losses = np.asarray(losses, "float64")
    known = np.isfinite(losses)
    x, posterior = np.full(len(losses), np.nan), np.full(len(losses), np.nan)
    if known.sum() < LEAST_LOSSES:
        return None, x, posterior
    low, high = mixture.loss_range(losses)
    if high - low <= 1e-5:  # as much as `normalized` moves the lower end
        return None, x, posterior
    # `normalized` moves values at or beyond 0 and 1, but not those close to them. Clipping keeps
    # the order.
    x[known] = np.clip(mixture.normalized(losses[known], (low, high)), *ENDS)
    # Ten steps, as in the authors' code: steps of moments may converge to two equal components. On
    # the digits with 40 % wrong labels, 100 steps estimated 51 % noise and flagged all labels.
    within = x[(losses >= low) & (losses <= high)]
    fitted = BetaMixtureModel(max_iter=10, tol=0, init_params="kmeans").fit(within)
    posterior[known] = fitted.monotone_posterior(x[known])
    return fitted, x, posterior


def detectors(record, posterior, noise_rate, aum_threshold=0.0, aum_flagged=None):
    """Makes seven detectors from one training record.

    `probability_margin`: another class has the larger mean probability. `aum`: the mean margin is
    below `aum_threshold`; at 0, another class had on average the larger logit. `small_loss`: the
    mean loss is among the largest, as many as `noise_rate` says, rounded; of equal losses, the
    earlier ones. `posterior`: it is above 0.5. `agreement`: fewer than half of the predictions
    were the given label. `wrong_predictions`: the number of other predictions belongs to the upper
    component of a beta mixture. `cores`: the mean of CE - mean_k(-log p_k) is above 0, where CORES'
    sieve would remove the example.

    Args:
        record: Dict of arrays `(n,)`, as `record.read` or `record.average` gives it.
        posterior: Float array `(n,)`, as from `fit_posterior(record["mean_loss"])`.
        noise_rate: Float in [0, 1], the estimated fraction of wrong labels.
        aum_threshold: Float, in logits.
        aum_flagged: Bool array `(n,)`, the flags of the AUM method, instead of a threshold.

    Returns:
        A dict from name to `Detector`. Examples with a score that is not finite are unknown and
        never flagged.

    Reference:
        [Pickler et al., 2025](https://arxiv.org/abs/2510.16211);
        [Pleiss et al., 2020](https://arxiv.org/abs/2001.10528), section 3;
        [Arazo et al., 2019](https://arxiv.org/abs/1904.11238), section 3.1;
        [Zhang et al., 2025](https://arxiv.org/abs/2505.00812), the "wrong event";
        [Cheng et al., 2021](https://arxiv.org/abs/2010.02347), equation 4, without its ramp.
    """
    if aum_flagged is None:
        aum_flagged = record["aum"] < aum_threshold
    losses = np.where(np.isfinite(record["mean_loss"]), record["mean_loss"], -np.inf)
    count = round(noise_rate * int(np.isfinite(losses).sum()))
    largest = np.zeros(len(losses), bool)
    largest[np.argsort(-losses, kind="stable")[:count]] = True
    # Only one of AUM's two passes knows a threshold sample, so it was observed half as often.
    passes = np.maximum(record.get("passes", 1), 1)
    wrong = np.where(record["observations"] > 0, record["wrong_predictions"] / passes, np.nan)
    found = {
        "probability_margin": (-record["probability_margin"], record["probability_margin"] < 0),
        "aum": (-record["aum"], aum_flagged),
        "small_loss": (record["mean_loss"], largest),
        "posterior": (posterior, posterior > 0.5),
        "agreement": (1 - record["agreement"], record["agreement"] < 0.5),
        "wrong_predictions": (wrong, fit_posterior(wrong)[2] > 0.5),
        "cores": (record["cores"], record["cores"] > 0),
    }
    return {name: _detector(score, flagged) for name, (score, flagged) in found.items()}


def _detector(score, flagged):
    known = np.isfinite(score)
    return Detector(np.where(known, score, np.nan), flagged & known)


def measure(detector, is_wrong):
    """Measures a detector against the truth, on examples with a known score.

    Args:
        detector: A `Detector` of n labels.
        is_wrong: Bool array `(n,)`.

    Returns:
        A dict: `flagged`, a count; `precision`, `recall` and `f1` of the flags;
        `average_precision` of the scores; `precision_at_true_count`, the precision among as many
        of the most suspicious as labels are wrong: of those that tie for the last places it takes
        the mean share; `false_negative_rate`, the fraction of the wrong labels that a review of
        as many misses, which is 1 less that precision. Floats in [0, 1], None where 0 / 0.
    """
    from sklearn import metrics  # late: it takes a second, and few commands need it

    known = np.isfinite(detector.score)
    score, flagged = detector.score[known], detector.flagged[known]
    wrong = np.asarray(is_wrong, bool)[known]
    names = ("precision", "recall", "f1", "average_precision", "precision_at_true_count")
    names += ("false_negative_rate",)
    result = {"flagged": int(flagged.sum()), **dict.fromkeys(names)}
    if known.any():
        values = metrics.precision_recall_fscore_support(
            wrong, flagged, average="binary", zero_division=np.nan
        )
        for name, value in zip(names, values[:3]):
            result[name] = None if np.isnan(value) else float(value)
    if wrong.any():
        result["average_precision"] = float(metrics.average_precision_score(wrong, score))
        count = wrong.sum()
        last = np.sort(score)[-count]
        above, tied = score > last, score == last
        hits = wrong[above].sum() + (count - above.sum()) * wrong[tied].mean()
        result["precision_at_true_count"] = float(hits / count)
        result["false_negative_rate"] = 1 - result["precision_at_true_count"]
    return result


def rank_agreement(detectors):
    """Computes Spearman's rank correlation between the scores of all pairs of detectors.

    Args:
        detectors: Dict from name to `Detector`.

    Returns:
        A dict from name to a dict from name to a float in [-1, 1], on examples that both know.
        None if there are fewer than two such examples or a score is constant.
    """

    from scipy import stats  # late, as above

    def agreement(one, other):
        known = np.isfinite(one.score) & np.isfinite(other.score)
        a, b = one.score[known], other.score[known]
        if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
            return None
        return float(stats.spearmanr(a, b).statistic)

    return {
        name: {other: agreement(detectors[name], detectors[other]) for other in detectors}
        for name in detectors
    }


def report(detectors, noise_rate, is_wrong=None):
    """Summarizes the detectors of a run for its `result.json`.

    Args:
        detectors: Dict from name to `Detector`.
        noise_rate: Float in [0, 1], the estimated fraction of wrong labels.
        is_wrong: Bool array `(n,)`, or None if the truth is unknown.

    Returns:
        A dict: `estimated_noise_rate`, `rank_agreement`, and `detectors`, the count
        `flagged` of each. With `is_wrong` also `noise_rate`, the fraction of wrong
        labels; `noise_rate_error`, estimate minus truth; and `measure` of each detector.
    """
    result = {
        "estimated_noise_rate": float(noise_rate),
        "rank_agreement": rank_agreement(detectors),
    }
    if is_wrong is None:
        flagged = {name: {"flagged": int(one.flagged.sum())} for name, one in detectors.items()}
        return {**result, "detectors": flagged}
    true_rate = float(np.mean(is_wrong))
    return {
        **result,
        "noise_rate": true_rate,
        "noise_rate_error": result["estimated_noise_rate"] - true_rate,
        "detectors": {name: measure(one, is_wrong) for name, one in detectors.items()},
    }


def describe(report):
    """Returns the detectors of a `report` as a table for a terminal."""
    rows = report["detectors"]
    shown = [column for column in TABLE if column in next(iter(rows.values()))]
    return _table("detector", {n: {c: row[c] for c in shown} for n, row in rows.items()})


def _table(title, rows):
    """Lays out a dict of dicts with the same keys."""
    columns = list(next(iter(rows.values())))
    cells = [[title, *(SHORT.get(column, column) for column in columns)]]
    for name, row in rows.items():
        cells.append([name, *(_cell(row[column]) for column in columns)])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for first, *others in cells:
        padded = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))]
        lines.append("  ".join(padded))
    return "\n".join(lines)


def _cell(value):
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def examples_csv(
    path,
    ids,
    given_labels,
    record,
    detectors,
    label_quality,
    is_label_issue,
    *,
    files=None,
    class_names=None,
    order="index",
    more=None,
):
    """Writes one row per labeled example, atomically: `COLUMNS`, with a header.

    The columns have the names of cleanlab's `get_label_issues` where it has them. An unknown float
    is an empty cell, and an unknown `predicted_label` or `last_correct` is -1. `read_examples`
    restores the numbers bit for bit.

    Args:
        path: Path of the file. Missing folders are created.
        ids: Integer array `(n,)`, the published ids.
        given_labels: Integer array `(n,)`.
        record: Dict of arrays `(n,)`, as `record.read` gives it.
        detectors: Dict from name to `Detector`, with `posterior`.
        label_quality: Float array `(n,)` in [0, 1], 1 = clean, NaN where unknown.
        is_label_issue: Bool array `(n,)`.
        files: Sequence of n strings, the files of the examples. None leaves the column empty.
        class_names: Sequence of strings. None means the numbers.
        order: One of `ORDERS`. By suspicion, the lowest label quality is first and an unknown one
            last.
        more: Optional dict from name to `Detector`. Each one has two columns after the others, its
            score, `NAME`, and whether it flags the label, `is_NAME_issue`.

    Raises:
        ValueError: If the arrays differ in length.
    """
    predicted = np.asarray(record["prediction"])

    def classes(labels):
        names = np.arange(1 + max(labels, default=0)) if class_names is None else class_names
        return [str(names[label]) if label >= 0 else "" for label in labels]

    values = {
        **record,
        "index": ids,
        "file": [""] * len(ids) if files is None else files,
        "given_label": given_labels,
        "given_class": classes(given_labels),
        "predicted_label": predicted,
        "predicted_class": classes(predicted),
        "label_quality": label_quality,
        "is_label_issue": is_label_issue,
        "posterior": detectors["posterior"].score,
    }
    kinds = dict(COLUMNS)
    for name, detector in (more or {}).items():
        kinds |= {name: float, f"is_{name}_issue": bool}
        values |= {name: detector.score, f"is_{name}_issue": detector.flagged}
    columns = [np.asarray(values[name], kind).tolist() for name, kind in kinds.items()]
    if len(set(map(len, columns))) > 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in zip(kinds, columns))
        raise ValueError(f"The columns of examples must have the same length. Received: {lengths}.")
    rows = list(zip(*columns))
    if order == "suspicion":
        rows = [rows[row] for row in np.argsort(label_quality, kind="stable")]  # NaN comes last
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kinds)
    # Only NaN differs from itself. csv writes floats with repr, which is exact.
    writer.writerows(["" if cell != cell else cell for cell in row] for row in rows)
    with replacing(path, "w") as file:
        file.write(text.getvalue())


def read_examples(path):
    """Reads a file that `examples_csv` wrote.

    Returns:
        A dict from each name of `COLUMNS` to an array `(n,)`: int64, float64 (NaN where the cell
        is empty), bool or text. Rows are by index, whatever their order in the file. Other columns
        are ignored.

    Raises:
        ExamplesFileError: If the file cannot be read.
    """
    parse = {
        int: int,
        str: str,
        float: lambda cell: float(cell or "nan"),
        bool: {"True": True, "False": False}.__getitem__,
    }
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            header, rows = reader.fieldnames or (), list(reader)
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        rows.sort(key=lambda row: int(row["index"]))
        return {
            name: np.array([parse[kind](row[name]) for row in rows], kind)
            for name, kind in COLUMNS.items()
        }
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise ExamplesFileError(
            f"The file of examples {str(path)!r} must have the format of `examples_csv`. "
            f"Received: {type(error).__name__}: {error}. Regenerate the file."
        ) from error
