# SPDX-License-Identifier: Apache-2.0
"""What a sweep found: means over seeds, paired differences, and how many labels are enough."""

import collections
import math

import numpy as np

from ssl_noisy import methods, run_flags
from ssl_noisy.sweeps.tables import CLUSTERS, SEEDS

CONFIDENCE = 0.95
# The choice by the test set is in sweep.csv only: it is not a fair estimate.
PROTOCOLS = ("last", "median_of_last_20", "validation_choice")
_MOMENTS = ("mean", "std", "n", "low", "high")
_PARTNER = "compared_with"
BEGINS = "begins_with"  # a column, if runs differ in `Settings.beginning`


def interval(values):
    """Returns mean, standard deviation, count and the 95 % Student t interval of the mean.

    Args:
        values: Sequence of floats.

    Returns:
        A dict with `mean`, `std` (with n - 1), `n`, `low` and `high`. Without values the mean is
        None; with fewer than two, so are the standard deviation and the interval.
    """
    from scipy import stats  # late: it takes half a second, and --help does not need it

    n = len(values)
    found = dict.fromkeys(_MOMENTS)
    found["n"] = n
    if n:
        found["mean"] = float(np.mean(values))
    if n > 1:
        found["std"] = float(np.std(values, ddof=1))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * found["std"] / math.sqrt(n)
        found["low"], found["high"] = found["mean"] - half, found["mean"] + half
    return found


def settings_of(row, flags):
    """Returns what the runs of a group have in common: the flags that are no seeds."""
    return tuple(row[flag] for flag in flags if flag not in SEEDS)


def summarize(rows, flags, compare_with=None):
    """Returns the rows of `summary.csv`: one for each group of seeds and each protocol.

    Groups whose method finds clusters have a row for each of `CLUSTERS` instead, of the last
    checkpoint.

    Args:
        rows: Rows of `sweep.csv`.
        flags: Names of the flags that have a column.
        compare_with: Optional tuple of a flag and its value. Each group gets the mean difference
            of its accuracy and that of the group with this value, over the pairs of `Partners`.

    Returns:
        A list of dicts. Accuracies are fractions in [0, 1].
    """
    groups = collections.OrderedDict()
    for row in rows:
        groups.setdefault(settings_of(row, flags), []).append(row)
    common = [flag for flag in flags if flag not in SEEDS]
    partners = Partners(rows, flags, compare_with) if compare_with else None
    found = []
    columns = {protocol: f"test_accuracy_{protocol}" for protocol in PROTOCOLS}
    columns |= {name: f"{name}_last" for name in CLUSTERS}
    for protocol, column in columns.items():
        if protocol != "last" and all(row.get(column) is None for row in rows):
            continue
        for key, members in groups.items():
            if methods.get(members[0]["method"]).finds_clusters != (protocol in CLUSTERS):
                continue
            values = [row[column] for row in members if row[column] is not None]
            line = dict(zip(common, key)) | {"protocol": protocol} | interval(values)
            for status in ("failed", "missing"):
                line[status] = sum(row["status"] == status for row in members)
            if partners:
                line.update(partners.differences(members, column))
            found.append(line)
    return found


