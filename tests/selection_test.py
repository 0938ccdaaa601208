# SPDX-License-Identifier: Apache-2.0
"""Rules that choose what to label, by hand, and draws of a run by them."""

import dataclasses
import warnings

import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy.data import feature_file
from ssl_noisy.data.label_budget import BudgetError
from ssl_noisy.selection import neighbors, rules


def on_circle(*degrees):
    """Returns features of length 1 at these angles."""
    angles = np.radians(np.array(degrees, np.float64))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def pool(features, labeled=(), candidates=None, labels=None, num_classes=0, radius=None):
    labeled = np.array(labeled, np.int64)
    everything = np.arange(len(features))
    if candidates is None:
        candidates = np.setdiff1d(everything, labeled)
    labels = np.full(len(features), -1) if labels is None else np.array(labels)
    chances = np.cos(np.arange(len(features)))  # any numbers that differ
    known = (labels, num_classes, radius, chances, chances**2)
    return rules.Pool(np.array(candidates), labeled, features, *known)


class NeighborsTest(absltest.TestCase):
    def test_rows_get_length_1_and_zeros_stay(self):
        found = feature_file.normalized(np.array([[3.0, 4.0], [0.0, 0.0]]))
        np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)
        self.assertEqual(found.dtype, np.float32)

    def test_mean_distances_are_euclidean_and_leave_out_the_row_itself(self):
        features = np.array([[0.0, 0], [3, 4], [0, 2], [0, 2]], np.float32)
        np.testing.assert_allclose(
            neighbors.mean_distances(features, 2), [2, 13**0.5, 1, 1], rtol=1e-6
        )

    def test_counts_are_those_of_all_distances_in_any_blocks(self):
        rng = np.random.default_rng(0)
        features = feature_file.normalized(rng.normal(size=(70, 5)))
        distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
        expected = (distances < 0.9).sum(axis=1)
        before = neighbors._ENTRIES
        self.addCleanup(setattr, neighbors, "_ENTRIES", before)
        for entries in (before, 70 * 32 + 1):
            neighbors._ENTRIES = entries
            found = neighbors.counts_within(features, features, 0.9)
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(
            neighbors.within(features, features[3], 0.9), distances[:, 3] < 0.9
        )

    def test_a_ball_is_pure_up_to_the_nearest_example_of_another_cluster(self):
        features = on_circle(0, 10, 30, 60, 100)
        clusters = np.array([0, 0, 0, 1, 1])
        # Of the five, the nearest one of the other cluster is 60, 50, 30, 30 and 70 degrees away.
        chord = [2 * np.sin(np.radians(angle / 2)) for angle in (30, 30, 50, 60, 70)]
        for purity, expected in (
            (1.0, chord[0]),
            (0.8, chord[1]),
            (0.6, chord[2]),
            (0.2, chord[4]),
        ):
            found = neighbors.pure_radius(features, clusters, purity)
            self.assertAlmostEqual(found, expected, places=5)
            is_pure = [
                all(
                    clusters[j] == clusters[i]
                    for j in range(5)
                    if np.linalg.norm(features[i] - features[j]) < found - 1e-5
                )
                for i in range(5)
            ]
            self.assertGreaterEqual(np.mean(is_pure), purity)

    def test_the_radius_of_many_examples_is_estimated_from_some_balls_among_all(self):
        rng = np.random.default_rng(1)
        features = feature_file.normalized(rng.normal(size=(900, 3)))
        clusters = (features[:, 0] > 0).astype(int)
        whole = neighbors.pure_radius(features, clusters, 0.8)
        some = neighbors.pure_radius(features, clusters, 0.8, num_queries=300)
        self.assertNotEqual(whole, some)
        self.assertAlmostEqual(whole, some, delta=0.05)


