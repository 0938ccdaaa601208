# SPDX-License-Identifier: Apache-2.0
"""The data of a run: what is loaded, which examples are labeled, and with which labels."""

import contextlib
import dataclasses
import os

import numpy as np

from ssl_noisy.data import (
    corrections,
    feature_file,
    label_budget,
    label_noise,
    noise_file,
    noise_models,
    sources,
)
from ssl_noisy.data.task import Task
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder
from ssl_noisy.selection import rules

# The settings that `load_dataset` depends on.
LOADING = ("dataset", "data_dir", "cache_dir", "train_split", "validation_split", "test_split")
LOADING += ("test_share", "image_size", "fit", "skip_unreadable")


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a run.

    Attributes:
        positions: Increasing int64 array `(num_labels,)`, the labeled examples.
        drawn: Increasing int64 array, the examples that were chosen, as positions in
            `Dataset.uncorrected`. Corrections may leave some of them out. Without corrections, it
            is `positions`.
        given: int32 array `(num_labels,)`, the labels that a learner sees.
        how: How the positions were chosen.
        seed: Integer, the seed of that choice.
        noise: The `noise_models.Noise` that turned true labels into `given`, or None.
        validation_noise: That of the validation examples, or None if their labels are true.
    """

    positions: np.ndarray
    drawn: np.ndarray
    given: np.ndarray
    how: str
    seed: int
    noise: noise_models.Noise | None
    validation_noise: noise_models.Noise | None = None


def load_dataset(settings):
    """Returns the `Dataset` of a run, before the corrections of `labels_csv`.

    Runs with the same `loading` can share it: see `run.run`. With `labels_csv`, the labels may all
    be in that file, and some methods need none.
    """
    return _load(loading(settings))


def load_unlabeled(settings):
    """Returns the `Dataset` of a run, as `load_dataset`, but it may have no label at all."""
    return _load({**loading(settings), "needs_labels": False})


def _load(values):
    return sources.load(values.pop("dataset"), **values)


def loading(settings):
    """Returns the arguments of `sources.load`. Runs for which they are equal have the same data."""
    values = {name: getattr(settings, name) for name in LOADING}
    needs_labels = settings.learner_class.needs_labels and not settings.labels_csv
    return {**values, "needs_labels": needs_labels}


class Loader:
    """Loads the data of one run after the other, and keeps that of the last one."""

    def __init__(self):
        self._loading = self._dataset = None

    def load(self, settings):
        """Returns what `load_dataset` returns."""
        if loading(settings) != self._loading:
            self._loading = self._dataset = None  # frees its memory first
            self._dataset, self._loading = load_dataset(settings), loading(settings)
        return self._dataset


def check_dataset(settings, dataset):
    """Raises a `UserError` if `dataset` is not the one that these settings name.

    It compares names alone: a `Dataset` does not hold the splits that it was made of.
    """
    # A TFDS name may end in a version, which the name of the loaded data lacks.
    if settings.dataset != dataset.name and settings.dataset.rpartition(":")[0] != dataset.name:
        raise UserError(
            f"`dataset` must be {settings.dataset!r}, as the settings say. Received: "
            f"{dataset.name!r}. Load it with `labeling.load_dataset(settings)`."
        )


def correct(settings, dataset, run_dir=None):
    """Returns the `Dataset` of a run with its corrections, or `dataset` itself without any.

    A run that has begun applies its own copy of the corrections, so the user may move the file. If
    the copy is lost, the user's file will do as long as it has the same corrections.

    Args:
        settings: The `Settings`.
        dataset: What `load_dataset` returns.
        run_dir: Path of the run folder, which may be missing. None reads the user's file.

    Raises:
        UserError: If the file cannot be used.
    """
    path, own_file = settings.labels_csv, _existing(run_dir, folder.CORRECTIONS)
    if not path:
        return dataset
    labels_file = _existing(run_dir, folder.LABELS)
    if labels_file is None:  # the run has not begun
        return corrections.apply(path, dataset)
    sha256 = label_budget.corrections_sha256(labels_file)
    if not sha256:  # earlier versions kept no copy and drew from the corrected labels
        corrected = corrections.apply(path, dataset)
        return dataclasses.replace(corrected, corrections=(), uncorrected=None)
    corrected = corrections.apply(own_file or path, dataset, os.path.basename(path))
    if corrections.digest(corrected) != sha256:
        copy = os.path.join(run_dir, folder.CORRECTIONS)
        raise UserError(
            f"{own_file or path} does not have the corrections with which this run began. Restore "
            f"{copy}, or choose another --run_dir to train on others."
        )
    return corrected


def check_corrections(settings, dataset, run_dir):
    """Raises a `UserError` if the user's corrections have changed since a run began.

    Args:
        settings: The `Settings`.
        dataset: The `Dataset`, after `correct`.
        run_dir: Path of the run folder, which may be missing.
    """
    path, own_file = settings.labels_csv, _existing(run_dir, folder.CORRECTIONS)
    if not path or not own_file or not os.path.exists(path):
        return
    rows = corrections.rows(path, corrections.key_of(dataset))
    if _existing(run_dir, folder.LABELS) and dict(rows) != dict(dataset.corrections):
        raise UserError(
            f"{path} has changed since this run began with the corrections in {own_file}. Choose "
            "another --run_dir to train on the new ones, or restore the file."
        )


def choose(settings, dataset, run_dir=None):
    """Returns the `Labels` of a run: drawn, read from the user's files, or those of `run_dir`.

    A resumed run reads the labels that it wrote. Drawing them again could choose others.

    Labels are drawn, and label files read, as if there were no corrections, but for labels that
    these give to examples without one. So a corrected run has the labels of the run that was
    reviewed, but for those that the corrections change.

    Args:
        settings: The `Settings`.
        dataset: The `Dataset`, after `correct`.
        run_dir: Path of the run folder, which may be missing. None always draws.
    """
    original = dataset.uncorrected or dataset
    drawn, how, seed = _choose_positions(settings, original, _existing(run_dir, folder.LABELS))
    positions = drawn
    if original is not dataset:
        is_drawn = np.isin(dataset.ids, original.ids[drawn])
        positions = np.flatnonzero(is_drawn & (dataset.labels >= 0))
    noise = validation_noise = None
    if settings.noise:
        noise = _choose_noise(settings, dataset, positions, _existing(run_dir, folder.NOISE))
    if settings.noisy_validation:
        own_file = _existing(run_dir, folder.VALIDATION_NOISE)
        validation_noise = _choose_validation_noise(settings, dataset, own_file)
    given = dataset.labels[positions] if noise is None else noise.given_labels
    return Labels(positions, drawn, given, how, seed, noise, validation_noise)


def task_of(settings, dataset, labels):
    """Returns the `Task` of a run, in which its `Labels` are given.

    The task of a method that finds clusters has clusters in place of classes, no labels, and no
    test images, since nothing can be compared with their labels before it is matched.

    Raises:
        UserError: If features or a number of clusters are missing.
    """
    residence = settings.residence()
    if not settings.learner_class.finds_clusters:
        return Task.from_dataset(dataset, labels.positions, labels.given, **residence)
    num_clusters = settings.num_clusters or dataset.num_classes
    if not num_clusters:
        raise UserError(
            f"{dataset.name!r} has no labels, so the number of its classes is unknown. Say how "
            "many clusters there are: --num_clusters=10."
        )
    features = None
    if settings.learner_class.needs_features:
        if not settings.features:
            raise UserError(
                f"--method={settings.method} needs --features=FILE, which python -m "
                "ssl_noisy.features writes. Received: none."
            )
        features = feature_file.read(settings.features).training(dataset)
    return Task(
        dataset.images,
        np.full(len(dataset.images), -1, np.int32),
        class_names=[f"cluster {number}" for number in range(num_clusters)],
        flip=dataset.flip,
        name=dataset.name,
        features=features,
        **residence,
    )


def _existing(run_dir, name):
    """Returns the path of a file of the run if the run has written it, else None."""
    path = os.path.join(run_dir or "", name)
    return path if run_dir and os.path.exists(path) else None


def _choose_positions(settings, dataset, own_file):
    """Returns `(positions, how, seed)`: the labeled examples and how they were drawn."""
    if settings.learner_class.finds_clusters:
        return np.zeros(0, np.int64), "none", 0
    if settings.num_labels is None and not settings.label_file and dataset.labels.max() < 0:
        return np.zeros(0, np.int64), "all", 0  # which is no content for a label file
    label_file = own_file or settings.label_file
    if label_file:
        with _blaming(own_file):
            positions, content = label_budget.read(label_file, dataset)
        if settings.num_labels not in (None, len(positions)):
            raise UserError(
                f"{label_file} labels {len(positions)} examples. Received: "
                f"--num_labels={settings.num_labels}. Leave that flag out, or use another file."
            )
        return positions, content.how, content.seed
    if settings.num_labels is None:
        return np.flatnonzero(dataset.labels >= 0), "all", 0
    how, seed = settings.label_draw, settings.resolved().label_seed
    if how in rules.BY_FEATURES:
        return _choose_by_features(settings, dataset, seed), how, seed
    positions = label_budget.draw(
        dataset.labels, settings.num_labels, num_classes=dataset.num_classes, seed=seed, how=how
    )
    return positions, how, seed


def _choose_by_features(settings, dataset, seed):
    """Returns the increasing positions that a rule chooses by the features of all examples."""
    candidates = np.flatnonzero(dataset.labels >= 0)
    if settings.num_labels > len(candidates):
        raise label_budget.BudgetError(
            f"num_labels must be in [1, {len(candidates)}]. Received: {settings.num_labels}."
        )
    pool = rules.pool_of(dataset, candidates, np.zeros(0, np.int64), settings.features)
    return np.sort(rules.choose(settings.label_draw, pool, settings.num_labels, seed).positions)


def _choose_noise(settings, dataset, positions, own_file):
    """Returns the `noise_models.Noise` of the labeled examples."""
    if own_file:
        with _blaming(own_file):
            return noise_file.read(own_file, dataset, positions)
    settings = settings.resolved()
    return label_noise.make(
        settings.noise,
        dataset,
        positions,
        seed=settings.noise_seed or 0,
        draw=settings.noise_draw or "exact",
        cifarn_file=settings.cifarn_file,
        data_dir=settings.data_dir,
    )


def _choose_validation_noise(settings, dataset, own_file):
    """Returns the `noise_models.Noise` of the validation examples.

    They get the seed of the training examples: with noise that depends on the image, equal images
    have equal probabilities then.
    """
    if dataset.validation_images is None:
        raise UserError(
            f"--noisy_validation needs a validation split, which {dataset.name!r} lacks here. Use "
            "--validation_split, or leave it out."
        )
    dataset = dataset.of_validation()
    return _choose_noise(settings, dataset, np.arange(len(dataset.labels)), own_file)


@contextlib.contextmanager
def _blaming(own_file):
    """Adds advice to the error of a reader that refuses a file of the run itself, if it is one."""
    try:
        yield
    except UserError as error:
        if own_file is None:
            raise
        raise UserError(
            f"{error} {own_file} belongs to this run. If the data has not changed, delete the file "
            "and run the same command again to regenerate it. Otherwise choose another --run_dir."
        ) from error


def write(run_dir, dataset, labels):
    """Writes `labels.json` and, with corrections or noise, their files, unless they exist."""
    has_begun = _existing(run_dir, folder.LABELS)
    if dataset.corrections and not (has_begun and _existing(run_dir, folder.CORRECTIONS)):
        corrections.write(os.path.join(run_dir, folder.CORRECTIONS), dataset)
    if not has_begun:
        path, original = os.path.join(run_dir, folder.LABELS), dataset.uncorrected or dataset
        sha256 = corrections.digest(dataset) if dataset.corrections else ""
        label_budget.write(
            path,
            original,
            labels.drawn,
            how=labels.how,
            seed=labels.seed,
            corrections_sha256=sha256,
        )
    if labels.noise is not None and not _existing(run_dir, folder.NOISE):
        path = os.path.join(run_dir, folder.NOISE)
        noise_file.write(path, dataset, labels.positions, labels.noise)
    noise = labels.validation_noise
    if noise is not None and not _existing(run_dir, folder.VALIDATION_NOISE):
        path, dataset = os.path.join(run_dir, folder.VALIDATION_NOISE), dataset.of_validation()
        noise_file.write(path, dataset, np.arange(len(dataset.labels)), noise)


def noise_summary(dataset, labels):
    """Returns what the noise did to the labels, a dict for JSON; None without noise."""
    if labels.noise is None:
        return None
    true_labels = dataset.labels[labels.positions]
    return label_noise.summary(labels.noise, true_labels, dataset.num_classes)


def validation_noise_summary(dataset, labels):
    """Returns what the noise did to the validation labels, likewise."""
    if labels.validation_noise is None:
        return None
    return label_noise.summary(
        labels.validation_noise, dataset.validation_labels, dataset.num_classes
    )
