# SPDX-License-Identifier: Apache-2.0
"""CIFAR-N: CIFAR's training images as people labeled them, read without trusting the files.

[Wei et al., 2022](https://arxiv.org/abs/2110.12088) publish pickles. This is the only module that
unpickles. Its reader knows five names, all of them functions and classes of this file.
"""

import hashlib
import io
import pathlib
import pickle
import re
import zipfile

import numpy as np
from absl import logging

from ssl_noisy import files
from ssl_noisy.data import tfds_source
from ssl_noisy.data.dataset import Dataset, DatasetError
from ssl_noisy.errors import UserError

# By data set: each key in the published files and its other names. TFDS uses `noise_label`, the
# challenge's flags use the others.
KEYS = {
    "cifar10": {
        "aggre_label": ("aggre",),
        "worse_label": ("worse", "worst"),
        "random_label1": ("rand1", "random1"),
        "random_label2": ("rand2", "random2"),
        "random_label3": ("rand3", "random3"),
    },
    "cifar100": {"noisy_label": ("noise_label", "noisy100")},
}

_SIZE = 50_000
_MAX_BYTES = 64 * 2**20
_ORDERED = "CIFAR-100_human_ordered.npy"
_KNOWN = {
    "873e69c39cb9b5e97fb6bae2d60bb59b38a5cbc31d2b868f7903dcb2b9dd2310": "CIFAR-10_human.pt",
    "bd2d80409754d420292d622e15e25248ba21e37d27429efac49c8da723f44394": "CIFAR-100_human.pt",
    # That of the challenge. Its coarse labels are wrong, but nothing here reads them.
    "3ca5e261fcff3a50f5c19044daa342e6b5392eb0ef70c5b9761766f5f9c68192": "CIFAR-100_human.pt",
    "603b16e5f88f77a0db27ffe41b62cf59ba438da2b8bd4a085d502ad72e2b3dbf": _ORDERED,
}
# Equal images of CIFAR-100 that `_ordered.npy` confuses.
_TWINS = [[47806, 30418], [41874, 17688], [46752, 18461], [30931, 4348], [22657, 8599]]
_TWINS += [[31128, 9012], [32666, 20635]]


class CifarNError(UserError):
    """CIFAR-N labels that cannot be used. One line: what is required, what was received."""


def labels(
    key: str, dataset: Dataset, *, file=None, data_dir=None, compare: bool = True
) -> np.ndarray:
    """Returns the human labels of the examples of a data set.

    Examples are matched by published id, so any subset in any order gets its own labels.

    Args:
        key: CIFAR-10: `aggre_label` (the majority of three people), `worse_label` (a wrong
            label if any of the three is wrong), `random_label1` to `random_label3`.
            CIFAR-100: `noisy_label`. The names in `KEYS` are accepted as well.
        dataset: A `Dataset` named `cifar10...` or `cifar100...` whose ids are published indices.
        file: Published file, `CIFAR-10_human.pt` or `CIFAR-100_human.pt`, or one that holds
            arrays of 50,000 integers in the published order: an archive as torch.save writes it,
            or an .npy file (a dict of arrays, or the labels alone). A name that ends in
            `_ordered.npy` means the order of TFDS's files. By default TFDS's `cifar10_n` or
            `cifar100_n` is read.
        data_dir: Where TFDS prepares data.
        compare: Whether to compare the clean labels beside them with those of `dataset`. False
            uses no clean label.

    Returns:
        int32 labels of shape `(num_examples,)`.

    Raises:
        CifarNError: If there are no such labels, or if they belong to other examples: clean labels
            in the same file must equal those of `dataset`.
    """
    match = re.match("cifar100?", dataset.name)
    if not match:
        raise CifarNError(
            "CIFAR-N has labels of the training images of cifar10 and cifar100. Received: "
            f"another data set, {dataset.name!r}."
        )
    name, known = match[0], KEYS[match[0]]
    found = [own for own, others in known.items() if key == own or key in others]
    if not found:
        raise CifarNError(
            f"The label key of {name} must be one of {', '.join(known)}. Received: {key!r}."
        )
    if file is None:
        owner, ids, given, clean = _from_tfds(found[0], name, data_dir, compare)
    else:
        owner, ids = f"The label file {str(file)!r}", np.arange(_SIZE)
        given, clean = _from_file(owner, file, found[0], name)
    unknown = np.setdiff1d(dataset.ids, ids)
    if unknown.size:
        raise CifarNError(
            f"{owner} has no label of {unknown.size} examples, such as id {unknown[0]}, of "
            f"{dataset.name!r}. Use its training split or a part of it."
        )
    positions = np.searchsorted(ids, dataset.ids)
    wrong = 0 if clean is None or not compare else int((clean[positions] != dataset.labels).sum())
    if wrong:
        raise CifarNError(
            f"{owner} has labels of another data set than {dataset.name!r}: {wrong} of its "
            f"{len(positions)} clean labels differ."
        )
    return given[positions].astype(np.int32)


def _from_tfds(key, name, data_dir, with_clean=True):
    owner = f"{name}_n"
    feature = {"noisy_label": "noise_label"}.get(key, key)
    try:
        ids, given = tfds_source.load_feature(owner, feature, data_dir=data_dir)
        clean = None
        if with_clean:
            clean = tfds_source.load_feature(owner, "label", data_dir=data_dir)[1]
    except DatasetError as error:
        number = name.removeprefix("cifar")
        raise CifarNError(
            f"Pass the file CIFAR-{number}_human.pt with --cifarn_file, or fix this: {error}"
        ) from error
    return f"TFDS's {owner!r}", ids, given, clean


