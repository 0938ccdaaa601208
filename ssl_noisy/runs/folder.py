# SPDX-License-Identifier: Apache-2.0
"""The run folder: its owner, its contents, and the files that mark the start and end of a run."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil

from ssl_noisy import files
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint
from ssl_noisy.settings import without_places

FLAGS, RESULT = "flags.cfg", "result.json"  # the first file that a run writes, and the last
LABELS, NOISE, MODEL = "labels.json", "noise.npz", "model.keras"
EXAMPLES, METRICS, TIMING = "examples.csv", "metrics.csv", "timing.json"
PICTURES = ("aum.png", "curves.png", "gallery.png", "labels.png", "losses.png", "views.png")
FILES = {FLAGS, RESULT, LABELS, NOISE, MODEL, EXAMPLES, METRICS, TIMING, *PICTURES}
FILES |= {checkpoint.NAME, checkpoint.PREVIOUS_NAME}
FOLDERS = {"baseline", "pass_1", "pass_2", "tensorboard"}


def look_into(run_dir, settings):
    """Returns the result of a finished run; None of an unfinished one or an empty folder.

    Raises:
        UserError: If the folder holds a run with other flags, something else, or damaged files.
    """
    names = _names(run_dir)
    if FLAGS not in names:
        if names:
            raise UserError(f"{run_dir} is not empty and holds no run. Choose another --run_dir.")
        return None
    there = set(without_places(_read_flags(run_dir)))
    here = set(settings.flag_lines(places=False))
    if there != here:
        raise UserError(
            f"{run_dir} holds a run with other flags: "
            f"{' '.join(sorted(there - here)) or '(none)'} there, "
            f"{' '.join(sorted(here - there)) or '(none)'} here. Choose another --run_dir."
        )
    _check_kinds(run_dir, names)
    return read_result(run_dir) if RESULT in names else None


def _names(run_dir):
    """Returns the set of what lies in the folder, without what a kill left of a single file."""
    if not os.path.lexists(run_dir):
        return set()
    try:
        names = os.listdir(run_dir)
    except OSError as error:
        raise UserError(
            f"Cannot read the folder {run_dir}: {error.strerror}. Choose another --run_dir."
        ) from error
    return {name for name in names if not files.is_left_over(name)}


def _read_flags(run_dir):
    path = os.path.join(run_dir, FLAGS)
    try:
        if not os.path.isfile(path):
            raise OSError("it is no regular file")
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read {path}, which says what run the folder holds: {error}. Restore that "
            "file, or choose another --run_dir."
        ) from error


def _check_kinds(run_dir, names):
    """Raises the error of a directory in the place of a file, or the other way round."""
    for kind, known, is_kind in (
        ("regular file", FILES, os.path.isfile),
        ("directory", FOLDERS, os.path.isdir),
    ):
        for name in sorted(known.intersection(names)):
            path = os.path.join(run_dir, name)
            if not is_kind(path):
                raise UserError(f"{path} is not a {kind}. Remove it and rerun the same command.")


def discard(run_dir):
    """Removes the files of a run that failed before it saved anything, and nothing else.

    Returns:
        Whether it did. If any training in the folder, or in one within it, has saved something,
        all stays.
    """
    kept = {checkpoint.NAME, checkpoint.PREVIOUS_NAME, MODEL, RESULT}
    with only_process(run_dir):
        if any(kept.intersection(dirs + names) for _, dirs, names in os.walk(run_dir)):
            return False
        # `flags.cfg` goes last: while it is there, the folder is that of a run.
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
    """Holds a lock on the folder, which ends with the process however that ends."""
    with files.writing(run_dir):
        folder = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise UserError(f"Another process trains in {run_dir}. Wait for it, or stop it.") from None
    try:
        yield
    finally:
        os.close(folder)


def begin(run_dir, settings):
    """Removes what a kill left of single files, and writes `flags.cfg`: the folder is a run now."""
    for name in filter(files.is_left_over, os.listdir(run_dir)):
        with files.writing(os.path.join(run_dir, name)):
            os.remove(os.path.join(run_dir, name))
    write_text(run_dir, FLAGS, "\n".join(settings.flag_lines()) + "\n")


def write_text(run_dir, name, text):
    """Writes one text file of a run, whole or not at all."""
    with files.replacing(os.path.join(run_dir, name), "w") as file:
        file.write(text)


def write_result(run_dir, result):
    """Writes `result.json` and a checksum in it, which marks the end of the run."""
    content = {**result, "sha256": _digest(result)}
    write_text(run_dir, RESULT, json.dumps(content, indent=2) + "\n")


def read_result(run_dir):
    """Returns what `write_result` wrote.

    Raises:
        UserError: If it is damaged or was changed.
    """
    path = os.path.join(run_dir, RESULT)
    advice = "Delete it and run the same command again, which writes it from the checkpoint."
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise UserError(f"{path} cannot be read: {error}. {advice}") from error
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise UserError(f"{path} was changed: its checksum differs. {advice}")
    return content


def _digest(result):
    # Of the content and not the text: a tool may have indented it otherwise.
    content = json.loads(json.dumps(result))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
