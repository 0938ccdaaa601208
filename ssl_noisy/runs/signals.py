# SPDX-License-Identifier: Apache-2.0
"""The signals that stop a run: Ctrl-C, SIGTERM of a scheduler, SIGHUP of a terminal that closes.

A SIGHUP that is ignored when the process starts, as under `nohup`, stays ignored.
"""

import contextlib
import signal
import threading

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where the process was, as Python raises SIGINT."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def exit_code(signum):
    """Returns the exit code by which shells tell of a signal: 130 for SIGINT."""
    return 128 + signum


def raise_all():
    """Lets SIGTERM and SIGHUP raise `Stopped`, so that a process cleans up before it ends."""

    def stop(signum, frame):
        ignore()
        raise Stopped(signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, stop)


def ignore():
    """Ignores SIGTERM and SIGHUP: `timeout` and a closing terminal send theirs twice."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


class Request:
    """Whether a signal asked to stop: its number, or None."""

    signum = None


@contextlib.contextmanager
def deferred():
    """Within this context a signal only asks to stop; a second Ctrl-C stops at once.

    Yields:
        The `Request`.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread can receive signals
        return

    def ask(signum, frame):
        request.signum = request.signum or signum
        if signum == signal.SIGINT:
            signal.signal(signum, before[signum])

    before = {s: signal.getsignal(s) for s in STOPPING}
    before = {s: handler for s, handler in before.items() if handler != signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, ask)
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
