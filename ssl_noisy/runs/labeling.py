# SPDX-License-Identifier: Apache-2.0
"""The data of a run: what is loaded, which examples are labeled, and with which labels."""

import contextlib
import dataclasses
import os

import numpy as np

from ssl_noisy.data import corrections, label_budget, label_noise, noise_file, noise_models, sources
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder

# The settings that `load_dataset` depends on.
LOADING = ("dataset", "data_dir", "cache_dir", "train_split", "validation_split", "test_split")
LOADING += ("test_share", "image_size", "fit", "skip_unreadable", "labels_csv")


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a run.

    Attributes:
        positions: Increasing int64 array `(num_labels,)`, the labeled examples.
        given: int32 array `(num_labels,)`, the labels that a learner sees.
        how: How the positions were chosen.
        seed: Integer, the seed of that choice.
        noise: The `noise_models.Noise` that turned true labels into `given`, or None.
    """

    positions: np.ndarray
    given: np.ndarray
    how: str
    seed: int
    noise: noise_models.Noise | None


def load_dataset(settings):
    """Returns the `Dataset` of a run.

    Runs that differ in other settings than those of `LOADING` can share it: see `run.run`.
    """
    values = {name: getattr(settings, name) for name in LOADING}
    corrections_file = values.pop("labels_csv")
    dataset = sources.load(values.pop("dataset"), **values)
    if corrections_file:
        dataset = corrections.apply(corrections_file, dataset)
    return dataset


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


def choose(settings, dataset, run_dir=None):
    """Returns the `Labels` of a run: drawn, read from the user's files, or those of `run_dir`.

    A resumed run reads the labels that it wrote. Drawing them again could choose others.

    Args:
        settings: The `Settings`.
        dataset: The `Dataset`.
        run_dir: Path of the run folder, which may be missing. None always draws.
    """
    positions, how, seed = _choose_positions(settings, dataset, _existing(run_dir, folder.LABELS))
    noise = None
    if settings.noise:
        noise = _choose_noise(settings, dataset, positions, _existing(run_dir, folder.NOISE))
    given = dataset.labels[positions] if noise is None else noise.given_labels
    return Labels(positions, given, how, seed, noise)


def _existing(run_dir, name):
    """Returns the path of a file of the run if the run has written it, else None."""
    path = os.path.join(run_dir or "", name)
    return path if run_dir and os.path.exists(path) else None


def _choose_positions(settings, dataset, own_file):
    """Returns `(positions, how, seed)`: the labeled examples and how they were drawn."""
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
    positions = label_budget.draw(
        dataset.labels, settings.num_labels, num_classes=dataset.num_classes, seed=seed, how=how
    )
    return positions, how, seed


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
    """Writes `labels.json` and, with noise, `noise.npz`, unless they exist."""
    if not _existing(run_dir, folder.LABELS):
        path = os.path.join(run_dir, folder.LABELS)
        label_budget.write(path, dataset, labels.positions, how=labels.how, seed=labels.seed)
    if labels.noise is not None and not _existing(run_dir, folder.NOISE):
        path = os.path.join(run_dir, folder.NOISE)
        noise_file.write(path, dataset, labels.positions, labels.noise)


def noise_summary(dataset, labels):
    """Returns what the noise did to the labels, a dict for JSON; None without noise."""
    if labels.noise is None:
        return None
    true_labels = dataset.labels[labels.positions]
    return label_noise.summary(labels.noise, true_labels, dataset.num_classes)
