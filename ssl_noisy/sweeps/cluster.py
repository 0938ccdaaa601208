# SPDX-License-Identifier: Apache-2.0
"""Trains runs on the nodes of a Ray cluster.

Ray places the runs, notices lost nodes and moves the data. What a run does is what it does on one
machine: each node trains in a worker process of `sweeps.local`, in an ordinary run folder.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import tempfile
import threading
import time
import uuid

from ssl_noisy import files
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.settings import Settings
from ssl_noisy.sweeps import copies, folder, local, worker

# Variables of the sweep's environment that its runs get, too. Ray sets OMP_NUM_THREADS itself, and
# the number of threads can change the last bits of a result.
_PREFIXES = ("JAX_", "KERAS_", "MLFLOW_", "SSL_NOISY_", "TF_", "WANDB_", "XLA_")
_THREADS = "OMP_NUM_THREADS"
_BETWEEN_LOOKS = 1.0  # seconds between two looks at a run that trains
_CONNECT_SECONDS = 10
_TOKEN = "nodes.token"  # a file of the sweep while it runs
# What an actor can answer.
BEGUN, AWAY, FILE, LOG, ENDED = "begun", "away", "file", "log", "ended"


@dataclasses.dataclass(frozen=True)
class Resources:
    """A Ray cluster, and what each run asks it for.

    Attributes:
        address: `auto`, or `HOST:PORT`.
        cpus, gpus: Numbers. A fraction of a GPU means that runs share it.
    """

    address: str
    cpus: float
    gpus: float

    def __post_init__(self):
        for name, value in (("run_cpus", self.cpus), ("run_gpus", self.gpus)):
            if not (0 <= value <= 1 or (value > 1 and float(value).is_integer())):
                raise UserError(
                    f"--{name} must be a whole number or at most 1. Received: --{name}={value:g}"
                )
        if self.cpus == self.gpus == 0:
            raise UserError(
                "--run_cpus and --run_gpus are both 0: Ray would start all runs at once."
            )

    def fit(self, node):
        """Returns how many runs fit on a node, a dict from name of a resource to number."""
        wanted = (("CPU", self.cpus), ("GPU", self.gpus))
        return min(int(node.get(name, 0) / needed + 1e-9) for name, needed in wanted if needed)


def connect(resources):
    """Connects this process to the cluster.

    Returns:
        How many runs the cluster has room for.

    Raises:
        UserError: If Ray is not installed, there is no cluster at the address, or no node has the
            resources of a run.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--ray_address needs Ray. Install it with: pip install 'ssl_noisy[cluster]'"
        ) from error
    address = resources.address
    if "://" in address:
        raise UserError(
            "--ray_address must be auto or HOST:PORT: start the sweep on a node of the cluster. "
            f"Received: --ray_address={address}"
        )
    host, colon, port = address.rpartition(":")
    try:
        if colon:  # Ray would wait for a minute, and print a stack trace of C++
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own, which exits at once
    except (OSError, RuntimeError, ValueError, OverflowError, ray.exceptions.RayError) as error:
        raise UserError(
            f"No Ray cluster at --ray_address={address}: {one_line(error)} Start one with: ray "
            "start --head"
        ) from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count = sum(map(resources.fit, nodes))
    if not count:
        have = "; ".join(f"{x.get('CPU', 0):g} CPUs, {x.get('GPU', 0):g} GPUs" for x in nodes)
        raise UserError(
            f"No node of the Ray cluster has room for a run. Its nodes have: {have}. Received: "
            f"--run_cpus={resources.cpus:g} --run_gpus={resources.gpus:g}"
        )
    return count


