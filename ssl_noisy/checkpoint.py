# SPDX-License-Identifier: Apache-2.0
"""Exact resume: all that a training depends on, in one file that is whole or not there."""

import json
import os

import numpy as np
from absl import logging
from keras import ops

from ssl_noisy import files
from ssl_noisy.errors import UserError

NAME = "checkpoint.npz"
PREVIOUS_NAME = "checkpoint.previous.npz"


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or belongs to another learner."""


def save(folder, learner, record):
    """Writes the learner's whole state, and keeps the checkpoint before it.

    Weights, batch-norm statistics, optimizer, moving average, per-example
    state, random states and running metrics; not the resident images. (Keras's
    `save_weights` would do for the variables, but an HDF5 file cannot tell
    that it is damaged; each member of a zip archive has a checksum.)

    Args:
        folder: Where `NAME` and `PREVIOUS_NAME` lie.
        learner: A compiled `Learner`, its optimizer built.
        record: What else to keep, a dict for JSON.

    Raises:
        CheckpointError: If a value is not finite. The checkpoint before it stays.
    """
    state = {key: ops.convert_to_numpy(v.value) for key, v in _variables(learner).items()}
    if not all(np.isfinite(value).all() for value in state.values()):
        raise CheckpointError(
            "The weights are not finite any more, and were not saved. Lower the learning rate."
        )
    current, previous = os.path.join(folder, NAME), os.path.join(folder, PREVIOUS_NAME)
    with files.replacing(current + ".new") as file:
        np.savez(file, record=np.array(json.dumps(record)), **state)
    if os.path.exists(current):
        os.replace(current, previous)
    os.replace(current + ".new", current)


def restore(folder, learner):
    """Reads the newest whole checkpoint of `folder` into `learner`.

    A damaged checkpoint is passed over, with a warning, for the one before.

    Returns:
        The `record` that was saved with it, or None if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and none can be used.
    """
    found = [os.path.join(folder, n) for n in (NAME, PREVIOUS_NAME)]
    found = [path for path in found if os.path.exists(path)]
    for path in found:
        try:
            return _read(path, learner)
        except CheckpointError as error:
            logging.warning("%s Falling back to the checkpoint before it.", error)
    if found:
        raise CheckpointError(
            f"No checkpoint in {folder} can be read. Remove {' and '.join(found)} to start again."
        )
    return None


def _read(path, learner):
    variables = _variables(learner)
    try:
        with np.load(path, allow_pickle=False) as archive:
            state = {key: archive[key] for key in archive.files}
    except Exception as error:  # a damaged archive raises from any layer of zipfile and NumPy
        raise CheckpointError(f"The checkpoint {path} is damaged ({error}).") from error
    record = state.pop("record", None)
    shapes = {key: tuple(v.shape) for key, v in variables.items()}
    if record is None or {key: value.shape for key, value in state.items()} != shapes:
        raise CheckpointError(f"The checkpoint {path} belongs to another network or method.")
    for key, variable in variables.items():
        variable.assign(state[key])
    return json.loads(str(record))


def _variables(learner):
    """All state by its place; the resident data is the task's, and comes from there."""
    resident = {id(v) for v in learner.resident.variables}
    variables = [*learner.variables, *learner.optimizer.variables]
    metrics = [v for metric in learner.metrics for v in metric.variables]
    unique = {id(v): v for v in [*variables, *metrics] if id(v) not in resident}
    return {f"{i:04d}": v for i, v in enumerate(unique.values())}
