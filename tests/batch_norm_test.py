# SPDX-License-Identifier: Apache-2.0
"""Tests of `networks.batch_norm`: equal to Keras's layer, also for batches in one pass."""

from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import layers, ops

from ssl_noisy import machine, networks


class BatchNormalizationTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        # On JAX, normalizes as on a GPU. As on a CPU is Keras's own.
        self.enter_context(mock.patch.object(machine, "accelerators", return_value=["gpu:0"]))

    @parameterized.product(training=[True, False], trainable=[True, False], compiled=[True, False])
    def test_equals_keras(self, training, trainable, compiled):
        rng = np.random.default_rng(0)
        x = keras.Variable(rng.normal(2, 3, (3, 4, 5, 6)))
        output_weights = rng.normal(size=x.shape).astype("float32")
        results = []
        for layer_class in (networks.BatchNormalization, layers.BatchNormalization):
            layer = layer_class(momentum=0.7, epsilon=0.02)
            layer.build(x.shape)
            weights = [np.linspace(0.5, 2, 6) + i for i in range(4)]
            warm = [np.float32(100)] if layer_class is networks.BatchNormalization else []
            layer.set_weights([*weights, *warm])
            layer.trainable = trainable

            def call(layer=layer):
                return layer(ops.convert_to_tensor(x), training=training)

            if compiled and keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                call = tf.function(call, jit_compile=True)
            arrays = [call(), *layer.get_weights()[:4]]
            arrays += toy.gradients(
                lambda call=call: ops.sum(output_weights * call()), [x, layer.gamma, layer.beta]
            )
            results.append([ops.convert_to_numpy(array) for array in arrays])
        self.assertLen(results[0], 8)
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)

    def test_variance_is_biased(self):
        layer = networks.BatchNormalization(momentum=0.0)
        layer(np.array([0.0, 2.0], "float32").reshape(2, 1, 1, 1), training=True)
        self.assertAlmostEqual(float(layer.moving_variance[0]), 1.0, places=5)

    @parameterized.parameters((2, 3, 3, 1), (18, 1))  # TensorFlow's kernel, and composed
    def test_running_statistics_forget_their_first_values_at_once(self, *shape):
        x = np.resize(np.array([4.0, 8.0], "float32"), shape)  # mean 6, variance 4
        layer = networks.BatchNormalization(momentum=0.3)
        layer.build(shape)
        kept = 1.0
        # (1 + n) / (10 + n) at the n-th update, then 0.3, which 4 / 13 would exceed.
        for momentum in (2 / 11, 3 / 12, 0.3):
            layer(x, training=True)
            layer(x, training=False)
            kept *= momentum
            np.testing.assert_allclose(layer.moving_mean, [6 * (1 - kept)], rtol=1e-5)
            np.testing.assert_allclose(layer.moving_variance, [4 - 3 * kept], rtol=1e-5)
        layer.trainable = False
        layer(x, training=True)
        self.assertEqual((float(layer.num_updates), layer.momentum), (3.0, 0.3))

    def test_large_mean(self):
        x = 300 + np.random.default_rng(0).normal(size=(8, 8, 8, 4)).astype("float32")
        y = ops.convert_to_numpy(networks.BatchNormalization(epsilon=1e-5)(x, training=True))
        np.testing.assert_allclose(y, (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), atol=5e-3)

    def test_dense_features_and_masks_work(self):
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        y = networks.BatchNormalization()(x, training=True)
        expected = layers.BatchNormalization()(x, training=True)
        np.testing.assert_allclose(y, expected, rtol=1e-5)

    def test_half_precision_has_statistics_in_full(self):
        # Of 2,048 values of 30 +- 1, in bfloat16 a sum of squares would be off by thousands.
        x = 30 + np.random.default_rng(0).normal(size=(8, 16, 16, 1)).astype("float32")
        x = ops.cast(x, "bfloat16")
        values = ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")
        layer = networks.BatchNormalization(momentum=0.0, dtype="mixed_bfloat16")
        y = layer(x, training=True)
        self.assertEqual(keras.backend.standardize_dtype(y.dtype), "bfloat16")
        np.testing.assert_allclose(layer.moving_mean, [values.mean()], rtol=1e-6)
        np.testing.assert_allclose(layer.moving_variance, [values.var()], rtol=1e-4)
        expected = (values - values.mean()) / np.sqrt(values.var() + 1e-3)
        y = ops.convert_to_numpy(ops.cast(y, "float32"))
        np.testing.assert_allclose(y, expected, rtol=0, atol=2**-7)  # bfloat16 rounds 3 by that


