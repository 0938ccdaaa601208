# SPDX-License-Identifier: Apache-2.0
"""Makes an entry to the CIFAR-N challenge: python -m ssl_noisy.submit --entry_dir=DIR

  python -m ssl_noisy.submit --noise_type=all --entry_dir=DIR --cifarn_file=CIFAR-10_human.pt

Trains one recipe, --flagfile=RECIPE or any flags of a run, for all regimes of
--noise_type and 5 seeds, and writes what `score` reads: detections, predictions,
flags, times, run.sh, requirements.txt and a report. Without --flagfile and --method
it trains ProMix, which won the challenge, for as long as its clock allows. all
means aggre, rand1 and worst, the ranked regimes of CIFAR-10N, and all100 that of
CIFAR-100N.

Running the same command again does what is missing. A run sees the images and
the noisy labels of its regime alone. To try it in minutes:

  python -m ssl_noisy.submit --entry_dir=DIR --flagfile=flags/supervised_digits_sym40.cfg \\
    --num_seeds=2 --baseline_seconds=60 --truth_file=truth.npz
  python -m ssl_noisy.score --entry_dir=DIR --num_seeds=2 --truth=truth.npz
"""

import contextlib
import dataclasses
import os
import re
import shlex

from absl import flags

from ssl_noisy import challenge, command, files, pool_flags, recipes, run_flags
from ssl_noisy.errors import UserError, UserErrors
from ssl_noisy.runs import folder, progress
from ssl_noisy.settings import Settings, absolute_path
from ssl_noisy.submission import clock, entry_folder, isolation, rules
from ssl_noisy.sweeps import folder as sweep_folder
from ssl_noisy.sweeps import plan
from ssl_noisy.sweeps.conduct import Known, conduct


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        entry_dir, work_dir: Absolute paths.
        regimes: Dict from regime to its `Settings`, as `rules.recipe` returns them.
        seeds: Tuple of integers.
        baseline_seconds: Float, or None to measure it.
        truth_file: Path of the file to write for `score --truth`, or None.
        workers: The `pool_flags.Workers`.
    """

    entry_dir: str
    work_dir: str
    regimes: dict[str, Settings]
    seeds: tuple[int, ...]
    baseline_seconds: float | None
    truth_file: str | None
    workers: pool_flags.Workers

    def data_file(self, regime):
        return os.path.join(self.work_dir, "data", f"{regime}.npz")

    def sweep_dir(self, regime):
        return os.path.join(self.work_dir, regime)

    @property
    def dataset(self):
        return rules.dataset_of(next(iter(self.regimes)))


def define_flags(values):
    """Defines the flags of this command and those of a run, and returns their names."""
    define = {"flag_values": values}
    flags.DEFINE_string("entry_dir", None, "Folder of the entry.", **define)
    flags.DEFINE_string(
        "work_dir", None, "Folder of data and runs. Unset: that of the entry with _work.", **define
    )
    flags.DEFINE_string(
        "noise_type",
        None,
        f"Regimes, with commas between: {', '.join(rules.NOISE_TYPES)}. Unset: --dataset and "
        "--noise are a stand-in for CIFAR-N, with the name custom.",
        **define,
    )
    flags.DEFINE_integer(
        "num_seeds", None, "Runs per regime, with the seeds 1, 2, ... Unset: 5.", **define
    )
    flags.DEFINE_list("seeds", None, "Other seeds, with commas between.", **define)
    flags.DEFINE_float(
        "baseline_seconds",
        None,
        "How long the baseline of the challenge takes here. A run may take 10 times as long. "
        "Unset: it is measured.",
        **define,
    )
    flags.DEFINE_string(
        "truth_file",
        None,
        "Without --noise_type: write the true labels to this .npz file, for score --truth, once "
        "the entry is complete.",
        **define,
    )
    own = ["entry_dir", "work_dir", "noise_type", "num_seeds", "seeds", "baseline_seconds"]
    return [*own, "truth_file", *pool_flags.define_flags(values), *run_flags.define_flags(values)]


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.parse(argv, values)
    if not values["entry_dir"].value:
        raise UserError("--entry_dir is required: the folder of the entry.")
    entry_dir = absolute_path(values["entry_dir"].value)
    names, workers = rules.regimes(values["noise_type"].value), pool_flags.read(values)
    baseline, truth_file = values["baseline_seconds"].value, values["truth_file"].value
    if baseline is not None and not 0 < baseline < float("inf"):
        raise UserError(f"--baseline_seconds must be above 0. Received: {baseline}")
    if baseline is None and workers.resources is not None:
        raise UserError(
            "--ray_address needs --baseline_seconds, the time of the baseline on a node: it would "
            "be measured on this machine."
        )
    if truth_file and names != (rules.CUSTOM,):
        raise UserError(
            "--truth_file is for stand-ins: score knows the true labels of CIFAR. Leave it out."
        )
    request = Request(
        entry_dir,
        absolute_path(values["work_dir"].value or f"{entry_dir}_work"),
        {name: _settings(argv, values, name) for name in names},
        _seeds(values),
        baseline,
        truth_file and absolute_path(truth_file),
        workers,
    )
    for regime in names:
        _runs(request, regime, 1.0)  # finds mistakes before anything is written
    return request


def _seeds(values):
    """Returns the seeds of the runs."""
    if values["seed"].present:
        raise UserError("--seed has no effect here. Use --seeds=1,2,3 or --num_seeds.")
    given, count = values["seeds"].value, values["num_seeds"].value
    if given and count is not None:
        raise UserError("--seeds and --num_seeds exclude each other. Leave one of them out.")
    if not given:
        if count is not None and count < 1:
            raise UserError(f"--num_seeds must be at least 1. Received: --num_seeds={count}")
        return tuple(range(1, 1 + (count or challenge.NUM_SEEDS)))
    if not all(re.fullmatch("0|[1-9][0-9]{0,8}", text) for text in given):
        raise UserError(
            f"--seeds must be integers with commas between. Received: --seeds={','.join(given)}"
        )
    return tuple(sorted({int(text) for text in given}))


def _settings(argv, values, regime):
    """Returns the `Settings` of a regime: the default recipe, the user's flags, and the rules."""
    words = [word for word in argv[1:] if word != "--"]
    forced = []
    if regime == rules.CUSTOM:
        if not (values["dataset"].present or values["noise"].present):
            raise UserError(
                f"Pass the regimes, --noise_type=all or others of {', '.join(rules.NOISE_TYPES)}, "
                "or a stand-in such as --dataset=digits --noise=symmetric:0.4."
            )
    else:
        forced = _forced(words, values, regime)
        has_recipe = any(re.match("--?flagfile(=|$)", word) for word in words)
        if not (has_recipe or values["method"].present):
            path = recipes.folder() / f"{rules.DEFAULTS[rules.dataset_of(regime)]}.cfg"
            words = [f"--flagfile={path}", *words]
    found = flags.FlagValues()
    define_flags(found)
    try:
        found([argv[0], *words, *forced])
    except flags.Error as error:
        raise UserError(str(error)) from error
    # What a recipe says of noise that the regime replaces, and what is of the other regimes.
    replaced = ("noise_draw", "noise_seed") if regime != rules.CUSTOM else ()
    for name in replaced + (() if found["noise"].value else ("cifarn_file", "noisy_validation")):
        found[name].unparse()
        found[name].present = 0
    return rules.recipe(run_flags.from_flags(found))


