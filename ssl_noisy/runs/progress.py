# SPDX-License-Identifier: Apache-2.0
"""The progress line of a training."""

import datetime
import shutil
import sys
import time

from ssl_noisy.streams import Output

SHOWN = ("test_accuracy", "test_cluster_accuracy")


def tell(lines, stream=None):
    """Writes lines to a text stream; None is standard output."""
    output = Output(sys.stdout if stream is None else stream)
    output.write("".join(f"{line}\n" for line in lines))
    output.flush()


class Progress:
    """A line that updates in place on a terminal, and one line per epoch elsewhere.

    Args:
        steps: Positive integer, the length of the training.
        label: What is trained, the first word of each line.
        stream: A text stream; None is standard output. After a failed write it gets no more lines.
        interval: Seconds between two updates of a line.
    """

    def __init__(self, steps, label, stream=None, interval=1.0):
        self.steps = steps
        self.label = label
        self.stream = Output(sys.stdout if stream is None else stream)
        self.is_live = self.stream.isatty()
        self.interval = interval
        self._accuracy = None
        self._began = None
        self._shown_at = time.monotonic()

    def note(self, text):
        """Writes a separate line."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def is_due(self):
        """Whether it is time to update the line."""
        return self.is_live and time.monotonic() - self._shown_at >= self.interval

    def measured(self, row):
        """Takes the accuracy that the line shows from a row of `metrics.csv`, if it has one."""
        known = [name for name in SHOWN if row.get(name) is not None]
        self._accuracy = f"{known[0]} {row[known[0]]:.2%}" if known else None

    def show(self, step, metrics, *, is_final=False):
        """Shows the state after `step` steps.

        Args:
            step: Integer.
            metrics: Dict of floats, the running means of this epoch.
            is_final: Whether the epoch ends here. Then the line stays.
        """
        now = time.monotonic()
        self._shown_at = now
        if self._began is None:  # the first step compiles: leave its time out
            self._began = (now, step)
        seconds, done = now - self._began[0], step - self._began[1]
        parts = [f"{self.label} {step}/{self.steps}"]
        if done > 0 and seconds > 0:
            left = datetime.timedelta(seconds=int((self.steps - step) * seconds / done))
            parts += [f"{done / seconds:.1f} steps/s", f"{left} left"]
        # A narrow terminal cuts the line: the terms of the loss come last.
        if self._accuracy is not None:
            parts.append(self._accuracy)
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