class ApartTest(parameterized.TestCase):
    SIZES = (2, 3, 1)

    def test_batches_in_one_pass_are_normalized_as_if_alone(self):
        # Batches whose means and deviations differ, and a gradient of other weights for each.
        rng = np.random.default_rng(0)
        parts = [rng.normal(3 * i, 1 + i, (n, 5, 4, 2)) for i, n in enumerate(self.SIZES)]
        weights = [rng.normal(size=part.shape).astype("float32") for part in parts]
        gamma, beta = np.float32([0.5, 2]), np.float32([1, -1])
        x = keras.Variable(np.concatenate(parts))
        layer = networks.BatchNormalization(momentum=0.75, epsilon=0.02)
        network = keras.Sequential([keras.Input((5, 4, 2)), layer])
        layer.set_weights([gamma, beta, *np.float32([[1, 2], [3, 4]]), np.float32(100)])

        def outputs():
            with networks.apart(network, self.SIZES):
                return network(x.value, training=True)

        found = ops.convert_to_numpy(outputs())
        # The running statistics follow the first batch: 3/4 of them, and 1/4 of its own.
        mean, variance = parts[0].mean((0, 1, 2)), parts[0].var((0, 1, 2))
        expected = 0.75 * np.array([1, 2]) + 0.25 * mean
        np.testing.assert_allclose(layer.moving_mean, expected, rtol=1e-5)
        expected = 0.75 * np.array([3, 4]) + 0.25 * variance
        np.testing.assert_allclose(layer.moving_variance, expected, rtol=1e-5)
        self.assertEqual(float(layer.num_updates), 101)
        gradients = toy.gradients(
            lambda: ops.sum(np.concatenate(weights) * outputs()), [x, layer.gamma, layer.beta]
        )
        d_x, d_gamma, d_beta = (ops.convert_to_numpy(one) for one in gradients)
        alone = []
        for part, weight in zip(parts, weights):
            one = keras.Variable(part)
            keras_layer = layers.BatchNormalization(epsilon=0.02)
            keras_layer.build(part.shape)
            keras_layer.set_weights([gamma, beta, np.zeros(2), np.ones(2)])

            def call(one=one, layer=keras_layer):
                return layer(one.value, training=True)

            values = toy.gradients(
                lambda call=call, weight=weight: ops.sum(weight * call()),
                [one, keras_layer.gamma, keras_layer.beta],
            )
            alone.append([ops.convert_to_numpy(value) for value in (call(), *values)])
        y, by_x, by_gamma, by_beta = zip(*alone)
        np.testing.assert_allclose(found, np.concatenate(y), atol=2e-5)
        np.testing.assert_allclose(d_x, np.concatenate(by_x), atol=2e-5)
        np.testing.assert_allclose(d_gamma, sum(by_gamma), rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(d_beta, sum(by_beta), rtol=1e-4, atol=2e-5)

    def test_afterwards_a_batch_is_one_again(self):
        layer = networks.BatchNormalization()
        network = keras.Sequential([keras.Input((1, 1, 1)), layer])
        x = np.float32([1, 3, 10, 30]).reshape(4, 1, 1, 1)
        with self.assertRaises(ZeroDivisionError), networks.apart(network, (2, 2)):
            y = ops.convert_to_numpy(network(x, training=True)).ravel()
            np.testing.assert_allclose(y, [-1, 1, -1, 1], atol=1e-3)
            raise ZeroDivisionError
        y = ops.convert_to_numpy(network(x, training=True)).ravel()
        np.testing.assert_allclose(y, (x.ravel() - 11) / x.std(), atol=1e-3)

    def test_which_networks_can(self):
        def after(*more, shape=(4, 4, 1)):
            return keras.Sequential([keras.Input(shape), *more])

        own = networks.BatchNormalization
        for able, network in (
            (True, toy.network()),
            (True, after(layers.Conv2D(2, 3), layers.GroupNormalization(2), layers.Dropout(0.5))),
            (True, after(after(own()))),
            (False, after(after(layers.BatchNormalization()))),
            (False, after(layers.Flatten(), own())),  # on TensorFlow the kernel takes images alone
            (False, after(own(axis=1))),
            (False, after(own(scale=False))),
            (False, after(layers.Lambda(lambda x: x - ops.mean(x, axis=0)))),
            (False, after(toy.LookUp(3, 2))),  # whatever a layer of the user's does
            (False, toy.users_network("subclassed")),
        ):
            with self.subTest([type(layer).__name__ for layer in network.layers]):
                self.assertEqual(networks.can_pass_apart(network), able)


if __name__ == "__main__":
    absltest.main()