class TypiClustTest(parameterized.TestCase):
    def test_it_takes_the_densest_member_of_the_largest_cluster_first(self):
        # Around 10 degrees 7 examples, the densest of which is 10; around 90, 9 with 91.
        first = [0, 6, 9, 10, 11, 15, 22]
        second = [80, 85, 89, 90.5, 91, 91.5, 94, 99, 104]
        chosen = rules.choose("typiclust", pool(on_circle(*first, *second)), 2, 0)
        self.assertEqual([[*first, *second][row] for row in chosen.positions], [91, 10])
        self.assertEqual(chosen.facts, {"clusters": 2, "clusters_with_a_label": 2})
        self.assertLen(set(chosen.columns["cluster"]), 2)
        # 10: the nearest 7 // 2 = 3 others are 1, 1 and 4 degrees away.
        distances = [2 * np.sin(np.radians(angle / 2)) for angle in (1, 1, 4)]
        self.assertAlmostEqual(
            chosen.columns["typicality"][1], 1 / (np.mean(distances) + 1e-5), places=1
        )

    def test_clusters_without_a_label_come_first(self):
        first, second = range(0, 14, 2), range(80, 98, 2)
        features = on_circle(*first, *second)
        # Two labels are wanted in all, one of which is there: in the larger cluster.
        chosen = rules.choose("typiclust", pool(features, labeled=[12]), 1, 0)
        self.assertLess(chosen.positions[0], 7)
        self.assertEqual(chosen.facts["clusters"], 2)

    def test_a_chosen_example_is_no_neighbor_anymore_and_is_not_chosen_again(self):
        features = on_circle(*range(0, 30, 3))
        chosen = rules.choose("typiclust", pool(features), 10, 0)
        self.assertEqual(sorted(chosen.positions), list(range(10)))

    def test_small_clusters_come_last(self):
        outliers, crowd = (180, 181, 182), range(0, 40, 2)
        features = on_circle(*outliers, *crowd)
        chosen = rules.choose("typiclust", pool(features), 2, 0)
        self.assertGreaterEqual(min(chosen.positions), 3)
        everything = rules.choose("typiclust", pool(features), 23, 0)
        self.assertEqual(sorted(everything.positions), list(range(23)))

    def test_only_candidates_are_chosen_though_others_are_part_of_the_data(self):
        features = on_circle(0, 9, 10, 11, 12, 20, 30)
        chosen = rules.choose("typiclust", pool(features, candidates=[0, 5, 6]), 1, 0)
        self.assertEqual(chosen.positions[0], 5)

    def test_kmeans_takes_the_member_next_to_the_center(self):
        features = on_circle(0, 1, 2, 3, 20, 40)
        chosen = rules.choose("kmeans", pool(features), 1, 0)
        center = features.mean(axis=0)
        nearest = np.argmin(np.linalg.norm(features - center, axis=1))
        self.assertEqual(chosen.positions[0], nearest)
        self.assertEqual(nearest, 3)
        self.assertIn(rules.choose("typiclust", pool(features), 1, 0).positions[0], (1, 2))


class ProbCoverTest(absltest.TestCase):
    radius = 2 * np.sin(np.radians(11 / 2))  # a ball of 11 degrees

    def test_it_takes_what_covers_most_of_what_is_not_covered(self):
        # 20 covers 5 examples. Then 48 covers 3; 30 has 4 in its ball, but one that is new.
        features = on_circle(10, 15, 20, 25, 30, 40, 48, 56, 80)
        chosen = rules.choose("probcover", pool(features, radius=self.radius), 3, 0)
        self.assertEqual(chosen.positions.tolist(), [2, 6, 8])
        self.assertEqual(chosen.columns["newly_covered"].tolist(), [5, 3, 1])
        self.assertAlmostEqual(chosen.facts["radius"], self.radius)
        self.assertEqual(chosen.facts["fraction_covered"], 1)

    def test_labels_that_are_there_cover_their_balls(self):
        features = on_circle(10, 15, 20, 25, 30, 40, 48, 56, 80)
        chosen = rules.choose("probcover", pool(features, [2], radius=self.radius), 1, 0)
        self.assertEqual(chosen.positions.tolist(), [6])
        self.assertAlmostEqual(chosen.facts["fraction_covered"], 8 / 9)

    def test_when_all_is_covered_it_starts_anew_and_never_repeats(self):
        features = on_circle(0, 4, 8, 100)
        chosen = rules.choose("probcover", pool(features, radius=self.radius), 4, 0)
        self.assertEqual(chosen.positions.tolist()[:2], [0, 3])
        self.assertEqual(sorted(chosen.positions), [0, 1, 2, 3])

    def test_features_of_zeros_do_not_stop_it(self):
        features = np.concatenate([on_circle(0, 4, 90), np.zeros((2, 2), np.float32)])
        chosen = rules.choose("probcover", pool(features, radius=self.radius), 5, 0)
        self.assertEqual(sorted(chosen.positions), [0, 1, 2, 3, 4])

    def test_the_last_block_counts(self):
        # Authors' code leaves out what is left of blocks of 500: here the dense end.
        rng = np.random.default_rng(0)
        features = rng.normal(size=(520, 8))
        features[500:] = features[500] + 0.01 * rng.normal(size=(20, 8))
        chosen = rules.choose("probcover", pool(features, radius=0.2), 1, 0)
        self.assertGreaterEqual(chosen.positions[0], 500)

    def test_the_radius_is_estimated_from_as_many_clusters_as_classes(self):
        features = on_circle(*range(0, 40, 4), *range(100, 140, 4))
        found = rules.choose("probcover", pool(features, num_classes=2), 2, 0)
        # Balls of 64 degrees are pure; of those of more, only 18 of 20 are.
        self.assertAlmostEqual(found.facts["radius"], 2 * np.sin(np.radians(68 / 2)), delta=0.06)
        self.assertEqual(found.facts["fraction_covered"], 1)

    def test_equal_images_in_two_clusters_do_not_stop_it(self):
        features = np.repeat(on_circle(0, 90), 4, axis=0)
        with warnings.catch_warnings(action="ignore"):  # scikit-learn finds two clusters alone
            chosen = rules.choose("probcover", pool(features, num_classes=3), 5, 0)
        self.assertLen(set(chosen.positions.tolist()), 5)


