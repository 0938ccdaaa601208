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


class Diverged(UserError):
    """A training whose loss or weights are not finite any more."""


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
        Diverged: If a value is not finite. The checkpoint before it stays.
        WriteError: If it cannot be written. The checkpoints before it stay.
    """
    state = {key: ops.convert_to_numpy(v.value) for key, v in _variables(learner).items()}
    if not all(np.isfinite(value).all() for value in state.values()):
        raise Diverged(
            "The weights are no longer finite and were not saved. Lower --learning_rate."
        )
    current, previous = os.path.join(folder, NAME), os.path.join(folder, PREVIOUS_NAME)
    with files.replacing(current, keep=previous) as file:
        np.savez(file, record=np.array(json.dumps(record)), **state)


def restore(folder, learner, steps=None, steps_per_epoch=None):
    """Reads the newest whole checkpoint of `folder` into `learner`.

    A damaged checkpoint is passed over, with a warning, for the one before.

    Args:
        folder: Where `NAME` and `PREVIOUS_NAME` lie.
        learner: A compiled `Learner`, its optimizer built.
        steps: Optional integer, the length of the training. With it the record must hold the
            `step` of the learner and the `history` that such a training has at that step.
        steps_per_epoch: Integer, the steps between two rows of that history.

    Returns:
        The `record` that was saved with it, or None if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and none can be used.
    """
    paths = [os.path.join(folder, name) for name in (NAME, PREVIOUS_NAME)]
    paths = [path for path in paths if os.path.exists(path)]
    errors = []
    for path in paths:
        try:
            record = _read(path, learner, steps, steps_per_epoch)
        except CheckpointError as error:
            errors.append(str(error))
            continue
        for error in errors:
            logging.warning("%s Falling back to the checkpoint before it.", error)
        return record
    if errors:
        raise CheckpointError(
            f"{' '.join(errors)} Delete {' and '.join(paths)} to train from the start."
        )
    return None


def _read(path, learner, steps, steps_per_epoch):
    variables = _variables(learner)
    try:
        state = files.read_npz(path)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint {path} is damaged ({error}).") from error
    text = state.pop("record", None)
    kinds = {key: (tuple(v.shape), np.dtype(v.dtype)) for key, v in variables.items()}
    if text is None or {key: (v.shape, v.dtype) for key, v in state.items()} != kinds:
        raise CheckpointError(f"The checkpoint {path} belongs to another network or method.")
    try:
        record = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged (its record is no JSON: {error})."
        ) from error
    if not all(np.isfinite(value).all() for value in state.values()):
        raise CheckpointError(f"The checkpoint {path} is damaged (a value is not finite).")
    if steps is not None:
        step = next(state[key] for key, v in variables.items() if v is learner.step)
        if not _is_possible(record, int(step), steps, steps_per_epoch):
            raise CheckpointError(
                f"The checkpoint {path} is damaged (its record is not that of step {step} in a "
                f"training of {steps} steps)."
            )
    for key, variable in variables.items():
        variable.assign(state[key])
    return record


def _is_possible(record, step, steps, steps_per_epoch):
    """Whether `record` has the step and history of a training of `steps` at `step`."""
    if not isinstance(record, dict) or record.get("step") != step or not 0 <= step <= steps:
        return False
    done = step // steps_per_epoch + (step == steps and step % steps_per_epoch > 0)
    history = record.get("history")
    if not isinstance(history, list) or len(history) != done:
        return False
    for epoch, row in enumerate(history, 1):
        if not isinstance(row, dict) or row.keys() != history[0].keys():
            return False
        at = min(epoch * steps_per_epoch, steps)
        if (row.get("step"), row.get("epoch")) != (at, epoch):
            return False
        if any(not isinstance(v, (int, float, type(None))) for v in row.values()):
            return False
        shares = [row.get("test_accuracy"), row.get("validation_accuracy", 0.0)]
        if any(not isinstance(v, (int, float)) or not 0 <= v <= 1 for v in shares):
            return False
    return True


def _variables(learner):
    """All state by its place; the resident data is the task's, and comes from there."""
    resident = {id(v) for v in learner.resident.variables}
    variables = [*learner.variables, *learner.optimizer.variables]
    metrics = [v for metric in learner.metrics for v in metric.variables]
    unique = {id(v): v for v in [*variables, *metrics] if id(v) not in resident}
    return {f"{i:04d}": v for i, v in enumerate(unique.values())}
