# SPDX-License-Identifier: Apache-2.0
"""PLS-LSA by hand: its targets and weights, its detectors and their turns, and its losses."""

from unittest import mock

import look_up
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops
from sklearn.mixture import GaussianMixture

from ssl_noisy import augment, losses, methods
from ssl_noisy.labels import mixture
from ssl_noisy.methods import pls_lsa

FIRST = [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5]]
SECOND = [[0.4, 0.6], [0.8, 0.2], [0.6, 0.4], [0.9, 0.1]]
GIVEN = [0, 1, 0, 1]
GUESSED = np.array([0.36, 0.16]) / 0.52  # (0.6, 0.4), squared and normalized


def make(step=3, is_wrong=(0, 1, 0, 0), trust=(1, 0.25, 1, 1), probs=FIRST, second=None, **kwargs):
    """Returns a learner within its second pass of two steps, which mixes nothing."""
    kwargs = {"mixup_alpha": 0.0, "batch_size": 2, "two_networks": second is not None, **kwargs}
    learner = look_up.make("pls_lsa", probs, GIVEN, second, steps=100, **kwargs)
    learner.strong_view = learner.contrastive_view = lambda images: images
    learner.detect = lambda: None
    learner.is_wrong.assign(np.array(is_wrong, "int8"))
    learner.trust.assign(np.array(trust, "float32"))
    learner.step.assign(step)
    return learner


def cross_entropy(soft, probs):
    return -sum(s * np.log(p) for s, p in zip(soft, probs))


def contrasted(learner, labeled=(0, 1)):
    """Returns the targets of the contrastive loss of a step."""
    with mock.patch.object(losses, "soft_contrastive", wraps=losses.soft_contrastive) as loss:
        look_up.step(learner, labeled)
    return np.array(loss.call_args.args[2])


def mixing(share):
    """Replaces the drawing of partners in a batch of two, and of the share."""
    drawn = mock.Mock(return_value=(np.array([1, 0]), np.full(2, share, "float32")))
    return mock.patch.object(augment, "mixing", drawn)


class LossesTest(absltest.TestCase):
    def test_a_wrong_label_gives_way_to_a_sharpened_and_weighted_guess(self):
        outcome = look_up.step(make(), [0, 1])
        expected = -np.log(0.8) + 0.25 * cross_entropy(GUESSED, FIRST[1])
        self.assertAlmostEqual(outcome["supervised_loss"], expected / 1.25, places=5)
        self.assertEqual((outcome["kept_rate"], outcome["trust"]), (0.5, 0.625))

    def test_both_images_of_a_mixture_bring_their_weights(self):
        with mixing(0.7):
            outcome = look_up.step(make(mixup_alpha=1.0), [0, 1])
        # Both mixtures, of pixels 0.3 and 0.7, are answered with row 0.
        own, other = -np.log(0.8), 0.25 * cross_entropy(GUESSED, FIRST[0])
        expected = (0.7 * own + 0.3 * other + 0.7 * other + 0.3 * own) / 1.25
        self.assertAlmostEqual(outcome["supervised_loss"], expected, places=5)

    def test_one_share_mixes_the_batch_and_the_own_image_prevails(self):
        with mock.patch.object(augment, "mixing", wraps=augment.mixing) as drawn:
            look_up.step(make(mixup_alpha=1.0), [0, 1])
        self.assertEqual(drawn.call_args.kwargs, {"alpha": 1.0, "keep_larger": True})

    def test_the_warm_up_is_on_given_labels(self):
        expected = -(np.log(0.8) + np.log(0.4)) / 2
        for step, warmup_end in ((1, 0.0), (9, 0.1)):  # in the first pass; before a tenth
            outcome = look_up.step(make(step, warmup_end=warmup_end, prior_weight=1.0), [0, 1])
            self.assertAlmostEqual(outcome["supervised_loss"], expected, places=5)
            self.assertEqual(outcome["contrastive_loss"], 0.0)
            self.assertEqual((outcome["kept_rate"], outcome["trust"]), (1.0, 1.0))
        outcome = look_up.step(make(11, warmup_end=0.1), [0, 1])
        self.assertEqual(outcome["kept_rate"], 0.5)

    def test_the_prior_loss_counts_where_asked_for(self):
        plain, more = (
            look_up.step(make(prior_weight=weight), [0, 1])["supervised_loss"]
            for weight in (0.0, 2.0)
        )
        # Of h = (0.7, 0.3).
        self.assertAlmostEqual(more - plain, -np.log(0.7) - np.log(0.3), places=5)

    def test_contrastive_targets_are_of_current_labels(self):
        # The guess moves example 1 to the class of example 0.
        np.testing.assert_allclose(contrasted(make()), np.full((2, 2), 0.5))
        np.testing.assert_allclose(contrasted(make(is_wrong=[0] * 4)), np.eye(2))
        with mixing(0.7):
            found = contrasted(make(is_wrong=[0] * 4, mixup_alpha=1.0))
        np.testing.assert_allclose(found, [[0.7, 0.3], [0.3, 0.7]], rtol=1e-6)

    def test_what_each_view_is_for(self):
        probs = [*FIRST[:2], [0.9, 0.1], [0.1, 0.9]]
        learner = make(probs=probs)
        views = iter([0.0, 2.0])
        learner.weak_view = lambda images, indices: images + next(views)
        learner.strong_view = lambda images: images + 1
        with mock.patch.object(augment, "mix", wraps=augment.mix) as mix:
            outcome = look_up.step(learner, [0, 1])
        # Example 0 in the first weak view, example 1 in its strong one, labeled by the second.
        np.testing.assert_array_equal(np.ravel(mix.call_args_list[0].args[0]), [0, 2])
        guess = np.array([0.01, 0.81]) / 0.82
        expected = -np.log(0.8) + 0.25 * cross_entropy(guess, probs[2])
        self.assertAlmostEqual(outcome["supervised_loss"], expected / 1.25, places=5)

    def test_strong_and_contrastive_views_are_crops_of_one_range(self):
        task, _ = toy.task()
        learner = methods.get("pls_lsa")(toy.network(), task, smallest_crop=0.3, batch_size=4)
        with (
            mock.patch.object(augment, "strong_view") as strong,
            mock.patch.object(augment, "contrastive_view") as contrastive,
        ):
            learner.strong_view("images")
            learner.contrastive_view("images")
        expected = {"flip": False, "crop_area": (0.3, 1.0)}
        self.assertEqual(contrastive.call_args.kwargs, expected)
        self.assertEqual(strong.call_args.kwargs, {"policy": "lsa", **expected})


