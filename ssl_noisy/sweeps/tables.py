# SPDX-License-Identifier: Apache-2.0
"""The table of a sweep: one row per run, in `sweep.csv`."""

import csv
import io
import os

from ssl_noisy import files
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs.evaluation import PROTOCOLS
from ssl_noisy.sweeps import folder

NAME = "sweep.csv"
SEEDS = ("seed", "label_seed", "noise_seed")
# Flags that have a column even if they are not swept.
_ALWAYS = ("method", "num_labels", "seed")
VALIDATION = "validation_accuracy"  # of the last checkpoint, if there is a validation split
# Of methods that find clusters, in place of the test accuracy: see `ssl_noisy.matching`.
CLUSTERS = ("test_cluster_accuracy", "test_nmi")
_AFTER = ("status", "seconds", "attempts", "labels_sha256", "run_dir", "reason")


def of_result(result):
    """Returns what a row takes from the content of a `result.json`."""
    taken = {key: result[key] for key in ("test_accuracy", "labels_sha256", "num_labels")}
    return taken | {name: result["last_epoch"].get(name) for name in (VALIDATION, *CLUSTERS)}


def columns(swept, runs):
    """Returns the names of the columns: flags, accuracies, and what became of the run.

    Args:
        swept: Names of the swept flags.
        runs: List of `plan.Run`. If some find clusters, there are columns for these.
    """
    flags = [*_ALWAYS, *(flag for flag in swept if flag not in _ALWAYS)]
    accuracies = [*(f"test_accuracy_{name}" for name in PROTOCOLS), f"{VALIDATION}_last"]
    if any(run.settings.learner_class.finds_clusters for run in runs):
        accuracies += [f"{name}_last" for name in CLUSTERS]
    return ["name", *flags, *accuracies, *_AFTER]


def collect(swept, runs, state, result_of):
    """Returns the rows of `sweep.csv`, dicts from column to value. None is an empty cell.

    Args:
        swept: Names of the swept flags.
        runs: List of `plan.Run`.
        state: What `folder.read_state` returns.
        result_of: Function of the name of a run that returns what `of_result` does, or None.
    """
    rows, all_labels = [], {}
    for run in runs:
        known, result = state.get(run.name, {}), result_of(run.name)
        row = dict.fromkeys(columns(swept, runs))
        row.update({flag: getattr(run.settings, flag) for flag in _ALWAYS})
        row.update(run.values)
        row.update(name=run.name, run_dir=os.path.join(folder.RUNS, run.name))
        row.update({key: known.get(key) for key in ("seconds", "attempts", "reason")})
        if run.settings.learner_class.finds_clusters:
            row["num_labels"] = 0
        row["status"] = "failed" if known.get("status") == "failed" else "missing"
        if result is not None:
            row.update({f"test_accuracy_{k}": v for k, v in result["test_accuracy"].items()})
            for name in (VALIDATION, *CLUSTERS):
                if f"{name}_last" in row:
                    row[f"{name}_last"] = result[name]
            row.update(status="finished", reason=None, labels_sha256=result["labels_sha256"])
            if row["num_labels"] is None:
                all_labels[run.settings.dataset] = result["num_labels"]
        rows.append(row)
    # Without the flag all labels are used, in unfinished runs, too: they belong to the same group.
    for run, row in zip(runs, rows):
        if row["num_labels"] is None:
            row["num_labels"] = all_labels.get(run.settings.dataset)
    return rows


def write(path, rows, names=None):
    """Writes rows to a CSV file atomically, with the columns `names` or those of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names or list(*rows[:1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with files.replacing(path, "w") as file:
        file.write(text.getvalue())


def read(sweep_dir):
    """Returns the rows of the `sweep.csv` of a sweep.

    Args:
        sweep_dir: Path of the folder of the sweep.

    Returns:
        A list of dicts from column to value, one per run, in the order of the sweep. Accuracies
        and seconds are floats, `attempts`, `seed` and `num_labels` are integers, everything else
        is text, and empty cells are None.

    Raises:
        UserError: If the file cannot be read.
    """
    path = os.path.join(sweep_dir, NAME)
    try:
        files.require_regular(path)
        with open(path, encoding="utf-8", newline="") as file:
            return [{k: _typed(k, v) for k, v in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"Cannot read {path}: {one_line(error)}. Run the sweep again to write it."
        ) from error


def _typed(column, text):
    if text in ("", None):
        return None
    if column in ("attempts", "num_labels", *SEEDS):
        return int(text)
    if column == "seconds" or "_accuracy_" in column or column == "test_nmi_last":
        return float(text)
    return text
