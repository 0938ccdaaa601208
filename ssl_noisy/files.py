# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, and reads that check a file before they trust it."""

import contextlib
import errno
import io
import math
import os
import pathlib
import re
import stat
import struct
import tokenize
import uuid
import zipfile
import zlib

import numpy as np

from ssl_noisy import machine
from ssl_noisy.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
# What NumPy and zipfile raise, depending on which byte of a file is wrong.
_DAMAGE = (OSError, EOFError, ValueError, TypeError, SyntaxError, OverflowError, MemoryError)
_DAMAGE += (RuntimeError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError)
SMALLEST_MAP = 2**20  # bytes of an array that is worth a memory map
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_KINDS = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}
_LEFT_OVER = re.compile(r".+\.[0-9a-f]{32}\.tmp(\.\w+)?")


class WriteError(UserError):
    """A file that cannot be written."""


@contextlib.contextmanager
def writing(path):
    """Turns an `OSError` of the block into a `WriteError`. The block must not read files.

    Args:
        path: The path that the block writes.

    Raises:
        WriteError: With the path and advice.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "Free some disk space"
        elif error.errno == errno.EISDIR:
            advice = "Remove the directory with this name"
        elif error.errno in _FORBIDDEN:
            advice = "Choose a folder that you can write to"
        else:
            advice = "Free some disk space, or choose another folder"
        raise WriteError(
            f"Cannot write {str(error.filename2 or path)!r}: {error.strerror or error}. {advice}."
        ) from error


class _Raw(io.FileIO):
    """A file whose failed writes raise `WriteError`. Other errors of the block keep their type."""

    def __init__(self, path, target):
        super().__init__(path, "x")
        self._target = target

    def write(self, data):
        with writing(self._target):
            return super().write(data)


@contextlib.contextmanager
def _replacing(path, suffix=""):
    """Yields a temporary path. The caller moves the file to `path`; an error removes it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp{suffix}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):  # a missing file, for example, must not hide the error
            temporary.unlink()
        raise


@contextlib.contextmanager
def replacing(path, mode="wb", keep=None):
    """Opens a new file that replaces `path` if the block succeeds and is removed if not.

    Args:
        path: Path of the file. Its folder is created.
        mode: `wb` for bytes, `w` for UTF-8 text.
        keep: Optional path to which the old file moves.

    Raises:
        WriteError: If the file cannot be written. The old file stays.
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
    """Like `replacing`, for a writer that opens its file by path. Yields a path with the suffix.

    Raises:
        WriteError: If the block raises an `OSError`. The block must not read files.
    """
    path = pathlib.Path(path)
    with _replacing(path, path.suffix) as temporary, writing(path):
        yield str(temporary)
        os.replace(temporary, path)


def is_left_over(name):
    """Whether this is the name of a temporary file, which a killed process leaves behind."""
    return bool(_LEFT_OVER.fullmatch(name))


def make_folder(path):
    """Creates a folder and its parents if they are missing.

    Raises:
        WriteError: If the folder cannot be created.
    """
    with writing(path):
        os.makedirs(path, exist_ok=True)


def require_regular(path):
    """Raises `OSError` unless `path` is a file. A pipe may block; /dev/zero has no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")


def read_untrusted(path, most):
    """Reads a file that strangers wrote: a plain file, not a link to one, of limited size.

    Args:
        path: Path of the file.
        most: The largest size, in bytes.

    Returns:
        Its bytes.

    Raises:
        ValueError: With the reason.
    """
    try:
        mode = os.lstat(path).st_mode  # before it is opened: a device may act on that
        if not stat.S_ISREG(mode):
            raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a plain file")
        # Somebody may replace the file now.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from error
    if len(raw) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return raw


def read_npz(path, mapped=False):
    """Reads the arrays of an .npz file after a check of its headers. Pickles are refused.

    Args:
        path: Path of the file.
        mapped: Whether to map arrays that are not compressed into memory, after a check of their
            checksums, so that they need not fit into it. The file must not change then.

    Returns:
        A dict from name to array.

    Raises:
        ValueError: With the reason, if it is not an .npz file or too large for this machine.
    """
    with _explaining():
        require_regular(path)
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip archive, which an .npz file is")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            large = [m for m in members if mapped and _is_worth_mapping(m)]
            # Sorting and splitting copies the arrays.
            needed = 2 * sum(member.file_size for member in members if member not in large)
            if needed > machine.memory():
                raise ValueError(
                    f"its arrays need {needed / 1e9:,.1f} GB, and this machine has "
                    f"{machine.memory() / 1e9:,.1f} GB"
                )
            for member in members:
                if member.compress_type not in _COMPRESSIONS:
                    raise ValueError("its compression is not one of those that NumPy writes")
                with archive.open(member) as file:
                    _check_header(file, member.file_size)
            maps = {m.filename.removesuffix(".npy"): _map(path, archive, m) for m in large}
        with np.load(path, allow_pickle=False) as archive:
            return {name: maps[name] if name in maps else archive[name] for name in archive.files}


def _is_worth_mapping(member):
    return member.compress_type == zipfile.ZIP_STORED and member.file_size >= SMALLEST_MAP


def _map(path, archive, member):
    """Returns a member of an .npz file, which is not compressed, as a memory-mapped array."""
    with archive.open(member) as file:
        shape, is_fortran, dtype = _check_header(file, member.file_size)
        start = file.tell()
        while file.read(2**20):  # at the end, `zipfile` compares the checksum
            pass
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)  # the lengths of what precedes the member's bytes
        start += member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    return np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")


def read_npy(path):
    """Reads the array of an .npy file after a check of its header. Pickles are refused.

    Raises:
        ValueError: With the reason, if it is not an .npy file.
    """
    with _explaining():
        require_regular(path)
        with open(path, "rb") as file:
            _check_header(file, os.fstat(file.fileno()).st_size)
        return np.load(path, allow_pickle=False)


def parse_npy(raw):
    """Returns the array in the bytes of an .npy file, like `read_npy`."""
    with _explaining():
        _check_header(io.BytesIO(raw), len(raw))
        return np.load(io.BytesIO(raw), allow_pickle=False)


@contextlib.contextmanager
def _explaining():
    """Turns whatever a damaged file raises into a `ValueError` with the reason."""
    try:
        yield
    except _DAMAGE as error:
        text = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(" ".join(text.split())[:200].rstrip(".")) from error


def _check_header(file, size):
    """Checks that `size` bytes hold the array that the .npy header announces.

    Returns:
        `(shape, is_fortran, dtype)` of the array, whose bytes follow in `file`.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its .npy version {version} is not 1.0 or 2.0")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError("Object arrays are pickles, which are not supported")
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(
            f"it announces {dtype} {shape}, {math.prod(shape) * dtype.itemsize:,} bytes, but has "
            f"{size - file.tell():,}"
        )
    return shape, is_fortran, dtype
