# SPDX-License-Identifier: Apache-2.0
"""What a report is about: finished runs, read from their folders."""

import csv
import dataclasses
import json
import os
import shlex

import numpy as np

from ssl_noisy import run_flags
from ssl_noisy.data import corrections
from ssl_noisy.data.dataset import Dataset
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.labels import detection
from ssl_noisy.runs import folder, labeling
from ssl_noisy.settings import Settings

RUNS, SUMMARY, CURVE = "runs", "summary.csv", "budget_curve.png"  # in the folder of a sweep
SWEEP = ("sweep.json", "sweep.csv")  # which say that it is one


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        run_dir: Path of its folder.
        name: Its short name, unique in a report.
        flags: The lines of its `flags.cfg`.
        settings: Its `Settings`, or None if this version does not know one of the flags.
        result: The content of `result.json`, a dict.
        history: List of dicts, the rows of `metrics.csv`; None where a cell is empty.
        baseline: Likewise, of the baseline; empty without one.
        timing: The content of `timing.json`, a dict.
        examples: Dict of arrays, as `detection.read_examples` gives it; None without a record.
        views: The bytes of `views.png`, or None.
    """

    run_dir: str
    name: str
    flags: list[str]
    settings: Settings | None
    result: dict
    history: list[dict]
    baseline: list[dict]
    timing: dict
    examples: dict | None
    views: bytes | None

    @property
    def key(self):
        """The column of `examples.csv` that names an example: `file`, or `index` without files."""
        return "file" if self.examples is not None and any(self.examples["file"]) else "index"

    @property
    def beginning(self):
        """What the run began with, as text; None for random weights."""
        found = self.result.get("begins_with")  # earlier versions did not write it
        if found is None and "features" in self.result:
            return f"frozen features of {self.result['features']['extractor']}"
        return self.settings.beginning() if found is None and self.settings else found

    @property
    def class_names(self):
        """Tuple of strings, in the order of the class numbers."""
        # Results of earlier versions have no list, but wrote this dict in the same order.
        found = self.result.get("class_names")
        return tuple(self.result["per_class_recall"] if found is None else found)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """The data of a run.

    Attributes:
        dataset: The `Dataset`, or None if it cannot be loaded or was not asked for.
        missing: Why it cannot be loaded, in one line; empty if it can.
        is_wrong: Bool array `(num_labels,)` in the order of the ids, or None if nobody knows.
        earlier: Tuple of pairs `(example, label)`, the corrections that a single run was trained
            with. Empty for several runs, which are not reviewed.
    """

    dataset: Dataset | None = None
    missing: str = ""
    is_wrong: np.ndarray | None = None
    earlier: tuple = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """The results of a sweep.

    Attributes:
        name: The name of its folder.
        rows: The rows of `summary.csv`, lists of strings, the header first.
        curve: The bytes of `budget_curve.png`, or None.
    """

    name: str
    rows: list[list[str]]
    curve: bytes | None


@dataclasses.dataclass(frozen=True, eq=False)
class Collection:
    """What a report shows.

    Attributes:
        title: Its title.
        runs: List of `Run`, not empty.
        notes: List of sentences about what is left out.
        sweeps: List of `Sweep`.
    """

    title: str
    runs: list[Run]
    notes: list[str]
    sweeps: list[Sweep]


def collect(places):
    """Reads runs, and sweeps of runs.

    Args:
        places: Sequence of paths of run folders and folders of sweeps.

    Returns:
        A `Collection`.

    Raises:
        UserError: If a place is neither, a run is unfinished, or a file is damaged. Unfinished runs
            of a sweep are left out, with a note.
    """
    runs, notes, sweeps = [], [], []
    for place in places:
        if not is_sweep(place):
            runs.append(read_run(place))
            continue
        inside = os.path.join(place, RUNS)
        names = sorted(os.listdir(inside)) if os.path.isdir(inside) else []
        folders = [os.path.join(inside, name) for name in names]
        finished = [path for path in folders if os.path.exists(os.path.join(path, folder.RESULT))]
        if not finished:
            raise UserError(
                f"The sweep {place} has no finished run yet. Run its command again to finish them."
            )
        runs += map(read_run, finished)
        left = [os.path.basename(path) for path in folders if path not in finished]
        if left:
            notes.append(f"Unfinished runs of {place}, not in this report: {', '.join(left)}.")
        path = os.path.join(place, SUMMARY)
        if os.path.exists(path):
            curve = _read_bytes(os.path.join(place, CURVE))
            sweeps.append(Sweep(os.path.basename(place), _read_table(path), curve))
    title = os.path.basename(os.path.abspath(places[0])) if len(places) == 1 else "Comparison"
    return Collection(title, _distinct(runs), notes, sweeps)


def is_sweep(place):
    """Returns whether a path is a folder of a sweep."""
    return any(os.path.isfile(os.path.join(place, name)) for name in SWEEP)


def read_run(run_dir):
    """Reads a finished run.

    Raises:
        UserError: If the folder is not that of a finished run, or a file is damaged.
    """
    if not os.path.isdir(run_dir):
        raise UserError(f"There is no folder {run_dir}. Pass the folder of a run or of a sweep.")
    flags_path = os.path.join(run_dir, folder.FLAGS)
    if not os.path.isfile(flags_path):
        what = "is empty" if not os.listdir(run_dir) else f"has no {folder.FLAGS}"
        raise UserError(
            f"{run_dir} {what}, so it is not a run. Pass the folder of a run or of a sweep, the "
            "--run_dir of ssl_noisy.train."
        )
    lines = _read_text(flags_path).splitlines()
    if not os.path.exists(os.path.join(run_dir, folder.RESULT)):
        command = "probe" if any(line.startswith("--by=") for line in lines) else "train"
        raise UserError(
            f"The run {run_dir} is unfinished: it has no {folder.RESULT}. Finish it: python -m "
            f"ssl_noisy.{command} --flagfile={shlex.quote(flags_path)} "
            f"--run_dir={shlex.quote(run_dir)}"
        )
    examples = os.path.join(run_dir, folder.EXAMPLES)
    baseline = os.path.join(run_dir, "baseline", folder.METRICS)
    return Run(
        run_dir=run_dir,
        name=os.path.basename(os.path.abspath(run_dir)),
        flags=lines,
        settings=_settings(lines),
        result=folder.read_result(run_dir),
        history=_read_history(os.path.join(run_dir, folder.METRICS)),
        baseline=_read_history(baseline) if os.path.exists(baseline) else [],
        timing=_read_timing(os.path.join(run_dir, folder.TIMING)),
        examples=detection.read_examples(examples) if os.path.exists(examples) else None,
        views=_read_bytes(os.path.join(run_dir, "views.png")),
    )


def _settings(lines):
    try:
        return run_flags.from_lines(lines)
    except UserError:
        return None


def _distinct(runs):
    """Names runs of the same name by their parents, too."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    common = os.path.commonpath([os.path.abspath(run.run_dir) for run in runs])
    relative = [os.path.relpath(os.path.abspath(run.run_dir), common) for run in runs]
    if len(set(relative)) < len(relative):
        raise UserError(f"Each run must be given once. Received: {', '.join(names)}.")
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, relative)]


