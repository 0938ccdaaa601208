# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import uuid

from ssl_noisy.errors import UserError


@contextlib.contextmanager
def writing(path):
    """Turns an `OSError` of the block, which writes `path`, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write {str(path)!r}: {error.strerror or error}. Free some space, or choose "
            "another folder that you may write to."
        ) from error


@contextlib.contextmanager
def replacing(path, mode="wb"):
    """Opens a new file that replaces `path` when the block succeeds, and vanishes if not.

    Args:
        path: Path of the file; its folder is made.
        mode: `wb` for bytes, `w` for UTF-8 text.

    Raises:
        UserError: If it cannot be written. The file that was there stays.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(path):
    """Makes a folder and its parents, unless it is there.

    Raises:
        UserError: If it cannot be made.
    """
    with writing(path):
        os.makedirs(path, exist_ok=True)
