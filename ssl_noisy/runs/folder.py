# SPDX-License-Identifier: Apache-2.0
"""The run folder: its lock, its files, and those that mark the start and end of a run."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil

from ssl_noisy import files
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint, trackers
from ssl_noisy.settings import PLOT_FORMATS, identifying_lines

FLAGS, RESULT = "flags.cfg", "result.json"  # the first and the last file that a run writes
LABELS, NOISE, MODEL = "labels.json", "noise.npz", "model.keras"
VALIDATION_NOISE = "validation_noise.npz"
EXAMPLES, METRICS, TIMING = "examples.csv", "metrics.csv", "timing.json"
IMAGES = "images.csv"
USED_FEATURES = "features.json"  # what a training on features learns from
CORRECTIONS = "applied_corrections.csv"  # not corrections.csv, which people put into the folder
PICTURES = ("aum", "curves", "gallery", "labels", "losses", "views")
FILES = {FLAGS, RESULT, LABELS, NOISE, MODEL, EXAMPLES, METRICS, TIMING, IMAGES}
FILES |= {CORRECTIONS, VALIDATION_NOISE, USED_FEATURES}
FEATURES = "features.npz"  # which another command puts there
FILES |= {checkpoint.NAME, checkpoint.PREVIOUS_NAME, *checkpoint.BEST, trackers.NAME}
FILES |= {f"{name}.{kind}" for name in PICTURES for kind in PLOT_FORMATS}
BASELINE = "baseline"
FOLDERS = {BASELINE, "pass_1", "pass_2", "tensorboard"}


def round_name(number):
    """Returns the name of the folder of a round, counted from 1."""
    return f"round_{number}"


FOLDERS |= set(map(round_name, range(1, 2**4)))  # as many as `rounds` may be


def look_into(run_dir, settings):
    """Returns the result of a finished run, or None if it is unfinished or not started.

    Args:
        run_dir: The run folder, which may be missing.
        settings: A `Settings`, or the `Request` of a probe, which has `flag_lines` too.

    Raises:
        UserError: If the folder has a run with other flags, other files, or damaged files.
    """
    names = _names(run_dir)
    if FLAGS not in names:
        if names:
            raise UserError(
                f"{run_dir} is not empty and is not a run folder. Choose another --run_dir."
            )
        return None
    there = set(identifying_lines(read_flags(run_dir)))
    here = set(settings.flag_lines(identifying=True))
    if there != here:
        raise UserError(
            f"{run_dir} belongs to a run with other flags: "
            f"{' '.join(sorted(there - here)) or '(none)'} there, "
            f"{' '.join(sorted(here - there)) or '(none)'} here. Choose another --run_dir."
        )
    _check_kinds(run_dir, names)
    return read_result(run_dir) if RESULT in names else None


def _names(run_dir):
    """Returns the set of names in the folder, without temporary files of a killed process."""
    if not os.path.lexists(run_dir):
        return set()
    try:
        names = os.listdir(run_dir)
    except OSError as error:
        raise UserError(
            f"Cannot read the folder {run_dir}: {error.strerror}. Choose another --run_dir."
        ) from error
    return {name for name in names if not files.is_left_over(name)}


def read_flags(run_dir):
    """Returns the lines of the `flags.cfg` of a run.

    Raises:
        UserError: If it cannot be read.
    """
    path = os.path.join(run_dir, FLAGS)
    try:
        if not os.path.isfile(path):
            raise OSError("it is not a regular file")
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read {path}, which identifies the run of this folder: {error}. Restore the "
            "file, or choose another --run_dir."
        ) from error


def _check_kinds(run_dir, names):
    """Raises a `UserError` if a directory has the name of a file of the run, or vice versa."""
    for kind, known, is_kind in (
        ("regular file", FILES, os.path.isfile),
        ("directory", FOLDERS, os.path.isdir),
    ):
        for name in sorted(known.intersection(names)):
            path = os.path.join(run_dir, name)
            if not is_kind(path):
                raise UserError(f"{path} is not a {kind}. Remove it and rerun the same command.")


def discard(run_dir):
    """Removes the files of a run that failed before it saved anything. Other files stay.

    Returns:
        Whether it did. If any training in the folder or below has saved something, all files stay.
    """
    kept = {checkpoint.NAME, checkpoint.PREVIOUS_NAME, MODEL, RESULT}
    with only_process(run_dir):
        if any(kept.intersection(dirs + names) for _, dirs, names in os.walk(run_dir)):
            return False
        # `flags.cfg` marks a run folder, so it goes last.
        for name in sorted(_names(run_dir), key=lambda name: name == FLAGS):
            path = os.path.join(run_dir, name)
            with files.writing(path):
                if name in FOLDERS and os.path.isdir(path):
                    shutil.rmtree(path)
                elif name in FILES:
                    os.remove(path)
    return True


@contextlib.contextmanager
def only_process(run_dir):
    """Holds a lock on the folder. It ends with the process, even if that is killed."""
    with files.writing(run_dir):
        folder = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise UserError(
            f"Another process is training in {run_dir}. Wait for it, or stop it."
        ) from None
    try:
        yield
    finally:
        os.close(folder)


def begin(run_dir, settings):
    """Makes the folder a run folder: removes temporary files and writes `flags.cfg`."""
    for name in filter(files.is_left_over, os.listdir(run_dir)):
        with files.writing(os.path.join(run_dir, name)):
            os.remove(os.path.join(run_dir, name))
    write_text(run_dir, FLAGS, "\n".join(settings.flag_lines()) + "\n")


def picture(run_dir, name, plot_format=None):
    """Returns the path of one of `PICTURES`, in one of `PLOT_FORMATS`; None is PNG."""
    return os.path.join(run_dir, f"{name}.{plot_format or PLOT_FORMATS[0]}")


def results(run_dir):
    """Returns the paths of what a run wrote for people: flags, tables and pictures."""
    kinds = tuple(f".{kind}" for kind in PLOT_FORMATS)
    shown = {FLAGS, METRICS, EXAMPLES, IMAGES} | {name for name in FILES if name.endswith(kinds)}
    return [os.path.join(run_dir, name) for name in sorted(_names(run_dir) & shown)]


def write_text(run_dir, name, text):
    """Writes a text file of a run atomically."""
    with files.replacing(os.path.join(run_dir, name), "w") as file:
        file.write(text)


def read_timing(run_dir):
    """Returns the `training_seconds` of a finished run; 0 if an earlier version did not write them.

    Raises:
        UserError: If the file is damaged.
    """
    path = os.path.join(run_dir, TIMING)
    try:
        with open(path, encoding="utf-8") as file:
            return float(json.load(file).get("training_seconds", 0.0))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. Delete {RESULT} beside it and run the same command "
            "again to restore it."
        ) from error


def write_result(run_dir, result):
    """Writes `result.json` with a checksum, which marks the end of the run."""
    content = {**result, "sha256": _digest(result)}
    write_text(run_dir, RESULT, json.dumps(content, indent=2) + "\n")


def read_result(run_dir):
    """Returns what `write_result` wrote.

    Raises:
        UserError: If the file is damaged or was edited.
    """
    path = os.path.join(run_dir, RESULT)
    advice = "Delete it and run the same command again to restore it from the checkpoint."
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:  # not JSON or not UTF-8
        raise UserError(f"{path} cannot be read: {error}. {advice}") from error
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise UserError(f"{path} was edited: its checksum differs. {advice}")
    return content


def _digest(result):
    # The checksum is that of the content: a tool may have changed the indentation.
    content = json.loads(json.dumps(result))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
