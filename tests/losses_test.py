# SPDX-License-Identifier: Apache-2.0
"""Each loss by hand, and at its edges."""

import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import losses

PROBS = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], "float32")
SOFT = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], "float32")


def logits_of(probs):
    return np.log(np.array(probs, "float32"))


class LossesTest(parameterized.TestCase):
    def test_cross_entropy_by_hand(self):
        values = losses.cross_entropy(np.array([0, 1]), logits_of(PROBS))
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

    def test_soft_cross_entropy_by_hand(self):
        values = losses.soft_cross_entropy(SOFT, logits_of(PROBS))
        # -(.5 ln .5 + .5 ln .25) and -ln .7: no mean, the logits not taken for probabilities.
        np.testing.assert_allclose(values, [1.039721, 0.356675], atol=1e-5)
        hard = losses.cross_entropy(np.array([1, 2]), logits_of(PROBS))
        soft = losses.soft_cross_entropy(np.eye(3, dtype="float32")[[1, 2]], logits_of(PROBS))
        np.testing.assert_allclose(soft, hard, atol=1e-6)

    def test_kl_divergence_by_hand(self):
        values = losses.kl_divergence(SOFT, logits_of(PROBS))
        # .5 ln(.5 / .5) + .5 ln(.5 / .25); of a one-hot row the cross-entropy. The other
        # direction is infinite.
        np.testing.assert_allclose(values, [0.346574, 0.356675], atol=1e-5)

    def test_kl_divergence_is_zero_where_the_two_agree_and_for_rows_of_zeros(self):
        values = losses.kl_divergence(PROBS, logits_of(PROBS))
        np.testing.assert_allclose(values, [0, 0], atol=1e-6)
        values = losses.kl_divergence(np.zeros((2, 3), "float32"), logits_of(PROBS))
        np.testing.assert_array_equal(values, [0, 0])

    def test_jensen_shannon_by_hand(self):
        one_hot, probs = np.eye(3, dtype="float32"), np.array([[1, 0, 0], [0.5, 0.3, 0.2]])
        # Of a label and a prediction that gives it 1, 0.5 and 0: the rest may be spread. KL(p || m)
        # of the second is ln(4/3), KL(q || m) 0.5 ln(2/3) + 0.5 ln 2.
        for label, prediction, expected in ((0, 0, 0.0), (0, 1, 0.215762), (1, 0, 0.693147)):
            pair = one_hot[label][None], probs[prediction][None].astype("float32")
            for p, q in (pair, pair[::-1]):
                self.assertAlmostEqual(float(losses.jensen_shannon(p, q)[0]), expected, places=5)
        values = losses.jensen_shannon(PROBS, PROBS[::-1])
        np.testing.assert_allclose(values, [0.129654] * 2, atol=1e-5)
        with self.assertRaisesRegex(ValueError, "`others` must have shape"):
            losses.jensen_shannon(PROBS, PROBS[:1])

    def test_contrastive_by_hand(self):
        # Cosines of 1 and 0. Of both first views and the second view of image 0 two others have
        # cosine 1: ln(2 + 1/e) if the partner is one of them, else ln(2 e + 1). The last: ln 3.
        first, second = np.array([[3.0, 0], [1, 0]]), np.array([[0.5, 0], [0, 2]])
        value = losses.contrastive(first, second, 1.0)
        self.assertAlmostEqual(float(value), 1.171149, places=5)
        # At 0.5: ln(2 + e^-2), twice, ln(2 e^2 + 1) and ln 3.
        value = losses.contrastive(first, second, 0.5)
        self.assertAlmostEqual(float(value), 1.343621, places=5)
        # Each view finds its own: ln(1 + 2 e^-20), and no view itself.
        value = losses.contrastive(np.eye(2), np.eye(2), 0.05)
        self.assertLess(float(value), 1e-6)
        # Zeros have no direction.
        value = losses.contrastive(np.zeros((2, 3)), np.zeros((2, 3)), 0.05)
        self.assertAlmostEqual(float(value), 1.098612, places=5)

    def test_soft_contrastive_by_hand(self):
        features = np.array([[3.0, 0.0], [0.0, 0.5]])  # only directions count
        targets = np.array([[1.0, 0.0], [0.5, 0.5]], "float32")
        # Cosines 1 and 0 over 0.5: log-probabilities -0.126928 and -2.126928.
        found = losses.soft_contrastive(features, features * 2, targets, 0.5)
        self.assertAlmostEqual(float(found), (0.126928 + 1.126928) / 2, places=5)

    def test_same_class_by_hand(self):
        found = losses.same_class(np.array([2, 0, 2]))
        np.testing.assert_allclose(found, [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])

    def test_queue_contrastive_by_hand(self):
        # Cosines 0.8 with the own key, 0.6 and -0.8 with those of the queue, at 0.5:
        # ln(e^1.6 + e^1.2 + e^-1.6) - 1.6. Then 1, 0 and -1: ln(1 + e^-2 + e^-4).
        queries, keys = np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[0.0, 2.0], [0.0, 0.1]])
        queue = np.array([[1.0, 0.0], [0.0, -1.0]])
        value = losses.queue_contrastive(queries, keys, queue, 0.5)
        np.testing.assert_allclose(value, [0.537126, 0.142932], atol=1e-5)

    def test_alignment_and_uniformity_by_hand(self):
        first, second = np.array([[2.0, 0], [0, 3], [0, -1]]), np.array([[0.5, 0], [5, 0], [0, -2]])
        # Squared distances 0, 2 and 0.
        self.assertAlmostEqual(float(losses.alignment(first, second)), 2 / 3, places=6)
        # Squared distances 2, 2 and 4 of the three pairs: ln((2 e^-4 + e^-8) / 3).
        self.assertAlmostEqual(float(losses.uniformity(first)), -4.396348, places=5)
        self.assertAlmostEqual(float(losses.uniformity(np.ones((4, 2)))), 0.0, places=6)

    def test_entropy_by_hand(self):
        logits = np.array([[0, 0, 0], [0, 0, -200], [1000, 0, 0]], "float32")
        # ln 3, ln 2, and 0 without a nan.
        np.testing.assert_allclose(losses.entropy(logits), [1.098612, 0.693147, 0], atol=1e-6)

    def test_cores_has_a_floor_under_the_mean_over_classes(self):
        # Of logits 0, 40, 80 the probabilities are e^-80, e^-40 and 1. The mean of -log(p + 1e-8)
        # is 2 * 18.420681 / 3 = 12.280454, without the floor 40: label 1 would pass, 40 - 40.
        logits = np.array([[0.0, 40.0, 80.0]] * 3, "float32")
        np.testing.assert_allclose(losses.uniform_cross_entropy(logits), [12.280454] * 3, rtol=1e-6)
        values = losses.cores(np.array([0, 1, 2]), logits)
        np.testing.assert_allclose(values, [67.719546, 27.719546, -12.280454], rtol=1e-6)
        # Of probabilities far above the floor it is the mean logit less the label's.
        values = losses.cores(np.array([0, 1, 2]), np.array([[0.0, 2.0, 4.0]] * 3, "float32"))
        np.testing.assert_allclose(values, [2, 0, -2], atol=1e-6)

    @parameterized.parameters(losses.soft_cross_entropy, losses.kl_divergence)
    def test_soft_labels_of_another_shape_are_refused(self, loss):
        for soft_labels in (np.zeros((2, 1)), np.zeros((3,)), np.zeros((1, 3))):
            with self.assertRaisesRegex(ValueError, r"`soft_labels` must have shape \(2, 3\)"):
                loss(soft_labels, np.zeros((2, 3), "float32"))
        with self.assertRaisesRegex(ValueError, "`logits` must have rank 2"):
            loss(np.zeros((3,)), np.zeros((3,), "float32"))

    @parameterized.parameters(losses.soft_cross_entropy, losses.kl_divergence)
    def test_soft_losses_are_float32_in_half_precision(self, loss):
        values = loss(ops.cast([[0.5, 0.5]], "bfloat16"), ops.cast([[3.0, 1.0]], "bfloat16"))
        self.assertEqual(keras.backend.standardize_dtype(values.dtype), "float32")

    def test_probabilities_divide_the_logits_by_the_temperature(self):
        probs = losses.probabilities(logits_of([[0.5, 0.25, 0.25]]), 0.5)
        # Squares, normalized; multiplied by the temperature .41421 .29289 .29289.
        np.testing.assert_allclose(probs, [[2 / 3, 1 / 6, 1 / 6]], atol=1e-6)
        np.testing.assert_allclose(losses.probabilities(logits_of(PROBS)), PROBS, atol=1e-6)

    def test_mean_probabilities_by_hand(self):
        # The mean of the logits would give 0.503, 0.277 and 0.220.
        views = (logits_of([[0.5, 0.25, 0.25]]), logits_of([[0.25, 0.5, 0.25]]))
        views += (logits_of([[0.75, 0.125, 0.125]]),)
        found = losses.mean_probabilities(iter(views))
        np.testing.assert_allclose(found, [[0.5, 0.875 / 3, 0.625 / 3]], atol=1e-6)

    def test_sharpen_by_hand(self):
        np.testing.assert_allclose(
            losses.sharpen(np.array([[0.5, 0.25, 0.25]], "float32"), 0.5),
            [[2 / 3, 1 / 6, 1 / 6]],
            atol=1e-6,
        )
        np.testing.assert_allclose(losses.sharpen(PROBS, 1.0), PROBS, atol=1e-6)

    def test_sharpen_at_a_small_temperature_is_finite(self):
        probs = np.array([[0.4, 0.3, 0.3], [0.5, 0.5, 0.0]], "float32")
        # .4 ** 1000 underflows.
        np.testing.assert_allclose(
            losses.sharpen(probs, 1e-3), [[1, 0, 0], [0.5, 0.5, 0]], atol=1e-6
        )

    def test_a_probability_at_the_threshold_is_kept(self):
        probs = np.array([[0.25] * 4, [0.1, 0.7, 0.1, 0.1], [0.5, 0.0, 0.25, 0.25]], "float32")
        labels, mask = losses.confident_labels(probs, 0.25)
        np.testing.assert_array_equal(labels, [0, 1, 0])
        np.testing.assert_array_equal(mask, [1.0, 1.0, 1.0])  # `>` would drop the first
        _, mask = losses.confident_labels(probs, 0.6)
        np.testing.assert_array_equal(mask, [0.0, 1.0, 0.0])

    def test_confident_labels_refuse_other_ranks(self):
        with self.assertRaisesRegex(ValueError, "`probs` must have rank 2"):
            losses.confident_labels(np.zeros((2,), "float32"), 0.5)

    def test_batch_mean_counts_masked_examples_and_does_not_broadcast(self):
        values = np.array([0.2, 0.9, 0.1], "float32")
        mask = np.array([1.0, 0.0, 1.0], "float32")
        # (0.2 + 0.1) / 3; the mean of kept ones would be 0.15, mean x mean 0.2667.
        self.assertAlmostEqual(float(losses.batch_mean(values, mask)), 0.1, places=6)
        with self.assertRaisesRegex(ValueError, r"`mask` must have shape \(3,\)"):
            losses.batch_mean(values, mask[:, None])

    def test_nothing_kept_is_exactly_zero(self):
        value = losses.batch_mean(np.array([5.0, 7.0], "float32"), np.zeros(2, "float32"))
        self.assertEqual(float(value), 0.0)

    def test_masked_mean_is_of_the_kept(self):
        values = np.array([1.0, 5.0, 9.0], "float32")
        mean = losses.masked_mean(values, np.array([1.0, 0.0, 1.0], "float32"))
        self.assertEqual(float(mean), 5.0)
        self.assertEqual(float(losses.masked_mean(values, np.zeros(3, "float32"))), 0.0)

    def test_the_smallest_of_each_class(self):
        values = np.array([0.5, 0.1, 0.9, 0.3, 0.2, 0.0, 0.4], "float32")
        labels = np.array([0, 1, 0, 0, 2, -1, 1], "int32")
        for quotas, expected in (
            ((1, 1, 1), [1, 3, 4]),
            ((2, 1, 0), [0, 1, 3]),
            ((9, 0, 9), [0, 2, 3, 4]),  # more than there are
        ):
            chosen = losses.smallest_of_each_class(values, labels, np.array(quotas))
            self.assertEqual([*np.flatnonzero(chosen)], expected, quotas)

    def test_of_equal_values_as_many_as_asked_for(self):
        chosen = losses.smallest_of_each_class(
            np.zeros(7, "float32"), np.array([1, 0, 1, 0, 0, 1, 1], "int32"), np.array([2, 3])
        )
        self.assertEqual(
            [int(np.sum(np.array(chosen)[rows])) for rows in ([1, 3, 4], [0, 2, 5, 6])], [2, 3]
        )

    def test_l2_is_half_the_sum_of_squares(self):
        value = losses.l2([np.array([[1.0, 2.0]]), np.array([3.0])])
        self.assertAlmostEqual(float(value), 7.0, places=6)


if __name__ == "__main__":
    absltest.main()
