# SPDX-License-Identifier: Apache-2.0
"""Optimizers of a run: what momentum and weight decay mean to each, and exact resumption."""

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import optimizers
from ssl_noisy.runs import checkpoint
from ssl_noisy.runs.training import make_learner
from ssl_noisy.settings import Settings


def learner(optimizer, seed=0, network="wide_lenet", method="supervised", **arguments):
    """Returns a learner as a run makes it, on the toy task."""
    arguments = {"batch_size": 4, **arguments}
    settings = Settings(
        method=method,
        network=network,
        optimizer=optimizer,
        steps=8,
        seed=seed,
        schedule="constant",
        method_arguments=arguments,
    )
    return make_learner(settings, toy.task()[0])


class OptimizersTest(parameterized.TestCase):
    def test_momentum_reaches_each(self):
        kernel = keras.Variable(np.ones((2, 2), "float32"))
        made = {
            name: optimizers.make(name, 0.5, [kernel], momentum=0.25, nesterov=True)
            for name in optimizers.OPTIMIZERS
        }
        classes = ("SGD", "Adam", "AdamW", "Muon")
        self.assertEqual([type(one).__name__ for one in made.values()], list(classes))
        for name, attribute in (("sgd", "momentum"), ("muon", "momentum"), ("adam", "beta_1")):
            self.assertEqual(getattr(made[name], attribute), 0.25)
        self.assertEqual(made["adamw"].beta_1, 0.25)
        self.assertTrue(made["sgd"].nesterov and made["muon"].nesterov)
        for one in made.values():
            self.assertEqual(float(one.learning_rate), 0.5)

    @parameterized.parameters(
        # At a rate of 0.001 and a decay of 0.5 a step without a gradient leaves 0.9995.
        ("adamw", "kernels", 0.9995, 1),
        ("adamw", "all", 0.9995, 0.9995),
        ("muon", "kernels", 0.9995, 1),
        ("adam", "all", 1, 1),
        ("sgd", "all", 1, 1),
    )
    def test_where_the_weight_decay_is(self, name, decayed, kernels, others):
        made = learner(name, weight_decay=0.5, decayed=decayed)
        self.assertEqual(made.weight_decay, 0.0 if name in optimizers.DECOUPLED else 0.5)
        variables = made.trainable_variables
        for variable in variables:
            variable.assign(ops.ones(variable.shape))
        made.optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
        for variable in variables:
            expected = kernels if variable.name == "kernel" else others
            np.testing.assert_allclose(variable, np.full(variable.shape, expected), rtol=1e-6)

    def test_decoupled_decay_of_two_networks(self):
        made = learner("adamw", method="co_teaching", weight_decay=0.5, decayed="kernels")
        variables = made.trainable_variables
        for variable in variables:
            variable.assign(ops.ones(variable.shape))
        made.optimizer.apply([ops.zeros(v.shape) for v in variables], variables)
        kernels = [v for v in variables if v.name == "kernel"]
        self.assertLen(kernels, 8)
        for variable in kernels:
            np.testing.assert_allclose(variable, np.full(variable.shape, 0.9995), rtol=1e-6)

    def test_muon_has_the_hidden_dense_kernel_alone(self):
        made = learner("muon")
        slots = [v for v in made.optimizer.variables if v.path.endswith("velocity")]
        # Adam's second moments: of all but the one kernel.
        self.assertLen(slots, len(made.trainable_variables) - 1)
        self.assertNotIn((256, 512), [tuple(v.shape) for v in slots])
        with self.assertRaisesRegex(ValueError, "none: AdamW would update all of it. Use --opt"):
            learner("muon", network="small_cnn")
        with self.assertRaisesRegex(ValueError, "below the last layer"):
            learner("muon", network="small_cnn", method="remixmatch")

    def test_decoupled_decay_where_there_is_none(self):
        with self.assertRaisesRegex(ValueError, "adam has no decoupled weight decay, only adamw"):
            optimizers.make("adam", 0.1, [], momentum=0.9, weight_decay=0.1)

    @parameterized.parameters("adam", "adamw", "muon")
    @pytest.mark.slow
    def test_resumed_is_uninterrupted(self, name):
        whole = learner(name)
        start = whole.network.get_weights()[0]
        toy.fit(whole, steps=5)
        self.assertGreater(np.abs(whole.network.get_weights()[0] - start).max(), 1e-3)
        folder = self.create_tempdir().full_path
        first = learner(name)
        toy.fit(first, steps=2)
        checkpoint.save(folder, first, {"step": 2})
        second = learner(name, seed=9)  # other weights and random state, to be replaced
        second.seed = first.seed
        self.assertEqual(checkpoint.restore(folder, second), {"step": 2})
        toy.fit(second, steps=3, start=2)
        pairs = [*zip(whole.network.variables, second.network.variables, strict=True)]
        pairs += zip(whole.optimizer.variables, second.optimizer.variables, strict=True)
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), ours.path)


