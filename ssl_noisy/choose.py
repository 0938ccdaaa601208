# SPDX-License-Identifier: Apache-2.0
"""Chooses which images to label: python -m ssl_noisy.choose --budget=40 --features=FILE

Writes the folder --output with what was chosen, in order: chosen.csv, the
picture chosen.png, and either

  labels.json      if all labels are known, as in a benchmark: train with
                   --label_file=labels.json
  to_label.csv     if not: fill in the column label, and train with
                   --labels_csv=to_label.csv

Run it again with the labels that you have, --label_file or --labels_csv, to
choose more. python -m ssl_noisy.features writes the feature file, without any
training with --network=pixels.
"""

import csv
import dataclasses
import os

import numpy as np
from absl import flags

from ssl_noisy import command, files, run_flags
from ssl_noisy.data import corrections, label_budget
from ssl_noisy.errors import UserError
from ssl_noisy.runs import labeling, plots, progress
from ssl_noisy.selection import rules
from ssl_noisy.settings import Settings, absolute_path

CHOSEN, PICTURE, LABELS, TO_LABEL = "chosen.csv", "chosen.png", "labels.json", "to_label.csv"
FLAGS = (*labeling.LOADING, "features", "label_file", "labels_csv", "seed")
MOST_PICTURES = 400


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        settings: `Settings` with the data, its features, the labels that are there, and the seed.
        budget: Positive integer, the number of images to choose.
        by: A key of `rules.RULES`.
        radius: Float, that of ProbCover's balls, or None.
        output: Path of the folder to write.
    """

    settings: Settings
    budget: int
    by: str
    radius: float | None
    output: str


def define_flags(values):
    """Defines the flags of this command and returns their names."""
    define = {"flag_values": values}
    flags.DEFINE_integer("budget", None, "Number of images to choose.", lower_bound=1, **define)
    kinds = "; ".join(f"{name}: {rule.help}" for name, rule in rules.RULES.items())
    flags.DEFINE_enum("by", "typiclust", list(rules.RULES), f"The rule. {kinds}.", **define)
    flags.DEFINE_float(
        "radius",
        None,
        "With --by=probcover: radius of a neighborhood, in features of length 1. Unset: the "
        "largest one at which 95 % of the neighborhoods lie in one cluster.",
        lower_bound=rules.SMALLEST_RADIUS,
        upper_bound=2,
        **define,
    )
    flags.DEFINE_string("output", "chosen", "Folder to write.", **define)
    return ["budget", "by", "radius", "output", *run_flags.define_settings(values, FLAGS)]


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.parse(argv, values)
    budget, by, radius = (values[name].value for name in ("budget", "by", "radius"))
    if budget is None:
        raise UserError("Pass --budget=NUMBER, how many images to choose.")
    if radius is not None and by != "probcover":
        raise UserError(f"--radius has no effect with --by={by}, only with probcover.")
    if values["features"].value and by not in rules.BY_FEATURES:
        raise UserError(
            f"--features has no effect with --by={by}, only with {', '.join(rules.BY_FEATURES)}. "
            "Leave it out."
        )
    settings = Settings(**run_flags.values_of(values))
    return Request(settings, budget, by, radius, absolute_path(values["output"].value))


def main(request):
    settings = request.settings
    loaded = labeling.load_unlabeled(settings)
    is_known = bool((loaded.labels >= 0).all())  # as in a benchmark
    dataset = labeling.correct(settings, loaded)
    for name in (CHOSEN, PICTURE, LABELS, TO_LABEL):
        path = os.path.join(request.output, name)
        if os.path.exists(path):  # perhaps with the work of hours in it
            raise UserError(f"{path} exists. Choose another --output, or remove it.")
    pool = make_pool(request, dataset, is_known)
    choice = rules.choose(request.by, pool, request.budget, settings.seed)
    progress.tell(dataset.notes)
    files.make_folder(request.output)
    _write_chosen(os.path.join(request.output, CHOSEN), dataset, choice, is_known)
    positions = choice.positions[:MOST_PICTURES]
    titles = [f"{rank}" for rank in range(1, len(positions) + 1)]
    names = None if dataset.files is None else [dataset.files[row] for row in positions]
    plots.pictures(dataset.images, positions, titles, os.path.join(request.output, PICTURE), names)
    together = np.sort(np.concatenate([pool.labeled, choice.positions]))
    if is_known:
        path = os.path.join(request.output, LABELS)
        _write_labels(path, dataset, together, request)
        advice = f"Train with these {len(together)} labels: --label_file={path}"
    else:
        path = os.path.join(request.output, TO_LABEL)
        _write_to_label(path, dataset, pool.labeled, choice.positions)
        advice = f"Fill in the column label of {path}, then train with --labels_csv={path}"
    print(describe(request, dataset, pool, choice, is_known))
    print(f"{request.output}: {CHOSEN}, {PICTURE}, {os.path.basename(path)}\n{advice}")


def make_pool(request, dataset, is_known):
    """Returns the `rules.Pool` of a request.

    If all labels are known, those of `--label_file` count as bought. Else those that are there do.

    Args:
        request: The `Request`.
        dataset: The `Dataset`, corrected.
        is_known: Whether all labels were known before the corrections.

    Raises:
        UserError: If the request does not fit the data set.
    """
    settings = request.settings
    if not is_known:
        if settings.label_file:
            raise UserError(
                f"--label_file has no effect with {dataset.name!r}, some of whose images have no "
                "label: those that have one count. Leave it out."
            )
        if rules.RULES[request.by].needs_labels:
            raise UserError(
                f"--by={request.by} needs the labels of all images. Received: "
                f"{int((dataset.labels < 0).sum())} without one in {dataset.name!r}. Use "
                "--by=typiclust."
            )
        labeled = np.flatnonzero(dataset.labels >= 0)
    else:
        labeled = np.zeros(0, np.int64)
        if settings.label_file:
            # It names examples as they were before corrections.
            original = dataset.uncorrected or dataset
            positions, _ = label_budget.read(settings.label_file, original)
            labeled = np.flatnonzero(np.isin(dataset.ids, original.ids[positions]))
    candidates = np.setdiff1d(np.arange(len(dataset.labels)), labeled)
    path = settings.features if request.by in rules.BY_FEATURES else None
    return rules.pool_of(dataset, candidates, labeled, path, request.radius)


def describe(request, dataset, pool, choice, is_known):
    """Returns what was chosen, as text."""
    lines = [
        f"{len(choice.positions)} of {len(pool.candidates):,} unlabeled images of {dataset.name}, "
        f"by {request.by}; {len(pool.labeled)} had a label before."
    ]
    for name, value in choice.facts.items():
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        lines.append(f"  {name.replace('_', ' ')}: {text}")
    if is_known:
        together = np.concatenate([pool.labeled, choice.positions])
        labels = dataset.labels[together]
        counts = np.bincount(labels[labels >= 0], minlength=dataset.num_classes)
        lines.append(
            f"  classes covered: {int((counts > 0).sum())} of {dataset.num_classes}, with "
            f"{counts.min()} to {counts.max()} labels each"
        )
    return "\n".join(lines)


def _write_chosen(path, dataset, choice, is_known):
    """Writes a row for each chosen image, in order."""
    key, names = corrections.key_of(dataset), dataset.files
    columns = {"rank": range(1, len(choice.positions) + 1)}
    columns[key] = [names[row] if names else dataset.ids[row] for row in choice.positions]
    if is_known:
        classes = [*dataset.class_names, ""]  # -1: a correction took the label away
        columns["class"] = [classes[dataset.labels[row]] for row in choice.positions]
    for name, values in choice.columns.items():
        columns[name] = [f"{v:.6g}" if values.dtype.kind == "f" else v for v in values]
    with files.replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values()))


def _write_labels(path, dataset, positions, request):
    """Writes a label file, which names examples as they were before corrections."""
    original = dataset.uncorrected or dataset
    positions = np.searchsorted(original.ids, dataset.ids[positions])
    sha256 = corrections.digest(dataset) if dataset.corrections else ""
    label_budget.write(
        path,
        original,
        positions,
        how=request.by,
        seed=request.settings.seed,
        corrections_sha256=sha256,
    )


def _write_to_label(path, dataset, labeled, chosen):
    """Writes the table that a person completes: the labels that are there, and the new rows."""
    key, names = corrections.key_of(dataset), dataset.files
    there = dict(dataset.corrections)
    with files.replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((key, "label"))
        new = [names[row] if names else str(dataset.ids[row]) for row in chosen]
        writer.writerows((name, "") for name in new)
        for row in labeled:
            name = names[row] if names else str(dataset.ids[row])
            if name in there:
                writer.writerow((name, dataset.class_names[dataset.labels[row]]))
        # Labels that were taken away, and examples that were left out, stay so.
        for name, label in there.items():
            if label in ("", corrections.REMOVE) and name not in new:
                writer.writerow((name, label))


if __name__ == "__main__":
    command.start("ssl_noisy.choose", main, define_flags=define_flags, read_flags=read_flags)
