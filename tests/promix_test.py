# SPDX-License-Identifier: Apache-2.0
"""ProMix by hand: which labels each network selects and guesses, its losses and its margins."""

from unittest import mock

import look_up
import numpy as np
import toy
from absl.testing import absltest, parameterized

from ssl_noisy import augment, methods
from ssl_noisy.methods import promix

FIRST = [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
SECOND = [[0.2, 0.8], [0.9, 0.1], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6]]
GIVEN = [0, 0, 0, 0, 1, 1]


def make(step=7, small=None, probs=(FIRST, SECOND), given=GIVEN, **kwargs):
    """Returns a learner past its warm-up that mixes nothing, at a step without a selection.

    Two examples a step, three steps a pass. `small` is what the last selection found.
    """
    plain = {"warmup_end": 0.0, "weight_ramp_end": 0.0, "mixup_alpha": 0.0, "fmix_alpha": 0.0}
    kwargs = {**plain, "batch_size": 2, "guess_fraction": 0.0, **kwargs}
    learner = look_up.make("promix", probs[0], given, probs[1], steps=100, **kwargs)
    learner.strong_view = lambda images: images
    learner.is_small.assign(np.ones((len(given), 2)) if small is None else small)
    learner.step.assign(step)
    return learner


def log(*values):
    """Returns minus the sum of the logarithms."""
    return -sum(np.log(values))


class SmallLossesTest(absltest.TestCase):
    def test_each_network_selects_as_many_of_each_class_for_itself(self):
        learner = make(step=6)
        learner.last_losses.assign(-np.log(np.stack([of_given(FIRST), of_given(SECOND)], axis=1)))
        look_up.step(learner, [0, 1])
        # Half of 6 labels in 2 classes: 1.5, rounded up. Class 0: 0.9 and 0.7, 0.9 and 0.8.
        expected = [[1, 0], [0, 1], [1, 0], [0, 1], [1, 1], [1, 1]]
        np.testing.assert_array_equal(learner.is_small, expected)

    def test_the_number_of_a_class_is_that_of_all_labels_by_classes(self):
        for fraction, expected in ((0.1, 1), (0.34, 2), (2 / 3, 2), (0.7, 3), (1.0, 3)):
            learner = make(step=6, selection_fraction=fraction)
            learner.last_losses.assign(np.arange(12.0).reshape(6, 2))
            look_up.step(learner, [0, 1])
            sizes = [
                int(np.sum(np.array(learner.is_small)[rows, 0])) for rows in (range(4), (4, 5))
            ]
            self.assertEqual(sizes, [expected, min(expected, 2)], fraction)

    def test_unlabeled_examples_do_not_count(self):
        learner = make(step=4, given=[0, 0, -1, -1, 1, 1], selection_fraction=0.5)  # 2 steps a pass
        learner.last_losses.assign(np.arange(12.0).reshape(6, 2))
        look_up.step(learner, [4, 5])
        # 1 of each class. The losses of the batch are those of this step: -log 0.4 and -log 0.7.
        expected = [[1, 1], [0, 0], [0, 0], [0, 0], [0, 1], [1, 0]]
        np.testing.assert_array_equal(learner.is_small, expected)

    def test_it_is_made_at_the_first_step_of_each_pass_but_the_first(self):
        before = np.zeros((6, 2))
        for at, is_made in ((0, False), (1, False), (3, True), (4, False), (5, False), (6, True)):
            learner = make(step=at, small=before)
            look_up.step(learner, [0, 1])
            self.assertEqual(np.any(learner.is_small != before), is_made, at)

    def test_in_the_first_pass_all_labels_are_selected(self):
        learner = look_up.make("promix", FIRST, GIVEN, SECOND, steps=100, batch_size=2)
        learner.strong_view = lambda images: images
        for step in range(3):
            self.assertEqual(look_up.step(learner, [2 * step, 2 * step + 1])["kept_rate"], 1)

    def test_losses_are_of_plain_images_in_evaluation_mode(self):
        plain, other = [[0.5, 0.5], [0.25, 0.75]], [[0.3, 0.7], [0.2, 0.8]]
        with mock.patch.object(toy, "LookUp", look_up.ModeLookUp):
            learner = make(
                probs=[FIRST[:2] + plain, SECOND[:2] + other], given=[0, 1, -1, -1], batch_size=2
            )
        learner.weak_view = lambda images, indices: 1 - images
        look_up.step(learner, [0, 1])
        expected = -np.log([[0.5, 0.3], [0.75, 0.8]])
        np.testing.assert_allclose(learner.last_losses[:2], expected, atol=1e-5)
        # The record is of the first network's weak view in training mode.
        loss = learner.example_record()["loss"]
        np.testing.assert_allclose(loss[:2], -np.log([0.4, 0.1]), atol=1e-5)


