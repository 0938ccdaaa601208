# SPDX-License-Identifier: Apache-2.0
"""images.csv: what a training showed about each image, labeled or not."""

import csv
import io
import os

import numpy as np

from ssl_noisy import files
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs import folder


def write(run_dir, dataset, statistics):
    """Writes a row per training image, atomically: index, file and the statistics.

    Args:
        run_dir: Path of the run folder.
        dataset: The `Dataset`.
        statistics: Dict from name to float array `(num_examples,)`, NaN where unknown.
    """
    columns = {"index": dataset.ids.tolist(), "file": dataset.files or [""] * len(dataset.ids)}
    columns |= {name: values.tolist() for name, values in statistics.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # Only NaN differs from itself. csv writes floats with repr, which is exact.
    rows = zip(*columns.values())
    writer.writerows(["" if cell != cell else cell for cell in row] for row in rows)
    folder.write_text(run_dir, folder.IMAGES, text.getvalue())


def read(run_dir, dataset):
    """Reads the `images.csv` of a run.

    Args:
        run_dir: Path of the run folder.
        dataset: The `Dataset` of the run, perhaps before its corrections or another split of it.

    Returns:
        What was written, NaN for an image that is not in the file, or None if the run has no such
        file.

    Raises:
        UserError: If the file is damaged.
    """
    path = os.path.join(run_dir, folder.IMAGES)
    if not os.path.exists(path):
        return None
    try:
        files.require_regular(path)
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        ids = np.array([int(row.pop("index")) for row in rows], np.int64)
        if (np.diff(ids) <= 0).any():
            raise ValueError("its indices do not increase")
        names = [name for name in rows[0] if name != "file"]
        values = {name: [float(row[name] or "nan") for row in rows] for name in names}
    except (OSError, ValueError, TypeError, LookupError, csv.Error) as error:
        raise UserError(
            f"Cannot read {path}: {one_line(error)}. Delete {folder.RESULT} beside it and run the "
            "same training again to restore it."
        ) from error
    _, here, there = np.intersect1d(dataset.ids, ids, return_indices=True)
    found = {name: np.full(len(dataset.ids), np.nan) for name in values}
    for name, column in values.items():
        found[name][here] = np.array(column)[there]
    return found
