# SPDX-License-Identifier: Apache-2.0
"""Shares of TensorFlow's operations in a step on a CPU: python benchmarks/cpu_profile.py [flags]

Takes the flags of a run, traces some steps with TensorFlow's profiler, and prints one JSON line:
milliseconds and calls a step of each kind of operation, the longest first.
"""

import collections
import json
import pathlib
import re
import sys
import tempfile

import keras
import tensorflow as tf
from absl import flags
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from ssl_noisy import benchmark, command

WARM_UP, TRACED = 3, 5  # steps


class Tracer(keras.callbacks.Callback):
    """Traces the last `TRACED` steps of an epoch."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_batch_begin(self, batch, logs=None):
        if batch == WARM_UP:
            tf.profiler.experimental.start(self.folder)

    def on_train_batch_end(self, batch, logs=None):
        if batch == WARM_UP + TRACED - 1:
            tf.profiler.experimental.stop()


def operations(trace):
    """Returns milliseconds and calls of each kind of operation in a trace, of all steps together.

    Args:
        trace: Bytes, what the profiler wrote.
    """
    milliseconds, calls = collections.Counter(), collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(trace).planes:
        for event in (event for line in plane.lines for event in line.events):
            # An operation of the graph is NAME:KIND; other events are the runtime's.
            found = re.fullmatch(r"[\w./-]+:(\w+)", plane.event_metadata[event.metadata_id].name)
            if found:
                milliseconds[found[1]] += event.duration_ps / 1e9
                calls[found[1]] += 1
    return milliseconds, calls


def main(argv):
    values = flags.FlagValues()
    benchmark.define_flags(values)
    settings = command.parse_settings(argv, values)
    learner = benchmark.prepare(settings)[1]
    with tempfile.TemporaryDirectory() as folder:
        learner.fit(
            learner.batches(settings.seed),
            steps_per_epoch=WARM_UP + TRACED,
            callbacks=[Tracer(folder)],
            verbose=0,
        )
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        milliseconds, calls = operations(trace.read_bytes())
    result = {
        "flags": settings.flag_lines(identifying=True),
        "milliseconds_per_step": round(sum(milliseconds.values()) / TRACED, 1),
        "operations": {
            kind: [round(spent / TRACED, 2), round(calls[kind] / TRACED, 1)]
            for kind, spent in milliseconds.most_common(20)
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv)
