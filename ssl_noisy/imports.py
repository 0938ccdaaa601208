# SPDX-License-Identifier: Apache-2.0
"""Imports that a command can do without."""

import contextlib
import sys


@contextlib.contextmanager
def absent(*names):
    """Makes packages look as if they were not installed while the block imports others.

    Packages that are imported already stay. After the block all can be imported.

    Args:
        *names: Names of packages.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: Python says that there is no such module
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