class TwoNetworksTest(absltest.TestCase):
    def test_both_guess_together_after_the_warm_up(self):
        learner = make(second=SECOND)
        probs = [np.array(FIRST[:2]), np.array(SECOND[:2])]
        logits = [ops.convert_to_tensor(np.log(one).astype("float32")) for one in probs]
        mean = ((probs[0] + probs[1]) / 2) ** 2
        mean /= mean.sum(axis=1, keepdims=True)
        for found in learner.guesses(logits, False):
            np.testing.assert_allclose(found, mean, atol=1e-6)
        for found, own in zip(learner.guesses(logits, True), probs):
            expected = own**2 / np.sum(own**2, axis=1, keepdims=True)
            np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_each_compares_with_the_guess_of_the_other(self):
        learner = make(step=1, second=SECOND)
        look_up.step(learner, [0, 1])
        guess = np.array([0.16, 0.36]) / 0.52  # of the second network for example 0
        found = np.array(learner.last_losses)[0]
        self.assertAlmostEqual(found[0, 1], cross_entropy(guess, FIRST[0]), places=5)
        np.testing.assert_allclose(found[:, 0], -np.log([0.8, 0.4]), atol=1e-5)

    def test_a_label_is_wrong_if_both_say_so(self):
        learner = make(step=4, second=SECOND, detector="loss")
        del learner.detect
        found = [
            (np.zeros((4, 2)), np.array([1, 1, 0, 0]), np.array([0.2, 0.4, 1.0, 1.0])),
            (np.ones((4, 2)), np.array([1, 0, 1, 0]), np.array([0.6, 1.0, 0.5, 1.0])),
        ]
        found = [
            (probs.astype("float32"), ops.convert_to_tensor(wrong > 0), trust.astype("float32"))
            for probs, wrong, trust in found
        ]
        with mock.patch.object(learner, "found", side_effect=found):
            learner.detect()
        np.testing.assert_array_equal(learner.is_wrong, [1, 0, 0, 0])
        np.testing.assert_allclose(learner.trust, [0.4, 1, 1, 1], rtol=1e-6)

    def test_a_sum_needs_two(self):
        with self.assertRaisesRegex(ValueError, "`sum_networks`.*False without two_networks"):
            methods.check("pls_lsa", sum_networks=True)
        self.assertLen(make().networks, 1)
        learner = make(second=SECOND, sum_networks=True)
        expected = np.log(np.array(FIRST[0]) * SECOND[0])[None]
        np.testing.assert_allclose(learner(np.zeros((1, 1, 1, 1))), expected, atol=1e-5)


class DetectionTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        rows = np.tile([[0.5, 0.5]], (12, 1))
        # Labels of 6 to 11 are wrong. By the losses, so is that of 5, and that of 6 is right.
        self.is_wrong = np.arange(12) >= 6
        self.by_loss = np.array([0] * 5 + [1, 0] + [1] * 5, bool)
        self.features = np.where(self.is_wrong, 1.0, -1.0) + 0.01 * (np.arange(12) % 3)
        self.make = lambda **kwargs: look_up.make(
            "pls_lsa", rows, [0] * 12, steps=100, batch_size=6, **kwargs
        )

    def found(self, is_linear, seen=slice(None), **kwargs):
        """Returns what a detector finds in losses, of which only those of `seen` are known."""
        last = np.full((12, 2), pls_lsa.UNKNOWN)
        last[seen] = np.where(self.by_loss, 4.0, 0.1)[seen, None]
        last[:, 1] += 0.02 * (np.arange(12) % 2)
        tensors = [
            ops.convert_to_tensor(one.astype("float32"))
            for one in (last, self.features[:, None], np.full(12, 0.25))
        ]
        return [np.array(one) for one in self.make(**kwargs).found(*tensors, is_linear)]

    def test_each_detector(self):
        probs, is_wrong, trust = self.found(False, detector="loss")
        np.testing.assert_array_equal(is_wrong, self.by_loss)
        np.testing.assert_allclose(probs[:, 0], self.by_loss, atol=1e-3)
        np.testing.assert_array_equal(probs[:, 1], np.full(12, 0.25))  # as it was
        np.testing.assert_array_equal(trust[~self.by_loss], np.ones(6))

    def test_a_line_irons_out_what_losses_get_wrong(self):
        probs, is_wrong, _ = self.found(True)
        np.testing.assert_array_equal(is_wrong, self.is_wrong)
        np.testing.assert_allclose(probs[:, 0], self.by_loss, atol=1e-3)
        # 5 of 6 examples of each side are on it by their losses.
        np.testing.assert_allclose(probs[:, 1], np.where(self.is_wrong, 5 / 6, 1 / 6), atol=0.02)

    @parameterized.parameters(
        ("alternating", "-llbbll"), ("loss", "-bbbbbb"), ("linear", "-llllll")
    )
    def test_turns(self, detector, expected):
        """After the first pass of two steps comes the line, `l`, then the losses, `b`."""
        learner = self.make(detector=detector)

        def found(last, features, before, is_linear):
            is_wrong = ops.where(is_linear, self.is_wrong, self.by_loss)
            return ops.zeros((12, 2)), is_wrong, ops.full((12,), 0.5)

        learner.found, seen = found, ""
        kinds = {(0,) * 12: "-", (*self.is_wrong,): "l", (*self.by_loss,): "b"}
        for step in (0, 2, 3, 4, 5, 6, 7):
            learner.step.assign(step)
            learner.detect()
            seen += kinds[(*(np.array(learner.is_wrong) > 0),)]
        self.assertEqual(seen, expected)
        np.testing.assert_array_equal(np.array(learner.trust) < 1, np.array(learner.is_wrong) > 0)

    def test_what_is_reported(self):
        learner = self.make()
        self.assertTrue(np.isnan(learner.image_statistics()["trust"]).all())
        for score, flagged in learner.detected().values():
            self.assertTrue(np.isnan(score).all())
            self.assertFalse(flagged.any())
        probs = np.tile([[0.96, 0.4]], (12, 1))
        probs[0], probs[1], probs[2] = (0.94, 0.6), (0.2, pls_lsa.UNKNOWN), pls_lsa.UNKNOWN
        learner.wrong_probs.assign(probs[:, None])
        learner.trust.assign(np.arange(12) / 12)
        found = learner.detected()
        self.assertEqual(list(found), ["pls_lsa_loss", "pls_lsa_linear"])
        score, flagged = found["pls_lsa_loss"]
        np.testing.assert_allclose(score[:4], [0.94, 0.2, np.nan, 0.96], rtol=1e-6)
        self.assertEqual(flagged[:4].tolist(), [False, False, False, True])
        score, flagged = found["pls_lsa_linear"]
        np.testing.assert_allclose(score[:4], [0.6, np.nan, np.nan, 0.4], rtol=1e-6)
        self.assertEqual(flagged[:4].tolist(), [True, False, False, False])
        trust = learner.image_statistics()["trust"]
        np.testing.assert_allclose(trust[:4], [0, 1 / 12, np.nan, 3 / 12], rtol=1e-6)

    def test_an_example_that_was_not_seen_is_left_alone(self):
        probs, is_wrong, trust = self.found(True, seen=slice(1, 11), detector="linear")
        np.testing.assert_array_equal(probs[[0, 11]], np.full((2, 2), pls_lsa.UNKNOWN))
        self.assertTrue((probs[1:11] >= 0).all())
        np.testing.assert_array_equal(is_wrong[1:11], self.is_wrong[1:11])
        self.assertFalse(is_wrong[[0, 11]].any())
        np.testing.assert_array_equal(trust[[0, 11]], [1, 1])

    def test_losses_and_features_of_plain_images_are_kept(self):
        plain = [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5], [0.5, 0.5]]
        with mock.patch.object(toy, "LookUp", look_up.ModeLookUp):
            learner = look_up.make("pls_lsa", FIRST + plain, GIVEN * 2, steps=100, batch_size=2)
        learner.strong_view = learner.contrastive_view = lambda images: images
        learner.detect = lambda: None
        look_up.step(learner, [0, 1])
        guesses = np.array([np.array([0.64, 0.04]) / 0.68, GUESSED])
        expected = [
            [-np.log(0.9), cross_entropy(guesses[0], plain[0])],
            [-np.log(0.7), cross_entropy(guesses[1], plain[1])],
        ]
        np.testing.assert_allclose(np.array(learner.last_losses)[:2, 0], expected, atol=1e-5)
        np.testing.assert_array_equal(np.array(learner.last_losses)[2:], pls_lsa.UNKNOWN)
        # The feature is the pixel: 0, and 1 of length 1.
        np.testing.assert_array_equal(np.ravel(learner.features)[:3], [0, 1, 0])

    def test_a_network_with_fewer_stages(self):
        with self.assertLogs(level="WARNING") as logs:
            self.make(feature_stage=3)
        self.assertIn("has fewer than feature_stage=3 stages", logs.output[0])
        with self.assertNoLogs(level="WARNING"):
            self.make(feature_stage=3, detector="loss")
        learner, _ = toy.learner("pls_lsa", feature_stage=1, compiled=False)
        self.assertEqual(learner.features.shape[1:], (2, 8))  # channels, in two networks


