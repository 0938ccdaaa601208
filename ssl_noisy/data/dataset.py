# SPDX-License-Identifier: Apache-2.0
"""A data set: uint8 images, which may be memory-mapped, with their labels and published ids."""

import dataclasses

import numpy as np

from ssl_noisy.data import rows
from ssl_noisy.errors import UserError

NO_TEST = "none"  # as a test split: load no test images


class DatasetError(UserError):
    """Data that cannot be used. One line: what is required, what was received, how to fix it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set. Training examples are in the order of their published ids.

    The training images are an array in memory, memory-mapped, or `rows.Rows` of a mapped one.

    Attributes:
        name: The name given to `load`, without a version.
        version: TFDS version, scikit-learn's (`digits`), or the start of a hash of the arrays.
        images: uint8 array of shape `(num_examples, height, width, channels)`.
        labels: int32 array of shape `(num_examples,)`, as published, in `[-1, num_classes)`; -1
            for an example without a label.
        ids: int64 array of shape `(num_examples,)`, increasing: the published id of each example.
        test_images: uint8 array of shape `(num_test, height, width, channels)`, or None without a
            test split.
        test_labels: int32 array of shape `(num_test,)`, or None without a test split.
        validation_images: As `test_images`, or None without a validation split.
        validation_labels: As `test_labels`, or None without a validation split.
        validation_ids: As `ids`, or None without a validation split.
        class_names: Tuple of `num_classes` strings; empty if no example has a label.
        flip: Whether a mirrored image keeps its class.
        files: Tuple of `num_examples` strings, the file of each training example as the user knows
            it, or None for data that is not in files.
        fit: How pictures of another size get this one, one of `pictures.FITS`.
        notes: Tuple of sentences about the data that a user should know.
        unreadable: Dict from file to the reason why it was skipped.
        corrections: Tuple of pairs `(example, label)` of strings, the corrections in this data set.
        uncorrected: The `Dataset` before them, plus the labels that they add to unlabeled examples.
            None without corrections. Draws use it, so a correction does not change a draw.
    """

    name: str
    version: str
    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    test_images: np.ndarray | None
    test_labels: np.ndarray | None
    validation_images: np.ndarray | None
    validation_labels: np.ndarray | None
    class_names: tuple[str, ...]
    flip: bool
    files: tuple[str, ...] | None = None
    fit: str = "crop"
    notes: tuple[str, ...] = ()
    unreadable: dict = dataclasses.field(default_factory=dict)
    corrections: tuple[tuple[str, str], ...] = ()
    uncorrected: "Dataset | None" = None
    validation_ids: np.ndarray | None = None

    def __post_init__(self):
        for part in ("", "test_", "validation_"):
            images, labels = getattr(self, f"{part}images"), getattr(self, f"{part}labels")
            if not part or images is not None:
                owner = f"{part.rstrip('_') or 'training'} set of {self.name!r}"
                lowest = 0 if part else -1
                check_examples(
                    owner, images, labels, self.num_classes, self.images.shape[1:], lowest
                )
        ids = self.ids
        if ids.dtype != np.int64 or ids.shape != self.labels.shape or (np.diff(ids) <= 0).any():
            raise DatasetError(
                f"The ids of {self.name!r} must be {len(self.labels)} increasing int64 numbers. "
                f"Received: {ids.dtype} {ids.shape}, {len(np.unique(ids))} distinct. Sort by id."
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def of_validation(self) -> "Dataset":
        """Returns the data set whose training examples are the validation examples of this one."""
        return dataclasses.replace(
            self,
            images=self.validation_images,
            labels=self.validation_labels,
            ids=self.validation_ids,
            validation_images=None,
            validation_labels=None,
            validation_ids=None,
            files=None,
            corrections=(),
            uncorrected=None,
        )


def check_examples(owner, images, labels, num_classes, image_shape=None, lowest=0):
    """Raises `DatasetError` unless the arrays are examples of the classes `[0, num_classes)`.

    Args:
        owner: What holds the arrays, for the message: "test set of 'cifar10'".
        images: Required: a uint8 array of shape `(N, H, W, C)`.
        labels: Required: an integer array of shape `(N,)`, in `[lowest, num_classes)`.
        num_classes: Integer.
        image_shape: The `(H, W, C)` that the images must have, or None.
        lowest: The lowest label, -1 where unlabeled examples are allowed.
    """
    images = images if hasattr(images, "dtype") else np.asanyarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise DatasetError(
            f"The images of the {owner} must be uint8 of shape (N, H, W, C), not empty. Received: "
            f"{images.dtype} {images.shape}. "
            "Scale to 0..255, then use astype('uint8') and images[..., None]."
        )
    if image_shape is not None and images.shape[1:] != tuple(image_shape):
        raise DatasetError(
            f"The images of the {owner} must have the shape {tuple(image_shape)} of the training "
            f"images. Received: {images.shape[1:]}. Resize them or convert their channels."
        )
    check_labels(owner, len(images), labels, num_classes, lowest)


def check_labels(owner, num_examples, labels, num_classes, lowest=0):
    """Raises `DatasetError` unless these are integer labels `(num_examples,)`, in range.

    Args:
        owner, labels, num_classes, lowest: As for `check_examples`.
        num_examples: Integer.
    """
    labels = np.asanyarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != (num_examples,):
        raise DatasetError(
            f"The labels of the {owner} must be integers of shape ({num_examples},). Received: "
            f"{labels.dtype} {labels.shape}. Use argmax on one-hot rows or squeeze on a column."
        )
    if labels.min() < lowest or labels.max() >= num_classes:
        raise DatasetError(
            f"The labels of the {owner} must be in [{lowest}, {num_classes}). Received: "
            f"{labels.min()} to {labels.max()}. "
            "Number the classes from 0 and drop all other examples."
        )


def fixed_shuffle(size: int, seed) -> np.ndarray:
    """Returns a permutation of `range(size)`, an int64 array of shape `(size,)`.

    It uses the raw stream of PCG64, which NumPy guarantees; `Generator.permutation` may change.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A part of a data set.

    Attributes:
        images, labels, ids: Arrays as in `Dataset`, sorted by id.
        files: Tuple of strings, or None.
        keys: Array of `num_examples` strings: an example has the same key in all splits.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    files: tuple[str, ...] | None = None
    keys: np.ndarray | None = None

    def take(self, positions) -> "Split":
        """Returns the examples at these increasing integer positions."""
        if len(positions) == len(self.ids):
            return self
        files = self.files and tuple(self.files[position] for position in positions)
        keys = None if self.keys is None else self.keys[positions]
        images = rows.take(self.images, positions)
        return Split(images, self.labels[positions], self.ids[positions], files, keys)


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What a source reads.

    Attributes:
        class_names: Sequence of strings, in the order of their numbers.
        splits: Dict from `train` and perhaps `test`, `validation` and others to `Split`.
        version: String, or None for a hash of the arrays.
        notes, unreadable, fit: As in `Dataset`.
        flip: Whether a mirrored image keeps its class; None if the source says so.
    """

    class_names: tuple[str, ...]
    splits: dict
    version: str | None = None
    notes: tuple[str, ...] = ()
    unreadable: dict = dataclasses.field(default_factory=dict)
    fit: str = "crop"
    flip: bool | None = None


def assemble(name, version, class_names, parts, flip, needs_labels=True, **fields) -> Dataset:
    """Makes a data set of its splits, which must not share examples.

    Args:
        name, version, class_names, flip: As in `Dataset`.
        parts: Training, validation and test `Split`; the last two may be None.
        needs_labels: Whether there must be classes.
        **fields: Other fields of `Dataset`.

    Raises:
        DatasetError: If splits overlap, or there are too few classes or images.
    """
    train, validation, test = parts
    for part, split in (("validation", validation), ("test", test)):
        common = len(np.intersect1d(train.keys, split.keys)) if split else 0
        if common:
            raise DatasetError(
                f"The {part} and training splits of {name!r} must be disjoint. Received: {common} "
                "shared examples. Use slices such as train[:90%] and train[90%:]."
            )
    dataset = Dataset(
        name=name,
        version=version,
        images=train.images,
        labels=train.labels,
        ids=train.ids,
        test_images=test and np.asarray(test.images),
        test_labels=test and test.labels,
        validation_images=validation and np.asarray(validation.images),
        validation_labels=validation and validation.labels,
        validation_ids=validation and validation.ids,
        class_names=tuple(class_names),
        flip=flip,
        files=train.files,
        **fields,
    )
    if dataset.num_classes < 2 * needs_labels or len(dataset.labels) < 2:
        raise DatasetError(
            f"{name!r} must have at least 2 classes and 2 training images. Received: "
            f"{dataset.num_classes} and {len(dataset.labels)}."
        )
    return dataset
