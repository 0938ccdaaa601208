# SPDX-License-Identifier: Apache-2.0
"""The sources of data, `--dataset=NAME` or `--dataset=KIND:VALUE`: a table, and their loading.

To add a source, add an entry to `SOURCES`. Flags, help and runs read this table. All other names
are those of TensorFlow Datasets, see `tfds_source`.
"""

import collections.abc
import dataclasses
import glob
import hashlib
import pathlib
import re
import warnings

import numpy as np

from ssl_noisy import files
from ssl_noisy.data import tfds_source
from ssl_noisy.data.dataset import Dataset, DatasetError, assemble, check_examples, fixed_shuffle
from ssl_noisy.errors import one_line

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_SLICE = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of data.

    Attributes:
        read: Function of the value, a string. It returns `(version, class_names, splits)`: a
            string, or None for a hash of the arrays; names of the classes in the order of their
            numbers; and a dict from `train`, `test` and perhaps others to `(images, labels, ids)`,
            arrays as in `Dataset`, sorted by id.
        help: Where the data come from, in a few words.
        value: What follows the colon, for messages; empty for a source without a value.
        is_path: Whether the value is a path.
        flip: Whether a mirrored image keeps its class.
    """

    read: collections.abc.Callable
    help: str
    value: str = ""
    is_path: bool = False
    flip: bool = True


def usage() -> str:
    """Returns the sources in one line, for help texts."""
    named = [f"{name}:{source.value}" if source.value else name for name, source in SOURCES.items()]
    pairs = zip(named, SOURCES.values(), strict=True)
    own = ", ".join(f"{text} ({source.help})" for text, source in pairs)
    return f"{own}, or a TFDS name such as cifar10 or emnist/letters"


def load(
    name: str = "digits",
    *,
    data_dir: str | None = None,
    cache_dir: str | None = None,
    train_split: str | None = None,
    validation_split: str | None = None,
    test_split: str | None = None,
) -> Dataset:
    """Loads a data set into memory.

    Args:
        name: `digits` (scikit-learn's 8x8 digits; 50 a class are the test set; ids are positions
            in `load_digits`), `folder:PATH` (`PATH/train/CLASS/*.png`, `PATH/test/CLASS/*.png`;
            ids are positions in the sorted list of files), `npz:FILE` (`images_train`,
            `labels_train`, `images_test`, `labels_test`, optionally `ids_train`), or a TFDS
            image-classification data set with images of one size: `cifar10`, `emnist/letters`,
            `cifar10:3.0.2`. TFDS ids are the trailing numbers of the data set's own `id`
            feature. Without unique numbers, ids are positions in the files of the split, or in
            the concatenated splits of a sum such as `train+extra`.
        data_dir: Where TFDS prepares data. Default: `TFDS_DATA_DIR`, else TFDS's own.
        cache_dir: Where decoded TFDS arrays are kept. Default: `SSL_NOISY_CACHE`, else
            `~/.cache/ssl_noisy`. An entry belongs to one name, version, choice of splits and
            data directory (the argument, else `TFDS_DATA_DIR`), so two copies of the data never
            mix. The directory need not exist anymore. The newest cached version is used unless
            `name` has a version.
        train_split: TFDS split, by default `train`. Other sources accept `train`,
            `train[:1000]`, `train[:90%]`: slices of the split in a fixed shuffled order.
        validation_split: Likewise; none by default.
        test_split: Likewise; by default `test`, or `validation` where TFDS has no `test`.

    Returns:
        A `Dataset`. No training example is in its validation or test split.

    Raises:
        DatasetError: If the data cannot be found, prepared or used.
    """
    specs = (train_split or "train", validation_split, test_split)
    kind, colon, value = name.partition(":")
    source = SOURCES.get(kind)
    if source is None or (colon and not source.value):
        return tfds_source.load(name, data_dir, cache_dir, specs)
    if source.value and not value:
        raise DatasetError(f"The data set must be {kind}:{source.value}. Received: {name!r}.")
    version, class_names, splits = source.read(value)
    if not version:
        digest = hashlib.sha256()
        for array in (array for columns in splits.values() for array in columns):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array)
        version = digest.hexdigest()[:12]
    specs = (*specs[:2], test_split or "test")
    parts = [spec and _take(name, splits, spec) for spec in specs]
    return assemble(name, version, class_names, parts, source.flip)


def _take(name, splits, spec):
    match = _SLICE.fullmatch(spec)
    if not match or match[1] not in splits:
        raise DatasetError(
            f"Unknown split {spec!r} of {name!r}. Available: {', '.join(splits)}, and slices such "
            "as train[:1000], train[90%:]."
        )
    images, labels, ids = splits[match[1]]
    bounds = [
        round(len(ids) * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        for text in (match[2] or "0", match[3] or "100%")
    ]
    keep = np.sort(fixed_shuffle(len(ids), 0)[slice(*bounds)])
    keys = [f"{match[1]}/{index}" for index in ids[keep]]
    return images[keep], labels[keep], ids[keep], keys


def _digits(_):
    try:
        import sklearn
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetError(
            f"'digits' needs scikit-learn: {error}. Install it: pip install scikit-learn."
        ) from error
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels, order = data.target.astype(np.int32), fixed_shuffle(len(images), 0)
    test = np.sort(np.concatenate([order[labels[order] == index][:50] for index in range(10)]))
    train = np.setdiff1d(np.arange(len(labels)), test)
    splits = {
        "train": (images[train], labels[train], train),
        "test": (images[test], labels[test], test),
    }
    return sklearn.__version__, map(str, range(10)), splits


def _folder(path):
    root = pathlib.Path(path).expanduser()
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError(
            f"'folder:' needs Pillow: {error}. Install it: pip install pillow."
        ) from error
    parts, classes = {"train": [], "test": []}, {}
    for part, rows in parts.items():
        paths = sorted(glob.glob(f"{part}/*/*", root_dir=root))  # skips hidden files
        paths = [root / path for path in paths if path.lower().endswith(_SUFFIXES)]
        classes[part] = sorted({path.parent.name for path in paths})
        if not paths or classes[part] != classes["train"]:
            differ = ", ".join(sorted(set(classes[part]) ^ set(classes["train"])))
            raise DatasetError(
                f"{str(root / part)!r} must contain CLASS/*.png, jpg ... with the classes of "
                f"train. Received: {f'only one has {differ}' if paths else 'no image'}. Add "
                "what is missing."
            )
        for path in paths:
            try:
                files.require_regular(path)
                with (
                    warnings.catch_warnings(
                        action="error", category=Image.DecompressionBombWarning
                    ),
                    Image.open(path) as image,
                ):
                    if (
                        image.mode[0] in "IF"
                    ):  # 16 or 32 bits, which Pillow clips instead of scaling
                        raise ValueError(f"pixels of mode {image.mode}, not of 8 bits")
                    gray = image.mode in ("1", "L")
                    pixels = np.atleast_3d(np.asarray(image.convert("L" if gray else "RGB")))
            except Exception as error:  # Pillow raises a dozen types on damaged files
                raise DatasetError(f"Cannot decode {str(path)!r}: {one_line(error)}.") from error
            rows.append((pixels, classes[part].index(path.parent.name), path))
            first = parts["train"][0]
            if pixels.shape[:2] != first[0].shape[:2]:
                raise DatasetError(
                    f"Images of varying size: {str(first[2])!r} {first[0].shape[:2]}, "
                    f"{str(path)!r} {pixels.shape[:2]} (height, width). Resize them first."
                )
    channels = max(row[0].shape[-1] for rows in parts.values() for row in rows)
    splits = {}
    for part, rows in parts.items():
        images = [np.repeat(row[0], channels // row[0].shape[-1], axis=-1) for row in rows]
        labels = np.array([row[1] for row in rows], np.int32)
        splits[part] = np.stack(images), labels, np.arange(len(rows))
    return None, classes["train"], splits


def _npz(path):
    path = pathlib.Path(path).expanduser()
    try:
        arrays = files.read_npz(path)
    except ValueError as error:
        raise DatasetError(
            f"Cannot read {str(path)!r}: {one_line(error)}. It must be an .npz file of plain "
            "numeric arrays; write it with np.savez."
        ) from error
    missing = {f"{key}_{part}" for key in ("images", "labels") for part in ("train", "test")}
    missing = sorted(missing - set(arrays))
    if missing:
        received = ", ".join(arrays)
        raise DatasetError(f"{str(path)!r} must hold {', '.join(missing)}. Received: {received}.")
    splits = {}
    for part in ("train", "test"):
        images, labels = arrays[f"images_{part}"], arrays[f"labels_{part}"]
        images = images[..., None] if images.ndim == 3 else images
        check_examples(f"{part} set of {str(path)!r}", images, labels, 100_000)
        ids = arrays[f"ids_{part}"] if f"ids_{part}" in arrays else np.arange(len(labels))
        is_whole = ids.dtype.kind in "iu" and ids.shape == labels.shape
        if not is_whole or ids.max() >= 2**63:
            raise DatasetError(
                f"ids_{part} of {str(path)!r} must be integers below 2**63 of shape "
                f"{labels.shape}. Received: {ids.dtype} {ids.shape}"
                + (f" up to {ids.max()}" if is_whole else "")
                + ". Leave the key out to count from 0."
            )
        order = np.argsort(ids, kind="stable")
        splits[part] = images[order], labels[order].astype(np.int32), ids[order].astype(np.int64)
    labels = splits["train"][1]
    absent = np.setdiff1d(np.arange(labels.max() + 1), labels)
    if absent.size:
        raise DatasetError(
            f"labels_train of {str(path)!r} must contain every class from 0 to its largest, "
            f"{labels.max()}. Received: none of {absent.size} classes, such as {absent[0]}. Number "
            "the classes without gaps."
        )
    return None, map(str, range(labels.max() + 1)), splits


SOURCES = {
    "digits": Source(_digits, "scikit-learn's 8x8 digits", flip=False),
    "folder": Source(_folder, "train/CLASS/*.png, test/CLASS/*.png", "PATH", is_path=True),
    "npz": Source(_npz, "arrays of images and labels", "FILE.npz", is_path=True),
}
