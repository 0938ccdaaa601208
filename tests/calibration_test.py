# SPDX-License-Identifier: Apache-2.0
import numpy as np
from absl.testing import absltest

from ssl_noisy.runs import calibration


class CalibrationTest(absltest.TestCase):
    def test_error(self):
        # Confidences 0.9, 0.9 (bin 14: accuracy 1/2), 0.6 (bin 9, right), 0.7 (bin 11, wrong).
        probs = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.3, 0.7]])
        labels = np.array([0, 0, 0, 0])
        error = calibration.expected_calibration_error(np.log(probs), labels)
        self.assertAlmostEqual(error, (2 * abs(0.5 - 0.9) + abs(1 - 0.6) + abs(0 - 0.7)) / 4)

    def test_gaps_of_a_bin_cancel_and_those_of_two_bins_do_not(self):
        probs = np.array([[0.70, 0.30], [0.72, 0.28], [0.95, 0.05]])
        error = calibration.expected_calibration_error(np.log(probs), np.array([0, 1, 0]))
        self.assertAlmostEqual(error, (abs(0.30 - 0.72) + 0.05) / 3)

    def test_temperature_of_calibrated_logits_that_were_scaled(self):
        rng = np.random.default_rng(0)
        logits = rng.normal(size=(20_000, 4)) * 2
        noise = rng.gumbel(size=logits.shape)
        labels = np.argmax(logits + noise, axis=-1)  # a draw from softmax(logits)
        for scale in (0.4, 1.0, 3.0):
            found = calibration.fit_temperature(logits * scale, labels)
            self.assertAlmostEqual(found / scale, 1, delta=0.03)
        found = calibration.summary(logits * 3, labels, logits * 3, labels)
        self.assertLess(found["expected_calibration_error"], 0.02)
        self.assertGreater(found["expected_calibration_error_before"], 0.1)
        self.assertEqual(calibration.summary(logits, labels)["temperature"], 1.0)

    def test_only_right_answers_make_the_network_more_confident(self):
        self.assertLess(calibration.fit_temperature(np.eye(3) * 2, np.arange(3)), 0.3)


if __name__ == "__main__":
    absltest.main()
