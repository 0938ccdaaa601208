# SPDX-License-Identifier: Apache-2.0
"""Refuses settings that contradict each other, and settings without effect."""

from ssl_noisy import methods, networks, optimizers
from ssl_noisy.data import label_noise, sources
from ssl_noisy.errors import UserError
from ssl_noisy.selection import rules

PICTURE_FLAGS = ("image_size", "fit", "skip_unreadable")
NOISE_FLAGS = ("noise_draw", "noise_seed", "cifarn_file")
# Flags about labels, and about methods that need some.
LABEL_FLAGS = ("num_labels", "label_draw", "label_file", "noise", "noisy_validation")
LABEL_FLAGS += ("remove_labels", "keep_best", "baseline")
NETWORK_FLAGS = ("weights", "batch_norm_momentum", "batch_norm_epsilon", "normalization")


def check(settings):
    """Checks settings, each of which is valid by itself, against each other.

    Args:
        settings: A `Settings`.

    Raises:
        UserError: For a flag that would have no effect, or two that exclude each other.
    """
    _check_method(settings)
    _check_dataset(settings)
    _check_clusters(settings)
    _check_features(settings)
    _check_noise(settings)
    _check_optimizer(settings)
    _check_network(settings)
    _check_steps(settings)
    _check_devices(settings)
    _check_teacher(settings)


def _check_method(settings):
    takes = settings.takes()
    for name in settings.method_arguments:
        if name not in takes:
            raise UserError(
                f"--{name} is not a flag of method {settings.method!r}, which takes: "
                + ", ".join(f"--{key}" for key in sorted(takes))
            )
    if settings.learner_class.removes_labels and settings.remove_labels:
        raise UserError(
            f"Method {settings.method!r} removes labels itself. Leave --remove_labels out. "
            f"Received: --remove_labels={settings.remove_labels}"
        )
    if settings.baseline is not None:
        _check_baseline(settings)


def _check_baseline(settings):
    name, cls = settings.baseline, methods.get(settings.baseline)
    if cls.finds_clusters:
        raise UserError(
            f"--baseline={name} finds clusters, whose accuracy is another one. Train it in a run "
            "of its own."
        )
    if cls.needs_teacher and not settings.learner_class.needs_teacher:
        raise UserError(
            f"--baseline={name} needs a teacher, which --method={settings.method} does not take. "
            "Train it in a run of its own."
        )
    if cls.needs_pixels and networks.is_head(settings.network):
        raise UserError(
            f"--baseline={name} makes its views of pixels, so it cannot learn from frozen "
            f"features. Use another one. Received: --network={settings.network}"
        )


def _check_dataset(settings):
    if sources.is_pictures(settings.dataset):
        return
    takers = (kind for kind, source in sources.SOURCES.items() if source.is_pictures)
    for name in PICTURE_FLAGS:
        if (value := getattr(settings, name)) is not None:
            raise UserError(
                f"--{name} has no effect with --dataset={settings.dataset}, only with "
                f"{', '.join(f'{kind}:' for kind in takers)}. Leave it out. Received: "
                f"--{name}={value}"
            )


def _check_clusters(settings):
    """Checks what a method that finds clusters, and sees no label, cannot use."""
    cls, method = settings.learner_class, settings.method
    if not cls.finds_clusters:
        if settings.num_clusters is not None:
            raise UserError(
                f"--num_clusters has no effect with --method={method}, which learns classes. Leave "
                f"it out. Received: --num_clusters={settings.num_clusters}"
            )
        return
    if settings.student:
        raise UserError(
            f"--rounds does not go with --method={method}, which finds clusters, not classes. "
            f"Leave it out. Received: --rounds={settings.rounds}"
        )
    unused = LABEL_FLAGS if cls.needs_features else (*LABEL_FLAGS, "features")
    for name in unused:
        value, default = getattr(settings, name), getattr(type(settings), name)
        if value != default:
            raise UserError(
                f"--{name} does not go with --method={method}, which finds clusters without any "
                f"label. Leave it out. Received: --{name}={value}"
            )


def _check_features(settings):
    if settings.label_draw in rules.BY_FEATURES and not settings.features:
        raise UserError(
            f"--label_draw={settings.label_draw} needs --features=FILE, which python -m "
            "ssl_noisy.features writes. Received: none."
        )
    if networks.is_head(settings.network):
        _check_head(settings)
        return
    if settings.learner_class.needs_features or settings.learner_class.finds_clusters:
        return  # see `_check_clusters`
    default = settings.takes()["record_examples"].default
    records = settings.method_arguments.get("record_examples", default)
    if settings.features and not records and settings.label_draw not in rules.BY_FEATURES:
        raise UserError(
            "--features has no effect without --record_examples and with "
            f"--label_draw={settings.label_draw}: it is for detectors of wrong labels and draws by "
            f"features. Leave it out. Received: --features={settings.features}"
        )


