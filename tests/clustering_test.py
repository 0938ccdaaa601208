# SPDX-License-Identifier: Apache-2.0
"""Methods that find clusters, and their runs: no label counts, and no accuracy pretends to."""

import dataclasses
import io
import math
import os
from unittest import mock

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized
from commands import MistakeCase
from keras import ops

from ssl_noisy import losses, matching, methods, model_file, networks, train
from ssl_noisy.augment import views as augment_views
from ssl_noisy.data import sources
from ssl_noisy.runs import evaluation
from ssl_noisy.runs.metrics import read_metrics
from ssl_noisy.runs.run import run
from ssl_noisy.settings import Settings
from ssl_noisy.sweeps import summary, tables

PROBS = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.995, 0.003, 0.002]]


def look_up(method, probs=PROBS, **kwargs):
    """Returns a learner whose network answers the image of value i with row i of `probs`."""
    probs = np.array(probs, "float32")
    inputs = keras.Input((1, 1, 1))
    network = keras.Model(inputs, toy.LookUp(*probs.shape)(inputs))
    network.set_weights([np.log(probs)])
    images = np.arange(len(probs), dtype="uint8").reshape(-1, 1, 1, 1)
    features = np.eye(len(probs), dtype="float32") + 0.1 * np.arange(len(probs))[:, None]
    task = toy.Task(images, np.full(len(probs), -1), num_classes=probs.shape[1], features=features)
    made = methods.get(method)(network, task, **{"batch_size": 2, "weight_decay": 0.0, **kwargs})
    made.strong_view = lambda images: images
    return made


def outcome(made, **indices):
    found = made.objective(**{name: np.array(row, "int32") for name, row in indices.items()})
    flat = {**found["terms"], **found["monitors"]}
    return {name: float(value) for name, value in flat.items()}


