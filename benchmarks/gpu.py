# SPDX-License-Identifier: Apache-2.0
"""All to measure on a GPU, in one file: python benchmarks/gpu.py --output=FILE [a run's flags]

`benchmarks/gpu.sh` calls it with the flags of FixMatch on CIFAR-10. In this order:

- `agreement`: the losses of the first three steps, with 8 labeled images each, in float32, in mixed
  bfloat16, and on JAX in float32 on the CPU; the largest relative differences from the first.
- `steps`: the report of `ssl_noisy.benchmark` in float32, in mixed bfloat16, and with 16 steps per
  call. `share_of_floor` is the bound of `results/step_h100_compiled.json` divided by the time, if
  that file has a step with the same method, network, sizes and precision.
- `peers`: what each --peer reports, and the ratio of the fastest step above to its step.
- `training`: a run of as many steps as fit into --minutes, in mixed bfloat16, 16 steps per call.

The file is written after each part: who stops early keeps the parts before. On JAX it needs no
TensorFlow.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shlex
import subprocess
import sys

from absl import flags

from ssl_noisy import benchmark, command, files, machine, run_flags, side_by_side
from ssl_noisy.runs import folder
from ssl_noisy.settings import Settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPILED = ROOT / "results" / "step_h100_compiled.json"
PER_CALL = 16
EVALUATIONS = 10


@dataclasses.dataclass(frozen=True)
class Wanted:
    settings: Settings
    output: str
    peers: list
    timed_steps: int
    minutes: float


def define_flags(values):
    define = functools.partial(flags.DEFINE_string, flag_values=values)
    define("output", None, "JSON file to write.", required=True)
    help = "Command line of a program to compare with; may be given several times."
    flags.DEFINE_multi_string("peer", [], help, flag_values=values)
    help = "Number of steps to time."
    flags.DEFINE_integer("timed_steps", 100, help, lower_bound=1, flag_values=values)
    help = "Minutes of training."
    flags.DEFINE_float("minutes", 4, help, lower_bound=0, flag_values=values)
    return ["output", "peer", "timed_steps", "minutes", *run_flags.define_flags(values)]


def read_flags(argv, values):
    settings = command.parse_settings(argv, values)
    output = os.path.abspath(values.output)
    return Wanted(settings, output, values.peer, values.timed_steps, values.minutes)


def losses(settings, precision):
    """Returns the losses of the first steps of a run, with few images."""
    arguments = {**settings.method_arguments, "batch_size": 8}
    small = dataclasses.replace(settings, precision=precision, method_arguments=arguments)
    _, learner = benchmark.prepare(small)
    batches = learner.batches(settings.seed)
    fit = learner.fit(batches, epochs=3, steps_per_epoch=1, verbose=0, shuffle=False)
    return fit.history["loss"]


def agreement(settings):
    found = {name: losses(settings, name) for name in ("float32", "mixed_bfloat16")}
    if os.environ.get("KERAS_BACKEND") == "jax":
        import jax

        with jax.default_device(jax.devices("cpu")[0]):
            found["float32 on the CPU"] = losses(settings, "float32")
    exact = found["float32"]
    differences = {
        name: max(abs(one - two) / abs(two) for one, two in zip(other, exact))
        for name, other in found.items()
        if name != "float32"
    }
    return {"losses": found, "largest_relative_differences": differences}


def floor(settings):
    """Returns the lower bound of a step on an H100 in seconds, or None if it is not recorded."""
    here = settings.resolved()
    for row in json.loads(COMPILED.read_text())["runs"]:
        if row["code"] != "after":
            continue
        values = flags.FlagValues()
        run_flags.define_flags(values)
        there = command.parse_settings(["h100", *row["flags"].split()], values).resolved()
        if (there.method, there.network, there.precision) == (
            here.method,
            here.network,
            here.precision,
        ) and there.method_arguments == here.method_arguments:
            return row["floor_ms"] / 1000
    return None


def step(settings, timed_steps):
    words = side_by_side.command(settings, timed_steps, work=True)
    found = side_by_side.run("The step cannot be timed", words)
    least = floor(settings)
    share = least and round(least / found["seconds_per_step"], 4)
    return {**found, "share_of_floor": share}


def training(settings, minutes, seconds_per_step, run_dir):
    """Trains for as long as `minutes`, of which a tenth is left for evaluations."""
    calls = int(0.9 * 60 * minutes / seconds_per_step / PER_CALL / EVALUATIONS)
    per_epoch = PER_CALL * max(calls, 1)
    chosen = dataclasses.replace(
        settings, steps=EVALUATIONS * per_epoch, steps_per_epoch=per_epoch, plots=False
    )
    words = [sys.executable, "-m", "ssl_noisy.train", *chosen.flag_lines(), f"--run_dir={run_dir}"]
    subprocess.run(words, check=True, stdout=sys.stderr)
    result = json.loads((pathlib.Path(run_dir) / folder.RESULT).read_text())
    return {"flags": chosen.flag_lines(), "test_accuracy": result["test_accuracy"]}


def main(wanted):
    result = {"program": "benchmarks/gpu.py", **machine.environment()}

    def keep(name, value):
        result[name] = value
        with files.replacing(wanted.output, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
        print(f"{name}: done", file=sys.stderr)

    settings = dataclasses.replace(wanted.settings, baseline=None)
    keep("agreement", agreement(settings))
    half = dataclasses.replace(settings, precision="mixed_bfloat16")
    steps = {}
    for name, timed in {
        "float32": dataclasses.replace(settings, precision="float32"),
        "mixed_bfloat16": half,
        f"mixed_bfloat16, {PER_CALL} steps per call": several(half),
    }.items():
        steps[name] = step(timed, wanted.timed_steps)
        keep("steps", steps)
    fastest = min(one["seconds_per_step"] for one in steps.values())
    peers = []
    for peer in wanted.peers:
        found = side_by_side.run(f"The command {peer!r} fails", shlex.split(peer))
        peers.append({**found, "command": peer, "ratio": fastest / found["seconds_per_step"]})
        keep("peers", peers)
    run_dir = os.path.splitext(wanted.output)[0] + "_run"
    keep("training", training(several(half), wanted.minutes, fastest, run_dir))


def several(settings):
    return dataclasses.replace(
        settings,
        steps_per_execution=PER_CALL,
        steps=settings.resolved().steps // PER_CALL * PER_CALL,
        steps_per_epoch=PER_CALL,
    )


if __name__ == "__main__":
    command.start("benchmarks/gpu.py", main, define_flags=define_flags, read_flags=read_flags)
