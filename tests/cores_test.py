# SPDX-License-Identifier: Apache-2.0
"""CORES by hand: the loss, its milestones, and the sieve."""

import look_up
import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy import methods

# Under labels 0, 1, 0 the sieve's values are -1.0662, 0.0351, 0.9635: the last two fail.
PROBS = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]


def make(given_labels=(0, 1, 0), step=0, **kwargs):
    learner = look_up.make("cores", PROBS, given_labels, steps=100, **kwargs)
    learner.step.assign(step)
    return learner


class LossTest(absltest.TestCase):
    def test_it_is_cross_entropy_at_first(self):
        for step in (0, 10):
            outcome = look_up.step(make(step=step), [0, 1, 2])
            # -(ln 0.7 + ln 0.3 + ln 0.1) / 3.
            self.assertAlmostEqual(outcome["supervised_loss"], 1.287744, places=5)
            self.assertEqual(outcome["kept_rate"], 1)

    def test_confidence_by_hand(self):
        # At step 25 beta is 1, half way from 10 to 40: mean of the sieve's values over
        # 1 + beta. The sum over classes for their mean would give -1.3216.
        outcome = look_up.step(make(step=25), [0, 1, 2])
        self.assertAlmostEqual(outcome["supervised_loss"], -0.011274, places=5)

    def test_the_sieve_leaves_out_and_the_mean_is_of_the_rest(self):
        # (-ln 0.7 - 2 * 1.422899) / 3 from step 40 on. Divided by all three it would be -0.2766,
        # with nothing left out -0.4443.
        for step in (40, 70, 100):
            outcome = look_up.step(make(step=step), [0, 1, 2])
            self.assertAlmostEqual(outcome["supervised_loss"], -0.829708, places=5)
            self.assertAlmostEqual(outcome["kept_rate"], 1 / 3, places=6)

    def test_it_begins_at_its_share(self):
        # Of 100 epochs the authors' code keeps every label in those of index 0 to 30.
        kept = [look_up.step(make(step=s), [0, 1, 2])["kept_rate"] for s in (30, 31)]
        np.testing.assert_allclose(kept, [1, 1 / 3], atol=1e-6)

    def test_a_confident_network_does_not_pass_wrong_labels(self):
        learner = make(step=50, given_labels=(0, 1, 2))
        learner.network.set_weights([np.array([[0.0, 40.0, 80.0]] * 3, "float32")])
        outcome = look_up.step(learner, [0, 1, 2])
        # Only the label of logit 80 passes; without a floor the one of 40 would too. The loss is
        # -2 * 12.280454 / 3: cross-entropy 0, the mean with floor, over 1 + beta.
        self.assertAlmostEqual(outcome["kept_rate"], 1 / 3, places=6)
        self.assertAlmostEqual(outcome["supervised_loss"], -8.186969, places=4)
        score, flagged = learner.detected()["cores_sieve"]
        np.testing.assert_array_equal(flagged, [True, True, False])
        np.testing.assert_allclose(score, [1, 1, 4.64e-6], atol=1e-7)

    def test_with_no_label_left_the_loss_is_zero(self):
        learner = make(given_labels=(2, 1, 0), step=50)
        outcome = look_up.step(learner, [0, 1, 2])
        self.assertEqual((outcome["supervised_loss"], outcome["kept_rate"]), (0, 0))
        np.testing.assert_array_equal(toy.table_gradient(learner), 0)

    def test_confidence_has_a_limit(self):
        learner = make(step=50)
        learner.network.set_weights([np.array([[300.0, 0, 0]] * 3, "float32")])
        # -2 * 2/3 * -ln 1e-8, over 3. Without the floor it is -2 * 200 / 3.
        self.assertAlmostEqual(look_up.step(learner, [0])["supervised_loss"], -8.186988, places=4)
        self.assertTrue(np.isfinite(toy.table_gradient(learner)).all())

    def test_defaults_are_the_authors(self):
        arguments = methods.arguments("cores")
        names = ("confidence_weight", "confidence_start", "confidence_end", "sieve_start")
        self.assertEqual([arguments[n].default for n in names], [2.0, 0.1, 0.4, 0.31])
        names = ("batch_size", "weight_decay", "ema_momentum")
        self.assertEqual([arguments[n].default for n in names], [64, 0.0, 0.0])
        defaults = methods.get("cores").training_defaults
        self.assertEqual((defaults["steps"], defaults["learning_rate"]), (100 * 782, 0.1))
        self.assertEqual(defaults["momentum"], 0.0)


class DetectionTest(absltest.TestCase):
    def test_a_label_is_wrong_if_it_failed_the_last_time(self):
        learner = look_up.make("cores", [*PROBS, PROBS[0], PROBS[0]], [0, 1, 0, -1, 0])
        look_up.step(learner, [0, 2])
        learner.network.set_weights([np.log(np.array([*PROBS[::-1], PROBS[0], PROBS[0]]))])
        look_up.step(learner, [2, 1])
        score, flagged = learner.detected()["cores_sieve"]
        np.testing.assert_allclose(score, [0.256116, 0.508779, 0.256116, np.nan, np.nan], atol=1e-5)
        np.testing.assert_array_equal(flagged, [False, True, False, False, False])


if __name__ == "__main__":
    absltest.main()
