# SPDX-License-Identifier: Apache-2.0
"""MoCo v2's loss, its queue, its key encoder and its shuffled parts, by hand."""

import os

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import Task, methods, networks
from ssl_noisy.runs import checkpoint

# Pixels of four images, and the directions of the first two.
PIXELS = np.array([[3, 4], [5, 12], [8, 6], [1, 0]], "uint8")
UNIT = PIXELS / np.linalg.norm(PIXELS, axis=1, keepdims=True)
QUEUE = np.array([[1, 0], [0, 1], [-1, 0]])
SWAP = np.array([[0.0, 1.0], [1.0, 0.0]], "float32")


def make(**kwargs):
    """Returns a learner whose features are two pixels; keys are swapped, queries are not."""
    inputs = keras.Input((1, 1, 2))
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    task = Task(PIXELS.reshape(4, 1, 1, 2), np.array([0, 1, -1, -1]))
    small = {"batch_size": 2, "queue_size": 3, "batch_norm_splits": 1, "projection_layers": 1}
    learner = methods.get("moco_v2")(network, task, projection_size=2, **{**small, **kwargs})
    learner.two_views = lambda positions: ops.concatenate(2 * [learner.images(positions)])
    learner.projection.set_weights([np.eye(2), np.zeros(2)])
    if small["projection_layers"] == 1:
        learner.key_weights[-2].assign(SWAP)
        learner.key_weights[-1].assign(np.zeros(2))
    learner.queue.assign(np.pad(QUEUE, ((0, learner.queue_size - 3), (0, 0))))
    return learner


def loss_of(query, key, temperature):
    logits = np.concatenate([[query @ key], QUEUE @ query]) / temperature
    return np.log(np.exp(logits).sum()) - logits[0]


class LossTest(parameterized.TestCase):
    @parameterized.parameters((False, 0.5), (True, 0.5), (False, 0.1))
    def test_by_hand(self, symmetric, temperature):
        learner = make(
            symmetric_loss=symmetric, contrastive_temperature=temperature, queue_size=3 + symmetric
        )
        views = np.concatenate([PIXELS[:2], PIXELS[2:]]).reshape(4, 1, 1, 2).astype("float32")
        learner.two_views = lambda _: ops.convert_to_tensor(views)
        outcome = learner.objective(unlabeled=np.array([0, 1], "int32"))
        keys = UNIT[:, ::-1]
        expected = np.mean([loss_of(UNIT[i], keys[2 + i], temperature) for i in range(2)])
        if symmetric:  # the sum; a fourth, empty key adds exp(0)
            both = []
            for query, key in ((0, 2), (1, 3), (2, 0), (3, 1)):
                logit = UNIT[query] @ keys[key] / temperature
                whole = np.exp(loss_of(UNIT[query], keys[key], temperature) + logit) + 1
                both.append(np.log(whole) - logit)
            expected = 2 * np.mean(both)
        self.assertAlmostEqual(float(outcome["terms"]["contrastive_loss"]), expected, places=4)

    def test_one_by_hand(self):
        # (0.6, 0.8) and its key (0.8, 0.6): 0.96 at a temperature of 0.5 is 1.92, those of the
        # queue 1.2, 1.6 and -1.2: ln(6.820958 + 3.320117 + 4.953032 + 0.301194) - 1.92.
        value = loss_of(UNIT[0], UNIT[0][::-1], 0.5)
        self.assertAlmostEqual(value, 2.734062 - 1.92, places=4)


