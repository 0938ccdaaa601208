# SPDX-License-Identifier: Apache-2.0
"""Keeps the notices of libraries out of a command's own messages."""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def held_stderr():
    """Holds back what C++ writes to standard error, and lets it out only if the block fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
