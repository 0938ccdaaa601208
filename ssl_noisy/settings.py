# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: typed, checked, and written as a flagfile."""

import dataclasses
import hashlib
import os
import re

from ssl_noisy import arguments, conflicts, methods, networks, optimizers, schedules
from ssl_noisy.arguments import above, at_least, choice, count, string, switch
from ssl_noisy.data import label_noise, noise_models, pictures, sources
from ssl_noisy.data.label_budget import DRAWS
from ssl_noisy.data.task import RESIDENCES
from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection
from ssl_noisy.runs import trackers
from ssl_noisy.selection import rules

STUDENT = "distill"  # the method of all rounds but the first
REMOVERS = tuple(name for name in methods.names() if methods.get(name).removes_labels)
RANDOM = "random weights"  # what a training begins with unless `Settings.beginning` says otherwise
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
PLOT_FORMATS = ("png", "pdf", "svg")


def _setting(argument, is_place=False, identifies=True):
    """A field of `Settings`.

    Args:
        argument: Its `Argument`.
        is_place: Whether it is a path of this machine. A place does not identify a run.
        identifies: Whether it is part of what a run computes. If not, a run may resume with
            another value.
    """
    metadata = {"argument": argument, "is_place": is_place}
    metadata["identifies"] = identifies and not is_place
    return dataclasses.field(default=argument.default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that a run depends on. Its fields, and the method's arguments, are the flags.

    None means that the method's or the data set's own default holds; `resolved()`
    fills those in. Units and ranges are in each field's help.

    Raises:
        UserError: For a value out of range, or an argument that the method does not take.
    """

    method: str = _setting(
        string("fixmatch", "Training method: the name of a file in ssl_noisy/methods.")
    )
    dataset: str = _setting(string("digits", f"The data: {sources.usage()}."))
    train_split: str | None = _setting(
        string(None, "Training images as a TFDS split, such as 'train[:45000]'.")
    )
    validation_split: str | None = _setting(string(None, "Validation images as a TFDS split."))
    test_split: str | None = _setting(string(None, "Test images as a TFDS split; none: no test."))
    test_share: float | None = _setting(
        arguments.interval(
            "(0, 1)",
            None,
            "Fraction of each class of your own data to test on if it has no test split. Unset: "
            "0.2.",
        )
    )
    image_size: str | None = _setting(
        string(
            None,
            "Size of picture files, as 96 or HEIGHTxWIDTH. Unset or auto: their own if all have "
            "the same, else the median, at most 128.",
        )
    )
    fit: str | None = _setting(
        choice(
            None,
            pictures.FITS,
            "How a picture of another shape gets this size: scaled and cropped to the center, "
            "scaled and padded with black, or stretched. Unset: crop.",
        )
    )
    skip_unreadable: bool | None = _setting(
        switch(None, "Leave out damaged picture files, which are an error otherwise.")
    )
    labels_csv: str | None = _setting(
        string(
            None,
            "Corrections of labels: a CSV file with the columns file (or index) and label. An "
            "empty label means unlabeled, and 'remove' leaves the example out.",
        )
    )
    num_labels: int | None = _setting(
        count(None, "Number of training images that keep their label. Unset: all.")
    )
    label_draw: str = _setting(
        choice(
            "balanced",
            (*DRAWS, *rules.BY_FEATURES),
            "How to choose them: per class, over all classes, the first, or by --features, as "
            "python -m ssl_noisy.choose does.",
        )
    )
    label_seed: int | None = _setting(arguments.seed(None, "Seed of that choice. Unset: --seed."))
    label_file: str | None = _setting(string(None, "Read the choice from this JSON file instead."))
    features: str | None = _setting(
        string(
            None,
            "Feature file of the images, as python -m ssl_noisy.features writes it: for "
            "--label_draw and --method=scan, and to look for wrong labels by four more detectors. "
            "With --network=linear or mlp it replaces the images.",
        )
    )
    num_clusters: int | None = _setting(
        count(
            None,
            "Clusters that a method such as scan finds. Unset: the number of classes.",
            minimum=2,
        )
    )
    noise: str | None = _setting(
        string(
            None,
            f"Wrong labels to train on, KIND:VALUE with a RATE in [0, 1): {label_noise.usage()}.",
        )
    )
    noise_draw: str | None = _setting(
        choice(
            None,
            noise_models.DRAWS,
            "Change exactly the fraction of labels that the noise rate says, or toss a coin for "
            "each label. Unset: exact.",
        )
    )
    noise_seed: int | None = _setting(arguments.seed(None, "Seed of the noise. Unset: --seed."))
    keep_best: bool | None = _setting(
        switch(
            None,
            "The model is that of the best validation accuracy, the first one of equals, not the "
            "last. Needs a validation split.",
        )
    )
    noisy_validation: bool | None = _setting(
        switch(
            None,
            "Train as if nobody knew the true labels of the validation split: --noise changes "
            "them too.",
        )
    )
    cifarn_file: str | None = _setting(
        string(
            None, "Published CIFAR-N file, .pt or .npy, for --noise=cifarn:KEY. Unset: TFDS's data."
        )
    )
    remove_labels: str | None = _setting(
        choice(None, REMOVERS, "Before training, remove the labels that this method flags.")
    )
    network: str = _setting(
        string("wrn_28_2", f"A name that `python -m ssl_noisy` lists, or {networks.usage()}.")
    )
    weights: str | None = _setting(
        string(
            None,
            "Weights that a keras: network begins with: imagenet, none for random ones, or a file "
            "without the top, .h5 or .weights.h5. Unset: imagenet.",
        )
    )
    initial_weights: str | None = _setting(
        string(
            None,
            "Folder of a finished run with the same network, or its model.keras. All layers but "
            "the last begin with its weights.",
        )
    )
    teacher: str | None = _setting(
        string(
            None,
            "Folder of a finished run, or its model.keras, whose predictions the method distill "
            "learns. It may have another network.",
        )
    )
    rounds: int | None = _setting(
        count(
            None,
            "Trainings in a row, the first by --method. Each later one distills the one before it, "
            "from scratch or from --initial_weights. Unset: 1.",
            bits=4,
        )
    )
    freeze: str | None = _setting(
        string(
            None,
            "Layers that keep their weights: none, backbone (all but the last layer) or the name "
            "of a stage, up to which all are frozen; any other name lists the stages. Unset: none.",
        )
    )
    backbone_learning_rate_multiplier: float | None = _setting(
        arguments.interval(
            "(0, 1]", None, "Factor of the learning rate, for all layers but the last. Unset: 1."
        )
    )
    batch_norm_momentum: float | None = _setting(
        arguments.momentum(
            None, "Momentum of batch norm's running statistics. Unset: the network's own."
        )
    )
    batch_norm_epsilon: float | None = _setting(
        above(0, None, "What batch norm adds to the variance. Unset: the network's own.")
    )
    normalization: str = _setting(
        choice(
            "scale",
            networks.NORMALIZATIONS,
            "First layer of the network: scale pixels to [-1, 1]; subtract each channel's mean and "
            "divide by its standard deviation, of the training images (dataset) or ImageNet's; or "
            "whiten patches of 2x2 pixels (whitening), which speeds up learning in short runs.",
        )
    )
    steps: int | None = _setting(count(None, "Optimizer updates. Unset: the paper's number."))
    steps_per_epoch: int | None = _setting(count(None, "Updates between two evaluations."))
    max_seconds: float | None = _setting(
        above(
            0,
            None,
            "End the training after the evaluation before this time is over, with compilation and "
            "all parts of a resumed run. Unset: no limit.",
        )
    )
    optimizer: str | None = _setting(
        choice(
            None,
            optimizers.OPTIMIZERS,
            "Keras optimizer. Unset: that of the method, mostly sgd. Any other one uses its own "
            "default learning rate and momentum. With adamw and muon, --weight_decay is decoupled "
            "instead of a term of the loss. Muon is for dense kernels, AdamW for the rest.",
        )
    )
    learning_rate: float | None = _setting(above(0, None, "Initial learning rate."))
    schedule: str | None = _setting(
        choice(None, schedules.SCHEDULES, "Decay of the learning rate.")
    )
    momentum: float | None = _setting(
        arguments.momentum(None, "Momentum of SGD and Muon; beta_1 of Adam and AdamW.")
    )
    nesterov: bool | None = _setting(switch(None, "Use Nesterov's momentum in SGD and Muon."))
    seed: int = _setting(arguments.seed(0, "Seed of weights, order, augmentation and labels."))
    precision: str = _setting(choice("float32", PRECISIONS, "Keras dtype policy."))
    jit_compile: str = _setting(
        choice(
            "auto",
            ("auto", "on", "off"),
            "Compile with XLA. auto: with an accelerator, or on JAX. On a CPU TensorFlow is slower "
            "with it.",
        )
    )
    num_devices: int | None = _setting(
        count(
            None,
            "Devices that train together, each on its part of every batch. Needs JAX. Unset: 1.",
        )
    )
    num_processes: int | None = _setting(
        count(
            None,
            "Processes of this run, one on each host, which a launcher starts with the same flags. "
            "Each has as many of --num_devices. Needs JAX. Unset: 1.",
        )
    )
    steps_per_execution: int = _setting(count(1, "Steps per call of the compiled function."))
    resident: str | None = _setting(
        choice(
            None,
            RESIDENCES,
            "Where the training images are: all on the device, or on the host, which sends those "
            "of each step, to the same results. auto: on the device unless they are larger than "
            "--resident_limit. Unset: auto.",
        ),
        identifies=False,
    )
    resident_limit: float | None = _setting(
        above(
            0,
            None,
            "Size in GB up to which --resident=auto puts the training images on the device. Unset: "
            "half of its memory.",
        ),
        identifies=False,
    )
    evaluation_batch_size: int = _setting(count(250, "Test images per batch."))
    baseline: str | None = _setting(
        string(
            None,
            "Another method to train first, with the same labels, network and settings; '' for "
            "none.",
        )
    )
    checkpoint_seconds: float = _setting(
        at_least(0, 60.0, "Seconds between checkpoints. Each evaluation writes one too.")
    )
    examples_order: str | None = _setting(
        choice(
            None,
            detection.ORDERS,
            "Order of the rows of examples.csv: by index, or the most suspicious label first. "
            "Unset: index.",
        )
    )
    plots: bool = _setting(switch(True, "Draw the pictures of the run folder."))
    plot_format: str | None = _setting(
        choice(None, PLOT_FORMATS, "File format of these pictures. Unset: png."), identifies=False
    )
    logger: str | None = _setting(
        string(
            None,
            f"Trackers that show the run too, one or more with commas between: {trackers.usage()}. "
            "Unset: none.",
        ),
        identifies=False,
    )
    run_dir: str | None = _setting(
        string(None, "Folder of the run. Unset: runs/ and a name made of the flags."), is_place=True
    )
    data_dir: str | None = _setting(
        string(None, "Folder in which TFDS keeps its data sets."), is_place=True
    )
    cache_dir: str | None = _setting(
        string(None, "Folder in which decoded data sets are kept."), is_place=True
    )
    method_arguments: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in fields():
            _check(field, getattr(self, field.name))
        trackers.names(self.logger)
        pictures.parse_size(self.image_size)
        conflicts.check(self)

    @property
    def learner_class(self):
        return methods.get(self.method)

    @property
    def remover(self):
        """Name of the method that finds the labels to leave out, or None."""
        return self.method if self.learner_class.removes_labels else self.remove_labels

    @property
    def student(self):
        """Name of the method of all rounds but the first, or None without several rounds."""
        return STUDENT if (self.rounds or 1) > 1 else None

    def takes(self):
        """The arguments that may be given: the method's, the remover's and the student's own."""
        takes = methods.arguments(self.method)
        for other in filter(None, (self.remove_labels, self.student)):
            takes = {**methods.own_arguments(other), **takes}
        return takes

    @property
    def learner_arguments(self):
        """Those of `method_arguments` that are the method's."""
        takes = methods.arguments(self.method)
        return {k: v for k, v in self.method_arguments.items() if k in takes}

    def defaults(self):
        """The values of what is unset: as the method's paper trains, at most one epoch of steps."""
        paper = self.learner_class.training_defaults
        if networks.is_head(self.network):
            paper = {**paper, **networks.HEAD_TRAINING}
        defaults = {**paper, "label_seed": self.seed}
        if self.optimizer not in (None, paper["optimizer"]):
            defaults = {k: v for k, v in defaults.items() if k not in ("momentum", "nesterov")}
            defaults.update(optimizers.DEFAULTS[self.optimizer])
        noise = {"noise_seed": self.seed, "noise_draw": "exact"}
        defaults.update({k: v for k, v in noise.items() if k in label_noise.flags_of(self.noise)})
        if networks.takes_weights(self.network):
            defaults["weights"] = "imagenet"
        unset = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        steps = unset.get("steps", self.steps)
        unset["steps_per_epoch"] = min(unset.get("steps_per_epoch", self.steps_per_epoch), steps)
        return unset

    def resolved(self):
        """Returns these settings with the method's own defaults written out."""
        values = {name: argument.default for name, argument in self.takes().items()}
        values.update(self.method_arguments)
        return dataclasses.replace(self, **self.defaults(), method_arguments=values)

    def for_baseline(self):
        """Returns the settings of the baseline run: the same, as far as its method takes them."""
        return self.for_method(self.baseline)

    def for_method(self, method, **changes):
        """Returns the settings of another method's training, with the arguments that it takes.

        Args:
            method: Name of the method.
            **changes: Other values of settings or of its arguments.
        """
        here = self.resolved()
        takes = methods.arguments(method)
        arguments = {k: v for k, v in here.method_arguments.items() if k in takes}
        arguments.update({k: changes.pop(k) for k in list(changes) if k in takes})
        here = dataclasses.replace(
            here,
            method=method,
            remove_labels=None,
            rounds=None,
            teacher=here.teacher if methods.get(method).needs_teacher else None,
            method_arguments={},
        )
        changes = {"baseline": None, "run_dir": None, "method_arguments": arguments, **changes}
        return dataclasses.replace(here, **changes)

    def residence(self):
        """Returns where the images of a task are: fields of `Task`."""
        return {"resident": self.resident or "auto", "resident_limit": self.resident_limit}

    def beginning(self):
        """Returns what a training begins with, as text; None for random weights.

        Results of different beginnings do not belong in one table.
        """
        before = self._beginning_of_network()
        if not self.teacher or not os.path.isabs(self.teacher):  # that of a round: the same run
            return before
        return f"{before or RANDOM}, taught by {self.teacher}"

    def _beginning_of_network(self):
        if networks.is_head(self.network):
            return f"frozen features in {self.features}"
        if self.initial_weights:
            return f"the weights of {self.initial_weights}"
        weights = self.weights or "imagenet"
        if networks.takes_weights(self.network) and weights != "none":
            return f"{weights} weights of {self.network}"
        return f"the weights of {self.network}" if networks.is_file(self.network) else None

    def written(self):
        """Returns what is set, resolved, and not `run_dir`, as a dict from name to value."""
        resolved = self.resolved()
        values = {f.name: getattr(resolved, f.name) for f in fields() if f.name != "run_dir"}
        values.update(sorted(resolved.method_arguments.items()))
        return {name: value for name, value in values.items() if value is not None}

    def flag_lines(self, identifying=False):
        """Returns the resolved settings as the lines of a flagfile, `run_dir` left out.

        Args:
            identifying: Whether to leave out the lines that say nothing about what a run computes.
        """
        lines = [_flag_line(name, value) for name, value in self.written().items()]
        return identifying_lines(lines) if identifying else lines

    def default_run_dir(self):
        """Returns `runs/METHOD_DATASET_LABELS_seedN_HASH`; other settings, another folder."""
        dataset = re.sub(r"\W+", "_", self.dataset).strip("_")[-40:]
        lines = self.flag_lines(identifying=True)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
        labels = f"{self.num_labels or 'all'}"
        name = f"{self.method}_{dataset}_{labels}_seed{self.seed}_{digest}"
        return absolute_path(os.path.join("runs", name))


def fields():
    """Returns the dataclass fields of `Settings` that are flags, each with its `Argument`."""
    return [f for f in dataclasses.fields(Settings) if f.name != "method_arguments"]


def identifying_lines(lines):
    """Returns the lines of a flagfile that say what a run computes, not where its files lie."""
    others = tuple(f"--{f.name}=" for f in fields() if not f.metadata["identifies"])
    return [line for line in lines if not line.startswith(others)]


def _flag_line(name, value):
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={value}"


def _check(field, value):
    name = f"--{field.name}"
    field.metadata["argument"].checked(value, name, name)
    # A flagfile has one setting per line, in UTF-8; the system's own paths contain no NUL.
    if isinstance(value, str) and re.search("[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise UserError(
            f"{name} must be UTF-8 text without control characters. Received: {value!r}"
        )
    if isinstance(value, str) and len(value) > 4096:  # the longest path of Linux
        raise UserError(f"{name} must have at most 4096 characters. Received: {len(value)} of them")


def absolute_path(path):
    """Resolves `path` against where the user stands, under `bazel run` too."""
    return os.path.abspath(
        os.path.join(os.environ.get("BUILD_WORKING_DIRECTORY", ""), os.path.expanduser(path))
    )
