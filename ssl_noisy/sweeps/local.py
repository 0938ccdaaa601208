# SPDX-License-Identifier: Apache-2.0
"""Trains runs in worker processes of this machine."""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time

from ssl_noisy import files, networks
from ssl_noisy.errors import UserError
from ssl_noisy.sweeps import worker

# A process keeps the compiled programs of its past runs.
RUNS_PER_PROCESS = 25
_GIGABYTES = 2  # of memory for a worker with a small network: TensorFlow alone takes 0.6
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus():
    """Returns the identifiers of the GPUs that this process may use, without a framework.

    A framework would reserve memory on them.
    """
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = found.stdout.splitlines() if found.returncode == 0 else []
    return [str(i) for i, _ in enumerate(line for line in lines if line.startswith("GPU "))]


def environment(devices, slot):
    """Returns the environment of the process that works in a slot, with one of the GPUs if any.

    Args:
        devices: Identifiers of GPUs, or an empty list.
        slot: Integer from 0.
    """
    found = dict(os.environ)
    if devices:
        found[_VISIBLE] = devices[slot % len(devices)]
    return found


def default_parallel(num_gpus, memory):
    """Returns how many runs to train at once: one per GPU, else one per core.

    Args:
        num_gpus: Integer.
        memory: Bytes of memory of this machine, of which each run gets at least 2 GB.
    """
    if num_gpus:
        return num_gpus
    return max(1, min(len(os.sched_getaffinity(0)), int(memory / (_GIGABYTES * 1e9))))


@dataclasses.dataclass
class Attempt:
    """How an attempt to train a run ended.

    Attributes:
        name: Name of the run.
        outcome: `worker.FINISHED`, `MISTAKE`, `MEMORY`, `STOPPED` or `BUG`, or `KILLED` or `LOST`.
        reason: A line, empty if it finished.
        seconds: How long it took, without the start of the process.
    """

    name: str
    outcome: str
    reason: str
    seconds: float

    @property
    def is_fault_of_machine(self):
        return self.outcome in (worker.MEMORY, worker.STOPPED, KILLED, LOST)

    @property
    def most_attempts(self):
        """How often to try a run that ends like this."""
        if self.outcome == LOST:
            return 10
        return 2 if self.is_fault_of_machine else 1


KILLED, LOST = "killed", "lost"  # a worker process; a machine, which is rarely the run's fault


@contextlib.contextmanager
def starting():
    """Turns an `OSError` of the block, which starts a process, into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot start a worker process: {error.strerror}. Free memory or processes, or lower "
            "--max_parallel, and run the same command again."
        ) from error


class _Worker:
    """A worker process.

    Args:
        lock: Descriptor that it inherits, or None.
        environ: Dict, its environment.
        log: Path of the file that gets its output until the first run begins.
    """

    def __init__(self, lock, environ, log):
        files.make_folder(os.path.dirname(log))
        with files.writing(log):
            output = open(log, "ab")  # noqa: SIM115
        self.answers, answers = os.pipe()
        try:
            with starting():
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ssl_noisy.sweeps.worker", str(answers)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=(answers,) if lock is None else (answers, lock),
                    env=environ,
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on
                )
        except UserError:
            os.close(self.answers)
            raise
        finally:
            os.close(answers)
            output.close()
        self._text = b""
        self.num_runs = 0
        self.task = None
        self.began = 0.0

    def begin(self, task):
        self.task, self.began = task, time.monotonic()
        self.num_runs += 1
        content = {"log": task.log, "settings": dataclasses.asdict(task.settings)}
        with contextlib.suppress(BrokenPipeError):  # a dead worker's answers end, which tells why
            self._process.stdin.write((json.dumps(content) + "\n").encode())
            self._process.stdin.flush()

    def read(self):
        """Returns the `Attempt` that has ended, or None. Call it when `answers` has data."""
        data = os.read(self.answers, 65536)
        self._text += data
        if data and not self._text.endswith(b"\n"):
            return None
        name = self.task.name if self.task else None
        if data:
            self._text, answer = b"", json.loads(self._text)
            return Attempt(name, answer["outcome"], answer["reason"], answer["seconds"])
        code = self._process.wait()
        if code < 0:
            outcome, reason = KILLED, f"killed by {signal.Signals(-code).name}"
        else:
            outcome, reason = worker.BUG, f"its process exited with code {code}"
        return Attempt(name, outcome, reason, round(time.monotonic() - self.began, 3))

    def stop(self, signum):
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)

    def dismiss(self):
        """Ends the input of the process, which then exits."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def close(self):
        """Waits until the process has exited."""
        self.dismiss()
        self._process.wait()
        os.close(self.answers)


@dataclasses.dataclass(frozen=True)
class Task:
    """A run to train: its name, its `Settings`, and the path of its log."""

    name: str
    settings: object
    log: str

    @property
    def shares_process(self):
        """Whether the run may follow another in a process. The code of a user may keep state."""
        return not networks.is_own(self.settings.network)


class Pool:
    """Trains tasks in worker processes, `parallel` at a time.

    Args:
        parallel: Positive integer.
        lock: Descriptor that all workers inherit, or None.
        devices: List of identifiers of GPUs. Each worker gets one of them, in turn.
    """

    def __init__(self, parallel, lock, devices=()):
        self.parallel = parallel
        self.running = {}
        self._lock = lock
        self._devices = list(devices)
        self._idle = [None] * parallel
        self._selector = selectors.DefaultSelector()

    @property
    def is_full(self):
        return len(self.running) == self.parallel

    def begin(self, task):
        """Starts a task. The pool must not be full."""
        slot = next(i for i in range(self.parallel) if i not in self._slots())
        found, self._idle[slot] = self._idle[slot], None
        if found and not (task.shares_process and found.num_runs < RUNS_PER_PROCESS):
            found.close()
            found = None
        if found is None:
            found = _Worker(self._lock, environment(self._devices, slot), task.log)
        self.running[task.name] = (slot, found)
        self._selector.register(found.answers, selectors.EVENT_READ, found)
        found.begin(task)

    def _slots(self):
        return {slot for slot, _ in self.running.values()}

    def wait(self, seconds):
        """Returns the list of every `Attempt` that has ended, after at most `seconds`."""
        ended = []
        for key, _ in self._selector.select(seconds):
            attempt = key.data.read()
            if attempt is None:
                continue
            slot, found = self.running.pop(attempt.name)
            self._selector.unregister(found.answers)
            if attempt.outcome == worker.FINISHED and found.task.shares_process:
                self._idle[slot] = found
            else:
                found.close()
            ended.append(attempt)
        return ended

    def stop(self, signum=signal.SIGTERM):
        """Asks all running workers to save and exit."""
        for _, found in self.running.values():
            found.stop(signum)

    def close(self):
        """Ends all processes. Those that still train are killed; their runs can resume."""
        self.stop(signal.SIGKILL)
        left = [found for found in self._idle if found is not None]
        left += [found for _, found in self.running.values()]
        for found in left:
            found.dismiss()  # all exit at the same time
        for found in left:
            found.close()
        self._selector.close()


def check(parallel, devices):
    """Raises a `UserError` if several runs would share a GPU, whose memory TensorFlow takes."""
    if devices and parallel > len(devices):
        raise UserError(
            f"--max_parallel must be at most {len(devices)}, the number of GPUs. Received: "
            f"--max_parallel={parallel}"
        )
