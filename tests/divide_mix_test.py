# SPDX-License-Identifier: Apache-2.0
"""DivideMix by hand: how labels are divided, refined, guessed and mixed, and the fit of losses."""

from unittest import mock

import look_up
import numpy as np
import toy
from absl.testing import absltest
from keras import ops

from ssl_noisy import augment, methods
from ssl_noisy.labels import mixture

FIRST = [[0.7, 0.3], [0.6, 0.4], [0.1, 0.9], [0.5, 0.5]]
SECOND = [[0.2, 0.8], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5]]
CLEAN = [[0.9, 0.4], [0.2, 0.8], [-1, -1], [-1, -1]]


def make(step=3, clean=CLEAN, probs=(FIRST, SECOND), **kwargs):
    """Returns a learner past its warm-up, two examples a step, at a step without a fit."""
    kwargs = {"ramp_start": 0.0, "ramp_end": 0.0, "mixup_alpha": 0.0, "batch_size": 2, **kwargs}
    given = [0, 1, 0, 0] + [-1] * (len(probs[0]) - 4)
    learner = look_up.make("divide_mix", probs[0], given, probs[1], steps=100, **kwargs)
    learner.clean_probs.assign(clean)
    learner.step.assign(step)
    return learner


def step(learner, labeled=(0, 1)):
    """Takes a step; returns its outcome, and images and soft labels that each network mixes."""
    with mock.patch.object(augment, "mix", wraps=augment.mix) as mix:
        outcome = look_up.step(learner, labeled)
    return outcome, [np.array(call.args[0]) for call in mix.call_args_list]


class TargetsTest(absltest.TestCase):
    def test_the_other_network_guesses_in_evaluation_mode(self):
        plain = [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]]
        of_second = [[0.4, 0.6], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]]
        with mock.patch.object(toy, "LookUp", look_up.ModeLookUp):
            learner = make(
                probs=[FIRST + plain, SECOND + of_second], clean=CLEAN + CLEAN, temperature=1.0
            )
        _, (_, first, _, second) = step(learner)
        # Guesses: (0.7 + 0.4) / 2 for the first, (0.8 + 0.3) / 2 for the second. The labels that
        # are kept are refined in training mode: 0.2 * 0.6, and 0.9 + 0.1 * 0.2.
        np.testing.assert_allclose(first[:2, 0], [0.55, 0.12], atol=1e-5)
        np.testing.assert_allclose(second[:2, 0], [0.92, 0.55], atol=1e-5)
        # So are the losses that divide the labels of the other.
        expected = -np.log([[0.9, 0.4], [0.7, 0.9]])
        np.testing.assert_allclose(learner.last_losses[:2], expected, atol=1e-5)
        loss = learner.example_record()["loss"]  # in training mode
        np.testing.assert_allclose(loss[:2], -np.log([0.7, 0.4]), atol=1e-5)

    def test_each_network_is_taught_what_the_other_divides(self):
        _, (_, first, _, second) = step(make())
        # The first takes w of the second: 0.4 leaves example 0 to the guess 0.45, 0.8 keeps the
        # label of example 1 and refines it to (0.12, 0.88) with its own 0.6. Both sharpened.
        expected = [[0.400990, 0.599010], [0.018256, 0.981744]]
        np.testing.assert_allclose(first, expected * 2, atol=1e-5)
        # The second takes w of the first: 0.9 keeps the label 0, (0.92, 0.08); the guess is 0.7.
        expected = [[0.992495, 0.007505], [0.844828, 0.155172]]
        np.testing.assert_allclose(second, expected * 2, atol=1e-5)

    def test_temperature_one_leaves_them(self):
        _, (_, first, _, _) = step(make(temperature=1.0))
        np.testing.assert_allclose(first, [[0.45, 0.55], [0.12, 0.88]] * 2, atol=1e-5)

    def test_predictions_are_means_over_both_views(self):
        learner = make(temperature=1.0)
        views = iter([0.0, 2.0])
        learner.weak_view = lambda images, indices: images + next(views)
        _, (images, first, _, second) = step(learner)
        np.testing.assert_array_equal(images.ravel(), [0, 1, 2, 3])
        # (0.7 + 0.1 + 0.2 + 0.3) / 4; of the first network 0.55, of the second 0.25 and 0.65.
        np.testing.assert_allclose(first[:2, 0], [0.325, 0.2 * 0.55], atol=1e-5)
        np.testing.assert_allclose(second[:2, 0], [0.9 + 0.1 * 0.25, 0.6], atol=1e-5)
        np.testing.assert_array_equal(first[2:], first[:2])

    def test_the_threshold_is_not_clean_itself(self):
        for threshold, expected in ((0.5, 0.5), (0.8, 0.25), (0.85, 0.25), (0.9, 0.0), (0.0, 1.0)):
            outcome, _ = step(make(clean_threshold=threshold))
            self.assertEqual(outcome["kept_rate"], expected, threshold)

    def test_what_no_fit_has_seen_is_unlabeled(self):
        outcome, (_, first, _, _) = step(make(), [2, 3])
        self.assertEqual((outcome["kept_rate"], outcome["supervised_loss"]), (0, 0))
        np.testing.assert_allclose(first[1], [0.5, 0.5], atol=1e-6)


