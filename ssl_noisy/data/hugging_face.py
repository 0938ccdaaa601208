# SPDX-License-Identifier: Apache-2.0
"""Data sets of the Hugging Face Hub, or saved by `datasets`, which only this module imports."""

import functools
import os

from ssl_noisy.data import decoded
from ssl_noisy.data.dataset import DatasetError
from ssl_noisy.data.picture_files import SPLITS, Listing
from ssl_noisy.errors import one_line


def read(name, options):
    """Reads an image-classification data set.

    Args:
        name: Name on the Hub, or path of a folder that `save_to_disk` wrote. It has a feature of
            type `Image`, and one of type `ClassLabel` or text; None and -1 mean unlabeled.
        options: The `decoded.Options`.

    Returns:
        A `Contents`. Ids are positions in `train`, those with a label first; a split `unlabeled`
        follows.
    """
    data = _load(name)
    listing = Listing(f"The Hugging Face data set {name!r}")
    known = {"val": "validation", "valid": "validation", **{split: split for split in SPLITS}}
    for split, part in data.items():
        if split not in known:
            listing.notes.append(
                f"Ignored the split {split!r}: a data set has the splits {', '.join(SPLITS)}."
            )
            continue
        split = known[split]
        image, label = _features(listing.owner, part)
        part = part.cast_column(image, type(part.features[image])(decode=False))
        names = _class_names(part, label) if split != "unlabeled" else [None] * len(part)
        for row, class_name in enumerate(names):
            file = decoded.File(f"{split}/{row}", load=functools.partial(_bytes, part, image, row))
            is_unlabeled = split == "train" and class_name is None
            listing.add("unlabeled" if is_unlabeled else split, file, class_name)
    return listing.contents(options)


def _load(name):
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"'hf:' needs the package datasets: {error}. Install it: pip install 'ssl_noisy[hf]'."
        ) from error
    path = os.path.expanduser(name)
    try:
        data = datasets.load_from_disk(path) if os.path.isdir(path) else datasets.load_dataset(name)
    except Exception as error:  # those of several HTTP and file libraries
        raise DatasetError(
            f"The Hugging Face data set {name!r} cannot be loaded: {one_line(error)}. Check its "
            "name and the connection, or save it where there is a network with "
            "load_dataset(NAME).save_to_disk(PATH) and use hf:PATH."
        ) from error
    return dict(data) if isinstance(data, dict) else {"train": data}


def _features(owner, part):
    """Returns the names of the image and of the label."""
    import datasets

    images = [key for key, kind in part.features.items() if isinstance(kind, datasets.Image)]
    labels = [
        key
        for key, kind in part.features.items()
        if isinstance(kind, datasets.ClassLabel) or getattr(kind, "dtype", "") == "string"
    ]
    labels.sort(key=lambda key: (key != "label", part.features[key] != "string"))
    if not images or not labels:
        raise DatasetError(
            f"{owner} must have a feature of type Image and one of type ClassLabel or string. "
            f"Received: {', '.join(part.features)}. Convert it with cast_column, for example "
            "cast_column('label', ClassLabel(names=[...]))."
        )
    return images[0], labels[0]


def _class_names(part, label):
    kind, values = part.features[label], part[label]
    if not hasattr(kind, "int2str"):
        return [value or None for value in values]
    return [None if value in (None, -1) else kind.int2str(value) for value in values]


def _bytes(part, image, row):
    content = part[row][image]
    if content["bytes"] is not None:
        return content["bytes"]
    with open(content["path"], "rb") as file:
        return file.read()
