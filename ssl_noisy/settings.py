# SPDX-License-Identifier: Apache-2.0
"""The settings of a run: typed, checked, read from flags and written back as a flagfile."""

import dataclasses
import hashlib
import inspect
import math
import os
import re

from absl import flags

from ssl_noisy import files, methods, networks, optimizers, schedules
from ssl_noisy.data import label_noise, noise_models, sources
from ssl_noisy.data.label_budget import DRAWS
from ssl_noisy.errors import UserError

_FILES = ("label_file", "cifarn_file")
REMOVERS = tuple(name for name in methods.names() if methods.get(name).removes_labels)
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Integers are below 2 to this power: a step is an int32, NumPy's legacy seeds are uint32.
_BITS = {"seed": 32, "label_seed": 32, "noise_seed": 32}
_BITS.update(dict.fromkeys(("steps", "steps_per_epoch", "steps_per_execution"), 31))
_BITS.update(dict.fromkeys(("num_labels", "evaluation_batch_size"), 31))


def _setting(default, help, *, minimum=None, choices=None, is_place=False):
    """A field of `Settings`. `is_place`: a path of this machine, no part of what a run computes."""
    metadata = {"help": help, "minimum": minimum, "choices": choices, "is_place": is_place}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that a run depends on. Its fields, and the method's arguments, are the flags.

    None means that the method's or the data set's own default holds; `resolved()`
    fills those in. Units and ranges are in each field's help.

    Raises:
        UserError: For a value out of range, or an argument that the method does not take.
    """

    method: str = _setting("fixmatch", "the training method: a file of ssl_noisy/methods")
    dataset: str = _setting("digits", f"the data: {sources.usage()}")
    train_split: str | None = _setting(None, "training images, as a TFDS split: 'train[:45000]'")
    validation_split: str | None = _setting(None, "validation images, as a TFDS split")
    test_split: str | None = _setting(None, "test images, as a TFDS split")
    num_labels: int | None = _setting(
        None, "how many training images keep their label; unset: all", minimum=1
    )
    label_draw: str = _setting(
        "balanced", "how they are chosen: per class, over all, or the first", choices=DRAWS
    )
    label_seed: int | None = _setting(None, "seed of the choice; unset: --seed", minimum=0)
    label_file: str | None = _setting(None, "read the choice from this JSON file instead")
    noise: str | None = _setting(
        None,
        f"wrong labels to train on, KIND:VALUE with a RATE in [0, 1): {label_noise.usage()}",
    )
    noise_draw: str | None = _setting(
        None,
        "how labels are chosen: as many as the rate says (exact), or each by a coin (coin); "
        "unset: exact",
        choices=noise_models.DRAWS,
    )
    noise_seed: int | None = _setting(None, "seed of the noise; unset: --seed", minimum=0)
    cifarn_file: str | None = _setting(
        None, "the published CIFAR-N file, .pt or .npy, for --noise=cifarn:KEY; unset: TFDS's"
    )
    remove_labels: str | None = _setting(
        None, "remove the labels that this method flags, before training", choices=REMOVERS
    )
    network: str = _setting(
        "wrn_28_2", "wrn_DEPTH_WIDTH or a name that `python -m ssl_noisy` lists"
    )
    batch_norm_momentum: float | None = _setting(
        None, "momentum of the running statistics, in [0, 1); unset: the network's own", minimum=0
    )
    batch_norm_epsilon: float | None = _setting(
        None, "what batch norm adds to the variance, > 0; unset: the network's own", minimum=0
    )
    normalization: str = _setting(
        "scale",
        "the network's first layer: scale pixels to [-1, 1], or subtract the mean and divide by "
        "the standard deviation of each channel, of the training images (dataset) or ImageNet's",
        choices=networks.NORMALIZATIONS,
    )
    steps: int | None = _setting(None, "optimizer updates; unset: the paper's", minimum=1)
    steps_per_epoch: int | None = _setting(None, "updates between two evaluations", minimum=1)
    optimizer: str | None = _setting(
        None,
        "which of Keras's; unset: the method's own, mostly sgd. With another one, learning rate "
        "and momentum default to that optimizer's. With adamw and muon, --weight_decay is "
        "decoupled instead of a term of the loss. Muon is for dense kernels, AdamW for the rest",
        choices=optimizers.OPTIMIZERS,
    )
    learning_rate: float | None = _setting(None, "initial learning rate, > 0", minimum=0)
    schedule: str | None = _setting(None, "how it decays", choices=schedules.SCHEDULES)
    momentum: float | None = _setting(
        None, "momentum of SGD and Muon, beta_1 of Adam and AdamW, in [0, 1)", minimum=0
    )
    nesterov: bool | None = _setting(None, "whether SGD and Muon use Nesterov's momentum")
    seed: int = _setting(0, "seed of weights, order, augmentation and labels", minimum=0)
    precision: str = _setting("float32", "Keras dtype policy", choices=PRECISIONS)
    jit_compile: str = _setting(
        "auto",
        "XLA; auto: with an accelerator, or on JAX. On a CPU TensorFlow is slower with it",
        choices=("auto", "on", "off"),
    )
    steps_per_execution: int = _setting(1, "steps per call of the compiled function", minimum=1)
    evaluation_batch_size: int = _setting(250, "test images at a time", minimum=1)
    baseline: str | None = _setting(
        None, "another method to run first, with the same labels, network and settings; '' for none"
    )
    checkpoint_seconds: float = _setting(
        60.0, "time between checkpoints, seconds; each evaluation writes one too", minimum=0
    )
    plots: bool = _setting(True, "whether to draw curves.png and views.png")
    run_dir: str | None = _setting(
        None, "folder of the run; unset: runs/ and a name made of the flags", is_place=True
    )
    data_dir: str | None = _setting(None, "where TFDS keeps its data sets", is_place=True)
    cache_dir: str | None = _setting(None, "where decoded data sets are kept", is_place=True)
    method_arguments: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for field in _fields():
            _check(field, getattr(self, field.name))
        for name in ("momentum", "batch_norm_momentum"):
            value = getattr(self, name)
            if value is not None and value >= 1:
                raise UserError(f"--{name} must be in [0, 1). Received: --{name}={value}")
        for name in ("learning_rate", "batch_norm_epsilon"):
            if getattr(self, name) == 0:
                raise UserError(f"--{name} must be above 0. Received: --{name}=0.0")
        self._check_method_arguments()
        self._check_noise()
        self._check_optimizer()
        for name, bits in _BITS.items():
            if (getattr(self, name) or 0) >= 2**bits:
                raise UserError(
                    f"--{name} must be below 2**{bits}. Received: --{name}={getattr(self, name)}"
                )
        if self.baseline is not None:
            methods.get(self.baseline)
        networks.find(self.network)
        unset = self._defaults()
        for name in ("steps", "steps_per_epoch"):
            value = unset.get(name, getattr(self, name))
            if value % self.steps_per_execution:
                raise UserError(
                    f"--steps_per_execution must divide --{name}={value}. "
                    f"Received: --steps_per_execution={self.steps_per_execution}"
                )
        steps = unset.get("steps", self.steps)
        methods.check(self.method, steps=steps, **self.learner_arguments)
        if self.remove_labels:
            takes = methods.arguments(self.remove_labels)
            own = {k: v for k, v in self.method_arguments.items() if k in takes}
            methods.check(self.remove_labels, **own)

    def _check_method_arguments(self):
        takes = self._takes()
        for name in self.method_arguments:
            if name not in takes:
                raise UserError(
                    f"--{name} is not a flag of method {self.method!r}, which takes: "
                    + ", ".join(f"--{key}" for key in sorted(takes))
                )
        if self.learner_class.removes_labels and self.remove_labels:
            raise UserError(
                f"Method {self.method!r} removes labels itself. Leave --remove_labels out. "
                f"Received: --remove_labels={self.remove_labels}"
            )

    def _check_noise(self):
        if self.noise:
            label_noise.check(self.noise)
        takes = self._noise_settings()
        for name in ("noise_draw", "noise_seed", "cifarn_file"):
            if getattr(self, name) is not None and name not in takes:
                raise UserError(
                    f"--{name} has no effect with --noise={self.noise}, which takes: "
                    + (", ".join(f"--{key}" for key in takes) or "no other flag")
                    + f". Received: --{name}={getattr(self, name)}"
                )

    def _check_optimizer(self):
        chosen = self.optimizer or self._defaults()["optimizer"]
        if self.nesterov is not None and "nesterov" not in optimizers.DEFAULTS[chosen]:
            takers = [name for name, takes in optimizers.DEFAULTS.items() if "nesterov" in takes]
            raise UserError(
                f"--nesterov has no effect with --optimizer={chosen}, only with "
                f"{' and '.join(takers)}. Leave it out. Received: --nesterov={self.nesterov}"
            )

    def _noise_settings(self):
        """Names the settings beside `noise` that its kind takes."""
        return label_noise.flags_of(self.noise)

    @property
    def learner_class(self):
        return methods.get(self.method)

    @property
    def remover(self):
        """Name of the method that finds the labels to leave out, or None."""
        return self.method if self.learner_class.removes_labels else self.remove_labels

    def _takes(self):
        """The arguments that may be given: the method's, and the remover's own."""
        takes = methods.arguments(self.method)
        if self.remove_labels:
            own = methods.arguments(self.remove_labels)
            shared = methods.arguments("supervised")
            takes = {**{k: v for k, v in own.items() if k not in shared}, **takes}
        return takes

    @property
    def learner_arguments(self):
        """Those of `method_arguments` that are the method's."""
        takes = methods.arguments(self.method)
        return {k: v for k, v in self.method_arguments.items() if k in takes}

    def _defaults(self):
        """The values of what is unset: as the method's paper trains, at most one epoch of steps."""
        paper = {"optimizer": "sgd", **self.learner_class.training_defaults}
        defaults = {**paper, "label_seed": self.seed}
        if self.optimizer not in (None, paper["optimizer"]):
            defaults = {k: v for k, v in defaults.items() if k not in ("momentum", "nesterov")}
            defaults.update(optimizers.DEFAULTS[self.optimizer])
        noise = {"noise_seed": self.seed, "noise_draw": "exact"}
        defaults.update({k: v for k, v in noise.items() if k in self._noise_settings()})
        unset = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        steps = unset.get("steps", self.steps)
        unset["steps_per_epoch"] = min(unset.get("steps_per_epoch", self.steps_per_epoch), steps)
        return unset

    def resolved(self):
        """Returns these settings with the method's own defaults written out."""
        arguments = {name: parameter.default for name, parameter in self._takes().items()}
        arguments.update(self.method_arguments)
        return dataclasses.replace(self, **self._defaults(), method_arguments=arguments)

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
        here = dataclasses.replace(here, method=method, remove_labels=None, method_arguments={})
        changes = {"baseline": None, "run_dir": None, "method_arguments": arguments, **changes}
        return dataclasses.replace(here, **changes)

    def flag_lines(self, places=True):
        """Returns the resolved settings as the lines of a flagfile, `run_dir` left out."""
        resolved = self.resolved()
        values = {f.name: getattr(resolved, f.name) for f in _fields() if f.name != "run_dir"}
        values.update(sorted(resolved.method_arguments.items()))
        lines = [_flag_line(name, value) for name, value in values.items() if value is not None]
        return lines if places else without_places(lines)

    def default_run_dir(self):
        """Returns `runs/METHOD_DATASET_LABELS_seedN_HASH`; other settings, another folder."""
        dataset = re.sub(r"\W+", "_", self.dataset).strip("_")[-40:]
        lines = self.flag_lines(places=False)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
        labels = f"{self.num_labels or 'all'}"
        name = f"{self.method}_{dataset}_{labels}_seed{self.seed}_{digest}"
        return absolute_path(os.path.join("runs", name))