def _check_head(settings):
    if not settings.features:
        raise UserError(
            f"--network={settings.network} classifies frozen features. Pass --features=FILE, which "
            "python -m ssl_noisy.features --views=8 writes. Received: none."
        )
    for name in ("initial_weights", "freeze"):
        if value := getattr(settings, name):
            raise UserError(
                f"--{name} has no effect with --network={settings.network}, which is a last layer. "
                f"Leave it out. Received: --{name}={value}"
            )
    if settings.learner_class.needs_pixels:
        raise UserError(
            f"--method={settings.method} makes its views of pixels, so it cannot learn from frozen "
            f"features. Use a network of images, or another method. Received: "
            f"--network={settings.network}"
        )


def _check_noise(settings):
    if settings.noise:
        label_noise.check(settings.noise)
    takes = label_noise.flags_of(settings.noise)
    for name in NOISE_FLAGS:
        if (value := getattr(settings, name)) is not None and name not in takes:
            raise UserError(
                f"--{name} has no effect with --noise={settings.noise}, which takes: "
                + (", ".join(f"--{key}" for key in takes) or "no other flag")
                + f". Received: --{name}={value}"
            )
    if settings.noisy_validation and not settings.noise:
        raise UserError("--noisy_validation has no effect without --noise. Leave it out.")


def _check_optimizer(settings):
    chosen = settings.optimizer or settings.defaults()["optimizer"]
    if settings.nesterov is not None and "nesterov" not in optimizers.DEFAULTS[chosen]:
        takers = [name for name, takes in optimizers.DEFAULTS.items() if "nesterov" in takes]
        raise UserError(
            f"--nesterov has no effect with --optimizer={chosen}, only with "
            f"{' and '.join(takers)}. Leave it out. Received: --nesterov={settings.nesterov}"
        )


def _check_network(settings):
    takes = networks.accepted_options(settings.network)
    for name in NETWORK_FLAGS:
        value, default = getattr(settings, name), getattr(type(settings), name)
        if value != default and name not in takes:
            raise UserError(
                f"--{name} has no effect with --network={settings.network}, which takes: "
                + (", ".join(f"--{key}" for key in takes) or "no flag of its own")
                + f". Received: --{name}={value}"
            )
    if settings.freeze == "backbone" and settings.backbone_learning_rate_multiplier not in (
        None,
        1,
    ):
        raise UserError(
            "--backbone_learning_rate_multiplier has no effect with --freeze=backbone, which "
            "trains the last layer alone. Leave one of them out."
        )


def _check_steps(settings):
    if settings.resident_limit is not None and settings.resident not in (None, "auto"):
        raise UserError(
            f"--resident_limit has no effect with --resident={settings.resident}, only with auto. "
            f"Leave it out. Received: --resident_limit={settings.resident_limit}"
        )
    unset = settings.defaults()
    for name in ("steps", "steps_per_epoch"):
        value = unset.get(name, getattr(settings, name))
        if value % settings.steps_per_execution:
            raise UserError(
                f"--steps_per_execution must divide --{name}={value}. "
                f"Received: --steps_per_execution={settings.steps_per_execution}"
            )
    steps = unset.get("steps", settings.steps)
    methods.check(settings.method, steps=steps, **settings.learner_arguments)
    for other in filter(None, (settings.remove_labels, settings.student)):
        takes = methods.arguments(other)
        own = {k: v for k, v in settings.method_arguments.items() if k in takes}
        methods.check(other, **own)


def _check_devices(settings):
    count, processes = settings.num_devices or 1, settings.num_processes or 1
    if count % processes:
        raise UserError(
            f"--num_devices must be a multiple of --num_processes={processes}: it counts the "
            f"devices of all of them. Received: --num_devices={count}"
        )
    if processes > 1 and settings.max_seconds is not None:
        raise UserError(
            "--max_seconds does not work with --num_processes, whose clocks differ. Leave one of "
            f"them out. Received: --max_seconds={settings.max_seconds}"
        )
    defaults = {name: argument.default for name, argument in settings.takes().items()}
    for name, size in {**defaults, **settings.method_arguments}.items():
        if name.endswith("batch_size") and size % count:
            lower = size - size % count
            nearest = " or ".join(f"--{name}={n}" for n in (lower, lower + count) if n)
            raise UserError(
                f"--num_devices must divide --{name}={size}. Received: --num_devices={count}. "
                f"Use {nearest}."
            )


def _check_teacher(settings):
    if settings.teacher and not settings.learner_class.needs_teacher:
        takers = [name for name in methods.names() if methods.get(name).needs_teacher]
        raise UserError(
            f"--teacher has no effect with --method={settings.method}, only with "
            f"{' and '.join(takers)}. Leave it out. Received: --teacher={settings.teacher}"
        )
    weight = settings.method_arguments.get("distillation_weight", 1)
    if settings.student and settings.remover and weight < 1:
        raise UserError(
            "--distillation_weight must be 1 if the first round removes labels: later rounds would "
            f"learn the removed ones. Received: --distillation_weight={weight}"
        )
    if settings.student and settings.max_seconds is not None:
        raise UserError(
            "--max_seconds does not work with --rounds, which are several trainings. Leave one of "
            f"them out. Received: --max_seconds={settings.max_seconds}"
        )
