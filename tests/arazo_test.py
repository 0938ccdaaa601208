# SPDX-License-Identifier: Apache-2.0
"""Arazo's formulas by hand, the life of a soft label, and the mean of snapshots."""

import os
from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest
from keras import ops

from ssl_noisy import Task, augment, losses, methods

LABELED = np.array([0, 1], "int32")
UNLABELED = np.array([40, 41], "int32")
WARMUP = np.array([2, 3, 4, 5], "int32")


def logarithms(probs):
    return np.log(np.array(probs, "float32"))


def softmax(logits):
    return ops.convert_to_numpy(ops.softmax(logits, axis=-1))


def make(**kwargs):
    """Returns a learner on digits past its warm-up, whose views are the negatives of images."""
    sizes = {"batch_size": 2, "unlabeled_batch_size": 2}
    learner, _ = toy.learner("arazo", compiled=False, **{**sizes, **kwargs})
    learner.weak_view = lambda images, indices: 255.0 - images
    return learner


def step(learner):
    """Takes one step on fixed indices; returns its outcome, and what `mixup` was given."""
    with mock.patch.object(augment, "mixup", wraps=augment.mixup) as mixup:
        outcome = learner.objective(warmup=WARMUP, labeled=LABELED, unlabeled=UNLABELED)
    images, soft_labels = (ops.convert_to_numpy(value) for value in mixup.call_args.args[:2])
    return outcome, images, soft_labels


