# SPDX-License-Identifier: Apache-2.0
"""A run that begins with the features of another one."""

import dataclasses
import io
import os

import keras
import numpy as np
import toy
from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import command, contract, networks, run_flags
from ssl_noisy.errors import UserError
from ssl_noisy.networks import body
from ssl_noisy.runs.run import run
from ssl_noisy.runs.training import make_learner
from ssl_noisy.settings import Settings

PIXELS = np.pad(toy.digits()[0][:5].astype("float32"), ((0, 0), (2, 2), (2, 2), (0, 0)))


class CopyBodyTest(parameterized.TestCase):
    def features(self, network):
        return contract.with_features(network, "A test").predict(PIXELS, verbose=0)[0]

    @parameterized.parameters(("small_cnn", {}), ("cnn_13", {"weight_norm": True}))
    def test_features_are_those_of_the_other_network(self, name, options):
        first, second = (
            networks.build(name, (12, 12, 1), num_classes, **options) for num_classes in (10, 4)
        )
        rng = np.random.default_rng(0)
        for layer in contract.leaves(first):
            layer.set_weights([w + 0.1 * rng.random(w.shape) for w in layer.get_weights()])
        head = contract.head(second).get_weights()
        networks.copy_body(second, networks.portable(first))
        np.testing.assert_allclose(
            self.features(second), self.features(first), rtol=1e-4, atol=1e-4
        )
        for value, before in zip(contract.head(second).get_weights(), head, strict=True):
            np.testing.assert_array_equal(value, before)

    def test_other_networks_are_refused_and_nothing_is_copied(self):
        network = networks.build("small_cnn", (8, 8, 1), 10)
        before = network.get_weights()
        scaled = networks.build("small_cnn", (8, 8, 1), 10, normalization=([60.0], [90.0]))
        for other, message in (
            (networks.build("wide_lenet", (8, 8, 1), 10), "another architecture: 'wide_lenet'"),
            (networks.build("small_cnn", (8, 8, 3), 10), r"images of shape \(8, 8, 3\), this one"),
            (scaled, "Use the same --normalization"),
            (toy.network(), "another architecture"),
        ):
            with self.assertRaisesRegex(UserError, message):
                networks.copy_body(network, other)
        for value, expected in zip(network.get_weights(), before):
            np.testing.assert_array_equal(value, expected)

    def test_scaling_by_nearly_the_same_numbers_will_do(self):
        networks.copy_body(
            *(
                networks.build("small_cnn", (8, 8, 1), 10, normalization=([mean], [90.0]))
                for mean in (60.0, 63.0)
            )
        )
        self.assertLen(body._scaling(networks.build("small_cnn", (8, 8, 1), 10)), 2)


class RunTest(absltest.TestCase):
    def settings(self, method="supervised", **changes):
        arguments = {"batch_size": 8, "ema_momentum": 0.9} | changes.pop("arguments", {})
        defaults = {"network": "small_cnn", "steps": 4, "steps_per_epoch": 4, "plots": False}
        return Settings(method=method, method_arguments=arguments, **(defaults | changes))

    def test_bodies_begin_as_the_run_ended(self):
        folder = os.path.join(self.create_tempdir().full_path, "first")
        first = self.settings("rotnet", run_dir=folder, num_labels=20)
        run(first, io.StringIO())
        model = keras.models.load_model(os.path.join(folder, "model.keras"))
        expected = [layer.get_weights() for layer in body._body(model)]
        task, _ = toy.task()
        for method in ("supervised", "co_teaching", "moco_v2"):
            arguments = {"batch_size": 8} | ({"projection_size": 3} if method == "moco_v2" else {})
            settings = self.settings(method, initial_weights=folder, arguments=arguments)
            learner = make_learner(settings, task)
            plain = make_learner(dataclasses.replace(settings, initial_weights=None), task)
            for network, other in zip(learner.networks, plain.networks, strict=True):
                found = [body._plain_weights(layer) for layer in body._body(network)]
                for one, wanted in zip(found, expected, strict=True):
                    for a, b in zip(one, wanted, strict=True):
                        np.testing.assert_array_equal(a, b)
                heads = [contract.head(x).get_weights()[0] for x in (network, other)]
                np.testing.assert_array_equal(*heads)  # new, and as without the weights
            for average, variable in zip(learner.averages, learner.averaged_variables, strict=True):
                np.testing.assert_array_equal(average.numpy(), variable.numpy())
            heads = [contract.head(x).get_weights()[0] for x in learner.networks]
            self.assertTrue(len(heads) == 1 or (heads[0] != heads[1]).any())
        for slow, variable in zip(learner.key_weights, learner.encoded, strict=True):
            np.testing.assert_array_equal(slow.numpy(), variable.numpy())
        file = os.path.join(folder, "model.keras")
        make_learner(self.settings(initial_weights=file), task)
        with self.assertRaisesRegex(
            UserError, f"--initial_weights={folder} cannot be used: it has another architecture"
        ):
            make_learner(self.settings(initial_weights=folder, network="wide_lenet"), task)

    def test_a_run_must_be_there(self):
        with self.assertRaisesRegex(UserError, "There is no model file '/no/model.keras'. Finish"):
            make_learner(self.settings(initial_weights="/no"), toy.task()[0])

    def test_paths_become_absolute_and_identify_a_run(self):
        values = flags.FlagValues()
        run_flags.define_flags(values)
        made = command.parse_settings(["train", "--initial_weights=runs/a"], values)
        self.assertEqual(made.initial_weights, os.path.abspath("runs/a"))
        self.assertIn(f"--initial_weights={made.initial_weights}", made.flag_lines(True))


if __name__ == "__main__":
    absltest.main()
