# SPDX-License-Identifier: Apache-2.0
"""The time that a training has taken, and whether it is over."""

import time


class Clock:
    """The time of a training over all of its processes, without what a killed one did not save.

    A training with a limit ends after an evaluation if another epoch would not fit.

    Args:
        limit: Seconds, or None.
        spent: Seconds before the training began.

    Attributes:
        counted: Seconds until the last evaluation that ended in time. The first one always counts.
        is_over: Whether the limit ended the training.
        is_late: Whether its last evaluation ended after the limit.
    """

    def __init__(self, limit, spent=0.0):
        self._limit = limit
        self._before, self._began = spent, time.monotonic()
        self._epoch_began, self._steps = self._began, 0
        self.counted, self.is_over, self.is_late = spent, False, False

    @property
    def seconds(self):
        return self._before + time.monotonic() - self._began

    def resume(self, state):
        """Continues from what `state` returned; None, of an earlier version, counts from now."""
        if state is not None:
            self._before = state["seconds"]
            self.counted, self.is_over = state["counted"], state["is_over"]
            self.is_late = state["is_late"]

    def state(self):
        """Returns a dict for JSON."""
        names = ("seconds", "counted", "is_over", "is_late")
        return {name: getattr(self, name) for name in names}

    def epoch_begins(self):
        """Takes note that an epoch begins now."""
        self._steps = 0

    def step_begins(self):
        """Takes note that a step begins now. The first one of a process compiles."""
        if self._steps < 2:  # so the time of an epoch is measured from its second step on
            self._epoch_began = time.monotonic()
        self._steps += 1

    def epoch_ends(self, is_first):
        """Takes note that an epoch and its evaluation end now.

        Args:
            is_first: Whether it is the first one of the training.
        """
        now = self.seconds
        if self._limit is not None:
            self.is_late = now > self._limit and not is_first
            self.is_over = now + time.monotonic() - self._epoch_began > self._limit
        if not self.is_late:
            self.counted = now
