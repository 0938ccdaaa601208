# SPDX-License-Identifier: Apache-2.0
"""Reads an entry to the CIFAR-N challenge without trusting it, and finds all of its faults."""

import dataclasses
import json
import math
import os
import pathlib
import re
import stat
import typing

import numpy as np

from ssl_noisy import challenge, files, leaks
from ssl_noisy.challenge import CONFIG, DETECTION, LOGITS, PREDICTIONS, TIMING
from ssl_noisy.data import cifar_n

_SEED = re.compile("seed_(0|[1-9][0-9]{0,9})")
_MOST_NAMES = 1_000
_MOST_TEXT = 2**20
_MOST_HEADER = 2**12


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The results of one run.

    Attributes:
        detection: Bool array of shape `(num_train,)`, or None.
        predictions: Integer array of shape `(num_test,)`, or None.
        flags: Dict of the resolved flags.
    """

    detection: np.ndarray | None
    predictions: np.ndarray | None
    flags: dict | None


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """An entry: its name, and its runs by regime and seed."""

    name: str
    runs: dict[str, dict[int, Run]]


class Faults(list):
    """Faults of an entry, one line each, which begins with the path within the entry."""

    def __init__(self, root):
        super().__init__()
        self._root = root

    def add(self, path, text):
        """Adds a fault. Names and values that strangers chose are shown in ASCII if need be."""
        place = os.path.join(self._root.name, os.path.relpath(path, self._root))
        self.append(f"{shown(os.path.normpath(place))} {text}.")


def shown(value, length=200):
    """Returns a name or a value as text of one line, without control characters and not long."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= length else text[:length] + "..."


def read(entry_dir, truths, num_seeds=challenge.NUM_SEEDS):
    """Reads an entry. Nothing in it is executed or unpickled, and no link is followed.

    Args:
        entry_dir: Path of the folder.
        truths: The `truths.Truths` of the regimes.
        num_seeds: Number of runs that each regime must have.

    Returns:
        `(entry, faults)`: the `Entry` with what can be read, and a list of strings.

    Raises:
        UserError: If the truth cannot be loaded.
    """
    root = pathlib.Path(entry_dir)
    faults = Faults(root)
    if not root.name.isprintable():
        faults.add(root, "has a name with control characters. Rename it")
    for name in challenge.TEXTS:
        _read_text(root / name, faults)
    runs = {}
    for regime, folders in _find(root, truths.datasets, faults).items():
        _check_seeds(root / regime, folders, num_seeds, faults)
        reader = _Reader(regime, truths, faults)
        present = {path: _names(path, faults) for path in folders if _is_folder(path, faults)}
        _check_tasks(present, faults)
        runs[regime] = {_seed(path): reader.run(path, names) for path, names in present.items()}
    _check_same_seeds(root, runs, faults)
    _check_flags(root, runs, truths.datasets, faults)
    return Entry(root.name, runs), list(faults)


def _names(folder, faults):
    """Returns the sorted names in a folder. A name that a terminal cannot show is a fault."""
    names = []
    try:
        with os.scandir(folder) as content:
            for item in content:
                if len(names) == _MOST_NAMES:
                    faults.add(folder, f"has more than {_MOST_NAMES:,} files")
                    break
                names.append(item.name)
    except OSError as error:
        faults.add(folder, f"cannot be read: {error.strerror}")
    for name in sorted(names):
        if not name.isprintable():
            faults.add(folder / name, "has a name with control characters. Rename it")
    return sorted(name for name in names if name.isprintable())


def _is_folder(path, faults):
    if stat.S_ISDIR(os.lstat(path).st_mode):
        return True
    faults.add(path, "must be a folder, not a file or a link")
    return False


def _find(root, regimes, faults):
    """Returns a dict from regime to the paths of its runs, which may not be folders."""
    found = {}
    for name in _names(root, faults):
        path = root / name
        if name in regimes:
            if _is_folder(path, faults):
                found[name] = _find_runs(path, faults)
        elif not path.is_symlink() and any(path.glob("seed_*")):
            faults.add(path, f"is no regime. Name it {', '.join(regimes)}")
    if not found and not faults:
        faults.add(root, f"has no run. Required: REGIME/seed_N with one of {', '.join(regimes)}")
    return found


def _find_runs(folder, faults):
    paths = []
    for name in _names(folder, faults):
        if _SEED.fullmatch(name):
            paths.append(folder / name)
        else:
            faults.add(folder / name, "must be named seed_N, such as seed_1. Rename or remove it")
    return paths


def _seed(path):
    return int(_SEED.fullmatch(path.name)[1])


