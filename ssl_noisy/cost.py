# SPDX-License-Identifier: Apache-2.0
"""What a run costs, estimated before it starts."""

import contextlib
import os
import pathlib


def memory():
    """Returns the bytes of memory of this machine, or of the container that the process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, int(pathlib.Path(path).read_text()))
    return total
