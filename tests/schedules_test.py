# SPDX-License-Identifier: Apache-2.0
import keras
import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy import schedules


class SchedulesTest(parameterized.TestCase):
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

    def test_constant_is_the_number(self):
        self.assertEqual(schedules.learning_rate("constant", 0.1, 10), 0.1)

    def test_it_never_rises(self):
        rate = schedules.learning_rate("cosine_7_16", 1.0, 50)
        values = np.array([float(rate(step)) for step in range(60)])
        self.assertTrue(np.all(np.diff(values) <= 0))

    def test_config_round_trip(self):
        rate = schedules.CosineDecay(0.3, 7, 0.25)
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
        self.assertEqual(copy.get_config(), rate.get_config())
        self.assertEqual(float(copy(3)), float(rate(3)))

    @parameterized.parameters((0, 0.4), (10, 0.7), (10, -0.1))
    def test_arguments_out_of_range(self, steps, fraction):
        with self.assertRaisesRegex(ValueError, "Received"):
            schedules.CosineDecay(0.1, steps, fraction)

    def test_an_unknown_schedule_lists_the_known(self):
        with self.assertRaisesRegex(ValueError, "cosine_7_16, cosine, constant"):
            schedules.learning_rate("linear", 0.1, 10)


if __name__ == "__main__":
    absltest.main()
