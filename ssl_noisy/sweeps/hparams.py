# SPDX-License-Identifier: Apache-2.0
"""Tells TensorBoard's HParams page which flags each run of a sweep has."""

import os
import time

import tensorboardX
from tensorboardX.proto import event_pb2
from tensorboardX.summary import hparams

from ssl_noisy.files import is_left_over, make_folder, replacing_path

_SUFFIX = ".hparams"
METRIC = "test_accuracy"  # a scalar that every run writes


def write(run_dir, values):
    """Writes the flags of a run beside its scalars, unless they are there.

    Args:
        run_dir: Folder of the run.
        values: Dict from flag to value, the same flags for all runs of a sweep. TensorBoard has
            no empty values, so None becomes the text `unset`.
    """
    events = os.path.join(run_dir, "tensorboard")
    make_folder(events)
    if any(n.endswith(_SUFFIX) and not is_left_over(n) for n in os.listdir(events)):
        return
    values = {flag: "unset" if value is None else value for flag, value in values.items()}
    # TensorBoard reads the files of a folder in alphabetical order, and each to its end.
    path = os.path.join(events, f"events.out.tfevents.{time.time():.6f}{_SUFFIX}")
    with replacing_path(path) as temporary:
        writer = tensorboardX.RecordWriter(temporary)
        now = time.time()
        writer.write(
            event_pb2.Event(wall_time=now, file_version="brain.Event:2").SerializeToString()
        )
        for summary in hparams(values, {METRIC: 0.0}):
            writer.write(event_pb2.Event(wall_time=now, summary=summary).SerializeToString())
        writer.close()