def _check_seeds(folder, paths, num_seeds, faults):
    if len(paths) != num_seeds:
        faults.add(
            folder,
            f"must have {num_seeds} runs (--num_seeds). Received: {len(paths)}, "
            f"{', '.join(path.name for path in paths[:20]) or 'none'}",
        )


def _check_same_seeds(root, runs, faults):
    """All regimes are run with the same seeds, which the organizers choose."""
    if runs:
        first, *others = runs
        for regime in others:
            if len(runs[regime]) == len(runs[first]) and set(runs[regime]) != set(runs[first]):
                seeds = ", ".join(map(str, sorted(runs[first])))
                faults.add(root / regime, f"must have the seeds of {first}: {seeds}")


def _check_tasks(present, faults):
    """Each run must have the results of the same tasks."""
    # A file with another suffix is a fault of its own.
    stems = {path: {name.partition(".")[0] for name in names} for path, names in present.items()}
    tasks = [DETECTION, PREDICTIONS]
    entered = [task for task in tasks if any(task[:-4] in there for there in stems.values())]
    for path, there in stems.items():
        missing = [task for task in entered if task[:-4] not in there]
        if missing:
            faults.add(path, f"has no {' and no '.join(missing)}, which other seeds have")
        if not entered:
            faults.add(path, f"has no {' and no '.join(tasks)}. One of them is required")


def _check_flags(root, runs, datasets, faults):
    """The runs of one data set must have the same hyper-parameters."""
    first = {}
    for regime, by_seed in runs.items():
        for seed, run in by_seed.items():
            if run.flags is None:
                continue
            path = root / regime / f"seed_{seed}" / CONFIG
            origin, flags = first.setdefault(datasets[regime], (path, run.flags))
            names = sorted(set(flags) | set(run.flags))
            differ = [
                f"{shown(name)}={shown(run.flags.get(name))} (there {shown(flags.get(name))})"
                for name in names
                if name not in challenge.FREE_FLAGS
                and (run.flags.get(name), name in run.flags) != (flags.get(name), name in flags)
            ]
            if differ:
                faults.add(
                    path,
                    f"must have the hyper-parameters of {origin.relative_to(root)}, as all runs "
                    f"on one data set. Received: {', '.join(differ[:5])}"
                    + (f" and {len(differ) - 5} more" if len(differ) > 5 else ""),
                )


class _Form(typing.NamedTuple):
    """What an array must be: NumPy's kinds of types, their name, and the shape."""

    kinds: str
    name: str
    shape: tuple


