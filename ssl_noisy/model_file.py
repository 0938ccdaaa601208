# SPDX-License-Identifier: Apache-2.0
"""`model.keras`: a network from raw pixels to logits, and what a user of it needs to know.

Keras reads the file without this package. A member of the archive, which Keras ignores, has the
class names, the preparation of pictures and the temperature of the confidences.
"""

import dataclasses
import json
import os
import zipfile

import keras

from ssl_noisy.data import pictures
from ssl_noisy.errors import UserError, one_line

MEMBER = "ssl_noisy.json"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a model file says of its network.

    Attributes:
        class_names: Tuple of strings, one per logit.
        fit: How pictures get the size of the network's input, one of `pictures.FITS`.
        temperature: Float above 0: softmax(logits / temperature) are calibrated confidences.
        image_shape: `(height, width, channels)`, or None for the input shape of the network.
        features: What computed the frozen features that the network takes, such as a digest of
            its weights; None if it takes images.
    """

    class_names: tuple[str, ...]
    fit: str = "crop"
    temperature: float = 1.0
    image_shape: tuple[int, int, int] | None = None
    features: str | None = None

    def input_shape(self, network):
        """Returns `(height, width, channels)` of the images that a network takes.

        Raises:
            UserError: If they have no fixed size, or are neither gray nor RGB.
        """
        shape = self.image_shape or (getattr(network, "input_shape", None) or (None,))[1:]
        if len(shape) == 1 and self.features is not None:
            raise UserError(
                f"The network must take images. Received: a classifier of {shape[0]} frozen "
                "features. Use a network that was trained on images."
            )
        if len(shape) != 3 or None in shape or shape[2] not in (1, 3):
            raise UserError(
                "The network must take gray or color images of one size. Received: "
                f"input_shape={shape}"
            )
        return tuple(shape)


def add_metadata(path, metadata):
    """Adds a `Metadata` to a `.keras` file that Keras saved."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(MEMBER, json.dumps(dataclasses.asdict(metadata), ensure_ascii=False))


def read(path):
    """Returns `(network, metadata)` of a `.keras` file.

    A file that this package did not write gets the class numbers as names.

    Raises:
        UserError: If it cannot be read.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no model file {path!r}. Finish the run, or check the path.")
    try:
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read(MEMBER)) if MEMBER in archive.namelist() else None
        if content is None:
            return network, Metadata(tuple(map(str, range(network.output_shape[-1]))))
        for name in ("class_names", "image_shape"):
            content[name] = content.get(name) and tuple(content[name])
        return network, Metadata(**content)
    # Keras raises what its layers raise, for files of other versions too.
    except Exception as error:
        raise UserError(
            f"The model file {path!r} cannot be read: {one_line(error)}. It must be a .keras file "
            "of a classifier of images, saved by this version of Keras or an older one."
        ) from error


def format_of(network, metadata):
    """Returns the `pictures.Format` that a network of images of one size takes."""
    return pictures.Format(*metadata.input_shape(network), metadata.fit)


def deployed(network, metadata, *, probabilities=True, input_size=None):
    """Returns a model from raw pixels to calibrated probabilities or to logits.

    Args:
        network: A `keras.Model` from pixels in 0..255 to logits.
        metadata: Its `Metadata`.
        probabilities: Whether to return softmax(logits / temperature) instead of logits.
        input_size: `(height, width)` of the images that the model takes, which it resizes by
            bilinear interpolation, as `metadata.fit` says. None means those of the network.

    Returns:
        A `keras.Model`.
    """
    height, width, channels = metadata.input_shape(network)
    inputs = keras.Input((*(input_size or (height, width)), channels), name="pixels")
    x = inputs
    if inputs.shape[1:3] != (height, width):
        # Not the layer `Resizing`: its default `training=True` puts the layers after it into
        # training mode (Keras 3.15), and batch norm would change with each prediction.
        x = keras.ops.image.resize(
            x,
            (height, width),
            crop_to_aspect_ratio=metadata.fit == "crop",
            pad_to_aspect_ratio=metadata.fit == "pad",
        )
    outputs = network(x)
    if probabilities:
        outputs = keras.layers.Rescaling(1 / metadata.temperature, dtype="float32")(outputs)
        outputs = keras.layers.Softmax(dtype="float32", name="probabilities")(outputs)
    return keras.Model(inputs, outputs)
