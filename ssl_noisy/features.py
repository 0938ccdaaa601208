# SPDX-License-Identifier: Apache-2.0
"""Computes frozen features of images: python -m ssl_noisy.features --run_dir=RUN

Writes one row of numbers for each image, what the last layer of a trained
network takes, to --output=FILE.npz. Choose labels by them (choose), draw labels
by them (train --label_draw=typiclust), or learn from them. The network is that
of a finished run, a .keras file, or one that Keras has ImageNet weights of:

  python -m ssl_noisy.features --run_dir=RUN
  python -m ssl_noisy.features --model=FILE.keras --dataset=folder:PICTURES
  python -m ssl_noisy.features --network=keras:MobileNetV2 --dataset=folder:PICTURES
  python -m ssl_noisy.features --network=hub:dinov2_small --dataset=folder:PICTURES
  python -m ssl_noisy.features --network=pixels --dataset=digits

With --views=8, it has the features of 8 weak and 8 strong views of each training
image too, with which --method=fixmatch trains a classifier of the features.

The images need no labels. With --run_dir, the data is that of the run unless
flags name other data. A file that is there already is not computed again, and
one of other features is not overwritten.
"""

import dataclasses
import hashlib
import os
import random
import sys
import time

import keras
import numpy as np
from absl import flags

from ssl_noisy import augment, command, contract, model_file, networks, run_flags
from ssl_noisy.data import feature_file
from ssl_noisy.errors import UserError
from ssl_noisy.networks import hub
from ssl_noisy.runs import folder, image_statistics, labeling, progress
from ssl_noisy.settings import Settings, absolute_path
from ssl_noisy.view_maker import BLOCK, WEAK, Recipe, ViewMaker

