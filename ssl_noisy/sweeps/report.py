# SPDX-License-Identifier: Apache-2.0
"""The files with the results of a sweep, which it rewrites while runs finish."""

import contextlib
import os
import time

from ssl_noisy import files
from ssl_noisy.errors import UserError
from ssl_noisy.settings import RANDOM
from ssl_noisy.sweeps import folder, hparams, plots, published, summary, tables
from ssl_noisy.sweeps.summary import BEGINS

SUMMARY, TEXT, CURVE = "summary.csv", "summary.md", "budget_curve"
# Seconds between two writings, at least. Training uses all cores, so writing must cost little.
_BETWEEN_TABLES, _BETWEEN_PICTURES = 5, 30
_SHARE = 0.01  # of a core, at most: large sweeps write less often
_TITLES = {
    "last": "Test accuracy in %: last checkpoint",
    "median_of_last_20": "Test accuracy in %: median of the last 20 evaluations",
    "validation_choice": "Test accuracy in %: chosen by validation accuracy",
    "test_cluster_accuracy": "Clusters, in % of the test images: right if each cluster is matched "
    "with a class by the test labels; last checkpoint",
    "test_nmi": "Clusters and classes of the test images: normalized mutual information in %; last "
    "checkpoint",
}


def parse_comparison(text, swept, runs):
    """Returns the flag and the value of `--compare_with`, or None for None.

    Raises:
        UserError: If no run has this value of a swept flag.
    """
    if text is None:
        return None
    flag, _, value = text.partition("=")
    flag = flag.lstrip("-")
    if flag not in swept or flag in (*tables.SEEDS, "num_labels"):
        usable = [name for name in swept if name not in (*tables.SEEDS, "num_labels")]
        raise UserError(
            "--compare_with must be FLAG=VALUE with a swept flag that leaves seeds and labels "
            f"equal: {', '.join(usable) or '(none)'}. Received: --compare_with={text}"
        )
    found = {str(run.values[flag]): run.values[flag] for run in runs}
    if value not in found:
        raise UserError(f"--compare_with={text}: no run has this value, only: {', '.join(found)}.")
    return flag, found[value]


class Pace:
    """Says when to write again.

    Args:
        seconds: The shortest time between two writings.
    """

    def __init__(self, seconds):
        self._seconds = seconds
        self._due_at = -float("inf")

    @property
    def is_due(self):
        return time.monotonic() >= self._due_at

    @contextlib.contextmanager
    def writing(self):
        """Measures the block, which writes."""
        began = time.monotonic()
        yield
        now = time.monotonic()
        self._due_at = now + max(self._seconds, (now - began) / _SHARE)


