# SPDX-License-Identifier: Apache-2.0
"""What the runs of an entry may do, and their settings."""

import dataclasses
import re

from ssl_noisy import challenge, recipes, run_flags
from ssl_noisy.data.dataset import NO_TEST
from ssl_noisy.errors import UserError
from ssl_noisy.networks import own
from ssl_noisy.settings import fields

CUSTOM = "custom"  # the regime of other data than CIFAR-N, as `score` calls it
SPLITS = ("train[:90%]", "train[90%:]")  # training and noisy validation
# Recipes: the default of an entry, which fits its clock, and the baseline of the challenge.
DEFAULTS = {
    "cifar10": "promix_cifar10n_worse_entry",
    "cifar100": "promix_cifar100n_entry",
}
BASELINES = {
    "cifar10": "supervised_cifar10n_worse_challenge",
    "cifar100": "supervised_cifar100n_challenge",
}
_SETS = {"all": "cifar10", "all100": "cifar100"}  # all ranked regimes of a data set
NOISE_TYPES = (*challenge.REGIMES, *_SETS)
# What the organizers forbid, or what an entry decides itself, and why.
_REFUSED = {
    "labels_csv": "corrections would tell it what is wrong",
    "label_file": "all labels of the regime are used",
    "num_labels": "all labels of the regime are used",
    "initial_weights": "their network may have seen other images",
    "teacher": "it may have seen other images",
    "rounds": "the clock of an entry is that of one training",
    "baseline": "it is no part of an entry",
    "features": "their network may have seen other images",
    "test_split": "test images are opened in the last step only",
    "max_seconds": "it follows from the time of the baseline, --baseline_seconds",
    "run_dir": "runs are in --work_dir",
}
_OF_DATA = ("train_split", "validation_split", "test_share", "image_size", "fit")
_OF_DATA += ("skip_unreadable", "noise", "noise_draw", "noise_seed", "noisy_validation")
_OF_DATA += ("cifarn_file", "data_dir", "cache_dir")


def regimes(text):
    """Returns the names of the regimes of `--noise_type`; None is the stand-in `CUSTOM`.

    Raises:
        UserError: If one is unknown, or they are of several data sets.
    """
    if text is None:
        return (CUSTOM,)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NOISE_TYPES:
            raise UserError(
                f"--noise_type must be one or more of {', '.join(NOISE_TYPES)}, with commas "
                f"between. Received: --noise_type={text}"
            )
    found = []
    for name in names:
        dataset = _SETS.get(name)
        ranked = [x for x, r in challenge.REGIMES.items() if r.dataset == dataset and r.is_ranked]
        found += ranked if dataset else [name]
    if len({challenge.REGIMES[name].dataset for name in found}) > 1:
        raise UserError(
            "--noise_type must name regimes of one data set: they have one recipe. Run the command "
            f"again with the same --entry_dir for the others. Received: --noise_type={text}"
        )
    return tuple(dict.fromkeys(found))


def dataset_of(regime):
    """Returns the data set of a regime, by which entries must have one recipe."""
    return CUSTOM if regime == CUSTOM else challenge.REGIMES[regime].dataset


def noise_of(regime):
    """Returns the value of `--noise` for a regime of CIFAR-N, empty for the clean labels."""
    key = challenge.REGIMES[regime].key
    return "" if key == "clean_label" else f"cifarn:{key}"


def recipe(settings):
    """Returns the `Settings` of a regime as the rules have them, seed apart.

    A tenth of the noisy labels chooses the epoch. The labels are the same for all seeds.

    Args:
        settings: The `Settings` that the flags state.

    Raises:
        UserError: If the rules forbid one of them.
    """
    for name, reason in _REFUSED.items():
        if getattr(settings, name) is not None:
            raise UserError(
                f"--{name} cannot be part of an entry: {reason}. Leave it out. Received: "
                f"--{name}={getattr(settings, name)}"
            )
    if settings.learner_class.finds_clusters:
        raise UserError(
            "An entry predicts classes. Use another method. Received: "
            f"--method={settings.method}, which finds clusters"
        )
    resolved = settings.resolved()
    if own.is_file(settings.network) or resolved.weights not in (None, "none"):
        received = f"--network={settings.network}"
        received += f" --weights={resolved.weights}" if resolved.weights else ""
        raise UserError(
            "The challenge forbids pre-trained weights. Use a network that begins with random "
            f"ones: --weights=none with keras: networks. Received: {received}"
        )
    if not (settings.remover or resolved.method_arguments.get("record_examples")):
        raise UserError(
            "Detection needs the record of the training. Use --record_examples. Received: "
            "--norecord_examples"
        )
    train, validation = settings.train_split, settings.validation_split
    if train is None and validation is None:
        train, validation = SPLITS
    elif validation is None and (match := re.fullmatch(r"train\[:([\d]+%?)\]", train)):
        validation = f"train[{match[1]}:]"  # all that the recipe leaves unused
    takes_seed = resolved.noise_seed is not None
    return dataclasses.replace(
        settings,
        train_split=train,
        validation_split=validation,
        keep_best=True,
        noisy_validation=True if settings.noise else None,
        noise_seed=(settings.noise_seed or 0) if takes_seed else None,
    )


def training(settings, data_file, limit):
    """Returns the settings with which a run trains: on the file of its regime, and nothing else.

    Args:
        settings: What `recipe` returns, with a seed.
        data_file: Path of the file that `isolation.write` wrote.
        limit: Seconds that the training may take.
    """
    return dataclasses.replace(
        settings,
        dataset=f"npz:{data_file}",
        test_split=NO_TEST,
        max_seconds=limit,
        **dict.fromkeys(_OF_DATA),
    )


def baseline(dataset, data_file):
    """Returns the settings of the organizers' baseline on the file of a regime."""
    path = recipes.folder() / f"{BASELINES.get(dataset, BASELINES['cifar10'])}.cfg"
    lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
    return dataclasses.replace(
        training(run_flags.from_lines(lines), data_file, 1.0), keep_best=None
    )


def written(settings, limit=None):
    """Returns the resolved flags of a run for `config.json`, a dict without paths of this machine.

    Args:
        settings: What `recipe` returns.
        limit: Seconds that the training may take, or None to leave them out.
    """
    places = {field.name for field in fields() if field.metadata["is_place"]} | {"cifarn_file"}
    places |= {"logger", "plots", "plot_format", "checkpoint_seconds"}
    found = {name: value for name, value in settings.written().items() if name not in places}
    # The validation labels are those of the regime, the clean ones of `clean` included.
    found["noisy_validation"] = True
    return found if limit is None else {**found, "max_seconds": limit}