class ContrastTest(absltest.TestCase):
    def test_each_cluster_in_turn_gives_the_best_one_left(self):
        # More clusters than 30 groups of three: each group is one.
        features = np.repeat(np.eye(30, dtype=np.float32), 3, axis=0)
        confidence = np.tile([0.2, 0.6, 0.4], 30) + np.arange(90) / 1e4
        variability = np.tile([0.3, 0.1, 0.2], 30)
        confidence[1] = np.nan
        everything = np.arange(90)
        here = rules.Pool(
            everything[2:],
            everything[:1],
            features,
            np.full(90, -1),
            0,
            None,
            confidence,
            variability,
        )
        for how, first, second in (("easy", 1, 2), ("ambiguous", 0, 2), ("hard", 0, 2)):
            chosen = rules.choose(f"contrast_{how}", here, 60, 0)
            rows = chosen.positions
            self.assertEqual(sorted(rows[:30] // 3), list(range(30)), how)
            # The first group has one candidate left, whose place in its turn is free then.
            kinds = {row // 3: row % 3 for row in rows[:30] if row // 3}
            self.assertEqual(set(kinds.values()), {first}, how)
            self.assertEqual({row % 3 for row in rows[30:59]}, {second}, how)
            self.assertEqual(chosen.facts, {"clusters": 30, "clusters_with_a_label": 30})
        other = rules.choose("contrast_hard", here, 30, 1).positions
        self.assertNotEqual(other.tolist(), rows[:30].tolist())
        self.assertEqual(sorted(other // 3), list(range(30)))

    def test_unknown_images_come_last(self):
        features = np.ones((4, 2), np.float32)
        values = np.array([np.nan, 0.2, 0.5, 0.3])
        everything = np.arange(4)
        here = rules.Pool(
            everything, everything[:0], features, np.full(4, -1), 0, None, values, values
        )
        with warnings.catch_warnings(action="ignore"):  # four clusters of equal features
            for how, expected in (("easy", [2, 3, 1, 0]), ("hard", [1, 3, 2, 0])):
                chosen = rules.choose(f"contrast_{how}", here, 4, 0)
                self.assertEqual(chosen.positions.tolist(), expected)

    def test_features_of_another_method_are_refused(self):
        here = dataclasses.replace(pool(on_circle(0, 1)), confidence=None, variability=None)
        with self.assertRaisesRegex(rules.SelectionError, "need the features of a run of moco_v2"):
            rules.choose("contrast_ambiguous", here, 1, 0)


class OtherRulesTest(parameterized.TestCase):
    def test_balanced_and_uniform_leave_out_what_has_a_label(self):
        labels = np.arange(40) % 4
        features = np.zeros((40, 1), np.float32)
        here = pool(features, labeled=range(20), labels=labels, num_classes=4)
        for how in ("balanced", "uniform"):
            chosen = rules.choose(how, here, 8, 3).positions
            self.assertGreaterEqual(chosen.min(), 20)
            self.assertLen(set(chosen), 8)
        self.assertEqual(
            np.bincount(labels[rules.choose("balanced", here, 8, 3).positions]).tolist(), [2] * 4
        )

    @parameterized.parameters(*rules.RULES)
    def test_a_choice_is_the_same_again_and_has_no_repetition(self, how):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(200, 6)).astype(np.float32)
        here = pool(features, labeled=[5, 9], labels=np.arange(200) % 5, num_classes=5)
        one, two = (rules.choose(how, here, 20, 1) for _ in range(2))
        self.assertEqual(one.positions.tolist(), two.positions.tolist())
        self.assertLen(set(one.positions.tolist()), 20)
        self.assertNoCommonElements(one.positions.tolist(), [5, 9])
        self.assertEqual(one.positions.dtype, np.int64)
        for values in one.columns.values():
            self.assertLen(values, 20)

    @parameterized.parameters(*rules.BY_FEATURES)
    def test_the_length_of_features_has_no_effect(self, how):
        rng = np.random.default_rng(0)
        features = rng.normal(size=(100, 6)).astype(np.float32)
        scaled = features * np.exp2(rng.integers(-3, 4, size=(100, 1))).astype(np.float32)
        one, two = (rules.choose(how, pool(x), 10, 1).positions for x in (features, scaled))
        self.assertEqual(one.tolist(), two.tolist())

    def test_what_cannot_be_chosen(self):
        here = pool(on_circle(0, 1, 2))
        for budget in (0, 4):
            with self.assertRaisesRegex(rules.SelectionError, r"in \[1, 3\].*Received: "):
                rules.choose("uniform", here, budget, 0)
        without = rules.Pool(np.arange(3), np.zeros(0, int), None, np.full(3, -1), 0)
        with self.assertRaisesRegex(rules.SelectionError, "typiclust needs features: pass"):
            rules.choose("typiclust", without, 1, 0)
        with self.assertRaises(BudgetError):
            one_class = pool(np.zeros((4, 1)), labels=[0, 0, 0, 1], num_classes=2)
            rules.choose("balanced", one_class, 4, 0)


if __name__ == "__main__":
    absltest.main()