class Report:
    """Writes tables, summary and pictures of a sweep.

    Args:
        sweep_dir: Path of the folder.
        swept: Names of the swept flags.
        runs: List of `plan.Run`, which may grow.
        compare_with: What `parse_comparison` returns.
        target: Float in (0, 1), an accuracy to reach, or None.
        section: Function of the rows of `sweep.csv` that returns more paragraphs for the summary.
    """

    def __init__(
        self, sweep_dir, swept, runs, compare_with=None, target=None, section=lambda rows: []
    ):
        self._sweep_dir = sweep_dir
        self._swept = swept
        self._runs = runs
        self._compare_with = compare_with
        self._target = target
        self._section = section
        self._results = {}
        self._described = set()
        self._written = None
        self._tables_pace, self._pictures_pace = Pace(_BETWEEN_TABLES), Pace(_BETWEEN_PICTURES)
        names = tables.columns(swept, runs)
        self._flags = names[1 : names.index("test_accuracy_last")]

    def refresh(self, state):
        """Writes the files if `state` has changed and the last writing is some seconds ago."""
        if state != self._written and self._tables_pace.is_due:
            self.write(state)

    def write(self, state, is_last=False):
        """Writes all files, the pictures only if some time has passed or `is_last`.

        Args:
            state: What `folder.read_state` returns.
            is_last: Whether the sweep ends here.

        Returns:
            The text of `summary.md`.
        """
        with self._tables_pace.writing():
            rows = tables.collect(self._swept, self._runs, state, self._result_of)
            tables.write(self._path(tables.NAME), rows, tables.columns(self._swept, self._runs))
            self._describe_runs(rows)
            lines = summary.summarize(rows, self._flags, self._compare_with)
            lines = self._with_beginnings(rows, lines)
            tables.write(self._path(SUMMARY), lines)
            text = self._text(rows, lines)
            with files.replacing(self._path(TEXT), "w") as file:
                file.write(text)
        self._written = dict(state)
        curves = summary.curves(lines)
        is_due = is_last or self._pictures_pace.is_due
        if is_due and any(len(points) > 1 for points in curves.values()):
            with self._pictures_pace.writing():
                marks = self._published(curves, rows)
                for suffix in (".png", ".pdf"):
                    plots.budget_curve(curves, self._path(CURVE + suffix), marks)
        return text

    def _with_beginnings(self, rows, lines):
        """Returns the lines with what their runs begin with, if that is not the same for all."""
        beginnings = {run.name: run.settings.beginning() or RANDOM for run in self._runs}
        if len(set(beginnings.values())) < 2:
            return lines
        flags = [flag for flag in self._flags if flag not in tables.SEEDS]
        found = {tuple(row[flag] for flag in flags): beginnings[row["name"]] for row in rows}
        return [{BEGINS: found[tuple(x[flag] for flag in flags)], **x} for x in lines]

    def _published(self, curves, rows):
        """Returns a dict from the name of a curve to the published figures of its runs."""
        runs, found = {run.name: run for run in self._runs}, {}
        flags = [flag for flag in self._flags if flag not in (*tables.SEEDS, "num_labels")]
        for name, (point, *_) in curves.items():
            row = next(row for row in rows if all(row[flag] == point[flag] for flag in flags))
            found[name] = published.marks(runs[row["name"]].settings)
        return found

    def _result_of(self, name):
        """Returns the result of a run, which does not change once it is there."""
        if name not in self._results:
            result = folder.result_of(self._sweep_dir, name)
            if result is None:
                return None
            self._results[name] = tables.of_result(result)
        return self._results[name]

    def _describe_runs(self, rows):
        """Tells TensorBoard the flags of every finished run."""
        for row in rows:
            if row["status"] == "finished" and row["name"] not in self._described:
                values = {flag: row[flag] for flag in self._flags}
                hparams.write(os.path.join(self._sweep_dir, row["run_dir"]), values)
                self._described.add(row["name"])

    def _path(self, name):
        return os.path.join(self._sweep_dir, name)

    def _text(self, rows, lines):
        counts = {name: 0 for name in ("finished", "failed", "missing")}
        for row in rows:
            counts[row["status"]] += 1
        parts = [
            "# Summary of the sweep",
            f"{counts['finished']} of {len(rows)} runs finished, {counts['failed']} failed, "
            f"{counts['missing']} missing.",
            *self._section(rows),
        ]
        for protocol, title in _TITLES.items():
            chosen = [line for line in lines if line["protocol"] == protocol]
            if chosen:
                parts += [f"## {title}", *self._tables(chosen)]
        parts.append(
            "Mean, standard deviation and 95 % Student t interval of the mean over the seeds of a "
            "row. No seed is selected. The last checkpoint is the protocol of the picture and of "
            "the number of labels below; the choice by test accuracy is in sweep.csv alone."
        )
        if self._compare_with:
            flag, value = self._compare_with
            parts.append(
                f"Difference: accuracy minus that of {flag}={value}, in points, over pairs of runs "
                "with equal flags and seeds and the same labeled examples, with its 95 % t "
                "interval. Arguments of a method that one of the two leaves unset may differ."
            )
            missing = summary.Partners(rows, self._flags, self._compare_with).missing(rows)
            parts += [
                f"{count} run{' is' if count == 1 else 's are'} in no pair: {reason}."
                for reason, count in missing.items()
            ]
        if self._target is not None:
            parts += [f"## Labels for an accuracy of {self._target:.2%}", self._answers(lines)]
        failed = [f"- {row['name']}: {row['reason']}" for row in rows if row["status"] == "failed"]
        if failed:
            parts += ["## Failed runs", "\n".join(failed)]
        return "\n\n".join(parts) + "\n"

    def _tables(self, lines):
        """Returns a table for each beginning of the runs, with a title if there are several."""
        groups = {}
        for line in lines:
            groups.setdefault(line.get(BEGINS), []).append(line)
        if len(groups) == 1:
            return [self._table(lines)]
        named = [(f"### Runs that begin with {x}", self._table(own)) for x, own in groups.items()]
        return [part for pair in named for part in pair]

    def _table(self, lines):
        common = [flag for flag in self._flags if flag not in tables.SEEDS]
        header = [*common, "mean ± std", "95 % interval", "n", "failed", "missing"]
        if self._compare_with:
            header += ["difference", "its 95 % interval", "pairs"]
        table = [header, ["---"] * len(header)]
        for line in lines:
            cells = ["" if line[flag] is None else str(line[flag]) for flag in common]
            cells += [
                _mean(line),
                _range(line),
                *(str(line[k]) for k in ("n", "failed", "missing")),
            ]
            if self._compare_with:
                moments = {k: line[f"difference_{k}"] for k in ("mean", "low", "high")}
                cells += ["" if moments["mean"] is None else f"{100 * moments['mean']:+.2f}"]
                cells += [_range(moments), str(line["difference_n"])]
            table.append(cells)
        return "\n".join(f"| {' | '.join(cells)} |" for cells in table)

    def _answers(self, lines):
        found = [f"- {describe(answer)}" for answer in summary.budgets(lines, self._target)]
        found.append(
            "\nThe interval of the mean stays above the accuracy from the first number on. The "
            "range is where the upper and the lower end of the interval cross it, interpolated on "
            "the logarithm of the number of labels."
        )
        return "\n".join(found)


