# SPDX-License-Identifier: Apache-2.0
"""What the methods for wrong labels share: two networks, and the memory of an example."""

import os
from unittest import mock

import keras
import look_up
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import methods, networks, robust
from ssl_noisy.runs import checkpoint, evaluation

METHODS = ("co_teaching", "cross_split", "divide_mix", "pls_lsa", "promix")
PAIRS = [(name, name) for name in METHODS]


def weights(network):
    return np.concatenate([v.numpy().ravel() for v in network.variables])


class TwoNetworksTest(parameterized.TestCase):
    def test_which_methods_have_two(self):
        found = [n for n in methods.names() if issubclass(methods.get(n), robust.TwoNetworkLearner)]
        self.assertEqual(found, [name for name, _ in PAIRS])

    @parameterized.named_parameters(PAIRS)
    def test_the_second_has_weights_of_its_own_that_the_seed_decides(self, method):
        kernels = []
        for seed in (0, 0, 1):
            learner, _ = toy.learner(method, seed=seed, compiled=False)
            pair = [network.trainable_variables for network in learner.networks]
            for first, second in zip(*pair, strict=True):
                self.assertEqual(first.shape, second.shape)
                if first.name == "kernel":
                    difference = np.abs(first.numpy() - second.numpy())
                    self.assertGreater(np.median(difference), 0.01)
            kernels.append(weights(learner.second_network))
        np.testing.assert_array_equal(kernels[0], kernels[1])
        self.assertGreater(np.abs(kernels[0] - kernels[2]).max(), 0.01)

    @parameterized.named_parameters(PAIRS)
    @pytest.mark.slow
    def test_both_are_trained_and_the_first_or_the_sum_answers(self, method):
        learner, _ = toy.learner(method)
        before = [weights(network) for network in learner.networks]
        toy.fit(learner)
        for network, old in zip(learner.networks, before):
            self.assertGreater(np.abs(weights(network) - old).max(), 1e-3)
        images = ops.cast(learner.task.images[:5], "float32")
        answers = [np.array(network(images)) for network in learner.networks]
        self.assertGreater(np.abs(answers[0] - answers[1]).max(), 1e-3)
        expected = sum(answers) if learner.sum_networks else answers[0]
        np.testing.assert_allclose(learner(images), expected, atol=1e-6)

    def test_both_are_decayed(self):
        for decayed, expected in (("kernels", 2), ("all", 5)):
            learner, _ = toy.learner("co_teaching", decayed=decayed, compiled=False)
            found = [id(v) for v in learner.decayed_variables()]
            self.assertLen(set(found), 2 * expected)
            for network in learner.networks:
                own = [v for v in network.trainable_variables if id(v) in found]
                self.assertLen(own, expected)

    @parameterized.named_parameters(PAIRS)
    @pytest.mark.slow
    def test_both_are_saved_and_restored(self, method):
        learner, _ = toy.learner(method)
        toy.fit(learner, steps=2)
        folder = self.create_tempdir().full_path
        learner.save(os.path.join(folder, "learner.keras"))
        loaded = keras.models.load_model(os.path.join(folder, "learner.keras"))
        checkpoint.save(folder, learner, {})
        restored, _ = toy.learner(method, seed=9)
        restored.optimizer.build(restored.trainable_variables)
        checkpoint.restore(folder, restored)
        for other in (loaded, restored):
            for mine, its in zip(learner.networks, other.networks):
                np.testing.assert_array_equal(weights(mine), weights(its))

    def test_the_dropout_of_both_goes_on_where_it_stopped(self):
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
        network = keras.Model(inputs, keras.layers.Dense(10)(x))
        learner = methods.get("co_teaching")(network, toy.task()[0], batch_size=4)
        learner.compile(keras.optimizers.SGD(0.01))
        toy.fit(learner, steps=2)
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        learner.save(path)
        loaded = keras.models.load_model(path)
        images = ops.cast(learner.task.images[:5], "float32")
        for mine, its in zip(learner.networks, loaded.networks):
            np.testing.assert_array_equal(mine(images, training=True), its(images, training=True))


class SumTest(parameterized.TestCase):
    def sum_of(self, learner, images):
        return sum(ops.convert_to_numpy(network(images)) for network in learner.networks)

    def test_only_where_asked_for(self):
        summing = [n for n, _ in PAIRS if methods.arguments(n)["sum_networks"].default]
        self.assertEqual(summing, ["cross_split"])
        learner, _ = toy.learner("divide_mix", compiled=False)
        self.assertIs(learner.classifier, learner.network)

    @parameterized.parameters(*toy.USERS_NETWORKS)
    def test_the_sum_answers_and_is_saved(self, kind):
        task, _ = toy.task()
        learner = methods.get("divide_mix")(
            toy.users_network(kind), task, sum_networks=True, batch_size=4
        )
        images = ops.cast(task.images[:5], "float32")
        expected = self.sum_of(learner, images)
        np.testing.assert_allclose(learner(images), expected, atol=1e-5)
        found = evaluation.averaged_logits(learner, task.images[:5])
        np.testing.assert_allclose(found, expected, atol=1e-5)
        path = os.path.join(self.create_tempdir().full_path, "model.keras")
        networks.portable(learner.classifier).save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_allclose(loaded(images), expected, atol=1e-5)

    def test_both_are_averaged(self):
        learner, _ = toy.learner("divide_mix", sum_networks=True, ema_momentum=0.9)
        start = [weights(network) for network in learner.networks]
        toy.fit(learner, steps=2)
        live = [weights(network) for network in learner.networks]
        with learner.averaged_weights():
            averaged = [weights(network) for network in learner.networks]
        for before, now, mean in zip(start, live, averaged):
            self.assertGreater(np.abs(mean - now).max(), 1e-3)
            self.assertGreater(np.abs(mean - before).max(), 1e-3)
        np.testing.assert_array_equal(live[1], weights(learner.second_network))


class RememberTest(absltest.TestCase):
    def test_the_last_row_of_an_example_stays_and_others_are_left_alone(self):
        learner = look_up.make("elr", [[0.5, 0.5]] * 4, [0, 1, 0, 1])
        learner.targets.assign([[1, 2], [3, 4], [5, 6], [7, 8]])
        rows = np.array([[10, 11], [20, 21], [30, 31], [40, 41]], "float32")
        learner.remember(learner.targets, np.array([2, 0, 2, 0], "int32"), rows)
        np.testing.assert_array_equal(learner.targets, [[40, 41], [3, 4], [30, 31], [7, 8]])

    def test_any_order_of_writing_gives_the_same(self):
        learner = look_up.make("cores", [[0.5, 0.5]] * 3, [0, 1, 0])
        with mock.patch.object(ops, "scatter_update", wraps=ops.scatter_update) as write:
            rows = np.array([7, 8, 9], "float32")
            learner.remember(learner.sieve_values, np.array([1, 2, 1], "int32"), rows)
        np.testing.assert_array_equal(write.call_args.args[2], [9, 8, 9])

    def test_numbers_too(self):
        learner = look_up.make("cores", [[0.5, 0.5]] * 3, [0, 1, 0])
        learner.sieve_values.assign([1, 2, 3])
        rows = np.array([7, 8], "float32")
        learner.remember(learner.sieve_values, np.array([1, 1], "int32"), rows)
        np.testing.assert_array_equal(learner.sieve_values, [1, 8, 3])


if __name__ == "__main__":
    absltest.main()
