# SPDX-License-Identifier: Apache-2.0
"""FreeMatch's formula, by hand, on a network that answers with fixed probabilities."""

import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy.methods import freematch

PROBS = [
    [0.80, 0.10, 0.10],
    [0.30, 0.45, 0.25],
    [0.45, 0.30, 0.25],
    [0.10, 0.10, 0.80],
]
# Four kept strong views, of classes 0, 0, 1, 2, and one that is not.
STRONG = [[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [0.05, 0.05, 0.9]]
PROBS_AVERAGE = np.array([0.5, 0.3, 0.2], "float32")
LABEL_AVERAGE = np.array([0.4, 0.4, 0.2], "float32")


def make(given_labels=(1, -1, -1, -1), **kwargs):
    return toy.make("freematch", PROBS, given_labels, **{"threshold_momentum": 0.5, **kwargs})


def fairness(mask, strong=STRONG):
    logits, mask = np.log(np.array(strong, "float32")), np.array(mask, "float32")
    return float(freematch.fairness_loss(logits, mask, PROBS_AVERAGE, LABEL_AVERAGE))


class FreeMatchTest(absltest.TestCase):
    def test_fairness_by_hand(self):
        # N(p / h) is (5, 3, 4) / 12; N(mean / histogram) of (.35, .35, .3) / (1/2, 1/4, 1/4) is
        # .21212 .42424 .36364. Without the histogram -1.10120, without the average of labels
        # -1.23485, not normalized -.01117, with the example not kept -1.19577, as KL .12009.
        self.assertAlmostEqual(fairness([1, 1, 1, 1, 0]), -1.197645, places=5)

    def test_fairness_counts_a_class_without_a_kept_example_as_zero(self):
        # (.43333, .4, .16667) / (2/3, 1/3, 0): N is .35135 .64865 0, and ln 1e-12 the last term's.
        self.assertAlmostEqual(fairness([1, 1, 1, 0, 0]), -9.754377, places=4)

    def test_fairness_is_exactly_zero_if_none_is_kept(self):
        self.assertEqual(fairness([0, 0, 0, 0, 0]), 0.0)

    def test_a_step_in_which_none_is_kept_has_a_finite_gradient(self):
        learner = make(given_labels=(-1, -1, 0, -1), fairness_weight=1.0, threshold_momentum=0.999)
        learner.confidence.assign(0.99)
        gradient = toy.table_gradient(learner)
        # That of the labeled example alone, p - one-hot.
        np.testing.assert_allclose(gradient[2], [-0.55, 0.3, 0.25], atol=1e-6)
        np.testing.assert_array_equal(gradient[[0, 1, 3]], np.zeros((3, 3)))

    def test_a_step_that_misses_a_class_has_a_finite_gradient(self):
        learner = make(given_labels=(-1, -1, 0, -1), strong=(0, 0, 0, 0), fairness_weight=1.0)
        self.assertTrue(np.isfinite(toy.table_gradient(learner)).all())

    def test_averages_and_thresholds_by_hand(self):
        learner = make()
        np.testing.assert_allclose(learner.confidence.numpy(), 1 / 3, rtol=1e-6)
        np.testing.assert_allclose(learner.probs_average.numpy(), [1 / 3] * 3, rtol=1e-6)
        np.testing.assert_allclose(learner.label_average.numpy(), [1 / 3] * 3, rtol=1e-6)
        outcome = toy.objective(learner, [0], range(4))
        # Halfway from 1/3 to the batch: .625; .4125 .2375 .35; and 1/2 1/4 1/4.
        np.testing.assert_allclose(learner.confidence.numpy(), 0.479167, atol=1e-6)
        np.testing.assert_allclose(outcome["confidence"], 0.479167, atol=1e-6)
        np.testing.assert_allclose(
            learner.probs_average.numpy(), [0.372917, 0.285417, 0.341667], atol=1e-6
        )
        np.testing.assert_allclose(
            learner.label_average.numpy(), [0.416667, 0.291667, 0.291667], atol=1e-6
        )
        # Thresholds .47917 .36674 .43901. The averages before the step would keep all, as would
        # shares that are not divided by the largest; the global threshold alone would drop two.
        np.testing.assert_array_equal(outcome["mask"], [1, 1, 0, 1])
        np.testing.assert_array_equal(outcome["pseudo_labels"], [0, 1, 0, 2])

    def test_terms_by_hand(self):
        outcome = toy.objective(make(fairness_weight=0.5, unsupervised_weight=2.0), [0], range(4))
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 2.302585, places=5)
        # 2 (-ln .8 - ln .45 - ln .8) / 4.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.622397, places=5)
        # Half of the sum of (.29392 .32137 .38471) ln (.4 .21667 .38333): of the averages after
        # the step. Those before it would give -.56742.
        self.assertAlmostEqual(float(outcome["fairness_loss"]), -0.564848, places=5)
        self.assertAlmostEqual(float(outcome["mask_rate"]), 0.75, places=6)

    def test_defaults(self):
        learner = toy.make("freematch", PROBS, [0, -1, -1, -1])
        self.assertEqual((learner.fairness_weight, learner.threshold_momentum), (0.001, 0.999))
        toy.objective(learner, [0], range(4))
        self.assertAlmostEqual(float(learner.confidence.numpy()), 0.333625, places=6)


if __name__ == "__main__":
    absltest.main()
