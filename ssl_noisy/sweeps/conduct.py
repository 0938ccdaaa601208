# SPDX-License-Identifier: Apache-2.0
"""The story of a sweep, from its runs to its results."""

import collections

from ssl_noisy import files
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder as run_folder
from ssl_noisy.runs import signals
from ssl_noisy.runs.session import Interrupted
from ssl_noisy.sweeps import folder, local, worker
from ssl_noisy.sweeps.display import Display
from ssl_noisy.sweeps.report import Report, failures, last_lines, parse_comparison

_MOST_ATTEMPTS = 2  # if the machine was at fault


def conduct(sweep_dir, swept, runs, *, parallel, devices=(), compare_with=None, target=None):
    """Trains the runs of a sweep that are not finished, and writes the results after each.

    Args:
        sweep_dir: Path of the folder.
        swept: Names of the swept flags.
        runs: List of `plan.Run`.
        parallel: Positive integer, the number of runs at a time.
        devices: Identifiers of GPUs, or an empty list.
        compare_with: `FLAG=VALUE`, or None.
        target: Float in (0, 1), or None.

    Returns:
        The text of `summary.md`.

    Raises:
        UserError: For a mistake, before anything is written, and at the end if runs failed.
        Interrupted: After a signal, once all running runs are saved.
    """
    comparison = parse_comparison(compare_with, swept, runs)
    folder.look_into(sweep_dir, swept, runs)
    files.make_folder(sweep_dir)
    with run_folder.only_process(sweep_dir):
        folder.look_into(sweep_dir, swept, runs)  # another process may have begun here
        state = folder.read_state(sweep_dir)
        folder.begin(sweep_dir, swept, runs)
        report = Report(sweep_dir, swept, runs, comparison, target)
        finished = [run for run in runs if folder.result_of(sweep_dir, run.name) is not None]
        names = {run.name for run in finished}
        display = Display(len(runs), parallel, len(finished))
        if len(names) < len(runs):
            missing = [run for run in runs if run.name not in names]
            with display.shown(), folder.workers_lock(sweep_dir, display.note) as lock:
                pool = local.Pool(min(parallel, len(missing)), lock, devices)
                try:
                    Conductor(sweep_dir, state, report, display, pool).train(missing)
                finally:
                    pool.close()
        text = report.write(state, is_last=True)
    message = failures(sweep_dir, state)
    if message:
        raise UserError(message)
    return text


class Conductor:
    """Hands runs to a pool and notes what becomes of them.

    Args:
        sweep_dir: Path of the folder.
        state: What `folder.read_state` returns. It is updated and written.
        report: The `Report`.
        display: The `Display`.
        pool: The `local.Pool`, or another object with its methods.
    """

    def __init__(self, sweep_dir, state, report, display, pool):
        self._sweep_dir = sweep_dir
        self._state = state
        self._report = report
        self._display = display
        self._pool = pool

    def train(self, runs):
        """Trains all `runs`.

        Raises:
            Interrupted: After a signal, once all running runs are saved.
        """
        tasks = [
            local.Task(run.name, run.settings, folder.log_path(self._sweep_dir, run.name))
            for run in runs
        ]
        waiting = collections.deque(tasks)
        by_name = {task.name: task for task in tasks}
        attempts = collections.Counter()
        is_stopping = False
        with signals.deferred() as request:
            while self._pool.running or (waiting and not is_stopping):
                if request.signum and not is_stopping:
                    is_stopping = True
                    self._display.note("Stopping: the running runs save and exit.")
                    self._pool.stop()
                while waiting and not is_stopping and not self._pool.is_full:
                    task = waiting.popleft()
                    attempts[task.name] += 1
                    self._display.begin(task.name)
                    self._pool.begin(task)
                for attempt in self._pool.wait(seconds=0.5):
                    count = attempts[attempt.name]
                    if is_stopping and attempt.outcome != worker.FINISHED:
                        self._display.end(attempt.name, "stopped")
                    elif attempt.is_fault_of_machine and count < _MOST_ATTEMPTS:
                        self._display.end(attempt.name, f"{attempt.reason}; trying again")
                        waiting.appendleft(by_name[attempt.name])
                    else:
                        self._note(attempt, count)
        if request.signum:
            message = (
                f"Stopped with {self._display.finished} of {self._display.total} runs finished. "
                f"The sweep is saved in {self._sweep_dir}."
            )
            self._report.write(self._state, is_last=True)
            raise Interrupted(message, request.signum)

    def _note(self, attempt, count):
        """Writes how a run ended, and the results so far."""
        entry = {"status": worker.FINISHED, "attempts": count, "seconds": attempt.seconds}
        if attempt.outcome == worker.FINISHED:
            result = folder.result_of(self._sweep_dir, attempt.name)
            accuracy = result["test_accuracy"]["last"] if result else float("nan")
            text = f"{accuracy:.2%} in {attempt.seconds:.1f} s"
        else:
            log = folder.log_path(self._sweep_dir, attempt.name)
            entry.update(status="failed", reason=attempt.reason, last_lines=last_lines(log))
            text = f"failed: {attempt.reason}"
        self._state[attempt.name] = entry
        folder.write_state(self._sweep_dir, self._state)
        self._report.write(self._state)
        is_finished = attempt.outcome == worker.FINISHED
        self._display.end(
            attempt.name,
            text,
            finished=is_finished,
            failed=not is_finished,
            seconds=attempt.seconds,
        )
