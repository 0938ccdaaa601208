# SPDX-License-Identifier: Apache-2.0
"""Feature files: rows found by pixels or ids, and files that are refused."""

import dataclasses
import pathlib

import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy.data import feature_file
from ssl_noisy.data.dataset import Dataset
from ssl_noisy.data.rows import Rows


def made(num_examples=6, seed=0):
    """Returns a small data set whose ids are 10, 20, ..."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num_examples + 2, 4, 5, 3), np.uint8)
    return Dataset(
        name="made",
        version="1",
        images=images[:num_examples],
        labels=np.arange(num_examples, dtype=np.int32) % 2,
        ids=10 * np.arange(1, num_examples + 1, dtype=np.int64),
        test_images=images[num_examples:],
        test_labels=np.array([0, 1], np.int32),
        validation_images=None,
        validation_labels=None,
        class_names=("a", "b"),
        flip=True,
    )


class FeatureFileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(self.create_tempdir().full_path, "features.npz")
        self.data = made()

    def save(self, **arrays):
        np.savez(self.path, **arrays)
        return feature_file.read(self.path)

    def written(self, images, values, extractor="sum of pixels", key="abc"):
        digests = feature_file.digests(images)
        with feature_file.writing(self.path, digests, extractor, key) as writer:
            for start in range(0, len(values), 3):
                writer.append(values[start : start + 3])
        return feature_file.read(self.path)

    def test_a_digest_is_that_of_shape_and_pixels(self):
        images = np.zeros((3, 2, 6, 1), np.uint8)
        images[1, 1, 5] = 1
        found = feature_file.digests(images)
        self.assertEqual((found.dtype, found.shape), (np.uint64, (3,)))
        self.assertEqual(found[0], found[2])
        self.assertNotEqual(found[0], found[1])
        self.assertNotEqual(found[0], feature_file.digests(images.reshape(3, 3, 4, 1))[0])
        rows = Rows(images, np.array([1, 0]))
        np.testing.assert_array_equal(feature_file.digests(rows), found[[1, 0]])

    def test_rows_are_found_by_pixels_in_any_split_and_order(self):
        images = np.concatenate([self.data.test_images, self.data.images[::-1]])
        values = np.arange(16, dtype=np.float32).reshape(8, 2)
        found = self.written(images, values)
        self.assertEqual((found.extractor, found.key), ("sum of pixels", "abc"))
        np.testing.assert_array_equal(found.test(self.data), values[:2])
        np.testing.assert_array_equal(found.training(self.data), values[:1:-1])
        some = dataclasses.replace(
            self.data,
            images=self.data.images[[1, 4]],
            labels=self.data.labels[:2],
            ids=np.arange(2),
        )
        np.testing.assert_array_equal(found.training(some), values[[6, 3]])
        self.assertEqual(feature_file.key_of(self.path), "abc")

    def test_statistics_are_found_like_features(self):
        digests = feature_file.digests(self.data.images[::-1])
        values = {"confidence": np.array([0.6, np.nan, 0.4, 0.3, 0.2, 0.1])}
        with feature_file.writing(self.path, digests, "", "", values) as writer:
            writer.append(np.zeros((6, 2), np.float32))
        found = feature_file.read(self.path)
        np.testing.assert_array_equal(
            found.statistic("confidence", self.data), [0.1, 0.2, 0.3, 0.4, np.nan, 0.6]
        )
        self.assertIsNone(found.statistic("variability", self.data))

    def test_large_features_are_mapped(self):
        images = np.arange(2000, dtype=np.uint16).view(np.uint8).reshape(2000, 1, 1, 2)
        images = np.concatenate([images, images[..., :1]], axis=-1)
        values = np.arange(2000 * 200, dtype=np.float32).reshape(2000, 200)
        found = self.written(images, values)
        self.assertIsInstance(found.features, np.memmap)
        np.testing.assert_array_equal(found.features, values)

    def test_a_file_from_elsewhere_has_published_ids(self):
        values = np.arange(16, dtype=np.float64).reshape(8, 2)
        ids = np.array([80, 70, 60, 50, 40, 30, 20, 10])
        found = self.save(ids=ids, features=values, ids_test=[1, 0], features_test=values[:2])
        np.testing.assert_array_equal(found.training(self.data), values[:1:-1])
        np.testing.assert_array_equal(found.test(self.data), values[[1, 0]])
        self.assertEqual(found.training(self.data).dtype, np.float32)
        self.assertEqual((found.extractor, found.key), ("", ""))
        with self.assertRaisesRegex(feature_file.FeatureError, "ids_test and features_test.*Add"):
            self.save(ids=ids, features=values).test(self.data)

    def test_features_of_other_images_are_refused(self):
        found = self.written(made(seed=1).images, np.zeros((6, 2), np.float32))
        message = "all 6 training images of 'made'. Received: none for 6 .*Compute it again: python"
        with self.assertRaisesRegex(feature_file.FeatureError, message):
            found.training(self.data)
        found = self.save(ids=np.arange(10, 60, 10), features=np.zeros((5, 2)))
        with self.assertRaisesRegex(feature_file.FeatureError, "none for 1 of them. Write a row"):
            found.training(self.data)

    @parameterized.parameters(np.nan, np.inf)
    def test_features_that_are_not_finite_are_refused(self, value):
        values = np.zeros((6, 2), np.float32)
        values[4, 1] = value
        with self.assertRaisesRegex(feature_file.FeatureError, "1 rows with NaN .*example 50"):
            self.written(self.data.images, values).training(self.data)

    @parameterized.parameters(
        (
            {"features": np.zeros((3, 2))},
            "must hold the arrays ids and features. Received: features",
        ),
        ({"ids": np.arange(3), "features": np.zeros((3, 2, 2))}, r"Received: float64 \(3, 2, 2\)"),
        ({"ids": np.arange(4), "features": np.zeros((3, 2))}, r"and int64 \(4,\). Flatten"),
        ({"ids": np.arange(3), "features": np.zeros((3, 2), int)}, "Received: int64"),
        ({"ids": np.zeros(3), "features": np.zeros((3, 2))}, "and float64"),
        ({"ids": np.zeros(3, int), "features": np.zeros((3, 2))}, "Received: 2 repeated ones"),
        ({"ids": np.arange(0), "features": np.zeros((0, 2))}, r"\(0, 2\)"),
    )
    def test_malformed_files_are_refused(self, arrays, message):
        with self.assertRaisesRegex(feature_file.FeatureError, message):
            self.save(**arrays)

    def test_splits_of_different_widths_are_refused(self):
        ids = np.arange(3)
        with self.assertRaisesRegex(feature_file.FeatureError, "Received: 2, 4. Use one network"):
            self.save(
                ids=ids, features=np.zeros((3, 2)), ids_test=ids, features_test=np.zeros((3, 4))
            )

    def test_what_is_no_such_file_is_refused(self):
        for content, message in (
            (None, "No such file"),
            (b"text", "not a zip archive"),
            (np.array([{}], object), "pickles"),
        ):
            if isinstance(content, bytes):
                self.path.write_bytes(content)
            elif content is not None:
                np.savez(self.path, ids=content, features=np.zeros((1, 2)))
            with self.assertRaisesRegex(feature_file.FeatureError, message):
                feature_file.read(self.path)
            self.assertEqual(feature_file.key_of(self.path), "")

    def test_a_stopped_writer_leaves_the_older_file(self):
        values = np.ones((6, 2), np.float32)
        self.written(self.data.images, values)
        digests = feature_file.digests(self.data.images)
        with self.assertRaises(KeyboardInterrupt):
            with feature_file.writing(self.path, digests, "", "new") as writer:
                writer.append(0 * values[:3])
                raise KeyboardInterrupt
        self.assertEqual(feature_file.key_of(self.path), "abc")
        self.assertLen(list(self.path.parent.iterdir()), 1)


if __name__ == "__main__":
    absltest.main()
