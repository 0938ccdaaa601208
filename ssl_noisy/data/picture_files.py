# SPDX-License-Identifier: Apache-2.0
"""Data sets made of picture files: a folder, or a table of files and labels."""

import collections
import csv
import os
import pathlib

import numpy as np

from ssl_noisy import files
from ssl_noisy.data import decoded
from ssl_noisy.data.dataset import Contents, DatasetError, Split
from ssl_noisy.errors import one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".avif", ".ppm", ".pgm")
SUFFIXES += (".pbm", ".tif", ".tiff")
SPLITS = ("train", "unlabeled", "test", "validation")
_FOLDERS = {"val": "validation", **{name: name for name in SPLITS}}
_MOST_NAMED = 20  # files that a message names


class Listing:
    """The files of a data set by split, with the name of the class of each, or None.

    Args:
        owner: What holds the files, for messages.
    """

    def __init__(self, owner):
        self.owner = owner
        self.rows = {split: [] for split in SPLITS}
        self.notes = []

    def add(self, split, file, class_name=None):
        """Adds a `decoded.File` to a split."""
        self.rows[split].append((file, class_name))

    def class_names(self, needs_labels=True):
        """Returns the sorted names of the classes of `train`.

        Args:
            needs_labels: Whether there must be any in `train`. If not, and there are none, the
                classes are those of the test and validation pictures.

        Raises:
            DatasetError: If there are no training pictures, or another split has other classes.
        """
        names = {
            split: {name for _, name in rows if name is not None}
            for split, rows in self.rows.items()
        }
        if not needs_labels and self.rows["unlabeled"] and not names["train"]:
            return sorted(names["test"] | names["validation"])
        if not names["train"]:
            raise DatasetError(
                f"{self.owner} must have labeled pictures in train. Received: none. Pictures end "
                f"in {', '.join(SUFFIXES)}."
            )
        for split in ("test", "validation"):
            unknown = sorted(names[split] - names["train"])
            if unknown:
                raise DatasetError(
                    f"{self.owner} must have each class of {split} in train, too. Received: "
                    f"{named(unknown)} in {split} alone. Add training pictures of it, or remove "
                    f"it from {split}."
                )
        if len(names["train"]) < 2:
            raise DatasetError(
                f"{self.owner} must have at least 2 classes. Received: one, "
                f"{min(names['train'])!r}. Give each class a name of its own."
            )
        return sorted(names["train"])

    def contents(self, options):
        """Decodes the files and returns the `Contents` of the data set."""
        class_names = self.class_names(options.needs_labels)
        rows = [(split, *row) for split in SPLITS for row in self.rows[split]]
        splits, listed, names = zip(*rows)
        pictures = decoded.decode(listed, options)
        self._check_readable(listed, pictures.unreadable, options)
        numbers = {name: number for number, name in enumerate(class_names)} | {None: -1}
        labels = np.array([numbers[name] for name in names], np.int32)
        readable = np.ones(len(listed), bool)
        readable[list(pictures.unreadable)] = False
        parts = np.array(["train" if split == "unlabeled" else split for split in splits])
        self._note(pictures, listed, parts, names, options)
        found = {}
        for split in dict.fromkeys(parts.tolist()):
            where = np.flatnonzero(parts == split)  # a slice: the files are in order of the splits
            whole = slice(where[0], where[-1] + 1)
            known = tuple(file.name for file in listed[whole])
            one = Split(pictures.images[whole], labels[whole], np.arange(len(where)), known)
            found[split] = one.take(np.flatnonzero(readable[whole]))
        version = decoded.digest(pictures.key, class_names, parts.tolist(), labels.tolist())
        unreadable = {listed[row].name: reason for row, reason in pictures.unreadable.items()}
        return Contents(class_names, found, version, tuple(self.notes), unreadable, options.fit)

    def _check_readable(self, listed, unreadable, options):
        if unreadable and not options.skip_unreadable:
            found = [f"{listed[row].name} ({reason})" for row, reason in unreadable.items()]
            raise DatasetError(
                f"{self.owner} has {len(found)} unreadable pictures among {len(listed)}: "
                f"{named(found)}. Repair or remove them, or pass --skip_unreadable to ignore them."
            )

    def _note(self, pictures, listed, parts, names, options):
        height, width = pictures.images.shape[1:3]
        if pictures.natural != (height, width):
            how = "" if options.size else " (chosen automatically; --image_size changes it)"
            before = "different sizes" if pictures.natural is None else "another size"
            self.notes.append(
                f"Pictures of {before} were resized to {height}x{width} pixels with "
                f"--fit={options.fit}{how}."
            )
        if pictures.unreadable:
            found = [f"{listed[row].name} ({why})" for row, why in pictures.unreadable.items()]
            self.notes.append(f"Skipped {len(found)} unreadable pictures: {named(found, 3)}.")
        across, contradicting, same = [], [], []
        for group in pictures.duplicates:
            group = [row for row in group if row not in pictures.unreadable]
            if len(group) < 2:
                continue
            text = " = ".join(listed[row].name for row in group)
            kinds = {names[row] for row in group} - {None}
            (across if len({parts[row] for row in group}) > 1 else []).append(text)
            (contradicting if len(kinds) > 1 else []).append(text)
            same.append(text)
        for found, what in (
            (across, "in two splits, which may inflate the test accuracy"),
            (contradicting, "with different labels"),
            (same if not (across or contradicting) else [], "in one class"),
        ):
            if found:
                self.notes.append(
                    f"Identical files {what} (groups: {len(found)}): {named(found, 3)}."
                )