class FindingsTest(absltest.TestCase):
    def test_the_chance_to_find_a_key_is_kept_of_each_image(self):
        learner = make(contrastive_temperature=0.5)
        # Images 0 and 1 are drawn, then 0 alone with other keys.
        learner.count_findings(np.array([0, 1], "int32"), UNIT[:2], UNIT[:2, ::-1])
        learner.count_findings(np.array([0], "int32"), UNIT[:1], UNIT[:1])
        # At a temperature of 0.05, whatever that of the loss is.
        chances = [
            np.exp(-loss_of(UNIT[query], key, 0.05))
            for query, key in ((0, UNIT[0][::-1]), (0, UNIT[0]), (1, UNIT[1][::-1]))
        ]
        np.testing.assert_allclose(chances, [0.9601, 0.9817, 0.01392], rtol=1e-3)
        found = learner.image_statistics()
        mean = np.mean(chances[:2])
        np.testing.assert_allclose(
            found["confidence"], [mean, chances[2], np.nan, np.nan], rtol=1e-4
        )
        np.testing.assert_allclose(
            found["variability"], [np.std(chances[:2]), 0, np.nan, np.nan], atol=1e-4
        )

    def test_a_step_counts_the_images_that_it_draws(self):
        learner = make()
        learner.objective(unlabeled=np.array([3, 1], "int32"))
        self.assertEqual(
            np.isfinite(learner.image_statistics()["confidence"]).tolist(), [0, 1, 0, 1]
        )


class QueueTest(absltest.TestCase):
    def test_keys_go_around(self):
        learner = make(queue_size=5)
        learner.queue.assign(np.zeros((5, 2)))
        for first in (1, 3, 5):
            learner.enqueue(ops.convert_to_tensor([[first, 0.0], [first + 1, 0.0]]))
        self.assertEqual(learner.queue.numpy()[:, 0].tolist(), [6, 2, 3, 4, 5])
        self.assertEqual(int(learner.queue_end.numpy()), 1)

    def test_a_step_replaces_the_oldest_keys_after_the_loss(self):
        learner = make()
        learner.queue_end.assign(2)
        before = float(
            learner.objective(unlabeled=np.array([0, 1], "int32"))["terms"]["contrastive_loss"]
        )
        keys = UNIT[:2, ::-1]
        np.testing.assert_allclose(learner.queue.numpy(), [keys[1], [0, 1], keys[0]], atol=1e-6)
        expected = np.mean([loss_of(UNIT[i], keys[i], 0.1) for i in range(2)])
        self.assertAlmostEqual(before, expected, places=4)

    def test_it_starts_with_random_directions(self):
        queue = methods.get("moco_v2")(toy.network(), seed=3, queue_size=600).queue.numpy()
        self.assertEqual(queue.shape, (600, 128))
        np.testing.assert_allclose(np.linalg.norm(queue, axis=1), 1, atol=1e-5)
        self.assertLess(np.abs(queue.mean(axis=0)).max(), 0.02)

    def test_it_holds_the_keys_of_a_step(self):
        with self.assertRaisesRegex(ValueError, "at least the number of keys in a step, 1024"):
            methods.get("moco_v2")(toy.network(), queue_size=1023, symmetric_loss=True)
        with self.assertRaisesRegex(ValueError, "`batch_norm_splits` .* at most batch_size=4"):
            methods.get("moco_v2")(toy.network(), batch_size=4)


