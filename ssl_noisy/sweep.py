# SPDX-License-Identifier: Apache-2.0
"""Trains many runs: python -m ssl_noisy.sweep --sweep_dir=DIR --over FLAG=VALUES [a run's flags]

--over may be repeated; the sweep is the product of all lists:

  python -m ssl_noisy.sweep --sweep_dir=DIR --flagfile=RECIPE \\
    --over method=fixmatch,supervised --over num_labels=40,250,4000 --over seed=0:5

--tune lets Optuna choose flags by the validation accuracy, in --trials trials:

  python -m ssl_noisy.sweep --sweep_dir=DIR --flagfile=RECIPE --trials=20 \\
    --tune learning_rate=log:0.003:0.3 --over seed=0:3

Running the same command again trains what is missing. The results are
sweep.csv, summary.csv, summary.md and budget_curve.png in DIR.
"""

import dataclasses

from absl import flags

from ssl_noisy import command, methods, pool_flags, run_flags
from ssl_noisy.errors import UserError
from ssl_noisy.runs import progress
from ssl_noisy.settings import absolute_path
from ssl_noisy.sweeps import estimate, plan, study, tune
from ssl_noisy.sweeps.conduct import Known, conduct
from ssl_noisy.sweeps.trials import Trials


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        sweep_dir: Absolute path of the folder.
        swept: Names of the swept flags.
        runs: List of `plan.Run`. With `tuning`, those at the ends of its ranges.
        notes: Lines for the user.
        workers: The `pool_flags.Workers`.
        compare_with: `FLAG=VALUE`, or None.
        target: An accuracy in (0, 1), or None.
        dry_run: Whether to print the runs and train nothing.
        tuning: The `tune.Tuning`, or None.
    """

    sweep_dir: str
    swept: list
    runs: list
    notes: list
    workers: pool_flags.Workers
    compare_with: str | None
    target: float | None
    dry_run: bool
    tuning: tune.Tuning | None


def define_flags(values):
    """Defines the flags of this command and those of a run, and returns their names."""
    define = {"flag_values": values}
    flags.DEFINE_string("sweep_dir", None, "Folder of the sweep.", **define)
    flags.DEFINE_multi_string(
        "over",
        [],
        "FLAG=VALUE,VALUE,... with any flag of a run but "
        f"{', '.join(plan.PLACES)}. Values of an integer flag may be ranges START:STOP[:STEP]; the "
        "stop is excluded. May be repeated.",
        **define,
    )
    flags.DEFINE_string(
        "over_file",
        None,
        "A CSV file with a column per flag and a row per run. An empty cell leaves the flag out.",
        **define,
    )
    flags.DEFINE_string(
        "compare_with",
        None,
        "FLAG=VALUE: report the difference from the runs with this value, such as "
        "method=supervised.",
        **define,
    )
    flags.DEFINE_float(
        "target_accuracy", None, "Report how many labels reach this test accuracy, in %.", **define
    )
    flags.DEFINE_boolean("dry_run", False, "Print the runs and their time, then exit.", **define)
    own = ["sweep_dir", "over", "over_file", "compare_with", "target_accuracy", "dry_run"]
    own += [*pool_flags.define_flags(values), *_define_tuning(define)]
    return [*own, *run_flags.define_flags(values)]


def _define_tuning(define):
    flags.DEFINE_multi_string(
        "tune",
        [],
        "FLAG=LOW:HIGH, FLAG=LOW:HIGH:STEP, FLAG=log:LOW:HIGH or FLAG=VALUE,VALUE,...: let Optuna "
        "choose the flag. Each trial trains a run for each combination of --over. May be repeated.",
        **define,
    )
    flags.DEFINE_integer(
        "trials", None, "Number of trials of --tune, in all.", lower_bound=1, **define
    )
    flags.DEFINE_enum(
        "objective", tune.OBJECTIVES[0], tune.OBJECTIVES, "What --tune makes large.", **define
    )
    return ["tune", "trials", "objective"]


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.parse(argv, values)
    if not values["sweep_dir"].value:
        raise UserError("--sweep_dir is required: the folder of the sweep.")
    if values["run_dir"].present:
        raise UserError(
            "--run_dir has no effect in a sweep, whose runs are in --sweep_dir/runs. Leave it out. "
            f"Received: --run_dir={values['run_dir'].value}"
        )
    if values["num_processes"].present:
        raise UserError(
            "--num_processes has no effect in a sweep, whose runs have a process each. Leave it "
            f"out. Received: --num_processes={values['num_processes'].value}"
        )
    target = values["target_accuracy"].value
    if target is not None and not 0 < target < 100:
        raise UserError(
            f"--target_accuracy must be in (0, 100), in %. Received: --target_accuracy={target}"
        )
    sweep_dir = absolute_path(values["sweep_dir"].value)
    over_file = values["over_file"].value and absolute_path(values["over_file"].value)
    axes, dropped, tuning = _axes(values), {}, None
    swept, chosen = plan.choices(values["over"].value, over_file, [axis.flag for axis in axes])

    def settings_of(them):
        return run_settings(argv, them, dropped)

    if axes:
        trials, objective = values["trials"].value, values["objective"].value
        tuning = tune.Tuning(sweep_dir, axes, chosen, trials, objective, swept, settings_of)
        runs = tuning.check()
    else:
        runs = plan.build(sweep_dir, swept, chosen, settings_of)
    workers = pool_flags.read(values)
    if values["dry_run"].value and workers.resources is not None:
        raise UserError("--dry_run times steps on this machine. Leave --ray_address out.")
    return Request(
        sweep_dir,
        swept,
        runs,
        _notes(runs, dropped),
        workers,
        values["compare_with"].value,
        None if target is None else target / 100,
        values["dry_run"].value,
        tuning,
    )


def _axes(values):
    """Returns the list of `tune.Axis` of `--tune`, after a check of the flags around it."""
    axes = tune.axes(values["tune"].value)
    if not axes:
        for name in ("trials", "objective"):
            if values[name].present:
                raise UserError(f"--{name} has no effect without --tune. Leave it out.")
        return axes
    if values["trials"].value is None:
        raise UserError("--tune needs --trials, the number of settings to try. Received: none.")
    if values["dry_run"].value:
        ends = " ".join(f"--over={axis.flag}={','.join(axis.ends)}" for axis in axes)
        raise UserError(
            "--dry_run needs runs that are known, but --tune chooses them later. Time the ends of "
            f"the ranges instead: {ends}"
        )
    for name in ("compare_with", "target_accuracy"):
        if values[name].value is not None:
            raise UserError(
                f"--{name} compares runs with equal flags, but those of trials differ. Leave it "
                "out with --tune, or rerun the best trial with it."
            )
    return axes


def run_settings(argv, chosen, dropped):
    """Returns the `Settings` of a run.

    If the sweep is over methods, flags that are equal for all runs go to those methods that take
    them, as with `--baseline`. Swept flags are never left out.

    Args:
        argv: The words of the command line.
        chosen: Dict from swept flag to string.
        dropped: Dict from method to the set of flags that it does not take, which is updated.
    """
    values = flags.FlagValues()
    define_flags(values)
    words = [word for word in argv if word != "--"]
    try:
        values([*words, *(f"--{flag}={value}" for flag, value in chosen.items())])
    except flags.Error as error:
        raise UserError(str(error)) from error
    method = values["method"].value
    if "method" in chosen and method in methods.names():
        takes = set(methods.arguments(method))
        if values["remove_labels"].value in methods.names():
            takes |= set(methods.arguments(values["remove_labels"].value))
        for flag in run_flags.method_flags():
            if values[flag].present and flag not in chosen and flag not in takes:
                dropped.setdefault(method, set()).add(flag)
                values[flag].unparse()
                values[flag].present = 0
    return run_flags.from_flags(values)


def _notes(runs, dropped):
    """Returns what the user should know about the plan.

    Raises:
        UserError: If a flag was given that no method of the sweep takes.
    """
    used = {run.settings.method for run in runs}
    for flag in sorted(set().union(*dropped.values())):
        if all(flag in dropped.get(method, ()) for method in used):
            raise UserError(f"--{flag} is not a flag of any method here: {', '.join(used)}.")
    notes = [
        f"{method} does not take {', '.join(f'--{flag}' for flag in sorted(them))}."
        for method, them in sorted(dropped.items())
    ]
    baselines = {run.settings.baseline for run in runs} - {None}
    if baselines:
        notes.append(
            f"Each run also trains --baseline={', '.join(sorted(baselines))}. --baseline= leaves "
            "it out."
        )
    return notes


def main(request):
    progress.tell(request.notes)
    if request.dry_run:
        parallel, devices = request.workers.parallel, request.workers.devices
        estimates = estimate.measure(
            request.runs, parallel, devices, lambda line: progress.tell([line])
        )
        print(estimate.table(request.runs, request.swept, estimates, parallel))
        return
    source = Known(request.sweep_dir, request.runs)
    if request.tuning is not None:
        study.check()
        tune.check_validation(request.runs)
        source = Trials(request.tuning, request.tuning.lines(request.runs[0]))
    make_pool, parallel = request.workers.pool(request.sweep_dir)
    text = conduct(
        request.sweep_dir,
        request.swept,
        source,
        make_pool,
        parallel=parallel,
        compare_with=request.compare_with,
        target=request.target,
    )
    print(f"\n{text}\nAll files of this sweep: {request.sweep_dir}")


if __name__ == "__main__":
    command.start("ssl_noisy.sweep", main, define_flags=define_flags, read_flags=read_flags)
