# SPDX-License-Identifier: Apache-2.0
"""The time that a run may take: ten times that of the organizers' baseline on this machine."""

import json
import math
import os

from ssl_noisy import files, side_by_side
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.sweeps import local

EPOCHS = 100  # of the baseline, in batches of 128
_BATCH_SIZE = 128
_TIMED_STEPS = 20


def measured(path, settings, num_train, devices=(), tell=print):
    """Returns the seconds of the baseline, measured once and then read from a file.

    They are those of its steps: the median of 20 after a warm-up, times their number. Compilation
    and evaluations are left out, so the limit is rather too strict. Nothing else should run
    meanwhile.

    Args:
        path: Path of the file.
        settings: The `Settings` of the baseline.
        num_train: Number of its training images.
        devices: Identifiers of GPUs, of which the first one is used.
        tell: Function of a line for the user.

    Raises:
        UserError: If the baseline cannot train here, or the file is damaged.
    """
    if not os.path.exists(path):
        tell("Timing the baseline: a few steps of ResNet-34. --baseline_seconds skips it.")
        steps = EPOCHS * math.ceil(num_train / _BATCH_SIZE)
        report = _time(settings, devices)
        content = {
            "seconds": round(steps * report["seconds_per_step"], 3),
            "steps": steps,
            "seconds_per_step": report["seconds_per_step"],
            "steps_timed": report["steps_timed"],
            "backend": report["backend"],
            "device": report["device"],
        }
        with files.replacing(path, "w") as file:
            file.write(json.dumps(content, indent=1) + "\n")
    try:
        with open(path, encoding="utf-8") as file:
            return float(json.load(file)["seconds"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read: {one_line(error)}. Pass --baseline_seconds, or delete the "
            "file to measure again."
        ) from error


def _time(settings, devices):
    """Returns the report of `python -m ssl_noisy.benchmark`, in a process of its own."""
    return side_by_side.run(
        "The baseline cannot be timed, pass --baseline_seconds",
        side_by_side.command(settings, _TIMED_STEPS),
        local.environment(devices, 0),
    )
