# SPDX-License-Identifier: Apache-2.0
"""Many picture files at once: decoded on all cores, into a memory-mapped cache.

An entry of the cache belongs to the content of the files. It is found without reading them as long
as their paths, sizes and times of change are the same.
"""

import collections
import collections.abc
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import warnings
import zlib

import numpy as np
from absl import logging

from ssl_noisy import cache, files, machine
from ssl_noisy.data import pictures
from ssl_noisy.data.dataset import DatasetError
from ssl_noisy.errors import one_line

_MANY = 1000  # pictures worth a progress bar
_CHUNK = 64  # pictures between two updates of the bar; what is in memory at once


@dataclasses.dataclass(frozen=True)
class Options:
    """How a user wants picture files to be read.

    Attributes:
        size: `(height, width)`, or None to choose it.
        fit: One of `pictures.FITS`.
        skip_unreadable: Whether to leave out files that are damaged.
        cache_dir: Folder of decoded data, see `cache.folder`.
        needs_labels: Whether there must be labels. If not, they may all be missing.
    """

    size: tuple[int, int] | None = None
    fit: str = "crop"
    skip_unreadable: bool = False
    cache_dir: str | None = None
    needs_labels: bool = True


@dataclasses.dataclass(frozen=True)
class File:
    """A picture to read.

    Attributes:
        name: What the user knows it by, such as its path relative to the data.
        path: Its path, or None.
        load: Function that returns its bytes, if there is no path.
    """

    name: str
    path: str | None = None
    load: collections.abc.Callable | None = None

    def read(self):
        """Returns the bytes."""
        if self.path is None:
            return self.load()
        files.require_regular(self.path)
        with open(self.path, "rb") as file:
            return file.read()


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """Pictures in one form.

    Attributes:
        images: uint8 array `(n, height, width, channels)`, in the order of the files. The rows of
            unreadable files are black.
        key: Text that identifies the content of the files and their form.
        unreadable: Dict from position to the reason.
        duplicates: List of lists of positions: files with the same bytes.
        natural: `(height, width)` of all files, or None if their sizes differ.
    """

    images: np.ndarray
    key: str
    unreadable: dict
    duplicates: list
    natural: tuple | None


def decode(listed, options):
    """Decodes all files, or finds them in the cache.

    Args:
        listed: Sequence of `File`.
        options: The `Options`.

    Returns:
        A `Decoded`.

    Raises:
        DatasetError: If no file is a picture, or if they fit neither into the cache nor into
            memory.
    """
    folder = pathlib.Path(cache.folder(options.cache_dir), "pictures")
    signature = _signature(listed, options)
    known = folder / f"{signature}.json"
    found = signature and _cached(folder, known)
    if found:
        return found
    measured = _each(listed, _measured, "Reading")
    content = hashlib.sha256(repr((options.size, options.fit)).encode())
    for file, (digest, _) in zip(listed, measured):
        content.update(f"{file.name}\0{digest}\0".encode(errors="surrogateescape"))
    key = content.hexdigest()[:16]
    found = _cached(folder, folder / f"{key}.json")
    if found is None:
        found = _decode(listed, measured, key, options, folder)
    if signature:
        _write_json(known, {"content": key})
    return found


