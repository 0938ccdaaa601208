# SPDX-License-Identifier: Apache-2.0
"""Where the stages of networks end, and the pooled features of one of them."""

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from keras import layers, ops

from ssl_noisy import networks


def kind(network, stage):
    """Returns the kind of layer that ends a stage, counted from 1."""
    end = networks.stage_ends(network)[stage - 1]
    return [type(x).__name__ for x in network.operations if x.output is end]


class EndsTest(parameterized.TestCase):
    @parameterized.parameters(
        ("wrn_10_1", "Add", [(16, 16, 16), (8, 8, 32), (4, 4, 64)]),
        ("wrn_10_1_torchssl", "Add", [(16, 16, 16), (8, 8, 32), (4, 4, 64)]),  # padded for strides
        ("small_cnn", "ReLU", [(16, 16, 32), (8, 8, 64)]),
    )
    def test_stages_of(self, name, last, expected):
        network = networks.build(name, (16, 16, 3), 10)
        self.assertEqual([tuple(end.shape[1:]) for end in networks.stage_ends(network)], expected)
        self.assertEqual(kind(network, 2), [last])

    @parameterized.parameters(
        ("resnet_18", "ReLU", [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]),
        ("resnet_32", "ReLU", [(32, 32, 16), (16, 16, 32), (8, 8, 64)]),
        # The authors' hook is at the sum, too.
        ("preact_resnet_18", "Add", [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]),
        ("nin", "ReLU", [(32, 32, 96), (16, 16, 192), (8, 8, 192)]),
        ("cnn_13", "LeakyReLU", [(32, 32, 128), (16, 16, 256), (6, 6, 128)]),  # not the logits
    )
    @pytest.mark.slow
    def test_stages_of_large(self, name, last, expected):
        network = networks.build(name, (32, 32, 3), 10)
        self.assertEqual([tuple(end.shape[1:]) for end in networks.stage_ends(network)], expected)
        self.assertEqual(kind(network, 2), [last])

    @parameterized.parameters(True, False)
    def test_a_sum_by_an_operator_and_its_activation(self, is_activated):
        x = inputs = keras.Input((8, 8, 3))
        x = layers.Conv2D(4, 3, padding="same")(x)
        x = x + layers.Conv2D(4, 1)(x)
        x = x if is_activated else layers.BatchNormalization()(x)
        x = layers.Conv2D(4, 3, strides=2)(layers.ReLU()(x))
        network = keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))
        self.assertEqual(kind(network, 1), ["ReLU" if is_activated else "Add"])


class WithStageTest(parameterized.TestCase):
    @parameterized.parameters("functional", "sequential")
    def test_pooled_features_and_the_logits(self, kind):
        images = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 1)).astype("float32")
        network = toy.users_network(kind)
        expected_logits = network(images)
        scaled, convolution, batch_norm = [
            x for x in network.layers if not isinstance(x, layers.InputLayer)
        ][:3]
        maps = batch_norm(convolution(scaled(images)))  # the dropout after it is idle
        staged = networks.with_stage(network, 1, "this test")
        features, logits = staged(images)
        np.testing.assert_allclose(features, ops.mean(maps, axis=(1, 2)), atol=1e-5)
        np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
        own = {id(v) for v in network.variables}
        self.assertLessEqual({id(v) for v in staged.trainable_variables}, own)

    def test_a_network_with_fewer_stages_has_its_last_features(self):
        images = np.random.default_rng(0).uniform(0, 255, (5, 8, 8, 1)).astype("float32")
        network = toy.users_network("nested")  # layers within a model are none of its stages
        self.assertEmpty(networks.stage_ends(network))
        features, logits = networks.with_stage(network, 1, "this test")(images)
        self.assertEqual(features.shape, (5, 3 * 3 * 4))
        np.testing.assert_allclose(logits, network(images), atol=1e-5)

    def test_a_subclassed_network_is_refused(self):
        network = toy.users_network("subclassed")
        network(np.zeros((1, 8, 8, 1)))
        with self.assertRaisesRegex(ValueError, "this test trains.*Sequential or functional"):
            networks.with_stage(network, 1, "this test")


if __name__ == "__main__":
    absltest.main()
