# SPDX-License-Identifier: Apache-2.0
"""Backbones of KerasHub, from raw pixels to features: `hub:PRESET`."""

import numpy as np

from ssl_noisy.errors import UserError, one_line

PREFIX = "hub:"
# Their first token stands for the whole image. Of other sequences, the mean does.
WITH_CLASS_TOKEN = ("DINOV2Backbone", "DINOV3Backbone", "DeiTBackbone", "ViTBackbone")


class Extractor:
    """A pre-trained backbone with the preparation of images that belongs to it.

    Args:
        preset: What KerasHub's `from_preset` takes: the name of a preset, `hf://` or `kaggle://`
            and a name, or the path of a local folder.

    Raises:
        UserError: If KerasHub is missing, or has no such preset, or it is not one of images.
    """

    def __init__(self, preset):
        try:
            import keras_hub
        except ImportError as error:
            raise UserError(
                f"{PREFIX}{preset} needs the package keras-hub: {one_line(error)}. Install it: pip "
                "install 'ssl_noisy[hub]'."
            ) from error
        try:
            self.backbone = keras_hub.models.Backbone.from_preset(preset)
            self.convert = keras_hub.layers.ImageConverter.from_preset(preset)
        except Exception as error:  # those of Kaggle, Hugging Face and Keras
            raise UserError(
                f"KerasHub cannot load the preset {preset!r}: {one_line(error)[:300]}. It must be "
                "one of images. Check its name and the connection, or save it where there is a "
                "network and pass hub:FOLDER."
            ) from error

    def __call__(self, pixels):
        """Returns the features of images.

        The class token of a vision transformer, else the mean over places or tokens.

        Args:
            pixels: uint8 array `(batch_size, height, width, channels)`, gray or RGB.

        Returns:
            A float32 array `(batch_size, num_features)`.
        """
        pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
        # As floats: on TensorFlow, the converter rounds the pixels that it resizes to integers.
        converted = self.convert(pixels.astype(np.float32))
        name = next(iter(self.backbone.input)) if isinstance(self.backbone.input, dict) else None
        found = self.backbone.predict_on_batch(converted if name is None else {name: converted})
        found = np.asarray(found, np.float32)
        if found.ndim == 3 and type(self.backbone).__name__ in WITH_CLASS_TOKEN:
            return found[:, 0]
        return found.mean(axis=tuple(range(1, found.ndim - 1)))

    def get_weights(self):
        """Returns the weights of the backbone, a list of arrays."""
        return self.backbone.get_weights()
