# SPDX-License-Identifier: Apache-2.0
"""One training: what it learns from, where its files go, and the learner of its settings."""

import dataclasses
import os
import random
import typing

import keras
import numpy as np
from keras import ops

from ssl_noisy import contract, devices, model_file, networks, optimizers, schedules, streams
from ssl_noisy.data.sources import Dataset
from ssl_noisy.data.task import Task
from ssl_noisy.errors import UserError
from ssl_noisy.runs import cost, folder, frozen
from ssl_noisy.runs.labeling import Labels
from ssl_noisy.settings import Settings


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """A training of a run: the run's own, that of its baseline, an earlier round or a pass of AUM.

    Attributes:
        settings: The `Settings` to train with.
        run_dir: The folder for its files.
        dataset: The `Dataset`.
        labels: The `Labels` that its report is about.
        task: The `Task` that its learner sees.
        stream: Text stream for progress; None is standard output.
        is_part: Whether the run needs this training first and is not this training.
    """

    settings: Settings
    run_dir: str
    dataset: Dataset
    labels: Labels
    task: Task
    stream: typing.TextIO | None = None
    is_part: bool = False

    @property
    def is_wrong(self):
        """Bool array `(num_labels,)`: which given labels are wrong. None if nobody knows."""
        if self.labels.noise is None:
            return None
        return self.labels.given != self.dataset.labels[self.labels.positions]

    @property
    def validation_labels(self):
        """The labels that validation compares with, or None without a validation split."""
        noise = self.labels.validation_noise
        return self.dataset.validation_labels if noise is None else noise.given_labels

    def part(self, name, settings, **changes):
        """Returns a training that this one needs first, in the folder `name` of this one."""
        run_dir = os.path.join(self.run_dir, name)
        changes = {"settings": settings, "run_dir": run_dir, "is_part": True, **changes}
        return dataclasses.replace(self, **changes)


def make_learner(settings, task, notes=None, run_dir=""):
    """Builds network, learner and optimizer, compiled and ready for `fit`.

    Args:
        settings: The `Settings`.
        task: The `Task`.
        notes: Optional list, to which lines about the user's network and the teacher are appended.
        run_dir: Folder of the training, from which the path of the teacher of a round starts.
    """
    settings = settings.resolved()
    devices.make_repeatable()
    # Keras draws the seeds of initializers and dropout from here; its own `set_random_seed`
    # would import TensorFlow on JAX.
    random.seed(settings.seed)
    network = _make_network(settings, task, notes)
    arguments, weight_decay = dict(settings.learner_arguments), 0.0
    if settings.optimizer in optimizers.DECOUPLED:  # the optimizer decays, not the loss
        weight_decay, arguments["weight_decay"] = arguments["weight_decay"], 0.0
    if settings.learner_class.needs_teacher:
        arguments["teacher"] = _read_teacher(settings, task, notes, run_dir)
    learner = settings.learner_class(
        network, task, steps=settings.steps, seed=settings.seed, **arguments
    )
    for other in learner.networks[1:]:
        if networks.is_own(settings.network):
            contract.restart(other, _make_network(settings, task), learner.network)
        elif settings.initial_weights is not None:
            networks.copy_body(other, learner.network)
    learner.restart_averages()
    learner.compile(
        optimizers.make(
            settings.optimizer,
            schedules.learning_rate(settings.schedule, settings.learning_rate, settings.steps),
            learner.trainable_variables,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=weight_decay,
            decayed=learner.decayed_variables(),
            backbone=_backbone(settings, learner),
            backbone_multiplier=settings.backbone_learning_rate_multiplier or 1.0,
        ),
        jit_compile={"auto": "auto", "on": True, "off": False}[settings.jit_compile],
        steps_per_execution=settings.steps_per_execution,
    )
    learner.optimizer.build(learner.trainable_variables)
    with streams.held_stderr():
        # Keras imports TensorFlow, if it is installed, to serialize: in `batches`, in saving, and
        # on JAX too. TensorFlow prints notices when it is imported.
        learner.get_compile_config()
    _rehearse(learner)
    return learner


