# SPDX-License-Identifier: Apache-2.0
"""CrossSplit by hand: the split, doubts in labels, targets, the four losses and the warm-up."""

from unittest import mock

import keras
import look_up
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import augment, losses, methods
from ssl_noisy.methods import cross_split

FIRST = [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5], [0.1, 0.9], [0.5, 0.5]]
SECOND = [[0.5, 0.5], [0.2, 0.8], [0.6, 0.4], [0.9, 0.1], [0.5, 0.5], [0.4, 0.6]]
GIVEN = [0, 1, 0, 1, -1, -1]
# The Jensen-Shannon divergence of a label and a prediction that gives it this probability.
DIVERGENCES = {0.3: 0.342015, 0.4: 0.274359, 0.5: 0.215762, 0.8: 0.074882}


def make(step=51, probs=(FIRST, SECOND), given=GIVEN, **kwargs):
    """Returns a learner past its warm-up that mixes nothing, at a step within a pass of two."""
    plain = {"ramp_start": 0.0, "ramp_end": 0.0, "relaxation": 0.0, "mixup_alpha": 0.0}
    plain |= {"batch_size": 1, "unlabeled_batch_size": 1, "strong_augmentation": "paper"}
    learner = look_up.make("cross_split", probs[0], given, probs[1], steps=100, **plain | kwargs)
    learner.strong_view = lambda images: images
    learner.step.assign(step)
    return learner


def indices(labeled=(0, 1), second_labeled=(2, 3), unlabeled=(4,), second_unlabeled=(5,)):
    return {name: np.array(value, "int32") for name, value in locals().items()}


def take(learner, **positions):
    """Returns terms and monitors of a step on the `indices`, as floats."""
    outcome = learner.objective(**indices(**positions))
    return {key: float(value) for key, value in {**outcome["terms"], **outcome["monitors"]}.items()}


def mixed(learner, **positions):
    """Returns the images and the targets that each network mixes, after a step."""
    with mock.patch.object(augment, "mix", wraps=augment.mix) as mix:
        take(learner, **positions)
    values = [np.array(call.args[0]) for call in mix.call_args_list]
    targets, images = values[::2], values[1::2]
    return [np.ravel(of_one) for of_one in images], targets


def set_ranges(learner, low, high):
    """Sets the range of divergences of all classes of both networks."""
    learner.ranges.assign(np.tile([[[low], [high]]], (2, 1, 2)).astype("float32"))


def entropy(soft, probs):
    return -sum(s * np.log(p) for s, p in zip(soft, probs))


class SplitTest(parameterized.TestCase):
    def made(self, num_labels=21, **kwargs):
        task, _ = toy.task(num_labels)
        return methods.get("cross_split")(toy.network(), task, **kwargs)

    def test_halves_are_disjoint_and_the_rest_is_unlabeled(self):
        pools = self.made().pools()
        first, second = pools["labeled"], pools["second_labeled"]
        self.assertEqual((len(first), len(second)), (11, 10))
        self.assertEqual(sorted([*first, *second]), list(range(21)))
        self.assertNotEqual(sorted(first), list(range(11)))
        for half, unlabeled in (
            (first, pools["unlabeled"]),
            (second, pools["second_unlabeled"]),
        ):
            self.assertEqual(sorted([*half, *unlabeled]), list(range(toy.NUM_EXAMPLES)))

    def test_the_seed_alone_decides_the_split(self):
        halves = [set(self.made(seed=seed).pools()["labeled"]) for seed in (3, 3, 4)]
        self.assertEqual(halves[0], halves[1])
        self.assertNotEqual(halves[0], halves[2])

    def test_without_a_split_both_have_all_labels_and_all_images(self):
        pools = self.made(split_labels=False).pools()
        for name in ("labeled", "second_labeled"):
            np.testing.assert_array_equal(pools[name], np.arange(21))
        for name in ("unlabeled", "second_unlabeled"):
            np.testing.assert_array_equal(pools[name], np.arange(toy.NUM_EXAMPLES))

    def test_a_pass_is_one_of_a_half(self):
        for split, size, steps in ((True, 4, 3), (True, 11, 1), (False, 4, 6), (False, 21, 1)):
            learner = self.made(split_labels=split, batch_size=size)
            self.assertEqual(learner.steps_per_pass(learner.task), steps)

    def test_one_label_cannot_be_split(self):
        with self.assertRaisesRegex(ValueError, "Label at least two images. Received: 1 labeled"):
            self.made(num_labels=1)
        self.made(num_labels=1, split_labels=False)

    def test_streams(self):
        learner = make(batch_size=3, unlabeled_batch_size=2)
        expected = {"labeled": 3, "second_labeled": 3, "unlabeled": 2, "second_unlabeled": 2}
        self.assertEqual(learner.streams(), expected)


