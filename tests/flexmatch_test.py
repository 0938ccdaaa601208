# SPDX-License-Identifier: Apache-2.0
"""FlexMatch's formula, by hand, on a network that answers with fixed probabilities."""

import os

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized

from ssl_noisy.methods import flexmatch

# Of five examples three are confidently class 0; at the threshold of a learned class, 0.95,
# the fourth is not kept, and the fifth is of another class.
PROBS = [
    [0.97, 0.02, 0.01],
    [0.96, 0.02, 0.02],
    [0.98, 0.01, 0.01],
    [0.50, 0.30, 0.20],
    [0.20, 0.30, 0.50],
]
ALL = range(5)


def make(probs=PROBS, given_labels=(1, -1, -1, -1, -1), **kwargs):
    return toy.make("flexmatch", probs, given_labels, **kwargs)


class FlexMatchTest(parameterized.TestCase):
    @parameterized.parameters(
        # beta 1, 1/2, 0; M(1/2) = 1/3, where a linear M would give .475.
        (1, (0.95, 0.316667, 0.0)),
        # More are in no class than in any: beta 1/2, 1/4, 0. Without warm-up as above.
        (8, (0.316667, 0.135714, 0.0)),
    )
    def test_class_thresholds_by_hand(self, num_unselected, expected):
        counts = np.array([4, 2, 0], "float32")
        thresholds = flexmatch.class_thresholds(counts, float(num_unselected), 0.95)
        np.testing.assert_allclose(thresholds, expected, atol=1e-5)

    def test_thresholds_begin_at_zero_without_an_example(self):
        thresholds = flexmatch.class_thresholds(np.zeros(3, "float32"), 0.0, 0.95)
        np.testing.assert_array_equal(thresholds, [0, 0, 0])

    def test_terms_by_hand_with_the_thresholds_before_the_step(self):
        learner = make(strong=(3, 3, 3, 3, 3), unsupervised_weight=2.0)
        outcome = toy.objective(learner, [0], ALL)
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 3.912023, places=5)
        # All are kept. With the counts after the step the fourth would not be.
        np.testing.assert_array_equal(outcome["mask"], [1, 1, 1, 1, 1])
        np.testing.assert_array_equal(outcome["pseudo_labels"], [0, 0, 0, 0, 2])
        # 2 (-4 ln .5 - ln .2) / 5.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 1.752811, places=5)
        # Counts 3, 0, 0 and two unselected: class 0 has threshold .95, the others 0.
        np.testing.assert_allclose(learner.thresholds(), [0.95, 0, 0], atol=1e-6)
        outcome = toy.objective(learner, [0], ALL)
        np.testing.assert_array_equal(outcome["mask"], [1, 1, 1, 0, 1])
        # 2 (-3 ln .5 - ln .2) / 5; over the kept ones 1.84444.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 1.475552, places=5)
        self.assertAlmostEqual(float(outcome["mask_rate"]), 0.8, places=6)

    def test_a_confident_label_is_recorded_and_kept_until_the_next_one(self):
        learner = make()
        learner.confident_labels.assign(np.array([2, -1, -1, 1, -1], "int32"))
        toy.objective(learner, [0], [0, 2, 3, 4])
        # 0 is confident of another class now, 2 for the first time, 3 not now, 4 is kept without
        # being confident, and 1 was not drawn.
        np.testing.assert_array_equal(learner.confident_labels.numpy(), [0, -1, 0, 1, -1])
        self.assertEqual(learner.confident_labels.dtype, "int32")

    def test_a_probability_at_a_threshold_is_kept_and_confident(self):
        learner = make([[0.5, 0.5, 1e-30]] * 2, [0, -1], confidence_threshold=0.5)
        for _ in range(2):
            outcome = toy.objective(learner, [0], [0, 1])
            np.testing.assert_array_equal(outcome["mask"], [1, 1])
            self.assertTrue((learner.confident_labels.numpy() >= 0).all())
        self.assertAlmostEqual(float(np.max(learner.thresholds())), 0.5, places=6)

    @parameterized.parameters((True, 0.19), (False, 0.316667))
    def test_counts_are_over_the_pool(self, include_labeled, expected):
        learner = make(PROBS[:4], (1, -1, -1, -1), include_labeled=include_labeled)
        learner.confident_labels.assign(np.array([-1, 0, -1, -1], "int32"))
        # One of the pool's 4 or 3 is selected: beta 1/3 or 1/2, M 1/5 or 1/3.
        np.testing.assert_allclose(learner.thresholds(), [expected, 0, 0], atol=1e-5)

    def test_labels_are_saved_and_loaded(self):
        learner, _ = toy.learner("flexmatch", compiled=False)
        labels = np.arange(120, dtype="int32") % 11 - 1
        learner.confident_labels.assign(labels)
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        learner.save(path)
        loaded = keras.models.load_model(path)
        loaded.attach(learner.task)
        np.testing.assert_array_equal(loaded.confident_labels.numpy(), labels)
        np.testing.assert_allclose(loaded.thresholds(), learner.thresholds())


if __name__ == "__main__":
    absltest.main()