class KeysTest(absltest.TestCase):
    def test_they_are_made_in_random_order_and_returned_in_the_batchs(self):
        learner = make(batch_size=4, queue_size=4)
        seen, encoded = [], learner.encoded_keys

        def recorded(views):
            seen.append(ops.convert_to_numpy(views)[:, 0, 0])
            return encoded(views)

        learner.encoded_keys = recorded
        for _ in range(8):
            views = ops.cast(PIXELS.reshape(4, 1, 1, 2), "float32")
            np.testing.assert_allclose(learner.keys(views), UNIT[:, ::-1], atol=1e-6)
        orders = {tuple(map(tuple, one)) for one in seen}
        self.assertGreater(len(orders), 2)
        for one in orders:
            self.assertCountEqual(one, [tuple(map(float, row)) for row in PIXELS])

    def check_checkpoint(self, learner):
        folder = os.path.join(self.create_tempdir().full_path, "checkpoint")
        checkpoint.save(folder, learner, {"step": 1})
        other, _ = toy.learner("moco_v2", seed=9)
        other.optimizer.build(other.trainable_variables)
        checkpoint.restore(folder, other)
        self.assertEqual(int(other.queue_end.numpy()), 0)  # of 64, after two steps of 32
        for name in ("queue", "key_0", "key_6"):
            np.testing.assert_array_equal(learner.states[name].numpy(), other.states[name].numpy())

    def test_the_encoder_follows_the_network_slowly(self):
        learner, _ = toy.learner("moco_v2", key_momentum=0.75)
        start = [v.numpy() for v in learner.encoded]
        self.assertLen(start, 3 + 4)  # not the probe's
        for slow, value in zip(learner.key_weights, start, strict=True):
            np.testing.assert_array_equal(slow.numpy(), value)
        expected = start
        for step in range(2):
            toy.fit(learner, steps=1, start=step)
            now = [v.numpy() for v in learner.encoded]
            expected = [0.75 * slow + 0.25 * value for slow, value in zip(expected, now)]
            for slow, value in zip(learner.key_weights, expected, strict=True):
                np.testing.assert_allclose(slow.numpy(), value, atol=1e-6)
        self.assertGreater(np.abs(now[0] - expected[0]).max(), 1e-6)
        self.check_checkpoint(learner)

    def test_keys_leave_the_statistics_and_the_network(self):
        learner, _ = toy.learner("moco_v2", compiled=False, batch_size=8)
        before = [v.numpy() for v in learner.network.variables]
        learner.keys(ops.cast(toy.digits()[0][:8], "float32"))
        for variable, value in zip(learner.network.variables, before):
            np.testing.assert_array_equal(variable.numpy(), value)

    def test_parts_are_normalized_separately(self):
        images, labels = toy.digits()
        network = networks.build("small_cnn", images.shape[1:], 10)  # with several batch norms
        small = {"batch_size": 8, "batch_norm_splits": 2}
        learner = methods.get("moco_v2")(network, Task(images, labels), **small)
        with learner.parts():
            sizes = [layer.sizes for layer in network.layers if hasattr(layer, "sizes")]
        self.assertEqual(sizes, [(4, 4)] * len(sizes))
        self.assertGreater(len(sizes), 2)
        views = ops.cast(images[:8], "float32")
        queries, _ = learner.queries(views)
        keys = learner.encoded_keys(views)
        whole, _ = learner.featured_networks[0](views, training=True)
        halves = [
            learner.featured_networks[0](part, training=True)[0] for part in (views[:4], views[4:])
        ]
        expected, whole = (
            ops.convert_to_numpy(learner.projection(x)) for x in (ops.concatenate(halves), whole)
        )
        expected, whole = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (expected, whole))
        np.testing.assert_allclose(queries, expected, atol=1e-5)
        np.testing.assert_allclose(keys, expected, atol=1e-5)  # at first the encoders are equal
        self.assertGreater(np.abs(expected - whole).max(), 1e-3)

    def test_batch_norm_of_others_cannot_be_split(self):
        network = toy.users_network("functional")
        task, _ = toy.task()
        with self.assertRaisesRegex(ValueError, "Use batch_norm_splits=1. Received"):
            methods.get("moco_v2")(network, task)
        methods.get("moco_v2")(network, task, batch_norm_splits=1)

    def test_defaults_are_the_demos(self):
        learner = methods.get("moco_v2")(toy.network())
        self.assertEqual((learner.queue_size, learner.key_momentum), (4096, 0.99))
        self.assertEqual((learner.batch_size, learner.weight_decay), (512, 5e-4))
        self.assertEqual((learner.batch_norm_splits, learner.smallest_crop), (8, 0.08))
        self.assertEqual((learner.contrastive_temperature, learner.projection_size), (0.1, 128))
        defaults = learner.training_defaults
        self.assertEqual((defaults["steps"], defaults["learning_rate"]), (200 * 97, 0.06))
        self.assertEqual((defaults["schedule"], defaults["nesterov"]), ("half_cosine", False))


if __name__ == "__main__":
    absltest.main()
