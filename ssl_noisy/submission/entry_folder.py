# SPDX-License-Identifier: Apache-2.0
"""Fills the folder of an entry from the runs of its regimes."""

import dataclasses
import inspect
import json
import os
import re

import numpy as np

from ssl_noisy import challenge, files, methods
from ssl_noisy.errors import UserError
from ssl_noisy.labels import issues
from ssl_noisy.runs import folder, plots
from ssl_noisy.runs.metrics import read_metrics
from ssl_noisy.submission import results, rules, texts

_FACTS, _TEXTS = "facts.json", "texts.json"
OF_RECIPE = ("method", "network", "remove_labels")  # settings that the report names


def check(entry_dir, regime, settings):
    """Raises a `UserError` if the folder has another recipe, or is not that of an entry."""
    path, text = _recipe_path(entry_dir, regime), texts.recipe(regime, settings)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            there = set(file.read().splitlines())
        here = set(text.splitlines())
        if there != here:
            raise UserError(
                f"{entry_dir} is an entry with another recipe: "
                f"{' '.join(sorted(there - here)) or '(none)'} there, "
                f"{' '.join(sorted(here - there)) or '(none)'} here. Choose another --entry_dir."
            )
        return
    names = os.listdir(entry_dir) if os.path.isdir(entry_dir) else []
    if names and not any(name.startswith("recipe_") for name in names):
        raise UserError(f"{entry_dir} is not empty and no entry. Choose another --entry_dir.")


def add_runs(entry_dir, regime, settings, runs, data, baseline_seconds, test_images):
    """Writes the recipe of a regime, and the results of its runs that the entry lacks.

    Args:
        entry_dir: Path of the folder.
        regime: Name of the regime.
        settings: The `Settings` of the regime, as `rules.recipe` returns them.
        runs: Dict from seed to the path of a finished run.
        data: Dict of the arrays of the regime.
        baseline_seconds: Float.
        test_images: Function without arguments that returns the test images. Only a run that is
            missing calls it.

    Returns:
        A list of dicts, the facts of the runs for the report.
    """
    check(entry_dir, regime, settings)
    with files.replacing(_recipe_path(entry_dir, regime), "w") as file:
        file.write(texts.recipe(regime, settings))
    facts, limit = [], challenge.TIME_FACTOR * baseline_seconds
    for seed, run_dir in runs.items():
        place = challenge.run_folder(entry_dir, regime, seed)
        flags = rules.written(dataclasses.replace(settings, seed=seed), limit)
        seconds = max(folder.read_timing(run_dir), 0.001)
        if not _is_there(place, flags):
            found = results.measure(run_dir, data, test_images())
            challenge.write_run(
                place,
                flags=flags,
                seconds=seconds,
                baseline_seconds=baseline_seconds,
                detection=found.detection,
                predictions=found.test_logits.argmax(axis=-1).astype(np.int64),
                test_logits=found.test_logits,
            )
        result = folder.read_result(run_dir)
        flagged = np.load(os.path.join(place, challenge.DETECTION), allow_pickle=False)
        facts.append(
            {
                "seed": seed,
                **result["model_of"],
                "flagged": float(flagged.mean()),
                "seconds": seconds,
                "baseline_seconds": baseline_seconds,
                "is_stopped": result["stopped_by_max_seconds_at_step"] is not None,
            }
        )
    return facts


def _recipe_path(entry_dir, regime):
    return os.path.join(entry_dir, texts.recipe_name(rules.dataset_of(regime)))


def _is_there(place, flags):
    """Whether a run has been written. The time is its last file."""
    if not os.path.exists(os.path.join(place, challenge.TIMING)):
        return False
    return texts.read_json(os.path.join(place, challenge.CONFIG)).get("flags") == flags


