# SPDX-License-Identifier: Apache-2.0
"""The README's Python example runs as it stands, on a task of its shape."""

import os
import pathlib
import re

import keras
import numpy as np
from absl.testing import absltest

from ssl_noisy import methods

README = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text()


class ReadmeTest(absltest.TestCase):
    def test_the_python_example_runs(self):
        (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        for long, short in (
            ("wrn_28_2", "small_cnn"),
            ("network, task, ", "network, task, batch_size=2, "),
            ("steps_per_epoch=1024, epochs=10", "steps_per_epoch=2"),
        ):
            self.assertIn(long, example)
            example = example.replace(long, short)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 32, 32, 3), "uint8")
        labels = np.arange(40) % 10
        names = {
            "images": images,
            "given_labels": np.where(np.arange(40) < 20, labels, -1),
            "test_images": images,
            "test_labels": labels,
        }
        folder, before = self.create_tempdir().full_path, os.getcwd()
        os.chdir(folder)
        try:
            exec(example, names)
        finally:
            os.chdir(before)
        model = keras.models.load_model(os.path.join(folder, "model.keras"))
        self.assertEqual(model.predict(images, verbose=0).shape, (40, 10))
        for layer in model.layers:
            self.assertStartsWith(type(layer).__module__, "keras.")

    def test_nothing_is_left_to_fill_in(self):
        self.assertNotIn("@@", README)

    def test_its_methods_are_those_of_the_folder(self):
        table = README[README.index("## Methods") :]
        for name in methods.names():
            self.assertIn(f"| `{name}` |", table)


if __name__ == "__main__":
    absltest.main()
