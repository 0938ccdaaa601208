# SPDX-License-Identifier: Apache-2.0
"""The sources of data, `--dataset=NAME` or `--dataset=KIND:VALUE`: a table, and their loading.

To add a source, add an entry to `SOURCES`. Flags, help and runs read this table. All other names
are those of TensorFlow Datasets, see `tfds_source`.
"""

import collections.abc
import dataclasses
import hashlib
import pathlib
import re

import numpy as np

from ssl_noisy import files
from ssl_noisy.data import decoded, hugging_face, picture_files, pictures, rows, tfds_source
from ssl_noisy.data.dataset import (
    NO_TEST,
    Contents,
    Dataset,
    DatasetError,
    Split,
    assemble,
    check_examples,
    fixed_shuffle,
)
from ssl_noisy.errors import one_line

_SLICE = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")
TEST_SHARE = 0.2
_HELD_OUT = 0x7E57  # keeps the choice of test examples independent of other uses of a seed


@dataclasses.dataclass(frozen=True)
class Source:
    """One source of data.

    Attributes:
        read: Function of the value, a string. It returns the `Contents`.
        help: Where the data come from, in a few words.
        value: What follows the colon, for messages; empty for a source without a value.
        is_path: Whether the value is a path.
        flip: Whether a mirrored image keeps its class.
        is_pictures: Whether the data are picture files. Then `read` takes `decoded.Options` too.
    """

    read: collections.abc.Callable
    help: str
    value: str = ""
    is_path: bool = False
    flip: bool = True
    is_pictures: bool = False


def is_pictures(name):
    """Returns whether a data set of this name consists of picture files, which have many sizes."""
    source = SOURCES.get(name.partition(":")[0])
    return source is not None and source.is_pictures


def is_tfds(name):
    """Returns whether a name is that of a data set of TFDS."""
    kind, colon, _ = name.partition(":")
    return kind not in SOURCES or bool(colon and not SOURCES[kind].value)


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
    test_share: float | None = None,
    image_size: str | None = None,
    fit: str | None = None,
    skip_unreadable: bool | None = None,
    needs_labels: bool = True,
) -> Dataset:
    """Loads a data set. Images in an uncompressed .npz file or in the cache are memory-mapped.

    Args:
        name: `digits` (scikit-learn's 8x8 digits; 50 a class are the test set; ids are positions
            in `load_digits`), `folder:PATH` (see `picture_files.folder`), `csv:FILE` (see
            `picture_files.table`), `hf:NAME` (see `hugging_face.read`), `npz:FILE`
            (`images_train` and `labels_train`, -1 where unlabeled, optionally `ids_train`, and
            `images_test`, `labels_test` and the same of `validation`; optionally `class_names`,
            strings, and `flip`, whether a mirrored image keeps its class), or a TFDS
            image-classification data set with images of one size: `cifar10`, `emnist/letters`,
            `cifar10:3.0.2`. TFDS ids are the trailing numbers of the data set's own `id`
            feature. Without unique numbers, ids are positions in the files of the split, or in
            the concatenated splits of a sum such as `train+extra`.
        data_dir: Where TFDS prepares data. Default: `TFDS_DATA_DIR`, else TFDS's own.
        cache_dir: Where decoded arrays are kept. Default: `SSL_NOISY_CACHE`, else
            `~/.cache/ssl_noisy`. A TFDS entry belongs to one name, version, choice of splits and
            data directory (the argument, else `TFDS_DATA_DIR`), so two copies of the data never
            mix. The directory need not exist anymore. The newest cached version is used unless
            `name` has a version.
        train_split: TFDS split, by default `train`. Other sources accept `train`,
            `train[:1000]`, `train[:90%]`: slices of the split in a fixed shuffled order.
        validation_split: Likewise; by default `validation` of one's own data, if there is one.
        test_split: Likewise; by default `test`, or `validation` where TFDS has no `test`. `none`
            loads no test images.
        test_share: Float in (0, 1). One's own data without a test split keeps this fraction of
            each class of the labeled training examples for the test, always the same ones. None
            means 0.2.
        image_size: Size of pictures in files: `96` or `HEIGHTxWIDTH`. None and `auto` mean their
            own if they share one, else the median, at most 128.
        fit: How they get it, one of `pictures.FITS`; None means `crop`.
        skip_unreadable: Whether to leave out damaged files, which are an error otherwise.
        needs_labels: Whether training examples must have labels. If not, and none has one, the
            data set has no classes and no test split.

    Returns:
        A `Dataset`. No training example is in its validation or test split.

    Raises:
        DatasetError: If the data cannot be found, prepared or used.
    """
    specs = (train_split or "train", validation_split, test_split)
    kind, _, value = name.partition(":")
    if is_tfds(name):
        _refuse_share(name, test_share)
        return tfds_source.load(name, data_dir, cache_dir, specs)
    source = SOURCES[kind]
    if source.value and not value:
        raise DatasetError(f"The data set must be {kind}:{source.value}. Received: {name!r}.")
    if source.is_pictures:
        size, skips = pictures.parse_size(image_size), bool(skip_unreadable)
        options = decoded.Options(size, fit or "crop", skips, cache_dir, needs_labels)
        contents = source.read(value, options)
    else:
        contents = source.read(value)
    splits, notes = dict(contents.splits), list(contents.notes)
    splits = {
        part: dataclasses.replace(split, keys=np.char.add(f"{part}/", split.ids.astype(str)))
        for part, split in splits.items()
    }
    is_labeled = needs_labels or (splits["train"].labels >= 0).any()
    if "test" not in splits and not is_labeled:
        _refuse_test(name, test_split, test_share)
        test_split = NO_TEST
    elif "test" not in splits and test_split is None:
        share = test_share or TEST_SHARE
        splits["train"], splits["test"] = _hold_out(name, splits["train"], share)
        notes.append(
            f"There is no test split, so {share:.0%} of each class, "
            f"{len(splits['test'].ids)} labeled examples, are held out of train (--test_share)."
        )
    else:
        _refuse_share(name, test_share)
    specs = (specs[0], specs[1] or ("validation" in splits and "validation"), test_split or "test")
    specs = (*specs[:2], None if test_split == NO_TEST else specs[2])
    return assemble(
        name,
        contents.version or _hash(contents.splits),
        contents.class_names,
        [_take(name, splits, spec) if spec else None for spec in specs],
        source.flip if contents.flip is None else contents.flip,
        needs_labels=needs_labels,
        notes=tuple(notes),
        unreadable=contents.unreadable,
        fit=contents.fit,
    )


