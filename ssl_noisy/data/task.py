# SPDX-License-Identifier: Apache-2.0
"""What a learner sees: images, given labels (-1: unlabeled) and a test set."""

import dataclasses
import math

import numpy as np

from ssl_noisy.data.dataset import Dataset, check_examples, check_labels
from ssl_noisy.errors import UserError

RESIDENCES = ("auto", "device", "host")


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Images with given labels. A task does not contain true labels.

    Args:
        images: uint8 array of shape `(num_examples, height, width, channels)`.
        given_labels: Integer array of shape `(num_examples,)`, kept as int32, in
            `[-1, num_classes)`; -1 means unlabeled. A learner may need a labeled example.
        num_classes: Defaults to the number of `class_names`, else to the largest label plus one.
        class_names: Sequence of `num_classes` strings. Defaults to `"0"`, `"1"`, ...
        test_images: uint8 array of shape `(num_test, height, width, channels)`, or None.
        test_labels: Integer array of shape `(num_test,)`, kept as int32, or None.
        flip: Whether a mirrored image keeps its class.
        name: Name of the data, for reports.
        resident: Where the images are while a learner trains: on the `device`, or on the `host`,
            which sends those of each step. `auto` is the device unless they are larger than
            `resident_limit`. The numbers are the same.
        resident_limit: That size in GB, or None for half of the memory of the device.
        features: Float array of shape `(num_examples, num_features)`, or None: a row of numbers of
            each image, such as those of a network that was trained without labels. Methods that
            group similar images need it.
        validation_images: As `test_images`, without labels, or None.
        views: None for images. For frozen features the numbers `(weak, strong)` of the views of
            each example. `images` are then floats of shape `(num_examples, 1 + weak + strong,
            num_features)`: the features of the image itself, of its weak views and of its strong
            ones. A step draws a row in place of making a view. `test_images` and
            `validation_images` are float32 of shape `(num_test, num_features)`.

    Raises:
        ValueError: If an array has the wrong type, shape or range.
    """

    images: np.ndarray
    given_labels: np.ndarray
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    flip: bool = True
    name: str = ""
    resident: str = "auto"
    resident_limit: float | None = None
    features: np.ndarray | None = None
    validation_images: np.ndarray | None = None
    views: tuple[int, int] | None = None

    def __post_init__(self):
        labels, names, num_classes = self.given_labels, self.class_names, self.num_classes
        known = num_classes or (2**31 - 1 if names is None else len(names))
        if self.views is None:
            check_examples("`Task`", self.images, labels, known, lowest=-1)
        else:
            self._check_features(labels, known)
        labels = np.asarray(labels, np.int32)
        num_classes = num_classes or (int(labels.max()) + 1 if names is None else len(names))
        names = tuple(map(str, range(num_classes) if names is None else names))
        if num_classes < 2:
            raise UserError(f"`Task` must have at least 2 classes. Received: {num_classes}.")
        if len(names) != num_classes:
            raise UserError(f"`Task` must have {num_classes} class_names. Received: {len(names)}.")
        if self.resident not in RESIDENCES:
            raise UserError(
                f"`resident` must be one of {', '.join(RESIDENCES)}. Received: {self.resident!r}"
            )
        if self.features is not None:
            _check_features(self.features, len(labels))
        test_labels = self.test_labels
        if self.views is None and (self.test_images is not None or test_labels is not None):
            owner, shape = "test set of `Task`", self.images.shape[1:]
            check_examples(owner, self.test_images, test_labels, num_classes, shape)
            test_labels = np.asarray(test_labels, np.int32)
        elif test_labels is not None:
            check_labels("test set of `Task`", len(self.test_images), test_labels, num_classes)
            test_labels = np.asarray(test_labels, np.int32)
        changed = (labels, num_classes, names, test_labels)
        fields = ("given_labels", "num_classes", "class_names", "test_labels")
        for field, value in zip(fields, changed, strict=True):
            object.__setattr__(self, field, value)

    def _check_features(self, labels, num_classes):
        rows, shape = 1 + sum(self.views), self.images.shape
        is_right = self.images.dtype.kind == "f" and len(shape) == 3 and shape[1] == rows
        if not is_right or 0 in shape:
            raise UserError(
                f"The features of `Task` with views={self.views} must be floats of shape "
                f"(num_examples, {rows}, num_features). Received: {self.images.dtype} {shape}."
            )
        for part in ("test", "validation"):
            images = getattr(self, f"{part}_images")
            if images is not None and (images.ndim != 2 or images.shape[1:] != shape[2:]):
                raise UserError(
                    f"The {part} features of `Task` must be of shape (num_{part}, {shape[2]}), as "
                    f"the training features. Received: {images.dtype} {images.shape}."
                )
        check_labels("`Task`", shape[0], labels, num_classes, lowest=-1)

    @classmethod
    def from_dataset(
        cls, dataset: Dataset, labeled_positions, given_labels=None, **fields
    ) -> "Task":
        """Makes the task in which the examples at these integer positions are labeled.

        `given_labels` is an integer array with their labels. By default they are those of the data
        set. `fields` are others of the task, such as `resident`. A data set without any label has
        no classes; the task then has two, "0" and "1", since a network has a last layer.
        """
        positions, size = np.asarray(labeled_positions), len(dataset.labels)
        if positions.dtype.kind not in "iu" or np.setdiff1d(positions, np.arange(size)).size:
            raise UserError(
                f"`labeled_positions` must be integers in [0, {size}), not a mask or ids. "
                f"Received: {positions.dtype} {positions.shape}."
            )
        labels = dataset.labels[positions] if given_labels is None else given_labels
        given_labels = np.full(size, -1, np.int32)
        given_labels[positions] = labels
        names = ("num_classes", "class_names", "test_labels", "flip", "name")
        names += ("images", "test_images", "validation_images")
        settings = {name: getattr(dataset, name) for name in names}
        if not dataset.num_classes:
            settings.update(num_classes=2, class_names=None)
        return cls(given_labels=given_labels, **settings | fields)

    def relabeled(self, positions, label: int, class_name: str | None = None) -> "Task":
        """Returns this task with another label, -1 for none, at these integer positions.

        `class_name` adds a class of that name, for `label=num_classes`.
        """
        given_labels = self.given_labels.copy()
        given_labels[positions] = label
        names = self.class_names if class_name is None else (*self.class_names, class_name)
        changed = {"given_labels": given_labels, "class_names": names, "num_classes": len(names)}
        return dataclasses.replace(self, **changed)

    @property
    def num_examples(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of what a network takes: `(height, width, channels)` or `(num_features,)`."""
        return self.images.shape[1 if self.views is None else 2 :]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.images.shape) * self.images.dtype.itemsize

    @property
    def labeled(self) -> np.ndarray:
        """Increasing int64 positions of the examples that have a given label."""
        return np.flatnonzero(self.given_labels >= 0)

    def unlabeled_pool(self, include_labeled: bool = True) -> np.ndarray:
        """Returns increasing int64 positions: all examples, or those without a given label."""
        return np.flatnonzero((self.given_labels < 0) | include_labeled)


def _check_features(features, num_examples):
    features = np.asanyarray(features)
    if features.ndim != 2 or features.dtype.kind != "f" or len(features) != num_examples:
        raise UserError(
            f"The features of `Task` must be floats of shape ({num_examples}, num_features). "
            f"Received: {features.dtype} {features.shape}. Flatten each image's features to a row."
        )
    if not np.isfinite(features).all():
        raise UserError(
            "The features of `Task` must be finite numbers. Received: NaN or infinity. Check what "
            "computed them."
        )
