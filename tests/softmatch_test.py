# SPDX-License-Identifier: Apache-2.0
"""SoftMatch's formula, by hand, on a network that answers with fixed probabilities."""

import numpy as np
import toy
from absl.testing import absltest, parameterized

from ssl_noisy.methods import softmatch

# Aligned with equal classes, the second and the third are of class 1.
PROBS = [[0.80, 0.10, 0.10], [0.50, 0.40, 0.10], [0.45, 0.35, 0.20]]


def make(mean=0.8, variance=0.05, given_labels=(1, -1, -1), **kwargs):
    learner = toy.make("softmatch", PROBS, given_labels, threshold_momentum=0.5, **kwargs)
    learner.mean.assign(mean)
    learner.variance.assign(variance)
    learner.step.assign(100)  # the warm-up of the momentum is over
    return learner


class SoftMatchTest(parameterized.TestCase):
    @parameterized.parameters(
        # exp(-2), exp(-8); above the mean 1, where a whole bell would give exp(-8).
        (2.0, [1.0, 0.135335, 0.000335]),
        (1.0, [1.0, 0.606531, 0.135335]),
    )
    def test_weights_by_hand(self, num_sigmas, expected):
        confidence = np.array([0.9, 0.6, 0.5], "float32")
        weights = softmatch.soft_weights(confidence, 0.7, 0.01, num_sigmas)
        np.testing.assert_allclose(weights, expected, atol=1e-5)

    def test_confidences_that_are_all_equal_weigh_one(self):
        confidence = np.ones(4, "float32")
        weights = softmatch.soft_weights(confidence, np.float32(1.0), np.float32(0.0))
        np.testing.assert_array_equal(weights, [1, 1, 1, 1])

    def test_averages_by_hand(self):
        learner = make()
        toy.objective(learner, [0], range(3))
        # Of .8, .5, .45, not of what alignment makes of them (.65681).
        self.assertAlmostEqual(float(learner.mean.numpy()), 0.691667, places=5)
        # (.05 + .03583) / 2; with the biased variance .03694, of aligned predictions .03861.
        self.assertAlmostEqual(float(learner.variance.numpy()), 0.042917, places=5)
        np.testing.assert_allclose(
            learner.marginal.numpy(), [0.458333, 0.308333, 0.233333], atol=1e-5
        )

    def test_terms_by_hand(self):
        outcome = toy.objective(make(unsupervised_weight=2.0), [0], range(3))
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 2.302585, places=5)
        # Aligned confidences .69864 .46056 .38167, by the averages after the step; before it the
        # first would weigh .66303. Not aligned: 1 .18051 .06577.
        np.testing.assert_allclose(outcome["mask"], [1, 0.082992, 0.011353], atol=1e-5)
        np.testing.assert_array_equal(outcome["pseudo_labels"], [0, 0, 0])  # not aligned
        # Twice the mean of weight x -ln(.8, .5, .45): aligned labels would give .20741, the
        # sum of the weights as divisor .52951.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.193157, places=5)
        self.assertAlmostEqual(float(outcome["mask_rate"]), 0.364782, places=5)

    def test_alignment_can_be_turned_off(self):
        outcome = toy.objective(make(uniform_alignment=False), [0], range(3))
        np.testing.assert_allclose(outcome["mask"], [1, 0.180509, 0.065764], atol=1e-5)
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.133592, places=5)

    def test_weights_are_constants(self):
        gradient = toy.table_gradient(make(given_labels=(-1, -1, 0)))
        # weight (p - one-hot) / 3.
        expected = [[-0.066667, 0.033333, 0.033333], [-0.013832, 0.011066, 0.002766]]
        np.testing.assert_allclose(gradient[:2], expected, atol=1e-5)

    def test_defaults_are_the_papers(self):
        learner = toy.make("softmatch", PROBS, [0, -1, -1])
        self.assertEqual((learner.num_sigmas, learner.threshold_momentum), (2.0, 0.999))
        self.assertTrue(learner.uniform_alignment)
        self.assertAlmostEqual(float(learner.mean.numpy()), 1 / 3, places=6)
        self.assertEqual(float(learner.variance.numpy()), 1.0)


if __name__ == "__main__":
    absltest.main()