def _make_network(settings, task, notes=None):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(settings.precision)
    options = {} if settings.weights is None else {"weights": settings.weights}
    try:
        normalization = statistics = None
        if networks.is_head(settings.network):
            statistics = networks.feature_statistics(task.images)
        else:
            normalization = networks.pixel_normalization(settings.normalization, task.images)
        network = networks.build(
            settings.network,
            task.image_shape,
            task.num_classes,
            batch_norm_momentum=settings.batch_norm_momentum,
            batch_norm_epsilon=settings.batch_norm_epsilon,
            normalization=normalization,
            notes=notes,
            statistics=statistics,
            **options,
        )
        if settings.initial_weights is not None:
            _begin_with(settings, task, network)
        elif settings.learner_class.begins_with_clusters:
            raise UserError(
                f"--method={settings.method} needs --initial_weights=RUN, a run that found "
                "clusters, such as one of --method=scan. Received: none."
            )
        if settings.freeze is not None:
            networks.freeze(network, settings.freeze)
        return network
    finally:
        keras.config.set_dtype_policy(before)


def _begin_with(settings, task, network):
    """Gives a network the weights of a run's model, but for the last layer in most methods."""
    path = settings.initial_weights
    other, metadata = _read_model(path)
    try:
        networks.copy_body(network, other)
    except UserError as error:
        raise UserError(f"--initial_weights={path} cannot be used: {error}.") from error
    if settings.learner_class.begins_with_clusters:
        if metadata.class_names != task.class_names:
            raise UserError(
                f"--method={settings.method} begins with {task.num_classes} clusters: "
                "--initial_weights must be a run that found as many, such as one of "
                f"--method=scan. Received: a model of {', '.join(metadata.class_names)}"
            )
        contract.head(network).set_weights(contract.head(other).get_weights())


def _read_model(path):
    """Returns what `model_file.read` does, of a file or of the run in a folder."""
    is_file, before = path.endswith(".keras"), random.getstate()
    found = model_file.read(path if is_file else os.path.join(path, folder.MODEL))
    random.setstate(before)  # Keras has drawn initial weights for the model of the file, too
    return found


def _input(features):
    return "images" if features is None else f"features by the network {features}"


def _read_teacher(settings, task, notes, run_dir):
    """Returns the network that `settings.teacher` names; it must know the classes of the task."""
    if settings.teacher is None:
        raise UserError(
            f"--method={settings.method} needs --teacher=RUN, the folder of a finished run, or its "
            "model.keras. Received: none."
        )
    path = os.path.normpath(os.path.join(run_dir, settings.teacher))
    teacher, metadata = _read_model(path)
    names, own = metadata.class_names, task.class_names
    try:
        if metadata.features != (here := frozen.source(settings)):
            raise UserError(
                f"The teacher must take the same input: {_input(here)}. Received: one that takes "
                f"{_input(metadata.features)}"
            )
        contract.check_teacher(teacher, task.image_shape, task.num_classes)
        if names != own and names != tuple(map(str, range(len(names)))):
            one, other = next(pair for pair in zip(names, own) if pair[0] != pair[1])
            raise UserError(
                "The teacher must know the classes of the task, in the same order. Received: one "
                f"with {one!r} where the task has {other!r}"
            )
    except UserError as error:
        reason = str(error).replace("The", "the", 1)
        raise UserError(f"--teacher={settings.teacher} cannot be used: {reason}.") from error
    if notes is not None:
        notes.append(f"The teacher is {settings.teacher}.")
    return teacher


def _backbone(settings, learner):
    """Returns the variables that `backbone_learning_rate_multiplier` slows down."""
    if settings.backbone_learning_rate_multiplier in (None, 1):
        return []
    return [v for network in learner.networks for v in contract.backbone_variables(network)]


def _rehearse(learner):
    """Makes data that the method cannot use fail now, before anything is written."""
    cost.check_memory(learner)
    _ = learner.batches()[0]
    before = ops.copy(learner.seed_generator.state.value)
    first = np.zeros(1, "int32")
    learner.weak_view(learner.images(first), first)
    learner.seed_generator.state.assign(before)
