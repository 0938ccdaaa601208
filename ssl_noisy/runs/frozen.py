# SPDX-License-Identifier: Apache-2.0
"""Training on frozen features: the task of a run, and what its result says of the features."""

import json
import os
import zipfile

from keras import ops

from ssl_noisy import networks, streams
from ssl_noisy.data import feature_file
from ssl_noisy.data.task import Task
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs import folder, labeling

NOT_LEGAL = (
    "An entry to the CIFAR-N challenge with these features is not legal: their network was trained "
    "on other images."
)
PERHAPS_LEGAL = (
    "In an entry to the CIFAR-N challenge, these features are legal only if their network was "
    "trained from scratch on the challenge's own images."
)


def make_task(settings, dataset, labels):
    """Returns the `Task` of a run: of images, or if the network is a head, of their features.

    Args:
        settings: The `Settings`.
        dataset: The `Dataset`.
        labels: The `Labels`.

    Raises:
        UserError: If the feature file lacks what the method needs.
    """
    if not networks.is_head(settings.network):
        return labeling.task_of(settings, dataset, labels)
    fields = settings.residence() | _features(settings, dataset)
    return Task.from_dataset(dataset, labels.positions, labels.given, **fields)


def _features(settings, dataset):
    """Returns the fields of a task of features."""
    stored = feature_file.read(settings.features)
    if stored.views is None:
        images, views = stored.training(dataset)[:, None], (0, 0)
    else:
        images, views = stored.training_views(dataset), stored.views.counts
        for one in (settings, settings.for_baseline()) if settings.baseline else (settings,):
            _check_views(one, stored)
    found = {"images": images, "views": views}
    with streams.held_stderr():
        ops.zeros(1, "float16")  # of the first such array, TensorFlow prints a notice
    for part, read in (("test", stored.test), ("validation", stored.validation)):
        is_there = getattr(dataset, f"{part}_images") is not None
        found[f"{part}_images"] = read(dataset) if is_there else None
    return found


def _check_views(settings, stored):
    """Raises a `UserError` if the views of a feature file are not those that the flags name."""
    arguments = settings.resolved().learner_arguments
    for name in ("weak_augmentation", "strong_augmentation"):
        wanted, there = arguments.get(name), getattr(stored.views, name)
        if wanted in (None, there) or (name, wanted) == ("weak_augmentation", "none"):
            continue
        raise UserError(
            f"The feature file {settings.features!r} has views of --{name}={there}. Received: "
            f"--{name}={wanted}, for {settings.method}. Pass --{name}={there}, or compute other "
            f"views: python -m ssl_noisy.features --views={stored.views.counts[0]} --{name}=..."
        )


def describe(path):
    """Returns what a result says of the features that it comes from, a dict.

    Args:
        path: Path of the feature file.
    """
    stored = feature_file.read(path)
    extractor = stored.extractor or "unknown"
    found = {"extractor": extractor, "key": stored.key, "fingerprint": fingerprint(path)}
    if stored.views is not None:
        found["views"] = stored.views.description
    return {**found, "challenge": challenge_note(extractor)}


def source(settings):
    """Returns a text that identifies what computed a network's input; None if that is images."""
    if not networks.is_head(settings.network):
        return None
    stored = feature_file.read(settings.features)
    return stored.weights or stored.extractor or settings.features


def challenge_note(extractor):
    """Returns why an entry to the CIFAR-N challenge may not use features; None for pixels.

    Args:
        extractor: What computed them, in the words of `python -m ssl_noisy.features`.
    """
    if extractor == "pixels":
        return None
    is_pretrained = extractor.startswith("hub:") or extractor.endswith("with weights imagenet")
    return NOT_LEGAL if is_pretrained else PERHAPS_LEGAL


def fingerprint(path):
    """Returns a text that changes with the content of an .npz file, from the checksums in it."""
    with zipfile.ZipFile(os.path.expanduser(path)) as archive:
        members = sorted((one.filename, one.CRC, one.file_size) for one in archive.infolist())
    return " ".join(f"{name}:{crc:08x}:{size}" for name, crc, size in members)


def check_unchanged(path, recorded, run_dir):
    """Raises a `UserError` if a feature file is there and is another one than was recorded.

    Args:
        path: Path of the feature file.
        recorded: Its `fingerprint` when a run or a probe began.
        run_dir: Where that is.
    """
    if not os.path.exists(path):
        return
    try:
        here = fingerprint(path)
    except (OSError, zipfile.BadZipFile):
        here = ""
    if here != recorded:
        raise UserError(
            f"The feature file {path!r} has changed since {run_dir} began. Choose another "
            "--run_dir, or restore the file."
        )


def begin(settings, run_dir):
    """Notes the features of a training in its folder, or checks that they are still the same.

    It does nothing for a training without features.
    """
    if not settings.features:
        return
    path = os.path.join(run_dir, folder.USED_FEATURES)
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as file:
                recorded = str(json.load(file)["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read: {one_line(error)}. Delete it and run the same command "
                "again."
            ) from error
        check_unchanged(settings.features, recorded, run_dir)
    else:
        text = json.dumps(describe(settings.features), indent=2) + "\n"
        folder.write_text(run_dir, folder.USED_FEATURES, text)
