# SPDX-License-Identifier: Apache-2.0
"""Feature files: one row of numbers for each image, computed once by a frozen network.

A feature file is an uncompressed .npz file. `python -m ssl_noisy.features` writes, for the images
of all splits, a digest of the pixels and a row of features. So an image is found whatever its id
and split, and a file of other images or pixels is refused. It may have statistics of each image,
NaN where unknown, that the training of the network showed. A file from elsewhere has the published
ids of the training examples instead, in `ids`, with `features` in their order, and optionally
`ids_test` with `features_test`, likewise `validation`.
"""

import contextlib
import dataclasses
import hashlib
import pathlib
import zipfile

import numpy as np

from ssl_noisy import files
from ssl_noisy.data.dataset import Dataset
from ssl_noisy.data.rows import take
from ssl_noisy.errors import UserError, one_line

_BLOCK = 1024  # images or rows in memory at once
PARTS = ("", "_validation", "_test")
_TEXTS = ("extractor", "key", "weights")


class FeatureError(UserError):
    """A feature file that is malformed or belongs to other data."""


def digests(images) -> np.ndarray:
    """Returns a 64-bit digest of the shape and pixels of each image.

    Args:
        images: uint8 array of shape `(num_images, height, width, channels)`, or `rows.Rows`.

    Returns:
        A uint64 array of shape `(num_images,)`.
    """
    found = np.empty(len(images), np.uint64)
    shape = repr(tuple(images.shape[1:])).encode()
    for start in range(0, len(images), _BLOCK):
        for row, image in enumerate(np.asarray(images[start : start + _BLOCK]), start):
            digest = hashlib.blake2b(shape + image.tobytes(), digest_size=8).digest()
            found[row] = int.from_bytes(digest, "little")
    return found