def _fields():
    return [f for f in dataclasses.fields(Settings) if f.name != "method_arguments"]


def without_places(lines):
    """Returns the lines of a flagfile that say what a run computes, not where its files lie."""
    places = tuple(f"--{f.name}=" for f in _fields() if f.metadata["is_place"])
    return [line for line in lines if not line.startswith(places)]


def _flag_line(name, value):
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    return f"--{name}={value}"


def _check(field, value):
    minimum, choices = field.metadata["minimum"], field.metadata["choices"]
    if value is None:
        return
    if choices and value not in choices:
        raise UserError(
            f"--{field.name} must be one of {', '.join(choices)}. Received: --{field.name}={value}"
        )
    # A flagfile holds a setting a line, in UTF-8; the system's own paths hold no NUL.
    if isinstance(value, str) and re.search("[\x00-\x1f\x7f\ud800-\udfff]", value):
        raise UserError(
            f"--{field.name} must be UTF-8 text without control characters. Received: {value!r}"
        )
    if isinstance(value, str) and len(value) > 4096:  # the longest path of Linux
        raise UserError(
            f"--{field.name} must have at most 4096 characters. Received: {len(value)} of them"
        )
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (not math.isfinite(value) or (minimum is not None and value < minimum)):
        bound = "finite" if minimum is None else f"a finite number, at least {minimum}"
        raise UserError(f"--{field.name} must be {bound}. Received: --{field.name}={value}")


