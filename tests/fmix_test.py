# SPDX-License-Identifier: Apache-2.0
"""FMix: the spectrum of its field, its masks to the pixel, and partners among the kept."""

from unittest import mock

import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import augment
from ssl_noisy.augment import interpolation


def seed():
    return keras.random.SeedGenerator(5)


class FieldTest(parameterized.TestCase):
    @parameterized.parameters((8, 8), (6, 10), (5, 7), (1, 1))
    def test_it_is_the_inverse_fft_of_scaled_noise(self, height, width):
        noise = np.random.default_rng(0).normal(size=(2, width // 2 + 1, height)).astype("float32")
        with mock.patch.object(
            keras.random, "normal", lambda *_, **__: ops.convert_to_tensor(noise)
        ):
            field = augment.low_frequency_field((height, width), None, decay_power=2.0)
        # The scale is max(f, 1 / longer side) ** -2, relative to the largest.
        longer = max(height, width)
        spectrum = np.empty((height, width // 2 + 1), complex)
        for row in range(height):
            for column in range(width // 2 + 1):
                f = np.hypot(min(row, height - row) / height, column / width)
                scale = min((1 / longer / f) ** 2, 1) if f else 1
                spectrum[row, column] = scale * complex(*noise[:, column, row])
        expected = np.fft.irfft2(spectrum, (height, width))
        np.testing.assert_allclose(field, expected, atol=1e-6)

    def test_its_power_decays_with_the_frequency(self):
        generator = seed()
        fields = [np.array(augment.low_frequency_field((16, 16), generator)) for _ in range(200)]
        power = np.mean(np.abs(np.fft.rfft2(fields)) ** 2, axis=0)
        # Amplitudes are f ** -3: 1, 1/8 and 1/64 at 1, 2 and 4 cycles, along both axes.
        for row, column, expected in ((0, 2, 2**-6), (2, 0, 2**-6), (0, 4, 4**-6), (4, 0, 4**-6)):
            first = power[1, 0] if row else power[0, 1]
            self.assertAlmostEqual(power[row, column] / first / expected, 1, delta=0.35)


class MaskTest(parameterized.TestCase):
    @parameterized.parameters(
        # Of 6 pixels 0.4 is 2.4, rounded down or up by a second draw.
        (0.4, 0.5, 2),
        (0.4, 0.51, 3),
        (0.0, 0.9, 0),
        (1.0, 0.9, 6),
        (0.5, 0.9, 3),
        (0.5, 0.1, 3),
    )
    def test_the_largest_of_the_field_are_of_the_image_itself(self, share, rounding, count):
        field = ops.convert_to_tensor([[0.3, -1.0, 2.0], [0.1, 0.2, -3.0]], "float32")
        images = np.arange(1.0, 5)[:, None, None, None] * np.ones((4, 2, 3, 2))
        with (
            mock.patch.object(interpolation, "low_frequency_field", lambda *_, **__: field),
            mock.patch.object(
                keras.random, "uniform", lambda *_, **__: ops.cast(rounding, "float32")
            ),
        ):
            mixed = augment.fmix(images, np.array([2, 0, 1, 3]), np.full(4, share), None)
        own = np.array([[1, 4, 0], [3, 2, 5]]) < count  # ranks of the field
        for image, self_value, partner in zip(np.array(mixed), (1, 2, 3, 4), (3, 1, 2, 4)):
            for channel in range(2):
                expected = np.where(own, self_value, partner)
                np.testing.assert_array_equal(image[..., channel], expected)

    def test_one_mask_for_the_batch_and_another_for_the_next(self):
        images = np.stack([np.zeros((8, 8, 1)), np.ones((8, 8, 1))])
        generator, masks = seed(), []
        for _ in range(4):
            mixed = np.array(augment.fmix(images, np.array([1, 0]), np.full(2, 0.3), generator))
            np.testing.assert_array_equal(mixed[0], 1 - mixed[1])
            self.assertIn(mixed[1].sum(), (19, 20))  # 19.2
            masks.append(mixed[1])
        self.assertGreater(np.ptp(masks, axis=0).mean(), 0.3)


class KeptTest(absltest.TestCase):
    def test_partners_are_both_kept_or_neither(self):
        kept = np.array([True, False, True, True, False, True, False, True])
        generator, seen = seed(), set()
        for _ in range(60):
            partners, _ = augment.mixing(8, generator, alpha=1.0, kept=kept)
            partners = np.array(partners)
            np.testing.assert_array_equal(np.sort(partners), range(8))
            np.testing.assert_array_equal(kept[partners], kept)
            seen.update(enumerate(partners))
        self.assertLen(seen, 5 * 5 + 3 * 3)  # each with each, itself included

    def test_the_draws_are_those_of_the_whole_batch(self):
        for kept in (np.full(8, True), np.full(8, False)):
            partners, shares = augment.mixing(8, seed(), alpha=1.0, kept=kept)
            expected = augment.mixing(8, seed(), alpha=1.0)
            np.testing.assert_array_equal(partners, expected[0])
            np.testing.assert_array_equal(shares, expected[1])


if __name__ == "__main__":
    absltest.main()
