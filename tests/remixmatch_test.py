# SPDX-License-Identifier: Apache-2.0
"""ReMixMatch's aligned labels, its four terms and its rotations, by hand."""

import os
from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import Task, augment, methods, networks
from ssl_noisy.augment import interpolation

# Two unlabeled images, a labeled one, and what strong views look like: first 4, then 5.
PROBS = [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.5, 0.5], [0.25, 0.75], [0.1, 0.9]]
GIVEN = [-1, -1, 0, 1, 1, 1]  # a quarter of the labels is 0


def make(**kwargs):
    learner = toy.make("remixmatch", PROBS, GIVEN, **{"mixup_alpha": 0.0, **kwargs})
    values = iter([4.0, 5.0, 5.0])
    learner.strong_view = lambda images: 0 * images + next(values)
    learner.marginal.assign([0.7, 0.3])  # the mean of rows 0 and 1 too: it stays
    learner.rotation_head.set_weights([np.zeros((1, 4)), np.log([0.1, 0.2, 0.3, 0.4])])
    return learner


def square_learner(size):
    """Returns a learner of one-channel squares whose features are the pixels themselves."""
    inputs = keras.Input((size, size, 1))
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    task = Task(np.zeros((2, size, size, 1), "uint8"), np.array([0, 1]))
    learner = methods.get("remixmatch")(network, task)
    learner.rotation_head = lambda features: features
    return learner


class TermsTest(parameterized.TestCase):
    def test_label_is_aligned_then_sharpened(self):
        learner = make()
        with mock.patch.object(augment, "mixup", wraps=augment.mixup) as mixup:
            toy.objective(learner, labeled=[2], unlabeled=[0, 1])
        images, soft_labels = mixup.call_args.args[:2]
        # Row 0: (0.8 * 0.25 / 0.7, 0.2 * 0.75 / 0.3) is (0.3636, 0.6364), then the squares.
        # Sharpened first it would be 0.6957, with a uniform target 0.7461, unaligned 0.9412.
        guessed = [[0.246154, 0.753846], [0.043902, 0.956098]]
        np.testing.assert_allclose(soft_labels, [[1, 0], *3 * guessed], atol=1e-5)
        np.testing.assert_array_equal(np.ravel(images), [2, 0, 1, 4, 4, 5, 5])
        self.assertEqual(
            mixup.call_args.kwargs, {"alpha": 0.0, "per_image": True, "keep_larger": True}
        )

    def test_one_share_for_each_image_or_for_the_batch(self):
        for arguments, per_image in (({}, True), ({"mixup_per_image": False}, False)):
            learner = make(mixup_alpha=0.75, **arguments)
            with mock.patch.object(interpolation, "mix", wraps=interpolation.mix) as mix:
                toy.objective(learner, labeled=[2], unlabeled=[0, 1])
            shares = np.array(mix.call_args_list[0].args[2])
            self.assertLen(shares, 7)
            self.assertLen(np.unique(shares), 7 if per_image else 1)
            self.assertBetween(shares.min(), 0.5, 1.0)

    @parameterized.parameters(False, True)
    def test_terms_by_hand(self, joint_batch_norm):
        learner = make(steps=100, ramp_end=0.5, joint_batch_norm=joint_batch_norm)
        learner.step.assign(25)
        outcome = toy.objective(learner, labeled=[2], unlabeled=[0, 1])
        self.assertAlmostEqual(outcome["supervised_loss"], 1.203973, places=5)  # -ln 0.3
        # Over 2 weak, 2 first strong and 2 second strong views; 1.5, half way up the ramp.
        self.assertAlmostEqual(outcome["unsupervised_loss"], 0.488594, places=4)
        # The first strong view alone; 0.5, half way up. Of both it would be 0.1089.
        self.assertAlmostEqual(outcome["anchor_loss"], 0.111753, places=5)
        # Two images, not turned and turned once: 0.5 (-ln 0.1 - ln 0.2) / 2, without a ramp.
        self.assertAlmostEqual(outcome["rotation_loss"], 0.978006, places=5)

    def test_the_ramp_is_of_two_terms(self):
        outcome = toy.objective(make(), labeled=[2], unlabeled=[0, 1])
        self.assertEqual((outcome["unsupervised_loss"], outcome["anchor_loss"]), (0, 0))
        self.assertGreater(outcome["rotation_loss"], 0.9)

    def test_the_marginal_is_a_slow_average_of_plain_predictions(self):
        learner = make()
        learner.marginal.assign([0.5, 0.5])
        learner.step.assign(10_000)  # the warm-up of the momentum is over
        toy.objective(learner, labeled=[2], unlabeled=[0, 1])
        np.testing.assert_allclose(learner.marginal.numpy(), [0.5002, 0.4998], atol=1e-6)

    def test_every_strong_view_is_mixed(self):
        for strong_views in (1, 3):
            with mock.patch.object(augment, "mixup", wraps=augment.mixup) as mixup:
                toy.objective(make(num_strong_views=strong_views), labeled=[2], unlabeled=[0, 1])
            expected = [2, 0, 1, 4, 4, 5, 5, 5, 5][: 3 + 2 * strong_views]
            np.testing.assert_array_equal(np.ravel(mixup.call_args.args[0]), expected)

    def test_no_gradient_flows_through_the_guess(self):
        learner = toy.make(
            "remixmatch",
            PROBS,
            [-1, -1, 0, 1, -1, -1],
            strong=[4] * 6,
            mixup_alpha=0.0,
            unsupervised_weight=0.0,
            rotation_weight=0.0,
            ramp_end=0.0,
        )
        gradient = toy.table_gradient(learner)
        np.testing.assert_array_equal(gradient[[0, 1, 5]], 0)
        self.assertGreater(np.abs(gradient[4]).max(), 0.01)

    @parameterized.parameters(False, True)
    def test_running_statistics_follow_the_mixed_images_alone(self, joint_batch_norm):
        images = toy.digits()[0][:22].astype("float32")
        mixup = lambda _, soft_labels, *__, **___: (images, soft_labels)  # noqa: E731
        statistics = []
        for view in (lambda images: images, lambda images: 255 - images):
            learner, _ = toy.learner(
                "remixmatch", compiled=False, joint_batch_norm=joint_batch_norm
            )
            learner.weak_view = lambda images, indices, stream: view(images)  # noqa: B023
            learner.strong_view = view
            before = [v.numpy() for v in learner.running_statistics]
            with mock.patch.object(augment, "mixup", mixup):
                toy.objective(learner, labeled=range(4), unlabeled=range(20, 26))
            statistics.append([v.numpy() for v in learner.running_statistics])
            self.assertTrue(all((a != b).any() for a, b in zip(before, statistics[-1])))
        for first, second in zip(*statistics):
            np.testing.assert_array_equal(first, second)

    def test_defaults_are_the_authors(self):
        made = methods.get("remixmatch")(toy.network())
        self.assertEqual((made.unsupervised_weight, made.anchor_weight), (1.5, 0.5))
        self.assertEqual((made.rotation_weight, made.mixup_alpha), (0.5, 0.75))
        self.assertEqual((made.temperature, made.ramp_end), (0.5, 1 / 64))
        self.assertEqual((made.unlabeled_ratio, made.num_strong_views), (1, 2))


class RotationTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 3, 4, 6, 7)
    def test_label_k_is_k_quarters_counterclockwise(self, size):
        learner = square_learner(3)
        images = np.arange(size * 9, dtype="float32").reshape(size, 3, 3, 1)
        _, _, turned, turns = learner.unmixed(ops.zeros_like(images), ops.convert_to_tensor(images))
        turned, turns = (ops.convert_to_numpy(value) for value in (turned, turns))
        self.assertEqual(list(turns), sorted(i % 4 for i in range(size)))
        places = sorted(range(size), key=lambda i: (i % 4, i))  # every image once
        for row, k, i in zip(turned.reshape(size, 3, 3, 1), turns, places, strict=True):
            np.testing.assert_array_equal(row, np.rot90(images[i], k))

    def test_the_head_learns_and_is_saved(self):
        learner, _ = toy.learner("remixmatch", weight_decay=0.0)
        learner.strong_view = lambda images: 255 - images
        before = learner.rotation_head.get_weights()
        toy.fit(learner, steps=1)
        after = learner.rotation_head.get_weights()
        self.assertTrue(all((a != b).any() for a, b in zip(before, after)))
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        learner.save(path)
        loaded = keras.models.load_model(path).rotation_head.get_weights()
        for a, b in zip(after, loaded, strict=True):
            np.testing.assert_array_equal(a, b)

    @parameterized.parameters(("wrn_10_1", 8, 64), ("small_cnn", 8, 64), ("cnn_13", 12, 128))
    def test_features_are_what_the_last_layer_takes(self, name, size, num_features):
        network = networks.build(name, (size, size, 1), 5)
        learner = methods.get("remixmatch")(network)
        self.assertEqual(learner.rotation_head.kernel.shape, (num_features, 4))
        images = np.random.default_rng(0).integers(0, 256, (3, size, size, 1)).astype("float32")
        features, logits = learner.featured_networks[0].predict(images, verbose=0)
        np.testing.assert_allclose(logits, network.predict(images, verbose=0), atol=1e-5)
        last = network.layers[-1] if name != "cnn_13" else network.get_layer("logits")
        kernel, bias = last.get_weights() if name != "cnn_13" else last.plain_weights()
        np.testing.assert_allclose(
            features @ np.squeeze(kernel).reshape(num_features, 5) + bias,
            logits,
            atol=1e-4,
        )

    def test_images_that_are_not_square_are_refused(self):
        inputs = keras.Input((8, 6, 1))
        network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
        task = Task(np.zeros((2, 8, 6, 1), "uint8"), np.array([0, 1]))
        with self.assertRaisesRegex(ValueError, "must be square. Received: images of 8x6"):
            methods.get("remixmatch")(network, task)


if __name__ == "__main__":
    absltest.main()