def folder(path, options):
    """Reads `PATH/train/CLASS/*`, and `unlabeled`, `test` and `validation` beside `train`.

    Without a folder `train`, the folders in `PATH` are the classes. If no labels are needed, `PATH`
    may have pictures alone.

    Args:
        path: Path of a folder.
        options: The `decoded.Options`.

    Returns:
        A `Contents`. Ids are positions in the sorted list of the files of `train`, followed by
        those of `unlabeled`.
    """
    root = pathlib.Path(path).expanduser()
    listing = Listing(f"The folder {str(root)!r}")
    if not root.is_dir():
        raise DatasetError(
            f"{listing.owner} must contain train/CLASS/*.png, jpg ... Received: "
            f"{'a file' if root.exists() else 'no such folder'}. Check the path."
        )
    known = {name: root / name for name in _FOLDERS if (root / name).is_dir()}
    places = dict(known)
    if "train" not in places:
        places["train"] = root
    ignored, loose = [], []
    for name, place in places.items():
        split, prefix = _FOLDERS[name], "" if place == root else f"{name}/"
        for path in walk(place, skipped=set(known) if place == root else ()):
            class_name, slash, _ = path.partition("/")
            if not is_picture(path) or (split != "unlabeled" and not slash):
                (loose if place == root and is_picture(path) else ignored).append(prefix + path)
                continue
            one = decoded.File(prefix + path, f"{place}/{path}")
            listing.add(split, one, None if split == "unlabeled" else class_name)
        if split != "unlabeled" and (listing.rows[split] or options.needs_labels):
            _check_classes(listing, split, place, known if place == root else ())
    if options.needs_labels or listing.rows["train"]:
        ignored += loose
    else:
        for path in loose:
            listing.add("unlabeled", decoded.File(path, f"{root}/{path}"))
    if ignored:
        listing.notes.append(
            f"Ignored {len(ignored)} files that are not pictures in the folder of a class: "
            f"{named(sorted(ignored), 3)}."
        )
    return listing.contents(options)


def _check_classes(listing, split, place, skipped):
    """Raises the error of the folder of a class without pictures."""
    with_pictures = {name for _, name in listing.rows[split]}
    folders = {entry.name for entry in os.scandir(place) if entry.is_dir()} - set(skipped)
    empty = sorted(name for name in folders - with_pictures if not name.startswith((".", "__")))
    if empty and (split == "train" or not with_pictures):
        raise DatasetError(
            f"{listing.owner} must have pictures in the folder of each class. Received: none in "
            f"{split}/{named(empty)}. Add some, or remove the folder. Pictures end in "
            f"{', '.join(SUFFIXES)}."
        )