def _forced(words, values, regime):
    """Returns the words that a regime adds to the command line, in place of a recipe's noise."""
    dataset, noise = rules.dataset_of(regime), rules.noise_of(regime)
    given = values["dataset"].value if values["dataset"].present else dataset
    if given.partition(":")[0] != dataset:
        raise UserError(
            f"--noise_type={regime} is of {dataset}. Received: --dataset={given}. Leave it out, or "
            "leave --noise_type out for a stand-in."
        )
    own = [word for word in words if re.match("--?noise(_draw|_seed)?(=|$)", word)]
    if own:
        raise UserError(
            f"--noise_type={regime} has labels of its own. Received: {own[0]}. Leave it out, or "
            "leave --noise_type out for a stand-in."
        )
    return [f"--dataset={given}", f"--noise={noise}"]


def main(request):
    def tell(line):
        progress.tell([line])

    files.make_folder(request.work_dir)
    with folder.only_process(request.work_dir):
        _prepare(request)
        baseline = request.baseline_seconds
        if baseline is None:
            baseline = _measure(request, tell)
        runs = {}
        for regime in request.regimes:
            tell(f"Regime {regime}: {len(request.seeds)} runs.")
            runs[regime] = _train(request, regime, baseline)
        facts = _collect(request, runs, baseline)
        entry_folder.write_texts(request.entry_dir, request.work_dir, facts, tell)
        if request.truth_file:
            _write_truth(request)
        if found := entry_folder.faults(facts):
            raise UserErrors(found)
    print(f"The entry is complete: {request.entry_dir}\nScore it: {_score_command(request)}")