class DoubtTest(parameterized.TestCase):
    def test_it_is_the_divergence_from_the_peers_prediction(self):
        learner = make()
        take(learner)
        # The second says 0.5 and 0.8 of the labels of 0 and 1, the first 0.3 and 0.5 of 2 and 3.
        unknown = cross_split.UNKNOWN
        expected = np.full((6, 2), unknown)
        expected[[0, 1], 0] = DIVERGENCES[0.5], DIVERGENCES[0.8]
        expected[[2, 3], 1] = DIVERGENCES[0.3], DIVERGENCES[0.5]
        np.testing.assert_allclose(learner.divergences, expected, atol=1e-5)

    def test_a_label_of_both_networks_has_two(self):
        learner = make(split_labels=False)
        take(learner, labeled=[0, 1], second_labeled=[1, 3])
        np.testing.assert_allclose(
            learner.divergences[1], [DIVERGENCES[0.8], DIVERGENCES[0.4]], atol=1e-5
        )

    def test_the_range_of_each_class_is_of_known_labels_of_it(self):
        divergences = np.array([0.3, 0.1, 0.5, -1, 0.2, 0.6], "float32")
        labels = np.array([0, 0, 1, 1, 0, -1], "int32")
        ranges = cross_split.class_ranges(divergences, labels, 3)
        np.testing.assert_allclose(ranges[:, :2], [[0.1, 0.5], [0.3, 0.5]], atol=1e-6)
        self.assertGreater(ranges[0, 2], ranges[1, 2])

    def test_divergences_are_scaled_by_the_range_of_their_class(self):
        ranges = np.array([[0.1, 0.5, 1.0], [0.3, 0.5, -1.0]], "float32")
        for label, divergence, expected in (
            *((0, 0.15, 0.25), (0, 0.3, 1.0), (0, 0.4, 1.0), (0, 0.05, 0.0)),
            *((1, 0.5, 0.5), (1, 0.2, 0.5), (2, 0.3, 0.5)),  # no range
        ):
            found = cross_split.scaled(np.array([divergence], "float32"), ranges, np.array([label]))
            self.assertAlmostEqual(float(found[0]), expected, places=5)

    def test_each_network_has_ranges_of_its_own(self):
        learner = make()
        learner.ranges.assign(np.array([[[0.0] * 2, [0.4] * 2], [[0.2] * 2, [0.6] * 2]], "float32"))
        labeled = learner.task.labeled[:1]
        for i, expected in ((0, 0.75), (1, 0.25)):  # (0.3 - 0) / 0.4 and (0.3 - 0.2) / 0.4
            found = learner.doubts(i, labeled, np.array([0.3], "float32"))
            np.testing.assert_allclose(found, [expected], atol=1e-6)

    def test_ranges_are_those_of_the_last_pass_at_the_start_of_one(self):
        before = np.array([[0.3, -1], [0.2, -1], [-1, 0.4], [-1, 0.1], [-1, -1], [-1, -1]])
        for at, is_due in ((0, True), (1, False), (50, True), (51, False)):
            learner = make(step=at)
            learner.divergences.assign(before)
            set_ranges(learner, 0.0, 0.6)
            take(learner)
            first, second = ([0.3, 0.2], [0.4, 0.1]) if is_due else (None, None)
            lows = [first, second] if is_due else [[0.0, 0.0]] * 2
            highs = [first, second] if is_due else [[0.6, 0.6]] * 2
            np.testing.assert_allclose(learner.ranges[:, 0], lows, atol=1e-6)
            np.testing.assert_allclose(learner.ranges[:, 1], highs, atol=1e-6)

    @parameterized.parameters(
        # b = 1/4. Half of it may count: 0.35 : 0.65 of (0.5, 0.5) and (1, 0), and so on.
        (20, 0.956942, 0.65),
        (39, 0.956942, 0.65),
        (41, 0.969799, 0.70),
        (49, 0.969799, 0.70),
        (51, 0.98, 0.75),
        (99, 0.98, 0.75),
    )
    def test_doubts_are_relaxed_after_the_warmup(self, at, target, weight):
        learner = make(step=at, batch_size=2, ramp_start=0.2, ramp_end=0.2, relaxation=0.1)
        learner.steps_per_pass = lambda task: 1000
        set_ranges(learner, DIVERGENCES[0.5] - 0.05, DIVERGENCES[0.5] + 0.15)
        with mock.patch.object(augment, "mix", wraps=augment.mix) as mix:
            outcome = take(learner, labeled=[0], second_labeled=[3])
        first, second = (np.array(mix.call_args_list[place].args[0]) for place in (0, 2))
        np.testing.assert_allclose(first[:2], [[target, 1 - target]] * 2, atol=1e-5)
        np.testing.assert_allclose(second[:2], [[1 - target, target]] * 2, atol=1e-5)
        self.assertAlmostEqual(outcome["label_weight"], weight, places=5)


