# SPDX-License-Identifier: Apache-2.0
"""Which examples are labeled: seeded draws, and label files that fix them across machines."""

import dataclasses
import hashlib
import json

import numpy as np

from ssl_noisy import files
from ssl_noisy.data.dataset import Dataset, fixed_shuffle
from ssl_noisy.errors import UserError

_STREAM = 0x1ABE1  # keeps the draw independent of other uses of the same seed
_AT_ONCE = 1024  # images in memory for a digest

DRAWS = ("balanced", "uniform", "first")


class BudgetError(UserError):
    """A number of labels that the data cannot provide."""


class LabelFileError(UserError):
    """A label file that is malformed or belongs to other data."""


@dataclasses.dataclass(frozen=True)
class LabelFile:
    """The content of a label file.

    Attributes:
        dataset: Name of the data set.
        version: Its version when the file was written; the checksum decides, not the version.
        indices: Increasing published ids of the labeled examples.
        num_labels: Length of `indices`.
        how: How they were drawn.
        seed: Seed of the draw.
        sha256: `digest` of the examples.
        corrections_sha256: `corrections.digest` of what a run changes in these labels. Empty, and
            not in the file, without corrections.
    """

    dataset: str
    version: str
    indices: tuple[int, ...]
    num_labels: int
    how: str
    seed: int
    sha256: str
    corrections_sha256: str = ""


def draw(
    labels, num_labels: int, *, num_classes: int, seed: int, how: str = "balanced"
) -> np.ndarray:
    """Draws the examples to label.

    The same arguments give the same examples on every machine and NumPy version. The draws of one
    seed are nested: a larger budget contains the smaller ones.

    Args:
        labels: Integer array of shape `(num_examples,)`, in `[-1, num_classes)`; -1 for examples
            without a label, which are not drawn.
        num_labels: Integer in `[1, n]`, where n is the number of examples with a label.
        num_classes: Positive integer.
        seed: Non-negative integer.
        how: `balanced`: equally many of each class; a remainder goes, one each, to classes
            that the seed chooses. `uniform`: any examples. `first`: the lowest positions.

    Returns:
        Increasing int64 positions of shape `(num_labels,)`.

    Raises:
        BudgetError: If the examples cannot be drawn.
    """
    labels = np.asarray(labels)
    if how not in DRAWS or seed < 0:
        raise BudgetError(
            f"how must be balanced, uniform or first, and seed >= 0. Received: {how!r}, {seed}."
        )
    known = np.flatnonzero(labels >= 0)
    if not 0 < num_labels <= len(known):
        raise BudgetError(f"num_labels must be in [1, {len(known)}]. Received: {num_labels}.")
    if how == "first":
        return known[:num_labels]
    order = fixed_shuffle(len(labels), [seed, _STREAM])
    order = order[labels[order] >= 0]
    if how == "uniform":
        return np.sort(order[:num_labels])
    each, extra = divmod(num_labels, num_classes)
    sizes = np.bincount(labels[known], minlength=num_classes)
    classes = fixed_shuffle(num_classes, [seed, _STREAM, 1])
    larger = classes[sizes[classes] > each]
    if not each or sizes.min() < each or len(larger) < extra:
        raise BudgetError(
            f"A balanced draw needs at least one label per class, here {each} of each of "
            f"{num_classes} classes and 1 more of {extra}. Received: num_labels={num_labels}, "
            f"classes of {sizes.min()} to {sizes.max()} examples. Use fewer, or how=uniform."
        )
    counts = each + np.isin(np.arange(num_classes), larger[:extra])
    drawn = [order[labels[order] == index][:count] for index, count in enumerate(counts)]
    return np.sort(np.concatenate(drawn))


def digest(dataset: Dataset, positions) -> str:
    """Returns the SHA-256, in hexadecimal, of the examples' ids, labels and pixels, by id."""
    positions = np.sort(np.asarray(positions, np.int64))
    total = hashlib.sha256(str(dataset.images.shape[1:]).encode())
    total.update(dataset.ids[positions].astype("<i8"))
    total.update(dataset.labels[positions].astype("<i4"))
    for start in range(0, len(positions), _AT_ONCE):  # they may be more than fit into memory
        total.update(dataset.images[positions[start : start + _AT_ONCE]])
    return total.hexdigest()


