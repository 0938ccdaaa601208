# SPDX-License-Identifier: Apache-2.0
"""Experiment trackers: MLflow, Weights & Biases and Trackio show the numbers of a run, if asked.

A tracker gets the rows of metrics.csv and, at the end, the figures of result.json. The numbers of a
run are the same with and without one.

The Keras callbacks of these libraries do not fit. Those of MLflow and Weights & Biases log what
`fit` passes, which lacks the test accuracy, by epoch and not by step. They log an epoch twice if a
resumed run repeats it. That of Weights & Biases also imports TensorFlow. Trackio has none.
"""

import contextlib
import importlib
import io
import json
import math
import os
import shlex
import time
import uuid

from absl import logging

from ssl_noisy import files
from ssl_noisy.errors import UserError, one_line

NAME = "tracking.json"  # in the run folder: the id of the run, and what each tracker has
PROJECT = "ssl_noisy"  # unless an environment variable of the tracker has another name


class Tracker:
    """One run in one tracker, opened or continued.

    Args:
        library: The imported package.
        run_id: 32 hexadecimal digits, equal for all processes of a run.
        name: The name that people see.
        flags: Dict from name to value, the settings of the run.
        sent: Integer, the last step that was sent to this tracker, as far as the run folder
            knows; -1 for none.
    """

    environment = {}  # variables to set before the package is imported, unless the user has

    def __init__(self, library, run_id, name, flags, sent):
        self.library = library
        self.run_id = run_id
        self.name = name
        self.flags = flags
        self.sent = sent
        self.open()

    def open(self):
        """Starts or continues the run. It may correct `sent`."""

    def log(self, step, numbers):
        """Sends a dict of finite floats for one step."""
        raise NotImplementedError

    def finish(self, step, numbers, result, paths):
        """Sends the figures, the result (a dict) and the files of a finished run."""
        raise NotImplementedError

    def close(self, is_finished):
        """Ends this process's part of the run."""


class MLflow(Tracker):
    """A run of MLflow, through its client, which leaves the active run of the process alone."""

    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}

    def open(self):
        self.client = self.library.MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
        # The id stands in the run folder before the run exists: a kill in between leaves no orphan.
        tag = f"{PROJECT}.id"
        found = self.client.search_runs([experiment], f"tags.`{tag}` = '{self.run_id}'")
        if found:
            self.own = found[0].info.run_id
            self.client.update_run(self.own, status="RUNNING")
            sent = self.client.get_metric_history(self.own, "learning_rate")
            self.sent = max((metric.step for metric in sent), default=-1)
        else:
            tags = {tag: self.run_id}
            self.own = self.client.create_run(experiment, tags=tags, run_name=self.name).info.run_id
        if not found or not found[0].data.params:
            params = [self.library.entities.Param(k, v) for k, v in self.flags.items()]
            self.client.log_batch(self.own, params=params)

    def _experiment(self, name):
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return self.client.create_experiment(name)
            except self.library.MlflowException:  # another process was faster
                found = self.client.get_experiment_by_name(name)
        return found.experiment_id

    def log(self, step, numbers):
        now, entity = int(time.time() * 1000), self.library.entities.Metric
        metrics = [entity(name, value, now, step) for name, value in numbers.items()]
        self.client.log_batch(self.own, metrics=metrics)  # all or nothing

    def finish(self, step, numbers, result, paths):
        self.log(step, numbers)
        self.client.log_dict(self.own, result, "result.json")
        for path in paths:
            self.client.log_artifact(self.own, path)

    def close(self, is_finished):
        self.client.set_terminated(self.own, "FINISHED" if is_finished else "KILLED")


class WandB(Tracker):
    """A run of Weights & Biases: offline unless `WANDB_MODE` says otherwise.

    It writes in the background and cannot be asked what it has written. What a killed process
    leaves unwritten is missing there: rows are never sent twice.
    """

    environment = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}

    def open(self):
        settings = self.library.Settings(
            console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True
        )
        self.own = self.library.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=self.run_id,
            name=self.name,
            config=self.flags,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def log(self, step, numbers):
        self.own.log(numbers, step=step, commit=True)

    def finish(self, step, numbers, result, paths):
        self.own.summary.update(numbers)
        artifact = self.library.Artifact(f"run-{self.run_id}", type="run")
        with artifact.new_file("result.json") as file:
            json.dump(result, file, indent=2)
        for path in paths:
            artifact.add_file(path)
        self.own.log_artifact(artifact)

    def close(self, is_finished):
        self.own.finish(exit_code=0 if is_finished else 1)


