# SPDX-License-Identifier: Apache-2.0
"""The signals that stop a run: Ctrl-C, SIGTERM from a scheduler, SIGHUP from a closing terminal.

If SIGHUP is ignored when the process starts, as under `nohup`, it stays ignored.
"""

import contextlib
import signal
import threading

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised in the main thread as Python raises SIGINT."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def exit_code(signum):
    """Returns the exit code that shells use for a signal: 130 for SIGINT."""
    return 128 + signum


def _stop(signum, frame):
    ignore()
    raise Stopped(signum)


def raise_all():
    """Makes SIGTERM and SIGHUP raise `Stopped`, so that a process cleans up before it ends."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_DFL:
            signal.signal(signum, _stop)


def ignore():
    """Ignores those of SIGTERM and SIGHUP that raise: a process that ends may get them twice.

    `timeout` and a closing terminal send them twice. Where `raise_all` was not called, nothing
    changes.
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is _stop:
            signal.signal(signum, signal.SIG_IGN)


class Request:
    """A request to stop: the number of the signal, or None."""

    signum = None


@contextlib.contextmanager
def deferred():
    """Turns signals into requests to stop. A second Ctrl-C stops at once.

    If the block ends with an exception after a request, `ignore` applies at once.

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
    is_ending = False
    try:
        yield request
    except BaseException:
        is_ending = request.signum is not None
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_IGN if is_ending and handler is _stop else handler)