def _refuse_share(name, share):
    if share is not None:
        raise DatasetError(
            f"--test_share has no effect with {name!r}, which has a test split. Leave it out. "
            f"Received: --test_share={share}"
        )


def _refuse_test(name, split, share):
    """Raises the error of a test split of data without labels."""
    for flag, value in (("test_split", split), ("test_share", share)):
        if value not in (None, NO_TEST):
            raise DatasetError(
                f"--{flag} needs labels, which {name!r} has none of. Put labeled pictures into "
                f"test/CLASS, or leave it out. Received: --{flag}={value}"
            )


def _hash(splits):
    digest = hashlib.sha256()
    for split in splits.values():
        for array in (split.images, split.labels, split.ids):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array)
    return digest.hexdigest()[:12]


def _hold_out(name, train, share):
    """Returns the training split without a fraction of each class, and the test split of these."""
    order = fixed_shuffle(len(train.ids), _HELD_OUT)
    chosen = [np.zeros(0, np.int64)]
    for number in range(train.labels.max() + 1):
        of_class = order[train.labels[order] == number]
        # One picture may be held out only if another one is left.
        count = min(max(round(share * len(of_class)), 1), len(of_class) - 1)
        chosen.append(of_class[:count])
    chosen = np.sort(np.concatenate(chosen))
    if not len(chosen):
        raise DatasetError(
            f"{name!r} must have a test split, or at least two labeled examples of a class to hold "
            "one out. Received: neither. Add a test split."
        )
    rest = np.setdiff1d(np.arange(len(train.ids)), chosen)
    return train.take(rest), train.take(chosen)