class FormulaTest(absltest.TestCase):
    def test_prior_loss_by_hand(self):
        # log 5: KL(uniform || h) alone is 0 here.
        self.assertAlmostEqual(float(losses.prior_loss(np.zeros((4, 5)))), 1.609438, places=5)
        # h = (0.7, 0.3). The mean of each example's logarithms would be 0.9486, the sum over
        # classes 1.5606, the entropy of h 0.6109, KL(uniform || h) 0.0872.
        logits = logarithms([[0.9, 0.1], [0.5, 0.5]])
        self.assertAlmostEqual(float(losses.prior_loss(logits)), 0.780324, places=5)

    def test_terms_by_hand(self):
        inputs = keras.Input((1, 1, 1))
        network = keras.Model(inputs, toy.LookUp(4, 2)(inputs))
        network.set_weights([logarithms([[0.9, 0.1], [0.5, 0.5], [0.8, 0.2], [0.6, 0.4]])])
        task = Task(np.arange(4, dtype="uint8").reshape(4, 1, 1, 1), np.array([1, 0, -1, -1]))
        learner = methods.get("arazo")(
            network,
            task,
            batch_size=2,
            unlabeled_batch_size=2,
            warmup_epochs=0,
            mixup_alpha=0.0,
            weak_augmentation="none",
        )
        learner.soft_labels.assign([[0, 1], [1, 0], [0.3, 0.7], [0.25, 0.75]])
        indices = {"labeled": np.array([0, 1], "int32"), "unlabeled": np.array([2, 3], "int32")}
        terms = learner.objective(warmup=np.zeros(4, "int32"), **indices)["terms"]
        # (-ln 0.1 - ln 0.5 - 0.3 ln 0.8 - 0.7 ln 0.2 - 0.25 ln 0.6 - 0.75 ln 0.4) / 4; with the
        # labels renewed before 1.0423, with hard ones 1.3804.
        self.assertAlmostEqual(float(terms["mixed_loss"]), 1.251052, places=5)
        # 0.8 times that of h = (0.7, 0.3).
        self.assertAlmostEqual(float(terms["prior_loss"]), 0.624259, places=5)
        # 0.4 * (0.325083 + 0.693147 + 0.500402 + 0.673012) / 4; the entropy of h gives 0.2443.
        self.assertAlmostEqual(float(terms["entropy_loss"]), 0.219164, places=5)
        expected = [[0, 1], [1, 0], [0.8, 0.2], [0.6, 0.4]]
        np.testing.assert_allclose(learner.soft_labels.numpy(), expected, atol=1e-6)

    def test_one_share_mixes_the_whole_batch_and_may_be_the_smaller(self):
        learner = make()
        with mock.patch.object(augment, "mixup", wraps=augment.mixup) as mixup:
            learner.objective(warmup=WARMUP, labeled=LABELED, unlabeled=UNLABELED)
        self.assertEqual(mixup.call_args.kwargs, {"alpha": 1.0})

    def test_defaults_are_the_authors(self):
        task = Task(np.zeros((3, 8, 8, 1), "uint8"), np.array([0, -1, -1]), num_classes=10)
        learner = methods.get("arazo")(toy.network(), task)
        self.assertEqual(learner.streams(), {"warmup": 100, "labeled": 16, "unlabeled": 84})
        self.assertEqual((learner.warmup_epochs, learner.mixup_alpha), (10, 1.0))
        self.assertEqual((learner.prior_weight, learner.entropy_weight), (0.8, 0.4))
        self.assertEqual((learner.weight_decay, learner.decayed), (1e-4, "all"))
        self.assertEqual((learner.num_snapshots, learner.weak_augmentation), (10, "jitter"))
        defaults = learner.training_defaults
        self.assertEqual((defaults["learning_rate"], defaults["momentum"]), (0.1, 0.9))
        self.assertFalse(defaults["nesterov"])
        # 49,500 unlabeled images, 84 a step: 589 steps an epoch.
        self.assertEqual(defaults["steps"], 10 * 5 + 400 * (49_500 // 84))

    def test_streams_and_pools(self):
        learner = make(batch_size=3, unlabeled_batch_size=7)
        self.assertEqual(learner.streams(), {"warmup": 10, "labeled": 3, "unlabeled": 7})
        pools = learner.pools()
        np.testing.assert_array_equal(pools["warmup"], np.arange(20))
        np.testing.assert_array_equal(pools["labeled"], np.arange(20))
        np.testing.assert_array_equal(pools["unlabeled"], np.arange(20, 120))


class SoftLabelTest(absltest.TestCase):
    def test_an_unlabeled_one_is_the_answer_to_the_plain_image_in_training_mode(self):
        learner = make()
        plain = learner.images(np.concatenate([LABELED, UNLABELED]))
        with learner.kept_statistics():
            whole = softmax(learner.network(plain, training=True))[2:]
            alone = softmax(learner.network(plain[2:], training=True))
        others = [alone, softmax(learner.network(plain[2:], training=False))]
        before = learner.soft_labels.numpy()
        step(learner)
        after = learner.soft_labels.numpy()
        np.testing.assert_allclose(after[UNLABELED], whole, atol=1e-6)
        for other in others:  # without the labeled images in the batch, in evaluation mode
            self.assertGreater(np.abs(after[UNLABELED] - other).max(), 1e-3)
        np.testing.assert_array_equal(
            np.delete(after, UNLABELED, 0), np.delete(before, UNLABELED, 0)
        )

    def test_the_first_label_is_the_answer_to_the_view_in_evaluation_mode(self):
        learner = make()
        views = 255.0 - learner.images(UNLABELED)
        expected = softmax(learner.network(views, training=False))
        _, images, soft_labels = step(learner)
        np.testing.assert_array_equal(images[2:], views)
        np.testing.assert_allclose(soft_labels[2:], expected, atol=1e-6)
        np.testing.assert_array_equal(soft_labels[:2], np.eye(10)[:2])
        # The second time it is what the first step wrote.
        stored = learner.soft_labels.numpy()[UNLABELED]
        self.assertGreater(np.abs(stored - expected).max(), 1e-3)
        outcome, _, soft_labels = step(learner)
        np.testing.assert_array_equal(soft_labels[2:], stored)
        np.testing.assert_array_equal(outcome["pseudo_labels"], stored.argmax(-1))
        np.testing.assert_array_equal(outcome["mask"], [1, 1])

    def test_the_warm_up_takes_labeled_examples_and_writes_no_label(self):
        learner = make(warmup_epochs=1, steps=50)
        self.assertEqual(learner.warmup_steps, 5)
        before = learner.soft_labels.numpy()
        for steps_done, taken in ((0, WARMUP), (4, WARMUP), (5, [*LABELED, *UNLABELED])):
            np.testing.assert_array_equal(learner.soft_labels.numpy(), before)
            learner.step.assign(steps_done)
            outcome, images, soft_labels = step(learner)
            np.testing.assert_array_equal(images, 255.0 - learner.task.images[taken])
            self.assertEqual(float(outcome["monitors"]["mask_rate"]), float(steps_done == 5))
            if steps_done < 5:
                np.testing.assert_array_equal(soft_labels, np.eye(10)[[2, 3, 4, 5]])
        self.assertTrue((learner.soft_labels.numpy() != before).any())

    def test_warmup_steps_are_whole_passes_and_at_most_a_tenth(self):
        sizes = {"batch_size": 2, "unlabeled_batch_size": 4, "warmup_epochs": 3}
        # 3 passes of 20 labels in batches of 2 + 4, 4 a pass; not ceil(60 / 6), nor 3 * 3, and
        # not 3 * 10 of batches of 2.
        self.assertEqual(make(**sizes, steps=1000).warmup_steps, 12)
        self.assertEqual(make(**sizes, steps=70).warmup_steps, 7)

    def test_a_labeled_one_stays_for_ever(self):
        learner, _ = toy.learner("arazo", warmup_epochs=1, steps=60, unlabeled_batch_size=16)
        self.assertEqual(learner.warmup_steps, 1)
        expected = np.eye(10)[learner.task.given_labels[:20]]
        for start in (0, 1):
            toy.fit(learner, steps=1 + 11 * start, start=start)
            soft_labels = learner.soft_labels.numpy()
            np.testing.assert_array_equal(soft_labels[:20], expected)
            # One step of warm-up, then 12 * 16 unlabeled ones of 100: a whole pass is among them.
            np.testing.assert_allclose(soft_labels[20:].sum(-1), start, atol=1e-5)

    def test_they_are_saved_and_a_task_of_another_size_is_refused(self):
        learner, _ = toy.learner("arazo")
        toy.fit(learner)
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        learner.save(path)
        loaded = keras.models.load_model(path)
        loaded.save(path)  # without a task, it still has them
        loaded = keras.models.load_model(path)
        smaller = Task(learner.task.images[:50], learner.task.given_labels[:50], num_classes=10)
        with self.assertRaisesRegex(
            ValueError, "of 120 examples.*Received: one of 50 examples"
        ) as caught:
            loaded.attach(smaller)
        self.assertNotIn("\n", str(caught.exception))
        loaded.attach(learner.task)
        np.testing.assert_array_equal(loaded.soft_labels.numpy(), learner.soft_labels.numpy())
        self.assertGreater(loaded.soft_labels.numpy()[20:].sum(), 5)


class DropoutTest(absltest.TestCase):
    def test_labels_are_made_without_dropout_and_the_training_has_it(self):
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
        network = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Rescaling(0.01)(x)))
        task, _ = toy.task()
        kwargs = {
            "batch_size": 2,
            "unlabeled_batch_size": 2,
            "warmup_epochs": 0,
            "mixup_alpha": 0.0,
        }
        learner = methods.get("arazo")(network, task, weak_augmentation="none", **kwargs)
        images = learner.images(np.concatenate([LABELED, UNLABELED]))
        plain = network(images, training=False)
        with learner.without_dropout():
            np.testing.assert_array_equal(network(images, training=True), plain)
        self.assertEqual(network.layers[2].rate, 0.5)
        with self.assertRaises(KeyError), learner.without_dropout():
            raise KeyError
        self.assertEqual(network.layers[2].rate, 0.5)
        outcome, _, soft_labels = step(learner)
        np.testing.assert_allclose(
            learner.soft_labels.numpy()[UNLABELED], softmax(plain)[2:], atol=1e-6
        )
        undropped = ops.mean(losses.soft_cross_entropy(soft_labels, plain))
        self.assertNotAlmostEqual(float(outcome["terms"]["mixed_loss"]), float(undropped), places=3)
        learner.compile(keras.optimizers.SGD(0.0))
        toy.fit(learner, steps=1)
        self.assertEqual(network.layers[2].rate, 0.5)
        with self.assertRaises(KeyError), learner.without_dropout():
            raise KeyError
        self.assertEqual(network.layers[2].rate, 0.5)


