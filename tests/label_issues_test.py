# SPDX-License-Identifier: Apache-2.0
"""The decision on labels: what it flags on clean and on wrong ones, and what it says of it."""

import json

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from ssl_noisy import label_issues

NAN = np.nan


def margins(alpha, beta, count):
    """Returns `count` margins in [-1, 1], at equal steps of probability of a beta density."""
    return 2 * stats.beta.ppf((np.arange(count) + 0.5) / count, alpha, beta) - 1


HARD = np.concatenate([margins(60, 2, 500), margins(7, 3, 500)])


def decide(values, observations=20, num_classes=10):
    values = np.asarray(values, "float64")
    record = {
        "probability_margin": values,
        "observations": np.broadcast_to(observations, values.shape),
    }
    return label_issues.decide(record, np.arange(len(values)) % num_classes)


class DecisionTest(parameterized.TestCase):
    def assert_consistent(self, decision, values):
        """The quality orders labels as the margins do, and is below 0.5 where one is flagged."""
        order = np.argsort(values, kind="stable")
        self.assertGreaterEqual(np.diff(decision.label_quality[order]).min(), 0)
        np.testing.assert_array_equal(decision.is_issue, decision.label_quality < 0.5)

    def test_two_modes_of_clean_labels_flag_nothing(self):
        # Easy and hard labels: the mixture finds 200, and not one is contradicted.
        values = np.concatenate([margins(40, 1, 800), margins(40, 10, 200)])
        decision = decide(values)
        self.assertAlmostEqual(decision.by_mixture, 200, delta=40)
        self.assertEqual((decision.is_issue.sum(), decision.noise_rate), (0, 0.0))
        self.assertEqual(decision.by, "contradictions")
        self.assert_consistent(decision, values)

    def test_the_mixture_finds_wrong_labels_that_are_not_contradicted(self):
        # Of 400 wrong labels a quarter has a positive margin, as in a symmetric noise of 40 %.
        clean, wrong = margins(12, 3, 600), margins(6, 9, 400)
        decision = decide(np.concatenate([clean, wrong]))
        self.assertLess(decision.contradicted, 330)
        self.assertAlmostEqual(decision.is_issue[600:].sum(), 380, delta=20)
        self.assertLess(decision.is_issue[:600].sum(), 30)
        self.assertAlmostEqual(decision.noise_rate, 0.4, delta=0.02)
        self.assertEqual(decision.by, "mixture")
        self.assert_consistent(decision, np.concatenate([clean, wrong]))

    def test_hard_labels_that_are_contradicted_may_be_right(self):
        # The wrong ones lie so far below that a slightly negative margin is the clean component's.
        clean, wrong = margins(8, 3, 850), margins(1, 15, 150)
        decision = decide(np.concatenate([clean, wrong]))
        self.assertGreater(decision.contradicted, decision.is_issue.sum())
        self.assertGreater(decision.is_issue[850:].sum(), 145)
        self.assertLess(decision.is_issue[:850].sum(), 5)

    def test_at_most_twice_as_many_as_are_contradicted(self):
        # Half of the labels make up the noisy component, but less than a tenth of it is
        # contradicted.
        values = HARD
        decision = decide(values)
        self.assertGreater(decision.by_mixture, 300)
        contradicted = (values < 0).sum()
        self.assertEqual(decision.contradicted, contradicted)
        self.assertEqual(decision.is_issue.sum(), 2 * contradicted)
        self.assertAlmostEqual(decision.noise_rate, 2 * contradicted / 1000)
        worst = np.argsort(values)[: 2 * contradicted]
        self.assertEqual(set(np.flatnonzero(decision.is_issue)), set(worst))
        self.assert_consistent(decision, values)

    @parameterized.parameters(
        ([0.5, -0.25, 0.75, 0.5], [1]),  # the threshold lies halfway to the next: none but this
        ([0.5, 0.25, 0.75, 0.5], []),
        ([-0.5] * 20, [*range(20)]),
        ([0.5] * 20, []),
        ([], []),
    )
    def test_without_a_mixture_the_contradicted_are_flagged(self, values, flagged):
        decision = decide(values)
        self.assertEqual(np.flatnonzero(decision.is_issue).tolist(), flagged)
        self.assertIn("too few margins", " ".join(decision.weak_evidence))
        json.dumps(decision.summary(), allow_nan=False)

    def test_the_rarely_and_never_observed_are_not_flagged(self):
        values = np.concatenate([margins(12, 3, 600), margins(2, 9, 400), [NAN]])
        observations = np.full(1001, 5)
        observations[[700, 701]], observations[-1] = 4, 0
        decision = decide(values, observations)
        self.assertEqual(
            decision.is_issue[[699, 700, 701, 702]].tolist(), [True, False, False, True]
        )
        self.assertFalse(decision.is_issue[-1])
        self.assertLess(decision.label_quality[700], 0.5)  # it is in the ranking
        self.assertTrue(np.isnan(decision.label_quality[-1]))
        text = label_issues.describe(decision.summary())
        self.assertIn("Weak evidence: 3 of 1,001 labels were seen fewer than 5 times", text)

    def test_quality_by_hand(self):
        found = label_issues.quality(np.array([-0.6, 0.6, 0.0, NAN]), -0.6)
        # Odds of 1/4 at the threshold: 0.8 has odds of 4, which are 16 times those.
        np.testing.assert_allclose(found, [0.5, 16 / 17, 4 / 5, NAN], atol=1e-12)
        found = label_issues.quality(np.array([-0.5, 1.0]), 0.0)
        np.testing.assert_allclose(found, [0.25, 1.0], atol=1e-5)
        ends = label_issues.quality(np.array([-1.0, 1.0]), -1.0)
        np.testing.assert_allclose(ends, [0.5, 1.0], atol=1e-5)

    def test_equal_decisions_whatever_the_order(self):
        values = np.concatenate([margins(12, 3, 60), margins(2, 9, 40)])
        shuffled = np.random.default_rng(0).permutation(100)
        np.testing.assert_array_equal(
            decide(values).is_issue[shuffled], decide(values[shuffled]).is_issue
        )


class DescribeTest(parameterized.TestCase):
    def test_by_the_mixture(self):
        decision = decide(np.concatenate([margins(40, 4, 600), margins(2, 20, 400)]))
        self.assertEqual(decision.weak_evidence, [])
        self.assertEqual(
            label_issues.describe(decision.summary()),
            "400 of 1,000 labels are flagged as issues (40.0%): the 400 that a beta mixture of the "
            "margins takes for wrong. The averaged prediction contradicts 400 labels.",
        )

    def test_by_contradictions_with_few_labels(self):
        summary = {**decide(HARD, num_classes=200).summary(), "contradicted": 45, "count": 90}
        lines = label_issues.describe(summary).splitlines()
        self.assertRegex(
            lines[0], r"^90 of 1,000 labels .* \(9.0%\): at most twice as many as the 45 "
        )
        self.assertIn("Weak evidence: there are only 5 labels per class.", lines)

    def test_one_mode(self):
        self.assertIn("one mode", " ".join(decide(margins(6, 2, 500)).weak_evidence))


if __name__ == "__main__":
    absltest.main()