def of_given(probs):
    return np.array(probs)[range(6), GIVEN]


class SelectionTest(parameterized.TestCase):
    def test_a_label_above_the_threshold_matches(self):
        probs = np.array([[0.5, 0.5], [0.25, 0.75], [0.75, 0.25], [0.25, 0.75]], "float32")
        matched = promix.matched(np.array([0, 1, 1, 1]), probs, 0.5)
        np.testing.assert_array_equal(matched, [False, True, False, True])
        matched = promix.matched(np.array([0, 1, 1, 1]), probs, 0.75)
        np.testing.assert_array_equal(matched, [False] * 4)

    def test_networks_agree_where_both_are_sure_of_the_same_class(self):
        one = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.75, 0.25]], "float32")
        other = np.array([[0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [0.9, 0.1]], "float32")
        np.testing.assert_allclose(promix.agreed(one, other, 0.75), [0.85, 0, 0, 0], atol=1e-6)
        expected = [0.85, 0, 0.7, 0.825]
        np.testing.assert_allclose(promix.agreed(one, other, 0.5), expected, atol=1e-6)

    def test_each_network_selects_for_itself(self):
        # The first has the small loss of label 0, and is sure of none; the second of label 1.
        outcome = look_up.step(
            make(small=[[1, 0], [0, 1]] + [[0, 0]] * 4, selection_threshold=0.99), [0, 1]
        )
        self.assertEqual(outcome["kept_rate"], 0.5)
        self.assertAlmostEqual(outcome["supervised_loss"], log(0.9, 0.9), places=5)
        # Both are sure of their own label in addition where the threshold is lower, and not alone.
        for threshold, loss in ((0.95, log(0.9, 0.9)), (0.3, log(0.9, 0.4) / 2 + log(0.9))):
            learner = make(small=[[1, 0], [0, 1]] + [[0, 0]] * 4, selection_threshold=threshold)
            self.assertAlmostEqual(look_up.step(learner, [0, 1])["supervised_loss"], loss, places=5)

    @parameterized.parameters(
        # int(0.9 * 6) = 5, int(0.5 * 6) = 3 and int(0.34 * 6) = 2 of six, less those selected.
        ([], 0.9, [0, 1, 3, 4]),
        ([], 0.5, [0, 3, 4]),
        ([2], 0.5, [3, 4]),
        ([4], 0.5, [0, 3]),
        ([], 0.34, [3, 4]),
        ([2], 0.34, [4]),
        ([2, 5], 0.34, []),
        ([0, 1, 2, 3, 4, 5], 0.9, []),
    )
    def test_the_surest_are_guessed_until_there_are_enough(self, kept, fraction, expected):
        kept = np.isin(np.arange(6), kept)
        agreement = np.array([0.95, 0.94, 0.0, 0.98, 0.99, 0.0], "float32")
        learner = make(step=90, guess_fraction=fraction)
        guessed = learner.guessed(kept, agreement)
        self.assertEqual([*np.flatnonzero(guessed)], expected)

    def test_nothing_is_guessed_before_its_start(self):
        for at, expected in ((59, 0), (60, 1)):
            learner = make(step=at, guess_start=0.6, guess_fraction=0.9)
            guessed = learner.guessed(np.array([False, False]), np.array([0.9, 0.9], "float32"))
            self.assertEqual(np.sum(guessed), expected, at)

    def test_a_guess_is_the_label_that_both_networks_predict(self):
        both = [[0.1, 0.9], [0.8, 0.2]] + FIRST[2:], [[0.2, 0.8], [0.3, 0.7]] + SECOND[2:]
        learner = make(
            step=91,
            probs=both,
            small=np.zeros((6, 2)),
            selection_threshold=0.75,
            guess_start=0.9,
            guess_fraction=1.0,
        )
        outcome = look_up.step(learner, [0, 1])
        # Example 0, of label 0: both say 1. Example 1, of label 0: the first is sure of its label.
        expected = log(0.9, 0.8) / 2 + log(0.8)
        self.assertAlmostEqual(outcome["supervised_loss"], expected, places=5)
        self.assertEqual((outcome["kept_rate"], outcome["guessed_rate"]), (0.75, 0.5))


class TermsTest(parameterized.TestCase):
    def test_they_are_means_over_the_selected(self):
        learner = make(small=[[1, 0], [0, 0], [1, 1]] + [[0, 0]] * 3, batch_size=3)
        learner.strong_view = lambda images: images + 3
        outcome = look_up.step(learner, [0, 1, 2])
        # The first selects 0 and 2, the second 2. Strong views are pixels 3 and 5.
        weak, strong = log(0.9, 0.7) / 2 + log(0.3), log(0.2, 0.3) / 2 + log(0.4)
        self.assertAlmostEqual(outcome["supervised_loss"], weak, places=5)
        self.assertAlmostEqual(outcome["strong_loss"], strong, places=5)
        # Mixed with nothing they are weak views.
        self.assertAlmostEqual(outcome["mixup_loss"], weak, places=5)
        self.assertAlmostEqual(outcome["fmix_loss"], weak, places=5)

    def test_mixtures_have_mixed_labels(self):
        def mixing(size, seed, *, alpha, keep_larger=False, kept=None):
            share = {4.0: 0.75, 1.0: 0.25}[alpha]
            self.assertEqual(keep_larger, alpha == 4.0)
            seen.append(np.array(kept))
            return np.array([1, 0]), np.full(2, share, "float32")

        seen = []
        learner = make(
            small=[[1, 1]] + [[0, 0]] * 3 + [[1, 0], [0, 0]], mixup_alpha=4.0, fmix_alpha=1.0
        )
        with (
            mock.patch.object(augment, "mixing", mixing),
            mock.patch.object(augment, "fmix", lambda images, *_: 0 * images + 3),
        ):
            outcome = look_up.step(learner, [0, 4])
        np.testing.assert_array_equal(seen, [[True, True]] * 2 + [[True, False]] * 2)
        # mixup: pixels 1 and 3. Of the second network only the first mixture counts.
        first = 0.75 * log(0.4) + 0.25 * log(0.6) + 0.75 * log(0.8) + 0.25 * log(0.2)
        second = 0.75 * log(0.9) + 0.25 * log(0.1)
        self.assertAlmostEqual(outcome["mixup_loss"], first / 2 + second, places=5)
        # FMix: pixel 3 twice.
        first = 0.25 * log(0.2) + 0.75 * log(0.8) + 0.25 * log(0.8) + 0.75 * log(0.2)
        second = 0.25 * log(0.8) + 0.75 * log(0.2)
        self.assertAlmostEqual(outcome["fmix_loss"], first / 2 + second, places=5)

    @parameterized.parameters((3, 0.0), (9, 0.0), (10, 0.5), (15, 0.75), (20, 1.0), (99, 1.0))
    def test_weights_rise_from_the_start_and_count_after_the_warmup(self, at, weight):
        learner = make(step=at, warmup_end=0.1, weight_ramp_end=0.2)
        outcome = look_up.step(learner, [0, 1])
        whole = log(0.9, 0.4, 0.2, 0.9) / 2
        self.assertAlmostEqual(outcome["supervised_loss"], whole, places=5)
        for name in ("strong_loss", "mixup_loss", "fmix_loss"):
            self.assertAlmostEqual(outcome[name], weight * whole, places=5, msg=name)

    def test_the_warmup_is_on_all_labels_and_may_ask_for_doubt(self):
        small = np.zeros((6, 2))
        entropies = sum(-p * np.log(p) for p in (0.9, 0.1, 0.4, 0.6, 0.2, 0.8, 0.9, 0.1)) / 2
        for penalty in (0.0, 0.5):
            learner = make(
                step=1, small=small, warmup_end=0.1, weight_ramp_end=0.2, warmup_penalty=penalty
            )
            outcome = look_up.step(learner, [0, 1])
            expected = log(0.9, 0.4, 0.2, 0.9) / 2 - penalty * entropies
            self.assertAlmostEqual(outcome["supervised_loss"], expected, places=5)
            self.assertEqual((outcome["kept_rate"], outcome["strong_loss"]), (1, 0))
        after = look_up.step(make(warmup_penalty=0.5), [0, 1])
        self.assertAlmostEqual(after["supervised_loss"], log(0.9, 0.4, 0.2, 0.9) / 2, places=5)

    def test_an_empty_selection_has_no_loss(self):
        learner = make(small=np.zeros((6, 2)), batch_size=6, step=0)
        outcome = look_up.step(learner, range(6))
        self.assertEqual([outcome[name] for name in learner.term_names], [0] * 4)


class DebiasTest(absltest.TestCase):
    def test_losses_are_of_logits_with_the_frequencies_of_the_classes(self):
        learner = make(debias=0.5)
        learner.class_averages.assign([[0.64, 0.36], [0.25, 0.75]])
        outcome = look_up.step(learner, [0, 1])
        # sqrt(0.64) : sqrt(0.36) = 8 : 6, so 0.9 : 0.1 becomes 72 : 6. Second: 1 : sqrt(3).
        first = log(72 / 78, 32 / 68) / 2
        second = log(0.2 / (0.2 + 0.8 * 3**0.5), 0.9 / (0.9 + 0.1 * 3**0.5)) / 2
        for name in learner.term_names:
            self.assertAlmostEqual(outcome[name], first + second, places=5, msg=name)

    def test_guesses_are_of_logits_without_them(self):
        same = [[0.3, 0.7]] * 2 + FIRST[2:]
        for debias, label in ((0.0, 1), (0.2, 1), (0.5, 0)):
            learner = make(
                step=91,
                probs=(same, same),
                small=np.zeros((6, 2)),
                given=[0, 0, 1, 1, 1, 1],
                selection_threshold=0.6,
                guess_start=0.0,
                guess_fraction=1.0,
                debias=debias,
            )
            learner.class_averages.assign([[0.1, 0.9]] * 2)
            with mock.patch.object(learner, "terms", wraps=learner.terms) as terms:
                look_up.step(learner, [0, 1])
            # 0.3 / 0.1^a : 0.7 / 0.9^a. At 0.5 it is 0.949 : 0.738, at 0.2 0.475 : 0.715.
            one_hot = terms.call_args.args[3]
            np.testing.assert_array_equal(one_hot, [np.eye(2)[label]] * 2)

    def test_the_average_is_of_predictions_on_the_selected(self):
        learner = make(step=91, small=[[1, 0], [0, 0]] + [[0, 0]] * 4, debias_momentum=0.5)
        learner.class_averages.assign([[0.5, 0.5], [0.3, 0.7]])
        look_up.step(learner, [0, 1])
        # (0.5 + 0.9) / 2. The second selected nothing.
        np.testing.assert_allclose(learner.class_averages, [[0.7, 0.3], [0.3, 0.7]], atol=1e-5)

    def test_it_begins_uniform_and_warms_up_after_the_warmup(self):
        learner = make(step=9, warmup_end=0.1, weight_ramp_end=0.1)
        look_up.step(learner, [0, 1])
        np.testing.assert_array_equal(learner.class_averages, np.full((2, 2), 0.5, "float32"))
        learner.step.assign(10)
        look_up.step(learner, [0, 1])
        # The first update keeps 2/11: of 0.65 and 0.55, the means of class 0.
        first = (2 * 0.5 + 9 * np.array([0.65, 0.55])) / 11
        np.testing.assert_allclose(learner.class_averages[:, 0], first, atol=1e-5)


class ProMixTest(absltest.TestCase):
    def test_no_gradient_flows_through_targets(self):
        # All rows pass in evaluation mode, and those that are not selected have no loss. The second
        # network selects nothing.
        learner = make(step=0, small=[[1, 0]] + [[0, 0]] * 5, batch_size=6)
        before = learner.second_network.get_weights()[0]
        change = np.abs(toy.table_gradient(learner)).max(axis=1)
        self.assertGreater(change[0], 0.1)
        np.testing.assert_array_equal(change[1:], 0)
        np.testing.assert_array_equal(learner.second_network.get_weights()[0], before)

    def test_a_label_is_detected_by_the_mean_logits_of_both(self):
        learner = make()
        score, flagged = learner.detected()["promix"]
        self.assertTrue(np.isnan(score).all())
        self.assertFalse(flagged.any())
        look_up.step(learner, [0, 1])
        score, flagged = learner.detected()["promix"]
        # Example 0: sqrt(0.9 * 0.2) : sqrt(0.1 * 0.8) is 3 : 2. Example 1: sqrt(0.36 : 0.06).
        np.testing.assert_allclose(score[:2], [0.4, 1 / (1 + 6**0.5)], atol=1e-5)
        np.testing.assert_array_equal(flagged, [False] * 6)
        look_up.step(learner, [3, 5])
        score, flagged = learner.detected()["promix"]
        # Example 3, of label 0: sqrt(0.2 * 0.8) : sqrt(0.8 * 0.2), equal. Example 5, of label 1.
        np.testing.assert_allclose(score[[3, 5]], [0.5, 1 / (1 + 3.5**0.5)], atol=1e-5)
        learner = make(given=[1, 1, 0, 0, 1, 1])
        look_up.step(learner, [0, 1])
        score, flagged = learner.detected()["promix"]
        np.testing.assert_allclose(score[:2], [0.6, 1 / (1 + 6**-0.5)], atol=1e-5)
        np.testing.assert_array_equal(flagged, [True, True] + [False] * 4)

    def test_defaults_are_the_authors(self):
        arguments = methods.arguments("promix")
        expected = {
            "selection_fraction": 0.5,
            "selection_threshold": 0.99,
            "guess_fraction": 0.9,
            "guess_start": 9 / 14,
            "debias": 0.0,
            "debias_momentum": 0.9999,
            "mixup_alpha": 4.0,
            "fmix_alpha": 1.0,
            "warmup_penalty": 0.0,
            "warmup_end": 1 / 42,
            "weight_ramp_end": 5 / 42,
            "batch_size": 256,
            "weight_decay": 5e-4,
            "decayed": "all",
            "ema_momentum": 0.0,
            "strong_augmentation": "torchssl",
        }
        self.assertEqual({name: arguments[name].default for name in expected}, expected)
        defaults = methods.get("promix").training_defaults
        self.assertEqual((defaults["steps"], defaults["steps_per_epoch"]), (420 * 195, 195))
        self.assertEqual(
            (defaults["learning_rate"], defaults["schedule"]), (0.05, "half_cosine_1_1000")
        )


if __name__ == "__main__":
    absltest.main()
