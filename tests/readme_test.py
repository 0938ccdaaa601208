# SPDX-License-Identifier: Apache-2.0
"""The README's Python example runs as it stands, on a task of its shape."""

import io
import os
import pathlib
import re
from unittest import mock

import keras
import numpy as np
import toy
from absl import flags
from absl.testing import absltest, parameterized

import ssl_noisy
from ssl_noisy import __main__ as listing
from ssl_noisy import command, methods, settings
from ssl_noisy.augment import views as augment_views
from ssl_noisy.runs.run import run

README = (pathlib.Path(__file__).resolve().parent.parent / "README.md").read_text()


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class ReadmeTest(parameterized.TestCase):
    @parameterized.parameters("build", *toy.USERS_NETWORKS)
    def test_the_python_example_runs(self, kind):
        example = EXAMPLES[0]
        if kind != "build":
            example, count = re.subn("ssl_noisy.networks.build.*", "users_network", example)
            self.assertEqual(count, 1)
            self.enter_context(mock.patch.object(augment_views, "rand_augment", toy.noise))
        for long, short in (
            *([("wrn_28_2", "small_cnn")] if kind == "build" else []),
            ("network, task, ", "network, task, batch_size=2, "),
            ("steps_per_epoch=1024, epochs=10", "steps_per_epoch=2"),
        ):
            self.assertIn(long, example)
            example = example.replace(long, short)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 32, 32, 3), "uint8")
        labels = np.arange(40) % 10
        names = {
            "users_network": None if kind == "build" else toy.users_network(kind, (32, 32, 3)),
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
        backbones = [x for x in model.layers if isinstance(x, keras.Model)]
        for layer in [*model.layers, *(x for backbone in backbones for x in backbone.layers)]:
            self.assertStartsWith(type(layer).__module__, "keras.")

    def test_the_example_of_wrong_labels_runs(self):
        rng = np.random.default_rng(0)
        names = {
            "ssl_noisy": ssl_noisy,
            "images": np.zeros((50, 8, 8, 1), "uint8"),
            "logits": np.eye(50, 10),
            "given_labels": np.arange(50) % 10,
            "indices": np.arange(50),
            "losses_scaled_to_0_1": rng.uniform(size=50),
        }
        exec(EXAMPLES[2], names)
        self.assertEqual(names["areas"].values[:11].tolist(), [1.0] * 10 + [0.0])
        self.assertEqual(names["mixture"].predict_proba(rng.uniform(size=7)).shape, (7, 2))

    def test_a_new_method_is_one_file(self):
        folder = self.create_tempdir().full_path
        with open(os.path.join(folder, "pi_model.py"), "w") as file:
            file.write(EXAMPLES[1])
        methods.__path__.append(folder)
        self.addCleanup(methods.__path__.remove, folder)
        values = flags.FlagValues()
        settings.define_flags(values)
        run_dir = os.path.join(folder, "run")
        made = command.parse_settings(
            ["train", "--method=pi_model", "--num_labels=20", "--network=small_cnn", "--noplots"]
            + ["--batch_size=8", "--steps=4", "--ramp_end=0.5", f"--run_dir={run_dir}"],
            values,
        )
        result = run(made, stream=io.StringIO())
        self.assertEqual(result["method"], "pi_model")
        self.assertGreater(result["last_epoch"]["unsupervised_loss"], 0)
        self.assertIn("Laine and Aila, https://arxiv.org/abs/1610.02242", listing.listing())
        self.assertLess(EXAMPLES[1].count("\n"), 41)

    def test_nothing_is_left_to_fill_in(self):
        self.assertNotIn("@@", README)

    def test_its_methods_are_those_of_the_folder(self):
        table = README[README.index("## Methods") :]
        for name in methods.names():
            self.assertIn(f"| `{name}` |", table)


if __name__ == "__main__":
    absltest.main()
