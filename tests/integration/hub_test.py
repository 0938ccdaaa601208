# SPDX-License-Identifier: Apache-2.0
"""Features by backbones of KerasHub, small and random, from local folders of presets."""

import os
import pathlib

import commands
import keras
import keras_hub
import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy import features
from ssl_noisy.data import feature_file, sources

SIZES = dict(num_layers=2, hidden_dim=16, num_heads=2, intermediate_dim=32, num_register_tokens=1)
SCALE, OFFSET = [1 / 58, 1 / 57, 1 / 56], [-2.1, -2.0, -1.8]


class HubTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.root)

    @parameterized.parameters("DINOV2", "DINOV3")
    def test_features_are_the_class_token_of_converted_images(self, name):
        backbone = getattr(keras_hub.models, f"{name}Backbone")(
            patch_size=4, image_shape=(16, 16, 3), layer_scale_init_value=1.0, **SIZES
        )
        backbone.save_to_preset("preset")
        converter = getattr(keras_hub.layers, f"{name}ImageConverter")
        converter = converter(image_size=(16, 16), scale=SCALE, offset=OFFSET)
        converter.save_to_preset("preset")
        arguments = ("--network=hub:preset", "--dataset=digits", "--batch_size=500")
        code, out, errors = commands.call_of(features, *arguments)
        self.assertEqual((code, errors), (0, []))
        self.assertIn("1,797 images, 16 features each, by hub:preset", out)
        data = sources.load("digits")
        found = feature_file.read("features.npz").training(data)[:40]
        pixels = np.repeat(data.images[:40], 3, -1).astype("float32")
        pixels = keras.ops.image.resize(pixels, (16, 16))
        pixels = np.asarray(pixels, "float32") * SCALE + OFFSET
        (key,) = backbone.input
        expected = np.asarray(backbone.predict({key: pixels}, verbose=0))[:, 0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        self.assertGreater(np.std(found, axis=0).min(), 0.05)

    def test_a_preset_that_is_not_there(self):
        for preset in ("nowhere", "./nowhere"):
            code, out, errors = commands.call_of(
                features, f"--network=hub:{preset}", "--dataset=digits"
            )
            self.assertEqual((code, out, len(errors)), (2, "", 1))
            self.assertIn(f"cannot load the preset '{preset}'", errors[0])
        self.assertEmpty(list(self.root.iterdir()))


if __name__ == "__main__":
    absltest.main()
