# SPDX-License-Identifier: Apache-2.0
"""A process that trains the runs of a sweep: python -m ssl_noisy.sweeps.worker DESCRIPTOR

It reads one task per line from standard input and answers each with a line of JSON on the
descriptor. The output of a run goes to the log of the run. The process exits after a failure. If
its input ends in the middle of a run, the sweep is gone: it saves the run and exits.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
import traceback

from absl import logging

from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs import labeling, signals
from ssl_noisy.runs.run import run
from ssl_noisy.runs.session import Interrupted
from ssl_noisy.settings import Settings

_GRACE = 120  # seconds to save a run after the sweep is gone

# What a run can end with. The machine is at fault for MEMORY and STOPPED.
FINISHED, MISTAKE, MEMORY, STOPPED, BUG = "finished", "mistake", "memory", "stopped", "bug"


class Trainer:
    """Trains runs one after the other, and keeps the data set that the last one loaded."""

    def __init__(self):
        self._loader = labeling.Loader()

    def train(self, settings):
        """Trains one run, prints what went wrong, and returns a dict for JSON.

        Args:
            settings: A `Settings`.

        Returns:
            `outcome`, one of the constants above; `reason`, a line if it is not FINISHED; and
            `seconds`.
        """
        began = time.monotonic()
        outcome, reason = FINISHED, ""
        try:
            run(settings, dataset=self._loader.load(settings))
        except UserError as error:
            outcome, reason = MISTAKE, one_line(error, 400)
            print(reason, file=sys.stderr)
        except (Interrupted, KeyboardInterrupt) as error:
            outcome, reason = STOPPED, one_line(error)
        except Exception as error:
            traceback.print_exc()
            outcome, reason = _kind(error), f"{type(error).__name__}: {one_line(error)}"
        sys.stdout.flush()
        return {
            "outcome": outcome,
            "reason": reason,
            "seconds": round(time.monotonic() - began, 3),
        }


def _kind(error):
    # TensorFlow raises ResourceExhaustedError, and JAX an error with the same words.
    words = f"{type(error).__name__} {error}".lower().replace("_", "")
    is_memory = isinstance(error, MemoryError) or "resourceexhausted" in words
    return MEMORY if is_memory else BUG


def main(answers):
    """Answers tasks until the input ends or a run fails. Returns the exit code."""
    logging.set_verbosity(logging.WARNING)  # TFDS logs every step
    signals.raise_all()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the sweep passes Ctrl-C on as SIGTERM
    tasks, busy = queue.Queue(), threading.Event()
    threading.Thread(target=_listen, args=(tasks, busy), daemon=True).start()
    trainer = Trainer()
    try:
        while (task := tasks.get()) is not None:
            _direct_output(task["log"])
            answer = trainer.train(Settings(**task["settings"]))
            busy.clear()
            os.write(answers, (json.dumps(answer) + "\n").encode())
            if answer["outcome"] != FINISHED:
                return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 1
    return 0


def _listen(tasks, busy):
    for line in sys.stdin.buffer:
        busy.set()
        tasks.put(json.loads(line))
    tasks.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)  # the run cannot be saved


def _direct_output(path):
    """Appends what this process and its libraries print from now on to the file."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    sys.exit(main(int(sys.argv[1])))
