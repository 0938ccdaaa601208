# SPDX-License-Identifier: Apache-2.0
"""Pseudo-Label's formula, by hand, on a network that answers with fixed probabilities."""

import numpy as np
import toy
from absl.testing import absltest, parameterized

from ssl_noisy import methods

# At threshold 0.5 all but the third are kept.
PROBS = [
    [0.80, 0.10, 0.10],
    [0.50, 0.50, 1e-30],  # exactly at the threshold, in float32 too
    [0.48, 0.26, 0.26],
    [0.10, 0.70, 0.20],
]


def unsupervised(step, **kwargs):
    learner = toy.make("pseudo_label", PROBS, [1, -1, -1, -1], steps=100, **kwargs)
    learner.step.assign(step)
    return float(toy.objective(learner, [0], [0, 1, 2, 3])["unsupervised_loss"])


class PseudoLabelTest(parameterized.TestCase):
    def test_terms_by_hand(self):
        learner = toy.make("pseudo_label", PROBS, [1, -1, -1, -1], confidence_threshold=0.5)
        learner.step.assign(learner.steps)
        outcome = toy.objective(learner, [0], [0, 1, 2, 3])
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 2.302585, places=5)
        # (-ln .8 - ln .5 - ln .7) / 4. `>` would give .14495, the mean of the kept .42432.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.318241, places=5)
        np.testing.assert_array_equal(outcome["mask"], [1, 1, 0, 1])
        np.testing.assert_array_equal(outcome["pseudo_labels"][[0, 2, 3]], [0, 0, 1])
        self.assertAlmostEqual(float(outcome["mask_rate"]), 0.75, places=6)

    @parameterized.parameters((0, 0.0), (10, 0.25), (30, 0.75), (40, 1.0), (90, 1.0))
    def test_the_benchmarks_weight_rises_along_two_fifths(self, step, share):
        value = unsupervised(step, confidence_threshold=0.5)
        self.assertAlmostEqual(value, share * 0.318241, places=5)

    @parameterized.parameters((5, 0.0), (10, 0.0), (35, 1.5), (60, 3.0), (100, 3.0))
    def test_lees_weight_rises_between_two_steps_and_all_examples_count(self, step, weight):
        lee = {"confidence_threshold": 0.0, "unsupervised_weight": 3.0}
        value = unsupervised(step, ramp_start=0.1, ramp_end=0.6, **lee)
        # (-ln .8 - ln .5 - ln .48 - ln .7) / 4.
        self.assertAlmostEqual(value, weight * 0.501734, places=5)

    def test_a_label_is_a_constant(self):
        gradient = toy.table_gradient(
            toy.make("pseudo_label", PROBS, [-1, -1, 0, -1], ramp_end=0.0, confidence_threshold=0.6)
        )
        # (p - one-hot) / 4; row 1 is not kept.
        expected = [[-0.05, 0.025, 0.025], [0, 0, 0], [0.025, -0.075, 0.05]]
        np.testing.assert_allclose(gradient[[0, 1, 3]], expected, atol=1e-6)

    def test_running_statistics_follow_labeled_views_alone(self):
        before, after = toy.statistics("pseudo_label", gray=0.0)
        self.assertTrue((before != after).all())
        np.testing.assert_allclose(after, toy.statistics("pseudo_label", gray=255.0)[1], rtol=1e-6)

    def test_defaults_are_the_benchmarks(self):
        learner = toy.make("pseudo_label", PROBS, [0, -1, -1, -1])
        self.assertEqual((learner.confidence_threshold, learner.unsupervised_weight), (0.95, 1.0))
        self.assertEqual((learner.ramp_start, learner.ramp_end), (0.0, 0.4))
        self.assertEqual(methods.arguments("pseudo_label")["unlabeled_ratio"].default, 1)


if __name__ == "__main__":
    absltest.main()
