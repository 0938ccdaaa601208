# SPDX-License-Identifier: Apache-2.0
"""The story of a sweep, from its runs to its results."""

import collections
import typing

from ssl_noisy import files
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder as run_folder
from ssl_noisy.runs import labeling, signals
from ssl_noisy.runs.session import Interrupted
from ssl_noisy.sweeps import folder, local, plan, worker
from ssl_noisy.sweeps.display import Display
from ssl_noisy.sweeps.report import Report, failures, last_lines, parse_comparison


class Pool(typing.Protocol):
    """What a sweep asks of its workers: `local.Pool`, or workers elsewhere.

    Attributes:
        running: Collection of the names of the runs that have begun and not ended.
        is_full: Whether no run can begin now.
    """

    running: typing.Collection
    is_full: bool

    def begin(self, task: local.Task):
        """Starts a run and returns at once. The pool must not be full."""

    def wait(self, seconds: float) -> list[local.Attempt]:
        """Returns every attempt that has ended, after at most `seconds`.

        A run of the list is no longer in `running`. A run that the pool has lost ends, too.
        """

    def stop(self):
        """Asks all running runs to save and end, and returns at once. `wait` returns them."""

    def close(self):
        """Ends all workers at once, those that still train, too."""


class Source(typing.Protocol):
    """Where the runs of a sweep come from: a list, `Known`, or results of runs before them.

    Attributes:
        lines: What must not change if the runs depend on results, as `folder.look_into` takes it.
        runs: List of all `plan.Run` that are known, the finished ones too. It may grow.
        left: Number of unfinished runs that `next` has not returned yet.
    """

    lines: typing.Sequence[str]
    runs: list[plan.Run]
    left: int

    def begin(self, save: typing.Callable):
        """Looks which runs are finished. The folder of the sweep is locked.

        Args:
            save: Function of `runs` that writes the plan of the sweep.
        """

    def next(self) -> plan.Run | None:
        """Returns a run to train, or None: there may be one after another run has ended."""

    def ended(self, attempt: local.Attempt):
        """Takes note that a run has finished or failed."""

    def problem(self, state: dict) -> str | None:
        """Returns why the sweep, which ends here with this state, has failed, or None."""

    def section(self, rows: list[dict]) -> list[str]:
        """Returns more paragraphs for the summary. The rows are those of `sweep.csv`."""


class Known:
    """The source of a sweep whose runs are all known.

    Args:
        sweep_dir: Path of the folder.
        runs: List of `plan.Run`.
    """

    lines = ()

    def __init__(self, sweep_dir, runs):
        self.runs = runs
        self._sweep_dir = sweep_dir
        self._waiting = collections.deque()

    @property
    def left(self):
        return len(self._waiting)

    def begin(self, save):
        save(self.runs)
        missing = [x for x in self.runs if folder.result_of(self._sweep_dir, x.name) is None]
        self._waiting.extend(by_data(missing))

    def next(self):
        return self._waiting.popleft() if self._waiting else None

    def ended(self, attempt):
        pass

    def problem(self, state):
        return failures(self._sweep_dir, state)

    def section(self, rows):
        return []


def conduct(sweep_dir, swept, source, make_pool, *, parallel, compare_with=None, target=None):
    """Trains the runs of a sweep that are not finished, and keeps the results up to date.

    Args:
        sweep_dir: Path of the folder.
        swept: Names of the swept flags.
        source: The `Source` of the runs.
        make_pool: Function of a number of runs at a time and the descriptor of a lock, which all
            workers of this machine inherit. It returns a `Pool`.
        parallel: Positive integer, the number of runs at a time.
        compare_with: `FLAG=VALUE`, or None.
        target: Float in (0, 1), or None.

    Returns:
        The text of `summary.md`.

    Raises:
        UserError: For a mistake, before anything is written, and at the end if runs failed.
        Interrupted: After a signal, once all running runs are saved.
    """
    comparison = parse_comparison(compare_with, swept, source.runs)
    folder.look_into(sweep_dir, swept, source.runs, source.lines)
    files.make_folder(sweep_dir)
    with run_folder.only_process(sweep_dir):
        # Another process may have begun here.
        folder.look_into(sweep_dir, swept, source.runs, source.lines)
        state = folder.read_state(sweep_dir)
        source.begin(lambda runs: folder.begin(sweep_dir, swept, runs, source.lines))
        report = Report(sweep_dir, swept, source.runs, comparison, target, source.section)
        finished = sum(folder.result_of(sweep_dir, run.name) is not None for run in source.runs)
        display = Display(finished + source.left, parallel, finished)
        if source.left:
            with display.shown(), folder.workers_lock(sweep_dir, display.note) as lock:
                pool = make_pool(min(parallel, source.left), lock)
                try:
                    Conductor(sweep_dir, state, report, display, pool).train(source)
                finally:
                    pool.close()
        text = report.write(state, is_last=True)
    message = source.problem(state)
    if message:
        raise UserError(message)
    return text


