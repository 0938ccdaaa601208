# SPDX-License-Identifier: Apache-2.0
"""The machine that a process runs on: memory, devices, versions."""

import contextlib
import os
import pathlib
import platform
import sys

import keras

from ssl_noisy import devices


def memory():
    """Returns the bytes of memory of this machine, or of the container that the process is in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, int(pathlib.Path(path).read_text()))
    return total


def accelerators():
    """Returns the names of the devices that Keras computes on; an empty list on a CPU."""
    return [name for name in devices.names() if not name.startswith("cpu")]


def launches_kernels():
    """Returns whether a step runs on one GPU or TPU by JAX, where fewer and larger kernels pay.

    On a CPU no gain was seen (docs/performance.md). With several devices, a batch of two kinds of
    views would have to be redistributed.
    """
    return keras.backend.backend() == "jax" and len(accelerators()) == 1


def environment():
    """Returns a dict of the backend, device and versions, to store with measurements."""
    backend = keras.backend.backend()
    return {
        "backend": backend,
        "device": ", ".join(accelerators()) or f"cpu, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: sys.modules[name].__version__ for name in ("keras", backend, "numpy")},
    }
