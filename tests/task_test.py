# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy.data import sources, task

IMAGES = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
GIVEN = np.array([-1, 2, 0, -1, 1])


class TaskTest(parameterized.TestCase):
    def test_own_arrays(self):
        made = task.Task(IMAGES, GIVEN)
        self.assertEqual((made.num_classes, made.class_names), (3, ("0", "1", "2")))
        self.assertEqual((made.num_examples, made.image_shape), (5, (2, 2, 3)))
        self.assertEqual(made.given_labels.dtype, np.int32)
        self.assertEqual(made.labeled.tolist(), [1, 2, 4])
        self.assertEqual(made.unlabeled_pool().tolist(), [0, 1, 2, 3, 4])
        self.assertEqual(made.unlabeled_pool(include_labeled=False).tolist(), [0, 3])
        self.assertEqual(made.unlabeled_pool().dtype, np.int64)
        self.assertIsNone(made.test_images)
        self.assertTrue(made.flip)
        self.assertIs(made.images, IMAGES)

    def test_all_labeled(self):
        made = task.Task(IMAGES, np.zeros(5, np.uint8), num_classes=2)
        self.assertEmpty(made.unlabeled_pool(include_labeled=False))

    def test_none_labeled(self):
        made = task.Task.from_dataset(sources.load("digits"), np.array([], np.int64))
        self.assertEmpty(made.labeled)
        self.assertEqual(made.given_labels.max(), -1)
        self.assertLen(made.unlabeled_pool(include_labeled=False), 1297)
        self.assertEqual(task.Task(IMAGES, GIVEN * 0 - 1, num_classes=2).num_classes, 2)

    def test_class_names(self):
        made = task.Task(IMAGES, GIVEN, class_names=["a", "b", "c", "d"])
        self.assertEqual((made.num_classes, made.class_names), (4, ("a", "b", "c", "d")))

    def test_replace(self):
        made = dataclasses.replace(task.Task(IMAGES, GIVEN), given_labels=np.arange(5) % 3)
        self.assertEqual(made.labeled.tolist(), [0, 1, 2, 3, 4])

    def test_from_dataset(self):
        data = sources.load("digits")
        made = task.Task.from_dataset(data, [3, 5])
        self.assertEqual(made.labeled.tolist(), [3, 5])
        np.testing.assert_array_equal(made.given_labels[[3, 5]], data.labels[[3, 5]])
        self.assertEqual((made.name, made.flip, made.num_classes), ("digits", False, 10))
        self.assertIs(made.images, data.images)
        np.testing.assert_array_equal(made.test_labels, data.test_labels)
        published = (field.name for field in dataclasses.fields(made))
        self.assertNotIn("labels", published)  # true labels live beside the task

    @parameterized.named_parameters(
        ("range", [0, 1297], "[0, 1297)"),
        ("negative", [-1], "[0, 1297)"),
        ("mask", np.ones(1297, bool), "not a mask"),
    )
    def test_bad_positions(self, positions, part):
        with self.assertRaises(ValueError) as raised:
            task.Task.from_dataset(sources.load("digits"), positions)
        self.assertIn(part, str(raised.exception))

    @parameterized.named_parameters(
        ("dtype", dict(images=IMAGES / 255), ["uint8", "float64", "0..255"]),
        ("rank", dict(images=IMAGES[..., 0]), ["(N, H, W, C)", "(5, 2, 2)", "[..., None]"]),
        ("none", dict(images=IMAGES[:0], given_labels=GIVEN[:0]), ["not empty"]),
        ("count", dict(given_labels=GIVEN[:4]), ["shape (5,)", "(4,)"]),
        ("column", dict(given_labels=GIVEN[:, None]), ["(5, 1)", "squeeze"]),
        ("float", dict(given_labels=GIVEN + 0.0), ["integers", "float64"]),
        ("below", dict(given_labels=GIVEN - 1), ["[-1, ", "-2 to 1"]),
        ("above", dict(num_classes=2), ["[-1, 2)", "-1 to 2"]),
        ("no_classes", dict(given_labels=GIVEN * 0 - 1), ["at least 2 classes", "Received: 0"]),
        ("names", dict(num_classes=3, class_names=("a",)), ["3 class_names", "Received: 1"]),
        ("few_names", dict(class_names=("a",)), ["[-1, 1)"]),
        ("one_class", dict(given_labels=GIVEN * 0), ["at least 2 classes", "Received: 1"]),
        ("test", dict(test_images=IMAGES), ["test set", "integers of shape (5,)"]),
        ("labels", dict(test_labels=GIVEN), ["test set", "uint8"]),
        (
            "test_shape",
            dict(test_images=IMAGES[:, :1], test_labels=np.zeros(5, int)),
            ["(2, 2, 3)", "(1, 2, 3)"],
        ),
        ("features", dict(features=IMAGES / 255), ["floats of shape (5, num_features)", "(5, 2,"]),
        ("few_features", dict(features=np.ones((4, 3))), ["(5, num_features)", "(4, 3)"]),
        ("nan", dict(features=np.full((5, 3), np.nan)), ["must be finite"]),
        ("test_range", dict(test_images=IMAGES, test_labels=GIVEN), ["[0, 3)", "-1 to 2"]),
    )
    def test_errors(self, changes, parts):
        with self.assertRaises(ValueError) as raised:
            task.Task(**{"images": IMAGES, "given_labels": GIVEN} | changes)
        for part in parts:
            self.assertIn(part, str(raised.exception))


if __name__ == "__main__":
    absltest.main()
