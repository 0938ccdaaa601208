# SPDX-License-Identifier: Apache-2.0
"""Corrections of labels that a person made, read from a CSV file."""

import collections
import csv
import dataclasses
import difflib
import hashlib
import io
import pathlib
import re

import numpy as np

from ssl_noisy import files
from ssl_noisy.data import rows as array_rows
from ssl_noisy.data.dataset import Dataset, DatasetError
from ssl_noisy.data.picture_files import named, read_csv

REMOVE = "remove"


def _owner(path):
    return f"The file of corrections {str(path)!r}"


def rows(path, key):
    """Returns the rows of a file that `apply` reads, as a list of pairs `(example, label)`.

    Args:
        path: Path of the CSV file.
        key: The column that names the examples, `file` or `index`.

    Raises:
        DatasetError: If the file cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    return [(row[key], row["label"]) for row in read_csv(path, (key, "label"), _owner(path))]


def key_of(dataset):
    """Returns the column that names the examples of a `Dataset`: `file`, else `index`."""
    return "index" if dataset.files is None else "file"


def write(path, dataset):
    """Writes the corrections in a `Dataset` as a file that `apply` reads, atomically."""
    with files.replacing(path) as file:
        file.write(_content(dataset))


def digest(dataset):
    """Returns the SHA-256 of the file that `write` writes, in hexadecimal."""
    return hashlib.sha256(_content(dataset)).hexdigest()


def _content(dataset):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((key_of(dataset), "label"))
    writer.writerows(dataset.corrections)
    return text.getvalue().encode()


def _class_names(pairs, dataset, owner):
    """Returns the classes of a data set, and those that the labels of a file add, sorted."""
    added = sorted({label for _, label in pairs} - {"", REMOVE, *dataset.class_names})
    names = (*dataset.class_names, *added)
    if len(names) < 2:
        raise DatasetError(
            f"{owner} must name at least 2 classes, since the pictures have none. Received: "
            f"{named(names) or 'no label'}. Fill in the column label."
        )
    return names


def _misspelled(pairs):
    """Returns the classes of a single label that look like a class of more, as pairs of them.

    Names that differ in numbers alone, such as page_1 and page_2, do not.
    """
    labels = dict(pairs).values()
    counts = collections.Counter(label for label in labels if label not in ("", REMOVE))
    common = {label.casefold(): label for label, count in counts.items() if count > 1}
    found = []
    for label in sorted(label for label, count in counts.items() if count == 1):
        letters = re.sub(r"[0-9]", "", label)
        others = [name for name in common if re.sub(r"[0-9]", "", common[name]) != letters]
        near = difflib.get_close_matches(label.casefold(), others, 1)
        found += [(label, common[name]) for name in near]
    return found


def apply(path, dataset, known_as=None) -> Dataset:
    """Returns a data set with the corrections of a CSV file.

    The file has a column `label` and a column `file`, or `index` for data without files, as in the
    `examples.csv` of a run; other columns have no effect. A row gives its training example the
    class named in `label`, no label if that is empty, or leaves the example out if it is
    `remove` and no class has this name. If no training example has a label, the labels in the file
    may be new classes, which follow those of the data set in alphabetical order.

    Args:
        path: Path of the CSV file.
        dataset: The `Dataset`. Its test and validation examples stay as they are.
        known_as: The name of the file in the note about it. None: that of `path`.

    Raises:
        DatasetError: If the file cannot be read, or names unknown examples or classes.
    """
    path = pathlib.Path(path).expanduser()
    owner = _owner(path)
    key = key_of(dataset)
    names = map(str, dataset.ids) if dataset.files is None else dataset.files
    known = {name: position for position, name in enumerate(names)}
    pairs = rows(path, key)
    if (dataset.labels < 0).all():
        notes, doubtful = dataset.notes, _misspelled(pairs)
        if doubtful:
            shown = named([f"{label} (or {other}?)" for label, other in doubtful], 3)
            name = known_as or path.name
            notes += (f"{name}: classes of one label, perhaps misspelled: {shown}.",)
        class_names = _class_names(pairs, dataset, owner)
        dataset = dataclasses.replace(dataset, class_names=class_names, notes=notes)
    numbers = {name: number for number, name in enumerate(dataset.class_names)}
    unknown = [name for name, _ in pairs if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1, cutoff=0.0)
        raise DatasetError(
            f"{owner} must name training examples of {dataset.name!r}. Received: {len(unknown)} "
            f"unknown: {named(unknown)}. Did you mean {near[0]!r}? Write {key} as in examples.csv."
        )
    strange = sorted({label for _, label in pairs} - {"", REMOVE, *numbers})
    if strange:
        raise DatasetError(
            f"{owner} must have labels that are classes of {dataset.name!r} "
            f"({named(list(dataset.class_names))}), empty, or {REMOVE!r}. Received: "
            f"{named(strange)}. Correct them."
        )
    chosen = {}
    for name, label in pairs:
        if chosen.setdefault(name, label) != label:
            raise DatasetError(
                f"{owner} must have one label for each {key}. Received: {chosen[name]!r} and "
                f"{label!r} for {name!r}. Remove one of the rows."
            )
    labels, keep = dataset.labels.copy(), np.ones(len(dataset.labels), bool)
    numbers = {"": -1, REMOVE: None} | numbers
    for name, label in chosen.items():
        if numbers[label] is None:
            keep[known[name]] = False
        else:
            labels[known[name]] = numbers[label]
    changed, removed = int((labels != dataset.labels)[keep].sum()), int((~keep).sum())
    note = f"{known_as or path.name}: labels changed: {changed}, examples removed: {removed}."
    added = np.where(dataset.labels < 0, labels, dataset.labels)
    changes = {"labels": labels, "notes": (*dataset.notes, note)}
    changes |= {"corrections": tuple(chosen.items())}
    changes |= {"uncorrected": dataclasses.replace(dataset, labels=added)}
    if not keep.all():
        changes |= {"labels": labels[keep], "ids": dataset.ids[keep]}
        changes |= {"images": array_rows.take(dataset.images, np.flatnonzero(keep))}
        if dataset.files is not None:
            changes["files"] = tuple(np.array(dataset.files, object)[keep])
    return dataclasses.replace(dataset, **changes)
