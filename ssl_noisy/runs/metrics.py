# SPDX-License-Identifier: Apache-2.0
"""Files with the numbers of each evaluation: metrics.csv and TensorBoard events."""

import csv
import io
import math
import os
import socket
import time

import tensorboardX
from tensorboardX.proto import event_pb2, summary_pb2

from ssl_noisy.errors import UserError
from ssl_noisy.files import make_folder, replacing, writing
from ssl_noisy.runs import folder


def write_metrics(run_dir, history):
    """Writes `metrics.csv`, one row per evaluation. `history` is that of the checkpoint."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with replacing(os.path.join(run_dir, folder.METRICS), "w") as file:
        file.write(text.getvalue())


def read_metrics(run_dir):
    """Returns the rows of `metrics.csv` as dicts of floats, None in empty cells.

    Raises:
        UserError: If the file cannot be read.
    """
    path = os.path.join(run_dir, folder.METRICS)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        if not rows or not {"step", "epoch"} <= rows[0].keys():
            raise ValueError("it has no rows with step and epoch")
        return [{k: float(v) if v else None for k, v in row.items()} for row in rows]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(
            f"Cannot read {path}: {error}. Delete it and {folder.RESULT} beside it, and run the "
            "same command again to restore them from the checkpoint."
        ) from error


class TensorBoard:
    """Writes scalars for TensorBoard, with or without TensorFlow.

    It writes in the calling thread. The thread of `tensorboardX.SummaryWriter` dies when the disk
    is full, and then its user waits forever.

    Args:
        run_dir: The run folder. Events go to the folder `tensorboard` in it.
        done: The step to resume from. TensorBoard drops later events of a killed run.

    Raises:
        WriteError: If they cannot be written.
    """

    def __init__(self, run_dir, done=0):
        events = os.path.join(run_dir, "tensorboard")
        make_folder(events)
        # TensorBoard reads the files of a folder in alphabetical order.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._path = os.path.join(events, name)
        with writing(self._path):
            self._writer = tensorboardX.RecordWriter(self._path)
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if done:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(wall_time=time.time(), step=done + 1, session_log=start))

    def write(self, row):
        """Writes the numbers of one row of the history."""
        values = [
            summary_pb2.Summary.Value(tag=key, simple_value=value)
            for key, value in row.items()
            if isinstance(value, float) and math.isfinite(value)
        ]
        summary = summary_pb2.Summary(value=values)
        self._write(event_pb2.Event(wall_time=time.time(), step=row["step"], summary=summary))

    def close(self):
        """Closes the file."""
        with writing(self._path):
            self._writer.close()

    def _write(self, event):
        with writing(self._path):
            self._writer.write(event.SerializeToString())
            self._writer.flush()