def normalized(features) -> np.ndarray:
    """Returns features of length 1. A row of zeros stays one.

    Args:
        features: Float array of shape `(num_examples, num_features)`.

    Returns:
        A float32 array of the same shape.
    """
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """The features of views of training images.

    Attributes:
        features: Float array of shape `(num_viewed, 1 + weak + strong, num_features)`, perhaps
            memory-mapped: for each of the first images of the file the features of the image
            itself, of its weak views and of its strong ones.
        counts: Tuple of integers, the numbers of weak and of strong views.
        weak_augmentation, strong_augmentation: What the views are, as the flags of these names.
        description: The same as text, with the seed.
    """

    features: np.ndarray
    counts: tuple[int, int]
    weak_augmentation: str
    strong_augmentation: str
    description: str


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureFile:
    """The content of a feature file. See `read`.

    Attributes:
        path: Where it is.
        features: float array of shape `(num_images, num_features)`, perhaps memory-mapped.
        digests: uint64 array of shape `(num_images,)`, or None for a file from elsewhere.
        by_id: For such a file a dict from `""`, `"_validation"` and `"_test"` to a pair: the
            published ids, an int64 array, and their features.
        extractor: What computed the features, as text; empty if unknown.
        key: Text that identifies the network's weights and the images; empty if unknown.
        weights: Text that identifies the network's weights alone; empty if unknown.
        statistics: Dict from name to float array of shape `(num_images,)`.
        views: The `Views` in the file, or None.
    """

    path: str
    features: np.ndarray
    digests: np.ndarray | None
    by_id: dict
    extractor: str = ""
    key: str = ""
    weights: str = ""
    statistics: dict = dataclasses.field(default_factory=dict)
    views: Views | None = None

    def training_views(self, dataset: Dataset):
        """Returns the features of the views of the training examples, in their order.

        Returns:
            A float array of shape `(num_examples, 1 + weak + strong, num_features)`, or `rows.Rows`
            of a mapped one.

        Raises:
            FeatureError: If the file has no views of some of them.
        """
        rows = self._places(dataset, "", dataset.images, dataset.ids)
        missing = int((rows >= len(self.views.features)).sum())
        if missing:
            raise FeatureError(
                f"The feature file {self.path!r} must have views of all {len(rows)} training "
                f"images of {dataset.name!r}. Received: none for {missing} of them, which were "
                "test or validation images when it was made. Compute it again with these splits."
            )
        return take(self.views.features, rows)

    def statistic(self, name, dataset: Dataset) -> np.ndarray | None:
        """Returns a statistic of the training examples of a data set, or None if there is none.

        Args:
            name: Its name, such as `confidence`.
            dataset: The `Dataset`.

        Returns:
            A float array of shape `(num_examples,)`, NaN where unknown.
        """
        if name not in self.statistics:
            return None
        rows = self._places(dataset, "", dataset.images, dataset.ids)
        return self.statistics[name][rows]

    def training(self, dataset: Dataset) -> np.ndarray:
        """Returns the features of the training examples of a data set, in their order.

        Returns:
            A float32 array of shape `(num_examples, num_features)`.

        Raises:
            FeatureError: If the file has no features of some of them, or they are not finite.
        """
        return self._rows(dataset, "", dataset.images, dataset.ids)

    def validation(self, dataset: Dataset) -> np.ndarray:
        """Returns the features of the validation examples, as `training`."""
        images, ids = dataset.validation_images, dataset.validation_ids
        return self._rows(dataset, "_validation", images, ids)

    def test(self, dataset: Dataset) -> np.ndarray:
        """Returns the features of the test examples, as `training`.

        In a file from elsewhere, `ids_test` are the positions of the test examples.
        """
        images = dataset.test_images
        return self._rows(dataset, "_test", images, np.arange(len(images)))

    def _rows(self, dataset, part, images, ids):
        rows = self._places(dataset, part, images, ids)
        features = self.features if self.digests is not None else self.by_id[part][1]
        found = np.empty((len(rows), features.shape[1]), np.float32)
        for start in range(0, len(rows), _BLOCK):
            found[start : start + _BLOCK] = features[rows[start : start + _BLOCK]]
        bad = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(bad):
            raise FeatureError(
                f"The features of {self.path!r} must be finite numbers. Received: {len(bad)} rows "
                f"with NaN or infinity, such as that of the example {ids[bad[0]]}. Check what "
                "computed them."
            )
        return found

    def _places(self, dataset, part, images, ids):
        """Returns the row of each example."""
        what = f"{part.strip('_') or 'training'} images of {dataset.name!r}"
        if self.digests is not None:
            known, wanted = self.digests, digests(images)
            advice = "It is of other images, or of these ones at another size. Compute it again: "
            advice += f"python -m ssl_noisy.features --dataset={dataset.name}"
        elif part in self.by_id:
            known, wanted = self.by_id[part][0], ids
            advice = f"Write a row of features{part} for each of the published ids"
        else:
            raise FeatureError(
                f"The feature file {self.path!r} must have ids{part} and features{part}, for the "
                f"{what}. Received: neither. Add them."
            )
        order = np.argsort(known, kind="stable")
        places = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
        rows = order[places]
        missing = int((known[rows] != wanted).sum())
        if missing:
            raise FeatureError(
                f"The feature file {self.path!r} must have features of all {len(wanted)} {what}. "
                f"Received: none for {missing} of them. {advice}."
            )
        return rows


def read(path) -> FeatureFile:
    """Reads a feature file. Large features are memory-mapped, not read.

    Args:
        path: Path of the file.

    Raises:
        FeatureError: If it cannot be read or is malformed. What depends on a data set is checked
            when its features are asked for.
    """
    path = str(pathlib.Path(path).expanduser())
    try:
        arrays = files.read_npz(path, mapped=True)
    except ValueError as error:
        raise FeatureError(
            f"The feature file {path!r} cannot be read: {one_line(error)}. It must be an .npz file "
            "from python -m ssl_noisy.features, or with the arrays ids and features."
        ) from error
    key = "digests" if "digests" in arrays else "ids"
    missing = [name for name in (key, "features") if name not in arrays]
    if missing:
        raise FeatureError(
            f"The feature file {path!r} must hold the arrays {key} and features. Received: "
            f"{', '.join(arrays) or 'none'}. Use python -m ssl_noisy.features."
        )
    if key == "digests":
        _check(path, arrays, "digests", "features")
        more = {name: str(arrays[name]) for name in _TEXTS if name in arrays}
        shape = arrays["digests"].shape
        more["views"] = _views(path, arrays) if "views" in arrays else None
        more["statistics"] = {
            name: values
            for name, values in arrays.items()
            if name != "features" and values.dtype.kind == "f" and values.shape == shape
        }
        return FeatureFile(path, arrays["features"], arrays["digests"], {}, **more)
    by_id = {}
    for part in PARTS:
        if f"ids{part}" in arrays and f"features{part}" in arrays:
            _check(path, arrays, f"ids{part}", f"features{part}")
            by_id[part] = (arrays[f"ids{part}"].astype(np.int64), arrays[f"features{part}"])
    widths = {values.shape[1] for _, values in by_id.values()}
    if len(widths) > 1:
        raise FeatureError(
            f"The feature file {path!r} must have equally many features in all splits. Received: "
            f"{', '.join(map(str, sorted(widths)))}. Use one network for all of them."
        )
    return FeatureFile(path, arrays["features"], None, by_id)


