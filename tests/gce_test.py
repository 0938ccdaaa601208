# SPDX-License-Identifier: Apache-2.0
"""The generalized cross-entropy by hand, its limits and its gradient."""

import look_up
import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy import methods

PROBS = [[0.3, 0.5, 0.2], [0.1, 0.8, 0.1]]


def loss(**kwargs):
    return look_up.step(look_up.make("gce", PROBS, [0, 1], **kwargs), [0, 1])["supervised_loss"]


class LossTest(absltest.TestCase):
    def test_by_hand(self):
        # (1 - 0.3^0.7) / 0.7 = 0.813561 and (1 - 0.8^0.7) / 0.7 = 0.206575.
        self.assertAlmostEqual(loss(), 0.510068, places=5)

    def test_its_limits_are_cross_entropy_and_half_the_absolute_error(self):
        self.assertAlmostEqual(loss(loss_exponent=1e-5), -np.log(0.3 * 0.8) / 2, places=4)
        self.assertAlmostEqual(loss(loss_exponent=1.0), (0.7 + 0.2) / 2, places=6)

    def test_its_gradient_is_that_of_cross_entropy_times_a_power(self):
        gradient = toy.table_gradient(look_up.make("gce", PROBS, [0, 1], loss_exponent=0.5))
        # 0.3^0.5 * (p - one_hot) / 2 and 0.8^0.5 * (p - one_hot) / 2.
        expected = [[-0.191703, 0.136931, 0.054772], [0.044721, -0.089443, 0.044721]]
        np.testing.assert_allclose(gradient, expected, atol=1e-5)

    def test_a_probability_of_zero_has_a_finite_loss_and_no_gradient(self):
        learner = look_up.make("gce", PROBS, [0, 1])
        learner.network.set_weights([np.array([[-200.0, 200, 0], [0, 200, 0]], "float32")])
        # 1 / 0.7 and 0; of log(p^0.7) it would not be finite.
        self.assertAlmostEqual(look_up.step(learner, [0, 1])["supervised_loss"], 1 / 1.4, places=5)
        gradient = toy.table_gradient(learner)
        self.assertLess(np.abs(gradient).max(), 1e-6)

    def test_defaults_are_the_papers(self):
        arguments = methods.arguments("gce")
        names = ("loss_exponent", "batch_size", "weight_decay", "decayed")
        self.assertEqual([arguments[n].default for n in names], [0.7, 128, 1e-4, "all"])
        defaults = methods.get("gce").training_defaults
        self.assertEqual((defaults["steps"], defaults["learning_rate"]), (120 * 391, 0.01))


if __name__ == "__main__":
    absltest.main()