class BackboneTest(parameterized.TestCase):
    def both(self, name, gradient, **options):
        """Returns a backbone's and a head's variable after two steps, from ones, at rate 0.5."""
        variables = [
            keras.Variable(np.ones((2, 2), "float32"), name=name) for name in ("body", "logits")
        ]
        made = optimizers.make(
            name, 0.5, variables, momentum=0.9, backbone=variables[:1], **options
        )
        made.build(variables)
        self.assertLen({id(v) for v in made.variables} & {id(v) for v in variables}, 0)
        for _ in range(2):
            made.apply([ops.full((2, 2), gradient)] * 2, variables)
        return (float(v.value[0, 0]) for v in variables), made

    def test_sgd_by_hand(self):
        (body, logits), _ = self.both("sgd", 1.0, backbone_multiplier=0.1)
        # Steps of 0.5 and 0.5 + 0.9 * 0.5; a tenth of these.
        self.assertAlmostEqual(logits, 1 - 0.5 - 0.95, places=5)
        self.assertAlmostEqual(body, 1 - 0.05 - 0.095, places=5)

    @parameterized.parameters("adam", "adamw")
    def test_the_update_is_scaled_not_the_gradient(self, name):
        for gradient in (1.0, 100.0):  # a step of Adam is the rate, whatever the gradient
            (body, logits), _ = self.both(name, gradient, backbone_multiplier=0.1)
            self.assertAlmostEqual(logits, 1 - 2 * 0.5, places=4)
            self.assertAlmostEqual(body, 1 - 2 * 0.05, places=4)

    @parameterized.parameters("adamw", "muon")
    def test_decoupled_decay_follows_the_rate(self, name):
        variables = [keras.Variable(np.ones((2, 2), "float32"), name=n) for n in ("a", "b", "c")]
        made = optimizers.make(
            name,
            0.5,
            variables,
            momentum=0.9,
            weight_decay=0.2,
            decayed=[variables[0], variables[2]],
            backbone=variables[:2],
            backbone_multiplier=0.1,
        )
        made.build(variables)
        made.apply([ops.zeros((2, 2))] * 3, variables)
        for variable, expected in zip(variables, (1 - 0.5 * 0.1 * 0.2, 1, 1 - 0.5 * 0.2)):
            self.assertAlmostEqual(float(variable.value[0, 0]), expected, places=6)

    def test_one_is_kerass_own_class_and_others_are_saved(self):
        _, plain = self.both("sgd", 1.0)
        self.assertIs(type(plain), keras.optimizers.SGD)
        _, made = self.both("muon", 1.0, backbone_multiplier=0.25)
        config = keras.saving.serialize_keras_object(made)
        loaded = keras.saving.deserialize_keras_object(config)
        self.assertEqual(loaded.backbone, {"multiplier": 0.25, "paths": ["body"], "decayed": []})

    def test_in_a_compiled_step_of_two_networks(self):
        settings = Settings(
            method="co_teaching",
            network="small_cnn",
            optimizer="adam",
            learning_rate=0.01,
            steps=8,
            schedule="constant",
            backbone_learning_rate_multiplier=0.01,
            method_arguments={"batch_size": 4},
        )
        made = make_learner(settings, toy.task()[0])
        before = [v.numpy() for v in made.trainable_variables]
        toy.fit(made, steps=1)
        for variable, value in zip(made.trainable_variables, before):
            step = np.abs(variable.numpy() - value).max()  # the first step of Adam is the rate
            expected = 0.01 if "logits" in variable.path else 0.0001
            self.assertAlmostEqual(step / expected, 1, delta=0.02, msg=variable.path)


class NormalizationTest(absltest.TestCase):
    def test_a_run_normalizes_by_its_training_images(self):
        task, _ = toy.task()
        settings = Settings(
            method="supervised",
            network="small_cnn",
            normalization="dataset",
            batch_norm_epsilon=0.5,
            steps=8,
        )
        network = make_learner(settings, task).network
        first = keras.Model(network.inputs, network.layers[1].output)(task.images)
        self.assertAlmostEqual(float(ops.mean(first)), 0, places=5)
        self.assertAlmostEqual(float(ops.std(first)), 1, places=5)
        norms = [
            x.epsilon for x in network.layers if isinstance(x, keras.layers.BatchNormalization)
        ]
        self.assertEqual(norms, [0.5] * 3)


if __name__ == "__main__":
    absltest.main()
