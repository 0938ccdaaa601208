# SPDX-License-Identifier: Apache-2.0
"""The area under the margin: the class, threshold samples, the rule, and a whole run of it."""

import numpy as np
import toy
from absl.testing import absltest, parameterized

import ssl_noisy
from ssl_noisy.labels import aum


class AUMTest(parameterized.TestCase):
    def test_it_is_the_mean_of_all_margins(self):
        areas = ssl_noisy.AUMCalculator(num_examples=4)
        areas.update(
            np.array([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]]), np.array([0, 2]), np.array([2, 0])
        )
        areas.update(np.array([[1.0, 6.0, 0.0]]), np.array([0]), np.array([2]))  # a batch of one
        np.testing.assert_array_equal(areas.values, [-3.0, np.nan, (1 - 5) / 2, np.nan])

    def test_an_example_twice_in_a_batch_counts_twice(self):
        areas = ssl_noisy.AUMCalculator(2)
        areas.update(np.array([[1.0, 0.0], [5.0, 0.0]]), np.array([0, 0]), np.array([1, 1]))
        self.assertEqual(areas.values[1], 3.0)

    def test_many_large_margins_keep_their_digits(self):
        """As in asappresearch's package, which sums double-precision floats in a loop."""
        rng, areas = np.random.default_rng(0), ssl_noisy.AUMCalculator(5)
        total = np.zeros(5)
        for _ in range(300):
            logits = rng.normal(0, 100, (5, 3)).astype("float32")
            areas.update(logits, np.array([0, 1, 2, 0, 1]), np.arange(5))
            for i, label in enumerate([0, 1, 2, 0, 1]):
                total[i] += float(logits[i, label]) - float(np.delete(logits[i], label).max())
        np.testing.assert_allclose(areas.values, total / 300, atol=1e-5)

    @parameterized.parameters(
        (np.zeros((2, 3)), np.array([0, 3]), np.array([0, 1]), "labels.*0 to 3"),
        (np.zeros((2, 3)), np.array([0, 1]), np.array([0, 9]), "indices.*in .0, 4.*0 to 9"),
        (np.zeros((2, 3)), np.array([0, 1]), np.array([-1, 1]), "indices"),
        (np.zeros((2, 3)), np.array([0]), np.array([0, 1]), "labels.*shape"),
        (np.zeros((2, 3)), np.array([0.0, 1.0]), np.array([0, 1]), "labels.*float64"),
    )
    def test_it_refuses(self, logits, labels, indices, message):
        areas = ssl_noisy.AUMCalculator(4)
        with self.assertRaisesRegex(ValueError, message):
            areas.update(logits, labels, indices)
        self.assertTrue(np.isnan(areas.values).all())

    def test_it_needs_examples(self):
        with self.assertRaisesRegex(ValueError, "num_examples"):
            ssl_noisy.AUMCalculator(0)


class ThresholdTest(parameterized.TestCase):
    def test_two_disjoint_sets_of_the_labeled_of_the_papers_size(self):
        labeled = np.arange(100, 1100, 2)  # 500
        one, two = aum.threshold_sets(labeled, 10, seed=3)
        self.assertLen(one, 500 // 11)
        self.assertLen(two, 500 // 11)
        self.assertEmpty(np.intersect1d(one, two))
        self.assertTrue(np.isin([*one, *two], labeled).all())
        again, _ = aum.threshold_sets(labeled, 10, seed=3)
        np.testing.assert_array_equal(one, again)
        other, _ = aum.threshold_sets(labeled, 10, seed=4)
        self.assertFalse(np.array_equal(one, other))

    def test_the_sizes_of_cifar(self):
        for classes, paper, code in ((10, 4545, 5000), (100, 495, 500)):
            for size, count in (("paper", paper), ("authors_code", code)):
                one, two = aum.threshold_sets(np.arange(50_000), classes, seed=0, size=size)
                self.assertEqual((len(one), len(two)), (count, count))

    def test_too_few_labels(self):
        with self.assertRaisesRegex(ValueError, "at least 11 labeled.*Received: 10"):
            aum.threshold_sets(np.arange(10), 10, seed=0)

    @parameterized.parameters(50, 100, 101, 199, 200, 201, 1000)
    def test_the_exact_rule_of_the_authors(self, count):
        """Flagged: more than 1 % of the threshold samples have a strictly larger area."""
        rng = np.random.default_rng(count)
        threshold_aum = np.round(rng.normal(size=count), 1)  # with ties
        values = np.concatenate([threshold_aum, rng.normal(size=300), [9.0]])
        larger = threshold_aum[None] > values[:, None]
        np.testing.assert_array_equal(
            values < aum.threshold(threshold_aum, 99.0), larger.mean(axis=1) > 0.01
        )

    def test_percentiles_ties_and_unknown_areas(self):
        # One of a thousand above it is not more than 0.1 percent.
        self.assertEqual(aum.threshold(np.arange(1000.0), 99.9), 998.0)
        areas = np.array([1.0, 2.0, 2.0, 3.0, np.nan])
        self.assertEqual(aum.threshold(areas, 100.0), 3.0)
        self.assertEqual(aum.threshold(areas, 75.0), 2.0)  # one quarter above it is not too many
        self.assertEqual(aum.threshold(areas, 0.0), -np.inf)
        self.assertEqual(aum.threshold(areas[-1:]), -np.inf)
        self.assertFalse((np.full(3, 2.0) < aum.threshold(np.full(9, 2.0))).any())  # all equal

    def test_and_or_and_threshold_samples(self):
        flags = [np.array([1, 1, 0, 1, 0, 1], bool), np.array([1, 0, 0, 0, 1, 1], bool)]
        judges = [np.array([1, 1, 1, 1, 0, 0], bool), np.array([1, 1, 1, 0, 1, 0], bool)]
        # Both, one, none, the first alone judges, the second alone, none judges.
        self.assertEqual(aum.combined(flags, judges, "and").tolist(), [1, 0, 0, 1, 1, 0])
        self.assertEqual(aum.combined(flags, judges, "or").tolist(), [1, 1, 0, 1, 1, 0])


class TaskTest(absltest.TestCase):
    def test_threshold_samples_get_a_class_of_their_own(self):
        task, _ = toy.task(num_labels=40)
        changed = task.relabeled([3, 5], 10, "threshold sample")
        self.assertEqual(changed.num_classes, 11)
        self.assertEqual(changed.class_names[10], "threshold sample")
        self.assertEqual(changed.given_labels[[3, 5]].tolist(), [10, 10])
        self.assertEqual((changed.given_labels != task.given_labels).sum(), 2)
        self.assertEqual(task.given_labels.max(), 9)

    def test_removed_labels_are_left_out_of_the_batches(self):
        task, _ = toy.task(num_labels=40)
        kept = task.relabeled(np.arange(0, 40, 2), -1)
        np.testing.assert_array_equal(kept.labeled, np.arange(1, 40, 2))


if __name__ == "__main__":
    absltest.main()