class SnapshotTest(absltest.TestCase):
    def test_the_average_is_the_mean_of_the_snapshots(self):
        learner, _ = toy.learner("arazo", steps=16, num_snapshots=2, ema_momentum=0.0)
        followed = [*learner.network.trainable_variables, *learner.running_statistics]
        history = []
        for start in range(17):
            toy.fit(learner, steps=1, start=start)
            history.append(np.concatenate([v.numpy().ravel() for v in followed]))
            average = np.concatenate([v.numpy().ravel() for v in learner.averages])
            steps_done = start + 1
            if steps_done <= 15:  # before the first snapshot the live weights, then it
                expected = history[start]
            else:  # the mean of steps 15 and 16, and it stays so beyond the end
                expected = (history[14] + history[15]) / 2
            np.testing.assert_allclose(average, expected, atol=1e-6, err_msg=str(steps_done))
        self.assertGreater(np.abs(history[14] - history[15]).max(), 1e-3)

    def test_ten_snapshots_lie_in_the_last_eighth(self):
        learner = make(steps=400, num_snapshots=10, ema_momentum=0.25)
        taken = {}
        for steps_done in range(1, 402):
            learner.step.assign(steps_done)
            momentum = float(learner.average_momentum())
            if steps_done < 355:
                # Warmed up at first: 2 / 11 and 3 / 12.
                self.assertAlmostEqual(momentum, 2 / 11 if steps_done == 1 else 0.25, places=6)
            elif momentum < 1:
                taken[steps_done] = round(1 / (1 - momentum))
        # As the authors' epochs of 400; the k-th one counts 1 / k.
        self.assertEqual(taken, dict(zip(range(355, 401, 5), range(1, 11))))


if __name__ == "__main__":
    absltest.main()