def _decode(listed, measured, key, options, folder):
    sizes = np.array([size[:2] for _, size in measured if not isinstance(size, str)])
    if not len(sizes):
        first = f"{listed[0].name!r} ({measured[0][1]})"
        raise DatasetError(f"None of {len(listed)} files is a readable picture, such as {first}.")
    natural = tuple(map(int, sizes[0])) if len(np.unique(sizes, axis=0)) == 1 else None
    is_gray = all(size[2] for _, size in measured if not isinstance(size, str))
    form = pictures.Format(
        *(options.size or pictures.automatic_size(sizes)), 1 if is_gray else 3, options.fit
    )
    shape = (len(listed), form.height, form.width, form.channels)
    reasons = {n: size for n, (_, size) in enumerate(measured) if isinstance(size, str)}
    groups = collections.defaultdict(list)
    for position, (digest, _) in enumerate(measured):
        groups[digest].append(position)
    info = {"duplicates": [group for group in groups.values() if len(group) > 1]}
    info["natural"] = natural
    try:
        with files.replacing_path(folder / f"{key}.npy") as path:
            images = _allocate(path, shape)
            reasons |= _fill(images, listed, form, reasons)
            images.flush()
        info |= {"unreadable": sorted(reasons.items()), "crc32": _crc32(images)}
        images.setflags(write=False)  # later writes would change the cache
        _write_json(folder / f"{key}.json", info)
    except files.WriteError as error:
        logging.warning("Cannot write the cache of pictures: %s Set --cache_dir.", error)
        if np.prod(shape, dtype=float) > machine.memory():
            raise DatasetError(
                f"Without a cache, {len(listed):,} pictures of {form.height}x{form.width} pixels "
                f"need {np.prod(shape, dtype=float) / 1e9:,.1f} GB, and this machine has "
                f"{machine.memory() / 1e9:,.1f} GB. Set --cache_dir, or lower --image_size."
            ) from error
        images = np.zeros(shape, np.uint8)
        reasons |= _fill(images, listed, form, reasons)
    return Decoded(images, key, reasons, info["duplicates"], natural)


def _allocate(path, shape):
    """Returns a memory-mapped array whose place on the disk is reserved."""
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with open(path, "r+b") as file:  # a full disk would end the process while the map is written
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return images


def _fill(images, listed, form, reasons):
    """Decodes each file into its row, and returns the reasons of those that failed."""

    def fill(item):
        position, file = item
        if position in reasons:
            return None
        try:
            images[position] = form.pixels(file.read())
        except Exception as error:  # Pillow raises a dozen types on damaged files
            return one_line(error)
        return None

    failed = _each(list(enumerate(listed)), fill, "Decoding")
    return {position: reason for position, reason in enumerate(failed) if reason}


def _measured(file):
    """Returns the digest of a file's bytes, and its measures or the reason why it has none."""
    try:
        data = file.read()
    except OSError as error:
        return "", error.strerror or one_line(error)
    digest = hashlib.sha256(data).hexdigest()
    try:
        return digest, pictures.measure(data)
    except DatasetError:  # no Pillow
        raise
    except Exception as error:
        return digest, one_line(error)


def _each(items, function, title):
    """Returns `function` of each item, computed in threads: Pillow decodes without the GIL."""
    results, bar = [], None
    if len(items) >= _MANY:
        print(f"{title} {len(items):,} pictures.", flush=True)
        if sys.stdout.isatty():  # elsewhere each update would be a line
            import keras

            bar = keras.utils.Progbar(len(items), unit_name="picture")
    with (
        # Pillow warns of pictures that `pictures` refuses. Threads share the filters.
        warnings.catch_warnings(action="ignore"),
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for start in range(0, len(items), _CHUNK):
            results += pool.map(function, items[start : start + _CHUNK])
            if bar is not None:
                bar.update(len(results))
    return results


def _signature(listed, options):
    """Returns text that changes when a file does, from what the file system knows; else None."""
    total = hashlib.sha256(repr((options.size, options.fit)).encode())
    for file in listed:
        try:
            status = os.stat(file.path)
        except (OSError, TypeError):  # it is missing, or has no path
            return None
        total.update(f"{file.path}\0{status.st_size} {status.st_mtime_ns}\0".encode())
    return total.hexdigest()[:16]


def _cached(folder, path):
    """Returns the `Decoded` of an entry, or None if there is none or it is damaged."""
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if "content" in info:
            path = folder / f"{info['content']}.json"
            info = json.loads(path.read_text(encoding="utf-8"))
        images = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        if _crc32(images) != info["crc32"]:
            raise ValueError("its checksum differs")
        natural = info["natural"] and tuple(info["natural"])
        return Decoded(images, path.stem, dict(info["unreadable"]), info["duplicates"], natural)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        logging.warning("Decoding again: cache file %s is damaged: %s.", path, one_line(error))
        return None


def digest(*parts):
    """Returns twelve hexadecimal digits that identify JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _crc32(images):
    return zlib.crc32(images.reshape(-1))


def _write_json(path, content):
    try:
        with files.replacing(path, "w") as file:
            json.dump(content, file)
    except files.WriteError as error:
        logging.warning("Cannot write the cache of pictures: %s Set --cache_dir.", error)
