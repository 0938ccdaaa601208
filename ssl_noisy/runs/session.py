# SPDX-License-Identifier: Apache-2.0
"""The Keras callback that trains, evaluates, saves and resumes."""

import json
import os
import time

import keras
from absl import logging
from keras import ops

from ssl_noisy import devices, files, machine, model_file, networks
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.learner import PSEUDO_LABEL_ACCURACY
from ssl_noisy.runs import (
    checkpoint,
    cost,
    evaluation,
    folder,
    frozen,
    plots,
    representation,
    signals,
    trackers,
)
from ssl_noisy.runs.clock import Clock
from ssl_noisy.runs.metrics import TensorBoard, read_metrics, write_metrics
from ssl_noisy.runs.progress import Progress

ASK_EVERY = 20  # steps between two questions whether a process of several got a signal


class Interrupted(Exception):
    """A signal stopped the run after it was saved."""

    def __init__(self, message, signum):
        super().__init__(message)
        self.signum = signum


class Session(keras.callbacks.Callback):
    """One process's part of a training, from its start or resumption to its end.

    It acts before steps and after epochs. Keras passes no metrics before a step, so no step waits
    for a number to reach the host.

    Args:
        training: The `Training`.
        learner: Its `Learner`, compiled.
        spent: Float, the seconds that passes of AUM took before it.
    """

    def __init__(self, training, learner, spent=0.0):
        super().__init__()
        self.settings = training.settings.resolved()
        self.learner = learner
        self.dataset = training.dataset
        self.validation_labels = training.validation_labels
        self.run_dir = training.run_dir
        self.history = []
        self.done = 0
        self.progress = Progress(self.settings.steps, self.settings.method, training.stream)
        self.request = signals.Request()
        self.signum = None
        self.began_at = time.monotonic()
        self.clock = Clock(self.settings.max_seconds, spent)
        self._unfinished_epoch = None

    def train(self):
        """Restores the newest checkpoint and trains to the end.

        Raises:
            Interrupted: After a signal, once everything is saved.
            Diverged: If the loss or the weights are not finite.
        """
        steps, length = self.settings.steps, self.settings.steps_per_epoch
        saved = checkpoint.restore(self.run_dir, self.learner, steps, length)
        if saved is not None:
            self.done, self.history = saved["step"], saved["history"]
            self.clock.resume(saved.get("clock"))
            self._unfinished_epoch = [v.numpy() for v in self._metric_variables()]
            if self.history:
                self.progress.measured(self.history[-1])
        self.saved_at = time.monotonic()
        self.done_before = self.done
        self.tensorboard = TensorBoard(self.run_dir, self.done)
        self._introduce()
        self.trackers = open_trackers(self.settings, self.run_dir, self.settings.logger)
        try:
            self.trackers.update(self.history)
            self._fit()
            if self.settings.keep_best:
                checkpoint.restore_best(self.run_dir, self.learner, self.chosen["step"])
        except BaseException:
            self.trackers.close()
            raise

    def _fit(self):
        steps, length = self.settings.steps, self.settings.steps_per_epoch
        with signals.deferred() as self.request:
            while self.done < steps and not self.clock.is_over:
                # All epochs of a call of `fit` have the same length. The rest of an interrupted
                # epoch and a short last epoch are calls of their own.
                epoch, offset = divmod(self.done, length)
                epochs = (steps - self.done) // length if offset == 0 else 0
                part = length if epochs else min(length - offset, steps - self.done)
                self._offset = offset
                self.learner.fit(
                    self.learner.batches(self.settings.seed, self.done, self.dataset.labels),
                    initial_epoch=epoch,
                    epochs=epoch + max(epochs, 1),
                    steps_per_epoch=part,
                    callbacks=[self],
                    verbose=0,
                    shuffle=False,  # the batches are already shuffled
                )
        if self._is_asked():
            self._stop()

    @property
    def counted(self):
        """The rows of the history that ended in time, of which `keep_best` chooses one."""
        return self.history[: -1 if self.clock.is_late and self.settings.keep_best else None]

    @property
    def chosen(self):
        """The row of the history whose weights are the model."""
        rows = self.counted
        return rows[evaluation.best_of(rows)] if self.settings.keep_best else rows[-1]

    def _introduce(self):
        network, task, settings = self.learner.network, self.learner.task, self.settings
        where = machine.environment()
        size = evaluation.batch_size(settings, self.dataset)
        steps = cost.describe(self.learner, settings.steps - self.done, size)
        self.progress.note(
            f"{settings.method} on {self.dataset.name}: {task.num_examples} images, "
            f"{len(task.labeled)} labeled; {settings.network} with "
            f"{evaluation.num_parameters(network):,} parameters; {where['backend']} on "
            f"{where['device']}; {steps}; {self.run_dir}"
            + (f"; resuming at step {self.done}" if self.done else "")
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.clock.epoch_begins()
        self._first = epoch * self.settings.steps_per_epoch + self._offset
        if self._offset and self._unfinished_epoch is not None:
            for variable, value in zip(self._metric_variables(), self._unfinished_epoch):
                variable.assign(value)
        self._unfinished_epoch = None

    def on_train_batch_begin(self, batch, logs=None):
        self.clock.step_begins()
        self.done = self._first + batch
        if self._is_asked(batch):
            self.save()
            self._stop()
        if time.monotonic() - self.saved_at > self.settings.checkpoint_seconds:
            self.save()
        if self.progress.is_due():
            self._sync()
            self.progress.show(self.done, self._running_metrics())

    def on_epoch_end(self, epoch, logs=None):
        self.done = min((epoch + 1) * self.settings.steps_per_epoch, self.settings.steps)
        self._check_finite()
        self.history.append(self._row(epoch, logs))
        self.clock.epoch_ends(is_first=len(self.history) == 1)
        if self.clock.is_over:
            self.learner.stop_training = True
        if self.settings.keep_best and self.chosen is self.history[-1]:
            self._sync()
            checkpoint.save(self.run_dir, self.learner, {"step": self.done}, checkpoint.BEST)
        write_metrics(self.run_dir, self.history)
        self.tensorboard.write(self.history[-1])
        self.save()
        self.trackers.update(self.history)  # rows that no checkpoint has would be sent again
        self.progress.measured(self.history[-1])
        self.progress.show(self.done, self._running_metrics(), is_final=True)
        if self._is_asked():
            self._stop()

    def _row(self, epoch, logs):
        """Returns the row of `metrics.csv` for an epoch."""
        data = self.dataset
        batch_size = evaluation.batch_size(self.settings, self.dataset)
        row = {"step": self.done, "epoch": epoch + 1}
        row["learning_rate"] = float(ops.convert_to_numpy(self.learner.optimizer.learning_rate))
        row.update({k: float(v) for k, v in logs.items()})
        if row.get("mask_rate") == 0 and PSEUDO_LABEL_ACCURACY in row:
            row[PSEUDO_LABEL_ACCURACY] = None  # no pseudo-label was kept
        labels = self.validation_labels
        row.update(evaluation.row(self.learner, data, labels, batch_size))
        if self.learner.learns_features:
            row.update(representation.measure(self.learner, data, labels, batch_size))
        return row

    def save(self):
        """Writes a checkpoint.

        Raises:
            Diverged: If the loss or the weights are not finite. Nothing is written then.
        """
        self._sync()
        self._check_finite()
        metadata = {"step": self.done, "history": self.history, "clock": self.clock.state()}
        checkpoint.save(self.run_dir, self.learner, metadata)
        self.saved_at = time.monotonic()

    def _check_finite(self):
        step = int(ops.convert_to_numpy(self.learner.first_nonfinite_step))
        if step >= 0:
            terms = ", ".join(f"{k} {v:.4g}" for k, v in self._running_metrics().items())
            raise checkpoint.Diverged(
                f"The loss is not finite from step {step} on ({terms}). Lower --learning_rate, or "
                "check --precision and --weight_decay."
            )

    def _running_metrics(self):
        results = self.learner.get_metrics_result()
        found = {k: float(ops.convert_to_numpy(v)) for k, v in results.items() if k != "accuracy"}
        if found.get("mask_rate") == 0:
            found.pop(PSEUDO_LABEL_ACCURACY, None)  # no pseudo-label was kept
        return found

    def _metric_variables(self):
        return [v for metric in self.learner.metrics for v in metric.variables]

    def _sync(self):
        # On JAX, Keras keeps the state of a running `fit` outside the model's variables.
        if hasattr(self.learner, "jax_state_sync"):
            self.learner.jax_state_sync()

    def _is_asked(self, step=0):
        """Whether to stop now. Several processes, of which one may get a signal, agree."""
        if devices.num_processes() == 1:
            self.signum = self.request.signum
        elif step % ASK_EVERY == 0:
            self._sync()
            ops.convert_to_numpy(self.learner.step)  # a step in progress exchanges numbers, too
            self.signum = devices.largest(self.request.signum or 0)
        return bool(self.signum)

    def _stop(self):
        message = f"Stopped at step {self.done}. The run is saved in {self.run_dir}."
        raise Interrupted(message, self.signum)

    def finish(self, result):
        """Writes the model, the pictures and last `result.json`, which marks the end."""
        self.tensorboard.close()
        model = os.path.join(self.run_dir, folder.MODEL)
        with self.learner.averaged_weights(), files.replacing_path(model) as path:
            networks.portable(self.learner.classifier).save(path)
            metadata = model_file.Metadata(
                self._output_names(),
                self.dataset.fit,
                result["calibration"]["temperature"],
                self.learner.task.image_shape,
                frozen.source(self.settings),
            )
            model_file.add_metadata(path, metadata)
        if self.settings.plots:
            self._draw()
        self._write_timing()
        self.trackers.finish(self.history, result, folder.results(self.run_dir))
        folder.write_result(self.run_dir, result)

    def _draw(self):
        """Draws the course of the training and the views."""
        kind, baseline = self.settings.plot_format, None
        beside = os.path.join(self.run_dir, folder.BASELINE)
        if self.settings.baseline and os.path.exists(os.path.join(beside, folder.METRICS)):
            baseline = (self.settings.baseline, read_metrics(beside))
        if any(key in self.history[-1] for key in plots.CURVES):  # not without any label
            plots.curves(self.history, folder.picture(self.run_dir, "curves", kind), baseline)
        if self.learner.task.views is None:  # of features there is nothing to see
            plots.views(self.learner, folder.picture(self.run_dir, "views", kind))

    def _output_names(self):
        """Returns the name of each output of the model."""
        names = self.learner.task.class_names  # AUM's class of threshold samples is no output
        return names if self.learner.finds_clusters else self.dataset.class_names or names

    def _write_timing(self):
        """Writes what may differ between two equal runs: times, machine, versions."""
        seconds = time.monotonic() - self.began_at
        steps = self.done - self.done_before
        timing = {
            "training_seconds": round(self.clock.counted, 3),
            "steps_since_last_start": steps,
            "seconds_since_last_start": round(seconds, 2),
            "steps_per_second": round(steps / seconds, 2),
            **machine.environment(),
        }
        folder.write_text(self.run_dir, folder.TIMING, json.dumps(timing, indent=2) + "\n")


def open_trackers(settings, run_dir, logger):
    """Returns the `Trackers` of a training. A baseline is named after its run, too."""
    parent, name = os.path.split(run_dir)
    if name == folder.BASELINE:
        name = f"{os.path.basename(parent)}/{name}"
    return trackers.Trackers(logger, run_dir, name, settings.resolved().written())


def track_finished(settings, run_dir, result):
    """Sends a finished training to those of its trackers that lack something.

    It logs a warning if the folder no longer has what they lack.

    Args:
        settings: Its `Settings`.
        run_dir: Its folder.
        result: The content of its `result.json`.

    Raises:
        UserError: If a tracker cannot be opened.
    """
    lacking = ",".join(trackers.lacking(settings.logger, run_dir))
    if not lacking:
        return
    trackers.check(lacking)
    try:
        history = [{**row, "step": int(row["step"])} for row in read_metrics(run_dir)]
    except UserError as error:
        logging.warning("%s has nothing to send to %s: %s", run_dir, lacking, one_line(error))
        return
    with folder.only_process(run_dir):
        opened = open_trackers(settings, run_dir, lacking)
        opened.finish(history, result, folder.results(run_dir))