def _from_file(owner, path, key, name):
    """Returns the labels and, if the file holds them, the clean ones, in the published order."""
    path = pathlib.Path(path).expanduser()
    try:
        files.require_regular(path)
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        raw = path.read_bytes()
        checksum = hashlib.sha256(raw).hexdigest()
        if checksum not in _KNOWN and path.name in _KNOWN.values():
            raise ValueError(
                f"checksum mismatch: SHA-256 {checksum} is not that of the published file of this "
                "name; download it again, or rename this one to read it anyway"
            )
        columns = _arrays(raw, key)
    # pickle, zipfile and NumPy raise many types on damaged or malicious files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CifarNError(f"{owner} cannot be read: {reason[:300]}.") from error
    if checksum not in _KNOWN:
        logging.warning("%s is not a published file: its SHA-256 is %s.", owner, checksum)
    found = [columns[other] for other in (key, *KEYS[name][key]) if other in columns]
    if not found:
        there = ", ".join(map(repr, columns))
        raise CifarNError(f"{owner} has no labels {key!r}. It holds: {there}.")
    made, num_classes = [], int(name.removeprefix("cifar"))
    for values in (found[0], columns.get("clean_label")):
        if values is not None:
            integers = values.dtype.kind in "iu" and values.shape == (_SIZE,)
            if not integers or values.min() < 0 or values.max() >= num_classes:
                raise CifarNError(
                    f"{owner} must hold {_SIZE} integers in [0, {num_classes}) as {key!r} and "
                    f"clean_label. Received: {values.dtype} {values.shape}"
                    + (f", {values.min()} to {values.max()}." if integers else ".")
                )
            if _KNOWN.get(checksum, path.name).endswith("_ordered.npy"):
                ordered, values = values, np.empty_like(values)
                values[_file_order(name)] = ordered
        made.append(values)
    return made


def tfds_order(split, size):
    """Returns the published index of each example of CIFAR in the order in which TFDS keeps it.

    TFDS sorts examples by the MD5 hash of split and index. For `train` this equals the published
    `image_order_c10.npy`.

    Args:
        split: `train` or `test`.
        size: Number of its examples.

    Returns:
        int64 array of shape `(size,)`, a permutation.
    """
    names = (f"{split}{index}".encode() for index in range(size))
    keys = [hashlib.md5(name, usedforsecurity=False).digest() for name in names]
    return np.array(sorted(range(size), key=keys.__getitem__))


def _file_order(name):
    """Returns the published index of each example in the order of the `_ordered.npy` files.

    It is that of TFDS, but for seven pairs of equal images of CIFAR-100.
    """
    written = np.arange(_SIZE)
    if name == "cifar100":
        written[np.array(_TWINS)] = np.array(_TWINS)[:, ::-1]
    return written[tfds_order("train", _SIZE)]


def _arrays(raw, key):
    """Returns the arrays in the bytes of a .pt or .npy file, by key."""
    file = io.BytesIO(raw)
    if raw.startswith(np.lib.format.MAGIC_PREFIX):
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f".npy version {version}")
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        if read_header(file)[2] != np.dtype(object):
            return {key: np.load(io.BytesIO(raw), allow_pickle=False)}
    elif zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            found = [i for i in archive.infolist() if i.filename.split("/")[-1] == "data.pkl"]
            if len(found) != 1 or found[0].file_size > _MAX_BYTES:
                raise ValueError(f"one data.pkl of at most {_MAX_BYTES} bytes must be in it")
            file = io.BytesIO(archive.read(found[0]))
    else:
        raise ValueError("it is neither a zip archive, as torch.save writes it, nor an .npy file")
    content = _Reader(file).load()
    content = content.values if isinstance(content, _Array) else content
    content = content[0] if type(content) is list and len(content) == 1 else content
    if type(content) is not dict:
        raise ValueError(f"it must hold a dict of arrays, not {type(content).__name__}")
    pairs = ((k, v.values if isinstance(v, _Array) else v) for k, v in content.items())
    return {k: np.asarray(v) for k, v in pairs}


class _Type:
    """Stands in for a pickled dtype of numbers, or of objects."""

    __slots__ = ("code", "order")

    def __init__(self, code, *_):
        if not re.fullmatch("[iuf][1248]|b1|O8?", code):
            raise pickle.UnpicklingError(f"the type {code!r} is not allowed")
        self.code, self.order = code, "="

    def __setstate__(self, state):
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"the byte order {state[1]!r} is not allowed")
        self.order = state[1]

    def numbers(self, raw):
        return np.frombuffer(raw, self.order + self.code)  # refuses objects


class _Array:
    """Stands in for a pickled ndarray: `values` is an ndarray of numbers or a list of objects."""

    __slots__ = ("values",)

    def __setstate__(self, state):
        _, shape, kind, is_fortran, values = state
        if type(values) is not list:
            values = kind.numbers(values).reshape(shape, order="F" if is_fortran else "C")
        self.values = values


class _Reader(pickle.Unpickler):
    """Unpickles NumPy arrays of numbers and Python's own containers. It refuses everything else.

    A pickle can call only bound methods and classes with slots, on which it can store nothing.
    """

    def find_class(self, module, name):
        known = {
            ("numpy.core.multiarray", "_reconstruct"): self.reconstruct,
            ("numpy.core.multiarray", "scalar"): self.scalar,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
            ("_codecs", "encode"): self.encode,
        }
        # NumPy 2 renamed its `core`.
        found = known.get((module.replace("numpy._core.", "numpy.core."), name))
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it")
        return found

    def reconstruct(self, kind, *_):
        if kind is not _Array:
            raise pickle.UnpicklingError("arrays of other classes are not allowed in it")
        return _Array()

    def scalar(self, kind, raw):
        return kind.numbers(raw)[0]

    def encode(self, text, encoding):
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed in it")
        return text.encode("latin1")
