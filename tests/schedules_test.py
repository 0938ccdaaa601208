# SPDX-License-Identifier: Apache-2.0
"""Learning rates and ramps by hand."""

import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import schedules


class SchedulesTest(parameterized.TestCase):
    @parameterized.parameters(
        (0.0, 0.7, 0.0),
        # x = .5 * .3 / (1 - .35) = 3/13, and 1 - x / (.3 + .7 x) = 1 - (3/13) / (6/13).
        (0.5, 0.7, 10 / 13),
        (0.5, 0.0, 0.5),
        (1.0, 0.7, 1.0),
    )
    def test_when_the_curriculum_reaches_a_share(self, share, curvature, expected):
        self.assertAlmostEqual(schedules.curriculum_progress(share, curvature), expected)

    @parameterized.parameters(
        (0, 0.03),
        # 0.03 cos(7 pi / 32), half of the way; a half cosine would be at 0.015.
        (512, 0.0231900),
        # 0.03 cos(7 pi / 16) = 0.1951 of the start, not zero.
        (1024, 0.0058527),
        (2000, 0.0058527),
    )
    def test_seven_sixteenths_of_a_cosine(self, step, expected):
        rate = schedules.learning_rate("cosine_7_16", 0.03, 1024)
        self.assertAlmostEqual(float(rate(step)), expected, places=6)

    def test_cosine_ends_at_zero(self):
        rate = schedules.learning_rate("cosine", 0.1, 10)
        self.assertAlmostEqual(float(rate(10)), 0.0, places=6)
        self.assertAlmostEqual(float(rate(5)), 0.0707107, places=6)

    @parameterized.parameters((0, 0.1), (80, 0.1), (110, 0.075), (140, 0.05), (200, 0), (300, 0))
    def test_linear_from_two_fifths_on(self, step, expected):
        # 200 steps stand for Co-teaching's 200 epochs: (200 - step) / 120 of the rate from 80 on.
        rate = schedules.learning_rate("linear_2_5", 0.1, 200)
        self.assertAlmostEqual(float(rate(step)), expected, places=6)

    def test_constant_is_the_number(self):
        self.assertEqual(schedules.learning_rate("constant", 0.1, 10), 0.1)

    @parameterized.parameters(
        ("drops_1_2", (0.1, 0.1, 0.1, 0.01, 0.01, 0.01)),
        ("drops_1_3_2_3", (0.1, 0.1, 0.01, 0.01, 0.001, 0.001)),
        ("drops_1_3_5_6", (0.1, 0.1, 0.01, 0.01, 0.01, 0.001)),
        ("drops_1_2_3_4", (0.1, 0.1, 0.1, 0.01, 0.01, 0.001)),
        ("drops_by_100_1_3_2_3", (0.1, 0.1, 0.001, 0.001, 0.00001, 0.00001)),
    )
    def test_drops_come_after_their_shares(self, name, expected):
        rate = schedules.learning_rate(name, 0.1, 12)
        np.testing.assert_allclose(
            [float(rate(step)) for step in range(0, 12, 2)], expected, rtol=1e-6
        )

    @parameterized.parameters(
        # 400 steps stand for Arazo's 400 epochs: 250 of them at the first rate, then 100, then 50.
        (400, (0, 249), 0.1),
        (400, (250, 349), 0.01),
        (400, (350, 399, 500), 0.001),
        # Ten at a time are 6.25 and 8.75 of them, rounded.
        (10, (0, 5), 0.1),
        (10, (6, 8), 0.01),
        (10, (9,), 0.001),
    )
    def test_two_drops(self, steps, at, expected):
        rate = schedules.learning_rate("drops_5_8_7_8", 0.1, steps)
        for step in at:
            self.assertAlmostEqual(float(rate(step)), expected, places=7, msg=str(step))

    def test_every_schedule_has_a_rate_of_any_length(self):
        for schedule in schedules.SCHEDULES:
            for steps in (1, 2, 3, 1000):
                rate = schedules.learning_rate(schedule, 0.1, steps)
                first = rate if schedule == "constant" else float(rate(0))
                self.assertAlmostEqual(first, 0.1, places=6, msg=f"{schedule} of {steps}")

    @parameterized.parameters(
        (0.0, 0.4, (0, 0.1, 0.2, 0.4, 1), (0, 0.25, 0.5, 1, 1)),
        (0.1, 0.6, (0, 0.1, 0.35, 0.6, 1), (0, 0, 0.5, 1, 1)),
        (0.0, 0.0, (0, 0.5), (1, 1)),  # no ramp
        (0.5, 0.5, (0, 0.49, 0.5, 1), (0, 0, 1, 1)),  # a jump
    )
    def test_linear_ramp(self, start, end, at, expected):
        for progress, value in zip(at, expected):
            ramp = schedules.linear_ramp(ops.cast(progress, "float32"), start, end)
            self.assertEqual(keras.backend.standardize_dtype(ramp.dtype), "float32")
            self.assertAlmostEqual(float(ramp), value, places=5, msg=str(progress))

    def test_drops_by_100_come_after_80_and_120_of_150(self):
        rate = schedules.learning_rate("drops_by_100_8_15_4_5", 0.02, 150)
        for step, value in ((79, 0.02), (80, 2e-4), (119, 2e-4), (120, 2e-6), (149, 2e-6)):
            self.assertAlmostEqual(float(rate(step)) / value, 1, places=5, msg=str(step))

    def test_cosine_restarts(self):
        rate = schedules.learning_rate("cosine_15_restarts", 0.02, 1500)
        # From 0.02 toward 0.001 in each 100 steps; a quarter of the way 0.001 + 0.019 * 0.853553.
        for step, value in (
            (0, 0.02),
            (25, 0.0172175),
            (50, 0.0105),
            (75, 0.0037825),
            (99, 0.0010047),
            (100, 0.02),
            (1400, 0.02),
            (1450, 0.0105),
            (1499, 0.0010047),
            (9999, 0.0010047),
        ):
            self.assertAlmostEqual(float(rate(step)), value, places=6, msg=str(step))
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
        self.assertEqual(copy.get_config(), rate.get_config())
        for wrong in ({"steps": 0}, {"cycles": 0}, {"final_fraction": 1.1}):
            with self.assertRaisesRegex(ValueError, "Received"):
                schedules.CosineRestarts(0.1, **{"steps": 10, **wrong})

    @parameterized.parameters(
        # A quarter of the way (1 + cos(pi / 4)) / 2 = 0.853553 of what is above the last rate.
        ("half_cosine_1_1000", 0.05, (0.05, 0.0426850, 0.025025, 5.0123e-5)),
        ("half_cosine_1_50", 0.1, (0.1, 0.0856482, 0.051, 0.0020002)),
        ("half_cosine", 0.06, (0.06, 0.0512132, 0.03, 1.48e-7)),
    )
    def test_half_cosines(self, name, initial, expected):
        rate = schedules.learning_rate(name, initial, 1000)
        for step, value in zip((0, 250, 500, 999), expected):
            self.assertAlmostEqual(float(rate(step)), value, places=7, msg=str(step))

    def test_drops_by_5_come_after_60_120_and_160_of_200(self):
        rate = schedules.learning_rate("drops_by_5_3_10_3_5_4_5", 0.1, 200)
        for step, value in zip(
            (0, 59, 60, 119, 120, 159, 160), (0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008)
        ):
            self.assertAlmostEqual(float(rate(step)), value, places=7, msg=str(step))

    def test_it_never_rises(self):
        rate = schedules.learning_rate("cosine_7_16", 1.0, 50)
        values = np.array([float(rate(step)) for step in range(60)])
        self.assertTrue(np.all(np.diff(values) <= 0))

    def test_warmed_up(self):
        for count, momentum in ((1, 2 / 11), (80, 0.9), (800, 801 / 810), (8990, 0.999)):
            warmed = schedules.warmed_up(0.999, ops.convert_to_tensor(count, "int32"))
            self.assertAlmostEqual(float(warmed), momentum, places=6)
        self.assertAlmostEqual(float(schedules.warmed_up(0.999, 10**6)), 0.999, places=6)
        self.assertEqual(float(schedules.warmed_up(0.0, 10**6)), 0.0)

    def test_config_round_trip(self):
        rate = schedules.CosineDecay(0.3, 7, 0.25)
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
        self.assertEqual(copy.get_config(), rate.get_config())
        self.assertEqual(float(copy(3)), float(rate(3)))
        rate = schedules.LinearDecay(0.3, 7, 0.25)
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
        self.assertEqual(copy.get_config(), rate.get_config())

    @parameterized.parameters((0, 0.4), (10, 0.7), (10, -0.1))
    def test_arguments_out_of_range(self, steps, fraction):
        with self.assertRaisesRegex(ValueError, "Received"):
            schedules.CosineDecay(0.1, steps, fraction)

    @parameterized.parameters((0, 0.4), (10, 1.0), (10, -0.1))
    def test_arguments_of_a_linear_decay_out_of_range(self, steps, start):
        with self.assertRaisesRegex(ValueError, "Received"):
            schedules.LinearDecay(0.1, steps, start)

    def test_an_unknown_schedule_lists_the_known(self):
        with self.assertRaisesRegex(ValueError, ", ".join(schedules.SCHEDULES)):
            schedules.learning_rate("linear", 0.1, 10)


if __name__ == "__main__":
    absltest.main()
