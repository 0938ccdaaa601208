# SPDX-License-Identifier: Apache-2.0
"""The progress of a sweep: a live table on a terminal, plain lines elsewhere."""

import contextlib
import datetime
import time

import rich.console
import rich.live
import rich.table
import rich.text

from ssl_noisy.runs import progress


class Display:
    """Shows which runs are running, done and failed, and the time left.

    Args:
        total: Number of runs of the sweep.
        parallel: Number of runs at a time.
        finished: Number of runs that were finished before.
    """

    def __init__(self, total, parallel, finished):
        self.total = total
        self.parallel = parallel
        self.finished = finished
        self.failed = 0
        self._began = {}
        self._seconds = []
        self._live = None

    @contextlib.contextmanager
    def shown(self):
        """Shows the table while the block runs, if standard output is a terminal."""
        console = rich.console.Console()
        if not console.is_terminal:
            yield self
            return
        with rich.live.Live(
            console=console, get_renderable=self._table, refresh_per_second=2
        ) as self._live:
            try:
                yield self
            finally:
                self._live.refresh()
                self._live = None

    def begin(self, name):
        """Notes that a run starts."""
        self._began[name] = time.monotonic()

    def end(self, name, text, *, finished=False, failed=False, seconds=None):
        """Notes that a run ends, and prints a line about it."""
        self._began.pop(name, None)
        self.finished += finished
        self.failed += failed
        if finished:
            self._seconds.append(seconds)
        self.note(f"{self.counts()}: {name}: {text}")

    def note(self, line):
        """Prints a line. On a terminal it scrolls by above the table."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            progress.tell([line])

    def counts(self):
        """Returns the state in a few words."""
        parts = [f"{self.finished}/{self.total} done"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        left = self.total - self.finished - self.failed
        if self._seconds and left:
            mean = sum(self._seconds) / len(self._seconds)
            running = sum(min(time.monotonic() - t, mean) for t in self._began.values())
            seconds = (mean * left - running) / min(self.parallel, left)
            parts.append(f"about {datetime.timedelta(seconds=int(max(seconds, 0)))} left")
        return ", ".join(parts)

    def _table(self):
        """Returns the state, and below it a line per running run. Long names are folded."""
        table = rich.table.Table(box=None, pad_edge=False, show_header=False)
        table.add_column(justify="right")
        table.add_column(overflow="fold")
        for name, began in self._began.items():
            elapsed = datetime.timedelta(seconds=int(time.monotonic() - began))
            table.add_row(str(elapsed), name)
        return rich.console.Group(rich.text.Text(self.counts(), style="bold"), table)
