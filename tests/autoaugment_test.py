# SPDX-License-Identifier: Apache-2.0
"""AutoAugment by Pillow: every pair of operations, and how often each is drawn and applied."""

from unittest import mock

import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_images

from ssl_noisy import augment
from ssl_noisy.augment import autoaugment
from ssl_noisy.augment import views as augment_views

PAIRS = len(autoaugment.CIFAR)
BITS = (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)


def pillow(image, name, level, way):
    """Applies an operation of Pillow at a level from 0 to 9."""
    share, fill = level / 9, (128,) * len(image.getbands())

    def affine(*coefficients):
        method = Image.Transform.AFFINE
        return image.transform(image.size, method, coefficients, fillcolor=fill)

    if name in ("brightness", "color", "contrast", "sharpness"):
        return getattr(ImageEnhance, name.title())(image).enhance(1 + 0.9 * share * way)
    return {
        "rotate": lambda: image.rotate(30 * share, fillcolor=fill),
        "shear_y": lambda: affine(1, 0, 0, 0.3 * share * way, 1, 0),
        "translate_x": lambda: affine(1, 0, 150 / 331 * share * image.width * way, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, 150 / 331 * share * image.height * way),
        "posterize": lambda: ImageOps.posterize(image, BITS[level]),
        "solarize": lambda: ImageOps.solarize(image, 256 - 256 * share),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
    }[name]()


def photographs(count, height=32, width=40):
    picture = Image.fromarray(load_sample_images().images[0]).resize((width * 8, height * 8))
    tiles = np.array(picture).reshape(8, height, 8, width, 3).swapaxes(1, 2)
    return tiles.reshape(-1, height, width, 3)[:count]


def views(images, chances=(0.0, 0.0), signs=(0.0, 0.0)):
    """Returns views of 25 images, the one at place k by pair k, with random numbers as given."""

    def uniform(shape, dtype, seed):
        rows = [np.arange(PAIRS) / PAIRS, *(np.full(PAIRS, x) for x in (*chances, *signs))]
        return ops.convert_to_tensor(np.array(rows, dtype))

    with mock.patch.object(keras.random, "uniform", uniform):
        return ops.convert_to_numpy(augment.auto_augment(images, None))


class AutoAugmentTest(parameterized.TestCase):
    @parameterized.product(signs=[(0.0, 0.9), (0.9, 0.0)], channels=[3, 1])
    def test_equals_pillow_for_every_pair(self, signs, channels):
        images = photographs(PAIRS)[..., :channels]
        found = views(images, signs=signs)
        for pixels, view, pair in zip(images, found, autoaugment.CIFAR, strict=True):
            expected = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            for (name, chance, level), sign in zip(pair, signs):
                if chance > 0:
                    expected = pillow(expected, name, level, 1 if sign < 0.5 else -1)
            expected = np.array(expected).reshape(pixels.shape)
            np.testing.assert_array_equal(view, expected, str(pair))

    def test_an_operation_is_applied_below_its_probability(self):
        images = photographs(PAIRS)
        for chance in (0.15, 0.35, 0.55, 0.75, 0.95):
            one = views(images, chances=(chance, 1.0))
            two = views(images, chances=(1.0, chance))
            whole = views(images, chances=(-1.0, 1.0)), views(images, chances=(1.0, -1.0))
            for place, found in enumerate((one, two)):
                for k, pair in enumerate(autoaugment.CIFAR):
                    applied = pair[place][1] > chance
                    expected = whole[place][k] if applied else images[k]
                    np.testing.assert_array_equal(found[k], expected, str(pair))

    def test_the_policy_is_the_published_one(self):
        self.assertEqual(PAIRS, 25)
        self.assertEqual(autoaugment.CIFAR[0], (("invert", 0.1, 7), ("contrast", 0.2, 6)))
        self.assertEqual(autoaugment.CIFAR[-1], (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)))
        steps = [step for pair in autoaugment.CIFAR for step in pair]
        names = [name for name, _, _ in steps]
        counts = {name: names.count(name) for name in set(names)}
        expected = {"equalize": 9, "autocontrast": 7, "sharpness": 5, "color": 5}
        expected |= {"translate_y": 5, "brightness": 4, "solarize": 4, "invert": 3}
        expected |= {"contrast": 2, "translate_x": 2, "shear_y": 2, "rotate": 1, "posterize": 1}
        self.assertEqual(counts, expected)
        # The sums of the table in DeepVoltaire/AutoAugment, whose n-th row counts n times.
        sums = [0, 0]
        for row, pair in enumerate(autoaugment.CIFAR, 1):
            for place, (_, chance, level) in enumerate(pair, 1):
                sums[0] += row * place * level
                sums[1] += row * place * chance
        self.assertEqual(sums[0], 4800)
        self.assertAlmostEqual(sums[1], 537.6)

    def test_each_image_draws_each_pair_equally_often(self):
        # A pair changes a gray image of 100 and 140 in its own way, if both operations are applied.
        seed, seen = keras.random.SeedGenerator(3), []

        def uniform(shape, dtype, seed):
            numbers = draws.random(shape).astype(dtype)
            numbers[1:] = 0
            return ops.convert_to_tensor(numbers)

        draws = np.random.default_rng(0)
        images = np.repeat(photographs(1), 10, axis=0)
        every = views(np.repeat(photographs(1), PAIRS, axis=0)).reshape(PAIRS, -1)
        with mock.patch.object(keras.random, "uniform", uniform):
            for _ in range(60):
                found = ops.convert_to_numpy(augment.auto_augment(images, seed)).reshape(10, -1)
                seen += [np.flatnonzero((every == one).all(axis=1)) for one in found]
        counts = np.zeros(PAIRS)
        for pairs in seen:  # pairs of the same result share it
            counts[pairs] += 1 / len(pairs)
        self.assertBetween(counts.min(), 8, 24)
        self.assertBetween(counts.max(), 24, 45)

    def test_the_weak_view_comes_first(self):
        weak = mock.Mock(side_effect=lambda images, seed, **_: images + 1)
        with (
            mock.patch.object(augment_views, "weak_view", weak),
            mock.patch.object(augment_views, "auto_augment", lambda images, seed: 2 * images),
        ):
            images = np.zeros((2, 8, 8, 3))
            view = augment.strong_view(images, None, policy="autoaugment", flip=False, max_shift=3)
        expected = {"flip": False, "max_shift": 3, "crop_area": None}
        self.assertEqual(weak.call_args.kwargs, expected)
        np.testing.assert_array_equal(view, 2)


if __name__ == "__main__":
    absltest.main()
