# SPDX-License-Identifier: Apache-2.0
import os
import warnings
from unittest import mock

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import Learner, Supervised, Task, augment, losses, methods, networks
from ssl_noisy.augment import views as augment_views
from ssl_noisy.errors import UserError


def values(variables):
    return [v.numpy() for v in variables]


@keras.saving.register_keras_serializable(package="ssl_noisy_tests")
class Student(Supervised):
    """A supervised learner that follows its own average too, as much as `pull` says."""

    pull = 0.0

    def objective(self, labeled):
        images = self.images(labeled)
        logits = self.network(images, training=True)
        teacher = self.averaged_logits(images)
        supervised = ops.mean(losses.cross_entropy(self.given_labels(labeled), logits))
        return {
            "terms": {"supervised_loss": supervised + self.pull * ops.mean(teacher**2)},
            "monitors": {},
        }


def student(**kwargs):
    task, _ = toy.task()
    keras.utils.set_random_seed(0)
    return Student(toy.network(), task, batch_size=4, weight_decay=0.0, **kwargs)


class StepTest(absltest.TestCase):
    def test_weight_decay_is_half_the_squares_of_kernels_only(self):
        learner, _ = toy.learner("supervised", weight_decay=0.5)
        for variable in learner.network.trainable_variables:
            variable.assign(np.full(variable.shape, 0.1 if variable.name == "kernel" else 50.0))
        logs = toy.fit(learner, steps=1)
        # 8 * 3*3 convolution and 72 * 10 dense weights of 0.1: 0.5 * 0.5 * 792 * 0.01.
        self.assertAlmostEqual(logs["weight_decay_loss"], 1.98, places=4)

    def test_weight_decay_of_all_counts_biases_and_batch_norm_too(self):
        learner, _ = toy.learner("supervised", weight_decay=0.5, decayed="all")
        for variable in learner.network.trainable_variables:
            variable.assign(np.full(variable.shape, 0.1 if variable.name == "kernel" else 2.0))
        logs = toy.fit(learner, steps=1)
        # 792 weights of 0.1, and scales, offsets and biases of 2: 0.25 * (7.92 + 26 * 4). With
        # the running statistics, 8 zeros and 8 ones, it would be 29.98.
        self.assertAlmostEqual(logs["weight_decay_loss"], 27.98, places=4)

    def test_moving_average_follows_each_update(self):
        # The n-th update keeps (1 + n) / (10 + n), and no more than `ema_momentum`.
        for warmup, kept in ((True, (2 / 11, 3 / 12, 0.3)), (False, (0.3, 0.3, 0.3))):
            learner, _ = toy.learner("supervised", ema_momentum=0.3, ema_warmup=warmup)
            expected = values(learner.network.trainable_variables)
            for step, momentum in enumerate(kept):
                toy.fit(learner, steps=1, start=step)
                now = values(learner.network.trainable_variables)
                expected = [momentum * a + (1 - momentum) * b for a, b in zip(expected, now)]
            for average, value in zip(learner.averages, expected, strict=True):
                np.testing.assert_allclose(average.numpy(), value, atol=1e-6)

    def test_averaged_weights_swap_and_return_even_after_an_error(self):
        learner, _ = toy.learner("supervised")
        toy.fit(learner)
        live, averages = values(learner.network.trainable_variables), values(learner.averages)
        statistics = values(learner.network.non_trainable_variables)
        with self.assertRaises(KeyError), learner.averaged_weights():
            for a, b in zip(values(learner.network.trainable_variables), averages):
                np.testing.assert_array_equal(a, b)
            # Batch-norm statistics are the live ones.
            for a, b in zip(values(learner.network.non_trainable_variables), statistics):
                np.testing.assert_array_equal(a, b)
            raise KeyError
        for a, b in zip(values(learner.network.trainable_variables), live):
            np.testing.assert_array_equal(a, b)
        self.assertTrue(any((a != b).any() for a, b in zip(live, averages)))

    def test_average_statistics_averages_and_swaps_the_running_statistics(self):
        learner, _ = toy.learner(
            "supervised", ema_momentum=0.75, ema_warmup=False, average_statistics=True
        )
        followed = [*learner.network.trainable_variables, *learner.running_statistics]
        self.assertLen(learner.running_statistics, 2)
        expected = values(followed)
        for step in range(2):
            toy.fit(learner, steps=1, start=step)
            expected = [0.75 * a + 0.25 * b for a, b in zip(expected, values(followed))]
        live = values(followed)
        with learner.averaged_weights():
            for a, b, c in zip(values(followed), expected, live, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6)
                self.assertGreater(np.abs(a - c).max(), 0)
        for a, b in zip(values(followed), live):
            np.testing.assert_array_equal(a, b)

    def test_averaged_logits_are_of_the_average_and_change_no_variable(self):
        learner, _ = toy.learner("supervised", average_statistics=True)
        toy.fit(learner)
        images = ops.cast(learner.task.images[:9], "float32")
        before = values(learner.variables)
        for training in (True, False):
            logits = learner.averaged_logits(images, training=training)
            for a, b in zip(values(learner.variables), before):
                np.testing.assert_array_equal(a, b)
            live = learner.network(images, training=False)
            with learner.averaged_weights(), learner.kept_statistics():
                expected = learner.network(images, training=training)
            np.testing.assert_allclose(logits, expected, atol=1e-5)
            self.assertGreater(np.abs(logits - live).max(), 1e-3)

    def test_averaged_logits_with_live_statistics_and_without_average(self):
        images = ops.cast(toy.digits()[0][:9], "float32")
        for momentum in (0.5, 0.0):
            learner, _ = toy.learner("supervised", ema_momentum=momentum)
            toy.fit(learner)
            with learner.averaged_weights():
                expected = learner.network(images, training=False)
            logits = learner.averaged_logits(images, training=False)
            np.testing.assert_allclose(logits, expected, atol=1e-5)

    def test_averaged_logits_draw_dropout_of_their_own(self):
        inputs = keras.Input((8, 8, 1))
        x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(inputs))
        network = keras.Model(inputs, keras.layers.Dense(10)(x))
        learner = Supervised(network, toy.task()[0])
        images = ops.cast(learner.task.images[:9], "float32")
        # The weights are still the same: the noise alone differs, a student's too.
        answers = [learner.averaged_logits(images) for _ in range(2)]
        answers.append(network(images, training=True))
        for i in range(3):
            self.assertGreater(np.abs(answers[i] - answers[i - 1]).max(), 1)

    def test_no_gradient_flows_through_averaged_logits(self):
        states = []
        for pull in (0.0, 10.0):
            # Without an average the live weights answer, which a gradient would reach.
            learner = student(ema_momentum=0.0, weak_augmentation="none")
            learner.pull = pull
            learner.compile(keras.optimizers.SGD(0.1))
            logs = toy.fit(learner, steps=1)
            states.append([logs["supervised_loss"], values(learner.network.trainable_variables)])
        self.assertGreater(states[1][0] - states[0][0], 0.1)
        for a, b in zip(states[0][1], states[1][1]):
            np.testing.assert_allclose(a, b, atol=1e-6)

    def test_progress_is_the_share_of_steps_and_ends_at_1(self):
        learner, _ = toy.learner("supervised", steps=8, compiled=False)
        for step, expected in ((0, 0.0), (2, 0.25), (8, 1.0), (11, 1.0)):
            learner.step.assign(step)
            self.assertEqual(float(learner.fraction_done()), expected)

    def test_steps_are_the_methods_own_unless_told(self):
        self.assertEqual(Supervised(toy.network()).steps, 2**20)
        self.assertEqual(methods.get("arazo")(toy.network()).steps, 235_650)
        self.assertEqual(Supervised(toy.network(), steps=3).steps, 3)
        with self.assertRaisesRegex(ValueError, "`steps` .* at least 1 .*Received: steps=0"):
            Supervised(toy.network(), steps=0)

    def test_no_moving_average_with_momentum_zero(self):
        learner, _ = toy.learner("supervised", ema_momentum=0.0)
        toy.fit(learner)
        self.assertEmpty(learner.averages)
        before = values(learner.network.trainable_variables)
        with learner.averaged_weights():
            for a, b in zip(values(learner.network.trainable_variables), before):
                np.testing.assert_array_equal(a, b)

    def test_the_first_step_that_is_not_finite_is_kept(self):
        learner, _ = toy.learner("supervised")
        toy.fit(learner, steps=2)
        self.assertEqual(int(learner.first_nonfinite_step.numpy()), -1)
        bias = learner.network.trainable_variables[-1]
        bias.assign(np.full(bias.shape, np.nan))
        toy.fit(learner, steps=3, start=2)
        self.assertEqual(int(learner.first_nonfinite_step.numpy()), 3)

    def test_kept_statistics_are_kept_and_others_move(self):
        learner, _ = toy.learner("supervised")
        images = ops.cast(learner.task.images[:9], "float32")
        names = ("moving_mean", "moving_variance", "num_updates")
        moving = [v for v in learner.network.variables if v.name in names]
        self.assertLen(moving, 3)
        before = values(moving)
        with learner.kept_statistics():
            logits = learner.network(images, training=True)
        for a, b in zip(values(moving), before):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(logits, learner.network(images, training=True), atol=1e-5)
        self.assertTrue(all((a != b).any() for a, b in zip(values(moving), before)))


class KerasModelTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(augment_views, "rand_augment", toy.noise))

    def test_it_is_its_network_on_images(self):
        learner, _ = toy.learner("fixmatch")
        images = learner.task.images[:6]
        np.testing.assert_allclose(learner(images), learner.network(images), atol=1e-6)
        np.testing.assert_allclose(
            learner.predict(images, verbose=0), learner.network(images), atol=1e-5
        )

    def test_evaluate_reports_accuracy_and_loss_alone(self):
        learner, true_labels = toy.learner("fixmatch")
        toy.fit(learner, true_labels)
        images = learner.task.images
        logits = learner.predict(images, verbose=0)
        logs = learner.evaluate(images, true_labels, verbose=0, return_dict=True)
        self.assertEqual(set(logs), {"accuracy", "loss"})
        accuracy = np.mean(np.argmax(logits, -1) == true_labels)
        self.assertAlmostEqual(logs["accuracy"], accuracy, places=5)

    def test_evaluate_heeds_sample_weights(self):
        learner, true_labels = toy.learner("supervised")
        weights = np.zeros(len(true_labels))
        weights[:3] = 1.0  # the batches after the first have none
        images = learner.task.images
        part = learner.evaluate(images[:3], true_labels[:3], verbose=0, return_dict=True)
        whole = learner.evaluate(
            images, true_labels, sample_weight=weights, verbose=0, return_dict=True
        )
        self.assertAlmostEqual(part["accuracy"], whole["accuracy"], places=5)
        # As in Keras the sum goes by the number of examples: 3 of 120.
        self.assertAlmostEqual(part["loss"], whole["loss"] * 40, places=3)

    def test_losses_of_the_networks_own_layers_count(self):
        learner, _ = toy.learner("supervised", weight_decay=0.0)
        learner.network.layers[-1].kernel.regularizer = keras.regularizers.L2(0.5)
        squares = float(np.sum(learner.network.layers[-1].kernel.numpy() ** 2))
        logs = toy.fit(learner, steps=1)
        self.assertAlmostEqual(logs["loss"] - logs["supervised_loss"], squares / 2, places=4)

    def test_unmeasured_pseudo_labels_are_not_reported_as_wrong(self):
        learner, true_labels = toy.learner("fixmatch")
        self.assertNotIn("pseudo_label_accuracy", toy.fit(learner))
        self.assertIn("pseudo_label_accuracy", toy.fit(learner, true_labels))

    def test_a_loss_or_metrics_of_compile_are_refused_and_not_ignored(self):
        learner, _ = toy.learner("supervised", compiled=False)
        for kwargs in ({"loss": "mse"}, {"metrics": ["accuracy"]}):
            learner.compile("sgd", **kwargs)
            with self.assertRaisesRegex(ValueError, "call `compile` without"):
                learner.batches()

    def test_a_second_task_is_refused(self):
        learner, _ = toy.learner("supervised")
        with self.assertRaisesRegex(ValueError, "has a task. Make a new learner"):
            learner.attach(learner.task)

    def test_fit_takes_validation_data(self):
        learner, true_labels = toy.learner("fixmatch")
        history = learner.fit(
            learner.batches(),
            steps_per_epoch=2,
            epochs=2,
            validation_data=(learner.task.images, true_labels),
            verbose=0,
            shuffle=False,
        ).history
        self.assertLen(history["val_accuracy"], 2)
        self.assertNotIn("val_mask_rate", history)

    def test_the_network_alone_is_saved_and_loaded(self):
        learner, _ = toy.learner("fixmatch")
        toy.fit(learner)
        path = os.path.join(self.create_tempdir().full_path, "network.keras")
        learner.network.save(path)
        images = learner.task.images[:4]
        np.testing.assert_array_equal(
            keras.models.load_model(path).predict(images, verbose=0),
            learner.network.predict(images, verbose=0),
        )

    def test_resident_data_is_not_saved(self):
        learner, _ = toy.learner("supervised")
        path = os.path.join(self.create_tempdir().full_path, "l.weights.h5")
        learner.save_weights(path)
        with open(path, "rb") as file:
            self.assertNotIn(learner.task.images[0].tobytes(), file.read())


class UsersNetworkTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(augment_views, "rand_augment", toy.noise))

    @parameterized.parameters(*toy.USERS_NETWORKS, "group_norm")
    @pytest.mark.slow
    def test_it_trains_is_validated_saved_and_loaded(self, kind):
        keras.utils.set_random_seed(0)
        task, _ = toy.task()
        network = toy.users_network(kind)
        learner = methods.get("fixmatch")(network, task, batch_size=4, unlabeled_ratio=2)
        learner.compile(keras.optimizers.SGD(0.2))
        test_set = (task.test_images, task.test_labels)
        history = learner.fit(
            learner.batches(), steps_per_epoch=4, validation_data=test_set, verbose=0
        ).history
        live = learner.evaluate(*test_set, verbose=0, return_dict=True)
        with learner.averaged_weights():
            averaged = learner.evaluate(*test_set, verbose=0, return_dict=True)
            copy = networks.portable(network)
            expected = network.predict(task.images, verbose=0)
        for name in ("loss", "accuracy"):
            self.assertAlmostEqual(history[f"val_{name}"][0], averaged[name], places=5)
        self.assertGreater(abs(live["loss"] - averaged["loss"]), 1e-5)
        # The copy keeps the averaged weights.
        np.testing.assert_allclose(copy.predict(task.images, verbose=0), expected, atol=1e-5)
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        learner.save(path)
        loaded = keras.models.load_model(path)
        loaded.attach(task)
        for trained in (learner, loaded):
            toy.fit(trained, steps=1, start=4)
        np.testing.assert_allclose(
            loaded.predict(task.images, verbose=0),
            learner.predict(task.images, verbose=0),
            atol=1e-5,
        )

    @parameterized.parameters("sequential", "functional", "nested")
    def test_a_rotation_head_reads_what_the_last_layer_reads(self, kind):
        network = toy.users_network(kind)
        task, _ = toy.task()
        learner = methods.get("remixmatch")(network, task)
        images = task.images[:3]
        features, logits = learner.featured_networks[0](images)
        self.assertEqual(features.shape, (3, 36))  # four filters, three by three
        kernel, bias = (
            network.get_weights()[-2:] if kind != "nested" else network.layers[-1].get_weights()
        )
        np.testing.assert_allclose(logits, ops.matmul(features, kernel) + bias, atol=1e-4)
        np.testing.assert_allclose(logits, network(images), atol=1e-5)

    @parameterized.parameters("remixmatch", "cross_split")
    def test_a_second_head_needs_to_know_the_last_layer(self, method):
        task, _ = toy.task()
        inputs = keras.Input((8, 8, 1))
        nested = toy.users_network("functional")
        for network in (toy.users_network("subclassed"), keras.Model(inputs, nested(inputs))):
            with self.assertRaisesRegex(ValueError, "Match|Split.* subclassed or ends in a model"):
                methods.get(method)(network, task)

    @parameterized.parameters(*toy.USERS_NETWORKS, "group_norm")
    def test_a_second_network_has_initial_weights_of_its_own(self, kind):
        learner = methods.get("co_teaching")(toy.users_network(kind), toy.task()[0])
        first, second = (values(network.trainable_variables) for network in learner.networks)
        self.assertLen(first, 8 if kind == "group_norm" else 6)
        self.assertEqual([a.shape for a in first], [b.shape for b in second])
        self.assertGreater(np.abs(first[0] - second[0]).max(), 0.01)

    @parameterized.parameters("divide_mix", "mean_teacher", "arazo", "remixmatch")
    def test_networks_without_batch_norm_train(self, method):
        task, true_labels = toy.task()
        learner = methods.get(method)(
            toy.users_network("group_norm"), task, batch_size=4, steps=8, weak_augmentation="none"
        )
        self.assertEmpty(learner.running_statistics)
        objective = learner.objective(
            **{name: np.arange(size) for name, size in learner.streams().items()}
        )
        for name, value in objective["terms"].items():
            self.assertTrue(np.isfinite(value), name)

    def test_a_network_without_weights_needs_a_task(self):
        for kind in ("sequential", "subclassed"):
            with self.assertRaisesRegex(UserError, "no weights yet. Pass the task"):
                Supervised(toy.users_network(kind))
        network = toy.users_network("subclassed")
        network(np.zeros((1, 8, 8, 1)))
        self.assertEqual(Supervised(network).num_classes, 10)

    def test_networks_that_do_not_fit_the_task_are_refused(self):
        inputs = keras.Input((8, 8, 1))
        dense, flat = keras.layers.Dense, keras.layers.Flatten()(inputs)
        softmax = keras.layers.Softmax()
        for network, message in (
            (keras.Model(inputs, dense(10, "softmax")(flat)), "must return logits.*a softmax"),
            (keras.Model(inputs, softmax(dense(10)(flat))), "must return logits.*a softmax"),
            (keras.Sequential([keras.layers.Flatten(), dense(10, "sigmoid")]), "in a sigmoid"),
            (toy.Subclassed(12), "the task's 10 classes.*None, 12"),
            (keras.Model(inputs, dense(10)(inputs)), "one output for each.*None, 8, 8, 10"),
            (keras.Model(inputs, [dense(10)(flat), dense(10)(flat)]), "one output for each"),
            (networks.build("small_cnn", (16, 16, 3), 10), r"of shape \(8, 8, 1\).*16, 16, 3"),
        ):
            with self.assertRaisesRegex(UserError, message):
                Supervised(network, toy.task()[0])
        any_size = keras.Input((None, None, 1))
        pooled = keras.layers.GlobalAveragePooling2D()(any_size)
        Supervised(keras.Model(any_size, dense(10)(pooled)), toy.task()[0])

    def test_a_class_without_config_trains_and_is_refused_where_it_is_copied(self):
        class WithoutConfig(toy.Subclassed):
            def __init__(self, num_classes):
                super().__init__(num_classes)

            def get_config(self):
                raise NotImplementedError

        class WithWrongConfig(toy.Subclassed):
            def get_config(self):
                return {"num_classes": 3}

        task, _ = toy.task()
        for network, received in (
            (WithoutConfig(10), "NotImplementedError"),
            (WithWrongConfig(10), "other weights"),
        ):
            Supervised(network, task)
            message = f"Give {type(network).__name__}.* a `get_config`.*{received}"
            with self.assertRaisesRegex(UserError, message):
                methods.get("co_teaching")(network, task)
            with self.assertRaisesRegex(UserError, message):
                networks.portable(network)


