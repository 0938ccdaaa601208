# SPDX-License-Identifier: Apache-2.0
"""Contrastive views: each operation on photographs is Pillow's, and each chance is as said."""

from unittest import mock

import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops
from PIL import Image, ImageFilter
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images

from ssl_noisy import augment
from ssl_noisy.augment import views as augment_views


def photographs(count=12, side=32):
    """Returns uint8 parts `(count, side, side, 3)` of scikit-learn's two photographs."""
    rng = np.random.default_rng(0)
    originals = load_sample_images().images
    corners = rng.integers(0, [427 - 3 * side, 640 - 3 * side], (count, 2))
    return np.stack(
        [
            originals[i % 2][top : top + 3 * side : 3, left : left + 3 * side : 3]
            for i, (top, left) in enumerate(corners)
        ]
    )


def digits(count=12):
    images = load_digits().images[:count, ..., None]
    return np.floor(images * 255 / 16).astype("uint8")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def views(images, **kwargs):
    """Returns views without crops, flips, jitter, gray images and blur, but for those in kwargs."""
    plain = {"flip": False, "crop_area": (1.0, 1.0), "jitter_probability": 0.0}
    plain |= {"gray_probability": 0.0}
    seed = keras.random.SeedGenerator(3)
    return numpy(augment.contrastive_view(images, seed, **(plain | kwargs)))


def uncropped(images, seed, *, flip, area):
    """Stands in for `random_resized_crop`, whose ratio changes an image at any area."""
    return ops.cast(images, "float32")


class OperationsTest(parameterized.TestCase):
    def test_gray_is_pillows(self):
        images = photographs()
        made = numpy(augment.grayscale(images))
        expected = [np.array(Image.fromarray(image).convert("L")) for image in images]
        np.testing.assert_array_equal(made, np.stack(expected)[..., None].repeat(3, axis=-1))
        self.assertGreater(np.abs(made - images.mean(axis=-1, keepdims=True)).max(), 5)
        np.testing.assert_array_equal(numpy(augment.grayscale(digits())), digits())

    def test_blur_is_a_gaussian_of_each_images_own_width(self):
        images = photographs(12)
        sigma = np.linspace(0.1, 2, 12, dtype="float32")
        made = numpy(augment.gaussian_blur(images, sigma))
        for image, ours, width in zip(images, made, sigma):
            expected = ndimage.gaussian_filter(
                image.astype("float64"), (width, width, 0), mode="nearest", radius=(6, 6, 0)
            )
            self.assertLess(np.abs(ours - expected).max(), 0.51)
            pillow = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(float(width))))
            self.assertLess(np.abs(ours - pillow).mean(), 2.0)
            self.assertLess(np.abs(ours - pillow).max(), 30)
        np.testing.assert_array_equal(made[0], images[0])
        self.assertGreater(np.abs(made - images).mean(), 1)

    @parameterized.parameters(1, 2, 5, 8)
    def test_blur_of_small_gray_images(self, side):
        images = digits(3)[:, :side, :side]
        made = numpy(augment.gaussian_blur(images, np.full(3, 1.5, "float32")))
        expected = ndimage.gaussian_filter(
            images.astype("float64"), (0, 1.5, 1.5, 0), mode="nearest", radius=(0, 6, 6, 0)
        )
        self.assertLess(np.abs(made - expected).max(), 0.51)

    @parameterized.parameters(-0.5, -0.25, 0.0, 0.125, 0.5)
    def test_hue_turns_as_pillows(self, turn):
        images = photographs()
        uniform = np.full((4, len(images)), 0.5, "float32")
        uniform[3] = turn + 0.5
        self.enter_context(mock.patch.object(keras.random, "uniform", lambda *_, **__: uniform))
        made = numpy(augment.color_jitter(images, None, max_turn=0.5))
        for image, ours in zip(images, made):
            hue, saturation, value = Image.fromarray(image).convert("HSV").split()
            turned = (np.array(hue, int) + round(255 * turn)) % 256
            parts = [Image.fromarray(turned.astype("uint8")), saturation, value]
            pillow = np.array(Image.merge("HSV", parts).convert("RGB"), int)
            self.assertLess(np.abs(ours - pillow).mean(), 1.5)  # of bytes in HSV


class ContrastiveViewTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(augment_views, "random_resized_crop", uncropped))

    @parameterized.parameters(
        ("jitter_probability", 0.8), ("gray_probability", 0.2), ("blur_probability", 0.5)
    )
    def test_each_chance_is_of_an_image(self, name, probability):
        # A Gaussian that is narrower than a quarter of a pixel changes nothing.
        self.enter_context(mock.patch.object(augment_views, "BLUR_SIGMA", (0.5, 2.0)))
        images = np.repeat(photographs(2), 200, axis=0)
        for share in (probability, 1.0, 0.0):
            changed = (views(images, **{name: share}) != images).any((1, 2, 3))
            self.assertAlmostEqual(changed.mean(), share, delta=0.07 if share == probability else 0)

    def test_the_chances_are_independent_and_in_order(self):
        images = np.repeat(photographs(1), 400, axis=0)
        made = views(images, jitter_probability=0.5, gray_probability=0.5, jitter=1.0)
        is_gray = np.ptp(made, axis=-1).max((1, 2)) == 0
        brightness = np.abs(made.mean((1, 2, 3)) - numpy(augment.grayscale(images)).mean())
        self.assertAlmostEqual(is_gray.mean(), 0.5, delta=0.08)
        self.assertAlmostEqual((brightness[is_gray] > 2).mean(), 0.5, delta=0.1)

    def test_jitter_and_hue_have_one_strength(self):
        with mock.patch.object(augment_views, "color_jitter") as color_jitter:
            color_jitter.side_effect = lambda images, seed, **kwargs: images
            views(photographs(), jitter_probability=1.0, jitter=0.8)
        self.assertEqual(color_jitter.call_args.kwargs, {"strength": 0.8, "max_turn": 0.2})

    def test_widths_of_the_blur_are_uniform(self):
        with mock.patch.object(augment_views, "gaussian_blur") as blur:
            blur.side_effect = lambda images, sigma: images
            views(np.repeat(photographs(1, 2), 2000, axis=0), blur_probability=1.0)
        sigma = numpy(blur.call_args.args[1])
        self.assertBetween(sigma.min(), 0.1, 0.12)
        self.assertBetween(sigma.max(), 1.98, 2.0)
        self.assertAlmostEqual(sigma.mean(), 1.05, delta=0.05)


class WholeViewTest(parameterized.TestCase):
    @parameterized.parameters(photographs, digits)
    def test_any_size_gives_whole_numbers_in_range(self, images):
        images = images()
        seed = keras.random.SeedGenerator(0)
        made = numpy(augment.contrastive_view(images, seed, blur_probability=0.5))
        self.assertEqual((made.shape, made.dtype), (images.shape, "float32"))
        np.testing.assert_array_equal(made, np.clip(np.round(made), 0, 255))

    def test_crops_take_the_given_share(self):
        with mock.patch.object(augment_views, "random_resized_crop") as crop:
            crop.side_effect = uncropped
            views(photographs(), crop_area=(0.08, 1.0))
        self.assertEqual(crop.call_args.kwargs, {"flip": False, "area": (0.08, 1.0)})

    def test_two_views_differ_and_repeat_with_the_seed(self):
        made = [
            numpy(augment.contrastive_view(digits(), seed, blur_probability=0.5))
            for seed in (keras.random.SeedGenerator(5), keras.random.SeedGenerator(5))
            for _ in range(2)
        ]
        np.testing.assert_array_equal(made[0], made[2])
        np.testing.assert_array_equal(made[1], made[3])
        self.assertTrue((made[0] != made[1]).any((1, 2, 3)).all())  # of each image


if __name__ == "__main__":
    absltest.main()
