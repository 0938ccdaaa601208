# SPDX-License-Identifier: Apache-2.0
"""What the semi-supervised methods share: streams, pools, the strong views and their learning."""

import os
from unittest import mock

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import augment, machine
from ssl_noisy.augment import ctaugment
from ssl_noisy.errors import UserError
from ssl_noisy.methods.fixmatch import FixMatch


class StreamsTest(absltest.TestCase):
    def test_unlabeled_examples_in_a_fixed_ratio_with_or_without_the_labeled(self):
        learner, _ = toy.learner("fixmatch", batch_size=3, unlabeled_ratio=5)
        self.assertEqual(learner.streams(), {"labeled": 3, "unlabeled": 15})
        self.assertLen(learner.pools()["unlabeled"], toy.NUM_EXAMPLES)
        without, _ = toy.learner("fixmatch", include_labeled=False)
        np.testing.assert_array_equal(without.pools()["unlabeled"], np.arange(20, toy.NUM_EXAMPLES))

    def test_the_labeled_distribution_is_that_of_the_given_labels(self):
        learner, true_labels = toy.learner("fixmatch")
        expected = np.bincount(true_labels[:20], minlength=10) / 20
        np.testing.assert_allclose(learner.labeled_distribution(), expected, rtol=1e-6)

    def test_alignment_by_hand(self):
        learner, _ = toy.learner("fixmatch")
        marginal = learner.add_state("test_marginal", np.array([0.5, 0.5], "float32"))
        learner.step.assign(100)  # the warm-up is over
        probs = np.array([[0.8, 0.2], [0.6, 0.4]], "float32")
        target = np.array([0.25, 0.75], "float32")
        aligned = learner.aligned(probs, marginal, target, momentum=0.5)
        # The batch's mean (.7, .3) goes in first: (.6, .4). Then .8 * .25/.6 = 1/3 and
        # .2 * .75/.4 = 3/8: 8/17. With the average before it, 0.5714; not normalized, 0.3333.
        np.testing.assert_allclose(marginal.numpy(), [0.6, 0.4], rtol=1e-5)
        np.testing.assert_allclose(aligned[0], [8 / 17, 9 / 17], rtol=1e-4)

    def test_alignment_soon_leaves_predictions_of_the_target_distribution_as_they_are(self):
        learner, _ = toy.learner("fixmatch")
        marginal = learner.add_state("test_marginal", np.array([0.5, 0.5], "float32"))
        probs = np.array([[1.0, 0.0], [0.5, 0.5]], "float32")  # of mean .75, .25
        target = np.array([0.75, 0.25], "float32")
        for step in range(20):
            learner.step.assign(step)
            aligned = learner.aligned(probs, marginal, target)
            if step == 0:  # 2/11 of .5, .5 and 9/11 of the mean
                np.testing.assert_allclose(marginal.numpy(), [31 / 44, 13 / 44], rtol=1e-5)
        # With momentum .999 from the start the second row would still be .746 and .254.
        np.testing.assert_allclose(aligned, probs, atol=1e-4)


