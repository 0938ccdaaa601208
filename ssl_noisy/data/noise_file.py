# SPDX-License-Identifier: Apache-2.0
"""Noise files: they fix which labels were drawn, and for which examples."""

import hashlib
import pathlib

import numpy as np

from ssl_noisy import files
from ssl_noisy.data import label_budget
from ssl_noisy.data.dataset import Dataset
from ssl_noisy.data.noise_models import Noise, NoiseError, transition_counts


def write(path, dataset: Dataset, positions, noise: Noise):
    """Writes a noise file, an .npz without pickles, atomically.

    It stores the given labels and the counts of true and given classes, but no true labels.

    Args:
        path: Path of the file. Missing folders are created.
        dataset: The `Dataset` that `positions` refer to.
        positions: Increasing integer positions of the examples, in the order of the noise.
        noise: Their `Noise`.
    """
    positions = np.asarray(positions)
    true_labels, given_labels = dataset.labels[positions], noise.given_labels
    content = {
        "ids": dataset.ids[positions],
        "given_labels": given_labels,
        "definition": noise.definition,
        "seed": noise.seed,
        "draw": noise.draw,
        "transition_counts": transition_counts(true_labels, given_labels, dataset.num_classes),
        "dataset": dataset.name,
        "version": dataset.version,
        "examples_sha256": label_budget.digest(dataset, positions),
        "image_hashes": _hashes(dataset.images, positions),
    }
    with files.replacing(path) as file:
        np.savez(file, **content, sha256=_checksum(content))


def read(path, dataset: Dataset, positions) -> Noise:
    """Reads the noise of examples from a noise file, which may contain more examples.

    Args:
        path: Path of the file.
        dataset: The `Dataset` that `positions` refer to.
        positions: Increasing integer positions of the examples.

    Returns:
        Their `Noise`, with the definition, seed and draw of the file.

    Raises:
        NoiseError: If the file cannot be read, is malformed, or was written for other examples:
            each image must be the same, and so must the true labels as a whole.
    """
    owner, num_classes = f"The noise file {str(path)!r}", dataset.num_classes
    try:
        content = files.read_npz(pathlib.Path(path).expanduser())
        if content.pop("sha256") != _checksum(content):
            raise ValueError("checksum mismatch: it is damaged or was edited")
        ids, given_labels, hashes = (content[n] for n in ("ids", "given_labels", "image_hashes"))
        columns = (ids, given_labels, hashes)
        if any(c.shape != (len(ids),) or c.dtype.kind not in "iu" for c in columns):
            raise ValueError(f"{ids.shape} ids and {given_labels.shape} labels, or no integers")
        if (ids[1:] <= ids[:-1]).any():
            raise ValueError("its ids must increase")
        if given_labels.min() < 0 or given_labels.max() >= num_classes:
            found = f"{given_labels.min()} to {given_labels.max()}"
            raise ValueError(f"its labels must be in [0, {num_classes}) and are {found}")
        origin = [content[name].item() for name in ("definition", "seed", "draw")]
        if [type(value) for value in origin] != [str, int, str] or origin[1] < 0:
            raise ValueError(f"its definition, seed and draw cannot be {origin}")
        whole = content["examples_sha256"].item()
    # LookupError, TypeError: arrays that are missing, have no length or another shape.
    except (ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise NoiseError(f"{owner} cannot be used: {reason}. Regenerate the file.") from error
    positions = np.asarray(positions)
    wanted = dataset.ids[positions]
    missing = np.setdiff1d(wanted, ids)
    if missing.size:
        raise NoiseError(
            f"{owner} must contain all {len(wanted)} labeled examples. Missing: {missing.size}, "
            f"such as id {missing[0]}. Write a file for these examples, or label those it contains."
        )
    rows = np.searchsorted(ids, wanted)
    others = int((hashes[rows] != _hashes(dataset.images, positions)).sum())
    relabeled = len(ids) == len(wanted) and whole != label_budget.digest(dataset, positions)
    if others or relabeled:
        raise NoiseError(
            f"{owner} was written for other data than {dataset.name!r}: {others} of "
            f"{len(wanted)} images{'' if others else ', but true labels,'} differ."
        )
    return Noise(given_labels[rows].astype(np.int32), *origin)


def _hashes(images, positions):
    """Returns 8 bytes of the SHA-256 of each image at `positions`: 0.1 s for CIFAR."""
    found = (np.ascontiguousarray(images[position]) for position in positions)
    starts = [hashlib.sha256(image).digest()[:8] for image in found]
    return np.frombuffer(b"".join(starts), "<u8")


def _checksum(content):
    total = hashlib.sha256()
    for name, value in sorted(content.items()):
        value = np.asarray(value)
        total.update(f"{name} {value.dtype.str} {value.shape}".encode())
        total.update(value.tobytes())
    return total.hexdigest()