class SCANTest(parameterized.TestCase):
    def test_the_loss_by_hand(self):
        made = look_up("scan", num_neighbors=2)
        found = outcome(made, unlabeled=[0, 1], neighbor=[2, 0])
        # 0.7 * 0.2 + 0.2 * 0.2 + 0.1 * 0.6 = 0.24, and 0.1 * 0.7 + 0.8 * 0.2 + 0.1 * 0.1 = 0.24.
        self.assertAlmostEqual(found["consistency_loss"], -math.log(0.24), places=5)
        mean = [0.4, 0.5, 0.1]  # of the anchors alone
        entropy = -sum(p * math.log(p) for p in mean)
        self.assertAlmostEqual(found["balance_loss"], -5 * entropy, places=5)
        self.assertAlmostEqual(found["effective_clusters"], math.exp(entropy), places=5)
        self.assertAlmostEqual(found["confidence"], (0.7 + 0.8) / 2, places=6)

    def test_one_cluster_for_all_is_the_worst_balance(self):
        logits = np.array([[200.0, 0, 0, 0]] * 3, "float32")
        # The floor of 1e-8 in the three others: 3 * 1e-8 * ln 1e8 = 5.5e-7.
        self.assertAlmostEqual(float(losses.entropy_of_mean(logits)), 5.5e-7, places=7)
        even = 200 * np.eye(4, dtype="float32")
        self.assertAlmostEqual(float(losses.entropy_of_mean(even)), math.log(4), places=6)
        np.testing.assert_allclose(losses.disagreement(even, even), np.zeros(4), atol=1e-6)
        # Certain of different clusters: finite, and with a gradient, unlike -log(0).
        values = losses.disagreement(even, np.roll(even, 1, axis=0))
        np.testing.assert_allclose(values, np.full(4, 200 - math.log(2)), rtol=1e-6)

    def test_anchors_and_partners_are_two_batches_with_gradients(self):
        made = look_up("scan", num_neighbors=2, balance_weight=0.0)
        passes, network = [], made.network

        def recorded(views, training):
            passes.append(([int(one) for one in ops.convert_to_numpy(views)[:, 0, 0, 0]], training))
            return network(views, training=training)

        made.__dict__["network"] = recorded
        outcome(made, unlabeled=[0, 3], neighbor=[2, 1])
        self.assertEqual(passes, [([0, 3], True), ([2, 1], True)])
        self.assertEqual(made.images_per_step(), 2 * made.batch_size)
        # A neighbor's row of the table has a gradient: that of -log of the inner product.
        made = look_up("scan", num_neighbors=2, balance_weight=0.0)
        one = {"unlabeled": np.array([0, 0], "int32"), "neighbor": np.array([1, 1], "int32")}
        gradient = toy.gradients(
            lambda: made.objective(**one)["terms"]["consistency_loss"], made.network.weights
        )[0]
        size = np.abs(ops.convert_to_numpy(gradient)).sum(axis=1)
        np.testing.assert_array_equal(size > 1e-3, [True, True, False, False])

    def test_a_partner_is_the_image_itself_or_a_near_one(self):
        learner, _ = toy.learner("scan", num_neighbors=3)
        rows = learner.task.features
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        order = np.argsort(-(unit @ unit.T), axis=1, kind="stable")[:, :4]
        table = ops.convert_to_numpy(learner.neighbors)
        np.testing.assert_array_equal(table[:, 0], np.arange(toy.NUM_EXAMPLES))
        np.testing.assert_array_equal(np.sort(table), np.sort(order))
        counts = np.zeros(4)
        for step in range(40):
            (batch,) = learner.batches(seed=1)[step]
            choices = table[batch["unlabeled"]] == batch["neighbor"][:, None]
            self.assertTrue(choices.any(axis=1).all())
            counts += choices.sum(axis=0)
        # 1280 draws of four: 320 each, with a standard deviation of 15.5.
        np.testing.assert_allclose(counts, 320, atol=4 * 15.5)

    def test_they_are_those_of_the_seed_and_the_step_wherever_images_are(self):
        on_device, _ = toy.learner("scan", seed=3)
        on_host, _ = toy.learner("scan", seed=5, resident="host")
        (expected,) = on_device.batches(seed=7)[6]
        for found in (on_device.batches(seed=7, start=4)[2], on_host.batches(seed=7, start=6)[0]):
            for name in ("unlabeled", "neighbor"):
                np.testing.assert_array_equal(found[0][name], expected[name])
        images = found[0]["neighbor_images"]
        np.testing.assert_array_equal(images, on_host.task.images[expected["neighbor"]])
        (other,) = on_device.batches(seed=8)[6]
        self.assertTrue((other["neighbor"] != expected["neighbor"]).any())

    def test_saved_neighbors_come_before_new_ones(self):
        learner, _ = toy.learner("scan", num_neighbors=2)
        path = os.path.join(self.create_tempdir().full_path, "learner.keras")
        learner.neighbors.assign(np.tile([[3, 4, 5]], (toy.NUM_EXAMPLES, 1)))
        learner.save(path)
        loaded = keras.models.load_model(path)
        loaded.attach(learner.task)
        self.assertLessEqual({*loaded.batches()[0][0]["neighbor"]}, {3, 4, 5})

    def test_without_features(self):
        task, _ = toy.task()
        with self.assertRaisesRegex(ValueError, "SCAN needs a row of features of each image"):
            methods.get("scan")(toy.network(), task)

    def test_defaults_are_the_authors(self):
        learner = methods.get("scan")(toy.network())
        made = (learner.batch_size, learner.num_neighbors, learner.balance_weight)
        self.assertEqual(made, (128, 20, 5.0))
        self.assertEqual((learner.weight_decay, learner.decayed), (1e-4, "all"))
        self.assertEqual(learner.strong_augmentation, "scan")
        defaults = learner.training_defaults
        self.assertEqual(defaults["steps"], 50 * (50_000 // 128))
        made = (defaults["optimizer"], defaults["learning_rate"], defaults["schedule"])
        self.assertEqual(made, ("adam", 1e-4, "constant"))

    def test_strong_views_are_flipped_as_the_task_says_and_not_shifted(self):
        for flip in (True, False):
            learner = methods.get("scan")(toy.network())
            learner.task = mock.Mock(flip=flip)
            self.assertEqual(learner.strong_geometry(), {"flip": flip, "max_shift": 0})


class SelfLabelTest(absltest.TestCase):
    def test_each_confident_cluster_counts_the_same(self):
        probs = [[0.991, 0.005, 0.004], [0.992, 0.004, 0.004], [0.003, 0.003, 0.994], PROBS[1]]
        made = look_up("self_label", probs, batch_size=4)
        made.strong_view = lambda images: (images + 1) % 4  # the view of each is the next image
        found = outcome(made, unlabeled=[0, 1, 2, 3])
        # 0 and 1 are of cluster 0 and seen as rows 1 and 2; 2 is of cluster 2, seen as row 3.
        expected = ((-math.log(0.992) - math.log(0.003)) / 2 - math.log(0.1)) / 2
        self.assertAlmostEqual(found["unsupervised_loss"], expected, places=4)
        self.assertAlmostEqual(found["mask_rate"], 3 / 4)
        mean = np.mean(probs, axis=0)
        entropy = -np.sum(mean * np.log(mean))
        self.assertAlmostEqual(found["effective_clusters"], np.exp(entropy), places=4)

    def test_it_is_the_mean_with_weights_of_the_inverse_frequency(self):
        """As PyTorch computes it: weights n / count, divided by their sum."""
        rng = np.random.default_rng(0)
        values, labels = rng.random(50).astype("float32"), rng.integers(0, 4, 50).astype("int32")
        mask = (rng.random(50) < 0.5).astype("float32")
        labels[labels == 3] = 1  # class 3 is absent
        kept = mask > 0
        weights = kept.sum() / np.bincount(labels[kept], minlength=5).clip(1)
        expected = np.average(values[kept], weights=weights[labels[kept]])
        found = losses.class_balanced_mean(values, labels, mask, 5)
        self.assertAlmostEqual(float(found), expected, places=6)

    def test_no_gradient_flows_through_the_labels(self):
        made = look_up("self_label", batch_size=1)
        made.strong_view = lambda images: images * 0  # row 0 is what every image is seen as
        one = {"unlabeled": np.array([3], "int32")}
        gradient = toy.gradients(
            lambda: made.objective(**one)["terms"]["unsupervised_loss"], made.network.weights
        )[0]
        size = np.abs(ops.convert_to_numpy(gradient)).sum(axis=1)
        np.testing.assert_array_equal(size > 1e-3, [True, False, False, False])

    def test_defaults_are_the_authors(self):
        learner = methods.get("self_label")(toy.network())
        self.assertEqual((learner.batch_size, learner.confidence_threshold), (1000, 0.99))
        self.assertEqual(learner.training_defaults["steps"], 200 * (50_000 // 1000))


class EvaluationTest(absltest.TestCase):
    def test_a_row_has_no_accuracy_of_classes(self):
        learner, _ = toy.learner("scan", compiled=False)
        data = sources.load("digits")
        found = evaluation.row(learner, data, None)
        self.assertEqual([*found], ["test_cluster_accuracy", "test_nmi"])
        clusters = evaluation.averaged_logits(learner, data.test_images).argmax(axis=-1)
        table = matching.counts(clusters, data.test_labels, 10, 10)
        self.assertEqual(found["test_cluster_accuracy"], matching.accuracy(table))
        # That of the best class for each cluster is at least as high, that of no matching lower.
        self.assertLessEqual(found["test_cluster_accuracy"], table.max(axis=0).sum() / 500)
        self.assertGreaterEqual(found["test_cluster_accuracy"], np.trace(table) / 500)


def pixels(folder):
    """Writes a feature file of the digits' pixels and returns its path."""
    data, path = sources.load("digits"), os.path.join(folder, "pixels.npz")
    features = data.images.reshape(len(data.images), -1).astype("float32")
    np.savez(path, ids=data.ids, features=features)
    return path


def settings(folder, method="scan", **changes):
    own = {"batch_size": 64, **changes.pop("method_arguments", {})}
    small = {"network": "small_cnn", "steps": 4, "steps_per_epoch": 2, "plots": False}
    run_dir = os.path.join(folder, method)
    return Settings(method=method, run_dir=run_dir, method_arguments=own, **small | changes)


class RunTest(absltest.TestCase):
    def without_rand_augment(self):
        """RandAugment takes seconds to trace."""
        self.enterContext(mock.patch.object(augment_views, "rand_augment", toy.noise))

    def test_a_run_and_its_self_labeling(self):
        self.without_rand_augment()
        folder = self.create_tempdir().full_path
        made = settings(folder, features=pixels(folder), num_clusters=12)
        result = run(made, io.StringIO())
        self.assertEqual(result["num_labels"], 0)
        self.assertEqual({*result["test_accuracy"].values()}, {None})
        self.assertNoCommonElements(result, ("per_class_recall", "confusion_matrix"))
        self.assertEqual(result["calibration"], {"temperature": 1.0})
        found, last = result["clusters"], read_metrics(made.run_dir)[-1]
        for name in ("test_cluster_accuracy", "test_nmi"):
            self.assertEqual((found[name], found[name]), (last[name], result["last_epoch"][name]))
        self.assertNotIn("test_accuracy", last)
        table = np.array([found["counts_by_class"][name] for name in result["class_names"]])
        self.assertEqual((table.shape, table.sum()), ((10, 12), 500))
        self.assertAlmostEqual(matching.accuracy(table), found["test_cluster_accuracy"])
        self.assertEqual(found["class_of_cluster"].count(None), 2)
        with open(os.path.join(made.run_dir, "labels.json")) as file:
            self.assertIn('"none"', file.read())
        text = train.table(result)
        self.assertIn(f"accuracy {found['test_cluster_accuracy']:.2%} if each is matched", text)
        self.assertIn("scan without labels, 12 clusters of test images", text)
        network, metadata = model_file.read(os.path.join(made.run_dir, "model.keras"))
        self.assertEqual(network.output_shape, (None, 12))
        self.assertEqual(metadata.class_names, tuple(f"cluster {i}" for i in range(12)))
        self.assertEqual(run(made, io.StringIO()), result)  # at once

        again = settings(
            folder,
            "self_label",
            num_clusters=12,
            initial_weights=made.run_dir,
            learning_rate=1e-12,
            method_arguments={"confidence_threshold": 0.0, "weight_decay": 0.0},
        )
        result = run(again, io.StringIO())
        self.assertNotIn("pseudo_label_accuracy", result["last_epoch"])
        self.assertEqual(result["last_epoch"]["mask_rate"], 1)
        # It began with the last layer, too.
        network_again, _ = model_file.read(os.path.join(again.run_dir, "model.keras"))
        for before, after in zip(network.weights, network_again.weights, strict=True):
            if "moving" not in before.path and "updates" not in before.path:
                np.testing.assert_allclose(before, after, atol=1e-6, err_msg=before.path)

    def unlabeled(self):
        """Returns settings of a run on digits of which nobody knows a label."""
        folder = self.create_tempdir().full_path
        images, labels = toy.digits()
        path, features = os.path.join(folder, "data.npz"), os.path.join(folder, "features.npz")
        np.savez(path, images_train=images, labels_train=labels * 0 - 1)
        rows = images.reshape(len(images), -1).astype("float32")
        np.savez(features, ids=np.arange(len(images)), features=rows)
        return settings(folder, dataset=f"npz:{path}", features=features)

    def test_without_any_label_the_number_of_clusters_must_be_given(self):
        made = self.unlabeled()
        with self.assertRaisesRegex(ValueError, "Say how many clusters .*: --num_clusters=10"):
            run(made, io.StringIO())
        self.assertFalse(os.path.exists(made.run_dir))

    @pytest.mark.slow
    def test_a_run_without_any_label(self):
        self.without_rand_augment()
        result = run(dataclasses.replace(self.unlabeled(), num_clusters=4), io.StringIO())
        self.assertEqual(result["clusters"], {"num_clusters": 4})
        self.assertIn("4 clusters, no test images", train.table(result))

    @pytest.mark.slow
    def test_it_finds_the_digits(self):
        folder = self.create_tempdir().full_path
        made = settings(
            folder,
            features=pixels(folder),
            steps=300,
            steps_per_epoch=100,
            learning_rate=0.001,
            method_arguments={"batch_size": 128},
        )
        found = run(made, io.StringIO())
        self.assertGreater(found["clusters"]["test_cluster_accuracy"], 0.6)
        self.assertGreater(found["clusters"]["test_nmi"], 0.6)
        self.assertGreater(found["last_epoch"]["effective_clusters"], 9)


class MistakesTest(MistakeCase):
    def test_flags_about_labels_do_not_go_with_clusters(self):
        for flag in (
            "--num_labels=40",
            "--label_draw=uniform",
            "--noise=symmetric:0.2",
            "--remove_labels=aum",
            "--baseline=supervised",
            "--keep_best",
        ):
            line = self.refuse("--method=scan", flag)
            self.assertIn(f"{flag.partition('=')[0]} does not go with --method=scan", line)
        self.assertIn("--features does not go", self.refuse("--method=self_label", "--features=x"))
        line = self.refuse("--num_clusters=5")
        self.assertIn("--num_clusters has no effect with --method=fixmatch", line)
        self.assertIn("finds clusters, whose", self.refuse("--baseline=scan"))

    def test_what_a_run_begins_with(self):
        self.assertIn("needs --features=FILE", self.refuse("--method=scan"))
        small = ("--network=small_cnn", "--method=self_label")
        self.assertIn("needs --initial_weights=RUN", self.refuse(*small))
        path = os.path.join(self.create_tempdir().full_path, "model.keras")
        network = networks.build("small_cnn", (8, 8, 1), 10)
        network.save(path)
        model_file.add_metadata(path, model_file.Metadata(tuple("0123456789")))
        line = self.refuse(*small, f"--initial_weights={path}")
        self.assertIn("begins with 10 clusters", line)
        self.assertIn("Received: a model of 0, 1, 2, 3", line)


class SweepTest(absltest.TestCase):
    def test_clusters_have_rows_of_their_own(self):
        plain = mock.Mock(settings=Settings(method="supervised"), values={})
        scan = mock.Mock(settings=Settings(method="scan"), values={})
        plain.name, scan.name = "plain", "scan"
        extra = {"test_cluster_accuracy_last", "test_nmi_last"}
        self.assertNoCommonElements(tables.columns([], [plain]), extra)
        self.assertContainsSubset(extra, tables.columns([], [plain, scan]))
        none = dict.fromkeys(evaluation.PROTOCOLS)
        results = {
            "plain": {"test_accuracy": none | {"last": 0.9}, "num_labels": 50, "last_epoch": {}},
            "scan": {"test_accuracy": none, "num_labels": 0},
        }
        results["scan"]["last_epoch"] = {"test_cluster_accuracy": 0.8, "test_nmi": 0.7}
        results = {k: tables.of_result(v | {"labels_sha256": ""}) for k, v in results.items()}
        rows = tables.collect([], [plain, scan], {}, results.get)
        self.assertEqual([row["num_labels"] for row in rows], [50, 0])
        lines = summary.summarize(rows, ("method", "num_labels", "seed"))
        found = [(line["method"], line["protocol"], line["mean"]) for line in lines]
        expected = [("supervised", "last", 0.9)]
        expected += [("scan", "test_cluster_accuracy", 0.8), ("scan", "test_nmi", 0.7)]
        self.assertEqual(found, expected)
        self.assertEqual([*summary.curves(lines)], ["supervised"])


if __name__ == "__main__":
    absltest.main()
