# SPDX-License-Identifier: Apache-2.0
"""Image-classification data as uint8 arrays with published indices.

TensorFlow and TFDS are imported only to decode a TFDS data set for the first time: from then on
its cached arrays are read with NumPy alone.
"""

import contextlib
import dataclasses
import difflib
import fnmatch
import glob
import hashlib
import json
import os
import pathlib
import re
import socket
import tempfile
import urllib.parse
import urllib.request
import warnings

import numpy as np
from absl import logging

from ssl_noisy import files, streams
from ssl_noisy.errors import UserError

# Their classes, digits and letters, change under mirroring.
_NO_FLIP = ("digits", "mnist", "mnist_corrupted", "kmnist", "emnist", "svhn_cropped", "omniglot")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_SLICE = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


class DatasetError(UserError):
    """Data that cannot be used. One line: what is required, what was received, how to mend it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, its training examples in the order of their published indices.

    Attributes:
        name: The name given to `load`, without a version.
        version: TFDS version, scikit-learn's (`digits`), or the start of a hash of the arrays.
        images: uint8 array of shape `(num_examples, height, width, channels)`.
        labels: int32 array of shape `(num_examples,)`, as published, in `[0, num_classes)`.
        ids: int64 array of shape `(num_examples,)`, increasing: each example's published index.
        test_images: uint8 array of shape `(num_test, height, width, channels)`.
        test_labels: int32 array of shape `(num_test,)`.
        validation_images: As `test_images`, or None without a validation split.
        validation_labels: As `test_labels`, or None without a validation split.
        class_names: Tuple of `num_classes` strings.
        flip: Whether a mirrored image keeps its class.
    """

    name: str
    version: str
    images: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    validation_images: np.ndarray | None
    validation_labels: np.ndarray | None
    class_names: tuple[str, ...]
    flip: bool

    def __post_init__(self):
        for part in ("", "test_", "validation_"):
            images, labels = getattr(self, f"{part}images"), getattr(self, f"{part}labels")
            if part != "validation_" or images is not None:
                owner = f"{part.rstrip('_') or 'training'} set of {self.name!r}"
                check_examples(owner, images, labels, self.num_classes, self.images.shape[1:])
        ids = self.ids
        if ids.dtype != np.int64 or ids.shape != self.labels.shape or (np.diff(ids) <= 0).any():
            raise DatasetError(
                f"The ids of {self.name!r} must be {len(self.labels)} increasing int64 numbers. "
                f"Received: {ids.dtype} {ids.shape}, {len(np.unique(ids))} distinct. Sort by id."
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def check_examples(owner, images, labels, num_classes, image_shape=None, lowest=0):
    """Raises `DatasetError` unless the arrays are examples of the classes `[0, num_classes)`.

    Args:
        owner: What holds the arrays, for the message: "test set of 'cifar10'".
        images: Must be a uint8 array of shape `(N, H, W, C)`.
        labels: Must be an integer array of shape `(N,)`, in `[lowest, num_classes)`.
        num_classes: Integer.
        image_shape: The `(H, W, C)` that the images must have, or None.
        lowest: -1 where that means unlabeled.
    """
    images, labels = np.asanyarray(images), np.asanyarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise DatasetError(
            f"The images of the {owner} must be uint8 of shape (N, H, W, C), not empty. Received: "
            f"{images.dtype} {images.shape}. Scale to 0..255, astype('uint8'), images[..., None]."
        )
    if image_shape is not None and images.shape[1:] != tuple(image_shape):
        raise DatasetError(
            f"The images of the {owner} must have the shape {tuple(image_shape)} of the training "
            f"images. Received: {images.shape[1:]}. Resize them or convert their channels."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DatasetError(
            f"The labels of the {owner} must be integers of shape ({len(images)},). Received: "
            f"{labels.dtype} {labels.shape}. Use argmax on one-hot rows, squeeze on a column."
        )
    if labels.min() < lowest or labels.max() >= num_classes:
        raise DatasetError(
            f"The labels of the {owner} must be in [{lowest}, {num_classes}). Received: "
            f"{labels.min()} to {labels.max()}. Number the classes from 0, drop other examples."
        )


def fixed_shuffle(size: int, seed) -> np.ndarray:
    """Returns a permutation of `range(size)`, an int64 array of shape `(size,)`.

    It rests on the raw stream of PCG64, which NumPy keeps; `Generator.permutation` may change.
    """
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")


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
            `cifar10:3.0.2`. TFDS ids are the numbers that end the data set's own `id` feature;
            where there are none, or two examples share one, ids are positions in the files of
            the split, or of the splits one after the other in a sum such as `train+extra`.
        data_dir: Where TFDS prepares data. Default: `TFDS_DATA_DIR`, else TFDS's own.
        cache_dir: Where decoded TFDS arrays are kept. Default: `SSL_NOISY_CACHE`, else
            `~/.cache/ssl_noisy`. An entry belongs to one name, version, choice of splits and
            data directory (the argument, else `TFDS_DATA_DIR`: a path that need not exist any
            longer), so that two copies never mix. The newest cached version is used; name a
            version for another one.
        train_split: TFDS split, default `train`. Other sources take `train`, `train[:1000]`,
            `train[:90%]`; as in TFDS, that is a slice of the split in a fixed shuffled order.
        validation_split: Likewise; default none.
        test_split: Likewise; default `test`, or `validation` where TFDS has no `test`.

    Returns:
        A `Dataset`. No training example is in its validation or test split.

    Raises:
        DatasetError: If the data cannot be found, prepared or used.
    """
    specs = (train_split or "train", validation_split, test_split)
    kind, _, path = name.partition(":")
    source = _digits if name == "digits" else {"folder": _folder, "npz": _npz}.get(kind)
    if not source:
        return _tfds(name, data_dir, cache_dir, specs)
    if kind in ("folder", "npz") and not path:
        raise DatasetError(f"The data set must be folder:PATH or npz:FILE. Received: {name!r}.")
    version, class_names, splits = source(pathlib.Path(path).expanduser())
    if not version:
        digest = hashlib.sha256()
        for array in (array for columns in splits.values() for array in columns):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array)
        version = digest.hexdigest()[:12]
    specs = (*specs[:2], test_split or "test")
    return _assemble(name, version, class_names, [s and _take(name, splits, s) for s in specs])


def load_feature(name: str, feature: str, *, data_dir: str | None = None, split: str = "train"):
    """Reads one integer feature of a TFDS data set, such as another label, without the images.

    Args:
        name: Name of a TFDS data set, as in `load`.
        feature: Name of a feature that is one integer an example.
        data_dir: Where TFDS prepares data, as in `load`.
        split: TFDS split.

    Returns:
        `(ids, values)`: int64 arrays of shape `(num_examples,)`; the ids increase and are those
        that `load` gives the examples.

    Raises:
        DatasetError: If the data cannot be found, prepared or used.
    """
    tfds, builder = _find(name, data_dir)
    features = dict(builder.info.features.items())
    kinds = {key: kind for key, kind in features.items() if kind.shape == ()}
    kinds = [key for key, kind in kinds.items() if np.issubdtype(kind.np_dtype, np.integer)]
    if feature not in kinds:
        raise DatasetError(
            f"{name!r} has no integer feature {feature!r}. Available: {', '.join(kinds)}."
        )
    _prepare(name, builder)
    # TFDS's PartialDecoding would do too, but warns of a deprecation of its own at each feature.
    images = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    decoders = {key: tfds.decode.SkipDecoding() for key in images}
    (values,), ids, _ = _read_split(tfds, builder, split, [feature], decoders)
    return ids, values.astype(np.int64)


def _assemble(name, version, class_names, parts) -> Dataset:
    """Each part is (images, labels, ids, keys); an example has one key in all splits."""
    train, validation, test = parts
    for part, columns in (("validation", validation), ("test", test)):
        common = len(np.intersect1d(train[3], columns[3])) if columns else 0
        if common:
            raise DatasetError(
                f"The {part} and training splits of {name!r} must be disjoint. Received: {common} "
                "common examples. Use slices such as train[:90%] and train[90%:]."
            )
    flip = re.split("[/:]", name)[0] not in _NO_FLIP
    validation = validation or (None, None)
    arrays = (*train[:3], *test[:2], *validation[:2])
    dataset = Dataset(name, version, *arrays, tuple(class_names), flip)
    if dataset.num_classes < 2 or len(dataset.labels) < 2:
        raise DatasetError(
            f"{name!r} must have at least 2 classes and 2 training images. Received: "
            f"{dataset.num_classes} and {len(dataset.labels)}."
        )
    return dataset


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
        raise DatasetError(f"'digits' needs scikit-learn: {error}. pip install it.") from error
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


def _folder(root):
    try:
        from PIL import Image
    except ImportError as error:
        raise DatasetError(f"'folder:' needs Pillow: {error}. pip install it.") from error
    parts, classes = {"train": [], "test": []}, {}
    for part, rows in parts.items():
        paths = sorted(glob.glob(f"{part}/*/*", root_dir=root))  # leaves hidden files out
        paths = [root / path for path in paths if path.lower().endswith(_SUFFIXES)]
        classes[part] = sorted({path.parent.name for path in paths})
        if not paths or classes[part] != classes["train"]:
            differ = ", ".join(sorted(set(classes[part]) ^ set(classes["train"])))
            raise DatasetError(
                f"{str(root / part)!r} must hold CLASS/*.png, jpg ... with the classes of train. "
                f"Received: {f'only one has {differ}' if paths else 'no image'}. Add the missing."
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
                    if image.mode[0] in "IF":  # 16 or 32 bits, which Pillow clips and not scales
                        raise ValueError(f"pixels of mode {image.mode}, not of 8 bits")
                    gray = image.mode in ("1", "L")
                    pixels = np.atleast_3d(np.asarray(image.convert("L" if gray else "RGB")))
            except Exception as error:  # Pillow raises a dozen types on damaged files
                raise DatasetError(f"Cannot decode {str(path)!r}: {_line(error)}.") from error
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
    try:
        arrays = files.read_npz(path)
    except ValueError as error:
        raise DatasetError(
            f"Cannot read {str(path)!r}: {_line(error)}. An .npz file of plain numeric arrays is "
            "required; write it with np.savez."
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
            f"labels_train of {str(path)!r} must hold every class from 0 to its largest, "
            f"{labels.max()}. Received: none of {absent.size} classes, such as {absent[0]}. Number "
            "the classes without gaps."
        )
    return None, map(str, range(labels.max() + 1)), splits


def _line(error):
    return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__


def _tfds(name, data_dir, cache_dir, specs) -> Dataset:
    """Reads the cached arrays of a TFDS data set, or decodes it and fills the cache."""
    base, _, version = name.partition(":")
    where = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR", ""))
    if where and "://" not in where:
        where = os.path.abspath(os.path.expanduser(where))
        if os.path.exists(where) and not os.path.isdir(where):
            raise DatasetError(f"The data_dir {where!r} must be a folder. Received: a file.")
    key = hashlib.sha256(json.dumps([base, where, specs]).encode()).hexdigest()[:12]
    stem = re.sub(r"[^\w.]", "_", base) + f"-{key}-"
    home = os.path.expanduser("~")  # stays "~" without HOME and an entry in the user database
    home = tempfile.gettempdir() if home == "~" else home
    folder = cache_dir or os.environ.get("SSL_NOISY_CACHE") or f"{home}/.cache/ssl_noisy"
    cached = pathlib.Path(folder).glob(f"{stem}*.npz")
    cached = {path.stem.removeprefix(stem): path for path in cached}
    versions = fnmatch.filter(cached, version or "*")
    if versions:
        newest = cached[max(versions, key=lambda text: list(map(int, re.findall(r"\d+", text))))]
        try:
            # Reading checks the CRC-32 that zip keeps of each array.
            fields = files.read_npz(newest)
            fields |= json.loads(str(fields.pop("fields")))
            return Dataset(**fields | {"class_names": tuple(fields["class_names"])})
        except (ValueError, LookupError, TypeError) as error:
            logging.warning("Decoding again: cache file %s is damaged: %s.", newest, _line(error))
    dataset = _decode(name, data_dir, specs)
    fields = dict(vars(dataset))
    arrays = {key: fields.pop(key) for key in list(fields) if isinstance(fields[key], np.ndarray)}
    try:
        with files.replacing(pathlib.Path(folder, f"{stem}{dataset.version}.npz")) as file:
            np.savez(file, fields=np.array(json.dumps(fields)), **arrays)
    except files.WriteError as error:
        logging.warning("Cannot write the cache of %s: %s Set SSL_NOISY_CACHE.", base, error)
    return dataset


def _find(name, data_dir):
    """Returns the module of TFDS and its builder of the data set, perhaps not prepared."""
    try:
        with streams.held_stderr():
            import keras
            import tensorflow as tf
            import tensorflow_datasets as tfds

            tf.config.list_physical_devices()
    except ImportError as error:
        raise DatasetError(
            f"{name!r} is not cached, so TensorFlow and tensorflow-datasets are required: "
            f"{_line(error)}. Install them, copy a cache here, or use npz:FILE or folder:PATH."
        ) from error
    if keras.config.backend() != "tensorflow":
        # TensorFlow would reserve the whole GPU. RuntimeError: it runs already.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    base = name.partition(":")[0]
    try:
        return tfds, tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # ValueError, AssertionError, OSError and TFDS's own
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        if base.split("/")[0] in known:
            raise DatasetError(
                f"{name!r} has no such version or config: {_line(error)}."
            ) from error
        near = ", ".join(difflib.get_close_matches(base, known, 4) or known[:1])
        raise DatasetError(
            f"Unknown data set {name!r}. Nearest: {near}. Or use folder:PATH or npz:FILE."
        ) from error


def _prepare(name, builder):
    try:
        if not builder.is_prepared():
            # TFDS would look for them after its downloads.
            by_hand = builder.data_path.parents[builder.info.full_name.count("/")]
            by_hand = by_hand / "downloads" / "manual"
            if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not by_hand.exists():
                raise OSError(f"TFDS wants files that you put into {str(by_hand)!r}")
            _reach(next(iter(builder.url_infos or ()), ""))
            builder.download_and_prepare()
    except Exception as error:
        raise DatasetError(
            f"{name!r} is not prepared and cannot be downloaded: {_line(error)}. Prepare it where "
            "there is network, with tfds.load, and pass data_dir, or use npz:FILE or folder:PATH."
        ) from error


def _decode(name, data_dir, specs) -> Dataset:
    base = name.partition(":")[0]
    tfds, builder = _find(name, data_dir)
    image, label = _feature_keys(tfds, builder.info, base)
    _prepare(name, builder)
    splits = builder.info.splits
    default = "validation" if "validation" in splits and "test" not in splits else "test"
    specs = (*specs[:2], specs[2] or default)
    parts = []
    for spec in specs:
        read = spec and _read_split(tfds, builder, spec, [image, label])
        parts.append(read and (read[0][0], read[0][1].astype(np.int32), *read[1:]))
    return _assemble(base, str(builder.version), builder.info.features[label].names, parts)


def _feature_keys(tfds, info, name):
    features, keys = dict(info.features.items()), list(info.supervised_keys or ())
    for index, kind in enumerate((tfds.features.Image, tfds.features.ClassLabel)):
        default = ("image", "label")[index]
        fits = [
            key
            for key in (*keys[index : index + 1], default)
            if isinstance(key, str) and isinstance(features.get(key), kind)
        ]
        if not fits:
            raise DatasetError(
                f"{name!r} is no image-classification data set: a feature {default!r} of type "
                f"{kind.__name__} is required. Received: {', '.join(features)}. Use another one."
            )
        keys[index : index + 1] = fits[:1]
    shape, dtype = features[keys[0]].shape, np.dtype(features[keys[0]].np_dtype)
    if None in shape or dtype != np.uint8:
        raise DatasetError(
            f"{name!r} must hold uint8 images of one size. Received: "
            f"{'images of varying size' if None in shape else 'images'}, {shape} {dtype}. Resize "
            "first, e.g. into files for folder:PATH."
        )
    return keys[:2]


def _reach(url):
    """Raises OSError if `url` is out of reach; TFDS itself would retry for 200 s (measured)."""
    parts = urllib.parse.urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if parts.hostname and port and parts.scheme not in urllib.request.getproxies():
        try:
            socket.create_connection((parts.hostname, port), timeout=10).close()
        except OSError as error:
            raise OSError(f"no connection to {parts.hostname} ({error})") from error


def _read_split(tfds, builder, spec, features, decoders=None):
    """Returns the columns of the features, ids and TFDS's own keys, in the order of the ids."""
    infos = builder.info.splits
    names = list(dict.fromkeys(part.split("[")[0].strip() for part in spec.split("+")))
    keys = [*features, "tfds_id"] + ["id"] * ("id" in builder.info.features)
    config = tfds.ReadConfig(add_tfds_id=True)
    try:
        sizes = [size for name in names for size in infos[name].shard_lengths]
        files = [file for name in names for file in infos[name].filenames]
        data = builder.as_dataset(
            split=spec, batch_size=1024, read_config=config, decoders=decoders
        )
        batches = [[batch[key] for key in keys] for batch in tfds.as_numpy(data)]
    except Exception as error:
        raise DatasetError(
            f"Cannot read the split {spec!r} of {builder.name!r}: {_line(error)}. Available: "
            f"{', '.join(infos)}, and slices such as train[:90%]."
        ) from error
    columns = [np.concatenate(column) for column in zip(*batches, strict=True)]
    del batches  # 150 MB of CIFAR-10
    *columns, keys, texts = columns if "id" in keys else (*columns, [])
    texts = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in texts]
    numbers = [int(end[0]) for end in (re.search(r"\d{1,18}$", text) for text in texts) if end]
    if len(set(numbers)) < len(keys):  # no `id`, no numbers, or not unique ones
        starts = dict(zip(files, np.cumsum([0, *sizes]), strict=False))
        rows = (key.decode().rpartition("__") for key in keys)
        numbers = [starts[file] + int(row) for file, _, row in rows]
    ids = np.array(numbers, np.int64)
    order = np.argsort(ids, kind="stable")
    return [column[order] for column in columns], ids[order], keys[order]