class CurriculumTest(absltest.TestCase):
    """Batches that grow from `batch_size` unlabeled images to `unlabeled_ratio` times as many."""

    def make(self, method="fixmatch", **arguments):
        given = {"batch_size": 2, "unlabeled_ratio": 3, "steps": 26, **arguments}
        return toy.learner(method, curriculum_batch_size=True, **given)[0]

    def test_the_stages_by_hand(self):
        # A third of the final size is passed at 1 - (2/3 * .3) / (1 - .7 * 2/3) = 5/8 of the
        # training, two thirds at 1 - (.1) / (1 - .7/3) = 20/23: steps 16.25 and 22.6.
        stages = self.make().stages()
        self.assertEqual([stage.first_step for stage in stages], [0, 17, 23])
        self.assertEqual([stage.sizes["unlabeled"] for stage in stages], [2, 4, 6])
        self.assertEqual({stage.sizes["labeled"] for stage in stages}, {2})
        self.assertEqual([stage.drawn["unlabeled"] for stage in stages], [0, 34, 58])
        self.assertLen(toy.learner("fixmatch")[0].stages(), 1)

    def test_it_is_a_third_of_the_work_at_a_ratio_of_7(self):
        stages = self.make(unlabeled_ratio=7, steps=10_000).stages()
        last = stages[-1].drawn_at(10_000, "unlabeled")
        self.assertBetween(last / (10_000 * 14), 0.37, 0.39)

    def test_a_step_gets_the_batch_of_its_stage_and_resumes_exactly(self):
        def train(*parts):
            """Returns the weights and states after steps of this start and number, and sizes."""
            learner = self.make(weak_augmentation="alternating_flip_shift")
            sizes, observe = [], learner.observe

            def note(positions, logits):
                sizes.append(learner.stage.sizes["unlabeled"])
                observe(positions, logits)

            learner.observe = note
            for start, steps in parts:
                logs = toy.fit(learner, steps=steps, start=start)
            self.assertTrue(np.isfinite(logs["loss"]))
            self.assertEqual(int(learner.step), 26)
            states = [state.numpy() for state in learner.states.values()]
            return [*learner.network.get_weights(), *states], list(dict.fromkeys(sizes))

        expected, sizes = train((0, 26))
        self.assertEqual(sizes, [2, 4, 6])  # for which the step was traced
        resumed, sizes = train((0, 9), (9, 12), (21, 5))  # 21 is within a stage
        self.assertEqual(sizes, [2, 4, 6])
        for a, b in zip(expected, resumed, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_views_that_share_batches_grow_together(self):
        learner = self.make("remixmatch", steps=3)  # two steps of 2 unlabeled images, one of 4
        self.assertTrue(np.isfinite(toy.fit(learner, steps=3)["loss"]))
        self.assertEqual(learner.stage.sizes, {"labeled": 2, "unlabeled": 4})

    def test_alternating_flips_follow_the_passes_through_the_pool(self):
        learner = self.make(steps=2600, weak_augmentation="alternating_flip_shift")
        second = learner.stages()[1]
        # 1,625 steps of 2, then 4 a step: 3,252 examples, 27 passes through 120 and 12 more.
        self.assertEqual((second.first_step, second.drawn["unlabeled"]), (1625, 3250))
        learner.enter(second)
        learner.step.assign(1626)
        images, indices = np.zeros((4, 8, 8, 1), "float32"), np.arange(4)
        with mock.patch.object(augment, "alternating_flip", return_value=images) as flip:
            learner.weak_view(images, indices, "unlabeled")
        np.testing.assert_array_equal(flip.call_args.args[2], [27] * 4)

    def test_the_callbacks_of_a_user_are_called_too(self):
        seen = []
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda b, logs: seen.append(b))
        learner = self.make()
        learner.fit(learner.batches(), steps_per_epoch=3, callbacks=callback, verbose=0)
        self.assertEqual(seen, [0, 1, 2])

    def test_what_cannot_grow_is_an_error(self):
        with self.assertRaisesRegex(UserError, "at least 2.*Received: unlabeled_ratio=1"):
            self.make(unlabeled_ratio=1)
        learner = self.make(steps_per_execution=2)
        with self.assertRaisesRegex(UserError, "Received: steps_per_execution=2"):
            learner.batches()


class StrongViewTest(parameterized.TestCase):
    @parameterized.parameters(
        ("none", True, False, 0),
        ("shift", True, False, None),
        ("alternating_flip_shift", True, True, None),
        ("auto", True, True, None),
        ("auto", False, False, None),
    )
    def test_it_is_flipped_and_shifted_as_weak_views_are(self, weak, flip, expected, shift):
        task, _ = toy.task()
        object.__setattr__(task, "flip", flip)
        with mock.patch.object(toy, "task", return_value=(task, None)):
            learner, _ = toy.learner("fixmatch", weak_augmentation=weak)
        with mock.patch.object(augment, "strong_view") as view:
            learner.strong_view(learner.images(np.array([0])))
        self.assertEqual(view.call_args.kwargs["flip"], expected)
        self.assertEqual(view.call_args.kwargs["max_shift"], shift)

    @parameterized.parameters("ctaugment", "ctaugment_pixels")
    def test_ctaugment_translates_by_what_its_name_says(self, name):
        learner, _ = toy.learner("fixmatch", strong_augmentation=name)
        with mock.patch.object(ctaugment, "strong_view") as view:
            learner.strong_view(learner.images(np.array([0])))
        self.assertEqual(view.call_args.kwargs["pixel_translation"], name == "ctaugment_pixels")