class TrustTest(absltest.TestCase):
    def test_small_pseudo_losses_are_trusted(self):
        values = np.array([0.0, 0.1, 9.0, 0.2, 5.0, 5.1, 5.2, 0.1, 4.9], "float32")
        is_wrong = np.arange(9) != 2  # whose loss does not count
        found = np.array(pls_lsa.trusted(values, ops.convert_to_tensor(is_wrong)))
        np.testing.assert_allclose(found, [1, 1, 1, 1, 0, 0, 0, 1, 0], atol=1e-6)

    def test_it_is_the_mixture_of_the_authors(self):
        rng = np.random.default_rng(0)
        values = np.concatenate([rng.gamma(2, 0.2, 400), rng.normal(2, 0.7, 300)])
        values = np.abs(values).astype("float32")
        x = ((values - values.min()) / np.ptp(values))[:, None]
        fitted = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(x)
        expected = fitted.predict_proba(x)[:, np.argmin(fitted.means_)]
        found = np.array(pls_lsa.trusted(values, ops.ones(700, bool)))
        self.assertLess(np.abs(found - expected).max(), 0.1)  # EM starts elsewhere
        self.assertBetween(np.mean((found > 0.05) & (found < 0.95)), 0.05, 0.9)

    def test_three_are_needed(self):
        values = np.array([0.0, 1.0, 2.0, 0.5], "float32")
        for count in (0, 2, 3):
            found = pls_lsa.trusted(values, ops.convert_to_tensor(np.arange(4) < count))
            self.assertEqual(bool(np.all(np.array(found) == 1)), count < 3)

    def test_what_is_infinite_is_not_scaled(self):
        x = mixture.scaled(np.array([1.0, np.inf, 3.0, 1.5], "float32"))
        np.testing.assert_array_equal(x, [0, np.inf, 1, 0.25])
        self.assertEqual(np.array(mixture.gaussian_posterior(x))[1], 0)


if __name__ == "__main__":
    absltest.main()