def load_data(runs):
    """Loads the data of runs again. What goes wrong is not an error: see `Data.missing`.

    Several runs show no pictures, so only those with noise load their data, to tell wrong labels
    from right ones. One data set is in memory at a time, and runs of the same data share it.

    Args:
        runs: List of `Run`.

    Returns:
        List with the `Data` of each run. Only a single run keeps its `dataset`.

    Raises:
        UserError: If the corrections of a single run cannot be read: an export would lose them.
    """
    loader = labeling.Loader()
    if len(runs) == 1:
        return [dataclasses.replace(_load(runs[0], loader), earlier=_earlier(runs[0]))]
    found = [Data() for _ in runs]
    noisy = [number for number, run in enumerate(runs) if "noise" in run.result]
    for number in sorted(noisy, key=lambda number: _loading(runs[number])):
        found[number] = dataclasses.replace(_load(runs[number], loader), dataset=None)
    return found


def _loading(run):
    """Returns a text that is equal for runs of the same data."""
    return "" if run.settings is None else repr(labeling.loading(run.settings))


def _load(run, loader):
    if run.settings is None:
        return Data(missing="This version does not know one of the flags of the run.")
    try:
        dataset = labeling.correct(run.settings, loader.load(run.settings), run.run_dir)
        labels = labeling.choose(run.settings, dataset, run.run_dir)
    except (UserError, ImportError) as error:
        return Data(missing=f"{one_line(error, 400)}.")
    if run.examples is not None:
        if not np.array_equal(dataset.ids[labels.positions], run.examples["index"]):
            return Data(missing="The data has changed since the run: it has other examples.")
    is_wrong = None
    if labels.noise is not None:
        is_wrong = labels.given != dataset.labels[labels.positions]
    return Data(dataset, "", is_wrong)


def _earlier(run):
    """Returns the corrections that a run was trained with: its copy, or the file of the user."""
    if run.examples is None:
        return ()  # nothing to review
    path = os.path.join(run.run_dir, folder.CORRECTIONS)
    if not os.path.exists(path):  # without corrections, or made by an earlier version
        path = run.settings and run.settings.labels_csv
    try:
        return tuple(corrections.rows(path, run.key)) if path else ()
    except UserError as error:
        raise UserError(
            f"Cannot read the corrections that {run.run_dir} was trained with: {error} Restore "
            "the file: without it, a review of this run would lose them."
        ) from error


def _read_text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {path}: {error}. Restore the file.") from error


def _read_bytes(path):
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def _read_table(path):
    try:
        return list(csv.reader(_read_text(path).splitlines(), strict=True))
    except csv.Error as error:
        raise UserError(f"{path} is not a CSV file: {error}. Restore the file.") from error


def _read_history(path):
    advice = "Delete result.json and run the same command again to restore it."
    header, *rows = _read_table(path) or [[]]
    try:
        found = [
            {name: float(cell) if cell else None for name, cell in zip(header, row, strict=True)}
            for row in rows
        ]
        if not found or not {"step", "epoch"}.issubset(header):
            raise ValueError("a column or all rows are missing")
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. {advice}") from error
    return found


def _read_timing(path):
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. Delete it and result.json, and run the same "
            "command again to restore them."
        ) from error
    return content if isinstance(content, dict) else {}
