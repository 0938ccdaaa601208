# SPDX-License-Identifier: Apache-2.0
"""The folder of a sweep: its plan, its locks, and what became of every run."""

import contextlib
import fcntl
import json
import os
import time

from ssl_noisy import files
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs import folder as run_folder
from ssl_noisy.settings import identifying_lines

PLAN, STATE = "sweep.json", "state.json"
RUNS, LOGS = "runs", "logs"
_GRACE = 180  # seconds that workers of a killed sweep have to save and exit


def look_into(sweep_dir, swept, runs, lines=()):
    """Checks that the folder is new, or that this sweep began or can extend it. Writes nothing.

    A sweep may gain runs. It may not lose any, and a run keeps its flags.

    Args:
        sweep_dir: Path of the folder.
        swept: Names of the swept flags.
        runs: List of `Run`.
        lines: With `--tune`, what must not change: the ranges, and the flags of all runs. The
            runs are those of the study then, and not checked here.

    Raises:
        UserError: If the folder has another sweep or other files. The message names the flags.
    """
    if not is_begun(sweep_dir):
        try:
            names = os.listdir(sweep_dir) if os.path.lexists(sweep_dir) else []
        except OSError as error:
            raise UserError(f"Cannot read the folder {sweep_dir}: {error.strerror}.") from error
        if any(not files.is_left_over(name) for name in names):
            raise UserError(
                f"{sweep_dir} is not empty and is not a sweep. Choose another --sweep_dir."
            )
        return
    there = read_plan(sweep_dir)
    if there["swept"] != list(swept):
        raise UserError(
            f"{sweep_dir} sweeps {', '.join(there['swept'])}. Received: {', '.join(swept)}. Choose "
            "another --sweep_dir."
        )
    _compare(sweep_dir, there.get("tuning", []), lines)
    if lines:
        return
    here = {run.name: run.settings.flag_lines(identifying=True) for run in runs}
    for name, before in there["runs"].items():
        if name not in here:
            raise UserError(
                f"{sweep_dir} has the run {name}, which these flags leave out. Add it again, or "
                "choose another --sweep_dir."
            )
        _compare(sweep_dir, identifying_lines(before), here[name])


def _compare(sweep_dir, before, now):
    """Raises the `UserError` of lists of flags that differ."""
    there, here = set(before) - set(now), set(now) - set(before)
    if there or here:
        raise UserError(
            f"{sweep_dir} belongs to a sweep with other flags: "
            f"{' '.join(sorted(there)) or '(none)'} there, {' '.join(sorted(here)) or '(none)'} "
            "here. Choose another --sweep_dir."
        )


def is_begun(sweep_dir):
    """Whether the folder is that of a sweep."""
    return os.path.lexists(os.path.join(sweep_dir, PLAN))


def read_plan(sweep_dir):
    """Returns the plan of a sweep: a dict with `swept`, a list of flags, and `runs`.

    `runs` is a dict from the name of each run to its flags, the lines of a flagfile. With `--tune`
    there is also `tuning`, a list of lines.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    path = os.path.join(sweep_dir, PLAN)
    content = _read_json(path, f"{sweep_dir} is no sweep folder, or its {PLAN} is damaged.")
    kinds = (("swept", list), ("runs", dict), ("tuning", list))
    if not all(isinstance(content.get(name, kind()), kind) for name, kind in kinds):
        raise UserError(f"{path} is damaged. Restore it, or choose another --sweep_dir.")
    return content


def _read_json(path, problem):
    try:
        files.require_regular(path)
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{problem} Cannot read {path}: {one_line(error)}.") from error
    return content


def begin(sweep_dir, swept, runs, lines=()):
    """Writes the plan. The arguments are those of `look_into`."""
    flags = {run.name: run.settings.flag_lines(identifying=True) for run in runs}
    tuning = {"tuning": list(lines)} if lines else {}
    _write_json(os.path.join(sweep_dir, PLAN), {"swept": list(swept), **tuning, "runs": flags})


def _write_json(path, content):
    with files.replacing(path, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")


def read_state(sweep_dir):
    """Returns what is known about runs that were started: a dict from name to dict.

    The entries are `status` (`finished` or `failed`), `attempts`, `seconds`, and for a failed run
    `reason` and `last_lines`. Whether a run is finished is decided by its own `result.json`.
    """
    path = os.path.join(sweep_dir, STATE)
    if not os.path.lexists(path):
        return {}
    return _read_json(path, f"Delete {STATE}, which only holds times and reasons.")


def write_state(sweep_dir, state):
    """Writes what `read_state` returns."""
    _write_json(os.path.join(sweep_dir, STATE), state)


def result_of(sweep_dir, name):
    """Returns the `result.json` of a run, or None if the run is unfinished or it is damaged."""
    run_dir = os.path.join(sweep_dir, RUNS, name)
    if not os.path.exists(os.path.join(run_dir, run_folder.RESULT)):
        return None
    try:
        return run_folder.read_result(run_dir)
    except UserError:  # the run itself reports it, with advice
        return None


def log_path(sweep_dir, name):
    """Returns the path of the output of a run."""
    return os.path.join(sweep_dir, LOGS, f"{name}.log")


@contextlib.contextmanager
def workers_lock(sweep_dir, tell):
    """Yields a descriptor that workers inherit: it is locked as long as one of them lives.

    The workers of a killed sweep save and exit on their own. A new sweep waits for them here.

    Args:
        sweep_dir: Path of the folder.
        tell: Function of a line for the user.

    Raises:
        UserError: If they do not exit.
    """
    runs = os.path.join(sweep_dir, RUNS)
    files.make_folder(runs)
    with files.writing(runs):
        descriptor = os.open(runs, os.O_RDONLY)
    began, told = time.monotonic(), False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - began > _GRACE:
                    raise UserError(
                        f"Workers of an earlier sweep still train in {runs}. Stop them first."
                    ) from None
                if not told:
                    tell("Waiting for the workers of an earlier sweep to save and exit.")
                    told = True
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)


def wait_until_free(run_dir):
    """Waits until no process trains in the folder of a run.

    A worker whose node or sweep was lost saves its run before it exits.

    Raises:
        UserError: If it still trains after three minutes.
    """
    began = time.monotonic()
    while os.path.isdir(run_dir):
        try:
            with run_folder.only_process(run_dir):
                return
        except UserError:
            if time.monotonic() - began > _GRACE:
                raise
            time.sleep(0.2)
