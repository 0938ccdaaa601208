# SPDX-License-Identifier: Apache-2.0
"""The decision which labels are issues: one rule for all methods, read off the training record."""

import dataclasses

import numpy as np

from ssl_noisy import mixture

LEAST_OBSERVATIONS = 5  # the first ones of an example say more of the initial weights
LEAST_LABELS = 10  # fewer are no sample to fit four shapes and a weight to
FEW_LABELS = 10  # of a class: below that, a network learns wrong labels as fast as right ones
EDGE = -1 + 1e-6  # margins beyond it count as it: no odds are 0 or infinite
MOST_PER_CONTRADICTION = 2  # at least half of the flagged labels must be contradicted


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """Which of n labels are issues, and why.

    Attributes:
        is_issue: Bool array `(n,)`.
        label_quality: Float array `(n,)` in [0, 1], 1 = clean, NaN where unknown. Below 0.5 is an
            issue, unless the label was observed too rarely.
        noise_rate: Float in [0, 1], the estimated fraction of wrong labels.
        contradicted: Integer, the labels that the averaged prediction contradicts.
        by_mixture: Integer, the labels that the mixture takes for wrong.
        weak_evidence: List of strings, why not to trust this decision; empty if nothing is known
            to be wrong with it.
    """

    is_issue: np.ndarray
    label_quality: np.ndarray
    noise_rate: float
    contradicted: int
    by_mixture: int
    weak_evidence: list

    @property
    def by(self):
        """`mixture` or `contradictions`: which half of the rule says how many are issues."""
        most = MOST_PER_CONTRADICTION * self.contradicted
        return "mixture" if self.by_mixture <= most else "contradictions"

    def summary(self):
        """Returns what a run writes into its `result.json`, a dict."""
        return {
            "count": int(self.is_issue.sum()),
            "of": len(self.is_issue),
            "by": self.by,
            "by_mixture": self.by_mixture,
            "contradicted": self.contradicted,
            "weak_evidence": self.weak_evidence,
        }


def decide(record, given_labels):
    """Decides which labels are issues.

    A beta mixture of the margins of the averaged probabilities splits the labels in two. Those
    that are wrong more probably than not are issues, the smallest margins first, but at most
    twice as many as the averaged prediction contradicts, that is, as have a negative margin.

    The first half of the rule finds the wrong labels that the network came to believe in: their
    margins are positive, but far below those of the right ones. The second half holds on clean
    data, where a mixture has two components too, but hardly a label is contradicted.

    Args:
        record: Dict of arrays `(n,)`, as `record.read` gives it.
        given_labels: Integer array `(n,)`.

    Returns:
        A `Decision`. `label_quality` is (1 + margin) / 2 with its odds scaled, so that it is 0.5
        between the last label that is flagged and the first that is not.
    """
    margins = record["probability_margin"]
    known = record["observations"] >= LEAST_OBSERVATIONS
    judged = margins[known]
    contradicted = int((judged < 0).sum())
    fitted, posterior = fit(judged)
    by_mixture = contradicted if fitted is None else int((posterior > 0.5).sum())
    most = MOST_PER_CONTRADICTION * contradicted
    threshold = _threshold(judged, min(by_mixture, most))
    is_issue = known & (margins < threshold)
    rate = contradicted if fitted is None else posterior.sum()
    return Decision(
        is_issue=is_issue,
        label_quality=quality(margins, threshold),
        noise_rate=float(min(rate, most) / max(len(judged), 1)),
        contradicted=contradicted,
        by_mixture=by_mixture,
        weak_evidence=_weak_evidence(given_labels, known, fitted),
    )


def fit(margins):
    """Fits a beta mixture to margins of averaged probabilities.

    Args:
        margins: Float array `(n,)` in [-1, 1].

    Returns:
        `(fitted, posterior)`: the `BetaMixture` of (1 - margin) / 2, and each label's probability
        of being wrong, float `(n,)`, which never falls as the margin does. Both are None where
        there is nothing to fit: fewer than 10 margins, or all equal.
    """
    if len(margins) < LEAST_LABELS or np.ptp(margins) < 1e-6:
        return None, None
    x = np.clip((1 - margins) / 2, 0, 1)  # sums in float32 may pass the ends
    fitted = mixture.BetaMixture().fit(x)
    return fitted, fitted.monotone_posterior(x)


def _threshold(margins, count):
    """Returns the margin below which `count` of them lie; fewer, if equals would be split."""
    if count == 0:
        return float(min(0.0, margins.min(initial=0.0)))
    lower, upper = np.append(np.sort(margins), 1.0)[[count - 1, count]]
    return float((lower + upper) / 2)


def quality(margins, threshold):
    """Returns (1 + margin) / 2, its odds divided by those at the threshold: 0.5 there.

    Args:
        margins: Float array `(n,)` in [-1, 1]; NaN stays.
        threshold: Float in [-1, 1].
    """
    share, border = ((1 + np.clip(value, EDGE, -EDGE)) / 2 for value in (margins, threshold))
    clean, wrong = share * (1 - border), border * (1 - share)
    return clean / (clean + wrong)


def _weak_evidence(given_labels, known, fitted):
    """Returns why not to trust a decision, a list of clauses."""
    found, rare = [], int((~known).sum())
    if rare:
        found.append(
            f"{rare:,} of {len(known):,} labels were seen fewer than {LEAST_OBSERVATIONS} times "
            "and are never flagged: train longer"
        )
    per_class = len(given_labels) / max(len(np.unique(given_labels)), 1)
    if per_class < FEW_LABELS:
        found.append(f"there are only {per_class:.3g} labels per class")
    if fitted is None:
        found.append("there are too few margins for a mixture, or all are equal")
    elif not fitted.is_bimodal_:
        found.append("the margins have one mode, so the number of wrong labels is a guess")
    return found


def describe(summary):
    """Returns a `Decision.summary` as text for a terminal."""
    count, total, contradicted = summary["count"], summary["of"], summary["contradicted"]
    lines = [f"{count:,} of {total:,} labels are flagged as issues ({count / max(total, 1):.1%})"]
    mixture_count = f"{summary['by_mixture']:,} that a beta mixture of the margins takes for wrong"
    if summary["by"] == "mixture":
        lines[0] += (
            f": the {mixture_count}. The averaged prediction contradicts {contradicted:,} labels."
        )
    else:
        lines[0] += (
            f": at most twice as many as the {contradicted:,} that the averaged prediction "
            f"contradicts, of the {mixture_count}."
        )
    lines += [f"Weak evidence: {reason}." for reason in summary["weak_evidence"]]
    return "\n".join(lines)