class TargetsTest(absltest.TestCase):
    def test_targets_by_hand(self):
        images, (first, second) = mixed(make())
        np.testing.assert_array_equal(images, [[0, 1, 0, 1, 4, 4], [2, 3, 2, 3, 5, 5]])
        # Without a range doubts are 1/2. Labels 0 and 1 meet (0.5, 0.5) and (0.2, 0.8): squares of
        # 0.75 : 0.25 and 0.1 : 0.9. The first's own (0.1, 0.9) becomes 1 : 81.
        labeled = [[0.9, 0.1], [1 / 82, 81 / 82]]
        np.testing.assert_allclose(first, [*labeled * 2, *[[1 / 82, 81 / 82]] * 2], atol=1e-5)
        # Labels 0 and 1 meet (0.3, 0.7) and (0.5, 0.5). Its own (0.4, 0.6) becomes 4 : 9.
        labeled = [[169 / 218, 49 / 218], [0.1, 0.9]]
        np.testing.assert_allclose(second, [*labeled * 2, *[[4 / 13, 9 / 13]] * 2], atol=1e-5)

    def test_temperature_one_leaves_them(self):
        _, (first, _) = mixed(make(temperature=1.0))
        expected = [[0.75, 0.25], [0.1, 0.9]]
        np.testing.assert_allclose(first, [*expected * 2, *[[0.1, 0.9]] * 2], atol=1e-5)

    def test_predictions_are_means_over_two_weak_views(self):
        learner = make(temperature=1.0)
        counts = dict.fromkeys(cross_split.STREAMS, 0)

        def weak_view(images, positions, stream):
            counts[stream] += 1
            return images + counts[stream] - 1.0  # the image itself, then the next one

        learner.weak_view = weak_view
        _, (first, second) = mixed(learner, unlabeled=[3], second_unlabeled=[4])
        self.assertEqual(set(counts.values()), {2})
        # (0.5 + 0.2) / 2 and (0.2 + 0.6) / 2 of the second; (0.5 + 0.1) / 2 of the first.
        np.testing.assert_allclose(first[:2, 0], [0.5 + 0.35 / 2, 0.4 / 2], atol=1e-5)
        np.testing.assert_allclose(first[4:, 0], [0.3, 0.3], atol=1e-5)
        np.testing.assert_allclose(second[:2, 0], [0.5 + 0.4 / 2, 0.3 / 2], atol=1e-5)
        np.testing.assert_allclose(second[4:, 0], [0.45, 0.45], atol=1e-5)

    def test_a_network_guesses_in_training_mode_and_for_its_peer_in_evaluation_mode(self):
        plain, of_second = [[0.9, 0.1]] * 6, [[0.7, 0.3]] * 6
        with mock.patch.object(toy, "LookUp", look_up.ModeLookUp):
            learner = make(
                probs=[FIRST + plain, SECOND + of_second],
                given=GIVEN + [-1] * 6,
                temperature=1.0,
            )
        _, (first, second) = mixed(learner)
        np.testing.assert_allclose(first[:2, 0], [0.85, 0.35], atol=1e-5)
        np.testing.assert_allclose(second[:2, 0], [0.95, 0.45], atol=1e-5)
        np.testing.assert_allclose(first[4:, 0], 0.1, atol=1e-5)
        np.testing.assert_allclose(second[4:, 0], 0.4, atol=1e-5)
        # The record is of the peers' predictions.
        loss = learner.example_record()["loss"]
        np.testing.assert_allclose(loss[:4], -np.log([0.7, 0.3, 0.9, 0.1]), atol=1e-5)

    def test_without_a_split_each_label_is_recorded_once(self):
        learner = make(split_labels=False)
        take(learner, labeled=[0, 1], second_labeled=[0, 2])
        observations = learner.example_record()["observations"]
        np.testing.assert_array_equal(observations, [1, 1, 0, 0, 0, 0])