class Trackio(Tracker):
    """A run of Trackio.

    Its thread sends later, and a killed process loses what it has not sent: each row is a session
    of its own, which ends when everything is written.
    """

    environment = {"HF_HUB_DISABLE_TELEMETRY": "1"}

    def log(self, step, numbers):
        with contextlib.redirect_stdout(io.StringIO()):  # it greets each session
            self.library.init(
                os.environ.get("TRACKIO_PROJECT") or PROJECT,
                name=f"{self.name}-{self.run_id[:8]}",  # the name identifies the run
                config=self.flags,
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            self.library.log(numbers, step=step)
            self.library.finish()

    def finish(self, step, numbers, result, paths):
        self.log(step, numbers)


# By their names in --logger, which are also those of the packages and of the extras.
TRACKERS = {"mlflow": MLflow, "wandb": WandB, "trackio": Trackio}


def usage():
    """Returns the trackers in one line, for help texts."""
    return ", ".join(TRACKERS)


def names(logger):
    """Returns the trackers of a value of `--logger`: names with commas between, or None.

    Raises:
        UserError: If there is no tracker of a name.
    """
    found = [name.strip() for name in logger.split(",")] if logger else []
    for name in found:
        if name not in TRACKERS:
            raise UserError(
                f"--logger must be one or more of {usage()}, with commas between. Received: "
                f"--logger={logger}"
            )
    return list(dict.fromkeys(found))


def _library(name):
    for variable, value in TRACKERS[name].environment.items():
        os.environ.setdefault(variable, value)
    return importlib.import_module(name)


def check(logger):
    """Raises a `UserError` if the package of a tracker cannot be imported."""
    for name in names(logger):
        try:
            _library(name)
        except ImportError as error:
            raise UserError(
                f"--logger={name} needs another package ({one_line(error)}). Install it: pip "
                f"install 'ssl_noisy[{name}]'."
            ) from error


class Trackers:
    """All trackers of one training.

    A tracker that cannot be opened is an error before the first step. If one fails later, a warning
    says so, the training goes on, and the next evaluation sends what is missing.

    Args:
        logger: As for `names`.
        run_dir: The run folder.
        name: The name of the run that people see.
        flags: Dict from name to value, the settings of the run.
    """

    def __init__(self, logger, run_dir, name, flags):
        self._run_dir = run_dir
        self._opened = {}
        if not logger:
            return
        self._saved = _read(run_dir)
        self._write()
        try:
            for kind in names(logger):
                self._opened[kind] = self._open(kind, name, flags)
        except BaseException:
            self.close()
            raise

    def _open(self, kind, name, flags):
        sent = self._saved["sent"].get(kind, -1)
        try:
            return TRACKERS[kind](_library(kind), self._saved["id"], name, flags, sent)
        except Exception as error:  # servers, databases, files: each library has its own
            raise UserError(
                f"--logger={kind} cannot start: {one_line(error)}. Check its settings, or leave it "
                "out."
            ) from error

    def _write(self):
        with files.replacing(os.path.join(self._run_dir, NAME), "w") as file:
            file.write(json.dumps(self._saved, indent=2) + "\n")

    def update(self, history):
        """Sends the rows that the trackers lack. `history` is that of the last checkpoint."""
        for kind, tracker in self._opened.items():
            self._send(kind, tracker, history, "The next evaluation tries again.")

    def _send(self, kind, tracker, history, advice):
        """Sends the rows that a tracker lacks. Returns whether it has all of them now."""
        for row in history:
            if row["step"] > tracker.sent:
                if not _succeeds(kind, advice, tracker.log, row["step"], _numbers(row)):
                    return False
                tracker.sent = self._saved["sent"][kind] = row["step"]
                self._write()  # after each row: a process killed later does not send it again
        return True

    def finish(self, history, result, paths):
        """Sends the result of a run and ends it. A run is finished where everything has arrived.

        Args:
            history: List of dicts, the rows of metrics.csv.
            result: The content of result.json.
            paths: Paths of files to keep as artifacts, where a tracker keeps files.
        """
        figures = {f"test_accuracy_{k}": v for k, v in result["test_accuracy"].items()}
        end = (history[-1]["step"], _numbers(figures), result, paths)
        flagfile = shlex.quote(os.path.join(self._run_dir, "flags.cfg"))
        command = f"python -m ssl_noisy.train --flagfile={flagfile}"
        command += f" --run_dir={shlex.quote(self._run_dir)}"
        finished = self._saved["finished"] if self._opened else []
        for kind in list(self._opened):
            tracker = self._opened[kind]
            advice = f"The run folder has everything. Send it: {command} --logger={kind}"
            has_all = self._send(kind, tracker, history, advice)
            if has_all and kind not in finished and _succeeds(kind, advice, tracker.finish, *end):
                finished.append(kind)
                self._write()
            self._close(kind, is_finished=has_all and kind in finished)

    def close(self):
        """Ends this process's part of the runs, which are unfinished."""
        for kind in list(self._opened):
            self._close(kind, is_finished=False)

    def _close(self, kind, is_finished):
        advice = "The run may look unfinished there."
        _succeeds(kind, advice, self._opened.pop(kind).close, is_finished)


def _read(run_dir):
    """Returns the content of the file `NAME` of a run folder, or that of a new one."""
    path = os.path.join(run_dir, NAME)
    try:
        with open(path, encoding="utf-8") as file:
            saved = json.load(file)
        sent = {kind: int(step) for kind, step in saved["sent"].items()}
        return {"id": str(saved["id"]), "sent": sent, "finished": list(saved["finished"])}
    except FileNotFoundError:
        return {"id": uuid.uuid4().hex, "sent": {}, "finished": []}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"Cannot read {path}, which names the run in its trackers: {error}. Delete it to track "
            "the run as a new one."
        ) from error


def lacking(logger, run_dir):
    """Returns those trackers of `logger` to which a finished run has not sent everything."""
    wanted = names(logger)
    finished = _read(run_dir)["finished"] if wanted else []
    return [kind for kind in wanted if kind not in finished]


def _numbers(row):
    """Returns what trackers can draw: the finite numbers of a row, without its place."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in ("step", "epoch") and value is not None and math.isfinite(value)
    }


def _succeeds(kind, advice, function, *arguments):
    """Calls a tracker. An error becomes a warning: a server that is down stops no training."""
    try:
        function(*arguments)
    except Exception as error:
        logging.warning("--logger=%s failed: %s. %s", kind, one_line(error), advice)
        return False
    return True
