# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

import contextlib
import errno
import io
import math
import os
import pathlib
import re
import stat
import uuid
import zipfile

import numpy as np

from ssl_noisy import machine
from ssl_noisy.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_LEFT_OVER = re.compile(r".+\.[0-9a-f]{32}\.tmp(\.\w+)?")


class WriteError(UserError):
    """A file that cannot be written."""


@contextlib.contextmanager
def writing(path):
    """Turns an `OSError` of the block, which writes `path` and reads nothing, into a `WriteError`.

    Raises:
        WriteError: With the path and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "Free some space"
        elif error.errno == errno.EISDIR:
            advice = "Remove the directory of that name"
        elif error.errno in _FORBIDDEN:
            advice = "Choose another folder, which you may write to"
        else:
            advice = "Free some space, or choose another folder"
        raise WriteError(
            f"Cannot write {str(error.filename2 or path)!r}: {error.strerror or error}. {advice}."
        ) from error


class _Raw(io.FileIO):
    """A file whose failed writes are `WriteError`s: other errors of a block keep their type."""

    def __init__(self, path, target):
        super().__init__(path, "x")
        self._target = target

    def write(self, data):
        with writing(self._target):
            return super().write(data)


@contextlib.contextmanager
def _replacing(path, suffix=""):
    """Yields the path of a file to make, which replaces `path` when the block succeeds."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp{suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):  # such as no file, which would hide the error itself
            temporary.unlink()
        raise


@contextlib.contextmanager
def replacing(path, mode="wb", keep=None):
    """Opens a new file that replaces `path` when the block succeeds, and vanishes if not.

    Args:
        path: Path of the file; its folder is made.
        mode: `wb` for bytes, `w` for UTF-8 text.
        keep: Optional path: the file that was there goes there.

    Raises:
        WriteError: If it cannot be written. The file that was there stays.
    """
    path = pathlib.Path(path)
    with _replacing(path) as temporary:
        with writing(path):
            raw = _Raw(temporary, path)
        file = io.BufferedWriter(raw)
        with file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8") as file:
            yield file
            file.flush()
            with writing(path):
                os.fsync(file.fileno())
        with writing(path):
            if keep and path.exists():
                os.replace(path, keep)
            os.replace(temporary, path)


@contextlib.contextmanager
def replacing_path(path):
    """Like `replacing`, for a writer that opens its file itself: yields a path of the same suffix.

    Raises:
        WriteError: If an `OSError` leaves the block, which must read no file.
    """
    path = pathlib.Path(path)
    with _replacing(path, path.suffix) as temporary, writing(path):
        yield str(temporary)
        os.replace(temporary, path)


def is_left_over(name):
    """Whether a file of this name is what a killed process left of a file that it replaced."""
    return bool(_LEFT_OVER.fullmatch(name))


def make_folder(path):
    """Makes a folder and its parents, unless it is there.

    Raises:
        WriteError: If it cannot be made.
    """
    with writing(path):
        os.makedirs(path, exist_ok=True)


def require_regular(path):
    """Raises `OSError` unless `path` is a file. A pipe may wait for ever, /dev/zero has no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")


def read_npz(path):
    """Reads the arrays of an .npz file, without pickles, once its headers have been checked.

    Returns:
        A dict from name to array.

    Raises:
        ValueError: With the reason, if it is no such file, or if it is too large for this machine.
    """
    with _reading(path):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip archive, which an .npz file is")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # Arrays are copied as they are sorted and split.
            needed = 2 * sum(member.file_size for member in members)
            if needed > machine.memory():
                raise ValueError(
                    f"its arrays need {needed / 1e9:,.1f} GB, and this machine has "
                    f"{machine.memory() / 1e9:,.1f} GB"
                )
            for member in members:
                with archive.open(member) as file:
                    _check_header(file, member.file_size)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def read_npy(path):
    """Reads the array of an .npy file, without pickles, once its header has been checked.

    Raises:
        ValueError: With the reason, if it is no such file.
    """
    with _reading(path):
        with open(path, "rb") as file:
            _check_header(file, os.fstat(file.fileno()).st_size)
        return np.load(path, allow_pickle=False)


@contextlib.contextmanager
def _reading(path):
    try:
        require_regular(path)
        yield
    # NumPy and zipfile raise a dozen types, depending on the byte that is wrong.
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(" ".join(text.split())[:200].rstrip(".")) from error


def _check_header(file, size):
    """Checks that an array of .npy format, in `size` bytes, is as large as its header says."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its .npy version {version} is not 1.0 or 2.0")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, _, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("Object arrays are pickles, which are not read")
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(
            f"it announces {dtype} {shape}, {math.prod(shape) * dtype.itemsize:,} bytes, and holds "
            f"{size - file.tell():,}"
        )