class Partners:
    """Finds for each run the run to compare it with.

    That is the one with the given value of a flag, the same seeds, the same labeled examples, and
    otherwise equal flags. The arguments of a method that one of the two leaves unset do not count:
    often its method has no such argument.

    Args:
        rows: Rows of `sweep.csv`.
        flags: Names of the flags that have a column.
        compare_with: Tuple of a flag and its value.
    """

    def __init__(self, rows, flags, compare_with):
        self._flag, self._value = compare_with
        others = [flag for flag in flags if flag != self._flag]
        of_methods = run_flags.method_flags()
        self._exact = [flag for flag in others if flag not in of_methods]
        self._optional = [flag for flag in others if flag in of_methods]
        self._candidates = {}
        for row in rows:
            if row[self._flag] == self._value:
                self._candidates.setdefault(self._key(row), []).append(row)

    def _key(self, row):
        return tuple(row[flag] for flag in self._exact)

    def find(self, row):
        """Returns the partner of a row and None, or None and a text that says why it has none."""
        found = [
            other
            for other in self._candidates.get(self._key(row), ())
            if all(
                row[flag] == other[flag] or None in (row[flag], other[flag])
                for flag in self._optional
            )
        ]
        named = f"{self._flag}={self._value}"
        if not found:
            flags = ", ".join(self._exact + self._optional)
            return None, f"no run with {named} has the same {flags}"
        if len(found) > 1:
            differ = [f for f in self._optional if len({other[f] for other in found}) > 1]
            return None, f"several runs with {named} fit, which differ in {', '.join(differ)}"
        if "finished" != row["status"] or "finished" != found[0]["status"]:
            return None, "one run of each pair is unfinished"
        if row["labels_sha256"] != found[0]["labels_sha256"]:
            return None, f"the run with {named} has other labeled examples"
        return found[0], None

    def differences(self, members, column):
        """Returns the columns of the differences of a group, with `difference_n` 0 without pairs.

        Args:
            members: The rows of the group.
            column: Name of the column of an accuracy.
        """
        found, is_partner = [], members[0][self._flag] == self._value
        for row in () if is_partner else members:
            other, _ = self.find(row)
            if other and row[column] is not None and other[column] is not None:
                found.append(row[column] - other[column])
        moments = interval(found)
        named = None if is_partner else f"{self._flag}={self._value}"
        return {_PARTNER: named} | {f"difference_{name}": moments[name] for name in _MOMENTS}

    def missing(self, rows):
        """Returns why rows have no partner: a dict from reason to the number of runs."""
        rows = [row for row in rows if row[self._flag] != self._value]
        reasons = collections.Counter(self.find(row)[1] for row in rows)
        del reasons[None]
        return dict(reasons)


def curves(lines, protocol="last"):
    """Returns the points of each curve of accuracy against labels.

    Args:
        lines: Rows of `summary.csv`.
        protocol: Name of the protocol.

    Returns:
        A dict from the name of a curve to its list of lines, sorted by `num_labels`.
    """
    moments = {*_MOMENTS, *(f"difference_{name}" for name in _MOMENTS)}
    outside = moments | {"num_labels", "protocol", "failed", "missing", _PARTNER, BEGINS}
    lines = [line for line in lines if line["protocol"] == protocol]
    varying = [
        flag
        for flag in (lines[0] if lines else ())
        if flag not in outside and (flag == "method" or len({str(x[flag]) for x in lines}) > 1)
    ]
    found = {}
    for line in lines:
        if line["num_labels"] is not None and line["mean"] is not None:
            words = [
                str(line[flag]) if flag == "method" else f"{flag} {line[flag]}" for flag in varying
            ]
            found.setdefault(", ".join(words), []).append(line)
    return {name: sorted(x, key=lambda line: line["num_labels"]) for name, x in found.items()}


def crossing(labels, values, target):
    """Returns the number of labels from which a curve stays at or above `target`.

    It interpolates linearly on the logarithm of the number of labels.

    Args:
        labels: Increasing list of numbers of labels.
        values: List of floats, the curve at these.
        target: Float.

    Returns:
        A float. The first number of labels if the whole curve is above, and None if its end is
        below.
    """
    below = [i for i, value in enumerate(values) if value < target]
    if not below:
        return float(labels[0])
    i = below[-1]
    if i == len(labels) - 1:
        return None
    fraction = (target - values[i]) / (values[i + 1] - values[i])
    logs = np.log([labels[i], labels[i + 1]])
    return float(np.exp(logs[0] + fraction * (logs[1] - logs[0])))


def budgets(lines, target):
    """Answers how many labels each curve needs for an accuracy, by the last checkpoint.

    Args:
        lines: Rows of `summary.csv`.
        target: Float in (0, 1), the accuracy.

    Returns:
        A list of dicts with `curve`, `first` and `last`, the range of the sweep, and three
        crossings: `labels` where the lower end of the interval stays above the target, which is
        the answer; `of_mean`; and `of_high`, where the upper end does. None: never. Points
        with fewer than two runs have no interval and are left out, as `left_out` counts.
    """
    found = []
    for name, line in curves(lines).items():
        points = [point for point in line if point["low"] is not None]
        answer = {"curve": name, "target": target, "left_out": len(line) - len(points)}
        answer.update(dict.fromkeys(("labels", "of_mean", "of_high", "first", "last")))
        if points:
            labels = [point["num_labels"] for point in points]
            answer.update(first=labels[0], last=labels[-1])
            for key, end in (("labels", "low"), ("of_mean", "mean"), ("of_high", "high")):
                answer[key] = crossing(labels, [point[end] for point in points], target)
        found.append(answer)
    return found
