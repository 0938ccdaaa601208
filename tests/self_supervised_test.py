# SPDX-License-Identifier: Apache-2.0
"""What methods without labels share: no label reaches the features, and the probe is by hand."""

from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import augment, contract, methods, networks

METHODS = ("moco_v2", "rotnet", "simclr")
CLUSTERS = ("scan", "self_label")  # see clustering_test.py


def numpy(values):
    return [ops.convert_to_numpy(value) for value in values]


class LabelsTest(parameterized.TestCase):
    def test_these_need_none(self):
        found = [name for name in methods.names() if not methods.get(name).needs_labels]
        self.assertCountEqual(found, ("distill", *METHODS, *CLUSTERS))

    @parameterized.parameters(*METHODS)
    def test_labels_change_the_probe_alone(self, method):
        learner, true_labels = toy.learner(method, record_examples=False)
        learner.optimizer.build(learner.trainable_variables)
        start, probe = toy.state(learner), {v.path for v in contract.head(learner.network).weights}
        bodies, heads = [], []
        for labels in (true_labels * 0 - 1, true_labels):
            for variable, value in zip(toy.variables(learner), start):
                variable.assign(value)
            learner.resident.given_labels.assign(labels)
            logs = toy.fit(learner, steps=2)
            parts = [v for part in learner.decayed_parts() for v in part.variables]
            bodies.append(numpy(v for v in parts if v.path not in probe))
            heads.append(numpy(v for v in parts if v.path in probe))
            self.assertEqual(logs["probe_loss"] > 0.5, labels[0] >= 0)
        self.assertGreaterEqual(len(bodies[0]), 5)
        for one, other in zip(*bodies, strict=True):
            np.testing.assert_array_equal(one, other)
        self.assertLen(heads[0], 2)
        self.assertTrue(all((one != other).any() for one, other in zip(*heads)))

    def test_other_methods_refuse_a_task_without_labels(self):
        task, _ = toy.task(0)
        for method in ("fixmatch", "remixmatch", "divide_mix", "supervised"):
            with self.assertRaisesRegex(
                ValueError, "must have a labeled example. Received: given_labels are all -1"
            ):
                methods.get(method)(toy.network(), task)

    def test_the_probes_loss_is_of_the_labeled_images(self):
        task, _ = toy.task(num_labels=2)  # a zero and a one
        learner = methods.get("simclr")(toy.network(), task)
        logits = np.zeros((6, 10), "float32")
        logits[0, 0] = logits[5, 7] = logits[3, 1] = 1.0
        # Positions 0, 1 and 50 have the labels 0, 1 and none. Two views: the rows 0, 1, 3 and 4
        # count. ln(9 + e) - 1 once, ln(9 + e) for the one in the wrong class, and twice ln 10.
        loss = learner.probe_loss(np.array([0, 1, 50], "int32"), ops.convert_to_tensor(logits))
        self.assertAlmostEqual(float(loss), (2 * 2.461150 - 1 + 2 * 2.302585) / 4, places=5)
        loss = learner.probe_loss(np.array([50, 60], "int32"), ops.convert_to_tensor(logits[:4]))
        self.assertEqual(float(loss), 0)

    @parameterized.parameters("functional", "sequential", "nested")
    def test_logits_of_a_probe_are_the_networks(self, kind):
        network = toy.users_network(kind)
        images = ops.cast(toy.digits()[0][:3], "float32")
        expected = network(images)
        features, logits = contract.with_features(network, "A test", as_probe=True)(images)
        np.testing.assert_allclose(*numpy([logits, expected]), atol=1e-5)
        plain, _ = contract.with_features(network, "A test")(images)
        np.testing.assert_array_equal(*numpy([features, plain]))

    def test_a_probe_is_the_last_layer_with_weights(self):
        network = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                keras.layers.Conv2D(3, 3),
                keras.layers.Conv2D(5, 1, name="logits"),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 1)).astype("float32")
        made = contract.with_features(network, "A test", as_probe=True)

        def loss():
            return ops.sum(ops.square(made(images)[1]))

        own = {id(v) for v in contract.head(network).trainable_variables}
        gradients = toy.gradients(loss, network.trainable_variables)
        for variable, gradient in zip(network.trainable_variables, gradients):
            has_gradient = gradient is not None and np.abs(ops.convert_to_numpy(gradient)).max() > 0
            self.assertLessEqual(has_gradient, id(variable) in own, variable.path)
        self.assertLen(own, 2)


