# SPDX-License-Identifier: Apache-2.0
"""FixMatch's formula, by hand, on a network that answers with fixed probabilities."""

import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy import FixMatch, methods

PROBS = [
    [0.97, 0.02, 0.01],  # confident of class 0
    [0.03, 0.96, 0.01],  # confident of class 1
    [0.50, 0.30, 0.20],  # not confident
    [0.97, 0.02, 0.01],
]


def make(**kwargs):
    # The strong view of a confident 0 is the uncertain image, the others are themselves.
    return toy.make("fixmatch", PROBS, [1, -1, -1, -1], strong=(2, 1, 2, 2), **kwargs)


class FixMatchTest(absltest.TestCase):
    def test_terms_by_hand(self):
        outcome = toy.objective(make(unsupervised_weight=2.0), [0], range(4))
        # The labeled image is seen as class 0, its given label is 1: -ln 0.02.
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 3.912023, places=4)
        # Kept: images 0, 1, 3 with labels 0, 1, 0. Strong: -ln .5, -ln .96, -ln .5; over all 4,
        # times 2. Over the kept ones it would be 0.9513, without the weight 0.3568.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.713558, places=4)
        self.assertAlmostEqual(float(outcome["mask_rate"]), 0.75, places=6)
        np.testing.assert_array_equal(outcome["pseudo_labels"], [0, 1, 0, 0])
        np.testing.assert_array_equal(outcome["mask"], [1, 1, 0, 1])

    def test_no_confident_example_is_exactly_zero(self):
        outcome = toy.objective(make(confidence_threshold=0.99), [0], range(4))
        self.assertEqual(float(outcome["unsupervised_loss"]), 0.0)
        self.assertEqual(float(outcome["mask_rate"]), 0.0)

    def test_alignment_by_hand(self):
        learner = make(distribution_alignment=True)
        learner.step.assign(100)  # the warm-up of the momentum is over
        probs = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], "float32")
        target = np.array([0.2, 0.3, 0.5], "float32")
        aligned = learner.aligned(probs, learner.marginal, target, momentum=0.5)
        # The marginal first: halfway from 1/3 to the mean, .3 .45 .25.
        np.testing.assert_allclose(
            learner.marginal.numpy(), [0.316667, 0.391667, 0.291667], atol=1e-5
        )
        # probs x target / marginal, normalized. By the marginal before it the first were .34483
        # .31034 .34483, by the batch's mean .35714 .21429 .42857.
        expected = [[0.355445, 0.258643, 0.385912], [0.060903, 0.443169, 0.495927]]
        np.testing.assert_allclose(aligned, expected, atol=1e-5)

    def test_labels_and_mask_are_of_aligned_predictions(self):
        probs = [[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.2, 0.7, 0.1], [0.2, 0.7, 0.1]]
        # One label of class 0 and three of class 1: the target is 1/4 3/4 0.
        kwargs = {"given_labels": [0, 1, 1, 1], "confidence_threshold": 0.8}
        learner = toy.make("fixmatch", probs, distribution_alignment=True, **kwargs)
        np.testing.assert_allclose(learner.labeled_distribution(), [0.25, 0.75, 0])
        learner.step.assign(10_000)
        outcome = toy.objective(learner, [0], [0, 1])
        # Aligned .357 .643 0 and .1 .9 0; as they are, .5 and .6 would not be kept.
        np.testing.assert_array_equal(outcome["pseudo_labels"], [1, 1])
        np.testing.assert_array_equal(outcome["mask"], [0, 1])
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.601986, places=5)
        # .999 / 3 + .001 (.3, .3, .4): the whole batch counts.
        np.testing.assert_allclose(learner.marginal.numpy(), [0.3333, 0.3333, 0.3334], atol=1e-6)
        outcome = toy.objective(toy.make("fixmatch", probs, **kwargs), [0], [0, 1])
        np.testing.assert_array_equal(outcome["pseudo_labels"], [0, 2])

    def test_joint_batch_norm_is_one_forward_pass_of_the_same_formula(self):
        separate, joint = (
            toy.objective(make(joint_batch_norm=j), [0], range(4)) for j in (False, True)
        )
        for key in ("supervised_loss", "unsupervised_loss"):
            self.assertAlmostEqual(float(separate[key]), float(joint[key]), places=5)

    def test_strong_views_move_the_running_statistics_only_in_one_joint_batch(self):
        for joint in (False, True):
            statistics = []
            for strong in (lambda images: 0 * images, lambda images: 255 - images):
                learner, _ = toy.learner("fixmatch", joint_batch_norm=joint)
                learner.strong_view = strong
                before = [v.numpy() for v in learner.running_statistics]
                toy.fit(learner, steps=1)
                after = [v.numpy() for v in learner.running_statistics]
                self.assertTrue(all((a != b).any() for a, b in zip(before, after)))
                statistics.append(np.concatenate(after))
            self.assertEqual(np.allclose(*statistics), not joint)

    def test_labeled_images_are_unlabeled_ones_too_unless_told_otherwise(self):
        np.testing.assert_array_equal(make().pools()["unlabeled"], [0, 1, 2, 3])
        np.testing.assert_array_equal(make(include_labeled=False).pools()["unlabeled"], [1, 2, 3])

    def test_streams_are_the_batch_and_mu_times_it(self):
        self.assertEqual(make().streams(), {"labeled": 1, "unlabeled": 4})

    def test_defaults_are_the_papers(self):
        learner = make()
        self.assertEqual((learner.confidence_threshold, learner.ema_momentum), (0.95, 0.999))
        self.assertFalse(learner.distribution_alignment)
        self.assertEqual(methods.arguments("fixmatch")["weight_decay"].default, 5e-4)
        defaults = FixMatch.training_defaults
        self.assertEqual((defaults["steps"], defaults["learning_rate"]), (2**20, 0.03))


if __name__ == "__main__":
    absltest.main()
