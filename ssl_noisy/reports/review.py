# SPDX-License-Identifier: Apache-2.0
"""The review of suspicious labels: the rows, their evidence, and small pictures of the worst."""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import math
import os
import urllib.parse

import numpy as np
from PIL import Image

from ssl_noisy.data import corrections

MOST_THUMBNAILS = 2000
SIDE = 64  # pixels of a thumbnail, at most
LOSSLESS_PIXELS = 2**18  # WebP blurs the borders of tiny pictures; up to here it need not
QUALITY = 80

# The columns of examples.csv that are evidence, and the significant digits to keep.
EVIDENCE = ("label_quality", "mean_loss", "probability_margin", "aum", "agreement")
DIGITS = 4


def make(run, data, output):
    """Returns what the review page needs, a dict for JSON; None without a record.

    Args:
        run: A `collect.Run`.
        data: Its `collect.Data`.
        output: Path of the report. Pictures that are not in it are named relative to it.

    Returns:
        A dict: `key`, the column that names an example; `id`, which identifies the labels of the
        run; `classes`; `columns`, lists of equal length, the most suspicious label first;
        `thumbnails`, see `sprite`, or None; `pictures`, the URL of the folder of the data set, or
        None; `earlier`, pairs of example and label; `remove`, the word that leaves an example out,
        or None if a class has this name.
    """
    examples = run.examples
    if examples is None:
        return None
    order = np.argsort(examples["label_quality"], kind="stable")  # NaN comes last
    columns = {
        "example": examples[run.key][order].tolist(),
        "given": examples["given_label"][order].tolist(),
        "predicted": examples["predicted_label"][order].tolist(),
        "issue": examples["is_label_issue"][order].astype(int).tolist(),
    }
    columns |= {name: [_short(v) for v in examples[name][order].tolist()] for name in EVIDENCE}
    for name in ("observations", "wrong_predictions", "last_correct"):
        columns[name] = examples[name][order].tolist()
    return {
        "key": run.key,
        "id": _identity(examples),
        "classes": list(run.class_names),
        "columns": columns,
        "thumbnails": _thumbnails(data.dataset, examples["index"][order]),
        "pictures": _folder_url(run, columns["example"], output),
        "earlier": [list(pair) for pair in data.earlier],
        "remove": None if corrections.REMOVE in run.class_names else corrections.REMOVE,
    }


def packed(content):
    """Returns JSON, compressed with gzip, in base64: 50,000 rows take 1 MB instead of 4."""
    return compressed(json.dumps(content, separators=(",", ":"), ensure_ascii=False))


def compressed(text):
    """Returns text in UTF-8, compressed with gzip, in base64."""
    # Without a time, so the same run makes the same file.
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _short(value):
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def _identity(examples):
    """The same for the same labels and evidence, wherever the run lies."""
    digest = hashlib.sha256()
    for name in ("index", "given_label", "predicted_label", "label_quality"):
        digest.update(np.ascontiguousarray(examples[name]).tobytes())
    return digest.hexdigest()[:16]


def _thumbnails(dataset, ids):
    if dataset is None:
        return None
    positions = np.searchsorted(dataset.ids, ids[:MOST_THUMBNAILS])
    return sprite(dataset.images[positions]) if len(positions) else None


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How pictures lie in a sprite: row by row.

    Attributes:
        count: The number of pictures.
        columns: How many are in a row.
        width, height: Pixels of a picture.
    """

    count: int
    columns: int
    width: int
    height: int


def sprite(images):
    """Puts pictures into one WebP picture.

    Args:
        images: uint8 array `(n, height, width, channels)`, 1 or 3 channels.

    Returns:
        A dict: the fields of `Tiling`, and `url`, a data URL.
    """
    count, height, width, _ = images.shape
    scale = min(1, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    tiling = Tiling(count, math.ceil(math.sqrt(count)), *size)
    rows = math.ceil(count / tiling.columns)
    mode = "L" if images.shape[-1] == 1 else "RGB"
    whole = Image.new(mode, (tiling.columns * size[0], rows * size[1]))
    for number, image in enumerate(images):
        tile = Image.fromarray(np.asarray(image).squeeze(-1) if mode == "L" else np.asarray(image))
        if scale < 1:
            tile = tile.resize(size, Image.Resampling.LANCZOS)
        row, column = divmod(number, tiling.columns)
        whole.paste(tile, (column * size[0], row * size[1]))
    buffer = io.BytesIO()
    is_lossless = whole.width * whole.height <= LOSSLESS_PIXELS
    whole.convert("RGB").save(buffer, "WEBP", lossless=is_lossless, quality=QUALITY)
    return {**dataclasses.asdict(tiling), "url": data_url(buffer.getvalue(), "image/webp")}


def data_url(content, kind):
    """Returns a file's bytes as a URL that contains them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _folder_url(run, names, output):
    """Returns the URL, relative to the report, of the folder that the names of files start at."""
    if run.key != "file" or run.settings is None:
        return None
    kind, _, path = run.settings.dataset.partition(":")
    root = path if kind == "folder" else os.path.dirname(path)
    if kind not in ("folder", "csv") or not os.path.exists(os.path.join(root, names[0])):
        return None
    return urllib.parse.quote(os.path.relpath(root, os.path.dirname(os.path.abspath(output))))
