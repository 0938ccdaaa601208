# SPDX-License-Identifier: Apache-2.0
"""ELR's targets, terms and gradient by hand, and the labels that it finds."""

import look_up
import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy import methods

PROBS = [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]


def make(given_labels=(0, 1), **kwargs):
    return look_up.make("elr", PROBS, given_labels, **kwargs)


class TermsTest(absltest.TestCase):
    def test_terms_by_hand(self):
        learner = make()
        outcome = look_up.step(learner, [0, 1])
        self.assertAlmostEqual(outcome["supervised_loss"], 1.406705, places=5)  # -ln 0.06 / 2
        # <t, p> = 0.3 * 0.38 and 0.3 * 0.46: 3 (ln 0.886 + ln 0.862) / 2. With the target from
        # before it would be 0, with p itself for a target -1.6413.
        self.assertAlmostEqual(outcome["early_learning_loss"], -0.404308, places=5)
        np.testing.assert_allclose(learner.targets, 0.3 * np.array(PROBS), atol=1e-6)
        learner.network.set_weights([np.log(np.array(PROBS[::-1], "float32"))])
        outcome = look_up.step(learner, [0])
        # t = 0.7 * 0.3 (0.2, 0.3, 0.5) + 0.3 (0.6, 0.3, 0.1): 3 ln(1 - <t, p>).
        np.testing.assert_allclose(learner.targets[0], [0.222, 0.153, 0.135], atol=1e-6)
        np.testing.assert_allclose(learner.targets[1], 0.3 * np.array(PROBS[1]), atol=1e-6)
        self.assertAlmostEqual(outcome["early_learning_loss"], -0.641808, places=5)

    def test_gradient_by_hand(self):
        learner = make(early_learning_weight=2.0, target_momentum=0.5)
        gradient = toy.table_gradient(learner)
        # (p - one_hot - 2 p (t - <t, p>) / (1 - <t, p>)) / 2 of t = p / 2; through t too, the
        # second part would be twice as large.
        probs = np.array(PROBS)
        agreement = 0.5 * np.sum(probs**2, axis=1, keepdims=True)
        part = probs * (0.5 * probs - agreement) / (1 - agreement)
        expected = (probs - [[1, 0, 0], [0, 1, 0]] - 2 * part) / 2
        np.testing.assert_allclose(gradient, expected, atol=1e-5)

    def test_a_certain_prediction_stays_finite(self):
        learner = make(target_momentum=0.0)
        learner.network.set_weights([np.array([[500.0, 0, 0], [0, 500, 0]], "float32")])
        outcome = look_up.step(learner, [0, 1])
        # p = (0.9999, 0.0001, 0.0001), normalized for a target: 3 ln 0.00029994.
        self.assertAlmostEqual(outcome["early_learning_loss"], -24.3358, places=2)
        self.assertTrue(np.isfinite(toy.table_gradient(learner)).all())

    def test_an_example_twice_in_a_batch_keeps_its_last_target(self):
        learner = make()
        views = iter([0.0, 1.0])
        learner.weak_view = lambda images, indices: (
            images + np.reshape(np.array([next(views), next(views)], "float32"), (2, 1, 1, 1))
        )
        look_up.step(learner, [0, 0])
        np.testing.assert_allclose(learner.targets[0], 0.3 * np.array(PROBS[1]), atol=1e-6)
        np.testing.assert_array_equal(learner.targets[1], 0)

    def test_defaults_are_the_authors(self):
        arguments = methods.arguments("elr")
        names = ("target_momentum", "early_learning_weight", "weight_decay", "batch_size")
        self.assertEqual([arguments[n].default for n in names], [0.7, 3.0, 1e-3, 128])
        defaults = methods.get("elr").training_defaults
        self.assertEqual((defaults["steps"], defaults["learning_rate"]), (150 * 391, 0.02))


class DetectionTest(absltest.TestCase):
    def test_a_label_is_wrong_where_the_target_has_another_class(self):
        learner = look_up.make("elr", [*PROBS, *PROBS], [2, 1, -1, 0])
        look_up.step(learner, [0, 1])
        score, flagged = learner.detected()["elr"]
        # 0.3 times 0.3 - 0.5 and 0.6 - 0.3; unlabeled, and never seen.
        np.testing.assert_allclose(score, [0.47, 0.545, np.nan, np.nan], atol=1e-6)
        np.testing.assert_array_equal(flagged, [False, True, False, False])


if __name__ == "__main__":
    absltest.main()
