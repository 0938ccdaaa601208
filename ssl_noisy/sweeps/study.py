# SPDX-License-Identifier: Apache-2.0
"""The study of `--tune`: Optuna proposes trials, and a file in the folder keeps them."""

import contextlib
import dataclasses
import hashlib
import os
import sqlite3

from ssl_noisy import files
from ssl_noisy.errors import UserError, one_line

NAME = "study.db"
RUNNING, COMPLETE, FAILED = "running", "complete", "failed"
_STUDY = "sweep"  # its name in the file
_OWNER, _REASON = "sweep", "reason"  # attributes of the study and of a trial
# What a damaged file raises: SQLite, SQLAlchemy, Alembic and Optuna have their own types, and a
# wrong value can raise any other.
_DAMAGE = Exception


def check():
    """Raises a `UserError` if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--tune needs Optuna ({one_line(error)}). Install it: pip install 'ssl_noisy[tune]'."
        ) from error


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of the tuned flags.

    Attributes:
        number: Integer from 0.
        values: Dict from tuned flag to string.
        state: `RUNNING`, `COMPLETE` or `FAILED`.
        value: Float, the objective of a complete trial, or None.
        problem: Why no run can have these values, or None.
    """

    number: int
    values: dict
    state: str
    value: float | None
    problem: str | None


class Study:
    """A study in a SQLite file, `study.db`. A trial is in it before its runs begin.

    Args:
        sweep_dir: Path of the folder of the sweep, on which this process has the lock.
        axes: List of `tune.Axis`.
        lines: What `tune.Tuning.lines` returns. The study belongs to the sweep with these lines.

    Raises:
        UserError: If the file cannot be read or written, or belongs to another sweep.
    """

    def __init__(self, sweep_dir, axes, lines):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._path = os.path.join(sweep_dir, NAME)
        self._axes = axes
        self._distributions = {axis.flag: _distribution(axis) for axis in axes}
        owner = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        with self._using(_DAMAGE):
            if os.path.lexists(self._path):
                _check_file(self._path)
            # A connection by path: in a URL, some characters of a path have a meaning.
            storage = optuna.storages.RDBStorage(
                "sqlite://", engine_kwargs={"creator": lambda: sqlite3.connect(self._path)}
            )
            names = optuna.get_all_study_names(storage)
            self._study = optuna.create_study(
                storage=storage,
                study_name=names[0] if names else _STUDY,
                direction="maximize",
                load_if_exists=True,
            )
            there = self._study.user_attrs.get(_OWNER)
            if there is None and not self.trials():  # new, or killed when it was
                self._study.set_user_attr(_OWNER, owner)
                there = owner
        if there != owner:
            raise UserError(
                f"{self._path} belongs to another sweep. Restore the file, or choose another "
                "--sweep_dir."
            )

    @contextlib.contextmanager
    def _using(self, kinds):
        """Turns exceptions of these kinds into a `UserError` about the file."""
        try:
            yield
        except kinds as error:
            while error.__cause__ is not None:
                error = error.__cause__
            raise UserError(
                f"Cannot use {self._path}, which holds the trials: {one_line(error)}. Restore the "
                "file or free disk space, or choose another --sweep_dir."
            ) from error

    def trials(self):
        """Returns all trials, a list of `Trial` in the order of their numbers."""
        with self._using(_DAMAGE):
            return [self._trial(them) for them in self._study.get_trials(deepcopy=False)]

    def _trial(self, found):
        state = {"RUNNING": RUNNING, "COMPLETE": COMPLETE}.get(found.state.name, FAILED)
        values = {axis.flag: str(found.params[axis.flag]) for axis in self._axes}
        value = found.value if state == COMPLETE else None
        return Trial(found.number, values, state, value, found.user_attrs.get(_REASON))

    def propose(self, problem_of):
        """Adds a trial to the file.

        It depends on the trials before it alone. TPE treats those that run as bad, so that it
        proposes other values (its constant liar).

        Args:
            problem_of: Function of a dict from flag to string that returns why no run can have
                these values, or None. With a problem, the trial has failed.

        Returns:
            The `Trial`.
        """
        # Optuna adds a trial first and its values later. A copy in memory draws these: a process
        # that is killed leaves a whole trial in the file, or none.
        with self._using(_DAMAGE):
            trials = self._study.get_trials(deepcopy=False)
        sampler = self._optuna.samplers.TPESampler(seed=len(trials), constant_liar=True)
        copy = self._optuna.create_study(direction="maximize", sampler=sampler)
        copy.add_trials(trials)
        drawn = copy.ask(self._distributions).params
        params = {axis.flag: axis.rounded(drawn[axis.flag]) for axis in self._axes}
        problem = problem_of({flag: str(value) for flag, value in params.items()})
        states = self._optuna.trial.TrialState
        with self._using(self._optuna.exceptions.StorageInternalError):
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    state=states.RUNNING if problem is None else states.FAIL,
                    params=params,
                    distributions=self._distributions,
                    user_attrs={} if problem is None else {_REASON: problem},
                )
            )
        return self.trials()[-1]

    def tell(self, number, value):
        """Notes the value of a trial, a float, or with None that it has failed."""
        state = self._optuna.trial.TrialState
        with self._using(self._optuna.exceptions.StorageInternalError):
            self._study.tell(number, value, state=state.FAIL if value is None else state.COMPLETE)


def _check_file(path):
    """Raises an exception if a file is not a SQLite database, or is damaged."""
    files.require_regular(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        ((answer, *_), *_) = connection.execute("PRAGMA quick_check(1)").fetchall()
    if answer != "ok":
        raise ValueError(answer)


def _distribution(axis):
    """Returns the distribution of Optuna for a `tune.Axis`."""
    from optuna import distributions

    if axis.choices:
        return distributions.CategoricalDistribution(axis.choices)
    if isinstance(axis.low, int):
        return distributions.IntDistribution(axis.low, axis.high, axis.is_log, axis.step or 1)
    return distributions.FloatDistribution(axis.low, axis.high, axis.is_log, axis.step)
