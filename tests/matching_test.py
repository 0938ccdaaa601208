# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
from absl.testing import absltest
from sklearn import metrics

from ssl_noisy import matching


def table_of(clusters, labels, num_clusters=3, num_classes=3):
    return matching.counts(np.array(clusters), np.array(labels), num_clusters, num_classes)


class MatchingTest(absltest.TestCase):
    def test_counts(self):
        table = table_of([2, 2, 0, 1], [0, 0, 0, 2])
        np.testing.assert_array_equal(table, [[1, 0, 2], [0, 0, 0], [0, 1, 0]])

    def test_a_permutation_is_undone(self):
        labels = np.array([0, 0, 1, 1, 2, 2])
        table = table_of(np.array([2, 0, 1])[labels], labels)
        np.testing.assert_array_equal(matching.class_of_cluster(table), [1, 2, 0])
        self.assertEqual(matching.accuracy(table), 1.0)
        self.assertAlmostEqual(matching.normalized_mutual_information(table), 1.0)

    def test_the_sum_counts_and_not_the_largest_cell(self):
        # Taking the 5 first would leave 0 and 1 of 12 images: 6. The best has 4 + 3 + 1.
        table = np.array([[5, 4, 0], [3, 0, 0], [0, 0, 0]])
        np.testing.assert_array_equal(matching.class_of_cluster(table)[:2], [1, 0])
        self.assertAlmostEqual(matching.accuracy(table), 7 / 12)

    def test_no_class_has_two_clusters(self):
        # Four clusters of two classes: 3 + 2 of 8 images are right, those of the others are not.
        table = table_of([0, 0, 0, 1, 2, 2, 3, 3], [0, 0, 0, 0, 1, 1, 1, 0], 4, 2)
        found = matching.class_of_cluster(table)
        self.assertCountEqual(found[found >= 0], [0, 1])
        self.assertEqual((found == -1).sum(), 2)
        self.assertAlmostEqual(matching.accuracy(table), 5 / 8)

    def test_fewer_clusters_than_classes(self):
        table = table_of([0, 0, 1, 1, 1], [0, 0, 1, 2, 2], 2, 3)
        np.testing.assert_array_equal(matching.class_of_cluster(table), [0, 2])
        self.assertAlmostEqual(matching.accuracy(table), 4 / 5)

    def test_all_in_one_cluster(self):
        table = table_of([1, 1, 1, 1], [0, 0, 1, 2])
        self.assertAlmostEqual(matching.accuracy(table), 2 / 4)  # the largest class
        self.assertEqual(matching.normalized_mutual_information(table), 0.0)
        self.assertEqual(matching.normalized_mutual_information(table_of([1, 1], [2, 2])), 1.0)

    def test_mutual_information(self):
        # By hand: joint probabilities 1/2, 1/4, 1/4 in three of four cells.
        table = np.array([[2, 1], [0, 1]])
        joint = 1.5 * math.log(2)
        classes, clusters = 2 * math.log(2) - 0.75 * math.log(3), math.log(2)
        expected = (classes + clusters - joint) / ((classes + clusters) / 2)
        self.assertAlmostEqual(matching.normalized_mutual_information(table), expected)
        rng = np.random.default_rng(0)
        clusters, labels = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
        labels[clusters == 1] = 2
        self.assertAlmostEqual(
            matching.normalized_mutual_information(table_of(clusters, labels, 5, 3)),
            metrics.normalized_mutual_info_score(labels, clusters),
        )


if __name__ == "__main__":
    absltest.main()
