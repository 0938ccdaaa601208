# SPDX-License-Identifier: Apache-2.0
"""mixup's loss by hand, and which of the two a mixture is a record of."""

from unittest import mock

import look_up
import numpy as np
from absl.testing import absltest

from ssl_noisy import augment, methods

PROBS = [[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]


def step(share):
    """Takes a step on examples 0, of label 0, and 4, of label 1, each mixed with the other."""
    learner = look_up.make("mixup", PROBS, [0, 0, 0, 0, 1])
    mixing = mock.Mock(return_value=(np.array([1, 0]), np.full(2, share, "float32")))
    with mock.patch.object(augment, "mixing", mixing):
        outcome = look_up.step(learner, [0, 4])
    return outcome, learner.example_record(), mixing


class MixupTest(absltest.TestCase):
    def test_loss_by_hand(self):
        # The mixtures are pixels 3 and 1: (-0.25 ln 0.7 - 0.75 ln 0.3 - 0.25 ln 0.1 - 0.75 ln 0.9)
        # / 2. With the labels unmixed 1.3297, with their shares the wrong way 1.1609.
        self.assertAlmostEqual(step(0.25)[0]["mixed_loss"], 0.823407, places=5)

    def test_the_record_is_of_the_example_that_prevails(self):
        _, record, _ = step(0.25)
        # Pixel 3 is of example 4 for the most part, pixel 1 of example 0.
        expected = [-np.log(0.9), np.nan, np.nan, np.nan, -np.log(0.3)]
        np.testing.assert_allclose(record["loss"], expected, atol=1e-5)
        _, record, _ = step(0.75)
        expected = [-np.log(0.9), np.nan, np.nan, np.nan, -np.log(0.3)]
        np.testing.assert_allclose(record["loss"], expected, atol=1e-5)
        _, record, _ = step(1.0)
        expected = [-np.log(0.5), np.nan, np.nan, np.nan, -np.log(0.4)]
        np.testing.assert_allclose(record["loss"], expected, atol=1e-5)

    def test_one_share_mixes_the_whole_batch_and_may_be_the_smaller(self):
        _, _, mixing = step(0.5)
        self.assertEqual(mixing.call_args.args[0], 2)
        self.assertEqual(mixing.call_args.kwargs, {"alpha": 1.0})

    def test_defaults_are_the_authors(self):
        arguments = methods.arguments("mixup")
        names = ("batch_size", "weight_decay", "decayed", "ema_momentum")
        self.assertEqual([arguments[n].default for n in names], [128, 1e-4, "all", 0.0])
        defaults = methods.get("mixup").training_defaults
        self.assertEqual((defaults["steps"], defaults["steps_per_epoch"]), (200 * 391, 391))
        self.assertEqual((defaults["learning_rate"], defaults["momentum"]), (0.1, 0.9))
        self.assertEqual((defaults["schedule"], defaults["nesterov"]), ("drops_1_2_3_4", False))


if __name__ == "__main__":
    absltest.main()