def by_data(runs):
    """Returns the runs with those on the same data together, in the order of the first of each.

    A worker keeps the data set of its last run: it loads each only once then.
    """
    groups = {}
    for run in runs:
        key = tuple(labeling.loading(run.settings).values())
        groups.setdefault(key, []).append(run)
    return [run for group in groups.values() for run in group]


class Conductor:
    """Hands runs to a pool and notes what becomes of them.

    Args:
        sweep_dir: Path of the folder.
        state: What `folder.read_state` returns. It is updated and written.
        report: The `Report`.
        display: The `Display`.
        pool: The `Pool`.
    """

    def __init__(self, sweep_dir, state, report, display, pool):
        self._sweep_dir = sweep_dir
        self._state = state
        self._report = report
        self._display = display
        self._pool = pool
        self._tasks = {}
        self._again = collections.deque()  # names of runs to try again
        self._attempts = collections.Counter()
        self._is_stopping = False

    def train(self, source):
        """Trains all runs of a `Source`.

        Raises:
            Interrupted: After a signal, once all running runs are saved.
        """
        with signals.deferred() as request:
            self._fill(source)
            while self._pool.running:
                if request.signum and not self._is_stopping:
                    self._is_stopping = True
                    self._display.note("Stopping: the running runs save and exit.")
                    self._pool.stop()
                decided = []
                for attempt in self._pool.wait(seconds=0.5):
                    if self._decides(attempt):
                        decided.append(attempt)
                    elif not self._is_stopping:
                        self._again.append(attempt.name)
                try:
                    for attempt in decided:
                        source.ended(attempt)
                    self._fill(source)  # a worker must not wait for files to be written
                finally:
                    self._expect(len(decided) + source.left)
                    self._note(decided)
        if request.signum:
            message = (
                f"Stopped with {self._display.finished} of {self._display.total} runs finished. "
                f"The sweep is saved in {self._sweep_dir}."
            )
            self._report.write(self._state, is_last=True)
            raise Interrupted(message, request.signum)

    def _fill(self, source):
        """Begins as many runs as the pool takes."""
        while not self._is_stopping and not self._pool.is_full:
            task = self._next(source)
            if task is None:
                break
            self._attempts[task.name] += 1
            self._display.begin(task.name)
            self._pool.begin(task)

    def _next(self, source):
        """Returns the `local.Task` that begins next, or None."""
        if self._again:
            return self._tasks[self._again.popleft()]
        run = source.next()
        if run is None:
            return None
        log = folder.log_path(self._sweep_dir, run.name)
        self._tasks[run.name] = local.Task(run.name, run.settings, log)
        return self._tasks[run.name]

    def _expect(self, count):
        """Updates the number of all runs: `count` and those that have begun."""
        if not self._is_stopping:
            count += len(self._pool.running) + len(self._again)
            self._display.total = self._display.finished + self._display.failed + count

    def _decides(self, attempt):
        """Whether the run has finished or failed with this attempt. If not, it is tried again."""
        if self._is_stopping and attempt.outcome != worker.FINISHED:
            self._display.end(attempt.name, "stopped")
            return False
        if self._attempts[attempt.name] < attempt.most_attempts:
            self._display.end(attempt.name, f"{attempt.reason}; trying again")
            return False
        return True

    def _note(self, attempts):
        """Writes how runs ended and, from time to time, the results so far."""
        for attempt in attempts:
            self._state[attempt.name] = self._entry(attempt)
        if attempts:
            folder.write_state(self._sweep_dir, self._state)
        self._report.refresh(self._state)

    def _entry(self, attempt):
        """Shows how a run ended, and returns its entry of the state."""
        is_finished, count = attempt.outcome == worker.FINISHED, self._attempts[attempt.name]
        entry = {"status": worker.FINISHED, "attempts": count, "seconds": attempt.seconds}
        if is_finished:
            result = folder.result_of(self._sweep_dir, attempt.name)
            accuracy = result["test_accuracy"]["last"] if result else float("nan")
            text = f"{attempt.seconds:.1f} s"
            if result and "test_cluster_accuracy" in result["last_epoch"]:
                matched = result["last_epoch"]["test_cluster_accuracy"]
                text = f"{matched:.2%} of matched clusters in {text}"
            elif accuracy is not None:
                text = f"{accuracy:.2%} in {text}"
        else:
            log = folder.log_path(self._sweep_dir, attempt.name)
            entry.update(status="failed", reason=attempt.reason, last_lines=last_lines(log))
            text = f"failed: {attempt.reason}"
        self._display.end(
            attempt.name,
            text,
            finished=is_finished,
            failed=not is_finished,
            seconds=attempt.seconds,
        )
        return entry