def _take(name, splits, spec):
    match = _SLICE.fullmatch(spec)
    if not match or match[1] not in splits:
        raise DatasetError(
            f"Unknown split {spec!r} of {name!r}. Available: {', '.join(splits)}, and slices such "
            "as train[:1000], train[90%:]."
        )
    split = splits[match[1]]
    size = len(split.ids)
    bounds = [
        round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)
        for text in (match[2] or "0", match[3] or "100%")
    ]
    return split.take(np.sort(fixed_shuffle(size, 0)[slice(*bounds)]))


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
    parts = {"train": train, "test": test}
    splits = {part: Split(images[rows], labels[rows], rows) for part, rows in parts.items()}
    return Contents(tuple(map(str, range(10))), splits, sklearn.__version__)


def _npz(path):
    path = pathlib.Path(path).expanduser()
    try:
        arrays = files.read_npz(path, mapped=True)
    except ValueError as error:
        raise DatasetError(
            f"Cannot read {str(path)!r}: {one_line(error)}. It must be an .npz file of plain "
            "numeric arrays; write it with np.savez."
        ) from error
    there = {name.partition("_")[2] for name in arrays}
    parts = ["train", *(part for part in ("test", "validation") if part in there)]
    missing = [f"{key}_{part}" for part in parts for key in ("images", "labels")]
    missing = sorted(set(missing) - set(arrays))
    if missing:
        received = ", ".join(arrays)
        raise DatasetError(f"{str(path)!r} must hold {', '.join(missing)}. Received: {received}.")
    splits = {part: _npz_split(path, arrays, part) for part in parts}
    labels, flip = splits["train"].labels, None
    if "flip" in arrays:
        flip = bool(_npz_option(path, arrays, "flip", "b", 0))
    if "class_names" in arrays:
        names = _npz_option(path, arrays, "class_names", "U", 1)
        return Contents(tuple(map(str, names)), splits, flip=flip)
    if labels.max() < 0 and len(splits) > 1:
        raise DatasetError(
            f"{str(path)!r} must name its classes, since labels_train has none. Received: no "
            "class_names. Add class_names, an array of strings in the order of the labels of the "
            "other splits."
        )
    absent = np.setdiff1d(np.arange(labels.max() + 1), labels)
    if absent.size:
        raise DatasetError(
            f"labels_train of {str(path)!r} must contain every class from 0 to its largest, "
            f"{labels.max()}. Received: none of {absent.size} classes, such as {absent[0]}. Number "
            "the classes without gaps."
        )
    return Contents(tuple(map(str, range(labels.max() + 1))), splits, flip=flip)


def _npz_option(path, arrays, name, kind, rank):
    """Returns one of the optional arrays of an .npz file, of this NumPy kind and rank."""
    value = arrays[name]
    if value.dtype.kind != kind or value.ndim != rank:
        required = {"b": "one bool", "U": "strings, one per class"}[kind]
        raise DatasetError(
            f"{name} of {str(path)!r} must be {required}. Received: {value.dtype} {value.shape}. "
            "Write it with np.savez, or leave it out."
        )
    return value


def _npz_split(path, arrays, part):
    images, labels = arrays[f"images_{part}"], arrays[f"labels_{part}"]
    images = images[..., None] if images.ndim == 3 else images
    lowest = -1 if part == "train" else 0
    check_examples(f"{part} set of {str(path)!r}", images, labels, 100_000, lowest=lowest)
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
    if (np.diff(order) != 1).any():  # a copy of images in order would not be memory-mapped
        images = rows.take(images, order)
    return Split(images, labels[order].astype(np.int32), ids[order].astype(np.int64))


SOURCES = {
    "digits": Source(_digits, "scikit-learn's 8x8 digits", flip=False),
    "folder": Source(
        picture_files.folder,
        "train/CLASS/*.jpg, optional unlabeled/, test/CLASS/, validation/CLASS/",
        "PATH",
        is_path=True,
        is_pictures=True,
    ),
    "csv": Source(
        picture_files.table,
        "columns file, label, optional split",
        "FILE.csv",
        is_path=True,
        is_pictures=True,
    ),
    "hf": Source(
        hugging_face.read, "Hugging Face, or a data set saved on disk", "NAME", is_pictures=True
    ),
    "npz": Source(_npz, "arrays of images and labels, -1: unlabeled", "FILE.npz", is_path=True),
}
