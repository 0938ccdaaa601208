# SPDX-License-Identifier: Apache-2.0
"""Exact resume: the whole state of a training in one file, which is complete or absent."""

import json
import os

import numpy as np
from absl import logging
from keras import ops

from ssl_noisy import files
from ssl_noisy.errors import UserError

NAME = "checkpoint.npz"
PREVIOUS_NAME = "checkpoint.previous.npz"
BEST = ("best.npz", "best.previous.npz")  # of `keep_best`, likewise
_METADATA = "record"  # its key in the file


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or belongs to another learner."""


class Diverged(UserError):
    """The loss or the weights of a training are no longer finite."""


def save(folder, learner, metadata, names=(NAME, PREVIOUS_NAME)):
    """Writes the learner's whole state and keeps the previous checkpoint.

    The state is weights, batch-norm statistics, optimizer, moving average, per-example state,
    random states and running metrics, but not the resident images. (Keras's `save_weights` would
    store the variables, but damage to an HDF5 file can go unnoticed. Each member of a zip archive
    has a checksum.)

    Args:
        folder: The folder of the checkpoints.
        learner: A compiled `Learner`, its optimizer built.
        metadata: What else to store, a dict for JSON.
        names: Names of the file and of the previous one.

    Raises:
        Diverged: If a value is not finite. Earlier checkpoints stay.
        WriteError: If it cannot be written. Earlier checkpoints stay.
    """
    state = {key: ops.convert_to_numpy(v.value) for key, v in _variables(learner).items()}
    if not all(np.isfinite(value).all() for value in state.values()):
        raise Diverged(
            "The weights are no longer finite and were not saved. Lower --learning_rate."
        )
    current, previous = (os.path.join(folder, name) for name in names)
    with files.replacing(current, keep=previous) as file:
        np.savez(file, **{_METADATA: np.array(json.dumps(metadata))}, **state)


def restore(folder, learner, steps=None, steps_per_epoch=None):
    """Reads the newest complete checkpoint of `folder` into `learner`.

    If the newest one is damaged, it logs a warning and reads the previous one.

    Args:
        folder: The folder of `NAME` and `PREVIOUS_NAME`.
        learner: A compiled `Learner`, its optimizer built.
        steps: Optional integer, the length of the training. With it, the metadata must have the
            learner's `step` and the `history` that such a training has at that step.
        steps_per_epoch: Integer, the steps between two rows of that history.

    Returns:
        The `metadata` that was saved, or None if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints, but none can be used.
    """
    paths = [os.path.join(folder, name) for name in (NAME, PREVIOUS_NAME)]
    paths = [path for path in paths if os.path.exists(path)]
    errors = []
    for path in paths:
        try:
            metadata = _read(path, learner, steps, steps_per_epoch)
        except CheckpointError as error:
            errors.append(str(error))
            continue
        for error in errors:
            logging.warning("%s Falling back to the previous checkpoint.", error)
        return metadata
    if errors:
        raise CheckpointError(
            f"{' '.join(errors)} Delete {' and '.join(paths)} to train from the start."
        )
    return None


def restore_best(folder, learner, step):
    """Reads the checkpoint of the best evaluation, one of `BEST`, into `learner`.

    A process may be killed between writing it and writing the newest checkpoint. The resumed run
    writes it again, so the previous one is that of the same step then.

    Args:
        folder: The folder of `BEST`.
        learner: A compiled `Learner`, its optimizer built.
        step: Integer, the step of that evaluation.

    Raises:
        CheckpointError: If there is no such checkpoint.
    """
    reasons = []
    for path in (os.path.join(folder, name) for name in BEST):
        if not os.path.exists(path):
            continue
        try:
            if _read(path, learner, None, None, step).get("step") == step:
                return
            reasons.append(f"The checkpoint {path} is not of step {step}.")
        except CheckpointError as error:
            reasons.append(str(error))
    raise CheckpointError(
        f"The checkpoint of the best evaluation, step {step}, is lost. {' '.join(reasons)} Choose "
        "another --run_dir to train again."
    )


def _read(path, learner, steps, steps_per_epoch, wanted=None):
    variables = _variables(learner)
    try:
        state = files.read_npz(path)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint {path} is damaged ({error}).") from error
    text = state.pop(_METADATA, None)
    kinds = {key: (tuple(v.shape), np.dtype(v.dtype)) for key, v in variables.items()}
    if text is None or {key: (v.shape, v.dtype) for key, v in state.items()} != kinds:
        raise CheckpointError(f"The checkpoint {path} belongs to another network or method.")
    try:
        metadata = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"The checkpoint {path} is damaged (its metadata is not JSON: {error})."
        ) from error
    if not all(np.isfinite(value).all() for value in state.values()):
        raise CheckpointError(f"The checkpoint {path} is damaged (a value is not finite).")
    if steps is not None:
        step = next(state[key] for key, v in variables.items() if v is learner.step)
        if not _is_possible(metadata, int(step), steps, steps_per_epoch):
            raise CheckpointError(
                f"The checkpoint {path} is damaged (its metadata does not match step {step} "
                f"of {steps})."
            )
    if wanted is None or metadata.get("step") == wanted:
        for key, variable in variables.items():
            variable.assign(state[key])
    return metadata


def _is_possible(metadata, step, steps, steps_per_epoch):
    """Whether a training of `steps` can have this metadata at `step`."""
    if not isinstance(metadata, dict) or metadata.get("step") != step or not 0 <= step <= steps:
        return False
    done = step // steps_per_epoch + (step == steps and step % steps_per_epoch > 0)
    history = metadata.get("history")
    if not isinstance(history, list) or len(history) != done:
        return False
    for epoch, row in enumerate(history, 1):
        if not isinstance(row, dict) or row.keys() != history[0].keys():
            return False
        end = min(epoch * steps_per_epoch, steps)
        if (row.get("step"), row.get("epoch")) != (end, epoch):
            return False
        if any(not isinstance(v, (int, float, type(None))) for v in row.values()):
            return False
        accuracies = [row.get(f"{part}_accuracy", 0.0) for part in ("test", "validation")]
        if any(not isinstance(v, (int, float)) or not 0 <= v <= 1 for v in accuracies):
            return False
    return True


def _variables(learner):
    """Returns all state by its place, without the resident data, which the task provides."""
    resident = {id(v) for v in learner.resident.variables}
    variables = [*learner.variables, *learner.optimizer.variables]
    metrics = [v for metric in learner.metrics for v in metric.variables]
    unique = {id(v): v for v in [*variables, *metrics] if id(v) not in resident}
    return {f"{i:04d}": v for i, v in enumerate(unique.values())}
