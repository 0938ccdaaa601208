# SPDX-License-Identifier: Apache-2.0
"""The source of a sweep with `--tune`: the runs of each trial, which follows from those before."""

import os

import numpy as np

from ssl_noisy.errors import UserError, one_line
from ssl_noisy.sweeps import folder, report, study, worker
from ssl_noisy.sweeps.conduct import by_data

_SHOWN = 5  # trials in the summary


class Trials:
    """Gives the runs of trials and tells Optuna's study what they reached. A `conduct.Source`.

    A trial is complete when all of its runs are finished, and failed when one of them has failed.
    If the machine was at fault, the trial stays open, and the next sweep continues it. A trial
    with the values of another one shares its runs.

    Args:
        tuning: The `tune.Tuning`.
        lines: What its `lines` returns.
    """

    def __init__(self, tuning, lines):
        self.lines = lines
        self.runs = []
        self._tuning = tuning
        self._names = {}  # of the runs of each trial
        self._missing = {}  # names of the unfinished runs of each open trial
        self._waiting = {}  # runs by name
        self._begun = set()

    def begin(self, save):
        """See `conduct.Source`.

        Raises:
            UserError: If the study is missing, damaged or of another sweep.
        """
        sweep_dir = self._tuning.sweep_dir
        path = os.path.join(sweep_dir, study.NAME)
        planned = folder.read_plan(sweep_dir)["runs"] if folder.is_begun(sweep_dir) else {}
        if planned and not os.path.exists(path):
            raise UserError(f"{path} is missing. Restore it, or choose another --sweep_dir.")
        self._save = save
        if not planned:
            save(self.runs)  # before the study: a folder with a plan is a sweep
        self._study = study.Study(sweep_dir, self._tuning.axes, self.lines)
        found = self._study.trials()
        if len(found) > self._tuning.trials:
            raise UserError(
                f"{sweep_dir} has {len(found)} trials. --trials must be at least that. Received: "
                f"--trials={self._tuning.trials}"
            )
        for trial in found:
            self._add(trial)
        lacking = planned.keys() - {run.name for run in self.runs}
        if lacking:
            raise UserError(
                f"{path} lacks the trial of the run {min(lacking)}. Restore the file, or choose "
                "another --sweep_dir."
            )
        for trial in found:
            if trial.state == study.RUNNING:
                self._open(trial.number)
        save(self.runs)

    def _add(self, trial):
        """Adds the runs of a trial to those of the sweep, but for those of an earlier trial."""
        runs = [] if trial.problem else self._tuning.runs_of(trial.values)
        known = {run.name for run in self.runs}
        self._names[trial.number] = [run.name for run in runs]
        self.runs += [run for run in runs if run.name not in known]

    def _open(self, number):
        """Lets the unfinished runs of a trial wait, or ends the trial if there are none."""
        names = self._names[number]
        missing = [name for name in names if self._result(name) is None]
        self._missing[number] = set(missing)
        new = set(missing) - self._begun - self._waiting.keys()
        self._waiting |= {r.name: r for r in by_data([r for r in self.runs if r.name in new])}
        if not missing:
            self._complete(number)

    def _result(self, name):
        return folder.result_of(self._tuning.sweep_dir, name)

    @property
    def left(self):
        """See `conduct.Source`."""
        proposals = self._tuning.trials - len(self._names)
        return len(self._waiting) + proposals * len(self._tuning.combinations)

    def next(self):
        """See `conduct.Source`. It proposes a trial only if no run of an open one waits."""
        while not self._waiting and len(self._names) < self._tuning.trials:
            trial = self._study.propose(self._problem)
            self._add(trial)
            if trial.state == study.RUNNING:
                self._save(self.runs)
                self._open(trial.number)
        if not self._waiting:
            return None
        run = self._waiting.pop(next(iter(self._waiting)))
        self._begun.add(run.name)
        return run

    def _problem(self, values):
        try:
            self._tuning.runs_of(values)
        except UserError as error:  # valid values of two flags can exclude each other
            return str(error)
        return None

    def ended(self, attempt):
        """See `conduct.Source`."""
        self._begun.discard(attempt.name)
        for number in [n for n, missing in self._missing.items() if attempt.name in missing]:
            if attempt.outcome == worker.FINISHED:
                self._missing[number].discard(attempt.name)
                if not self._missing[number]:
                    self._complete(number)
            elif attempt.outcome in (worker.MISTAKE, worker.BUG):  # not the machine's fault
                self._fail(number)

    def _complete(self, number):
        results = map(self._result, self._names[number])
        value = np.mean([result["last_epoch"]["validation_accuracy"] for result in results])
        self._study.tell(number, float(value))
        del self._missing[number]

    def _fail(self, number):
        self._study.tell(number, None)
        del self._missing[number]
        needed = set().union(*self._missing.values())
        self._waiting = {name: run for name, run in self._waiting.items() if name in needed}

    def problem(self, state):
        """See `conduct.Source`. A failed trial is a result, but not if all of them have failed."""
        open_runs = set().union(*self._missing.values())
        left_open = {name: entry for name, entry in state.items() if name in open_runs}
        message = report.failures(self._tuning.sweep_dir, left_open)
        trials = self._study.trials()
        if message or any(trial.state == study.COMPLETE for trial in trials):
            return message
        first = self._names[0]
        reasons = [state[name]["reason"] for name in first if "reason" in state.get(name, {})]
        reason = one_line(trials[0].problem or " ".join(reasons[:1]), 400)
        return (
            f"All {len(trials)} trials failed, the first one because: {reason}. Fix the cause and "
            "choose another --sweep_dir."
        )

    def section(self, rows):
        """Returns the part of `summary.md` about the trials, a list of paragraphs.

        Args:
            rows: Rows of `sweep.csv`.
        """
        trials = self._study.trials()
        complete = [trial for trial in trials if trial.state == study.COMPLETE]
        failed = [trial for trial in trials if trial.state == study.FAILED]
        each = len(self._tuning.combinations)
        text = (
            f"{len(complete)} of {self._tuning.trials} trials are complete, {len(failed)} failed. "
            "The value of a trial is the validation accuracy of the last checkpoint"
        )
        text += f", the mean over its {each} runs." if each > 1 else " of its run."
        parts = ["## Tuning by validation accuracy", text]
        if complete:
            parts += self._ranking(complete, rows)
        problems = [f"- Trial {trial.number}: {trial.problem}" for trial in failed if trial.problem]
        if problems:
            parts += ["Trials whose values exclude each other:", "\n".join(problems)]
        return parts

    def _ranking(self, complete, rows):
        """Returns paragraphs about the complete trials with the best validation accuracies."""
        test = {row["name"]: row["test_accuracy_last"] for row in rows}
        ranked = sorted(complete, key=lambda trial: (-trial.value, trial.number))
        flags = [axis.flag for axis in self._tuning.axes]
        table = [["trial", *flags, "validation accuracy in %", "test accuracy in %"]]
        table.append(["---"] * len(table[0]))
        for trial in ranked[:_SHOWN]:
            of_runs = [test[name] for name in self._names[trial.number]]
            cells = [_percent([trial.value]), _percent(of_runs)]
            table.append([str(trial.number), *(trial.values[flag] for flag in flags), *cells])
        best, (*_, validation, of_test) = ranked[0], table[2]
        words = " ".join(f"--{flag}={best.values[flag]}" for flag in flags)
        return [
            f"Best by validation: trial {best.number}, `{words}`. Validation accuracy "
            f"{validation} %, test accuracy of this trial {of_test} %.",
            "\n".join(f"| {' | '.join(cells)} |" for cells in table),
            f"The validation accuracy of the best of {len(complete)} trials is optimistic: the "
            "trial was chosen because it is high. Report the test accuracy of a rerun with these "
            "flags and other seeds.",
        ]


def _percent(accuracies):
    """Returns the mean as text, or nothing if a run has been removed."""
    return "" if None in accuracies else f"{100 * np.mean(accuracies):.2f}"