class FitTest(parameterized.TestCase):
    def test_what_is_no_batch_of_indices_is_refused(self):
        learner, labels = toy.learner("supervised")
        other, _ = toy.learner("supervised")
        images = learner.task.images
        pairs = [(images[:4], labels[:4])] * 2
        right = r"Call learner.fit\(learner.batches\(\), steps_per_epoch=1000\). Received: "
        for train, received in (
            (lambda: learner.fit(images, labels), r"x of shape \(120, 8, 8, 1\)"),
            (lambda: learner.fit(), "x=None"),
            (lambda: learner.fit(learner.batches()), "steps_per_epoch=None"),
            (lambda: other.fit(pair for pair in pairs), "x of shape"),
            (lambda: learner.fit({"images": images}), r"x with the keys \['images'\]"),
            (lambda: learner.train_on_batch(images, labels), r"x of shape \(120, 8, 8, 1\)"),
        ):
            with self.assertRaisesRegex(UserError, right + received):
                train()
        self.assertEqual(int(learner.step.numpy()), 0)
        learner.train_on_batch({"labeled": np.arange(4)})
        self.assertEqual(int(learner.step.numpy()), 1)
        self.assertEqual(learner.predict(images[:3], verbose=0).shape, (3, 10))

    def test_batches_need_no_shuffle(self):
        learner, _ = toy.learner("supervised")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            learner.fit(learner.batches(), steps_per_epoch=1, verbose=0)


class DataTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(augment_views, "rand_augment", toy.noise))

    def test_images_and_labels_are_taken_by_index(self):
        learner, _ = toy.learner("supervised")
        indices = np.array([5, 0, 5], "int32")
        np.testing.assert_array_equal(learner.images(indices), learner.task.images[indices])
        np.testing.assert_array_equal(
            learner.given_labels(indices), learner.task.given_labels[indices]
        )

    def test_true_labels_do_not_reach_the_training(self):
        states = []
        for swap in (False, True):
            learner, true_labels = toy.learner("fixmatch", confidence_threshold=0.0)
            toy.fit(learner, (true_labels + 3) % 10 if swap else true_labels)
            states.append(values(learner.network.trainable_variables))
        for a, b in zip(*states):
            np.testing.assert_array_equal(a, b)

    def test_auto_flips_only_where_the_task_allows(self):
        images, labels = toy.digits()
        for flip, kind in ((True, "flip_shift"), (False, "shift")):
            task = Task(images, labels, num_classes=10, flip=flip)
            self.assertEqual(Supervised(toy.network(), task).weak_kind, kind)

    def test_jitter_changes_colors_then_shifts_by_half_and_flips_where_the_task_allows(self):
        inputs = keras.Input((32, 48, 3))
        network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
        images, labels = np.full((2, 32, 48, 3), 7, "uint8"), np.array([0, 1])
        for flip in (True, False):
            task = Task(images, labels, flip=flip)
            learner = Supervised(network, task, weak_augmentation="jitter")
            indices = np.arange(2, dtype="int32")
            with (
                mock.patch.object(augment, "color_jitter", lambda images, seed: images + 1),
                mock.patch.object(augment, "weak_view") as shifted,
            ):
                learner.weak_view(learner.images(indices), indices)
            np.testing.assert_array_equal(shifted.call_args.args[0], images + 1.0)
            # Half of an eighth of the height.
            self.assertEqual(shifted.call_args.kwargs, {"flip": flip, "max_shift": 2})

    def test_alternating_flip_flips_each_image_every_other_epoch(self):
        images, labels = toy.digits()
        task = Task(images[:8], labels[:8], num_classes=10)
        learner = Supervised(
            toy.network(), task, batch_size=8, weak_augmentation="alternating_flip_shift"
        )
        views = []
        indices = np.arange(8, dtype="int32")
        # Shifts hide the flip: judge by the mass left and right of images with one bright half.
        learner.resident.images.assign(
            np.concatenate(
                [np.full((8, 8, 4, 1), 200, "uint8"), np.zeros((8, 8, 4, 1), "uint8")], axis=2
            )
        )
        for step in range(4):
            learner.step.assign(step)
            view = np.array(learner.weak_view(learner.images(indices), indices))
            views.append(view[:, :, :4].sum((1, 2, 3)) > view[:, :, 4:].sum((1, 2, 3)))
        views = np.array(views)
        np.testing.assert_array_equal(views[0], ~views[1])
        np.testing.assert_array_equal(views[0], views[2])
        np.testing.assert_array_equal(views[1], views[3])

    def test_none_is_the_image_itself(self):
        learner, _ = toy.learner("supervised", weak_augmentation="none")
        indices = np.arange(4, dtype="int32")
        images = learner.images(indices)
        np.testing.assert_array_equal(learner.weak_view(images, indices), images)

    def test_a_network_with_other_classes_is_refused(self):
        images, labels = toy.digits()
        task = Task(images, labels, num_classes=12)
        with self.assertRaisesRegex(ValueError, "one output for each of the task's 12 classes"):
            Supervised(toy.network(), task)

    def test_the_base_has_no_objective(self):
        learner = Learner(toy.network())
        with self.assertRaisesRegex(NotImplementedError, "must define `objective`"):
            learner.objective()


if __name__ == "__main__":
    absltest.main()
