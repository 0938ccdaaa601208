# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there."""

import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def replacing(path, mode="wb"):
    """Opens a new file that replaces `path` when the block succeeds, and vanishes if not.

    Args:
        path: Path of the file; its folder is made.
        mode: `wb` for bytes, `w` for text.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