class ContrastiveTest(absltest.TestCase):
    def test_views_have_arguments_in_place_of_the_weak_augmentation(self):
        network = toy.network()
        self.assertNotIn("weak_augmentation", methods.arguments("simclr"))
        with self.assertRaisesRegex(TypeError, "has no argument 'weak_augmentation'"):
            methods.get("simclr")(network, weak_augmentation="none")
        task, _ = toy.task()
        arguments = {"smallest_crop": 0.3, "jitter_strength": 0.5, "jitter_probability": 0.6}
        arguments |= {"gray_probability": 0.1, "blur_probability": 0.7}
        learner = methods.get("simclr")(network, task, **arguments)
        with mock.patch.object(augment, "contrastive_view") as view:
            view.side_effect = lambda images, seed, **_: images
            views = learner.two_views(np.array([3, 5], "int32"))
        np.testing.assert_array_equal(views, task.images[[3, 5, 3, 5]])
        expected = {"flip": False, "crop_area": (0.3, 1.0), "jitter": 0.5}
        expected |= {name: arguments[name] for name in (*arguments,)[2:]}
        self.assertEqual(view.call_args.kwargs, expected)

    def test_a_single_image_cannot_be_told_apart(self):
        for method in ("moco_v2", "simclr"):
            with self.assertRaisesRegex(ValueError, "`batch_size` .* at least 2"):
                methods.get(method)(toy.network(), batch_size=1)

    def test_the_projection(self):
        learner = methods.get("simclr")(toy.network())
        shapes = [v.shape for v in learner.projection.trainable_variables]
        self.assertEqual(shapes, [(72, 72), (72,), (72, 128), (128,)])
        self.assertEqual([v.dtype for v in learner.projection.weights], 4 * ["float32"])
        features = np.random.default_rng(0).normal(size=(3, 72)).astype("float32")
        first, bias, second, last = learner.projection.get_weights()
        expected = np.maximum(features @ first + bias, 0) @ second + last
        np.testing.assert_allclose(learner.projection(features), expected, atol=1e-4)
        linear = methods.get("simclr")(toy.network(), projection_layers=1, projection_size=7)
        self.assertEqual([v.shape for v in linear.projection.weights], [(72, 7), (7,)])
        decayed = {v.path for v in learner.decayed_variables()}
        self.assertContainsSubset({v.path for v in learner.projection.weights}, decayed)

    def test_defaults_are_the_short_recipes(self):
        learner = methods.get("simclr")(toy.network())
        made = (learner.batch_size, learner.weight_decay, learner.contrastive_temperature)
        self.assertEqual(made, (512, 1e-4, 0.1))
        views = (learner.smallest_crop, learner.jitter_strength, learner.jitter_probability)
        self.assertEqual(views, (0.2, 0.4, 0.8))
        self.assertEqual((learner.gray_probability, learner.blur_probability), (0.2, 0.0))
        defaults = learner.training_defaults
        self.assertEqual(defaults["steps"], 500 * (50_000 // 512))
        self.assertEqual((defaults["learning_rate"], defaults["momentum"]), (0.4, 0.9))
        self.assertEqual(defaults["schedule"], "half_cosine_1_1000")
        self.assertFalse(defaults["nesterov"])


class SimCLRTest(absltest.TestCase):
    def test_the_loss_is_that_of_all_views_of_the_batch(self):
        learner, _ = toy.learner("simclr", compiled=False, batch_size=4, projection_size=5)
        first, second = (toy.digits()[0][start : start + 4] for start in (0, 60))
        learner.two_views = lambda _: ops.cast(np.concatenate([first, second]), "float32")
        outcome = learner.objective(unlabeled=np.arange(4, dtype="int32"))
        features, _ = learner.featured_networks[0](
            np.concatenate([first, second]).astype("float32"), training=True
        )  # one batch
        z = ops.convert_to_numpy(learner.projection(features)).astype("float64")
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        values = []
        for i in range(8):
            similarities = np.exp([z[i] @ z[j] / 0.1 for j in range(8) if j != i])
            values.append(-np.log(np.exp(z[i] @ z[(i + 4) % 8] / 0.1) / similarities.sum()))
        loss = outcome["terms"]["contrastive_loss"]
        self.assertAlmostEqual(float(loss), np.mean(values), places=4)
        alignment = np.mean(np.sum((z[:4] - z[4:]) ** 2, axis=1))
        self.assertAlmostEqual(float(outcome["monitors"]["alignment"]), alignment, places=5)
        pairs = [(i, j) for i in range(4) for j in range(i)]
        uniformity = np.mean(
            [
                np.log(np.mean([np.exp(-2 * np.sum((v[i] - v[j]) ** 2)) for i, j in pairs]))
                for v in (z[:4], z[4:])
            ]
        )
        self.assertAlmostEqual(float(outcome["monitors"]["uniformity"]), uniformity, places=4)


class RotNetTest(parameterized.TestCase):
    def test_class_k_is_k_quarters_counterclockwise(self):
        learner, _ = toy.learner("rotnet", compiled=False, batch_size=3)
        images = ops.cast(toy.digits()[0][:3], "float32")
        learner.weak_view = lambda *_: images
        seen, logits = [], np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
        featured = learner.featured_networks[0]

        def recorded(views, training):
            seen.append(ops.convert_to_numpy(views))
            return featured(views, training=training)

        learner.__dict__["featured_networks"] = (recorded,)
        learner.rotation_head = lambda _: ops.convert_to_tensor(logits)
        outcome = learner.objective(unlabeled=np.arange(3, dtype="int32"))
        for k in range(4):  # NumPy turns counterclockwise, as Pillow does
            for i in range(3):
                np.testing.assert_array_equal(seen[0][3 * k + i], np.rot90(images[i], k))
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = -np.mean([log_probs[row, row // 3] for row in range(12)])
        self.assertAlmostEqual(float(outcome["terms"]["rotation_loss"]), expected, places=5)
        accuracy = np.mean(logits.argmax(axis=1) == np.arange(12) // 3)
        self.assertAlmostEqual(float(outcome["monitors"]["rotation_accuracy"]), accuracy, places=6)

    def test_images_that_are_not_square_are_refused(self):
        inputs = keras.Input((8, 6, 1))
        network = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(inputs)))
        images = np.zeros((4, 8, 6, 1), "uint8")
        task = toy.Task(images, np.full(4, -1), num_classes=10)
        with self.assertRaisesRegex(ValueError, "must be square. Received: images of 8x6"):
            methods.get("rotnet")(network, task)

    def test_defaults_are_the_authors(self):
        learner = methods.get("rotnet")(toy.network())
        self.assertEqual((learner.batch_size, learner.weight_decay), (128, 5e-4))
        self.assertEqual(learner.training_defaults["steps"], 200 * 391)
        self.assertTrue(learner.training_defaults["nesterov"])


class PartsTest(absltest.TestCase):
    def test_running_statistics_can_follow_the_mean_of_all_parts(self):
        layer = networks.BatchNormalization(momentum=0.0)
        layer.build((4, 1, 1, 1))
        x = np.array([0.0, 2.0, 10.0, 16.0], "float32").reshape(4, 1, 1, 1)
        layer.sizes, layer.follows_all = (2, 2), True
        layer(x, training=True)
        # Means 1 and 13, biased variances 1 and 9. The whole batch has 7 and 41, the first 1 and 1.
        self.assertAlmostEqual(float(layer.moving_mean[0]), 7.0, places=5)
        self.assertAlmostEqual(float(layer.moving_variance[0]), 5.0, places=4)


if __name__ == "__main__":
    absltest.main()
