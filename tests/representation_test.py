# SPDX-License-Identifier: Apache-2.0
"""The rank of features and the votes of neighbors, by hand, and where a run writes them."""

import io
import os

import keras
import numpy as np
import pytest
import toy
from absl.testing import absltest, parameterized

from ssl_noisy.data import sources
from ssl_noisy.runs import representation
from ssl_noisy.runs.metrics import read_metrics
from ssl_noisy.runs.run import run
from ssl_noisy.settings import Settings


class RankMeTest(parameterized.TestCase):
    def test_by_hand(self):
        # Singular values 3 and 1: shares 3/4 and 1/4, exp(0.75 ln(4/3) + 0.25 ln 4) = 1.754765.
        # Of their squares it would be 1.384.
        features = np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        for one in (features, features.T, -2 * features):
            self.assertAlmostEqual(representation.rank_me(one), 1.754765, places=4)
        # With an epsilon of 0.5: shares 1.25 and 0.75.
        expected = np.exp(-(1.25 * np.log(1.25) + 0.75 * np.log(0.75)))
        self.assertAlmostEqual(representation.rank_me(features, 0.5), expected, places=6)

    def test_of_singular_values(self):
        features = np.random.default_rng(0).normal(size=(50, 7)) * np.arange(1, 8)
        values = np.linalg.svd(features, compute_uv=False)
        shares = values / values.sum()
        expected = np.exp(-np.sum(shares * np.log(shares)))
        self.assertAlmostEqual(representation.rank_me(features), expected, places=3)

    def test_ends(self):
        self.assertAlmostEqual(representation.rank_me(np.eye(6)), 6, places=4)
        self.assertAlmostEqual(representation.rank_me(np.ones((9, 4))), 1, places=4)
        self.assertAlmostEqual(representation.rank_me(np.zeros((9, 4))), 1, places=4)


class NearestNeighborTest(parameterized.TestCase):
    # Directions at 0, 40, 50 and 180 degrees, in classes 0, 1, 1 and 2.
    KNOWN = np.array([[np.cos(a), np.sin(a)] for a in np.radians([0, 40, 50, 180])])
    LABELS = np.array([0, 1, 1, 2])

    def accuracy(self, degrees, label, **kwargs):
        features = 5 * np.array([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]])
        return representation.nearest_neighbor_accuracy(
            features, np.array([label]), 0.1 * self.KNOWN, self.LABELS, **kwargs
        )

    @parameterized.parameters(
        # At 10 degrees the cosines are 0.985, 0.866, 0.766. One neighbor is of class 0.
        (1, 0.1, 0),
        # e^9.85 = 18,929 against e^8.66 = 5,769 and e^7.66 = 2,122: class 0, though 1 has more.
        (3, 0.1, 0),
        # At a temperature of 1: 2.678 against 2.377 + 2.151.
        (3, 1.0, 1),
        (99, 1.0, 1),  # at most the four there are
    )
    def test_by_hand(self, neighbors, temperature, label):
        kwargs = {"neighbors": neighbors, "temperature": temperature}
        self.assertEqual(self.accuracy(10, label, **kwargs), 1.0)
        self.assertEqual(self.accuracy(10, 1 - label, **kwargs), 0.0)

    def test_defaults_are_the_demos(self):
        self.assertEqual((representation.NEIGHBORS, representation.TEMPERATURE), (200, 0.1))

    def test_blocks_have_no_effect(self):
        images, labels = toy.digits()
        images = images.reshape(len(images), -1).astype("float64")
        found = {
            representation.nearest_neighbor_accuracy(
                images[40:], labels[40:], images[:40], labels[:40], 5, block=block
            )
            for block in (1, 40 * 7, 10**6)
        }
        self.assertLen(found, 1)
        self.assertBetween(found.pop(), 0.7, 0.95)


class MeasureTest(absltest.TestCase):
    def test_features_are_of_the_averaged_weights_in_batches(self):
        learner, _ = toy.learner("simclr", compiled=False)
        images = toy.digits()[0][:7]
        expected, _ = learner.featured_networks[0](images.astype("float32"))
        for batch_size in (3, 7, 9):
            found = representation.features_of(learner, images, batch_size)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        for average in learner.averages:
            average.assign(0 * average.value)
        self.assertEqual(np.abs(representation.features_of(learner, images)).max(), 0)

    def test_labeled_images_are_the_known_ones(self):
        data = sources.load("digits")
        learner, _ = toy.learner("simclr", compiled=False)
        row = representation.measure(learner, data, None)
        self.assertEqual(set(row), {"rank_me", "test_knn_accuracy"})
        features = representation.features_of(learner, learner.task.images)
        self.assertAlmostEqual(row["rank_me"], representation.rank_me(features), places=5)
        expected = representation.nearest_neighbor_accuracy(
            representation.features_of(learner, data.test_images),
            data.test_labels,
            features[:20],
            toy.digits()[1][:20],
        )
        self.assertEqual(row["test_knn_accuracy"], expected)
        self.assertBetween(expected, 0.3, 0.95)


class RunTest(absltest.TestCase):
    def test_a_run_writes_them_and_nothing_about_labels(self):
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        settings = Settings(
            method="simclr",
            validation_split="train[90%:]",
            train_split="train[:10%]",
            network="small_cnn",
            steps=4,
            steps_per_epoch=2,
            run_dir=run_dir,
            method_arguments={"batch_size": 16},
        )
        result = run(settings, io.StringIO())
        rows = read_metrics(run_dir)
        self.assertLen(rows, 2)
        for name in ("rank_me", "validation_knn_accuracy", "test_knn_accuracy"):
            self.assertEqual(rows[-1][name], result["last_epoch"][name])
        self.assertGreater(rows[-1]["rank_me"], 1)
        self.assertNotIn("label_quality", result)
        self.assertFalse(os.path.exists(os.path.join(run_dir, "examples.csv")))
        self.assertEqual(run(settings, io.StringIO()), result)
        model = keras.models.load_model(os.path.join(run_dir, "model.keras"))
        self.assertEqual(model.output_shape, (None, 10))

    @pytest.mark.slow
    def test_a_run_without_any_label(self):
        folder = self.create_tempdir().full_path
        images, labels = toy.digits()
        path = os.path.join(folder, "data.npz")
        arrays = {"images_train": images, "labels_train": labels * 0 - 1}
        arrays |= {"class_names": np.array(list("abcdefghij"))}
        np.savez(path, images_test=images[:20], labels_test=labels[:20], **arrays)
        settings = Settings(
            dataset=f"npz:{path}",
            method="rotnet",
            network="small_cnn",
            steps=2,
            steps_per_epoch=1,
            plots=False,
            run_dir=os.path.join(folder, "run"),
            method_arguments={"batch_size": 16, "record_examples": True},
        )
        result = run(settings, io.StringIO())
        self.assertEqual(result["num_labels"], 0)
        self.assertIn("rank_me", result["last_epoch"])
        self.assertNotIn("test_knn_accuracy", result["last_epoch"])
        self.assertEqual(result["last_epoch"]["probe_loss"], 0)
        os.remove(os.path.join(folder, "run", "result.json"))  # as if it had been killed
        self.assertEqual(run(settings, io.StringIO()), result)


if __name__ == "__main__":
    absltest.main()
