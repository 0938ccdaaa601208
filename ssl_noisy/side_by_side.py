# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in processes of their own: this program's, and another one's in turn with it."""

import json
import math
import shlex
import statistics
import subprocess
import sys

from ssl_noisy.errors import UserError, one_line


def command(settings, timed_steps, timed_evaluations=0, work=False):
    """Returns the words of the command that times a training: `python -m ssl_noisy.benchmark`.

    Args:
        settings: The `Settings` of the training.
        timed_steps, timed_evaluations: Integers, how many to time.
        work: Whether to report the work of a step.
    """
    own = [f"--timed_steps={timed_steps}", f"--timed_evaluations={timed_evaluations}"]
    own += ["--work" if work else "--nowork"]
    return [sys.executable, "-m", "ssl_noisy.benchmark", *settings.flag_lines(), *own]


def report(failure, process, out, errors):
    """Returns what a benchmark that has ended reports: the JSON object of its last line.

    Args:
        failure: Text with which the error begins if there is none.
        process: The process, with its `returncode`.
        out, errors: What it wrote to standard output and standard error, as text.

    Raises:
        UserError: If it failed, or its last line is no JSON object with a positive
            `seconds_per_step`.
    """
    if process.returncode:
        lines = (errors.strip() or out.strip()).splitlines() or ["no output"]
        raise UserError(f"{failure}: exit code {process.returncode}, {one_line(lines[-1])}")
    last = (out.strip().splitlines() or [""])[-1]
    try:
        found = json.loads(last)
        seconds = found["seconds_per_step"]
        is_valid = 0 < seconds < math.inf
    except (ValueError, TypeError, KeyError):
        is_valid = False
    if not is_valid:
        raise UserError(
            f"{failure}: its last line must be a JSON object with seconds_per_step, a positive "
            f"number. Received: {one_line(last) if last else 'no output'}"
        )
    return found


def run(failure, words, environment=None):
    """Runs a benchmark to its end and returns its `report`.

    Args:
        failure: As for `report`.
        words: List of the words of its command.
        environment: Dict, the environment variables of the process. Default: those of this one.

    Raises:
        UserError: As `report`, and if there is no such program.
    """
    try:
        process = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
        )
    except OSError as error:
        raise UserError(f"{failure}: {error.strerror}: {words[0]}") from error
    return report(failure, process, process.stdout, process.stderr)


def compare(ours, theirs, pairs, tell):
    """Runs two benchmarks in turn, ours first, and compares their steps pair by pair.

    A machine whose speed changes slows both of a pair, not their ratio.

    Args:
        ours: List of words, as from `command`.
        theirs: Text, the command line of the other program. No shell reads it.
        pairs: Positive integer.
        tell: Function of a line for the user, called after each pair.

    Returns:
        A dict for JSON: `command`, `ratios`, a list of our seconds per step divided by theirs,
        `ratio`, their median, and what the programs printed, the lists `ours` and `theirs`.
    """
    try:
        words = shlex.split(theirs)
    except ValueError as error:
        raise UserError(f"--compare is no command line: {error}. Received: {theirs!r}") from error
    if not words:
        raise UserError("--compare must be the command line of a program. Received: nothing")
    found = {"ours": [], "theirs": [], "ratios": []}
    for i in range(pairs):
        found["ours"].append(run("This benchmark fails", ours))
        found["theirs"].append(run(f"The command {theirs!r} fails", words))
        mine, other = (found[name][-1]["seconds_per_step"] for name in ("ours", "theirs"))
        found["ratios"].append(round(mine / other, 4))
        tell(f"Pair {i + 1} of {pairs}: {mine:.4g} s and {other:.4g} s a step, {mine / other:.3f}")
    return {"command": theirs, "ratio": round(statistics.median(found["ratios"]), 4), **found}