# absl flags, read here and in the commands alone.

_DEFINE = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    str: flags.DEFINE_string,
}


def define_flags(flag_values):
    """Defines a flag for each field of `Settings` and each argument of any method.

    Returns:
        The list of their names.
    """
    for field in _fields():
        kind = next(t for t in _DEFINE if t in (field.type, *getattr(field.type, "__args__", ())))
        help = field.metadata["help"]
        if field.metadata["choices"]:
            help = f"{help}: {', '.join(field.metadata['choices'])}"
        _DEFINE[kind](field.name, field.default, help, flag_values=flag_values)
    for name, takers in method_flags().items():
        meanings = {}
        for method, (_, help) in takers.items():
            meanings.setdefault(help, []).append(method)
        help = " ".join(f"{text} (methods: {', '.join(them)})" for text, them in meanings.items())
        annotation = takers[min(takers)][0].annotation
        _DEFINE[annotation](name, None, help, flag_values=flag_values)
    return [*(field.name for field in _fields()), *method_flags()]


def method_flags():
    """Returns, for each argument of any method, a dict from method to `(parameter, help)`."""
    found = {}
    for method in methods.names():
        cls = methods.get(method)
        for name, parameter in methods.arguments(method).items():
            found.setdefault(name, {})[method] = (parameter, argument_help(cls, name))
    return found