class TermsTest(parameterized.TestCase):
    def test_terms_by_hand(self):
        outcome = take(make())
        first = entropy([0.9, 0.1], FIRST[0]) + entropy([1 / 82, 81 / 82], FIRST[1])
        second = entropy([169 / 218, 49 / 218], SECOND[2]) + entropy([0.1, 0.9], SECOND[3])
        self.assertAlmostEqual(outcome["supervised_loss"], (first + second) / 2, places=5)
        # 30 ((0.1 - 1/82)^2 + (0.4 - 4/13)^2), means over classes and views.
        self.assertAlmostEqual(outcome["unsupervised_loss"], 0.486912, places=4)
        # Of h = (0.5, 0.5) and (19/30, 11/30).
        self.assertAlmostEqual(outcome["prior_loss"], 1.423179, places=5)
        self.assertEqual(outcome["label_weight"], 0.5)

    def test_mixtures_are_of_all_strong_views_and_count_as_the_one_that_prevails(self):
        partners = np.array([2, 5, 4, 3, 0, 1])
        mixing = mock.Mock(return_value=(partners, np.full(6, 0.75, "float32")))
        learner = make(mixup_alpha=4.0, temperature=1.0, unsupervised_weight=1.0)
        pixels = iter([np.repeat([0, 1, 2, 3, 4, 5] * 2, 1) * 1.0])
        learner.strong_view = lambda images: 0 * images + next(pixels).reshape(-1, 1, 1, 1)
        with (
            mock.patch.object(augment, "mixing", mixing),
            mock.patch.object(augment, "mix", wraps=augment.mix) as mix,
        ):
            outcome = take(learner)
        self.assertEqual(mixing.call_args.kwargs, {"alpha": 4.0, "keep_larger": True})
        self.assertEqual([call.args[0] for call in mixing.call_args_list], [6, 6])
        first, second = (np.ravel(mix.call_args_list[place].args[0]) for place in (1, 3))
        np.testing.assert_array_equal(first, [0, 1, 0, 1, 4, 4])
        np.testing.assert_array_equal(second, [2, 3, 2, 3, 5, 5])
        # Pixels 0, 1, 0 and 1, mixed with 0, 4, 4 and 1, are rounded down: 0, 1, 1 and 1. Those of
        # the unlabeled 4, mixed with 0 and 1, are both 3.
        targets = np.array([[0.75], [0.1], [0.75], [0.1], [0.1], [0.1]])
        targets = 0.75 * targets + 0.25 * targets[partners]
        seen = np.array(FIRST)[[0, 1, 1, 1, 3, 3]]
        soft = np.concatenate([targets, 1 - targets], axis=1)
        supervised = -np.sum(soft * np.log(seen), axis=1)[:4].mean()
        unsupervised = np.square(soft - seen)[4:].mean()
        targets = np.array([[0.65], [0.25], [0.65], [0.25], [0.4], [0.4]])
        targets = 0.75 * targets + 0.25 * targets[partners]
        # 2, 3, 2 and 3 with 2, 5, 5 and 3: 2, 3, 2 and 3. Of 5 with 2 and 3: 4 and 4.
        seen = np.array(SECOND)[[2, 3, 2, 3, 4, 4]]
        soft = np.concatenate([targets, 1 - targets], axis=1)
        supervised += -np.sum(soft * np.log(seen), axis=1)[:4].mean()
        unsupervised += np.square(soft - seen)[4:].mean()
        self.assertAlmostEqual(outcome["supervised_loss"], supervised, places=5)
        self.assertAlmostEqual(outcome["unsupervised_loss"], unsupervised, places=5)

    def test_the_contrastive_loss_is_of_projected_strong_views_of_unlabeled_images(self):
        learner = make(contrastive_weight=0.5, contrastive_temperature=0.2)
        shift = np.repeat([0.0, 1.0], 8).reshape(-1, 1, 1, 1)  # second views are of the next image
        learner.strong_view = lambda images: images + shift
        learner.projections = [lambda x, training: 10 * x, lambda x, training: x / 10]
        with mock.patch.object(losses, "contrastive", return_value=3.0) as contrastive:
            outcome = take(learner, unlabeled=[3, 4], second_unlabeled=[1, 2])
        first, second = ([np.ravel(x) for x in c.args[:2]] for c in contrastive.call_args_list)
        np.testing.assert_allclose(first, [[30, 40], [40, 50]], rtol=1e-6)
        np.testing.assert_allclose(second, [[0.1, 0.2], [0.2, 0.3]], rtol=1e-6)
        self.assertEqual([call.args[2] for call in contrastive.call_args_list], [0.2, 0.2])
        self.assertAlmostEqual(outcome["contrastive_loss"], 0.5 * (3 + 3), places=5)

    @parameterized.parameters((20, 0.0), (25, 0.5), (30, 1.0), (99, 1.0))
    def test_the_weight_of_the_distances_rises_after_the_warmup(self, at, share):
        outcome = take(make(step=at, ramp_start=0.2, ramp_end=0.3))
        self.assertAlmostEqual(outcome["unsupervised_loss"], share * 0.486912, places=4)
        self.assertGreater(outcome["prior_loss"], 1)
        self.assertEqual(outcome["label_weight"], 0.5)

    @parameterized.parameters(0.0, 0.1)
    def test_the_warmup_is_on_weak_views_and_given_labels(self, penalty):
        learner = make(step=19, ramp_start=0.2, ramp_end=0.3, warmup_penalty=penalty)
        learner.strong_view = lambda images: 0 * images + 5
        images, (first, second) = mixed(learner)
        np.testing.assert_array_equal(images, [[0, 1, 0, 1, 4, 4], [2, 3, 2, 3, 5, 5]])
        for targets in (first, second):
            np.testing.assert_array_equal(targets[:4], [[1, 0], [0, 1]] * 2)
        learner.step.assign(19)
        outcome = take(learner)
        expected = -np.log(0.8 * 0.4 * 0.6 * 0.1) / 2
        doubt = sum(entropy(p, p) for p in (*FIRST[:2], *SECOND[2:4])) / 2
        expected -= penalty * doubt
        self.assertAlmostEqual(outcome["supervised_loss"], expected, places=5)
        for name in ("unsupervised_loss", "contrastive_loss", "prior_loss"):
            self.assertEqual(outcome[name], 0, name)
        self.assertEqual(outcome["label_weight"], 1)

    def test_nothing_is_mixed_in_the_warmup(self):
        mixing = mock.Mock(return_value=(np.arange(6)[::-1], np.full(6, 0.5, "float32")))
        learner = make(step=19, ramp_start=0.2, ramp_end=0.3, mixup_alpha=4.0)
        with mock.patch.object(augment, "mixing", mixing):
            outcome = take(learner)
        expected = -np.log(0.8 * 0.4 * 0.6 * 0.1) / 2
        self.assertAlmostEqual(outcome["supervised_loss"], expected, places=5)

    def test_the_penalty_ends_with_the_warmup(self):
        losses_of = [take(make(warmup_penalty=p))["supervised_loss"] for p in (0.0, 0.1)]
        self.assertEqual(*losses_of)


