# SPDX-License-Identifier: Apache-2.0
"""The line that shows how far a training is."""

import datetime
import shutil
import sys
import time

from ssl_noisy.streams import Output


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