class _Reader:
    """Reads the runs of one regime."""

    def __init__(self, regime, truths, faults):
        self._regime, self._faults = regime, faults
        self._truth = truth = truths[regime]
        self._label_sets = truths.together(regime)
        self._is_cifar = truths.datasets[regime] in cifar_n.KEYS
        num_train, num_test = len(truth.given_labels), len(truth.test_labels)
        self._forms = {
            DETECTION: _Form("b", "bool", (num_train,)),
            PREDICTIONS: _Form("iu", "integers", (num_test,)),
            LOGITS: _Form("f", "floats", (num_test, truth.num_classes)),
        }

    def run(self, folder, names):
        """Returns the `Run` in a folder with these names."""
        arrays = {name: self._array(folder, name, names) for name in self._forms}
        detection, predictions, logits = arrays.values()
        if detection is not None:
            self._check_detection(folder / DETECTION, detection)
        if predictions is not None:
            predictions = self._checked_predictions(folder / PREDICTIONS, predictions)
        if logits is not None:
            self._check_logits(folder / LOGITS, logits, predictions)
        self._check_timing(folder / TIMING)
        return Run(detection, predictions, self._flags(folder / CONFIG))

    def _array(self, folder, name, names):
        """Returns an array, or None if there is none or it has a fault."""
        path, form, stem = folder / name, self._forms[name], name.partition(".")[0]
        for other in names:
            if other.partition(".")[0] == stem and other != name:
                self._faults.add(folder / other, f"must be {name}, as numpy.save writes it")
        if name not in names:
            return None
        try:
            raw = files.read_untrusted(path, 8 * math.prod(form.shape) + _MOST_HEADER)
            array = files.parse_npy(raw)
        except ValueError as error:
            self._faults.add(path, f"cannot be read: {shown(str(error))}")
            return None
        if array.dtype.kind not in form.kinds or array.shape != form.shape:
            received = f"{shown(str(array.dtype))} {array.shape}"
            required = f"{form.name} of shape {form.shape}"
            self._faults.add(path, f"must be {required}. Received: {received}")
            return None
        return array

    def _check_detection(self, path, flagged):
        if flagged.view(np.uint8).max() > 1:
            self._faults.add(path, "must be bool. Received: bytes that are neither 0 nor 1")
        elif self._truth.corrupted.any():
            count = int(flagged.sum())
            if count in (0, len(flagged)):
                name = "all" if count else "none"
                self._faults.add(path, f"flags {name} of {len(flagged):,} labels")
            elif found := leaks.of_detection(flagged, self._truth, self._label_sets):
                self._faults.add(path, found)

    def _checked_predictions(self, path, predictions):
        low, high = int(predictions.min()), int(predictions.max())
        if low < 0 or high >= self._truth.num_classes:
            required = f"be in [0, {self._truth.num_classes})"
            self._faults.add(path, f"must {required}. Received: {low} to {high}")
            return None
        if found := leaks.of_predictions(predictions, self._truth):
            self._faults.add(path, found)
        return predictions

    def _check_logits(self, path, logits, predictions):
        if not np.isfinite(logits).all():
            count = int((~np.isfinite(logits)).sum())
            self._faults.add(path, f"must be finite. Received: {count:,} NaN or infinite")
        elif predictions is not None:
            chosen = np.take_along_axis(logits, predictions[:, None].astype(np.int64), axis=1)
            count = int((chosen[:, 0] < logits.max(axis=1)).sum())
            if count:
                self._faults.add(
                    path,
                    f"must be largest at the predicted class. Received: {count:,} rows that "
                    f"disagree with {PREDICTIONS}",
                )

    def _flags(self, path):
        """Returns the flags of a run, or None if they have a fault."""
        content = _read_json(path, challenge.CONFIG_KEYS, self._faults)
        if content is None:
            return None
        flags, sha256 = (content[key] for key in challenge.CONFIG_KEYS)
        if not isinstance(flags, dict) or not all(map(_is_scalar, flags.values())):
            self._faults.add(path, "must have flags, a dict of strings, finite numbers and bools")
            return None
        if sha256 != challenge.config_hash(flags):
            self._faults.add(path, "was edited: its sha256 is not that of its flags")
            return None
        seed = _seed(path.parent)
        if flags.get("seed", seed) != seed:
            self._faults.add(path, f"must have seed {seed}. Received: {shown(flags['seed'])}")
        if self._is_cifar and flags.get("noise", self._noises()[0]) not in self._noises():
            required = f"must have the noise {self._noises()[0]}"
            self._faults.add(path, f"{required}. Received: {shown(flags['noise'])}")
        return flags

    def _noises(self):
        """Returns the values of --noise that mean this regime."""
        regime = challenge.REGIMES[self._regime]
        keys = cifar_n.KEYS[regime.dataset]
        if regime.key not in keys:
            return [None, ""]
        return [f"cifarn:{name}" for name in (regime.key, *keys[regime.key])]

    def _check_timing(self, path):
        content = _read_json(path, challenge.TIMING_KEYS, self._faults)
        if content is None:
            return
        times = [content[key] for key in challenge.TIMING_KEYS]
        is_number = all(type(v) in (int, float) and _is_scalar(v) and v > 0 for v in times)
        if not is_number:
            required = f"must have positive numbers {', '.join(challenge.TIMING_KEYS)}"
            self._faults.add(path, f"{required}. Received: {', '.join(map(shown, times))}")
            return
        seconds, baseline, limit = times
        most = challenge.TIME_FACTOR * baseline
        if limit > most * (1 + 1e-9):
            self._faults.add(
                path,
                f"must have a limit_seconds of at most {challenge.TIME_FACTOR} times the "
                f"baseline_seconds, {most:,.6g}. Received: {limit:,.6g}",
            )
        elif seconds > limit:
            self._faults.add(path, f"has {seconds:,.6g} seconds, over the limit of {limit:,.6g}")


def _is_scalar(value):
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):  # bool is one
        return abs(value) < 2**63
    return value is None or isinstance(value, str)


def _read_text(path, faults):
    """Returns a UTF-8 text, or None if it has a fault."""
    try:
        text = files.read_untrusted(path, _MOST_TEXT).decode("utf-8")
        if not text.strip():
            raise ValueError("it is empty")
    except ValueError as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        faults.add(path, f"cannot be read: {shown(reason)}")
        return None
    return text


def _read_json(path, keys, faults):
    """Returns a dict with exactly these keys, or None if the file has a fault."""
    text = _read_text(path, faults)
    if text is None:
        return None
    try:
        content = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse)
        if not isinstance(content, dict) or set(content) != set(keys):
            raise ValueError(f"it must have {', '.join(keys)} and nothing else")
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        faults.add(path, f"cannot be used: {shown(reason)}")
        return None
    return content


def _distinct(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("it has a key twice")
    return dict(pairs)


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")
