# SPDX-License-Identifier: Apache-2.0
import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import losses


def logits_of(probs):
    return np.log(np.array(probs, "float32"))


class LossesTest(parameterized.TestCase):
    def test_cross_entropy_by_hand(self):
        logits = logits_of([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
        values = losses.cross_entropy(np.array([0, 1]), logits)
        # -ln 0.5, -ln 0.2: per example, in nats, no mean.
        np.testing.assert_allclose(values, [0.693147, 1.609438], atol=1e-5)

    def test_cross_entropy_does_not_depend_on_a_shift_of_the_logits(self):
        logits = logits_of([[0.5, 0.25, 0.25]]) + 1000.0
        np.testing.assert_allclose(
            losses.cross_entropy(np.array([2]), logits), [1.386294], atol=1e-3
        )

    def test_cross_entropy_is_float32_in_half_precision(self):
        values = losses.cross_entropy(np.array([1]), ops.cast([[3.0, 1.0]], "bfloat16"))
        self.assertEqual(keras.backend.standardize_dtype(values.dtype), "float32")
        np.testing.assert_allclose(values, [2.126928], atol=1e-3)

    @parameterized.named_parameters(
        ("labels_of_rank_2", np.zeros((2, 1), "int32"), np.zeros((2, 3), "float32"), "labels"),
        ("logits_of_rank_1", np.zeros((2,), "int32"), np.zeros((2,), "float32"), "logits"),
        ("other_batch", np.zeros((3,), "int32"), np.zeros((2, 3), "float32"), "labels"),
    )
    def test_cross_entropy_refuses_shapes(self, labels, logits, name):
        with self.assertRaisesRegex(ValueError, f"`{name}` must have"):
            losses.cross_entropy(labels, logits)

    def test_a_probability_at_the_threshold_is_kept(self):
        # Zero logits of four classes have probabilities of exactly 1/4.
        logits = np.array([[0.0, 0, 0, 0], [0, 3, 0, 0], [2, 0, 0, 0]], "float32")
        labels, mask = losses.confident_pseudo_labels(logits, 0.25)
        np.testing.assert_array_equal(labels, [0, 1, 0])
        np.testing.assert_array_equal(mask, [1.0, 1.0, 1.0])  # `>` would drop the first
        _, mask = losses.confident_pseudo_labels(logits, 0.8)
        # e^3/(e^3+3) = 0.870, e^2/(e^2+3) = 0.711.
        np.testing.assert_array_equal(mask, [0.0, 1.0, 0.0])

    def test_masked_mean_counts_masked_examples_and_does_not_broadcast(self):
        values = np.array([0.2, 0.9, 0.1], "float32")
        mask = np.array([1.0, 0.0, 1.0], "float32")
        # (0.2 + 0.1) / 3; the mean of kept ones would be 0.15, mean x mean 0.2667.
        self.assertAlmostEqual(float(losses.masked_mean(values, mask)), 0.1, places=6)
        with self.assertRaisesRegex(ValueError, r"`mask` must have shape \(3,\)"):
            losses.masked_mean(values, mask[:, None])

    def test_nothing_kept_is_exactly_zero(self):
        value = losses.masked_mean(np.array([5.0, 7.0], "float32"), np.zeros(2, "float32"))
        self.assertEqual(float(value), 0.0)

    def test_l2_is_half_the_sum_of_squares(self):
        value = losses.l2([np.array([[1.0, 2.0]]), np.array([3.0])])
        self.assertAlmostEqual(float(value), 7.0, places=6)


if __name__ == "__main__":
    absltest.main()
