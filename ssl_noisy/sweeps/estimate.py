# SPDX-License-Identifier: Apache-2.0
"""How long a sweep takes, measured before it starts."""

import json
import subprocess
import sys
import tempfile
import typing

from ssl_noisy.errors import UserError

_TIMED_STEPS = 5
# What does not change the time of a step.
_FREE = ("seed", "label_seed", "noise_seed", "num_labels", "steps", "steps_per_epoch")


class Estimate(typing.NamedTuple):
    """Seconds per step, and seconds until the first step with the start of the process."""

    step: float
    start: float


def setting_of(run):
    """Returns what the time of a step depends on, a tuple of the lines of a flagfile."""
    skipped = tuple(f"--{name}=" for name in _FREE)
    return tuple(line for line in run.settings.flag_lines() if not line.startswith(skipped))


def measure(runs, tell):
    """Times a few steps of each distinct setting, each in a process of its own.

    Args:
        runs: List of `plan.Run`.
        tell: Function of a line for the user.

    Returns:
        A dict from `setting_of` to `Estimate`.

    Raises:
        UserError: If one cannot train. The message is that of the run.
    """
    examples = {}
    for run in runs:
        examples.setdefault(setting_of(run), run)
    found = {}
    for number, (setting, run) in enumerate(examples.items(), 1):
        tell(f"Timing {_TIMED_STEPS} steps of setting {number} of {len(examples)}: {run.name}")
        with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
            file.write("\n".join(run.settings.flag_lines()) + "\n")
            file.flush()
            process = subprocess.run(
                [sys.executable, "-m", "ssl_noisy.benchmark", f"--flagfile={file.name}"]
                + [f"--timed_steps={_TIMED_STEPS}"],
                capture_output=True,
                text=True,
            )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ["no output"]
            raise UserError(f"The run {run.name} cannot train: {lines[-1]}")
        report = json.loads(process.stdout.splitlines()[-1])
        found[setting] = Estimate(report["seconds_per_step"], report["seconds_to_first_step"])
    return found


def table(runs, swept, estimates, parallel):
    """Returns the text of a dry run: a line per run, and the sum."""
    lines, total = [], 0.0
    for run in runs:
        estimate, steps = estimates[setting_of(run)], run.settings.resolved().steps
        seconds = estimate.start + steps * estimate.step
        total += seconds
        lines.append([run.name, f"{steps:,}", duration(seconds)])
    rows = [["run", "steps", "time"], *lines]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    text = [
        f"{name:{widths[0]}}  {steps:>{widths[1]}}  {time:>{widths[2]}}"
        for name, steps, time in rows
    ]
    text.append(
        f"{len(runs)} runs over {', '.join(swept)}: about {duration(total)}, "
        f"{duration(total / min(parallel, len(runs)))} with {parallel} at a time. Evaluations come "
        "on top, and runs that share cores are slower."
    )
    return "\n".join(text)


def duration(seconds):
    """Returns a short text: 12 s, 3.4 min, 5.6 h or 7.8 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