class Slot:
    """An actor on a node: it trains one run at a time, in a worker process of that node.

    Args:
        cwd: Working directory of the sweep.
        environment: Dict from the name of a variable to its value, or None to unset it.
        token: Path and content of the file that tells the folder of the sweep from others.
    """

    def __init__(self, cwd, environment, token):
        with contextlib.suppress(OSError):  # it may not exist here
            os.chdir(cwd)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        self._token = token
        self._pool = local.Pool(1, lock=None)
        self._is_stopping = False
        self._has_taken = threading.Semaphore(0)

    def train(self, name, settings, log):
        """Trains a run.

        Args:
            name: Name of the run.
            settings: Dict of the fields of its `Settings`.
            log: Path of its log.

        Yields:
            Tuples: BEGUN when it begins, and ENDED with the fields of its `local.Attempt`. A node
            that does not see the folder of the sweep also yields AWAY, upon which it must
            `receive` the files so far; FILE with an item of `copies.changes`; and LOG with bytes
            to append to the log. It waits for `go_on` after AWAY and after each FILE.
        """
        yield BEGUN, None
        task = local.Task(name, Settings(**settings), log)
        try:
            if self.sees_sweep():
                attempt = self._train(task)
            else:
                attempt = yield from self._train_away(task)
        except UserError as error:
            attempt = local.Attempt(name, worker.MISTAKE, one_line(error, 400), 0.0)
        yield ENDED, dataclasses.asdict(attempt)

    def sees_sweep(self):
        """Whether this node sees the folder of the sweep, and not another one with its path."""
        path, content = self._token
        try:
            with open(path, encoding="utf-8") as file:
                return file.read() == content
        except OSError:
            return False

    def _train(self, task):
        folder.wait_until_free(task.settings.run_dir)
        self._begin(task)
        while not (ended := self._pool.wait(_BETWEEN_LOOKS)):
            pass
        return ended[0]

    def _begin(self, task):
        self._pool.begin(task)
        if self._is_stopping:
            self._pool.stop()

    def _train_away(self, task):
        """Trains in a temporary folder, and yields what changes there."""
        run_dir, ended, sent = task.settings.run_dir, [], 0
        with files.writing("the temporary folder"):
            temporary = tempfile.TemporaryDirectory(prefix="ssl_noisy_", ignore_cleanup_errors=True)
        with temporary as place:
            # The last part of the path names the run in trackers.
            self._copy = os.path.join(place, os.path.basename(run_dir))
            yield AWAY, None
            self._has_taken.acquire()
            settings = dataclasses.replace(task.settings, run_dir=self._copy)
            log, known = f"{self._copy}.log", copies.look(self._copy)
            self._begin(local.Task(task.name, settings, log))
            while not ended:
                ended = self._pool.wait(_BETWEEN_LOOKS)
                for item in copies.changes(self._copy, known):
                    yield FILE, item
                    self._has_taken.acquire()
                if text := _read_lines(log, sent, is_complete=bool(ended)):
                    sent += len(text)
                    yield LOG, text.replace(os.fsencode(self._copy), os.fsencode(run_dir))
            reason = ended[0].reason.replace(self._copy, run_dir)
            return dataclasses.replace(ended[0], reason=reason)

    def receive(self, path, content):
        """Writes an item of `copies.changes`."""
        copies.write(self._copy, path, content)

    def go_on(self):
        """Goes on with `train`."""
        self._has_taken.release()

    def stop(self):
        """Asks the worker process to save and exit."""
        self._is_stopping = True
        self._pool.stop()