def _check(path, arrays, key, name):
    keys, values = arrays[key], arrays[name]
    is_matrix = values.ndim == 2 and values.dtype.kind == "f" and 0 not in values.shape
    if not is_matrix or keys.dtype.kind not in "iu" or keys.shape != values.shape[:1]:
        raise FeatureError(
            f"The feature file {path!r} must have floats {name} of shape (num_images, "
            f"num_features) and integers {key} of shape (num_images,). Received: {values.dtype} "
            f"{values.shape} and {keys.dtype} {keys.shape}. Flatten each image's features to a row."
        )
    if len(np.unique(keys)) < len(keys):
        raise FeatureError(
            f"The feature file {path!r} must have each of {key} once. Received: "
            f"{len(keys) - len(np.unique(keys))} repeated ones. Remove their rows."
        )


def _views(path, arrays):
    """Returns the `Views` of the arrays of a feature file."""
    values, counts = arrays["views"], arrays.get("view_counts", np.zeros(2, int))
    num_features = arrays["features"].shape[1]
    is_right = values.ndim == 3 and values.dtype.kind == "f" and counts.shape == (2,)
    if not is_right or values.shape[1:] != (1 + counts.sum(), num_features):
        raise FeatureError(
            f"The feature file {path!r} must have floats views of shape (num_viewed, 1 + the sum "
            f"of view_counts, {num_features}). Received: {values.dtype} {values.shape} and "
            f"{counts}. Compute it again: python -m ssl_noisy.features --views=8"
        )
    names = ("weak_augmentation", "strong_augmentation", "view_description")
    texts = [str(arrays.get(name, "")) for name in names]
    return Views(values, tuple(counts.tolist()), *texts)


class Writer:
    """Writes the rows of a feature file as they come. See `writing`."""

    def __init__(self, archive, num_images):
        self._archive = archive
        self._num_images = num_images
        self._member = self._name = None

    def append(self, features):
        """Writes the next rows, a float array of shape `(n, num_features)`."""
        self._append("features", np.ascontiguousarray(features, "<f4"), self._num_images)

    def append_views(self, features, num_viewed):
        """Writes views of the next images, once all features are written, as float16.

        Args:
            features: Float array `(n, num_views, num_features)`, as `Views.features`.
            num_viewed: Integer, of how many images there will be views.
        """
        self._append("views", np.ascontiguousarray(features, "<f2"), num_viewed)

    def _append(self, name, values, length):
        if name != self._name:
            self.close()
            self._member = self._archive.open(f"{name}.npy", "w", force_zip64=True)
            self._name = name
            shape = (length, *values.shape[1:])
            header = {"descr": values.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(self._member, header)
        self._member.write(values)

    def close(self):
        """Ends the array that is being written."""
        if self._member is not None:
            self._member.close()


@contextlib.contextmanager
def writing(path, image_digests, extractor, key, more=None):
    """Opens a feature file to append the features of images to, in order; atomic.

    Args:
        path: Path of the file. Missing folders are created.
        image_digests: uint64 array `(num_images,)`, as from `digests`, without repetitions.
        extractor: What computes the features, as text.
        key: Text that identifies the network's weights and the images.
        more: Optional dict from name to array, such as the statistics and what is known of views.

    Yields:
        A `Writer`.

    Raises:
        WriteError: If the file cannot be written. An older file stays.
    """
    with files.replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        values = {"digests": image_digests, "extractor": extractor, "key": key}
        for name, value in (values | (more or {})).items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(value), allow_pickle=False)
        writer = Writer(archive, len(image_digests))
        try:
            yield writer
        finally:
            writer.close()  # or else the archive could not be closed


def key_of(path) -> str:
    """Returns the `key` of a feature file, or an empty string if there is no such file."""
    try:
        return read(path).key
    except FeatureError:
        return ""