def _prepare(request):
    """Writes the data of all regimes. After a mistake it leaves no new folder behind."""
    try:
        for regime, settings in request.regimes.items():
            entry_folder.check(request.entry_dir, regime, settings)
            isolation.prepare(request.data_file(regime), settings)
    except UserError:
        with contextlib.suppress(OSError):  # there is data
            os.rmdir(request.work_dir)
        raise


def _measure(request, tell):
    """Returns the seconds of the baseline."""
    data_file = request.data_file(next(iter(request.regimes)))
    data = isolation.read(data_file)
    path = os.path.join(request.work_dir, f"baseline_{request.dataset}.json")
    baseline = rules.baseline(request.dataset, data_file)
    return clock.measured(path, baseline, len(data["labels_train"]), request.workers.devices, tell)


def _runs(request, regime, limit):
    """Returns the list of `plan.Run` of a regime, whose training may take `limit` seconds."""
    settings, data_file = request.regimes[regime], request.data_file(regime)

    def settings_of(chosen):
        seeded = dataclasses.replace(settings, seed=int(chosen["seed"]))
        return rules.training(seeded, data_file, limit)

    chosen = [{"seed": str(seed)} for seed in request.seeds]
    return plan.build(request.sweep_dir(regime), ["seed"], chosen, settings_of)


def _train(request, regime, baseline):
    """Trains the unfinished runs of a regime, as a sweep. Returns a dict from seed to run folder.

    Each regime has a sweep of its own: no process reads the labels of two.
    """
    sweep_dir = request.sweep_dir(regime)
    runs = _runs(request, regime, challenge.TIME_FACTOR * baseline)
    is_trained = all(sweep_folder.result_of(sweep_dir, run.name) for run in runs)
    # A cluster is asked for room only if there is something to train.
    make_pool, parallel = (None, 1) if is_trained else request.workers.pool(sweep_dir)
    try:
        conduct(sweep_dir, ["seed"], Known(sweep_dir, runs), make_pool, parallel=parallel)
    except UserError as error:
        raise UserError(str(error).replace("--sweep_dir", "--work_dir")) from error
    return {run.settings.seed: run.settings.run_dir for run in runs}


def _collect(request, runs, baseline):
    """Writes the results of all runs, the last step. Returns the facts for the report."""
    opened, facts = [], {}

    def test_images():
        if not opened:
            opened.append(isolation.test_set(next(iter(request.regimes.values()))).test_images)
        return opened[0]

    for regime, settings in request.regimes.items():
        data = isolation.read(request.data_file(regime))
        rows = entry_folder.add_runs(
            request.entry_dir, regime, settings, runs[regime], data, baseline, test_images
        )
        paths = list(runs[regime].values())
        of_recipe = {name: getattr(settings, name) for name in entry_folder.OF_RECIPE}
        facts[regime] = {"rows": rows, "runs": paths, **of_recipe}
    return facts


def _write_truth(request):
    settings = request.regimes[rules.CUSTOM]
    ids, true_labels = isolation.true_labels(settings)
    data = isolation.read(request.data_file(rules.CUSTOM))
    test_labels = isolation.test_set(settings).test_labels
    entry_folder.write_truth(request.truth_file, data, ids, true_labels, test_labels)


def _score_command(request):
    words = ["python", "-m", "ssl_noisy.score", f"--entry_dir={request.entry_dir}"]
    if len(request.seeds) != challenge.NUM_SEEDS:
        words.append(f"--num_seeds={len(request.seeds)}")
    if rules.CUSTOM in request.regimes:
        words.append(f"--truth={request.truth_file or 'FILE.npz'}")
    else:
        settings = next(iter(request.regimes.values()))
        names = ("cifarn_file", "data_dir", "cache_dir")
        words += [f"--{x}={getattr(settings, x)}" for x in names if getattr(settings, x)]
    return " ".join(map(shlex.quote, words))


if __name__ == "__main__":
    command.start("ssl_noisy.submit", main, define_flags=define_flags, read_flags=read_flags)