def _read_lines(path, start, is_complete):
    """Returns what a log has from a position on. A line that is still written waits."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            text = file.read()
    except FileNotFoundError:  # the process was killed first
        return b""
    return text if is_complete else text[: text.rfind(b"\n") + 1]


@dataclasses.dataclass
class _Job:
    """A task on its way: the actor that has it, the stream of its answers, and its start."""

    task: local.Task
    slot: object
    answers: object
    began: float | None = None  # None while the actor waits for a node


class Pool:
    """Trains tasks on the cluster, `parallel` at a time. A `conduct.Pool`.

    Args:
        parallel: Positive integer. Runs that find no room wait for a node.
        lock: Descriptor of the lock of this machine's workers, which stays with this process.
        resources: The `Resources`, connected.
        sweep_dir: Path of the folder of the sweep.
    """

    def __init__(self, parallel, lock, resources, sweep_dir):
        import ray

        self._token = os.path.join(sweep_dir, _TOKEN), uuid.uuid4().hex
        with files.replacing(self._token[0], "w") as file:
            file.write(self._token[1])
        self.parallel = parallel
        self.running = {}
        self._ray = ray
        self._idle = []
        # A lost actor is not restarted: the run gets a new one. Two threads: `stop` must get
        # through while `train` runs.
        remote = ray.remote(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_concurrency=2, max_restarts=0
        )
        self._new_slot = functools.partial(
            remote(Slot).remote, os.getcwd(), _environment(resources.gpus), self._token
        )

    @property
    def is_full(self):
        return len(self.running) >= self.parallel

    def begin(self, task):
        """Starts a task. The pool must not be full."""
        slot = self._idle.pop() if self._idle else self._new_slot()
        self._start(task, slot)

    def _start(self, task, slot):
        train = slot.train.options(num_returns="streaming")
        files.make_folder(os.path.dirname(task.log))
        answers = train.remote(task.name, dataclasses.asdict(task.settings), task.log)
        self.running[task.name] = _Job(task, slot, answers)

    def wait(self, seconds):
        """Returns the list of every `local.Attempt` that has ended, after at most `seconds`."""
        jobs = {job.answers: job for job in self.running.values()}
        ready, _ = self._ray.wait(list(jobs), num_returns=1, timeout=seconds)
        attempts = [self._look(jobs[answers]) for answers in ready]
        return [attempt for attempt in attempts if attempt is not None]

    def _look(self, job):
        """Takes the next answer of a job. Returns its `Attempt` if that is the last one."""
        try:
            return self._take(job, *self._ray.get(next(job.answers)))
        except UserError as error:  # of this process, or of the actor
            reason = one_line(getattr(error, "cause", error), 400)
            return self._given_up(job, worker.MISTAKE, reason)
        except self._ray.exceptions.RayTaskError:
            raise  # a bug of this module
        except (self._ray.exceptions.RayError, StopIteration):
            return self._given_up(job, local.LOST, "its node was lost")

    def _take(self, job, kind, value):
        run_dir = job.task.settings.run_dir
        if kind == BEGUN:
            job.began = time.monotonic()
        elif kind == AWAY:
            copies.tidy(run_dir)
            for item in copies.changes(run_dir, {}):  # one file in memory at a time
                self._ray.get(job.slot.receive.remote(*item))
            job.slot.go_on.remote()
        elif kind == FILE:
            copies.write(run_dir, *value)
            job.slot.go_on.remote()
        elif kind == LOG:
            with files.writing(job.task.log), open(job.task.log, "ab") as file:
                file.write(value)
        else:
            attempt = self._ended(job, local.Attempt(**value))
            self._reuse(job.slot)
            return attempt
        return None

    def _given_up(self, job, outcome, reason):
        self._ray.kill(job.slot)  # which may only be out of reach
        seconds = round(time.monotonic() - job.began, 3) if job.began else 0.0
        return self._ended(job, local.Attempt(job.task.name, outcome, reason, seconds))

    def _ended(self, job, attempt):
        del self.running[job.task.name]
        return attempt

    def _reuse(self, slot):
        """Gives a free actor the task of one that still waits for a node, if there is any.

        Both could wait for each other: the free actor keeps its CPUs and GPUs.
        """
        waiting = next((job for job in self.running.values() if job.began is None), None)
        if waiting is None:
            self._idle.append(slot)
            return
        self._ray.kill(waiting.slot)
        self._start(waiting.task, slot)

    def stop(self):
        """Asks all running workers to save and exit. Runs that wait for a node are given up."""
        for job in self.running.values():
            if job.began is None:
                self._ray.kill(job.slot)
            else:
                job.slot.stop.remote()

    def close(self):
        """Ends all actors. Workers that still train notice it, save their run and exit."""
        for slot in [*self._idle, *(job.slot for job in self.running.values())]:
            self._ray.kill(slot)
        self._ray.shutdown()
        with contextlib.suppress(FileNotFoundError), files.writing(self._token[0]):
            os.remove(self._token[0])


def _environment(gpus):
    """Returns what `Slot` takes: the variables of this process that change what a run does."""
    chosen = {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)}
    chosen[_THREADS] = os.environ.get(_THREADS)
    if not gpus:
        chosen["CUDA_VISIBLE_DEVICES"] = "-1"  # Ray leaves all GPUs visible
    elif gpus < 1:  # a framework would take all of the memory
        chosen |= {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return chosen