class TermsTest(absltest.TestCase):
    def test_terms_by_hand(self):
        outcome, _ = step(make())
        # Cross-entropies of example 1 of the first network, 0 of the second.
        self.assertAlmostEqual(outcome["supervised_loss"], 2.507923, places=4)
        # 25 ((0.7 - 0.40099)^2 + (0.8 - 0.844828)^2), means over classes; their sum gives 4.5708.
        self.assertAlmostEqual(outcome["unsupervised_loss"], 2.285411, places=4)
        # Of h = (0.65, 0.35) and (0.5, 0.5).
        self.assertAlmostEqual(outcome["prior_loss"], 1.433450, places=5)
        self.assertEqual(outcome["kept_rate"], 0.5)

    def test_mixtures_count_as_the_one_that_prevails(self):
        mixing = mock.Mock(return_value=(np.array([1, 0, 3, 2]), np.full(4, 0.5, "float32")))
        clean = [[1, 1], [-1, -1], [0.2, 0.2], [-1, -1]]
        learner = make(clean=clean, unsupervised_weight=1.0, temperature=1.0)
        with mock.patch.object(augment, "mixing", mixing):
            outcome = look_up.step(learner, [0, 2])
        # All are pixel 1, 0.6 and 0.8. Label 0 mixed with the guess (0.1 + 0.3) / 2 is 0.6.
        expected = -0.6 * np.log(0.6 * 0.8) - 0.4 * np.log(0.4 * 0.2)
        self.assertAlmostEqual(outcome["supervised_loss"], expected, places=5)
        self.assertAlmostEqual(outcome["unsupervised_loss"], 0.2**2, places=5)
        self.assertEqual(mixing.call_args.args[0], 4)

    def test_one_share_mixes_the_batch_and_the_own_image_prevails(self):
        with mock.patch.object(augment, "mixing", wraps=augment.mixing) as mixing:
            step(make(mixup_alpha=4.0))
        self.assertLen(mixing.call_args_list, 2)
        self.assertEqual(mixing.call_args.kwargs, {"alpha": 4.0, "keep_larger": True})

    def test_an_empty_set_has_no_loss(self):
        for clean, term in ((1.0, "unsupervised_loss"), (0.0, "supervised_loss")):
            learner = make(clean=np.full((4, 2), clean))
            outcome, _ = step(learner)
            self.assertEqual(outcome[term], 0)
            self.assertTrue(np.isfinite(list(outcome.values())).all())
        self.assertTrue(np.isfinite(toy.table_gradient(learner)).all())

    def test_no_gradient_flows_through_targets(self):
        learner = make(clean=[[0.9, 0.4], [0.2, 0.8]] * 2, batch_size=4, step=1)
        before = [network.get_weights()[0] for network in learner.networks]
        as_last = lambda values, *_: values if len(values.shape) == 2 else 0 * values + 3  # noqa: E731
        with mock.patch.object(augment, "mix", as_last):
            toy.table_gradient(learner)
        for network, old in zip(learner.networks, before):
            change = np.abs(network.get_weights()[0] - old).max(axis=1)
            np.testing.assert_array_equal(change[:3], 0)
            self.assertGreater(change[3], 0.1)


class WarmupTest(absltest.TestCase):
    def test_it_takes_the_given_labels_and_mixes_nothing(self):
        outcome, (images, first, _, second) = step(
            make(step=1, ramp_start=0.1, ramp_end=0.2, mixup_alpha=4.0)
        )
        np.testing.assert_array_equal(first, [[1, 0], [0, 1]] * 2)
        np.testing.assert_array_equal(second, [[1, 0], [0, 1]] * 2)
        # -(ln 0.7 + ln 0.4 + ln 0.2 + ln 0.2) / 2.
        self.assertAlmostEqual(outcome["supervised_loss"], 2.245921, places=5)
        self.assertEqual((outcome["unsupervised_loss"], outcome["prior_loss"]), (0, 0))
        self.assertEqual(outcome["kept_rate"], 1)

    def test_it_lasts_a_pass_at_least(self):
        # Two of four examples a step: before step 2 there is no fit by which to leave labels out.
        for at, kept in ((0, 1), (1, 1), (3, 0)):
            outcome, _ = step(make(step=at, clean=np.full((4, 2), -1)))
            self.assertEqual((at, outcome["kept_rate"]), (at, kept))

    def test_it_ends_where_the_weight_begins_to_rise(self):
        seen = []
        for at in (1, 9, 11, 15, 21, 99):
            outcome, _ = step(make(step=at, ramp_start=0.1, ramp_end=0.2))
            # 2.285411 is the whole.
            seen.append(
                (outcome["prior_loss"] > 0, round(outcome["unsupervised_loss"] / 2.285411, 3))
            )
        expected = [(False, 0), (False, 0), (True, 0.1), (True, 0.5), (True, 1), (True, 1)]
        self.assertEqual(seen, expected)


