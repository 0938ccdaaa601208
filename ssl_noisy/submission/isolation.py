# SPDX-License-Identifier: Apache-2.0
"""The file of a regime: training images with one set of labels, all that its runs may read.

It is written by a process of its own, python -m ssl_noisy.submission.isolation JSON PATH, because
the sources hold other labels, too. Test images and labels are not opened.
"""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
from absl import logging

from ssl_noisy import challenge, files
from ssl_noisy.data import cifar_n, label_noise, sources
from ssl_noisy.data.dataset import NO_TEST
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs import labeling
from ssl_noisy.settings import Settings

_ABOUT = ("dataset", "train_split", "validation_split", "test_share", "image_size", "fit")
_ABOUT += ("skip_unreadable", "noise", "noise_draw", "noise_seed")


def about(settings):
    """Returns what the content of a file depends on, a text."""
    resolved = settings.resolved()
    return json.dumps({name: getattr(resolved, name) for name in _ABOUT})


def prepare(path, settings):
    """Writes the file of a regime in another process, unless it is there.

    Args:
        path: Path of the .npz file.
        settings: The `Settings` of the regime, as `rules.recipe` returns them.

    Raises:
        UserError: If the data cannot be used, or the file is that of other settings.
    """
    if os.path.exists(path):
        _check(path, settings)
        return
    code, errors = in_another_process(json.dumps(dataclasses.asdict(settings)), path)
    if code == 2:
        raise UserError(errors.strip().splitlines()[-1])
    if code:
        raise RuntimeError(f"The process that writes {path} ended with {code}: {errors}")


def in_another_process(content, path):
    """Calls `main` in a new process. Returns its exit code and what it wrote to standard error."""
    program = [sys.executable, "-m", "ssl_noisy.submission.isolation", content, path]
    process = subprocess.run(program, capture_output=True, text=True)
    return process.returncode, process.stderr


def read(path):
    """Returns the arrays of a file, a dict.

    Raises:
        UserError: If it is damaged.
    """
    try:
        return files.read_npz(path)
    except ValueError as error:
        raise UserError(
            f"{path} is damaged: {error}. Delete it and run the same command."
        ) from error


def _check(path, settings):
    there, here = str(read(path).get("about")), about(settings)
    if there != here:
        raise UserError(
            f"{path} has other data than these flags: {there} there, {here} here. Choose another "
            "--work_dir."
        )


def write(path, settings):
    """Writes the file of a regime, atomically.

    Args:
        path, settings: As for `prepare`.

    Raises:
        UserError: If the data cannot be used.
    """
    if sources.is_tfds(settings.dataset):
        settings = dataclasses.replace(settings, test_split=NO_TEST)
    dataset = labeling.load_dataset(settings)
    if dataset.validation_images is None:
        raise UserError(f"{dataset.name!r} needs a validation split. Use --validation_split.")
    parts = {"train": dataset, "validation": dataset.of_validation()}
    given = {part: _given_labels(settings, data) for part, data in parts.items()}
    unlabeled = sum(int((labels < 0).sum()) for labels in given.values())
    if unlabeled:
        raise UserError(
            f"Every training example of an entry needs a label. Received: {unlabeled} examples of "
            f"{dataset.name!r} without one. Leave them out."
        )
    ids = np.concatenate([data.ids for data in parts.values()])
    if dataset.name in cifar_n.KEYS and len(ids) != challenge.NUM_TRAIN:
        raise UserError(
            f"An entry is about all {challenge.NUM_TRAIN:,} training images of {dataset.name}. "
            f"Received: {len(ids):,} in --train_split={settings.train_split} and "
            f"--validation_split={settings.validation_split}. Use {' and '.join(_halves())}."
        )
    arrays = {"class_names": np.array(dataset.class_names), "flip": np.array(dataset.flip)}
    for part, data in parts.items():
        columns = {"images": data.images, "labels": given[part], "ids": data.ids}
        arrays.update({f"{name}_{part}": values for name, values in columns.items()})
    with files.replacing(path) as file:
        np.savez(file, about=np.array(about(settings)), **arrays)


def _halves():
    return ("--train_split=train[:90%]", "--validation_split=train[90%:]")


def _given_labels(settings, dataset):
    """Returns the labels of the regime. Those of CIFAR-N are read without any true label."""
    if not settings.noise:
        return dataset.labels
    kind, _, key = settings.noise.partition(":")
    places = {"cifarn_file": settings.cifarn_file, "data_dir": settings.data_dir}
    if kind == "cifarn":
        file, data_dir = places.values()
        return cifar_n.labels(key, dataset, file=file, data_dir=data_dir, compare=False)
    resolved, positions = settings.resolved(), np.arange(len(dataset.labels))
    return label_noise.make(
        settings.noise,
        dataset,
        positions,
        seed=resolved.noise_seed or 0,
        draw=resolved.noise_draw or "exact",
        **places,
    ).given_labels


def true_labels(settings):
    """Returns `(ids, labels)` of all training examples, in the order of their ids."""
    dataset = labeling.load_dataset(settings)
    validation = dataset.of_validation()
    ids = np.concatenate([dataset.ids, validation.ids])
    order = np.argsort(ids, kind="stable")
    return ids[order], np.concatenate([dataset.labels, validation.labels])[order]


def test_set(settings):
    """Returns the `Dataset` whose test set an entry predicts. The last step calls this."""
    return labeling.load_dataset(
        dataclasses.replace(settings, train_split=None, validation_split=None)
    )


def main(content, path):
    """Writes the file of settings in JSON. Returns the exit code, 2 for a mistake of the user."""
    logging.set_verbosity(logging.WARNING)  # TFDS logs every step
    try:
        write(path, Settings(**json.loads(content)))
    except UserError as error:
        print(one_line(error, 1000), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