def write_texts(entry_dir, work_dir, facts, tell):
    """Writes the texts and the figure of an entry.

    Args:
        entry_dir: Path of the folder.
        work_dir: Path of the folder of the runs.
        facts: Dict from regime to a dict with `rows`, as `add_runs` returns them, `runs`, the
            paths of the runs, and the settings `OF_RECIPE`.
        tell: Function of a line for the user.
    """
    path = os.path.join(work_dir, _FACTS)
    known = {**texts.read_json(path), **facts}
    _write_json(path, known)
    order = [name for name in (*challenge.REGIMES, rules.CUSTOM) if name in known]
    recipes, sentences = {}, {}
    for regime in order:
        dataset = rules.dataset_of(regime)
        with open(os.path.join(entry_dir, texts.recipe_name(dataset)), encoding="utf-8") as file:
            recipes[dataset] = file.read()
        sentences[dataset] = sentence(**{key: known[regime][key] for key in OF_RECIPE})
    curves = {name: [read_metrics(x) for x in known[name]["runs"]] for name in order}
    for kind in ("png", "pdf"):
        plots.validation_curves(curves, os.path.join(entry_dir, f"{texts.FIGURE}.{kind}"))
    tables = {name: texts.describe(known[name]["rows"]) for name in order}
    content = (os.path.basename(entry_dir), sentences, tables, recipes)
    written = {
        "run.sh": texts.run_sh(order),
        "requirements.txt": texts.requirements(),
        "REPORT.md": texts.markdown(*content),
        "report.tex": texts.latex(*content),
    }
    path = os.path.join(work_dir, _TEXTS)
    digests = texts.read_json(path)
    for name, text in written.items():
        if not texts.write_unless_edited(os.path.join(entry_dir, name), text, digests):
            tell(f"{name} was edited and stays as it is. Delete it to have it written again.")
    _write_json(path, digests)


def _write_json(path, content):
    with files.replacing(path, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")


def sentence(method, network, remove_labels):
    """Returns what the report says of a recipe."""
    text = f"{_cited(method)} with the network {network}, from random weights."
    if remove_labels:
        text += f" First, {_cited(remove_labels)} removes labels, after two trainings of its own."
    return text


def _cited(method):
    paper = re.search(r"\[(.+?)\]\((.+?)\)", inspect.getdoc(methods.get(method)))
    return f"{method} ({paper[1]}, {paper[2]})"


def faults(facts):
    """Returns a line for each run that took too long or found nothing, which `score` refuses.

    Args:
        facts: As for `write_texts`.
    """
    lines = []
    for regime, content in facts.items():
        for row in content["rows"]:
            name = f"{regime}/seed_{row['seed']}"
            limit = challenge.TIME_FACTOR * row["baseline_seconds"]
            if row["seconds"] > limit:
                lines.append(
                    f"{name} took {row['seconds']:,.1f} s, more than {limit:,.1f} s: its first "
                    "epoch is too long. Lower --steps_per_epoch, with another --entry_dir."
                )
            if not row["flagged"] and not regime.startswith("clean"):
                lines.append(
                    f"{name} flags no label after epoch {row['epoch']}. Labels that were seen "
                    f"fewer than {issues.LEAST_OBSERVATIONS} times are never flagged: raise "
                    "--steps_per_epoch, with another --entry_dir."
                )
    return lines


def write_truth(path, data, ids, true_labels, test_labels):
    """Writes the file that `score --truth` takes.

    Args:
        path: Path of the .npz file.
        data: Dict of the arrays of the regime, as `isolation.read` returns it.
        ids, true_labels: Arrays `(num_train,)`, the ids increasing.
        test_labels: Integer array `(num_test,)`.
    """
    there = np.concatenate([data["ids_train"], data["ids_validation"]])
    given = np.concatenate([data["labels_train"], data["labels_validation"]])
    order = np.argsort(there, kind="stable")
    if not np.array_equal(there[order], ids):
        raise UserError("The data has changed since the runs began. Restore it.")
    with files.replacing(path) as file:
        np.savez(file, given_labels=given[order], true_labels=true_labels, test_labels=test_labels)
