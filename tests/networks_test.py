# SPDX-License-Identifier: Apache-2.0
"""Tests of `ssl_noisy.networks`."""

import functools
import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from keras import layers, ops

from ssl_noisy import contract, networks

# One of each kind. All tests share sizes, because JAX compiles every new shape.
KINDS = (
    "wrn_10_1",
    "wrn_10_2_torchssl",
    "wrn_10_2_usb",
    "wrn_10_2_uda",
    "preact_resnet_18",
    "resnet_32",
    "cnn_13",
    "nin",
    "small_cnn",
    "wide_lenet",
)
SHAPE = (12, 12, 1)


@functools.cache
def shared(name):
    """A network for tests that only read it."""
    return networks.build(name, SHAPE, 3)


def images(shape, count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype("uint8")


def num_trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


RESNET_18 = ((64, 2), (128, 2), (256, 2), (512, 2))
RESNET_34 = ((64, 3), (128, 4), (256, 6), (512, 3))
RESNET_32 = ((16, 5), (32, 5), (64, 5))


def wide_resnet_parameters(depth, width, channels, num_classes):
    """Counts by hand: convolutions k * k * in * out, batch normalization 2 per channel."""
    total, before = 9 * channels * 16, 16
    for filters in (16 * width, 32 * width, 64 * width):
        for unit in range((depth - 4) // 6):
            source = filters if unit else before
            total += 2 * source + 9 * source * filters + 2 * filters + 9 * filters**2
        total += 0 if before == filters else before * filters
        before = filters
    return total + 2 * before + (before + 1) * num_classes


def preact_resnet_18_parameters(channels, num_classes):
    total, before = 9 * channels * 64 + 2 * 64, 64
    for filters in (64, 128, 256, 512):
        total += 2 * before + 9 * before * filters + 2 * filters + 9 * filters**2
        total += 2 * filters + 9 * filters**2 + 2 * filters + 9 * filters**2
        total += 0 if before == filters else before * filters
        before = filters
    return total + 513 * num_classes


def basic_resnet_parameters(stages, projects, channels, num_classes):
    before = stages[0][0]
    total = 9 * channels * before + 2 * before
    for filters, num_units in stages:
        total += 9 * before * filters + (2 * num_units - 1) * 9 * filters**2
        total += 2 * num_units * 2 * filters
        total += before * filters + 2 * filters if projects and before != filters else 0
        before = filters
    return total + (before + 1) * num_classes


def cnn_13_parameters(weight_norm, channels, num_classes):
    sizes = ((3, channels, 128), (3, 128, 128), (3, 128, 128), (3, 128, 256), (3, 256, 256))
    sizes += ((3, 256, 256), (3, 256, 512), (1, 512, 256), (1, 256, 128))
    total = sum(side**2 * source * filters + 2 * filters for side, source, filters in sizes)
    if weight_norm:
        total += sum(filters for _, _, filters in sizes) + num_classes
    return total + 129 * num_classes


def cnn_9_parameters(channels, num_classes):
    filters = (channels, 128, 128, 128, 256, 256, 256, 512, 256, 128)
    total = sum(9 * source * target + 2 * target for source, target in zip(filters, filters[1:]))
    return total + 129 * num_classes


def nin_parameters(channels, num_classes):
    first = 25 * channels * 192 + 192 * 160 + 160 * 96 + 2 * (192 + 160 + 96)
    second = 25 * 96 * 192 + 2 * 192**2 + 2 * 3 * 192
    others = 9 * 192**2 + 2 * 192**2 + 2 * 3 * 192
    return first + second + 2 * others + 193 * num_classes


class BuildTest(parameterized.TestCase):
    @parameterized.parameters(
        ("wrn_28_2", (32, 32, 3), 10, 1_467_610),
        ("wrn_28_8", (32, 32, 3), 100, 23_401_012),
        ("wrn_10_1", (8, 8, 1), 7, wide_resnet_parameters(10, 1, 1, 7)),
        ("preact_resnet_18", (28, 28, 1), 10, preact_resnet_18_parameters(1, 10)),
        ("resnet_18", (32, 32, 3), 10, basic_resnet_parameters(RESNET_18, True, 3, 10)),
        ("resnet_34", (32, 32, 3), 10, basic_resnet_parameters(RESNET_34, True, 3, 10)),
        ("resnet_32", (28, 28, 1), 10, basic_resnet_parameters(RESNET_32, False, 1, 10)),
        ("cnn_13", (28, 28, 1), 10, cnn_13_parameters(True, 1, 10)),
        # Without the unused batch normalizations of 16, 32 and 64 channels.
        ("wrn_28_2_torchssl", (32, 32, 3), 10, 1_467_610 - 2 * (32 + 64)),
        ("wrn_28_8_torchssl", (32, 32, 3), 100, 23_401_012 - 2 * (128 + 256)),
        ("wrn_28_2_usb", (32, 32, 3), 10, 1_467_610 - 2 * (32 + 64)),
        ("wrn_28_2_uda", (32, 32, 3), 10, 1_467_610),
        ("cnn_9", (32, 32, 3), 10, cnn_9_parameters(3, 10)),
        ("nin", (32, 32, 3), 4, nin_parameters(3, 4)),
        ("small_cnn", (32, 32, 3), 10, 27 * 32 + 9 * 32 * 64 + 9 * 64**2 + 2 * 160 + 65 * 10),
        ("wide_lenet", (32, 32, 3), 10, 27 * 32 + 9 * 32 * 64 + 4096 * 512 + 2 * 608 + 513 * 10),
    )
    def test_parameters_and_shapes(self, name, image_shape, num_classes, expected):
        network = networks.build(name, image_shape, num_classes)
        self.assertEqual(num_trainable(network), expected)
        self.assertEqual(network.input_shape, (None, *image_shape))
        self.assertEqual(network.output_shape, (None, num_classes))
        self.assertEqual(network.name, name)

    def test_hand_formulas_give_the_published_counts(self):
        self.assertEqual(wide_resnet_parameters(28, 2, 3, 10), 1_467_610)
        self.assertEqual(basic_resnet_parameters(RESNET_18, True, 3, 10), 11_173_962)
        self.assertEqual(basic_resnet_parameters(RESNET_34, True, 3, 10), 21_282_122)
        self.assertEqual(basic_resnet_parameters(RESNET_32, False, 3, 10), 464_154)
        self.assertEqual(nin_parameters(3, 4), 1_411_140)

    def test_cnn_13_without_weight_norm(self):
        network = networks.build("cnn_13", SHAPE, 3, weight_norm=False, dropout=0.4)
        self.assertEqual(num_trainable(network), cnn_13_parameters(False, 1, 3))
        rates = [x.rate for x in network.layers if isinstance(x, layers.Dropout)]
        self.assertEqual(rates, [0.4, 0.4])

    def test_every_name_is_tested_or_a_wide_resnet(self):
        untested = set(networks.names()) - set(KINDS)
        untested = {name for name in untested if not name.startswith("wrn_28")}
        self.assertEqual(untested, {"resnet_18", "resnet_34", "cnn_9"})

    def test_pixels_are_scaled_inside(self):
        network = shared("small_cnn")
        first = keras.Model(network.inputs, network.layers[1].output)
        pixels = np.array([0, 51, 127.5, 255], "float32").reshape(1, 2, 2, 1)
        pixels = np.tile(pixels, (1, 6, 6, 1))
        scaled = ops.convert_to_numpy(first(pixels))[0, :2, :2, 0].ravel()
        np.testing.assert_allclose(scaled, [-1, -0.6, 0, 1], atol=1e-6)

    def test_uint8_and_float_pixels_agree(self):
        network = shared("small_cnn")
        pixels = images(SHAPE)
        np.testing.assert_array_equal(network(pixels), network(pixels.astype("float32")))

    @parameterized.parameters("small_cnn", "wrn_10_1", "cnn_13")
    def test_seed_reproduces_weights(self, name):
        weights = []
        for seed in (3, 3, 4):
            keras.utils.set_random_seed(seed)
            weights.append(networks.build(name, SHAPE, 3).get_weights())
        for first, second in zip(weights[0], weights[1], strict=True):
            np.testing.assert_array_equal(first, second)
        self.assertGreater(np.abs(weights[0][0] - weights[2][0]).max(), 0)

    def test_no_two_kernels_start_equal(self):
        network = shared("wrn_10_1")
        kernels = [w for w in network.get_weights() if w.shape == (3, 3, 16, 16)]
        self.assertLen(kernels, 2)
        self.assertGreater(np.abs(kernels[0] - kernels[1]).max(), 0.01)

    @parameterized.named_parameters(
        ("typo", "wrn_28x2", {}, "Did you mean 'wrn_28_2'"),
        ("other", "resnet18", {}, "Available: cnn_13, cnn_9, nin, preact_resnet_18"),
        ("depth_11", "wrn_11_2", {}, "Nearest depths: 10, 16"),
        ("depth_27", "wrn_27_2", {}, "Nearest depths: 22, 28"),
        ("depth_4", "wrn_4_2", {}, "Nearest depths: 10, 16"),
        ("width_0", "wrn_10_0", {}, "a width >= 1"),
        ("option", "resnet_34", {"dropout": 0.5}, r"does not take \['dropout'\]. It takes: batch_"),
        ("cnn_13", "cnn_13", {}, "at least 12x12"),
        ("cnn_9", "cnn_9", {}, "at least 28x28"),
        ("variant", "wrn_10_2_fixmatch", {}, "Did you mean 'wrn_"),
        ("channels", "small_cnn", {"normalization": ([1, 2], [3, 4])}, "2 means and 2 dev"),
    )
    def test_errors(self, name, options, message):
        with self.assertRaisesRegex(ValueError, message):
            networks.build(name, (8, 8, 1), 10, **options)

    def test_the_small_cnn_halves_an_image(self):
        networks.build("small_cnn", (2, 2, 1), 10)
        with self.assertRaisesRegex(ValueError, "at least 2x2. Received: .1, 2, 1."):
            networks.build("small_cnn", (1, 2, 1), 10)


class ConfigurationTest(parameterized.TestCase):
    @parameterized.parameters(
        ("wrn_10_1", 0.999, 1e-3),
        ("wrn_10_2_torchssl", 0.999, 1e-3),
        ("wrn_10_2_uda", 0.9, 1e-5),
        ("preact_resnet_18", 0.9, 1e-5),
        ("resnet_32", 0.9, 1e-5),
        ("cnn_13", 0.9, 1e-5),
        ("nin", 0.9, 1e-5),
    )
    def test_batch_norm(self, name, momentum, epsilon):
        for wanted in (None, 0.25) if name == "wrn_10_1" else (None,):
            network = networks.build(name, SHAPE, 3, batch_norm_momentum=wanted)
            norms = [x for x in network.layers if isinstance(x, layers.BatchNormalization)]
            self.assertGreater(len(norms), 4)
            self.assertEqual({n.momentum for n in norms}, {momentum if wanted is None else wanted})
            self.assertEqual({n.epsilon for n in norms}, {epsilon})

    def test_batch_norm_epsilon(self):
        def epsilons(name, **options):
            network = networks.build(name, SHAPE, 3, **options)
            return [x.epsilon for x in network.layers if isinstance(x, layers.BatchNormalization)]

        # One before the first unit, one inside each unit, and one after the last.
        self.assertEqual(epsilons("wrn_10_2_usb"), [1e-5] * 4 + [1e-3])
        self.assertEqual(epsilons("wrn_10_2_usb", batch_norm_epsilon=0.5), [0.5] * 5)
        self.assertEqual(set(epsilons("small_cnn", batch_norm_epsilon=0.25)), {0.25})

    def test_batch_norm_momentum_as_it_acts(self):
        network = networks.build("wrn_10_1", SHAPE, 3, batch_norm_momentum=0.75)
        norm = next(x for x in network.layers if isinstance(x, layers.BatchNormalization))
        pixels = images(SHAPE)
        stem = ops.convert_to_numpy(keras.Model(network.inputs, norm.input)(pixels))
        norm.num_updates.assign(100)  # the warm-up is over
        network(pixels, training=True)
        np.testing.assert_allclose(norm.moving_mean, 0.25 * stem.mean((0, 1, 2)), rtol=1e-4)
        variance = 0.75 + 0.25 * stem.var((0, 1, 2))
        np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)

    @parameterized.parameters(("wrn_10_1", 0.1), ("cnn_13", 0.1))
    def test_leaky_slope(self, name, default):
        for options, slope in (({}, default), ({"leaky_slope": 0.3}, 0.3)):
            network = networks.build(name, SHAPE, 3, **options)
            activations = [x for x in network.layers if isinstance(x, layers.LeakyReLU)]
            self.assertGreater(len(activations), 5)
            for layer in activations:
                np.testing.assert_allclose(layer(-np.ones((1, 1), "float32")), [[-slope]])

    def test_wide_resnet_kernels_start_with_fan_out_deviation(self):
        network = networks.build("wrn_10_4", (8, 8, 3), 10)
        convolutions = [x for x in network.layers if isinstance(x, layers.Conv2D)]
        for layer in convolutions[1:]:
            side, _, _, filters = layer.kernel.shape
            expected = (2 / (side * side * filters)) ** 0.5
            values = ops.convert_to_numpy(layer.kernel)
            self.assertAlmostEqual(values.std() / expected, 1, delta=0.1)
        # Normal, not truncated normal: some values lie beyond 3 deviations.
        self.assertGreater(np.abs(values).max(), 3 * expected)
        dense = ops.convert_to_numpy(network.get_layer("logits").kernel)
        self.assertAlmostEqual(dense.std() / (2 / (256 + 10)) ** 0.5, 1, delta=0.1)

    @parameterized.parameters(("cnn_13", SHAPE), ("cnn_9", (28, 28, 1)))
    def test_layers_start_as_pytorchs(self, name, shape):
        network = networks.build(name, shape, 50)
        kernels = [v for v in network.trainable_variables if v.name == "kernel"]
        self.assertLen(kernels, 10)
        for kernel in [*kernels[1:], network.trainable_variables[-1]]:
            values = ops.convert_to_numpy(kernel)
            bound = (np.prod(values.shape[:-1]) if values.ndim > 1 else 128) ** -0.5
            self.assertLessEqual(np.abs(values).max(), bound * (1 + 1e-6))
            self.assertAlmostEqual(np.abs(values).mean() / bound, 0.5, delta=0.15)

    def test_the_last_layer_of_uda_starts_within_the_root_of_the_classes(self):
        start = ops.convert_to_numpy(networks.build("wrn_10_2_uda", SHAPE, 16).layers[-1].kernel)
        self.assertBetween(np.abs(start).max(), 0.24, 0.25)
        self.assertAlmostEqual(start.std() * 12**0.5, 0.5, delta=0.03)

    def test_dropout_of_cnn_9_takes_whole_channels(self):
        network = networks.build("cnn_9", (28, 28, 1), 3, dropout=0.5)
        layer = next(x for x in network.layers if isinstance(x, layers.SpatialDropout2D))
        dropped = ops.convert_to_numpy(layer(np.ones((2, 3, 3, 128), "float32"), training=True))
        self.assertEqual({*dropped.ravel()}, {0.0, 2.0})
        np.testing.assert_array_equal(dropped.min((1, 2)), dropped.max((1, 2)))

    def test_nin_starts_as_the_authors(self):
        network = networks.build("nin", (4, 4, 3), 50)
        kernels = [v for v in network.trainable_variables if v.name == "kernel"]
        self.assertLen(kernels, 13)
        sides = [5, 1, 1, 5, 1, 1, 3, 1, 1, 3, 1, 1]
        self.assertEqual([kernel.shape[0] for kernel in kernels[:-1]], sides)
        for kernel, side in zip(kernels, sides):
            expected = (2 / (side**2 * kernel.shape[-1])) ** 0.5
            self.assertAlmostEqual(np.std(kernel) / expected, 1, delta=0.1)
        last, bias = network.get_layer("logits").get_weights()
        self.assertBetween(np.abs(last).max(), 0.99 * 192**-0.5, 192**-0.5 * (1 + 1e-6))
        self.assertEqual(np.abs(bias).max(), 0)

    def test_pools_of_nin_pad_on_each_side(self):
        network = networks.build("nin", (4, 4, 1), 3)
        pools = [x for x in network.layers if isinstance(x, layers.MaxPooling2D)]
        pools += [x for x in network.layers if isinstance(x, layers.AveragePooling2D)]
        paddings = [x for x in network.layers if isinstance(x, layers.ZeroPadding2D)]
        self.assertEqual([x.output.shape[1:] for x in pools], [(2, 2, 96), (1, 1, 192)])
        # The pixels 1 to 16, row by row: windows begin a pixel before the image.
        pixels = np.arange(1, 17, dtype="float32").reshape(1, 4, 4, 1)
        maxima, means = (ops.convert_to_numpy(x(paddings[0](pixels)))[0, ..., 0] for x in pools)
        np.testing.assert_array_equal(maxima, [[6, 8], [14, 16]])
        # (1 + 2 + 5 + 6) / 9, and so on: zeros outside of the image count.
        np.testing.assert_allclose(means, np.array([[14, 30], [57, 99]]) / 9, rtol=1e-6)

    @parameterized.parameters("resnet_32", "preact_resnet_18", "small_cnn")
    def test_other_kernels_start_he_normal(self, name):
        network = shared(name)
        kernels = [
            v for v in network.trainable_variables if v.name == "kernel" and len(v.shape) == 4
        ]
        for kernel in kernels[1:-1]:
            expected = (2 / np.prod(kernel.shape[:3])) ** 0.5
            self.assertAlmostEqual(np.std(kernel) / expected, 1, delta=0.1)


class NormalizationTest(parameterized.TestCase):
    def test_the_data_sets_own_by_hand(self):
        # 1, 1, 1, 5: mean 2, deviation the root of (1 + 1 + 1 + 9) / 4. A constant channel: 1.
        pixels = np.array([[[[1, 7], [1, 7]]], [[[1, 7], [5, 7]]]], "uint8")
        means, deviations, whitening = networks.pixel_normalization("dataset", pixels)
        self.assertIsNone(whitening)
        self.assertEqual((means, deviations), ([2, 7], [3**0.5, 1]))

    def test_of_many_images_it_equals_numpys(self):
        pixels = images((3, 3, 3), 2000)
        means, deviations, _ = networks.pixel_normalization("dataset", pixels)
        np.testing.assert_allclose(means, pixels.mean((0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(deviations, pixels.std((0, 1, 2)), rtol=1e-12)

    def test_imagenets_and_scale(self):
        pixels = images((4, 4, 3))
        means, deviations, _ = networks.pixel_normalization("imagenet", pixels)
        np.testing.assert_allclose(means, [123.675, 116.28, 103.53])
        np.testing.assert_allclose(deviations, [58.395, 57.12, 57.375])
        self.assertIsNone(networks.pixel_normalization("scale", pixels))

    def test_mistakes(self):
        with self.assertRaisesRegex(ValueError, "needs color images.*--normalization=dataset"):
            networks.pixel_normalization("imagenet", images(SHAPE))
        with self.assertRaisesRegex(ValueError, r"at least 2x2. Received: .*\(1, 4, 3\). Use"):
            networks.pixel_normalization("whitening", images((1, 4, 3)))
        with self.assertRaisesRegex(ValueError, "dataset, imagenet, whitening. Received: 'zscore'"):
            networks.pixel_normalization("zscore", images(SHAPE))

    def test_whitening_by_hand(self):
        # Images of one pixel value each, 0 and 2: mean 1, deviation 1, and each patch is four times
        # -1 or 1. Its one component, (1, 1, 1, 1) / 2, has variance 4; the others have none.
        pixels = np.stack([np.full((3, 3, 1), value, "uint8") for value in (0, 2, 2, 0)])
        *_, kernel = networks.pixel_normalization("whitening", pixels)
        self.assertEqual(kernel.shape, (2, 2, 1, 4))
        np.testing.assert_allclose(kernel[..., 0, 3], 0.5 / 4.0005**0.5, rtol=1e-6)
        lengths = np.linalg.norm(kernel[..., 0, :3], axis=(0, 1))
        np.testing.assert_allclose(lengths, 5e-4**-0.5, rtol=1e-6)

    def test_whitened_patches_are_uncorrelated_and_of_variance_1(self):
        # Neighbors and channels are correlated, as in photos.
        noise = np.random.default_rng(0).normal(size=(300, 9, 9, 4))
        smooth = noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1] + noise[:, :-1, :-1]
        smooth = smooth[..., :3] + smooth[..., 3:]
        pixels = np.clip(128 + 20 * smooth, 0, 255).astype("uint8")
        normalization = networks.pixel_normalization("whitening", pixels)
        # A component has no sign of its own, and libraries differ in it: the largest entry's is +.
        filters = normalization.whitening.reshape(12, 12).T
        self.assertTrue(all(one[np.argmax(np.abs(one))] > 0 for one in filters))
        network = networks.build("small_cnn", (8, 8, 3), 10, normalization=normalization)
        self.assertLen(network.non_trainable_variables, 1 + 3 * 3)  # and batch norm's
        whitened = keras.Model(network.inputs, network.get_layer("whitening").output)
        # The last row and column are of patches that reach beyond the image.
        values = ops.convert_to_numpy(whitened(pixels))[:, :-1, :-1].reshape(-1, 12)
        np.testing.assert_allclose(values.T @ values / len(values), np.eye(12), atol=0.02)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            networks.portable(network).save(path)
            loaded = keras.models.load_model(path)
        self.assertLen(loaded.trainable_variables, len(network.trainable_variables))
        expected = ops.convert_to_numpy(network(pixels))
        np.testing.assert_allclose(loaded(pixels), expected, atol=1e-5)
        copied = contract.new_copy(network).get_layer("whitening")
        np.testing.assert_array_equal(
            copied.kernel, network.get_layer("whitening").kernel
        )  # a second network has other weights, but is whitened too
        self.assertFalse(copied.trainable)

    def test_it_is_the_first_layer_and_is_saved(self):
        network = networks.build("small_cnn", (12, 12, 2), 3, normalization=([100, 50], [50, 200]))
        pixels = np.tile(np.array([200, 250], "uint8"), (1, 12, 12, 1))
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            networks.portable(network).save(path)
            loaded = keras.models.load_model(path)
        for made in (network, loaded):
            first = keras.Model(made.inputs, made.layers[1].output)
            np.testing.assert_allclose(first(pixels)[0, 0, 0], [2, 1], rtol=1e-6)
        np.testing.assert_allclose(loaded(pixels), network(pixels), rtol=1e-4, atol=1e-5)


def reference_wide_resnet(name, values, pixels):
    """Computes a wide ResNet of 10 layers in NumPy, in evaluation, from weights by name.

    Written from the authors' block diagrams: a convolution is a sum over its window, padded with
    zeros, here by one on each side, there as TensorFlow pads.
    """
    source = name.split("_")[-1]
    epsilons = {"torchssl": (1e-3, 1e-3), "usb": (1e-5, 1e-3), "uda": (1e-5, 1e-5)}[source]
    slope = 0.0 if source == "uda" else 0.1
    queue = {"conv": values["conv"][:], "norm": values["norm"][:]}

    def convolve(x, kernel, stride):
        size = -(-x.shape[1] // stride)
        reach = (size - 1) * stride + len(kernel) - x.shape[1]
        before = len(kernel) // 2 if source != "uda" else max(reach, 0) // 2
        x = np.pad(x, ((0, 0), (before, 2), (before, 2), (0, 0)))
        out = np.zeros((len(x), size, size, kernel.shape[-1]))
        for i in range(size):
            for j in range(size):
                top, left = i * stride, j * stride
                window = x[:, top : top + len(kernel), left : left + len(kernel)]
                out[:, i, j] = np.einsum("nhwc,hwcf->nf", window, kernel)
        return out

    def activate(x, parameters, epsilon):
        gamma, beta, mean, variance = parameters
        x = gamma * (x - mean) / np.sqrt(variance + epsilon) + beta
        return np.where(x > 0, x, slope * x)

    x = convolve(pixels / 127.5 - 1, values["stem"], 1)
    for group in range(3):
        stride = 1 if group == 0 else 2
        if source == "uda":
            body, skip = activate(x, queue["norm"].pop(0), epsilons[0]), x
        elif group == 0:
            body = skip = activate(x, queue["norm"].pop(0), epsilons[0])
        else:
            body = skip = x  # raw, in both branches
        skip = convolve(skip, queue["conv"].pop(0), stride)
        body = convolve(body, queue["conv"].pop(0), stride)
        body = activate(body, queue["norm"].pop(0), epsilons[0])
        x = convolve(body, queue["conv"].pop(0), 1) + skip
    x = activate(x, queue["norm"].pop(0), epsilons[1]).mean((1, 2))
    kernel, bias = values["dense"]
    return x @ kernel + bias


class WideVariantTest(parameterized.TestCase):
    @parameterized.parameters("wrn_10_2_torchssl", "wrn_10_2_usb", "wrn_10_2_uda")
    def test_it_computes_what_the_authors_network_does(self, name):
        network = shared(name)
        rng = np.random.default_rng(5)
        before = network.get_weights()
        self.addCleanup(network.set_weights, before)
        network.set_weights([rng.uniform(0.2, 1, w.shape) - 0.5 * (w.ndim > 1) for w in before])
        # Small variances, so that epsilons matter.
        norms = [x for x in network.layers if isinstance(x, layers.BatchNormalization)]
        for layer in norms:
            layer.moving_variance.assign(layer.moving_variance * 1e-3)
        kernels = [x.get_weights()[0] for x in network.layers if isinstance(x, layers.Conv2D)]
        by_shape = self.in_order_of_use(network)
        values = {
            "stem": kernels[0],
            "conv": by_shape,
            "norm": [x.plain_weights() for x in norms],
            "dense": network.get_layer("logits").get_weights(),
        }
        pixels = images((12, 12, 1), 2)
        expected = reference_wide_resnet(name, values, pixels)
        np.testing.assert_allclose(network(pixels), expected, rtol=1e-4)

    def in_order_of_use(self, network):
        """Kernels of each unit: shortcut (1x1), first, second."""
        convolutions = [x for x in network.layers if isinstance(x, layers.Conv2D)][1:]
        found = []
        for filters in (32, 64, 128):
            of_group = [x.get_weights()[0] for x in convolutions if x.filters == filters]
            self.assertLen(of_group, 3)
            shortcut = next(k for k in of_group if len(k) == 1)
            second = next(k for k in of_group if len(k) == 3 and k.shape[2] == filters)
            first = next(k for k in of_group if len(k) == 3 and k.shape[2] != filters)
            found += [shortcut, first, second]
        return found

    def test_a_unit_of_as_many_filters_is_an_ordinary_one(self):
        network = networks.build("wrn_16_2_torchssl", SHAPE, 3)
        producer = {id(layer.output): layer for layer in network.layers}
        units = [x for x in network.layers if isinstance(x, layers.Add)]
        shortcuts = [type(producer[id(x.input[1])]).__name__ for x in units]
        self.assertEqual(shortcuts, ["Conv2D", "Add"] * 3)


class ShortcutTest(parameterized.TestCase):
    def residual_sources(self, name):
        """The layer types between each addition and the tensor that its shortcut starts from."""
        network = shared(name)
        producer = {id(layer.output): layer for layer in network.layers}
        sources = []
        for layer in network.layers:
            if isinstance(layer, layers.Add):
                shortcut = producer[id(layer.input[1])]
                chain = []
                while isinstance(
                    shortcut, (layers.Conv2D, layers.AveragePooling2D, layers.ZeroPadding2D)
                ):
                    chain.append(type(shortcut).__name__)
                    shortcut = producer[id(shortcut.input)]
                sources.append((*chain, type(shortcut).__name__))
        return sources

    def test_wide_resnet(self):
        expected = [("Conv2D", "LeakyReLU"), ("Add",), ("Conv2D", "Add"), ("Add",)]
        expected += [("Conv2D", "Add"), ("Add",)]
        self.assertEqual(self.residual_sources("wrn_16_2"), expected)

    def test_wide_resnet_of_width_1_activates_an_identity(self):
        self.assertEqual(self.residual_sources("wrn_10_1")[0], ("LeakyReLU",))

    def test_preact_resnet_18(self):
        sources = self.residual_sources("preact_resnet_18")
        expected = [("ReLU",), ("Add",)] + [("Conv2D", "ReLU"), ("Add",)] * 3
        self.assertEqual(sources, expected)

    def test_resnet_32(self):
        sources = self.residual_sources("resnet_32")
        self.assertLen(sources, 15)
        self.assertEqual(sources[5], ("ZeroPadding2D", "AveragePooling2D", "ReLU"))
        self.assertEqual(sources[6], ("ReLU",))

    def test_resnet_32_pads_channels_with_zeros(self):
        network = shared("resnet_32")
        padding = next(x for x in network.layers if isinstance(x, layers.ZeroPadding2D))
        pooling = next(x for x in network.layers if isinstance(x, layers.AveragePooling2D))
        both = keras.Model(network.inputs, [pooling.input, padding.output])
        before, after = map(ops.convert_to_numpy, both(images(SHAPE)))
        self.assertEqual(after.shape, (4, 6, 6, 32))
        pooled = before.reshape(4, 6, 2, 6, 2, 16).mean((2, 4))
        np.testing.assert_allclose(after[..., :16], pooled, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(after[..., 16:], 0)


class TrainingTest(parameterized.TestCase):
    @parameterized.parameters(*KINDS)
    def test_gradient_reaches_every_variable(self, name):
        keras.utils.set_random_seed(1)
        network = networks.build(name, SHAPE, 3)
        pixels, labels = images(SHAPE), np.array([0, 1, 2, 0])

        def loss():
            logits = network(pixels, training=True)
            return ops.mean(
                keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            )

        for variable, gradient in zip(
            network.trainable_variables,
            toy.gradients(loss, network.trainable_variables),
            strict=True,
        ):
            self.assertIsNotNone(gradient, variable.path)
            self.assertGreater(float(ops.max(ops.abs(gradient))), 0, variable.path)

    def test_learns(self):
        keras.utils.set_random_seed(0)
        network = networks.build("small_cnn", (8, 8, 1), 2)
        labels = np.arange(64) % 2
        pixels = images((8, 8, 1), 64) // 2 + 100 * labels[:, None, None, None].astype("uint8")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(keras.optimizers.SGD(0.05, 0.9), loss, metrics=["accuracy"])
        network.fit(pixels, labels, batch_size=32, epochs=15, verbose=0)
        self.assertGreater(network.evaluate(pixels, labels, verbose=0)[1], 0.95)


class WeightNormTest(absltest.TestCase):
    def test_starts_as_a_plain_convolution_and_gain_scales(self):
        x = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype("float32")
        layer = networks.WeightNormConv2D(4, 3, "valid", use_bias=True)
        first = ops.convert_to_numpy(layer(x))
        kernel, gain, bias = layer.get_weights()
        np.testing.assert_allclose(gain, np.sqrt((kernel**2).sum((0, 1, 2))), rtol=1e-5)
        plain = ops.convert_to_numpy(ops.conv(x, kernel, padding="valid"))
        np.testing.assert_allclose(first, plain + bias, rtol=1e-4, atol=1e-5)
        layer.set_weights([kernel * 7, gain * 3, bias + 1])
        np.testing.assert_allclose(layer(x), 3 * plain + bias + 1, rtol=1e-4, atol=1e-4)


class SavingTest(parameterized.TestCase):
    def trained(self, name):
        """A network whose moving statistics and gains differ from their initial values."""
        network = networks.build(name, SHAPE, 3)
        network(images(SHAPE), training=True)
        for variable in network.trainable_variables:
            if variable.name in ("gain", "gamma"):
                variable.assign(variable * 1.5)
        return network

    @parameterized.parameters(*KINDS)
    def test_save_load_and_portable(self, name):
        network = self.trained(name)
        pixels = images(SHAPE, seed=1)
        expected = ops.convert_to_numpy(network(pixels))
        self.assertGreater(np.abs(expected).max(), 0.1)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            network.save(path)
            loaded = keras.models.load_model(path, safe_mode=True)
        np.testing.assert_allclose(loaded(pixels), expected, rtol=1e-6)
        kinds = {type(x) for x in loaded.layers if isinstance(x, layers.BatchNormalization)}
        self.assertEqual(kinds, {networks.BatchNormalization})

        copy = networks.portable(network)
        self.assertTrue(all(type(x).__module__.startswith("keras.") for x in copy.layers))
        np.testing.assert_allclose(copy(pixels), expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.slow
    def test_portable_file_loads_without_the_kit(self):
        network = self.trained("small_cnn")
        pixels = np.full((1, *SHAPE), 200, "uint8")
        program = (
            "import sys, keras, numpy as np; model = keras.models.load_model(sys.argv[1]);"
            "logits = model(np.full((1, 12, 12, 1), 200, 'uint8'));"
            "print('ssl_noisy' in sys.modules, *np.array(logits)[0])"
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.keras")
            networks.portable(network).save(path)
            done = subprocess.run(
                [sys.executable, "-c", program, path],
                capture_output=True,
                text=True,
                check=True,
                cwd=folder,
            )
        imported, *logits = done.stdout.split()
        self.assertEqual(imported, "False")
        expected = ops.convert_to_numpy(network(pixels))[0]
        np.testing.assert_allclose([float(x) for x in logits], expected, rtol=1e-4, atol=1e-4)


class MixedPrecisionTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(keras.config.set_dtype_policy, keras.config.dtype_policy())
        keras.config.set_dtype_policy("mixed_bfloat16")

    @parameterized.parameters("wrn_10_1", "cnn_13", "small_cnn")
    def test_logits_are_float32_and_close(self, name):
        keras.utils.set_random_seed(0)
        mixed = networks.build(name, SHAPE, 3)
        keras.config.set_dtype_policy("float32")
        full = networks.build(name, SHAPE, 3)
        full.set_weights(mixed.get_weights())
        pixels = images(SHAPE)
        for training in (True, False):
            if name == "cnn_13" and training:
                continue  # Dropout draws differ.
            logits, expected = (m(pixels, training=training) for m in (mixed, full))
            self.assertEqual(keras.backend.standardize_dtype(logits.dtype), "float32")
            np.testing.assert_allclose(logits, expected, atol=0.1 * np.abs(expected).max())
        convolution = next(x for x in mixed.layers if isinstance(x, layers.ReLU | layers.LeakyReLU))
        self.assertEqual(convolution.compute_dtype, "bfloat16")
        for ours, theirs in zip(mixed.get_weights(), full.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0.05, atol=0.02)


if __name__ == "__main__":
    absltest.main()