PIXELS = "pixels"
VIEW_FLAGS = ("weak_augmentation", "strong_augmentation")
FLAGS = (*labeling.LOADING, "weights", "seed")
LARGEST = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        given: Dict of settings that the user names: the data, and the weights of a Keras network.
        run_dir: Path of a run folder, or None.
        model: Path of a `.keras` file, or None.
        network: `keras:NAME`, `hub:PRESET` or `pixels`, or None.
        output: Path to write.
        batch_size: Positive integer, images at a time.
        views: Dict with `count`, `weak_augmentation` and `strong_augmentation` of a
            `view_maker.Recipe`; empty without views.
    """

    given: dict
    run_dir: str | None
    model: str | None
    network: str | None
    output: str
    batch_size: int
    views: dict = dataclasses.field(default_factory=dict)


def define_flags(values):
    """Defines the flags of this command and returns their names."""
    define = {"flag_values": values}
    flags.DEFINE_string("run_dir", None, "Folder of a finished run.", **define)
    flags.DEFINE_string("model", None, "A .keras file of a classifier.", **define)
    flags.DEFINE_string(
        "network",
        None,
        "keras:NAME, a network of keras.applications with --weights; hub:PRESET, a backbone of "
        "KerasHub or the folder of one; or pixels, the images themselves.",
        **define,
    )
    flags.DEFINE_string(
        "output",
        None,
        "File to write. Unset: features.npz, in the folder of the run with --run_dir.",
        **define,
    )
    flags.DEFINE_integer("batch_size", 64, "Images at a time.", lower_bound=1, **define)
    help = "Weak views, and as many strong ones, of each training image. Unset: none."
    flags.DEFINE_integer("views", None, help, lower_bound=1, upper_bound=1000, **define)
    flags.DEFINE_enum("weak_augmentation", "auto", WEAK, "With --views: the weak ones.", **define)
    flags.DEFINE_enum(
        "strong_augmentation",
        "google_code",
        augment.STRONG_VIEWS,
        "With --views: the strong ones.",
        **define,
    )
    own = ["run_dir", "model", "network", "output", "batch_size"]
    own += ["views", *VIEW_FLAGS]
    return [*own, *run_flags.define_settings(values, FLAGS)]


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.parse(argv, values)
    places = [name for name in ("run_dir", "model", "network") if values[name].value]
    if len(places) != 1:
        received = " and ".join(f"--{name}" for name in places) or "none of them"
        raise UserError(
            "Pass one of --run_dir=RUN of a finished run, --model=FILE.keras and "
            f"--network=keras:NAME, hub:PRESET or pixels. Received: {received}"
        )
    given = {n: v for n, v in run_flags.values_of(values, FLAGS).items() if values[n].present}
    network, run_dir = values["network"].value, values["run_dir"].value
    takes_weights = network is not None and networks.takes_weights(network)
    if network not in (None, PIXELS) and not (takes_weights or network.startswith(hub.PREFIX)):
        raise UserError(
            "--network must be keras:NAME, hub:PRESET or pixels. For others pass --run_dir "
            f"or --model. Received: --network={network}"
        )
    if "weights" in given and not takes_weights:
        raise UserError("--weights has no effect without --network=keras:NAME. Leave it out.")
    run_dir, model = (path and absolute_path(path) for path in (run_dir, values["model"].value))
    if run_dir:
        model = os.path.join(run_dir, folder.MODEL)
    default = os.path.join(run_dir or "", folder.FEATURES)
    output = absolute_path(values["output"].value or default)
    views = _views_of(values)
    return Request(given, run_dir, model, network, output, values["batch_size"].value, views)


def _views_of(values):
    """Returns the `views` of a `Request`."""
    if values["views"].value is None:
        is_random = values["weights"].value == "none"
        for name in VIEW_FLAGS if is_random else (*VIEW_FLAGS, "seed"):
            if values[name].present:
                raise UserError(f"--{name} has no effect without --views. Leave it out.")
        return {}
    return {"count": values["views"].value, **{name: values[name].value for name in VIEW_FLAGS}}


def settings_of(request):
    """Returns `Settings` with the data of a request: that of the run, or what the user names."""
    given, run_dir = request.given, request.run_dir
    if run_dir is None:
        if request.network and networks.takes_weights(request.network):
            given = {"network": request.network, **given}
        return Settings(**given)
    if not os.path.isdir(run_dir):
        raise UserError(f"There is no run {run_dir}. Check --run_dir.")
    settings = run_flags.from_lines(folder.read_flags(run_dir))
    if given.get("dataset", settings.dataset) != settings.dataset:
        return Settings(**given)  # how the run reads its data says nothing of other data
    return dataclasses.replace(settings, **given)


def main(request):
    settings = settings_of(request)
    dataset = labeling.load_unlabeled(settings)
    extract, extractor, weights = make_extractor(request, settings, dataset.images.shape[1:])
    parts = [dataset.images, dataset.validation_images, dataset.test_images]
    parts = [images for images in parts if images is not None]
    digests = np.concatenate([feature_file.digests(images) for images in parts])
    _, first = np.unique(digests, return_index=True)  # of equal images, one row
    first.sort()
    more = _statistics(request, dataset, first)
    shown = b"".join(values.tobytes() for values in more.values())
    recipe = Recipe(**request.views, seed=settings.seed) if request.views else None
    what = extractor if recipe is None else f"{extractor}, with {recipe.describe()}"
    shown += b"" if recipe is None else repr((recipe, dataset.flip)).encode()
    key = hashlib.sha256(weights + digests[first].tobytes() + shown).hexdigest()
    if feature_file.key_of(request.output) == key:
        print(f"{request.output}: already there, of {len(first):,} images by {what}")
        return
    if os.path.lexists(request.output):
        raise UserError(
            f"{request.output} exists, and is of other images, another network or other views. "
            "Choose another --output, or remove it."
        )
    progress.tell(dataset.notes)
    began, done = time.monotonic(), 0
    more |= {"weights": weights.hex()[:16]}
    more |= {} if recipe is None else _described(recipe)
    with feature_file.writing(request.output, digests[first], extractor, key, more) as writer:
        for pixels in _batches(parts, first, request.batch_size):
            rows = extract(pixels)
            _check_finite(rows, extractor)
            writer.append(rows)
            done += len(rows)
            _show(done, len(first), began, "images")
        if recipe is not None:
            _write_views(writer, recipe, dataset, first, extract, extractor)
    print(f"{request.output}: {len(first):,} images, {rows.shape[1]:,} features each, by {what}")


def _described(recipe):
    """Returns what a feature file says of its views."""
    return {
        "view_counts": np.array([recipe.count, recipe.count]),
        "weak_augmentation": recipe.weak_augmentation,
        "strong_augmentation": recipe.strong_augmentation,
        "view_description": recipe.describe(),
    }


def _write_views(writer, recipe, dataset, rows, extract, extractor):
    """Writes the features of each distinct training image and of its views.

    Args:
        writer: The `feature_file.Writer`.
        recipe: The `Recipe`.
        dataset: The `Dataset`.
        rows: Increasing positions of the distinct images of all splits, training images first.
        extract: Function from uint8 pixels to features, of any number of images.
        extractor: What that is, as text.
    """
    maker, began = ViewMaker(recipe, dataset.flip), time.monotonic()
    num_viewed = int((rows < len(dataset.images)).sum())
    blocks = _batches([dataset.images], rows[:num_viewed], BLOCK)
    for start, images in zip(range(0, num_viewed, BLOCK), blocks):
        pixels = np.concatenate([images[:, None], maker.make(images, start)], axis=1)
        features = extract(pixels.reshape(-1, *images.shape[1:]))
        if not (np.abs(features) <= LARGEST).all():
            raise UserError(
                f"The features by {extractor} of views must be numbers up to {LARGEST:,.0f}, as "
                f"float16 can be. Received: {np.abs(features).max():.3g}. Use another network."
            )
        writer.append_views(features.reshape(*pixels.shape[:2], -1), num_viewed)
        _show(min(start + BLOCK, num_viewed), num_viewed, began, "images with all views")


def _statistics(request, dataset, rows):
    """Returns what the training of a run showed about the images at `rows` of all images."""
    if request.run_dir is None or "dataset" in request.given:
        return {}
    found = image_statistics.read(request.run_dir, dataset) or {}
    shown = {}
    for name, values in found.items():
        shown[name] = np.full(len(rows), np.nan)
        shown[name][rows < len(values)] = values[rows[rows < len(values)]]
    return shown


def make_extractor(request, settings, image_shape):
    """Returns `(extract, text, weights)`.

    Args:
        request: The `Request`.
        settings: Its `Settings`.
        image_shape: `(height, width, channels)` of the images.

    Returns:
        A function from uint8 pixels `(n, height, width, channels)` to a float32 array
        `(n, num_features)`; what it is, as text; and a digest of its weights, bytes.

    Raises:
        UserError: If the network is not there, or does not take these images.
    """
    network, text = request.network, request.network
    if network == PIXELS:
        return _flattened, text, PIXELS.encode()
    if network is None:
        text, model = request.model, _penultimate(_read(request.model, image_shape))
    elif network.startswith(hub.PREFIX):
        model = hub.Extractor(network.removeprefix(hub.PREFIX))
    else:
        weights = settings.weights or "imagenet"
        text = f"{network} with weights {weights}"
        networks.check_there(network, weights)
        random.seed(settings.seed)  # of random weights, as in a run
        model = _penultimate(networks.build(network, image_shape, 2, weights=weights))
    digest = hashlib.sha256(b"" if network is None else text.encode())
    for weight in model.get_weights():
        digest.update(np.ascontiguousarray(weight))
    compute = model if isinstance(model, hub.Extractor) else model.predict_on_batch

    def extract(pixels):
        found, size = [], request.batch_size
        for start in range(0, len(pixels), size):
            # Of one size, because another one would be compiled anew.
            batch = np.zeros((size, *image_shape), np.uint8)
            part = pixels[start : start + size]
            batch[: len(part)] = part
            found.append(np.asarray(compute(batch))[: len(part)])
        return np.concatenate(found)

    return extract, text, digest.digest()


def _read(path, image_shape):
    """Returns the network of a `.keras` file, after a check that it takes such images."""
    network, metadata = model_file.read(path)
    expected = metadata.input_shape(network)
    if expected != tuple(image_shape):
        raise UserError(
            f"The network of {path} takes images of {_size(expected)}. Received: images of "
            f"{_size(image_shape)}. For files, pass --image_size={expected[0]}x{expected[1]}."
        )
    return network


def _penultimate(network):
    """Returns the model from images to what the last layer of a network takes."""
    featured = contract.with_features(network, "features")
    return keras.Model(featured.inputs, featured.outputs[0])


def _flattened(pixels):
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255


def _size(shape):
    return f"{shape[0]}x{shape[1]} pixels and {shape[2]} channels"


def _batches(parts, rows, batch_size):
    """Yields the images at increasing `rows` of the concatenated parts."""
    offset = 0
    for images in parts:
        here = rows[(rows >= offset) & (rows < offset + len(images))] - offset
        for start in range(0, len(here), batch_size):
            yield np.asarray(images[here[start : start + batch_size]])
        offset += len(images)


def _check_finite(rows, extractor):
    if not np.isfinite(rows).all():
        raise UserError(
            f"The features by {extractor} must be finite numbers. Received: NaN or infinity. Check "
            "the weights of the network."
        )


def _show(done, total, began, what):
    """Updates a line about the progress, on a terminal."""
    if sys.stdout.isatty():
        rate = done / (time.monotonic() - began)
        end = "\n" if done == total else ""
        print(f"\r\x1b[2K{done:,} of {total:,} {what}, {rate:.0f} a second", end=end, flush=True)


if __name__ == "__main__":
    command.start("ssl_noisy.features", main, define_flags=define_flags, read_flags=read_flags)
