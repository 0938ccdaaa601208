# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on: a live line, metrics.csv, TensorBoard."""

import contextlib
import csv
import datetime
import io
import math
import os
import shutil
import socket
import sys
import time

import tensorboardX
from absl import logging
from tensorboardX.proto import event_pb2, summary_pb2

from ssl_noisy.files import make_folder, replacing, writing


class Output:
    """A text stream that falls silent when nobody can read it any more.

    The reader of a pipe may leave (`| head -1`), a terminal may close, the disk of a log may fill
    up: no reason to end a training, whose results are files.

    Args:
        stream: A text stream, or None, as Python has it for a standard stream that is closed.
    """

    def __init__(self, stream):
        self._stream = stream if stream is not None else open(os.devnull, "w", encoding="utf-8")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        """Writes `text`, or nothing if nobody can read it."""
        with self._silent_at_error():
            self._stream.write(text)
        return len(text)

    def flush(self):
        """Flushes the stream; what cannot be written is lost."""
        with self._silent_at_error():
            self._stream.flush()

    @contextlib.contextmanager
    def _silent_at_error(self):
        try:
            yield
        except OSError as error:
            self._fall_silent()
            if not isinstance(error, BrokenPipeError):
                logging.warning("Output is lost from here on: %s.", error.strerror or error)

    def _fall_silent(self):
        null = open(os.devnull, "w", encoding="utf-8")
        # What the stream still holds goes there too: at its end Python would try it once more.
        with contextlib.suppress(OSError):  # of a stream without a descriptor
            os.dup2(null.fileno(), self._stream.fileno())
        self._stream = null


class Progress:
    """One line that rewrites itself on a terminal, plain lines elsewhere.

    Args:
        steps: Positive integer, the length of the training.
        label: What is training, at the head of each line.
        stream: A text stream; None is standard output. If it fails, the lines end.
        interval: Seconds between two updates of the live line.
    """

    def __init__(self, steps, label, stream=None, interval=1.0):
        self.steps = steps
        self.label = label
        self.stream = Output(sys.stdout if stream is None else stream)
        self.is_live = self.stream.isatty()
        self.interval = interval
        self.accuracy = None
        self._began = None
        self._shown_at = time.monotonic()

    def note(self, text):
        """Writes a line of its own."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def is_due(self):
        return self.is_live and time.monotonic() - self._shown_at >= self.interval

    def show(self, step, metrics, *, is_final=False):
        """Shows the state after `step` steps; `is_final` lines stay.

        Args:
            step: Integer.
            metrics: Dict of floats, the running means of this epoch.
            is_final: Whether the line ends an epoch.
        """
        now = time.monotonic()
        self._shown_at = now
        if self._began is None:  # the first step compiles: time what follows it
            self._began = (now, step)
        seconds, done = now - self._began[0], step - self._began[1]
        parts = [f"{self.label} {step}/{self.steps}"]
        if done > 0 and seconds > 0:
            left = datetime.timedelta(seconds=int((self.steps - step) * seconds / done))
            parts += [f"{done / seconds:.1f} steps/s", f"{left} left"]
        # A narrow terminal shows what matters most: the losses' parts come last.
        if self.accuracy is not None:
            parts.append(f"test_accuracy {self.accuracy:.2%}")
        order = sorted(metrics, key=lambda key: key.endswith("_loss"))
        parts += [f"{key} {metrics[key]:.3g}" for key in order]
        line = "  ".join(parts)
        if self.is_live:
            if not is_final:
                line = line[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r\x1b[2K" + line + ("\n" if is_final else ""))
        elif is_final:
            self.stream.write(line + "\n")
        self.stream.flush()


def write_metrics(run_dir, history):
    """Writes `metrics.csv` whole: one row an evaluation, as the checkpoint's record holds them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    with replacing(os.path.join(run_dir, "metrics.csv"), "w") as file:
        file.write(text.getvalue())


class TensorBoard:
    """Writes scalars for TensorBoard, with or without TensorFlow.

    It writes in this thread, unlike `tensorboardX.SummaryWriter`, whose thread dies when the disk
    is full, and its user waits for ever.

    Args:
        run_dir: The run folder; events go to its `tensorboard`.
        done: The step to go on from: events after it, of a run that was killed, are void.

    Raises:
        WriteError: If they cannot be written.
    """

    def __init__(self, run_dir, done=0):
        folder = os.path.join(run_dir, "tensorboard")
        make_folder(folder)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._path = os.path.join(folder, name)
        with writing(self._path):
            self._writer = tensorboardX.RecordWriter(self._path)
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if done:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(wall_time=time.time(), step=done + 1, session_log=start))

    def write(self, row):
        """Writes the numbers of one row of the history at its step."""
        values = [
            summary_pb2.Summary.Value(tag=key, simple_value=value)
            for key, value in row.items()
            if isinstance(value, float) and math.isfinite(value)
        ]
        summary = summary_pb2.Summary(value=values)
        self._write(event_pb2.Event(wall_time=time.time(), step=row["step"], summary=summary))

    def close(self):
        with writing(self._path):
            self._writer.close()

    def _write(self, event):
        with writing(self._path):
            self._writer.write(event.SerializeToString())
            self._writer.flush()