def _mean(line):
    if line["mean"] is None:
        return ""
    std = "" if line["std"] is None else f" ± {100 * line['std']:.2f}"
    return f"{100 * line['mean']:.2f}{std}"


def _range(line):
    if line["low"] is None:
        return ""
    return f"{100 * line['low']:.2f} to {100 * line['high']:.2f}"


def describe(answer):
    """Returns a line about one of the answers of `summary.budgets`."""
    name, first, last = answer["curve"], answer["first"], answer["last"]
    if first is None:
        return f"{name}: unknown, no budget has two finished runs."

    def number(value):
        if value is None:
            return f"more than {last:,}"
        return f"at most {first:,}" if value <= first else f"{value:,.0f}"

    text = (
        f"{name}: {number(answer['labels'])} labels; range {number(answer['of_high'])} to "
        f"{number(answer['labels'])}, mean {number(answer['of_mean'])}."
    )
    if answer["left_out"]:
        text += f" {answer['left_out']} budgets have fewer than two finished runs and are left out."
    return text


def last_lines(path, count=5, size=8192):
    """Returns the last lines of a log, without those that are empty."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - size, 0))
            text = file.read().decode("utf-8", "backslashreplace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def failures(sweep_dir, state):
    """Returns the message of a sweep with failed runs, or None if there are none."""
    failed = {
        name: entry
        for name, entry in state.items()
        # A run that failed here may have been finished by the train command.
        if entry["status"] == "failed" and folder.result_of(sweep_dir, name) is None
    }
    if not failed:
        return None
    shown = [f"{name} ({entry['reason'].rstrip('.')})" for name, entry in failed.items()][:3]
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return (
        f"{len(failed)} runs failed: {'; '.join(shown)}{more}. Their output is in "
        f"{os.path.join(sweep_dir, folder.LOGS)}. Fix the cause and run the same command again."
    )
