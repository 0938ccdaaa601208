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

from ssl_noisy import command, contract, model_file, networks, run_flags
from ssl_noisy.data import feature_file
from ssl_noisy.errors import UserError
from ssl_noisy.networks import hub
from ssl_noisy.runs import folder, image_statistics, labeling, progress
from ssl_noisy.settings import Settings, absolute_path

PIXELS = "pixels"
FLAGS = (*labeling.LOADING, "weights")


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
    """

    given: dict
    run_dir: str | None
    model: str | None
    network: str | None
    output: str
    batch_size: int


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
    own = ["run_dir", "model", "network", "output", "batch_size"]
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
    return Request(given, run_dir, model, network, output, values["batch_size"].value)


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
    statistics = _statistics(request, dataset, first)
    shown = b"".join(values.tobytes() for values in statistics.values())
    key = hashlib.sha256(weights + digests[first].tobytes() + shown).hexdigest()
    if feature_file.key_of(request.output) == key:
        print(f"{request.output}: already there, of {len(first):,} images by {extractor}")
        return
    if os.path.lexists(request.output):
        raise UserError(
            f"{request.output} exists, and is of other images or another network. Choose another "
            "--output, or remove it."
        )
    progress.tell(dataset.notes)
    began, done = time.monotonic(), 0
    with feature_file.writing(request.output, digests[first], extractor, key, statistics) as writer:
        for pixels in _batches(parts, first, request.batch_size):
            rows = extract(pixels)
            _check_finite(rows, extractor)
            writer.append(rows)
            done += len(rows)
            _show(done, len(first), began)
    print(
        f"{request.output}: {len(first):,} images, {rows.shape[1]:,} features each, by {extractor}"
    )


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
        # Of one size, because another one would be compiled anew.
        batch = np.zeros((request.batch_size, *image_shape), np.uint8)
        batch[: len(pixels)] = pixels
        return np.asarray(compute(batch))[: len(pixels)]

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


def _show(done, total, began):
    """Updates a line about the progress, on a terminal."""
    if sys.stdout.isatty():
        rate = done / (time.monotonic() - began)
        end = "\n" if done == total else ""
        print(f"\r\x1b[2K{done:,} of {total:,} images, {rate:.0f} a second", end=end, flush=True)


if __name__ == "__main__":
    command.start("ssl_noisy.features", main, define_flags=define_flags, read_flags=read_flags)
