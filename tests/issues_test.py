# SPDX-License-Identifier: Apache-2.0
"""The decision on labels: what it flags on clean and on wrong ones, and what it says of it."""

import json

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from ssl_noisy.labels import issues

NAN = np.nan


def margins(alpha, beta, count):
    """Returns `count` margins in [-1, 1], at equal steps of probability of a beta density."""
    return 2 * stats.beta.ppf((np.arange(count) + 0.5) / count, alpha, beta) - 1


def decide(values, observations=20, num_classes=10, loss_posterior=1.0, last_correct=None):
    values = np.asarray(values, "float64")
    labels = np.arange(len(values)) % num_classes
    record = {
        "probability_margin": values,
        "label_probability": (1 + values) / 2,  # two classes share it
        "agreement": (1 + values) / 2,
        "prediction": np.where(values >= 0, labels, (labels + 1) % num_classes),
        "observations": np.broadcast_to(observations, values.shape),
        "last_correct": values >= 0 if last_correct is None else np.asarray(last_correct),
    }
    posterior = np.broadcast_to(loss_posterior, values.shape)
    return issues.decide(record, posterior, labels)


class DecisionTest(parameterized.TestCase):
    def assert_consistent(self, decision, values):
        """Quality ranks labels like the margins and is below 0.5 for flagged labels."""
        order = np.argsort(values, kind="stable")
        self.assertGreaterEqual(np.diff(decision.label_quality[order]).min(), 0)
        np.testing.assert_array_equal(decision.is_issue, decision.label_quality < 0.5)

    def test_two_modes_of_clean_labels_flag_nothing(self):
        # Easy and hard labels: the mixture finds 200, and not one is contradicted.
        values = np.concatenate([margins(40, 1, 800), margins(40, 10, 200)])
        decision = decide(values)
        self.assertAlmostEqual((issues.fit(values)[1] > 0.5).sum(), 200, delta=40)
        self.assertEqual((decision.is_issue.sum(), decision.noise_rate), (0, 0.0))
        self.assert_consistent(decision, values)

    def test_the_mixture_finds_wrong_labels_that_are_not_contradicted(self):
        # Of 400 wrong labels a quarter has a positive margin, as in a symmetric noise of 40 %.
        clean, wrong = margins(12, 3, 600), margins(6, 9, 400)
        decision = decide(np.concatenate([clean, wrong]))
        self.assertLess(decision.contradicted, 330)
        self.assertAlmostEqual(decision.is_issue[600:].sum(), 380, delta=20)
        self.assertLess(decision.is_issue[:600].sum(), 30)
        self.assertAlmostEqual(decision.noise_rate, 0.4, delta=0.02)
        self.assertEqual(decision.by, "mixtures")
        self.assert_consistent(decision, np.concatenate([clean, wrong]))

    def test_hard_labels_that_are_contradicted_may_be_right(self):
        # The wrong ones lie so far below that a slightly negative margin is the clean component's.
        clean, wrong = margins(8, 3, 850), margins(1, 15, 150)
        decision = decide(np.concatenate([clean, wrong]))
        self.assertGreater(decision.contradicted, decision.is_issue.sum())
        self.assertGreater(decision.is_issue[850:].sum(), 145)
        self.assertLess(decision.is_issue[:850].sum(), 5)

    def test_at_most_twice_as_many_as_are_contradicted(self):
        # Half of the labels make up a component of its own, a tenth of which is contradicted.
        values = np.concatenate([margins(60, 2, 500), margins(7, 3, 500)])
        decision = decide(values)
        self.assertGreater((issues.fit(values)[1] > 0.5).sum(), 400)
        contradicted = (values < 0).sum()
        self.assertBetween(contradicted, 30, 60)
        self.assertEqual(decision.by, "twice_contradicted")
        self.assertEqual(decision.is_issue.sum(), 2 * contradicted)
        self.assertAlmostEqual(decision.noise_rate, 2 * contradicted / 1000)
        worst = np.argsort(values)[: 2 * contradicted]
        self.assertEqual(set(np.flatnonzero(decision.is_issue)), set(worst))
        self.assert_consistent(decision, values)

    def test_hard_labels_of_one_population_need_confidence(self):
        # Data that is hard to learn: a fifth is contradicted, but few with a probability of the
        # other class that is as large as the mean of labels of that class.
        values = margins(6, 4, 1000)
        decision = decide(values)
        self.assertLess(issues.fit(values)[0].separation_, 2)
        usual = np.mean((1 + values) / 2)
        confident = ((1 - values) / 2 >= usual).sum()  # all classes are equal here
        self.assertGreater(decision.contradicted, 200)
        self.assertAlmostEqual(decision.is_issue.sum(), confident, delta=5)
        self.assertLess(confident, 110)
        self.assertEqual(decision.by, "confident")
        self.assert_consistent(decision, values)

    def test_of_one_mode_the_mixtures_count_if_the_network_memorizes(self):
        # Two populations with a D of 1.7 and one mode. The mixtures consider 319 labels wrong, of
        # which 199 are contradicted. The last prediction gives the 120 others, and some of those.
        values = np.concatenate([margins(10, 4, 700), margins(6, 6.5, 300)])
        fitted, posterior = issues.fit(values)
        self.assertFalse(fitted.is_bimodal_)
        self.assertBetween(fitted.separation_, 1.6, 1.8)
        wrong, contradicted = posterior > 0.5, np.flatnonzero(values < 0)
        self.assertEqual((wrong.sum(), len(contradicted)), (319, 199))
        for learned, by, count in ((18, "mixtures", 319), (17, "confident", 59)):
            last_correct = values >= 0
            last_correct[contradicted[:learned]] = True  # 138 or 137 of 319, 43.3 or 42.9 %
            decision = decide(values, last_correct=last_correct)
            self.assertEqual((decision.by, decision.is_issue.sum()), (by, count))
            (reason,) = decision.weak_evidence
            self.assertIn("one mode" if by == "mixtures" else "not separated", reason)

    def test_two_modes_need_no_memory(self):
        # A robust method keeps contradicting wrong labels.
        values = np.concatenate([margins(12, 3, 600), margins(6, 9, 400)])
        self.assertTrue(issues.fit(values)[0].is_bimodal_)
        decision = decide(values, last_correct=np.zeros(1000))
        self.assertEqual(decision.by, "mixtures")

    def test_mixtures_count_only_if_the_network_has_learned(self):
        # Two tight populations, the lower one slightly contradicted. The margins of the others are
        # 0.12, above the 0.1 that the rule asks for, or 0.08. No contradiction is confident: the
        # other class has 0.505 then, and 0.52 is usual.
        for learned, by, count in ((0.12, "mixtures", 40), (0.08, "confident", 0)):
            clean = learned + margins(5000, 5000, 60)
            values = np.concatenate([clean, margins(125_000, 125_000, 40) - 0.01])
            decision = decide(values)
            self.assertEqual((decision.contradicted, decision.by), (40, by))
            self.assertEqual(decision.is_issue.sum(), count)
            self.assertAlmostEqual(decision.noise_rate, count / 100)
            self.assert_consistent(decision, values)
            is_weak = any("hardly learned" in reason for reason in decision.weak_evidence)
            self.assertEqual(is_weak, count == 0)

    @parameterized.parameters(
        ([1, 0], 5, 100, True),
        ([1, 0], 4, 100, False),
        ([1, 1, 0, 0, 0], 50, 100, False),
        ([1, 1, 0, -1, -1], 50, 100, False),  # -1: unknown
        ([1, 1], 0, 0, False),
        ([], 5, 100, False),
    )
    def test_memorizes(self, last_correct, confident, contradicted, expected):
        found = issues.memorizes(np.array(last_correct), confident, contradicted)
        self.assertEqual(found, expected)

    def test_memory_without_confident_contradictions_is_of_hard_labels(self):
        # Two populations with a D of 1.7, of which 72 labels are contradicted, 1 with confidence.
        values = np.concatenate([margins(14, 4, 700), margins(10, 7, 300)])
        self.assertBetween(issues.fit(values)[0].separation_, 1.6, 1.8)
        self.assertEqual((values < 0).sum(), 72)
        decision = decide(values, last_correct=np.ones(1000))
        self.assertEqual((decision.by, decision.is_issue.sum()), ("confident", 1))

    def test_confident_contradictions_by_hand(self):
        record = {
            "label_probability": np.array([0.8, 0.6, 0.1, 0.9, 0.2, 0.1, 0.0]),
            "probability_margin": np.array([0.7, 0.2, -0.6, 0.8, -0.3, -0.2, -0.9]),
            "prediction": np.array([0, 0, 0, 1, 0, 2, -1]),
        }
        labels = np.array([0, 0, 1, 1, 1, 1, 1])
        # Labels of class 0 have 0.7 on average. The other class has 0.7, 0.5, 0.3 and 0.9 of the
        # contradicted ones, of which the last two are of a class without labels and of no class.
        known = np.ones(7, bool)
        self.assertEqual(issues.confident_contradictions(record, labels, known), 1)
        known[1] = False  # 0.8 on average
        self.assertEqual(issues.confident_contradictions(record, labels, known), 0)

    def test_labels_that_are_not_contradicted_need_both_mixtures(self):
        clean, wrong = margins(12, 3, 600), margins(6, 9, 400)
        values = np.concatenate([clean, wrong])
        agreeing = decide(values).is_issue
        self.assertGreater(agreeing.sum(), (values < 0).sum())
        for posterior in (0.5, NAN):
            alone = decide(values, loss_posterior=posterior)
            np.testing.assert_array_equal(alone.is_issue, values < 0)
        half = np.where(np.arange(1000) % 2, 1.0, 0.0)
        found = decide(values, loss_posterior=half).is_issue.sum()
        self.assertAlmostEqual(found, (agreeing.sum() + (values < 0).sum()) / 2, delta=2)

    @parameterized.parameters(
        ([0.5, -0.75, 0.75, 0.5], [1]),
        ([0.5, -0.25, 0.75, 0.5], []),  # 0.625 is less than labels of class 2 have, 0.875
        ([0.5, 0.25, 0.75, 0.5], []),
        ([-0.5] * 20, [*range(20)]),
        ([0.5] * 20, []),
        ([], []),
    )
    def test_without_a_mixture_confident_contradictions_are_flagged(self, values, flagged):
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
        text = issues.describe(decision.summary())
        self.assertIn("Weak evidence: 3 of 1,001 labels were seen fewer than 5 times", text)

    def test_quality_by_hand(self):
        found = issues.quality(np.array([0.2, 0.8, 0.5, NAN]), 0.2)
        # Odds of 1/4 at the threshold: 0.8 has odds of 4, which are 16 times those.
        np.testing.assert_allclose(found, [0.5, 16 / 17, 4 / 5, NAN], atol=1e-12)
        np.testing.assert_allclose(issues.quality(np.array([0.25]), 0.5), [0.25], atol=1e-12)
        ends = issues.quality(np.array([0.0, 1.0]), 0.0)
        np.testing.assert_allclose(ends, [0.5, 1.0], atol=1e-5)

    def test_support_is_the_mean_of_the_hard_and_the_soft_vote(self):
        record = {
            "probability_margin": np.array([0.5, 0.0, -0.5]),
            "agreement": np.array([0.25, 1.0, 0.25]),
            "label_probability": np.array([0.75, 0.5, 0.25]),
            "prediction": np.array([0, 1, 0]),
            "observations": np.array([9, 9, 9]),
        }
        decision = issues.decide(record, np.full(3, NAN), np.array([0, 1, 1]))
        # 0.5, 0.75 and 0.25: one label is contradicted with confidence, with 0.75 for class 0,
        # whose label has 0.75. The threshold, 0.375, has odds of 0.6.
        self.assertEqual(decision.is_issue.tolist(), [False, False, True])
        odds = np.array([1.0, 3.0, 1 / 3]) / 0.6
        np.testing.assert_allclose(decision.label_quality, odds / (1 + odds), rtol=1e-6)

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
            issues.describe(decision.summary()),
            "400 of 1,000 labels (40.0%) are flagged as issues: those that the mixtures of margins "
            "and losses consider wrong. The averaged prediction contradicts 400 labels.",
        )

    def test_few_labels(self):
        summary = decide([0.9] * 9 + [0.5, -0.95] + [0.8] * 9).summary()
        json.dumps(summary, allow_nan=False)
        lines = issues.describe(summary).splitlines()
        self.assertStartsWith(lines[0], "1 of 20 labels (5.0%) are flagged as issues: ")
        self.assertIn("Weak evidence: there are only 2 labels per class.", lines)

    def test_not_separated(self):
        lines = issues.describe(decide(margins(6, 4, 500)).summary()).splitlines()
        self.assertIn("as many as are contradicted with confidence", lines[0])
        self.assertIn("not separated", lines[1])


if __name__ == "__main__":
    absltest.main()