class CrossSplitTest(absltest.TestCase):
    def test_no_gradient_flows_through_targets(self):
        # All see pixel 5 alone: what the rows of other pixels answer is a target, not a loss.
        learner = make(given=[0, 1, 0, 1, 0, 1])
        learner.strong_view = lambda images: 0 * images + 5
        learner.compile(keras.optimizers.SGD(1.0))
        before = [network.get_weights()[0] for network in learner.networks]
        toy.fit(learner, steps=4, start=60)
        for network, table in zip(learner.networks, before):
            change = np.abs(network.get_weights()[0] - table).max(axis=1)
            np.testing.assert_array_equal(change[:5], 0)
            self.assertGreater(change[5], 0.01)

    def test_the_second_head_trains_and_decays(self):
        for decayed, expected in (("kernels", 2), ("all", 8)):
            learner, _ = toy.learner("cross_split", decayed=decayed, compiled=False)
            found = {id(v) for v in learner.decayed_variables()}
            heads = [v for head in learner.projections for v in head.trainable_variables]
            self.assertLen([v for v in heads if id(v) in found], expected)
            trained = {id(v) for v in learner.trainable_variables}
            self.assertTrue(all(id(v) in trained for v in heads))

    def test_features_become_128_numbers_of_mean_0_and_variance_1(self):
        learner, _ = toy.learner("cross_split", compiled=False)
        features = np.random.default_rng(0).normal(5, 3, (64, 72)).astype("float32")
        for head in learner.projections:
            projected = ops.convert_to_numpy(head(features, training=True))
            self.assertEqual(projected.shape, (64, 128))
            np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-4)
            np.testing.assert_allclose(projected.std(axis=0), 1, atol=1e-3)

    def test_a_label_is_detected_by_its_doubt(self):
        learner = make(given=[0, 1, 0, 0, 0, -1])
        score, flagged = learner.detected()["cross_split"]
        self.assertTrue(np.isnan(score).all())
        self.assertFalse(flagged.any())
        learner.divergences.assign(
            [[0.1, -1], [0.4, 0.2], [0.2, 0.3], [-1, 0.5], [0.5, -1], [-1, -1]]
        )
        score, flagged = learner.detected()["cross_split"]
        # Of class 0, the first has 0.1, 0.2 and 0.5, the second 0.3 and 0.5; of class 1 one each.
        np.testing.assert_allclose(score[:5], [0, 0.5, 0.125, 1, 1], atol=1e-5)
        self.assertTrue(np.isnan(score[5]))
        np.testing.assert_array_equal(flagged, [False, False, False, True, True, False])

    def test_defaults_are_the_authors(self):
        arguments = methods.arguments("cross_split")
        expected = {
            "split_labels": True,
            "unlabeled_batch_size": 128,
            "relaxation": 10 / 300,
            "temperature": 0.5,
            "mixup_alpha": 4.0,
            "unsupervised_weight": 30.0,
            "contrastive_weight": 0.025,
            "contrastive_temperature": 0.05,
            "warmup_penalty": 0.0,
            "ramp_start": 10 / 300,
            "ramp_end": 26 / 300,
            "batch_size": 256,
            "weight_decay": 5e-4,
            "decayed": "all",
            "ema_momentum": 0.0,
            "sum_networks": True,
        }
        self.assertEqual({name: arguments[name].default for name in expected}, expected)
        defaults = methods.get("cross_split").training_defaults
        self.assertEqual((defaults["steps"], defaults["steps_per_epoch"]), (300 * 196, 196))
        self.assertEqual(
            (defaults["learning_rate"], defaults["schedule"]), (0.1, "half_cosine_1_50")
        )
        self.assertFalse(defaults["nesterov"])


if __name__ == "__main__":
    absltest.main()
