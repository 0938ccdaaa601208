# SPDX-License-Identifier: Apache-2.0
"""How long a sweep takes, measured before it starts."""

import itertools
import math
import statistics
import subprocess
import typing

from ssl_noisy import networks, side_by_side
from ssl_noisy.errors import UserError
from ssl_noisy.runs import removal
from ssl_noisy.sweeps import local

_TIMED_STEPS = 10
_PASSES = 2  # of AUM
# What does not change the time of a step, or is timed by itself.
_FREE = ("seed", "label_seed", "noise_seed", "num_labels", "steps", "steps_per_epoch")
_FREE += ("baseline", "checkpoint_seconds", "logger", "plot_format")


class Estimate(typing.NamedTuple):
    """Seconds that a training takes.

    Attributes:
        imports: To start a process, once for all runs of a worker.
        start: Until the first step, without `imports`. It includes loading and compiling.
        step: Per step.
        evaluation: Per evaluation.
    """

    imports: float
    start: float
    step: float
    evaluation: float


def trainings(settings):
    """Returns what a run trains, a list of tuples `(name, settings, count)`.

    These are its own method, its baseline, and the passes of AUM before either.
    """
    if settings.student:
        raise UserError(
            "--dry_run cannot time --rounds: the teachers of the later ones are not there yet. "
            f"Leave one of them out. Received: --rounds={settings.rounds}"
        )
    wanted = [(settings.method, settings)]
    if settings.baseline:
        wanted.append((settings.baseline, settings.for_baseline()))
    # Without what is trained before it, a training is equal in more runs, and timed once.
    found = [(name, own.for_method(own.method), 1) for name, own in wanted]
    for name, own in wanted:
        if own.remover:
            found.append((f"passes of {name}", removal.pass_settings(own), _PASSES))
    return found


def setting_of(settings):
    """Returns what the time of a step depends on, a tuple of the lines of a flagfile."""
    skipped = tuple(f"--{name}=" for name in _FREE)
    return tuple(line for line in settings.flag_lines() if not line.startswith(skipped))


def measure(runs, parallel, devices, tell):
    """Times a few steps and evaluations of each distinct setting, each in a process of its own.

    As many processes as there will be workers run at the same time, since they share the cores.

    Args:
        runs: List of `plan.Run`.
        parallel: Positive integer, the number of runs at a time.
        devices: Identifiers of GPUs, or an empty list.
        tell: Function of a line for the user.

    Returns:
        A dict from `setting_of` to `Estimate`.

    Raises:
        UserError: If one cannot train. The message is that of the run.
    """
    examples, found = {}, {}
    for run in runs:
        for name, settings, _ in trainings(run.settings):
            examples.setdefault(setting_of(settings), (f"{name} of {run.name}", settings))
    waiting, count = list(examples), min(parallel, len(runs))
    while waiting:
        these, waiting = waiting[:count], waiting[count:]
        for setting in these:
            number = len(examples) - len(waiting) - len(these) + these.index(setting) + 1
            tell(f"Timing setting {number} of {len(examples)}: {examples[setting][0]}")
        filled = list(itertools.islice(itertools.cycle(these), count))
        reports = _together([examples[setting] for setting in filled], devices)
        for setting in these:
            own = [report for other, report in zip(filled, reports) if other == setting]
            found[setting] = Estimate(*map(statistics.mean, zip(*own)))
    return found


def _together(examples, devices):
    """Times tuples of a name and `Settings` at the same time, and returns their `Estimate`s."""
    processes = []
    try:
        for i, (_, settings) in enumerate(examples):
            with local.starting():
                process = subprocess.Popen(
                    side_by_side.command(settings, _TIMED_STEPS, timed_evaluations=1),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=local.environment(devices, i),
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which kills them
                )
            processes.append(process)
        return [_estimate(name, process) for (name, _), process in zip(examples, processes)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _estimate(name, process):
    report = side_by_side.report(f"{name} cannot train", process, *process.communicate())
    return Estimate(
        report["seconds_to_import"],
        report["seconds_to_first_step"]
        - report["seconds_to_import"]
        + report["seconds_to_first_evaluation"],
        report["seconds_per_step"],
        report["seconds_per_evaluation"],
    )


def seconds_of(settings, estimate):
    """Returns how long a training takes, without the start of the process."""
    settings = settings.resolved()
    evaluations = math.ceil(settings.steps / settings.steps_per_epoch) + 1  # and the result
    return estimate.start + settings.steps * estimate.step + evaluations * estimate.evaluation


def table(runs, swept, estimates, parallel):
    """Returns the text of a dry run: a line per run, and the sum."""
    rows, total = [["run", "trains", "steps", "time"]], 0.0
    for run in runs:
        parts = trainings(run.settings)
        steps = sum(count * settings.resolved().steps for _, settings, count in parts)
        seconds = sum(
            count * seconds_of(settings, estimates[setting_of(settings)])
            for _, settings, count in parts
        )
        total += seconds
        names = " + ".join(f"{count} {name}" if count > 1 else name for name, _, count in parts)
        rows.append([run.name, names, f"{steps:,}", duration(seconds)])
    name, trains, steps, time = (max(len(row[i]) for row in rows) for i in range(4))
    text = [f"{r[0]:{name}}  {r[1]:{trains}}  {r[2]:>{steps}}  {r[3]:>{time}}" for r in rows]
    parallel = min(parallel, len(runs))
    imports = statistics.mean(estimate.imports for estimate in estimates.values())
    total += imports * _num_processes(runs, parallel)
    wall = imports + total / parallel  # the command imports the same
    text.append(
        f"{len(runs)} runs over {', '.join(swept)}: about {duration(total)}, {duration(wall)} with "
        f"{parallel} at a time."
    )
    if any(count > 1 for run in runs for _, _, count in trainings(run.settings)):
        text.append("After AUM has removed labels, training takes fewer steps than shown.")
    return "\n".join(text)


def _num_processes(runs, parallel):
    alone = sum(networks.is_own(run.settings.network) for run in runs)
    shared = len(runs) - alone
    return alone + max(min(parallel, shared), math.ceil(shared / local.RUNS_PER_PROCESS))


def duration(seconds):
    """Returns a short text: 12 s, 3.4 min, 5.6 h or 7.8 days."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
