# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy.data import label_budget
from ssl_noisy.data.dataset import Dataset


def dataset(**changes):
    """Returns 40 examples of 4 classes with ids 100, 103, ..., changed."""
    images = (np.arange(480) * 7 % 256).astype(np.uint8).reshape(40, 2, 2, 3)
    made = Dataset(
        name="cards",
        version="1.0.0",
        images=images,
        labels=np.arange(40, dtype=np.int32) % 4,
        ids=np.arange(100, 220, 3),
        test_images=images[:4],
        test_labels=np.arange(4, dtype=np.int32),
        validation_images=None,
        validation_labels=None,
        class_names=tuple("abcd"),
        flip=True,
    )
    return dataclasses.replace(made, **changes)


class DrawTest(parameterized.TestCase):
    def draw(self, num_labels, seed=0, how="balanced", labels=None):
        labels = dataset().labels if labels is None else labels
        return label_budget.draw(labels, num_labels, num_classes=4, seed=seed, how=how)

    def test_balanced(self):
        positions = self.draw(20)
        self.assertEqual(np.bincount(positions % 4).tolist(), [5] * 4)
        self.assertEqual(positions.dtype, np.int64)
        self.assertTrue((np.diff(positions) > 0).all())

    def test_pinned(self):
        # These must never change: published runs depend on them.
        self.assertEqual(self.draw(8).tolist(), [3, 5, 10, 16, 29, 30, 32, 35])
        self.assertEqual(self.draw(5, seed=3, how="uniform").tolist(), [12, 16, 22, 23, 33])

    def test_remainder_goes_to_classes_of_the_seed(self):
        counts = {tuple(np.bincount(self.draw(10, seed) % 4)) for seed in range(40)}
        self.assertLen(counts, 6)  # each pair of the 4 classes
        self.assertEqual({tuple(sorted(count)) for count in counts}, {(2, 2, 3, 3)})

    def test_remainder_goes_to_classes_that_have_more(self):
        labels = np.array([0, 1, 2, 3, 3])
        for seed in range(8):
            self.assertEqual(self.draw(5, seed, labels=labels).tolist(), list(range(5)))

    def test_first(self):
        self.assertEqual(self.draw(3, how="first").tolist(), [0, 1, 2])

    @parameterized.parameters("balanced", "uniform", "first")
    def test_unlabeled_examples_are_never_drawn(self, how):
        labels = np.array([-1, 0, 1, -1, 0, 1, -1, 1, 0])
        options = {"num_classes": 2, "seed": 3, "how": how}
        drawn = label_budget.draw(labels, 6, **options)
        self.assertEqual(drawn.tolist(), [1, 2, 4, 5, 7, 8])
        self.assertTrue((labels[label_budget.draw(labels, 4, **options)] >= 0).all())
        with self.assertRaisesRegex(label_budget.BudgetError, r"\[1, 6\]. Received: 7"):
            label_budget.draw(labels, 7, **options)

    @parameterized.parameters("balanced", "uniform")
    def test_seeds_differ_and_budgets_nest(self, how):
        self.assertEqual(self.draw(12, how=how).tolist(), self.draw(12, how=how).tolist())
        self.assertNotEqual(self.draw(12, 0, how).tolist(), self.draw(12, 1, how).tolist())
        for seed in range(5):
            for small, large in ((5, 6), (9, 21), (21, 39), (39, 40)):
                extra = np.setdiff1d(self.draw(small, seed, how), self.draw(large, seed, how))
                self.assertEmpty(extra)

    def test_uniform_draws_all_examples_equally_often(self):
        counts = np.bincount(np.concatenate([self.draw(10, s, "uniform") for s in range(2000)]))
        # Binomial(2000, 1/4): mean 500, standard deviation 19.4; 40 examples within 4.5 of it.
        self.assertLess(np.abs(counts - 500).max(), 87)

    @parameterized.named_parameters(
        ("too_few", dict(num_labels=3), ["at least one label per class", "num_labels=3"]),
        ("too_many", dict(num_labels=41), ["[1, 40]", "Received: 41"]),
        ("none", dict(num_labels=0), ["[1, 40]", "Received: 0"]),
        (
            "class",
            dict(num_labels=8, labels=np.array([0] * 9 + [1, 2, 3])),
            ["2 of each", "1 to 9"],
        ),
        ("extra", dict(num_labels=6, labels=np.array([0, 0, 1, 2, 3, 4])[:5]), ["[1, 5]"]),
        ("rest", dict(num_labels=6, labels=np.array([0] * 4 + [1, 2, 3])), ["1 more of 2"]),
        ("absent", dict(num_labels=4, labels=np.array([0, 1, 1, 2])), ["classes of 0 to 2"]),
        ("how", dict(num_labels=4, how="random"), ["balanced, uniform or first", "'random'"]),
        ("seed", dict(num_labels=4, seed=-1), ["seed >= 0", "-1"]),
    )
    def test_errors(self, settings, parts):
        with self.assertRaises(label_budget.BudgetError) as raised:
            self.draw(**settings)
        for part in parts:
            self.assertIn(part, str(raised.exception))


class LabelFileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        folder = self.enterContext(tempfile.TemporaryDirectory())
        self.path = pathlib.Path(folder, "labels", "8.json")
        self.written = label_budget.write(self.path, dataset(), [7, 3, 30], how="uniform", seed=5)

    def assert_refused(self, parts, data=None):
        with self.assertRaises(label_budget.LabelFileError) as raised:
            label_budget.read(self.path, data or dataset())
        for part in parts:
            self.assertIn(part, str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))

    def test_round_trip(self):
        positions, content = label_budget.read(self.path, dataset())
        self.assertEqual(positions.tolist(), [3, 7, 30])
        self.assertEqual(positions.dtype, np.int64)
        self.assertEqual(content, self.written)
        self.assertEqual(content.indices, (109, 121, 190))
        self.assertEqual((content.how, content.seed, content.num_labels), ("uniform", 5, 3))
        self.assertEqual(os.listdir(self.path.parent), ["8.json"])

    def test_joins_by_id_in_a_smaller_split(self):
        keep = np.array([3, 6, 7, 29, 30, 31])
        whole = dataset()
        part = dataset(images=whole.images[keep], labels=whole.labels[keep], ids=whole.ids[keep])
        positions, _ = label_budget.read(self.path, part)
        self.assertEqual(positions.tolist(), [0, 2, 4])
        self.assertEqual(label_budget.digest(part, positions), self.written.sha256)

    def test_a_moved_folder_has_the_same_data(self):
        label_budget.write(self.path, dataset(name="npz:/a/x"), [1], how="first", seed=0)
        positions, _ = label_budget.read(self.path, dataset(name="npz:/b/x"))
        self.assertEqual(positions.tolist(), [1])
        self.assert_refused(["is for 'npz:/a/x'", "'folder:/a'"], dataset(name="folder:/a"))

    def test_the_order_in_the_file_does_not_matter(self):
        content = json.loads(self.path.read_text())
        self.path.write_text(json.dumps(content | {"indices": content["indices"][::-1]}))
        self.assertEqual(label_budget.read(self.path, dataset())[0].tolist(), [3, 7, 30])

    def test_digest_is_pinned(self):
        self.assertEqual(self.written.sha256[:16], "fb8a44ac5a2037f1")

    def test_other_data(self):
        self.assert_refused(["is for 'cards'", "Received: 'tiles'"], dataset(name="tiles"))
        data = dataset()
        pixels, labels = data.images.copy(), data.labels.copy()
        pixels[7, 0, 0, 0] ^= 1
        labels[30] = 0
        for changed in (dataset(images=pixels), dataset(labels=labels)):
            self.assert_refused(["checksum differs", "version 1.0.0"], changed)
        pixels = data.images.copy()
        pixels[8] ^= 1  # not one of the labeled examples
        label_budget.read(self.path, dataset(images=pixels, version="2.0.0"))
        self.assert_refused(["3 indices, such as 109"], dataset(ids=np.arange(110, 190, 2)))

    @parameterized.named_parameters(
        ("missing", {"sha256": None}, ["must hold dataset", "Missing: 'sha256'"]),
        ("duplicate", {"indices": [109, 109, 190]}, ["1 duplicate"]),
        ("count", {"indices": [109, 190]}, ["num_labels=3 integers"]),
        ("none", {"indices": [], "num_labels": 0}, ["num_labels=0 integers"]),
        ("float", {"indices": [109.0, 121.0, 190.0]}, ["integers"]),
        ("text", {"indices": ["109", "121", "190"]}, ["integers"]),
        ("ragged", {"indices": [109, [121], 190]}, ["cannot be used"]),
        ("bool", {"indices": [True, False, True]}, ["integers"]),
        ("large", {"indices": [2**70, 121, 190]}, ["integers"]),
        ("unknown", {"indices": [110, 121, 190]}, ["1 indices, such as 110"]),
        ("other", {"indices": [112, 121, 190]}, ["checksum differs"]),
        ("mapping", {"indices": {"109": 1}}, ["integers"]),
        ("how", {"how": 5}, ["how must be a string, and is 5"]),
        ("seed", {"seed": -1}, ["seed must be an integer >= 0, and is -1"]),
        ("seed_bool", {"seed": True}, ["seed must be an integer >= 0, and is True"]),
        ("above_int64", {"indices": [109, 121, 2**63]}, ["integers"]),
    )
    def test_bad_content(self, changes, parts):
        content = json.loads(self.path.read_text()) | changes
        content = {key: value for key, value in content.items() if value is not None}
        self.path.write_text(json.dumps(content))
        self.assert_refused(parts)

    @parameterized.parameters(b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b"[" * 100_000)
    def test_malformed(self, raw):
        self.path.write_bytes(raw)
        self.assert_refused(["8.json' cannot be used", "Regenerate the file"])

    def test_a_pipe(self):
        self.path.unlink()
        os.mkfifo(self.path)
        self.assert_refused(["8.json' cannot be used", "not a regular file"])

    def test_absent(self):
        self.path.unlink()
        self.assert_refused(["8.json' cannot be used", "No such file"])


if __name__ == "__main__":
    absltest.main()
