# SPDX-License-Identifier: Apache-2.0
"""Standard streams: closed ones, readers that leave, and the notices of libraries."""

import contextlib
import os
import sys
import tempfile

from absl import logging


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


class Output:
    """A text stream that falls silent when nobody can read it any more.

    The reader of a pipe may leave (`| head -1`), a terminal may close, the disk of a log may fill
    up: no reason to end a training, whose results are files.

    Args:
        stream: A text stream, or None, as Python has it for a standard stream that is closed.
    """

    def __init__(self, stream):
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Writes `text`, or nothing if nobody can read it."""
        with self._silent_at_error():
            self._stream.write(text)
        return len(text)

    def flush(self):
        """Flushes the stream; what cannot be written is lost."""
        with self._silent_at_error():
            self._stream.flush()

    @contextlib.contextmanager
    def _silent_at_error(self):
        try:
            yield
        except OSError as error:
            self._fall_silent()
            if not isinstance(error, BrokenPipeError):
                logging.warning("Output is lost from here on: %s.", error.strerror or error)

    def _fall_silent(self):
        null = open(os.devnull, "w", encoding="utf-8")
        # What the stream still holds goes there too: at its end Python would try it once more.
        with contextlib.suppress(OSError):  # of a stream without a descriptor
            os.dup2(null.fileno(), self._stream.fileno())
        self._stream = null
