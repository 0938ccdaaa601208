# SPDX-License-Identifier: Apache-2.0
"""Several processes for one run, of which the first one alone writes its folder."""

import contextlib
import dataclasses
import os
import shutil
import tempfile

from ssl_noisy import devices
from ssl_noisy.runs.session import Interrupted


@contextlib.contextmanager
def joined(settings):
    """Within this context the processes of a run train together.

    All do the same. The first one works in the folder of the run, each other one in a temporary
    copy, and prints nothing: all resume from the same checkpoint, and the folder needs no lock
    across hosts.

    Args:
        settings: The `Settings` of the run.

    Yields:
        The `Settings` for this process. Those of a run of one process stay as they are.

    Raises:
        UserError: If the processes do not find each other.
    """
    if settings.num_processes in (None, 1):
        yield settings
        return
    devices.join(settings.num_processes)
    if devices.is_first_process():
        devices.wait_for_all("the others have copied the folder")
        yield settings
        return
    run_dir = settings.run_dir or settings.default_run_dir()
    with (
        tempfile.TemporaryDirectory(prefix="ssl_noisy_") as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        copy = os.path.join(folder, os.path.basename(run_dir))
        if os.path.isdir(run_dir):
            shutil.copytree(run_dir, copy)
        devices.wait_for_all("the others have copied the folder")
        try:
            yield dataclasses.replace(settings, run_dir=copy, logger=None)
        except Interrupted as stop:
            raise Interrupted("Stopped with the first process.", stop.signum) from stop
