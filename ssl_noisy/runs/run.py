# SPDX-License-Identifier: Apache-2.0
"""One run: settings -> task, learner, fit, result.json. What the commands call."""

import contextlib
import dataclasses
import json
import os
import platform
import random
import sys
import time

import keras
import numpy as np
from keras import ops

from ssl_noisy import files, methods, networks, optimizers, quiet, schedules
from ssl_noisy.data import label_budget, label_noise, sources
from ssl_noisy.data.task import Task
from ssl_noisy.errors import UserError
from ssl_noisy.labels import aum, record
from ssl_noisy.learner import PSEUDO_LABEL_ACCURACY
from ssl_noisy.runs import checkpoint, cost, evaluation, folder, label_report, plots, signals
from ssl_noisy.runs.progress import Progress, TensorBoard, write_metrics


class Interrupted(Exception):
    """A signal stopped the run; it is saved."""

    def __init__(self, message, signum):
        super().__init__(message)
        self.signum = signum


def run(settings, stream=None):
    """Trains as `settings` say, resumes the run, or returns its result if it is finished.

    Args:
        settings: A `Settings`.
        stream: Text stream for progress; None is standard output.

    Returns:
        The content of the run's `result.json`, a dict. With `settings.baseline`
        it has the baseline's under `baseline`.

    Raises:
        UserError: With one line that says how to fix the problem. Nothing is written if
            a setting is wrong.
        Interrupted: On the first SIGINT, SIGTERM or SIGHUP, after saving.
    """
    run_dir = settings.run_dir or settings.default_run_dir()
    finished = folder.look_into(run_dir, settings)
    if finished is not None:
        return finished
    dataset, labels = load_labels(settings, run_dir)
    task = Task.from_dataset(dataset, labels.positions, labels.given)
    try:
        return _train(settings, run_dir, dataset, labels, task, stream)
    except checkpoint.Diverged as error:
        if folder.discard(run_dir):
            advice = f"Nothing was saved yet, so corrected flags may use {run_dir} again."
        else:
            advice = f"To change flags, choose another --run_dir: {run_dir} keeps what was saved."
        raise UserError(f"{error} {advice}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a run.

    Attributes:
        positions: Increasing int64 array `(num_labels,)`, the labeled examples.
        given: int32 array `(num_labels,)`, what a learner is told of them.
        how: How the positions were chosen.
        seed: Integer, the seed of that choice.
        noise: The `label_noise.Noise` that made `given` of the true labels, or None.
    """

    positions: np.ndarray
    given: np.ndarray
    how: str
    seed: int
    noise: label_noise.Noise | None


def _train(settings, run_dir, dataset, labels, task, stream):
    """Trains on `task` in `run_dir`, what comes before it first, and returns the result.

    That is a baseline, in the folder `baseline`, and passes that find labels to leave out, in
    `pass_1` and `pass_2`.
    """
    learner = make_learner(settings, task)
    remover, samples = _remover(settings, learner, labels)
    files.make_folder(run_dir)
    with folder.only_process(run_dir):
        folder.look_into(run_dir, settings)  # another process may have begun here meanwhile
        _open_folder(run_dir, settings, dataset, labels)
        baseline = None
        if settings.baseline:
            its_dir, its_settings = os.path.join(run_dir, "baseline"), settings.for_baseline()
            baseline = folder.look_into(its_dir, its_settings)
            if baseline is None:
                baseline = _train(its_settings, its_dir, dataset, labels, task, stream)
        found = None
        if remover is not None:
            found = _passes(settings, remover, samples, run_dir, dataset, labels, task, stream)
            if "unlabeled" not in learner.streams():  # the images of the others are not seen
                settings = settings.after_removal(1 - float(np.mean(found.flagged)))
            learner = make_learner(settings, task.relabeled(found.removed, -1))
        session = Session(settings, learner, dataset, run_dir, stream)
        if found is not None:
            session.progress.note(
                f"AUM removes {len(found.removed)} of {len(labels.positions)} labels. The training "
                f"on the others has {session.settings.steps} steps."
            )
        if labels.noise is not None:
            summary = label_noise.summary(
                labels.noise, dataset.labels[labels.positions], dataset.num_classes
            )
            session.progress.note(label_noise.describe(summary, dataset.class_names))
        session.train()
        result = _result(settings, learner, dataset, labels, session.history)
        if labels.noise is not None:
            result["noise"] = summary
        result.update(_examine(settings, learner, dataset, labels, found, run_dir))
        if baseline is not None:
            result["baseline"] = baseline
        session.finish(result)
    return result


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """What the passes of AUM say of the labeled examples.

    Attributes:
        record: Dict of arrays `(num_labels,)`, as `record.read`, the mean over the passes in
            which an example was no threshold sample.
        flagged: bool array `(num_labels,)`.
        removed: Increasing int64 array, the positions of the flagged examples.
        thresholds: List of floats, the threshold of each pass.
        num_threshold_samples: Integer, how many there were in each.
    """

    record: dict
    flagged: np.ndarray
    removed: np.ndarray
    thresholds: list
    num_threshold_samples: int


def _remover(settings, learner, labels):
    """Returns the learner whose arguments say which labels to remove, and threshold samples."""
    if not settings.remover:
        return None, None
    remover = learner
    if settings.remove_labels:
        arguments = settings.resolved().method_arguments
        takes = methods.arguments(settings.remove_labels)
        own = {k: v for k, v in arguments.items() if k in takes}
        remover = methods.get(settings.remove_labels)(learner.network, **own)
    sets = aum.threshold_sets(
        labels.positions,
        learner.task.num_classes,
        seed=settings.seed,
        size=remover.threshold_samples,
    )
    return remover, sets


def _passes(settings, remover, sets, run_dir, dataset, labels, task, stream):
    """Makes the passes of AUM, or reads those that are done, and returns what they `Found`."""
    its_settings = settings.for_pass()
    records, flags, judges, thresholds = [], [], [], []
    for number, samples in enumerate(sets, 1):
        its_dir = os.path.join(run_dir, f"pass_{number}")
        is_done = folder.look_into(its_dir, its_settings) is not None
        if not is_done or not os.path.exists(os.path.join(its_dir, folder.EXAMPLES)):
            its_task = task.relabeled(samples, task.num_classes, "threshold sample")
            its_labels = dataclasses.replace(
                labels, given=its_task.given_labels[labels.positions], noise=None
            )
            _train(its_settings, its_dir, dataset, its_labels, its_task, stream)
        one = label_report.read_record(its_dir, dataset.ids[labels.positions], task.num_classes)
        # The class of the threshold samples is no suggestion.
        one["prediction"] = np.where(
            one["prediction"] < task.num_classes, one["prediction"], record.UNKNOWN
        )
        is_judge = ~np.isin(labels.positions, samples)
        thresholds.append(aum.threshold(one["aum"][~is_judge], remover.threshold_percentile))
        flags.append(one["aum"] < thresholds[-1])
        judges.append(is_judge)
        records.append(record.masked(one, is_judge))
    flagged = aum.combined(flags, judges, remover.combine)
    if flagged.all():
        raise UserError(
            f"AUM flags all {len(flagged)} labels, which leaves nothing to train on. Lower "
            f"--threshold_percentile={remover.threshold_percentile} or train longer."
        )
    removed = labels.positions[flagged]
    return Found(record.average(records), flagged, removed, thresholds, len(sets[0]))


def _examine(settings, learner, dataset, labels, found, run_dir):
    """Writes what the record says of the labels, and returns it for the result."""
    own = {name: tuple(v[labels.positions] for v in d) for name, d in learner.detected().items()}
    if found is not None:
        kept, threshold = found.record, float(np.mean(found.thresholds))
        own = {"aum": (-kept["aum"], found.flagged), **own}
    elif learner.record_examples:
        kept, threshold = learner.example_record(labels.positions), 0.0
    else:
        return {}
    truth = None if labels.noise is None else dataset.labels[labels.positions]
    report = label_report.write(
        run_dir,
        dataset,
        labels.positions,
        labels.given,
        kept,
        own=own,
        aum_threshold=threshold,
        is_wrong=None if truth is None else labels.given != truth,
        draw=settings.plots and (labels.noise is not None or found is not None),
    )
    result = {"label_quality": report}
    if found is not None:
        result["removed_labels"] = {
            "count": int(found.flagged.sum()),
            "thresholds": [v if np.isfinite(v) else None for v in found.thresholds],
            "num_threshold_samples": found.num_threshold_samples,
        }
    return result


def load_labels(settings, run_dir=None):
    """Loads the data, chooses the labeled examples and their labels, or reads what a run chose.

    Returns:
        A tuple of the `Dataset` and the `Labels`.
    """
    dataset = sources.load(
        settings.dataset,
        data_dir=settings.data_dir,
        cache_dir=settings.cache_dir,
        train_split=settings.train_split,
        validation_split=settings.validation_split,
        test_split=settings.test_split,
    )
    positions, origin = _labeled_positions(settings, dataset, run_dir)
    noise = None
    if settings.noise:
        kept = run_dir and os.path.join(run_dir, folder.NOISE)
        if kept and os.path.exists(kept):
            with _own_file(kept):
                noise = label_noise.read(kept, dataset, positions)
        else:
            resolved = settings.resolved()
            noise = label_noise.make(
                settings.noise,
                dataset,
                positions,
                seed=resolved.noise_seed or 0,
                draw=resolved.noise_draw or "exact",
                cifarn_file=settings.cifarn_file,
                data_dir=settings.data_dir,
            )
    given = dataset.labels[positions] if noise is None else noise.given_labels
    return dataset, Labels(positions, given, origin["how"], origin["seed"], noise)


def _labeled_positions(settings, dataset, run_dir):
    # A run that goes on reads its labels; drawing again would let new labels in.
    kept = run_dir and os.path.join(run_dir, folder.LABELS)
    is_kept = bool(kept) and os.path.exists(kept)
    label_file = kept if is_kept else settings.label_file
    if label_file:
        with _own_file(kept) if is_kept else contextlib.nullcontext():
            positions, content = label_budget.read(label_file, dataset)
        if settings.num_labels not in (None, len(positions)):
            raise UserError(
                f"{label_file} labels {len(positions)} examples. Received: "
                f"--num_labels={settings.num_labels}. Leave that flag out, or use another file."
            )
        return positions, {"how": content.how, "seed": content.seed}
    if settings.num_labels is None:
        return np.arange(len(dataset.labels)), {"how": "all", "seed": 0}
    origin = {"how": settings.label_draw, "seed": settings.resolved().label_seed}
    positions = label_budget.draw(
        dataset.labels, settings.num_labels, num_classes=dataset.num_classes, **origin
    )
    return positions, origin


@contextlib.contextmanager
def _own_file(path):
    """Says what to do about a file of the run itself that its reader refuses."""
    try:
        yield
    except UserError as error:
        raise UserError(
            f"{error} {path} belongs to this run. If the data are unchanged, delete it, and the "
            "same command writes it again; otherwise choose another --run_dir."
        ) from error


def make_learner(settings, task):
    """Builds network, learner and optimizer, compiled and ready for `fit`."""
    settings = settings.resolved()
    before = keras.config.dtype_policy()
    # TensorFlow orders some additions by the names of layers, and Keras numbers those. Without
    # this, a learner that follows a baseline in one process, and the same one resumed in another,
    # differ in the last bits.
    keras.utils.clear_session(free_memory=False)
    # Keras draws the seeds of initializers and dropout from here; its own `set_random_seed`
    # would import TensorFlow on JAX.
    random.seed(settings.seed)
    keras.config.set_dtype_policy(settings.precision)
    try:
        network = networks.build(
            settings.network,
            task.image_shape,
            task.num_classes,
            batch_norm_momentum=settings.batch_norm_momentum,
            batch_norm_epsilon=settings.batch_norm_epsilon,
            normalization=networks.pixel_normalization(settings.normalization, task.images),
        )
    finally:
        keras.config.set_dtype_policy(before)
    arguments, weight_decay = dict(settings.learner_arguments), 0.0
    if settings.optimizer in optimizers.DECOUPLED:  # the optimizer decays, not the loss
        weight_decay, arguments["weight_decay"] = arguments["weight_decay"], 0.0
    learner = settings.learner_class(
        network, task, steps=settings.steps, seed=settings.seed, **arguments
    )
    learner.compile(
        optimizers.make(
            settings.optimizer,
            schedules.learning_rate(settings.schedule, settings.learning_rate, settings.steps),
            learner.trainable_variables,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=weight_decay,
            decayed=learner.decayed_variables(),
        ),
        jit_compile={"auto": "auto", "on": True, "off": False}[settings.jit_compile],
        steps_per_execution=settings.steps_per_execution,
    )
    learner.optimizer.build(learner.trainable_variables)
    with quiet.held_stderr():
        # To serialize, which `batches` and saving do, Keras imports TensorFlow where there is one,
        # on JAX too, and that greets.
        learner.get_compile_config()
    _rehearse(learner)
    return learner


def _rehearse(learner):
    """Lets data that the method cannot use fail now, before anything is written."""
    cost.check_memory(learner)
    _ = learner.batches()[0]
    before = ops.copy(learner.seed_generator.state.value)
    first = np.zeros(1, "int32")
    learner.weak_view(learner.images(first), first)
    learner.seed_generator.state.assign(before)


def _open_folder(run_dir, settings, dataset, labels):
    folder.begin(run_dir, settings)
    path = os.path.join(run_dir, folder.LABELS)
    if not os.path.exists(path):
        label_budget.write(path, dataset, labels.positions, how=labels.how, seed=labels.seed)
    path = os.path.join(run_dir, folder.NOISE)
    if labels.noise is not None and not os.path.exists(path):
        label_noise.write(path, dataset, labels.positions, labels.noise)


class Session(keras.callbacks.Callback):
    """The part of a run between its start or resumption and its end.

    It acts before steps and after epochs: Keras hands the former no metrics,
    so no step waits for a number to reach the host.
    """

    def __init__(self, settings, learner, dataset, run_dir, stream=None):
        super().__init__()
        self.settings = settings.resolved()
        self.learner = learner
        self.dataset = dataset
        self.run_dir = run_dir
        self.history = []
        self.done = 0
        self.progress = Progress(self.settings.steps, self.settings.method, stream)
        self.request = signals.Request()
        self.began_at = time.monotonic()
        self._unfinished_epoch = None

    def train(self):
        """Restores the newest checkpoint and trains to the end."""
        steps, length = self.settings.steps, self.settings.steps_per_epoch
        record = checkpoint.restore(self.run_dir, self.learner, steps, length)
        if record is not None:
            self.done, self.history = record["step"], record["history"]
            self._unfinished_epoch = [v.numpy() for v in self._metric_variables()]
            self.progress.accuracy = self.history[-1]["test_accuracy"] if self.history else None
        self.saved_at = time.monotonic()
        self.done_before = self.done
        self.tensorboard = TensorBoard(self.run_dir, self.done)
        self._introduce()
        with signals.deferred() as self.request:
            while self.done < steps:
                # Keras epochs are of one length: the rest of an epoch, and a short last one, are
                # calls of their own.
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
                    shuffle=False,  # the batches come shuffled
                )
        self._stop_if_asked()

    def _introduce(self):
        network, task, settings = self.learner.network, self.learner.task, self.settings
        where = environment()
        size = _evaluation_batch_size(settings, self.dataset)
        steps = cost.describe(self.learner, settings.steps - self.done, size)
        self.progress.note(
            f"{settings.method} on {self.dataset.name}: {task.num_examples} images, "
            f"{len(task.labeled)} labeled; {settings.network} with "
            f"{num_parameters(network):,} parameters; {where['backend']} on {where['device']}; "
            f"{steps}; {self.run_dir}" + (f"; going on at step {self.done}" if self.done else "")
        )

    def on_epoch_begin(self, epoch, logs=None):
        self._first = epoch * self.settings.steps_per_epoch + self._offset
        if self._offset and self._unfinished_epoch is not None:
            for variable, value in zip(self._metric_variables(), self._unfinished_epoch):
                variable.assign(value)
        self._unfinished_epoch = None

    def on_train_batch_begin(self, batch, logs=None):
        self.done = self._first + batch
        if self.request.signum:
            self.save()
            self._stop_if_asked()
        if time.monotonic() - self.saved_at > self.settings.checkpoint_seconds:
            self.save()
        if self.progress.is_due():
            self._sync()
            self.progress.show(self.done, self._running_metrics())

    def on_epoch_end(self, epoch, logs=None):
        self.done = min((epoch + 1) * self.settings.steps_per_epoch, self.settings.steps)
        self._check_finite()
        self.history.append(self._row(epoch, logs))
        write_metrics(self.run_dir, self.history)
        self.tensorboard.write(self.history[-1])
        self.save()
        self.progress.accuracy = self.history[-1]["test_accuracy"]
        self.progress.show(self.done, self._running_metrics(), is_final=True)
        self._stop_if_asked()

    def _row(self, epoch, logs):
        data, batch_size = self.dataset, _evaluation_batch_size(self.settings, self.dataset)
        row = {"step": self.done, "epoch": epoch + 1}
        row["learning_rate"] = float(ops.convert_to_numpy(self.learner.optimizer.learning_rate))
        row.update({k: float(v) for k, v in logs.items()})
        if row.get("mask_rate") == 0:
            row[PSEUDO_LABEL_ACCURACY] = None  # of no labels
        if data.validation_images is not None:
            row["validation_accuracy"], _ = evaluation.evaluate(
                self.learner, data.validation_images, data.validation_labels, batch_size
            )
        row["test_accuracy"], _ = evaluation.evaluate(
            self.learner, data.test_images, data.test_labels, batch_size
        )
        return row

    def save(self):
        """Writes a checkpoint of this moment, unless the loss has ceased to be finite."""
        self._sync()
        self._check_finite()
        record = {"step": self.done, "history": self.history}
        checkpoint.save(self.run_dir, self.learner, record)
        self.saved_at = time.monotonic()

    def _check_finite(self):
        step = int(ops.convert_to_numpy(self.learner.first_nonfinite_step))
        if step >= 0:
            terms = ", ".join(f"{k} {v:.4g}" for k, v in self._running_metrics().items())
            raise checkpoint.Diverged(
                f"The loss is not finite from step {step} on ({terms}). Look at --learning_rate, "
                "--precision and --weight_decay."
            )

    def _running_metrics(self):
        results = self.learner.get_metrics_result()
        found = {k: float(ops.convert_to_numpy(v)) for k, v in results.items() if k != "accuracy"}
        if found.get("mask_rate") == 0:
            del found[PSEUDO_LABEL_ACCURACY]  # of no labels
        return found

    def _metric_variables(self):
        return [v for metric in self.learner.metrics for v in metric.variables]

    def _sync(self):
        # On JAX, Keras keeps the state of a running `fit` outside the model's variables.
        if hasattr(self.learner, "jax_state_sync"):
            self.learner.jax_state_sync()

    def _stop_if_asked(self):
        if self.request.signum:
            message = f"Stopped at step {self.done}; {self.run_dir} is saved."
            raise Interrupted(message, self.request.signum)

    def finish(self, result):
        """Writes the model, the pictures and at last `result.json`, which marks the end."""
        self.tensorboard.close()
        model = os.path.join(self.run_dir, folder.MODEL)
        with self.learner.averaged_weights(), files.replacing_path(model) as path:
            networks.portable(self.learner.network).save(path)
        if self.settings.plots:
            plots.curves(self.history, os.path.join(self.run_dir, "curves.png"))
            plots.views(self.learner, os.path.join(self.run_dir, "views.png"))
        self._write_timing()
        folder.write_result(self.run_dir, result)

    def _write_timing(self):
        """Writes what may differ between two equal runs: times, machine, versions."""
        seconds = time.monotonic() - self.began_at
        steps = self.settings.steps - self.done_before
        timing = {
            "steps_since_last_start": steps,
            "seconds_since_last_start": round(seconds, 2),
            "steps_per_second": round(steps / seconds, 2),
            **environment(),
        }
        folder.write_text(self.run_dir, folder.TIMING, json.dumps(timing, indent=2) + "\n")


def _evaluation_batch_size(settings, dataset):
    """Returns the one size of all batches of evaluations: no larger than the larger set."""
    validation = dataset.validation_labels
    largest = max(len(dataset.test_labels), 0 if validation is None else len(validation))
    return min(settings.evaluation_batch_size, largest)


def num_parameters(network):
    """Returns the number of trainable parameters, as papers count them."""
    return sum(int(np.prod(v.shape)) for v in network.trainable_variables)


def environment():
    """Returns backend, versions and device, for records of measurements."""
    backend = keras.backend.backend()
    found = [d for d in keras.distribution.list_devices() if not d.startswith("cpu")]
    return {
        "backend": backend,
        "device": ", ".join(found) or f"cpu, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: sys.modules[name].__version__ for name in ("keras", backend, "numpy")},
    }


def _result(settings, learner, dataset, labels, history):
    settings = settings.resolved()
    _, recall = evaluation.evaluate(
        learner,
        dataset.test_images,
        dataset.test_labels,
        _evaluation_batch_size(settings, dataset),
    )
    last = {k: v for k, v in history[-1].items() if k not in ("step", "epoch")}
    return {
        "method": settings.method,
        "dataset": f"{dataset.name} {dataset.version}",
        "num_labels": len(labels.positions),
        "labels_sha256": label_budget.digest(dataset, labels.positions),
        "seed": settings.seed,
        "network": settings.network,
        "parameters": num_parameters(learner.network),
        "steps": settings.steps,
        "backend": keras.backend.backend(),
        "test_accuracy": evaluation.summarize(history),
        "per_class_recall": {
            name: None if np.isnan(value) else float(value)
            for name, value in zip(dataset.class_names, recall)
        },
        "last_epoch": last,
    }