def write(
    path, dataset: Dataset, positions, *, how: str, seed: int, corrections_sha256: str = ""
) -> LabelFile:
    """Writes a label file, as JSON, atomically, and returns its content.

    Args:
        path: Path of the file. Missing folders are created.
        dataset: The `Dataset` that `positions` refer to.
        positions: Integer array of shape `(num_labels,)`, as from `draw`.
        how: How they were drawn, for the record.
        seed: Seed of the draw, for the record.
        corrections_sha256: As in `LabelFile`.
    """
    indices = tuple(np.sort(dataset.ids[np.asarray(positions, np.int64)]).tolist())
    sha256 = digest(dataset, positions)
    content = LabelFile(
        dataset.name, dataset.version, indices, len(indices), how, seed, sha256, corrections_sha256
    )
    written = dataclasses.asdict(content)
    if not corrections_sha256:
        del written["corrections_sha256"]
    with files.replacing(path) as file:
        file.write(json.dumps(written, indent=1).encode())
    return content


def corrections_sha256(path) -> str:
    """Returns that value of a label file; empty if there is none, or no readable file.

    It does not check the file: `read` does.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return str(json.load(file).get("corrections_sha256", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def read(path, dataset: Dataset) -> tuple[np.ndarray, LabelFile]:
    """Reads a label file and finds its examples in `dataset` by their published ids.

    `folder:` and `npz:` data may have moved: the checksum tells whether they are the same.

    Args:
        path: Path of the file.
        dataset: The `Dataset` to find the examples in; its training split may be a smaller one.

    Returns:
        `(positions, content)`: increasing int64 positions of shape `(num_labels,)`, and the
        `LabelFile`.

    Raises:
        LabelFileError: If the file cannot be read, is malformed, or belongs to other data.
    """
    owner, fields = f"The label file {str(path)!r}", dataclasses.fields(LabelFile)
    names = [field.name for field in fields if field.default is dataclasses.MISSING]
    try:
        files.require_regular(path)
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        content = LabelFile(**{name: content[name] for name in names})
        for name in ("dataset", "version", "how", "sha256"):
            if not isinstance(getattr(content, name), str):
                raise ValueError(f"{name} must be a string, and is {getattr(content, name)!r}")
        if type(content.seed) is not int or content.seed < 0:
            raise ValueError(f"seed must be an integer >= 0, and is {content.seed!r}")
        ids = np.array(content.indices)
        if ids.dtype != np.int64 or ids.shape != (content.num_labels,) or not ids.size:
            raise ValueError(f"indices must be num_labels={content.num_labels!r} integers")
        if len(np.unique(ids)) < len(ids):
            raise ValueError(f"{len(ids) - len(np.unique(ids))} duplicate indices")
    except KeyError as error:
        raise LabelFileError(f"{owner} must hold {', '.join(names)}. Missing: {error}.") from error
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise LabelFileError(f"{owner} cannot be used: {error}. Regenerate the file.") from error
    ids = np.sort(ids)
    content = dataclasses.replace(content, indices=tuple(ids.tolist()))
    # A path does not identify data: of folder:PATH and npz:FILE only the kind must agree.
    kinds = [name.split(":")[0] for name in (str(content.dataset), dataset.name)]
    if kinds[0] != kinds[1]:
        raise LabelFileError(
            f"{owner} is for {content.dataset!r}. Received: {dataset.name!r}. Use its own data set."
        )
    unknown = np.setdiff1d(ids, dataset.ids)
    if unknown.size:
        raise LabelFileError(
            f"{owner} has {unknown.size} indices, such as {unknown[0]}, that are not in the "
            f"training split of {dataset.name!r}. Use the split for which it was written."
        )
    positions = np.searchsorted(dataset.ids, ids)
    unlabeled = int((dataset.labels[positions] < 0).sum())
    if unlabeled:
        raise LabelFileError(
            f"{owner} names {unlabeled} examples without a label in {dataset.name!r}. Use it with "
            "the labels for which it was written."
        )
    if digest(dataset, positions) != content.sha256:
        raise LabelFileError(
            f"{owner} was written for other examples than those of {dataset.name!r} version "
            f"{dataset.version}: the checksum differs. Use version {content.version} unchanged."
        )
    return positions, content
