# SPDX-License-Identifier: Apache-2.0
"""UDA's formula, by hand, on a network that answers with fixed probabilities."""

import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy.methods import uda

# At threshold 0.5 and temperature 0.5, which squares: kept are 0 and 3.
PROBS = [
    [0.80, 0.10, 0.10],  # sharpened .96970 .01515 .01515
    [0.50, 0.50, 1e-30],  # exactly at the threshold, in float32 too: dropped
    [0.48, 0.26, 0.26],  # .63020 when sharpened, dropped all the same
    [0.10, 0.70, 0.20],  # sharpened .01852 .90741 .07407
]


def make(strong=(2, 2, 2, 2), given_labels=(1, -1, 0, 1), **kwargs):
    settings = {"confidence_threshold": 0.5, "temperature": 0.5, "steps": 100, **kwargs}
    return toy.make("uda", PROBS, given_labels, strong=strong, **settings)


class TsaThresholdTest(parameterized.TestCase):
    @parameterized.parameters(
        ("log", (0.100, 0.742, 0.926, 0.979, 0.994)),
        ("linear", (0.100, 0.325, 0.550, 0.775, 1.000)),
        ("exp", (0.106, 0.121, 0.174, 0.358, 1.000)),
    )
    def test_ten_classes(self, kind, expected):
        progress = ops.convert_to_tensor(np.array([0, 0.25, 0.5, 0.75, 1], "float32"))
        np.testing.assert_allclose(uda.tsa_threshold(kind, progress, 10), expected, atol=5e-4)


class UDATest(parameterized.TestCase):
    def test_divergence_by_hand(self):
        outcome = toy.objective(make(unsupervised_weight=2.0), [0], [0, 1, 2, 3])
        np.testing.assert_array_equal(outcome["mask"], [1, 0, 0, 1])  # `>=` would keep 1
        np.testing.assert_array_equal(outcome["pseudo_labels"][[0, 2, 3]], [0, 0, 1])
        # Twice (.59575 + .98089) / 4, each the sum of t ln(t / q). The other direction gives
        # 1.35225, a target that is not sharpened .35075, sharpened strong views .82624, the mean
        # of the kept .78832 x 2, cross-entropy 1.04413.
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.788320, places=5)
        self.assertAlmostEqual(float(outcome["mask_rate"]), 0.5, places=6)

    def test_temperature_one_does_not_sharpen(self):
        outcome = toy.objective(make(temperature=1.0), [0], [0, 1, 2, 3])
        self.assertAlmostEqual(float(outcome["unsupervised_loss"]), 0.175376, places=5)

    def test_the_same_view_diverges_by_the_temperature_alone(self):
        agree = toy.objective(make(strong=(0, 1, 2, 3), temperature=1.0), [0], [0, 3])
        self.assertAlmostEqual(float(agree["unsupervised_loss"]), 0.0, places=6)
        sharper = toy.objective(make(strong=(0, 1, 2, 3)), [0], [0, 3])
        # KL of .96970 .01515 .01515 and .8 .1 .1 is .12936, of the other two .13068.
        self.assertAlmostEqual(float(sharper["unsupervised_loss"]), 0.130019, places=5)

    def test_entropy_of_weak_views_by_hand(self):
        outcome = toy.objective(make(entropy_weight=0.5), [0], [0, 1, 2, 3])
        # Half the mean of .63903, .69315, 1.05278, .80182: all count, none is sharpened (.26499).
        self.assertAlmostEqual(float(outcome["entropy_loss"]), 0.398348, places=5)
        outcome = toy.objective(make(), [0], [0, 1, 2, 3])
        self.assertEqual(float(outcome["entropy_loss"]), 0.0)

    def test_only_a_weighted_entropy_has_a_gradient_through_weak_views(self):
        given_labels = (-1, -1, 0, -1)  # labeled and strong views are all of row 2
        gradient = toy.table_gradient(make(given_labels=given_labels))
        self.assertGreater(np.abs(gradient[2]).max(), 0)
        np.testing.assert_array_equal(gradient[[0, 1, 3]], np.zeros((3, 3)))
        gradient = toy.table_gradient(make(given_labels=given_labels, entropy_weight=0.5))
        # -p (ln p + H) / 8: the target of the divergence passes no gradient on.
        expected = [[-0.041589, 0.020794, 0.020794], [0.018760, -0.038950, 0.020190]]
        np.testing.assert_allclose(gradient[[0, 3]], expected, atol=1e-5)

    def test_annealing_leaves_out_confident_labels(self):
        learner = make(tsa="linear")
        learner.step.assign(30)  # the threshold is 1/3 + .3 x 2/3 = .53333, of ten classes .37
        outcome = toy.objective(learner, [0, 2, 3], [0])
        # Labels 1, 0, 1 have probabilities .1, .48, .7: the last is left out, the first is not,
        # whose largest is .8. (-ln .1 - ln .48) / 2; over the batch 1.01218; by the largest .73397.
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 1.518277, places=5)
        self.assertAlmostEqual(float(outcome["labeled_mask_rate"]), 2 / 3, places=6)
        outcome = toy.objective(make(), [0, 2, 3], [0])
        self.assertAlmostEqual(float(outcome["supervised_loss"]), 1.131076, places=5)
        self.assertEqual(float(outcome["labeled_mask_rate"]), 1.0)

    def test_annealing_that_leaves_out_all_is_exactly_zero(self):
        learner = make(tsa="linear", given_labels=(0, -1, 0, 1))  # all above 1/3
        outcome = toy.objective(learner, [0, 2, 3], [0])
        self.assertEqual(float(outcome["supervised_loss"]), 0.0)
        self.assertEqual(float(outcome["labeled_mask_rate"]), 0.0)

    @parameterized.parameters("linear", "exp")
    def test_annealing_ends_with_all_labels(self, tsa):
        learner = toy.make("uda", [[1.0, 1e-30, 1e-30]], [0], tsa=tsa, steps=100)
        learner.step.assign(100)
        outcome = toy.objective(learner, [0], [0])
        # Probability and threshold are both 1: `>=` would leave it out.
        self.assertEqual(float(outcome["labeled_mask_rate"]), 1.0)

    def test_defaults_are_the_cifar_scripts(self):
        learner = toy.make("uda", PROBS, [0, -1, -1, -1])
        self.assertEqual((learner.confidence_threshold, learner.temperature), (0.8, 0.4))
        self.assertEqual((learner.tsa, learner.entropy_weight), ("none", 0.0))
        self.assertEqual((learner.unsupervised_weight, learner.decayed), (1.0, "all"))
        self.assertEqual((learner.ema_momentum, learner.average_statistics), (0.9999, True))
        self.assertEqual((learner.strong_augmentation, learner.steps), ("uda", 500_000))
        self.assertEqual(uda.UDA.training_defaults["learning_rate"], 0.03)
        self.assertEqual(uda.UDA.training_defaults["schedule"], "cosine_7_16")


if __name__ == "__main__":
    absltest.main()