class SharedPassTest(parameterized.TestCase):
    @parameterized.parameters("fixmatch", "remixmatch")
    @pytest.mark.slow
    def test_it_changes_no_numbers(self, method):
        kept = {"confidence_threshold": 0.0} if method == "fixmatch" else {}
        found = []
        for shared in ("on", "off"):
            learner, _ = toy.learner(method, shared_pass=shared, **kept)
            learner.strong_view = lambda images: 255 - images
            found.append((toy.fit(learner), learner.get_weights()))
        (logs, weights), (other_logs, other_weights) = found
        self.assertGreater(logs["unsupervised_loss"], 0.1)
        self.assertEqual(logs.keys(), other_logs.keys())
        for key, value in logs.items():
            self.assertAlmostEqual(value, other_logs[key], delta=2e-5, msg=key)
        for ours, others in zip(weights, other_weights, strict=True):
            np.testing.assert_allclose(ours, others, atol=2e-5)

    def test_auto_is_on_with_jax_on_one_accelerator(self):
        for devices in ([], ["gpu:0"], ["gpu:0", "gpu:1"]):
            with mock.patch.object(machine, "accelerators", return_value=devices):
                auto = keras.backend.backend() == "jax" and len(devices) == 1
                for wanted, shared in {"auto": auto, "on": True, "off": False}.items():
                    learner, _ = toy.learner("fixmatch", shared_pass=wanted, compiled=False)
                    self.assertEqual(learner.shares_pass, shared)
                joint, _ = toy.learner("fixmatch", joint_batch_norm=True, compiled=False)
                self.assertFalse(joint.shares_pass)

    def test_on_where_it_cannot_be_is_an_error(self):
        for network, joint in ((toy.network(), True), (toy.users_network("functional"), False)):
            with self.assertRaisesRegex(UserError, "needs a Sequential or functional network"):
                FixMatch(network, toy.task()[0], shared_pass="on", joint_batch_norm=joint)


class CTAugmentLearningTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        # Tracing CTAugment takes seconds: stand-ins that use the first bin of the first knob.
        bins = np.zeros((4, 2, 2), "int32")
        view = mock.patch.object(
            ctaugment, "strong_view", lambda x, seed, rates, **_: toy.noise(x, seed)
        )
        probe = mock.patch.object(ctaugment, "probe", lambda x, seed, **_: (x, ops.array(bins)))
        for patch in (view, probe):
            patch.start()
            self.addCleanup(patch.stop)

    def test_the_rate_moves_by_what_the_averaged_network_knows_of_the_labels(self):
        learner, _ = toy.learner(
            "fixmatch", strong_augmentation="ctaugment", compiled=False, weak_augmentation="none"
        )
        for average in learner.averages:  # all logits 0 but the last bias, which gives class 1
            average.assign(np.zeros(average.shape, "float32"))
        bias = np.zeros(10, "float32")
        bias[1] = np.log(9.0)  # probabilities 1/18, and 1/2 of class 1
        learner.averages[-1].assign(bias)
        labeled = np.array([1, 1, 2, 2], "int32")  # digits whose labels are themselves
        learner.learn_augmentation(learner.images(labeled), labeled)
        rates = ops.convert_to_numpy(learner.rates)
        # Proximity is the probability of the label: 1/2, 1/2, 1/18, 1/18, of mean 5/18. The bin
        # is hit 16 times: .99^16 + (1 - .99^16) * 5/18.
        keep = 0.99**16
        self.assertAlmostEqual(rates[0, 0], keep + (1 - keep) * 5 / 18, places=4)
        self.assertEqual(rates[0, 1], 1.0)

    def test_rates_are_saved_and_go_on(self):
        learner, true_labels = toy.learner("fixmatch", strong_augmentation="ctaugment")
        toy.fit(learner, true_labels, steps=2)
        rates = learner.rates.numpy()
        self.assertLess(rates[0, 0], 1.0)
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        learner.save(path)
        np.testing.assert_array_equal(keras.models.load_model(path).rates.numpy(), rates)


if __name__ == "__main__":
    absltest.main()
