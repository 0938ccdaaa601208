# SPDX-License-Identifier: Apache-2.0
"""Standard streams: closed streams, readers that leave, notices of libraries."""

import contextlib
import os
import sys
import tempfile

from absl import logging


def open_closed_streams():
    """Opens /dev/null as each standard descriptor that the caller closed (`>&-`).

    Otherwise the next file to be opened gets that descriptor, and libraries print into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, this one


@contextlib.contextmanager
def held_stderr():
    """Captures what C++ code writes to standard error, and prints it only if the block fails."""
    if sys.stderr is not None:
        sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            with contextlib.suppress(OSError):  # nobody reads it; the block's own error matters
                os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


class Output:
    """A text stream that discards its text after a write fails.

    The reader of a pipe may exit (`| head -1`), a terminal may close, the disk of a log may fill
    up. None of this should stop a training, whose results are files.

    Args:
        stream: A text stream, or None, which is what `sys.stdout` is if it is closed.
    """

    def __init__(self, stream):
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Writes `text`. Text that cannot be written is lost."""
        with self._silent_at_error():
            self._stream.write(text)
        return len(text)

    def flush(self):
        """Flushes the stream. Text that cannot be written is lost."""
        with self._silent_at_error():
            self._stream.flush()

    @contextlib.contextmanager
    def _silent_at_error(self):
        try:
            yield
        except OSError as error:
            self._fall_silent()
            if not isinstance(error, BrokenPipeError):
                logging.warning(
                    "Cannot write to the output: %s. The rest of it is lost.",
                    error.strerror or error,
                )

    def _fall_silent(self):
        null = open(os.devnull, "w", encoding="utf-8")
        # The buffer of the old stream goes there too. Python would fail to flush it at exit.
        with contextlib.suppress(OSError):  # a stream without a descriptor
            os.dup2(null.fileno(), self._stream.fileno())
        self._stream = null
