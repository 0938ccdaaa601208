# SPDX-License-Identifier: Apache-2.0
"""Keeps the notices of libraries out of a command's own messages."""

import contextlib
import os
import sys
import tempfile


def open_closed_streams():
    """Opens /dev/null as each standard descriptor that the caller closed (`>&-`).

    Otherwise the next file to be opened gets that descriptor, and what libraries print goes into
    the file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor: this one


@contextlib.contextmanager
def held_stderr():
    """Holds back what C++ writes to standard error, and lets it out only if the block fails."""
    if sys.stderr is not None:
        sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            with contextlib.suppress(OSError):  # nobody reads: the block's own error matters
                os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