class FitTest(absltest.TestCase):
    def test_losses_are_means_over_views_of_both_networks(self):
        learner = make()
        views = iter([0.0, 2.0])
        learner.weak_view = lambda images, indices: images + next(views)
        step(learner)
        expected = [[0.7 * 0.1, 0.2 * 0.3], [0.4 * 0.5, 0.2 * 0.5]]
        np.testing.assert_allclose(learner.last_losses[:2], -np.log(expected) / 2, atol=1e-5)
        np.testing.assert_array_equal(learner.last_losses[2:], -1)
        # The record is of the first network's first view.
        loss = learner.example_record()["loss"]
        np.testing.assert_allclose(loss[:2], -np.log([0.7, 0.4]), atol=1e-5)

    def test_it_is_made_at_the_first_step_of_a_pass_of_the_losses_known(self):
        def fitted(losses):  # tells what it was given
            known = ops.isfinite(losses)
            return ops.where(known, losses, 0.0) + ops.sum(ops.cast(known, "float32"))

        learner = make(step=0)
        with mock.patch.object(mixture, "gaussian_posterior", fitted):
            step(learner)
            # Of two losses known, scaled to [0, 1]; the second network's are equal.
            np.testing.assert_allclose(learner.clean_probs[:2], [[2, 2], [3, 2]], atol=1e-5)
            np.testing.assert_array_equal(learner.clean_probs[2:], -1)
            for at, is_fitted in ((1, False), (2, True), (3, False)):
                learner.clean_probs.assign(CLEAN)
                learner.step.assign(at)
                step(learner)
                is_changed = np.any(learner.clean_probs != np.array(CLEAN, "float32"))
                self.assertEqual(is_changed, is_fitted, at)

    def test_losses_are_scaled_then_averaged_over_the_passes_after_the_warmup(self):
        # Losses of 1, 2, 5, 4 times log(2), and so on: scaled to 0, 1/4, 1, 3/4.
        passes = 2.0 ** -np.array([[1, 2, 5, 4], [5, 1, 3, 2], [1, 5, 1, 3]])
        learner = look_up.make(
            "divide_mix", FIRST, [0] * 4, FIRST, steps=100, ramp_start=0.03, loss_window=2
        )
        with mock.patch.object(mixture, "gaussian_posterior", lambda x: x):
            for at, probs, expected in (
                (2, passes[0], [0, 0.25, 1, 0.75]),
                (3, passes[1], [1, 0, 0.5, 0.25]),  # the pass before was of the warm-up
                (4, passes[2], [0.5, 0.5, 0.25, 0.375]),
                (5, passes[0], [0, 0.625, 0.5, 0.625]),  # of two passes, not of three
            ):
                learner.network.set_weights([np.log(np.stack([probs, 1 - probs], axis=1))])
                learner.step.assign(at)
                look_up.step(learner, range(4))
                np.testing.assert_allclose(learner.clean_probs[:, 0], expected, atol=1e-5)

    def test_two_groups_of_losses_are_told_apart(self):
        probs = [[0.9, 0.1], [0.1, 0.9]] * 20
        learner = look_up.make("divide_mix", probs, [0] * 39 + [-1], probs, steps=100)
        look_up.step(learner, range(39))
        clean = np.array(learner.clean_probs)
        self.assertGreater(clean[:39:2].min(), 0.99)
        self.assertLess(clean[1:39:2].max(), 0.01)
        np.testing.assert_array_equal(clean[39], -1)
        score, flagged = learner.detected()["divide_mix"]
        np.testing.assert_array_equal(flagged, [False, True] * 19 + [False, False])
        self.assertGreater(score[1], 0.99)
        self.assertTrue(np.isnan(score[39]))

    def test_a_label_is_detected_by_the_mean_of_both(self):
        learner = make(clean=[[0.9, 0.0], [0.9, 0.2], [0.2, 0.2], [-1, -1]])
        score, flagged = learner.detected()["divide_mix"]
        np.testing.assert_allclose(score, [0.55, 0.45, 0.8, np.nan], atol=1e-6)
        np.testing.assert_array_equal(flagged, [True, False, True, False])

    def test_defaults_are_the_authors(self):
        arguments = methods.arguments("divide_mix")
        names = ("clean_threshold", "temperature", "mixup_alpha", "unsupervised_weight")
        self.assertEqual([arguments[n].default for n in names], [0.5, 0.5, 4.0, 25.0])
        names = ("ramp_start", "ramp_end", "batch_size", "weight_decay")
        expected = [10 / 300, 26 / 300, 128, 5e-4]
        self.assertEqual([arguments.get(n).default for n in names], expected)
        defaults = methods.get("divide_mix").training_defaults
        self.assertEqual((defaults["steps"], defaults["learning_rate"]), (300 * 391, 0.02))


if __name__ == "__main__":
    absltest.main()
