# SPDX-License-Identifier: Apache-2.0
"""Formulas on frozen features, against numbers computed by hand."""

import warnings

import numpy as np
from absl.testing import absltest, parameterized
from sklearn.linear_model import LogisticRegression

from ssl_noisy.probes import (
    consensus,
    detectors,
    held_out,
    label_propagation,
    neighbors,
    ni_erm,
)


def directions(*degrees):
    """Returns vectors in the plane with these angles, of different lengths."""
    angles = np.deg2rad(degrees)
    lengths = np.arange(1, len(degrees) + 1)[:, None]
    return (lengths * np.column_stack([np.cos(angles), np.sin(angles)])).astype("float32")


def clusters(num_examples=120, num_classes=3):
    """Returns `(features, given_labels, true_labels)` of distant classes, a tenth wrong."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_examples) % num_classes
    features = 4 * np.eye(num_classes, 5)[labels] + 0.5 * rng.normal(size=(num_examples, 5))
    given = labels.copy()
    given[::10] += 1
    return features.astype("float32"), given % num_classes, labels


class HeldOutTest(absltest.TestCase):
    def test_folds_have_equal_sizes_overall_and_in_each_class(self):
        labels = np.repeat([0, 1, 2, 3], [7, 11, 1, 3])
        fold = held_out.folds(labels, seed=1)
        self.assertEqual(np.bincount(fold).tolist(), [5, 5, 4, 4, 4])
        for label in range(4):
            self.assertLessEqual(np.ptp(np.bincount(fold[labels == label], minlength=5)), 1)
        np.testing.assert_array_equal(fold, held_out.folds(labels, seed=1))
        self.assertFalse(np.array_equal(fold, held_out.folds(labels, seed=2)))
        self.assertFalse(np.array_equal(fold[:7], np.arange(7) % 5))  # shuffled

    def test_margins_and_accuracy(self):
        probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4], [np.nan] * 3, [0.3, 0.3, 0.4]])
        labels = np.array([0, 2, 1, 0])
        np.testing.assert_allclose(held_out.margins(probs, labels), [0.5, -0.1, np.nan, -0.1])
        self.assertEqual(held_out.accuracy(probs, labels), 1 / 3)
        self.assertIsNone(held_out.accuracy(probs[2:3], labels[2:3]))


class NIERMTest(parameterized.TestCase):
    def test_it_is_scikit_learns_regression_with_the_best_of_all_settings(self):
        """Each setting, fitted separately here, has the same accuracy and probabilities."""
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 3, 60)
        features = rng.normal(size=(60, 4)) + 1.2 * np.eye(3, 4)[labels]
        labels[:20] = (labels[:20] + 1) % 3
        strengths, iterations = (0.001, 1.0, 100.0), (2, 5, 40)
        probe = ni_erm.fit(features, labels, 3, strengths, iterations, seed=3)
        fold = held_out.folds(labels, seed=3)
        means, probs = np.zeros((3, 3)), {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for place in np.ndindex(3, 3):
                correct, probs[place] = [], np.zeros((60, 3))
                for number in range(5):
                    model = LogisticRegression(
                        C=strengths[place[0]], max_iter=iterations[place[1]]
                    ).fit(features[fold != number], labels[fold != number])
                    rows = fold == number
                    correct.append(model.score(features[rows], labels[rows]))
                    probs[place][rows] = model.predict_proba(features[rows])
                means[place] = np.mean(correct)
            self.assertGreater(np.ptp(means), 0.05)
            np.testing.assert_allclose(probe.accuracies, means, rtol=1e-12)
            best = np.unravel_index(np.argmax(means), means.shape)
            chosen = strengths[best[0]], iterations[best[1]]
            self.assertEqual((probe.strength, probe.iterations), chosen)
            self.assertEqual(probe.accuracy, means.max())
            np.testing.assert_allclose(probe.held_out, probs[best], rtol=1e-6)
            model = LogisticRegression(C=chosen[0], max_iter=chosen[1]).fit(features, labels)
        np.testing.assert_allclose(probe.probs(features), model.predict_proba(features), rtol=1e-6)

    def test_the_first_of_equal_settings_wins(self):
        features, _, labels = clusters()
        probe = ni_erm.fit(features, labels, 3, (0.01, 1.0, 10.0), (10, 20))
        self.assertEqual(probe.accuracies.min(), 1.0)
        self.assertEqual((probe.strength, probe.iterations), (0.01, 10))

    def test_classes_with_one_label_or_none(self):
        features, _, labels = clusters(12)
        labels = labels.copy()
        labels[labels == 2] = 0
        labels[5] = 4  # the only one; 2 and 3 have none
        probe = ni_erm.fit(features, labels, 5)
        unknown = np.isnan(probe.held_out).all(axis=1)
        self.assertEqual(np.flatnonzero(unknown).tolist(), [5])
        self.assertEqual(np.abs(probe.held_out[~unknown][:, [2, 3]]).max(), 0)
        np.testing.assert_allclose(probe.held_out[~unknown].sum(axis=1), 1, rtol=1e-6)
        self.assertEqual(probe.probs(features).shape, (12, 5))

    def test_two_labels_leave_one_class_to_learn_from(self):
        probe = ni_erm.fit(np.eye(2, dtype="float32"), np.array([0, 1]), 2)
        self.assertTrue(np.isnan(probe.held_out).all())
        self.assertEqual(np.argmax(probe.probs(np.eye(2)), axis=1).tolist(), [0, 1])
        with self.assertRaisesRegex(ValueError, "at least two classes"):
            ni_erm.fit(np.eye(2), np.array([1, 1]), 2)


class NeighborsTest(absltest.TestCase):
    def test_nearest_are_others_by_cosine_similarity(self):
        positions, similarities = neighbors.nearest(directions(0, 60, 90, 100), 2)
        self.assertEqual(positions.tolist(), [[1, 2], [2, 3], [3, 1], [2, 1]])
        expected = np.cos(np.deg2rad([[60, 90], [30, 40], [10, 30], [10, 40]]))
        np.testing.assert_allclose(similarities, expected, atol=1e-6)

    def test_an_equal_example_is_a_neighbor_and_counts_are_limited(self):
        positions, similarities = neighbors.nearest(directions(0, 0, 0, 50), 9)
        self.assertEqual(positions.shape, (4, 3))
        for row in range(4):
            self.assertNotIn(row, positions[row])
        np.testing.assert_allclose(similarities[0, :2], 1, atol=1e-6)
        positions, _ = neighbors.nearest(directions(95, 10), 1, directions(0, 60, 90))
        self.assertEqual(positions.tolist(), [[2], [0]])

    def test_votes(self):
        # Example 0: itself 2 * 0.9 - 0.8 = 1.0, and 0.9 and 0.8 for the classes of 1 and 2.
        # Example 1: itself 2 * 0.5 - 0.1 = 0.9; of a negative similarity nothing.
        labels = np.array([0, 1, 1])
        positions = np.array([[1, 2], [0, 2], [0, 1]])
        similarities = np.array([[0.9, 0.8], [0.5, 0.1], [0.6, -0.2]])
        found = neighbors.votes(labels, positions, similarities, 3)
        raw = np.array([[1.0, 1.7, 0.0], [0.5, 1.0, 0.0], [0.6, 1.4, 0.0]])
        np.testing.assert_allclose(found, raw / np.linalg.norm(raw, axis=1, keepdims=True))
        # Of two voters, the second neighbor is none, but it counts in the vote of the example.
        found = neighbors.votes(labels, positions, similarities, 3, count=2)
        raw = np.array([[1.0, 0.9, 0.0], [0.5, 0.9, 0.0], [0.6, 1.4, 0.0]])
        np.testing.assert_allclose(found, raw / np.linalg.norm(raw, axis=1, keepdims=True))

    def test_labels_that_lose_the_vote(self):
        found = np.array([[0.6, 0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 0.0], [0.0, 0.6, 0.8]])
        score, flagged = neighbors.by_vote(found, np.array([0, 0, 1, 0]))
        np.testing.assert_allclose(score, [0.2, -0.2, np.nan, 0.8], atol=1e-12)
        self.assertEqual(flagged.tolist(), [True, False, False, True])

    def test_the_smallest_votes_of_each_class(self):
        own = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.9, 0.7, 0.5, 0.3, 0.1])
        labels = np.repeat([0, 1], 5)
        found = np.zeros((10, 2))
        found[np.arange(10), labels] = own
        matrix = np.array([[0.75, 0.25], [0.375, 0.625]])
        # Wrong of class 0: 1 - 0.75 * 0.4 / 0.5 = 0.4, so the 60th percentile of five scores, the
        # 2.4th from the first: two are above. Of class 1: 1 - 0.625 * 0.6 / 0.5 = 0.25, one.
        score, flagged = neighbors.by_rank(found, labels, matrix, np.array([0.4, 0.6]))
        np.testing.assert_allclose(score, -np.log(own + 1e-8))
        self.assertEqual(np.flatnonzero(flagged).tolist(), [3, 4, 8, 9])
        # Without wrong labels the rate is 5 %: the percentile is below the last score.
        _, flagged = neighbors.by_rank(found, labels, np.eye(2), np.array([0.5, 0.5]))
        self.assertEqual(np.flatnonzero(flagged).tolist(), [4, 9])
        # With wrong labels alone it is 95 %: all but the first.
        _, flagged = neighbors.by_rank(found, labels, np.zeros((2, 2)), np.array([0.5, 0.5]))
        self.assertEqual(np.flatnonzero(~flagged).tolist(), [0, 5])


class ConsensusTest(absltest.TestCase):
    matrix, prior = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0.75, 0.25])

    def test_frequencies(self):
        labels = np.array([0, 1, 1, 1])
        positions = np.array([[1, 2, 0], [0, 2, 3], [3, 0, 1], [2, 0, 1]])
        first, second, third = consensus.frequencies(labels, positions, 2)
        self.assertEqual(first.tolist(), [0.25, 0.75])
        self.assertEqual(second.tolist(), [[0.0, 0.25], [0.25, 0.5]])
        self.assertEqual(third[0].tolist(), [[0.0, 0.0], [0.0, 0.25]])
        self.assertEqual(third[1].tolist(), [[0.0, 0.25], [0.5, 0.0]])

    def test_expected(self):
        first, second, third = consensus.expected(self.matrix, self.prior)
        np.testing.assert_allclose(first, [0.7, 0.3])
        np.testing.assert_allclose(second, [[0.52, 0.18], [0.18, 0.12]])
        # 0.75 * 0.8 * 0.8 * 0.2 + 0.25 * 0.4 * 0.4 * 0.6 = 0.12
        np.testing.assert_allclose(third[0], [[0.4, 0.12], [0.12, 0.06]])
        np.testing.assert_allclose(third[1], [[0.12, 0.06], [0.06, 0.06]])

    def test_the_noise_is_recovered(self):
        matrix = np.array([[0.6, 0.3, 0.1], [0.05, 0.7, 0.25], [0.2, 0.0, 0.8]])
        prior = np.array([0.5, 0.3, 0.2])
        found, classes = consensus.estimate(consensus.expected(matrix, prior))
        np.testing.assert_allclose(found, matrix, atol=0.02)
        np.testing.assert_allclose(classes, prior, atol=0.02)


class LabelPropagationTest(absltest.TestCase):
    def test_edges_are_cubes_in_both_directions(self):
        positions = np.array([[1], [0], [1]])
        similarities = np.array([[0.5], [0.5], [-0.2]])
        edges = label_propagation.graph(positions, similarities).toarray()
        self.assertEqual(edges.tolist(), [[0, 0.25, 0], [0.25, 0, 0], [0, 0, 0]])

    def test_a_chain_by_hand(self):
        # 0 - 1 - 2 with equal edges, so S = 1 / sqrt(2), and a = 0.99 / sqrt(2):
        # z1 = a / (1 - 2 a^2) = 0.700036 / 0.0199, z0 = 1 + a z1, z2 = a z1.
        edges = label_propagation.graph(np.array([[1], [2], [1]]), np.full((3, 1), 0.7))
        edges = edges.toarray()
        edges[0, 1] = edges[1, 0] = edges[1, 2] = edges[2, 1] = 0.343
        from scipy import sparse

        found = label_propagation.propagate(sparse.csr_array(edges), [0, -1, 1], 2)
        np.testing.assert_allclose(found[:, 0], [25.625628, 35.177669, 24.625628], rtol=1e-6)
        np.testing.assert_allclose(found[:, 1], [24.625628, 35.177669, 25.625628], rtol=1e-6)

    def test_each_class_has_the_same_weight(self):
        from scipy import sparse

        rng = np.random.default_rng(0)
        edges = np.triu(rng.uniform(size=(6, 6)), 1)
        edges += edges.T
        labels = np.array([0, 0, 0, 1, -1, -1])
        degrees = edges.sum(axis=1)
        smooth = edges / np.sqrt(degrees) / np.sqrt(degrees)[:, None]
        wanted = np.zeros((6, 2))
        wanted[:3, 0], wanted[3, 1] = 1 / 3, 1
        expected = np.linalg.solve(np.eye(6) - 0.99 * smooth, wanted)
        found = label_propagation.propagate(sparse.csr_array(edges), labels, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_an_example_that_nothing_reaches(self):
        from scipy import sparse

        edges = np.zeros((3, 3))
        edges[0, 1] = edges[1, 0] = 1
        found = label_propagation.propagate(sparse.csr_array(edges), [0, -1, -1], 2)
        probs = label_propagation.probabilities(found)
        np.testing.assert_allclose(probs, [[1, 0], [1, 0], [0.5, 0.5]])

    def test_few_labels_reach_all_examples_new_ones_too(self):
        features, _, labels = clusters()
        given = np.where(np.arange(120) < 6, labels, -1)
        found = label_propagation.fit(features[:90], given[:90], 3, num_neighbors=8)
        probs = label_propagation.probabilities(found.scores)
        self.assertGreater(np.mean(np.argmax(probs, axis=1) == labels[:90]), 0.98)
        new = found.probs(features[90:])
        self.assertGreater(np.mean(np.argmax(new, axis=1) == labels[90:]), 0.98)
        self.assertEqual(held_out.accuracy(found.held_out[:6], labels[:6]), 1.0)
        self.assertTrue(np.isnan(found.held_out[6:]).all())

    def test_a_new_example_solves_the_same_equation(self):
        features, _, labels = clusters(30)
        given = np.where(np.arange(30) < 6, labels, -1)
        found = label_propagation.fit(features, given, 3, num_neighbors=29)
        edges = np.maximum(neighbors.normalized(features) @ neighbors.normalized(features).T, 0)
        edges = 2 * edges.astype("float64") ** 3  # in both directions
        np.fill_diagonal(edges, 0)
        # Of an example without label, z_i = 0.99 sum_j w_ij z_j / sqrt(d_i d_j).
        expected = edges @ (found.scores / np.sqrt(edges.sum(axis=1))[:, None])
        np.testing.assert_allclose(
            label_propagation.probabilities(expected[6:]),
            label_propagation.probabilities(found.scores[6:]),
            atol=1e-3,
        )
        close = neighbors.nearest(features[:1], 29, features[1:])[1]
        self.assertEqual(close.shape, (1, 29))

    def test_the_only_label_of_a_class_is_unknown_when_held_out(self):
        features, _, labels = clusters(30)
        given = np.full(30, -1)
        given[:4] = labels[:4]  # 0, 1, 2, 0
        found = label_propagation.fit(features, given, 3)
        unknown = np.isnan(found.held_out).any(axis=1)
        self.assertEqual(np.flatnonzero(~unknown).tolist(), [0, 3])


class DetectorsTest(absltest.TestCase):
    def test_wrong_labels_are_found(self):
        features, given, true_labels = clusters(240)
        found = detectors.detect(features, given, 3)
        self.assertEqual(list(found), ["feature_vote", "feature_rank", "feature_margin"])
        wrong = given != true_labels
        for name, (score, flagged) in found.items():
            self.assertGreater(np.mean(flagged == wrong), 0.97, name)
            self.assertGreater(score[wrong].min(), score[~wrong].max(), name)

    def test_a_division_by_something_else_is_corrected(self):
        features, given, true_labels = clusters(240)
        wrong = true_labels == 2  # pictures of no class, which may look like any
        divided = wrong ^ (np.random.default_rng(0).random(240) < 0.1)
        score, flagged = detectors.detect(features, given, 3, is_wrong=divided)["feature_linear"]
        np.testing.assert_array_equal(flagged, wrong)
        np.testing.assert_array_equal(score > 0.5, wrong)
        none = detectors.detect(features, given, 3, is_wrong=np.zeros(240, bool))["feature_linear"]
        self.assertTrue(np.isnan(none[0]).all())
        self.assertFalse(none[1].any())

    def test_few_labels(self):
        features, _, labels = clusters(12)
        for count in (1, 2, 3, 5):
            found = detectors.detect(features[:count], labels[:count], 3)
            for name, (score, flagged) in found.items():
                self.assertEqual((score.shape, flagged.shape), ((count,), (count,)), name)
                self.assertFalse(flagged[np.isnan(score)].any(), name)
        self.assertFalse(np.isnan(found["feature_vote"][0]).any())
        self.assertEqual(
            np.isnan(found["feature_margin"][0]).tolist(), [False, False, True, False, False]
        )

    def test_one_class(self):
        features, _, _ = clusters(12)
        found = detectors.detect(features, np.zeros(12, int), 3)
        self.assertTrue(np.isnan(found["feature_margin"][0]).all())
        self.assertFalse(found["feature_vote"][1].any())


if __name__ == "__main__":
    absltest.main()