def is_picture(path):
    """Returns whether the name of a file ends as that of a picture."""
    return path.lower().endswith(SUFFIXES)


def walk(place, skipped=()):
    """Returns the sorted paths of the files below a folder, without hidden ones.

    Links are followed once. Paths are relative strings: a `pathlib.Path` for each of 20,000 files
    takes two seconds, in which the pictures could have been read from the cache.

    Args:
        place: Path of the folder.
        skipped: Names of folders in it to leave out.
    """
    found, seen = [], set()
    for top, folders, names in os.walk(place, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        inside = os.path.relpath(top, place)
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__")) and not (inside == "." and name in skipped)
        ]
        prefix = "" if inside == "." else f"{inside}/"
        found += [prefix + name for name in names if not name.startswith(".")]
    return sorted(found)


def table(path, options):
    """Reads a CSV file with the columns `file`, `label` and perhaps `split`.

    A row without a label is unlabeled. Paths are relative to the folder of the file. `split` is
    `train`, which is the default, `test` or `validation`.

    Args:
        path: Path of the CSV file.
        options: The `decoded.Options`.

    Returns:
        A `Contents`. Ids are positions among the training rows, first those with a label.
    """
    path = pathlib.Path(path).expanduser()
    listing = Listing(f"The table {str(path)!r}")
    missing, seen = [], collections.Counter()
    for number, row in enumerate(read_csv(path, ("file", "label"), listing.owner), 2):
        name, label = row["file"], row["label"] or None
        split = (row.get("split") or "train").lower()
        if split not in SPLITS:
            raise DatasetError(
                f"{listing.owner} must have a split of {', '.join(SPLITS)} in each row. Received: "
                f"{row['split']!r} in line {number}. Correct it, or leave it empty for train."
            )
        if split in ("test", "validation") and label is None:
            raise DatasetError(
                f"{listing.owner} must have a label in each row of {split}. Received: none for "
                f"{name!r} in line {number}. Add it, or move the picture to train."
            )
        seen[name] += 1
        place = path.parent / name
        if not place.is_file():
            missing.append(name)
        unlabeled = split == "unlabeled" or (split == "train" and label is None)
        listing.add(
            "unlabeled" if unlabeled else split,
            decoded.File(name, str(place)),
            None if unlabeled else label,
        )
    repeated = [name for name, count in seen.items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{listing.owner} must name each file once. Received: {len(repeated)} of them several "
            f"times: {named(repeated)}. Remove the other rows."
        )
    if missing:
        raise DatasetError(
            f"{listing.owner} names {len(missing)} files that do not exist: {named(missing)}. "
            f"Paths are relative to {str(path.parent)!r}. Correct or remove these rows."
        )
    return listing.contents(options)


def read_csv(path, required, owner):
    """Returns the rows of a CSV file as a list of dicts of text without spaces around it.

    Args:
        path: Path of the file, in UTF-8.
        required: Names of columns that it must have. The first one must not be empty in any row.
        owner: What the file is, for messages.

    Raises:
        DatasetError: If it cannot be read.
    """
    try:
        files.require_regular(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            absent = [name for name in required if name not in header]
            if absent:
                raise ValueError(
                    f"no column {' and no column '.join(absent)} in its first line, which is "
                    f"{','.join(header)!r}"
                )
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} has not {len(header)} columns")
                rows.append({name: text.strip() for name, text in row.items()})
                if not rows[-1][required[0]]:
                    raise ValueError(f"line {reader.line_num} has an empty {required[0]}")
        if not rows:
            raise ValueError("it has no rows")
        return rows
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{owner} must be in UTF-8. Received: {one_line(error)}. Save it as UTF-8."
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError(
            f"{owner} must be a CSV file with the columns {', '.join(required)}. Received: "
            f"{getattr(error, 'strerror', None) or one_line(error)}. Correct the file."
        ) from error


def named(names, most=_MOST_NAMED):
    """Returns the first of the names, and how many more there are, as text."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
