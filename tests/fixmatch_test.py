# SPDX-License-Identifier: Apache-2.0
"""FixMatch's formula, by hand, on a network that answers with fixed probabilities."""

import keras
import numpy as np
import toy
from absl.testing import absltest

from ssl_noisy import FixMatch, Task

# One pixel, one class of answers a gray level: the network looks up log-probabilities.
PROBS = np.array(
    [
        [0.97, 0.02, 0.01],  # confident of class 0
        [0.03, 0.96, 0.01],  # confident of class 1
        [0.50, 0.30, 0.20],  # not confident
    ],
    "float32",
)


@keras.saving.register_keras_serializable(package="ssl_noisy_tests")
class LookUp(keras.layers.Layer):
    def build(self, input_shape):
        self.kernel = self.add_weight(name="table", shape=(3, 3), initializer="zeros")
        self.kernel.assign(np.log(PROBS))

    def call(self, images):
        return keras.ops.take(self.kernel, keras.ops.cast(images[:, 0, 0, 0], "int32"), axis=0)


def make(**kwargs):
    inputs = keras.Input((1, 1, 1))
    network = keras.Model(inputs, LookUp()(inputs))
    images = np.array([0, 1, 2, 0], "uint8").reshape(4, 1, 1, 1)
    task = Task(images, np.array([1, -1, -1, -1]), num_classes=3)
    learner = FixMatch(network, task, batch_size=1, unlabeled_ratio=4, **kwargs)
    learner.weak_view = lambda images, indices, stream="labeled": images
    return learner


class FixMatchTest(absltest.TestCase):
    def objective(self, learner, strong=None):
        # The strong view of the confident 0 is the uncertain image, the others are themselves.
        learner.strong_view = lambda images: keras.ops.where(images == 0, 2.0, images)
        return learner.objective(
            labeled=np.array([0], "int32"), unlabeled=np.array([0, 1, 2, 3], "int32")
        )

    def test_terms_by_hand(self):
        outcome = self.objective(make(unsupervised_weight=2.0))
        terms = {key: float(value) for key, value in outcome["terms"].items()}
        # The labeled image is seen as class 0, its given label is 1: -ln 0.02.
        self.assertAlmostEqual(terms["supervised_loss"], 3.912023, places=4)
        # Kept: images 0, 1, 3 with labels 0, 1, 0. Strong: -ln .5, -ln .96, -ln .5; over all 4,
        # times 2. Over the kept ones it would be 0.9513, without the weight 0.3568.
        self.assertAlmostEqual(terms["unsupervised_loss"], 0.713558, places=4)
        self.assertAlmostEqual(float(outcome["monitors"]["mask_rate"]), 0.75, places=6)
        np.testing.assert_array_equal(outcome["pseudo_labels"], [0, 1, 0, 0])
        np.testing.assert_array_equal(outcome["mask"], [1, 1, 0, 1])

    def test_no_confident_example_is_exactly_zero(self):
        outcome = self.objective(make(confidence_threshold=0.99))
        self.assertEqual(float(outcome["terms"]["unsupervised_loss"]), 0.0)
        self.assertEqual(float(outcome["monitors"]["mask_rate"]), 0.0)

    def test_joint_batch_norm_is_one_forward_pass_of_the_same_formula(self):
        separate, joint = (self.objective(make(joint_batch_norm=j)) for j in (False, True))
        for key in separate["terms"]:
            self.assertAlmostEqual(
                float(separate["terms"][key]), float(joint["terms"][key]), places=5
            )

    def test_strong_views_move_the_running_statistics_only_in_one_joint_batch(self):
        for joint in (False, True):
            statistics = []
            for strong in (lambda images: 0 * images, lambda images: 255 - images):
                learner, _ = toy.learner("fixmatch", joint_batch_norm=joint)
                learner.strong_view = strong
                before = [v.numpy() for v in learner.network.non_trainable_variables]
                toy.fit(learner, steps=1)
                after = [v.numpy() for v in learner.network.non_trainable_variables]
                self.assertTrue(all((a != b).any() for a, b in zip(before, after)))
                statistics.append(np.concatenate(after))
            self.assertEqual(np.allclose(*statistics), not joint)

    def test_labeled_images_are_unlabeled_ones_too_unless_told_otherwise(self):
        np.testing.assert_array_equal(make().pools()["unlabeled"], [0, 1, 2, 3])
        np.testing.assert_array_equal(make(include_labeled=False).pools()["unlabeled"], [1, 2, 3])

    def test_streams_are_the_batch_and_mu_times_it(self):
        self.assertEqual(make().streams(), {"labeled": 1, "unlabeled": 4})

    def test_defaults_are_the_papers(self):
        learner = make()
        self.assertEqual((learner.confidence_threshold, learner.ema_momentum), (0.95, 0.999))
        self.assertEqual(learner.weight_decay, 5e-4)
        defaults = FixMatch.training_defaults
        self.assertEqual((defaults["steps"], defaults["learning_rate"]), (2**20, 0.03))


if __name__ == "__main__":
    absltest.main()
