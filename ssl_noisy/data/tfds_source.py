# SPDX-License-Identifier: Apache-2.0
"""Data sets of TensorFlow Datasets, decoded once and then read from cached arrays.

TensorFlow and TFDS are imported only to decode a data set for the first time. NumPy alone reads
the cached arrays.
"""

import contextlib
import difflib
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import socket
import tarfile
import urllib.parse
import urllib.request
import zipfile
import zlib

import numpy as np
from absl import logging

from ssl_noisy import cache, files, streams
from ssl_noisy.data.dataset import NO_TEST, Dataset, DatasetError, Split, assemble
from ssl_noisy.errors import one_line

# The classes of these, digits and letters, change under mirroring.
_NO_FLIP = ("mnist", "mnist_corrupted", "kmnist", "emnist", "svhn_cropped", "omniglot")


def load_feature(name: str, feature: str, *, data_dir: str | None = None, split: str = "train"):
    """Reads one integer feature of a TFDS data set, such as another label, without the images.

    Args:
        name: Name of a TFDS data set, as in `load`.
        feature: Name of a feature with one integer per example.
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
    _prepare(tfds, name, builder)
    # TFDS's PartialDecoding works too, but prints a deprecation warning for each feature.
    images = [key for key, kind in features.items() if isinstance(kind, tfds.features.Image)]
    decoders = {key: tfds.decode.SkipDecoding() for key in images}
    (values,), ids, _ = _read_split(tfds, builder, split, [feature], decoders)
    return ids, values.astype(np.int64)


def load(name, data_dir, cache_dir, specs) -> Dataset:
    """Reads the cached arrays of a TFDS data set, or decodes it and fills the cache."""
    base, _, version = name.partition(":")
    where = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR", ""))
    if where and "://" not in where:
        where = os.path.abspath(os.path.expanduser(where))
        if os.path.exists(where) and not os.path.isdir(where):
            raise DatasetError(f"The data_dir {where!r} must be a folder. Received: a file.")
    key = hashlib.sha256(json.dumps([base, where, specs]).encode()).hexdigest()[:12]
    stem = re.sub(r"[^\w.]", "_", base) + f"-{key}-"
    folder = cache.folder(cache_dir)
    cached = pathlib.Path(folder).glob(f"{stem}*.npz")
    cached = {path.stem.removeprefix(stem): path for path in cached}
    versions = fnmatch.filter(cached, version or "*")
    if versions:
        newest = cached[max(versions, key=lambda text: list(map(int, re.findall(r"\d+", text))))]
        try:
            # Reading checks the CRC-32 that zip keeps of each array, mapping does too.
            fields = files.read_npz(newest, mapped=True)
            fields |= json.loads(str(fields.pop("fields")))
            if fields["validation_images"] is not None and fields.get("validation_ids") is None:
                raise LookupError("an earlier version wrote no ids of validation examples")
            return Dataset(**fields | {"class_names": tuple(fields["class_names"])})
        except (ValueError, LookupError, TypeError) as error:
            logging.warning(
                "Decoding again: cannot use the cache file %s: %s.", newest, one_line(error)
            )
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
    """Returns the TFDS module and the builder of a data set that may not be prepared."""
    try:
        with streams.held_stderr():
            import keras
            import tensorflow as tf
            import tensorflow_datasets as tfds

            tf.config.list_physical_devices()
    except ImportError as error:
        raise DatasetError(
            f"{name!r} is not cached, so TensorFlow and tensorflow-datasets are required: "
            f"{one_line(error)}. Install them, copy a cache here, or use npz:FILE or folder:PATH."
        ) from error
    if keras.config.backend() != "tensorflow":
        # Or TensorFlow reserves the whole GPU. RuntimeError: it is already running.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    base = name.partition(":")[0]
    try:
        return tfds, tfds.builder(name, data_dir=data_dir)
    except _faults(tfds) as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        if base.split("/")[0] in known:
            raise DatasetError(
                f"{name!r} has no such version or config, or is damaged: {one_line(error)}."
            ) from error
        near = ", ".join(difflib.get_close_matches(base, known, 4) or known[:1])
        raise DatasetError(
            f"Unknown data set {name!r}. Nearest: {near}. Or use folder:PATH or npz:FILE."
        ) from error


def _faults(tfds):
    """Returns the types by which TFDS reports names, networks and files that it cannot use.

    All other types are bugs, of this kit or of a data set's code, and keep their traceback.
    """
    import tensorflow as tf
    from google.protobuf import json_format

    return (
        OSError,  # files and networks; requests and TFDS derive theirs from it
        ValueError,  # unknown names, configs and splits, damaged JSON
        AssertionError,  # unknown versions, files that the user must provide
        KeyError,  # unknown splits
        ImportError,  # packages that one data set needs
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        tarfile.TarError,
        tf.errors.OpError,  # damaged records
        json_format.ParseError,  # damaged dataset_info.json
        tfds.download.DownloadError,
        tfds.download.download_manager.NonMatchingChecksumError,
        tfds.download.extractor.ExtractError,
        tfds.download.extractor.UnsafeArchiveError,
    )


def _prepare(tfds, name, builder):
    try:
        if not builder.is_prepared():
            # TFDS checks for them only after its downloads.
            by_hand = builder.data_path.parents[builder.info.full_name.count("/")]
            by_hand = by_hand / "downloads" / "manual"
            if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not by_hand.exists():
                raise OSError(f"put the files that TFDS requires into {str(by_hand)!r}")
            _reach(next(iter(builder.url_infos or ()), ""))
            builder.download_and_prepare()
    except _faults(tfds) as error:
        raise DatasetError(
            f"{name!r} is not prepared and cannot be downloaded: {one_line(error)}. Prepare it "
            "with tfds.load where there is network and pass data_dir, or use npz:FILE or "
            "folder:PATH."
        ) from error


def _decode(name, data_dir, specs) -> Dataset:
    base = name.partition(":")[0]
    tfds, builder = _find(name, data_dir)
    image, label = _feature_keys(tfds, builder.info, base)
    _prepare(tfds, name, builder)
    splits = builder.info.splits
    default = "validation" if "validation" in splits and "test" not in splits else "test"
    specs = (*specs[:2], None if specs[2] == NO_TEST else specs[2] or default)
    parts = []
    for spec in specs:
        read = spec and _read_split(tfds, builder, spec, [image, label])
        if read:
            (images, labels), ids, keys = read
            read = Split(images, labels.astype(np.int32), ids, keys=keys)
        parts.append(read)
    class_names = builder.info.features[label].names
    flip = base.split("/")[0] not in _NO_FLIP
    return assemble(base, str(builder.version), class_names, parts, flip)


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
                f"{name!r} is not an image-classification data set: a feature {default!r} of type "
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
    """Raises OSError if `url` cannot be reached; TFDS itself retries for 200 s (measured)."""
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
    except _faults(tfds) as error:
        raise DatasetError(
            f"Cannot read the split {spec!r} of {builder.name!r}: {one_line(error)}. Available: "
            f"{', '.join(infos)}, and slices such as train[:90%]."
        ) from error
    columns = [np.concatenate(column) for column in zip(*batches, strict=True)]
    del batches  # 150 MB of CIFAR-10
    *columns, keys, texts = columns if "id" in keys else (*columns, [])
    texts = [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in texts]
    numbers = [int(end[0]) for end in (re.search(r"\d{1,18}$", text) for text in texts) if end]
    if len(set(numbers)) < len(keys):  # no `id`, no numbers, or duplicates
        starts = dict(zip(files, np.cumsum([0, *sizes]), strict=False))
        rows = (key.decode().rpartition("__") for key in keys)
        numbers = [starts[file] + int(row) for file, _, row in rows]
    ids = np.array(numbers, np.int64)
    order = np.argsort(ids, kind="stable")
    return [column[order] for column in columns], ids[order], keys[order]
