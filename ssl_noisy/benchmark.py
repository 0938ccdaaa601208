# SPDX-License-Identifier: Apache-2.0
"""Times the training step in `fit`: python -m ssl_noisy.benchmark [a run's flags]

Prints one JSON line, and writes no files.

With --compare='COMMAND' it runs itself and another program in turn, --pairs times, and compares
their steps pair by pair. The last line of that program must be JSON with `seconds_per_step`.
"""

import dataclasses
import functools
import json
import os
import resource
import statistics
import sys
import time

import keras
from absl import flags
from keras import ops

from ssl_noisy import command, devices, machine, run_flags, side_by_side, work
from ssl_noisy.errors import UserError
from ssl_noisy.runs import evaluation, frozen, labeling
from ssl_noisy.runs.training import make_learner
from ssl_noisy.settings import Settings

WARM_UP = 5  # calls of the compiled step before the timed ones; the first call compiles


class StepTimer(keras.callbacks.Callback):
    """Measures the time of each call of the compiled step until the device has finished it."""

    def __init__(self, learner, steps_per_execution):
        super().__init__()
        self.learner = learner
        self.steps_per_execution = steps_per_execution
        self.seconds = []
        self._last = None

    def on_train_batch_begin(self, batch, logs=None):
        now = self._finished_at()
        if self._last is not None:
            self.seconds.append((now - self._last) / self.steps_per_execution)
        self._last = now

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append((self._finished_at() - self._last) / self.steps_per_execution)

    def _finished_at(self):
        if hasattr(self.learner, "jax_state_sync"):
            self.learner.jax_state_sync()
        ops.convert_to_numpy(self.learner.step)  # waits for the program that writes it
        return time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What the command line asks for.

    Attributes:
        settings: The `Settings` of the run to time.
        timed_steps, timed_evaluations: Integers, how many to time.
        work: Whether to count the work of a step, and to measure what this machine can do.
        compare: The command line of another program, or None.
        pairs: Integer, how often to run both.
    """

    settings: Settings
    timed_steps: int = 20
    timed_evaluations: int = 0
    work: bool = True
    compare: str | None = None
    pairs: int = 3


def define_flags(values):
    """Defines the flags of this command, and returns their names."""
    count = functools.partial(flags.DEFINE_integer, flag_values=values)
    count("timed_steps", 20, "Number of steps to time.", lower_bound=1)
    count("timed_evaluations", 0, "Number of evaluations to time.", lower_bound=0)
    help = "Count the operations of a step, and measure how many this machine can do at most."
    flags.DEFINE_boolean("work", True, help, flag_values=values)
    help = "Command line of another program to run in turn with this benchmark."
    flags.DEFINE_string("compare", None, help, flag_values=values)
    count("pairs", 3, "How often to run both programs of --compare.", lower_bound=1)
    own = [field.name for field in dataclasses.fields(Benchmark)[1:]]
    return [*own, *run_flags.define_flags(values)]


def read_flags(argv, values):
    """Returns the `Benchmark` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    settings = command.parse_settings(argv, values)
    own = {field.name: values[field.name].value for field in dataclasses.fields(Benchmark)[1:]}
    return Benchmark(settings, **own)


def main(wanted):
    """Runs a `Benchmark` and prints the result as a JSON line."""
    timed = wanted.settings, wanted.timed_steps, wanted.timed_evaluations, wanted.work
    if wanted.compare is None:
        result = measure(*timed)
    else:
        ours = side_by_side.command(*timed)
        tell = functools.partial(print, file=sys.stderr)
        result = side_by_side.compare(ours, wanted.compare, wanted.pairs, tell)
    print(json.dumps(result))


def prepare(settings):
    """Returns the data set of a run, and its learner, ready for `fit`."""
    if settings.student:
        raise UserError(
            "A benchmark times one training. Leave --rounds out, and time --method=distill by "
            f"itself. Received: --rounds={settings.rounds}"
        )
    dataset = labeling.correct(settings, labeling.load_dataset(settings))
    labels = labeling.choose(settings, dataset)
    return dataset, make_learner(settings, frozen.make_task(settings, dataset, labels))


def measure(settings, timed_steps, timed_evaluations=0, count_work=False):
    """Times steps and evaluations of a run, and returns the figures, a dict for JSON."""
    with devices.used(settings.num_devices):
        return _measure(settings, timed_steps, timed_evaluations, count_work)


def _measure(settings, timed_steps, timed_evaluations, count_work):
    imported = seconds_to_now()
    dataset, learner = prepare(settings)
    executions = max(timed_steps // settings.steps_per_execution, 1)
    timer = StepTimer(learner, settings.steps_per_execution)
    last = learner.stages()[-1]  # of batches that grow, the final ones
    learner.enter(last)
    learner.fit(
        learner.batches(settings.seed, last.first_step),
        steps_per_epoch=(WARM_UP + executions) * settings.steps_per_execution,
        callbacks=[timer],
        verbose=0,
        shuffle=False,
    )
    result = report(settings, learner, timer.seconds)
    result["seconds_to_import"] = round(imported, 2)
    if timed_evaluations:
        first, *others = time_evaluations(settings, learner, dataset, 1 + timed_evaluations)
        per_evaluation = statistics.median(others)
        result["seconds_per_evaluation"] = round(per_evaluation, 6)
        result["seconds_to_first_evaluation"] = round(max(first - per_evaluation, 0), 6)
    if count_work:
        result.update(work.shares(learner, result["seconds_per_step"]))
    return result


def time_evaluations(settings, learner, dataset, count):
    """Returns the seconds of `count` evaluations; the first one compiles.

    Each uses the test images and the validation images, if any, as a run does.
    """
    size, seconds, task = evaluation.batch_size(settings, dataset), [], learner.task
    for _ in range(count):
        began = time.perf_counter()
        if task.test_images is not None:
            evaluation.evaluate(learner, task.test_images, task.test_labels, size)
        if task.validation_images is not None:
            evaluation.evaluate(learner, task.validation_images, dataset.validation_labels, size)
        seconds.append(time.perf_counter() - began)
    return seconds


def report(settings, learner, seconds):
    """Returns the figures of a benchmark.

    Args:
        settings: The `Settings` timed.
        learner: Its `Learner`.
        seconds: List of seconds per step, one for each call, with the warm-up.

    Returns:
        A dict for JSON. `images_per_second` counts views as the PyTorch programs do: one for a
        labeled image, two for an unlabeled image.
    """
    timed, later = seconds[WARM_UP:], sum(seconds[1:])
    low, median, high = statistics.quantiles(timed, n=4) if len(timed) > 1 else timed * 3
    sizes = learner.streams()
    views = sizes.get("labeled", 0) + 2 * sizes.get("unlabeled", 0)
    return {
        "program": "ssl_noisy.benchmark",
        "flags": settings.flag_lines(identifying=True),
        "seconds_per_step": round(median, 6),
        "quartiles": [round(low, 6), round(high, 6)],
        "steps_timed": len(timed) * settings.steps_per_execution,
        "images_per_second": round(views / median, 1),
        "seconds_to_first_step": round(seconds_to_now() - settings.steps_per_execution * later, 2),
        "jit_compile": bool(learner.jit_compile),
        "resident": learner.resident.place,
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_device_memory_mb": work.device_memory_mb(),
        **machine.environment(),
    }


def seconds_to_now():
    """Returns the age of this process in seconds, the time that a user has waited."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        start = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - start


if __name__ == "__main__":
    command.start("ssl_noisy.benchmark", main, define_flags=define_flags, read_flags=read_flags)