def argument_help(cls, name):
    """Returns what the `Args` of a class's docstring, or its bases', say of an argument."""
    for base in cls.__mro__:
        doc = inspect.getdoc(base) or ""
        match = re.search(rf"^ +{name}: (.*?)(?=^ *\w+: |^\S|\Z)", doc, re.M | re.S)
        if match:
            return " ".join(match[1].split())
    raise ValueError(f"The docstring of {cls.__name__} does not document `{name}`.")


def check_flagfiles(arguments, within=()):
    """Raises the `UserError` of a flagfile that absl would read for ever or could not decode.

    Args:
        arguments: The words of a command line, or the lines of a flagfile.
        within: Paths of the flagfiles that they are in.
    """
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, equals, path = argument.lstrip("-").partition("=")
        path = os.path.expanduser((path if equals else following).strip())
        is_directive = argument.startswith("-") and name.strip() == "flagfile"
        if not is_directive or not os.path.exists(path):  # which absl says well
            continue
        if path in within:
            raise UserError(f"The flagfile {path!r} includes itself.")
        try:
            files.require_regular(path)
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, ValueError) as error:
            raise UserError(f"The flagfile {path!r} cannot be read: {error}.") from error
        check_flagfiles(lines, (*within, path))


def from_flags(flag_values):
    """Returns the `Settings` that the parsed flags state. Paths become absolute.

    Raises:
        UserError: As `Settings`.
    """
    values = {field.name: flag_values[field.name].value for field in _fields()}
    for field in _fields():
        if (field.metadata["is_place"] or field.name in _FILES) and values[field.name]:
            values[field.name] = absolute_path(values[field.name])
    for name, table in (("dataset", sources.SOURCES), ("noise", label_noise.KINDS)):
        kind, _, path = (values[name] or "").partition(":")
        if path and kind in table and table[kind].is_path:
            values[name] = f"{kind}:{absolute_path(path)}"
    if values["baseline"] in ("", values["method"]):
        values["baseline"] = None
    arguments = {n: flag_values[n].value for n in method_flags() if flag_values[n].present}
    made = Settings(**values, method_arguments=arguments)
    if made.baseline:
        made.for_baseline()  # which checks it too
    return made


def absolute_path(path):
    """Resolves `path` against where the user stands, under `bazel run` too."""
    return os.path.abspath(
        os.path.join(os.environ.get("BUILD_WORKING_DIRECTORY", ""), os.path.expanduser(path))
    )
