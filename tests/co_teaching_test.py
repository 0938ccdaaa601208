# SPDX-License-Identifier: Apache-2.0
"""Co-teaching by hand: what each network takes of the other, and how much."""

import keras
import look_up
import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy import methods

FIRST = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]
SECOND = [[0.5, 0.5], [0.2, 0.8], [0.7, 0.3], [0.9, 0.1]]


def make(assumed_noise_rate=0.5, **kwargs):
    """Returns a learner, all labels 0: the first network finds 0 and 1 easy, the second 3 and 2."""
    kwargs = {"selection_end": 0.0, "assumed_noise_rate": assumed_noise_rate, **kwargs}
    return look_up.make("co_teaching", FIRST, [0] * 4, SECOND, steps=100, **kwargs)


class CoTeachingTest(absltest.TestCase):
    def test_loss_by_hand(self):
        outcome = look_up.step(make(), [0, 1, 2, 3])
        # -(ln 0.3 + ln 0.6) / 2 of the first, -(ln 0.5 + ln 0.2) / 2 of the second. Each on its
        # own choice gives 0.3953, divided by the number once more 1.0043.
        self.assertAlmostEqual(outcome["supervised_loss"], 2.008691, places=5)
        self.assertEqual(outcome["kept_rate"], 0.5)

    def test_each_learns_the_others_choice(self):
        learner = make()
        second = learner.second_network.get_weights()[0]
        gradient = toy.table_gradient(learner)
        # (p - one_hot) / 2 of what the second chose.
        expected = [[0, 0], [0, 0], [-0.35, 0.35], [-0.2, 0.2]]
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
        expected = [[-0.25, 0.25], [-0.4, 0.4], [0, 0], [0, 0]]
        gradient = second - learner.second_network.get_weights()[0]
        np.testing.assert_allclose(gradient, expected, atol=1e-5)

    def test_the_share_that_is_left_out_rises_to_the_noise_rate_pass_by_pass(self):
        # Passes of 4 steps, for batches of 1. As in the code, whose epochs begin at 1, the share is
        # linspace(0, 0.5, 5)[1:]: an eighth, a quarter, three eighths, a half.
        learner = make(selection_end=0.2, batch_size=1)
        for step, expected in ((0, 87), (3, 87), (4, 75), (8, 62), (11, 62), (12, 50), (90, 50)):
            learner.step.assign(step)
            self.assertEqual(float(learner.num_kept(100)), expected, step)
        # In a single pass it rises with each step: untrained networks keep all.
        learner = make(selection_end=0.04, batch_size=1)
        for step, expected in ((0, 100), (2, 75), (4, 50), (90, 50)):
            learner.step.assign(step)
            self.assertEqual(float(learner.num_kept(100)), expected, step)

    def test_the_number_is_rounded_down_and_never_zero(self):
        self.assertEqual(float(make(0.2).num_kept(128)), 102)  # of 102.4
        self.assertEqual(float(make(0.35).num_kept(4)), 2)  # of 2.6
        self.assertEqual(float(make(0.6).num_kept(10)), 4)  # of 3.9999998 in float32
        self.assertEqual(float(make(0.4).num_kept(4)), 2)  # of 2.4
        self.assertEqual(float(make(0.99).num_kept(4)), 1)
        self.assertTrue(np.isfinite(look_up.step(make(0.99), [0, 1, 2, 3])["supervised_loss"]))

    def test_the_record_is_of_the_first(self):
        learner = make()
        look_up.step(learner, [0, 1, 2, 3])
        expected = -np.log(np.array(FIRST)[:, 0])
        np.testing.assert_allclose(learner.example_record()["loss"], expected, atol=1e-5)
        logits = learner(keras.ops.convert_to_tensor(learner.task.images))
        np.testing.assert_allclose(logits, np.log(FIRST), atol=1e-5)

    def test_defaults_are_the_authors(self):
        arguments = methods.arguments("co_teaching")
        names = ("assumed_noise_rate", "selection_end", "batch_size")
        self.assertEqual([arguments[n].default for n in names], [0.2, 10 / 200, 128])
        self.assertEqual(arguments["weight_decay"].default, 0)
        defaults = methods.get("co_teaching").training_defaults
        self.assertEqual((defaults["steps"], defaults["schedule"]), (200 * 391, "linear_2_5"))
        self.assertEqual((defaults["optimizer"], defaults["learning_rate"]), ("adam", 0.001))


if __name__ == "__main__":
    absltest.main()
