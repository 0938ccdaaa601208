# SPDX-License-Identifier: Apache-2.0
"""Decides which labels are issues: one rule for all methods, based on the training record."""

import dataclasses

import numpy as np

LEAST_OBSERVATIONS = 5  # earlier ones reflect the initial weights more
LEAST_LABELS = 10  # fewer are too few to fit four shapes and a weight
FEW_LABELS = 10  # per class: with fewer, a network learns wrong labels as fast as right ones
EDGE = 1e-6  # the distance of support from 0 and 1, so odds are neither 0 nor infinite
# Of the labels that the mixtures considered wrong, the last prediction was the given one for 47 to
# 69 % where a network memorized wrong labels (cross-entropy and AUM on pair noise, cross-entropy on
# CIFAR-10; 22 runs), but for 5 to 38 % where it had not learned hard ones (CIFAR-10, clean and
# noisy; 13 runs).
MEMORIZED = 0.43
# Networks that memorized wrong labels contradicted 9 to 42 % of their contradicted labels with
# confidence (same runs), those that memorized clean labels 0 to 3 %.
LEAST_CONFIDENT = 0.05
# The mean margin of the labels that the mixtures do not flag was 0.05 to 0.08 after 20 and 40 steps
# on 65 digits, where less than half of the flags were right, and 0.23 or more after 100 steps.
LEAST_LEARNED = 0.1
MOST_PER_CONTRADICTION = 2  # at least half of the flagged labels must be contradicted


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """Which of n labels are issues, and why.

    Attributes:
        is_issue: Bool array `(n,)`.
        label_quality: Float array `(n,)` in [0, 1], 1 = clean, NaN where unknown. Below 0.5 is an
            issue, unless the label was observed too rarely.
        noise_rate: Float in [0, 1], the estimated fraction of wrong labels.
        by: The rule that says how many are issues: `mixtures`, `twice_contradicted` or `confident`.
        contradicted: Integer, the number of labels that the averaged prediction contradicts.
        weak_evidence: List of strings, reasons to distrust this decision; empty if there are none.
    """

    is_issue: np.ndarray
    label_quality: np.ndarray
    noise_rate: float
    by: str
    contradicted: int
    weak_evidence: list

    def summary(self):
        """Returns a dict for the `result.json` of a run."""
        return {
            "count": int(self.is_issue.sum()),
            "of": len(self.is_issue),
            "by": self.by,
            "contradicted": self.contradicted,
            "weak_evidence": self.weak_evidence,
        }


def decide(record, loss_posterior, given_labels):
    """Decides which labels are issues.

    The network contradicts a label if another class has the larger mean probability: the margin
    of the averaged probabilities is negative. A beta mixture is fitted to these margins. If its
    components tell right labels from wrong ones, these count as wrong:

    - the contradicted labels that the mixture considers wrong;
    - of the others, those that a mixture of the mean losses considers wrong, too. In time a network
      comes to believe wrong labels: their margins are positive, but far below those of right
      ones. Their number is at most that of the contradicted labels, because any mixture has two
      components.

    Components tell them apart if the margins have two modes. With one mode they may still do so, if
    the network memorizes wrong labels: of the labels that would count, its last prediction is the
    given one for more than 43 %, and it contradicts at least 5 % of the contradicted labels with
    confidence. That is, the other class has at least the mean probability that labels of that
    class have, the threshold of confident learning. Otherwise these labels are hard rather than
    wrong, and only confident contradictions count.

    As many labels as count are issues, those with the least support first: the mean of
    `agreement`, the hard vote of all predictions, and (1 + margin) / 2, their soft vote. If the
    margins of the other labels are below 0.1 on average, the network has hardly learned to tell the
    classes apart. Two components mean little then, and only confident contradictions count.

    Args:
        record: Dict of arrays `(n,)`, as `record.read` gives it.
        loss_posterior: Float array `(n,)`, as from `detection.fit_posterior` of the mean losses;
            NaN where unknown.
        given_labels: Integer array `(n,)`.

    Returns:
        A `Decision`. `label_quality` is the support with its odds scaled, so that it is 0.5
        between the last label that is flagged and the first that is not.

    Reference:
        [Northcutt et al., 2021](https://arxiv.org/abs/1911.00068), equation 2, the threshold.
    """
    margins = record["probability_margin"]
    known = record["observations"] >= LEAST_OBSERVATIONS
    judged = margins[known]
    contradicted = judged < 0
    fitted, posterior = fit(judged)
    confident = confident_contradictions(record, given_labels, known)
    by, count, separated = "confident", confident, False
    if fitted is not None:
        wrong = (posterior > 0.5) & (contradicted | (loss_posterior[known] > 0.5))
        last_correct = record["last_correct"][known][wrong]
        separated = fitted.is_bimodal_ or memorizes(last_correct, confident, contradicted.sum())
    if separated:
        most = MOST_PER_CONTRADICTION * int(contradicted.sum())
        by, count = "mixtures", int(wrong.sum())
        if count > most:
            by, count = "twice_contradicted", most
    support = (record["agreement"] + (1 + margins) / 2) / 2
    threshold = threshold_of(support[known], count)
    others = judged[support[known] >= threshold]
    is_unlearned = separated and others.sum() < LEAST_LEARNED * max(len(others), 1)
    if is_unlearned:
        by, count = "confident", confident
        threshold = threshold_of(support[known], count)
    return Decision(
        is_issue=known & (support < threshold),
        label_quality=quality(support, threshold),
        noise_rate=count / max(len(judged), 1),
        by=by,
        contradicted=int(contradicted.sum()),
        weak_evidence=_weak_evidence(given_labels, known, fitted, separated, is_unlearned),
    )


def memorizes(last_correct, confident, contradicted):
    """Returns whether a network comes to believe wrong labels, rather than fails on hard ones.

    Args:
        last_correct: Integer array of any length: 1 if the last prediction was the given label, of
            the labels that the mixtures consider wrong.
        confident, contradicted: Integers, the labels that the network contradicts with confidence,
            and at all.
    """
    is_learned = np.sum(last_correct == 1) > MEMORIZED * len(last_correct)
    return bool(is_learned and confident > 0 and confident >= LEAST_CONFIDENT * contradicted)


def confident_contradictions(record, given_labels, known):
    """Counts the labels that the averaged prediction contradicts with confidence.

    Args:
        record, given_labels: As for `decide`.
        known: Bool array `(n,)`, the labels that count.
    """
    labels, predicted = given_labels[known], record["prediction"][known]
    probability, margins = record["label_probability"][known], record["probability_margin"][known]
    num_classes = max(labels.max(initial=0), predicted.max(initial=0)) + 1
    totals = np.bincount(labels, probability, minlength=num_classes)
    sizes = np.bincount(labels, minlength=num_classes)
    # Infinite: without labels of a class, or without a prediction, nothing is confident.
    usual = np.append(np.where(sizes > 0, totals / np.maximum(sizes, 1), np.inf), np.inf)
    return int(((margins < 0) & (probability - margins >= usual[predicted])).sum())


def fit(margins):
    """Fits a beta mixture to margins of averaged probabilities.

    Args:
        margins: Float array `(n,)` in [-1, 1].

    Returns:
        `(fitted, posterior)`: the `BetaMixtureModel` of (1 - margin) / 2, and the probability
        that each label is wrong, float `(n,)`, which never falls as the margin does. Both are None
        where there is nothing to fit: fewer than 10 margins, or all equal.
    """
    from ssl_noisy.labels.mixture_model import BetaMixtureModel  # late: it needs scikit-learn

    if len(margins) < LEAST_LABELS or np.ptp(margins) < 1e-6:
        return None, None
    x = np.clip((1 - margins) / 2, 0, 1)  # sums in float32 may pass the ends
    fitted = BetaMixtureModel().fit(x)
    return fitted, fitted.monotone_posterior(x)


def threshold_of(support, count):
    """Returns the support below which `count` labels lie, or fewer to keep ties together.

    Args:
        support: Float array `(n,)` in [0, 1].
        count: Integer in [0, n].
    """
    if count == 0:
        return float(min(0.5, support.min(initial=0.5)))
    lower, upper = np.append(np.sort(support), 1.0)[[count - 1, count]]
    return float((lower + upper) / 2)


def quality(support, threshold):
    """Returns the support with its odds divided by those at the threshold: 0.5 there.

    Args:
        support: Float array `(n,)` in [0, 1]; NaN stays.
        threshold: Float in [0, 1].
    """
    support, threshold = (np.clip(value, EDGE, 1 - EDGE) for value in (support, threshold))
    clean, wrong = support * (1 - threshold), threshold * (1 - support)
    return clean / (clean + wrong)


def _weak_evidence(given_labels, known, fitted, separated, is_unlearned):
    """Returns reasons to distrust a decision, a list of clauses."""
    found, rare = [], int((~known).sum())
    if rare:
        found.append(
            f"{rare:,} of {len(known):,} labels were seen fewer than {LEAST_OBSERVATIONS} times "
            "and are never flagged: train longer"
        )
    if is_unlearned:
        found.append("the network has hardly learned to tell the classes apart: train longer")
    per_class = len(given_labels) / max(len(np.unique(given_labels)), 1)
    if per_class < FEW_LABELS:
        found.append(f"there are only {per_class:.3g} labels per class")
    if fitted is None:
        found.append("there are too few margins for a mixture, or all are equal")
    elif not separated:
        found.append("right and wrong labels, if there are any, are not separated")
    elif not fitted.is_bimodal_:
        found.append("the margins have one mode, so the number of wrong labels is a guess")
    return found


REASONS = {
    "mixtures": "those that the mixtures of margins and losses consider wrong",
    "twice_contradicted": "the most suspicious, twice as many as are contradicted",
    "confident": "as many as are contradicted with confidence",
}


def describe(summary):
    """Returns a `Decision.summary` as text for a terminal."""
    count, total = summary["count"], summary["of"]
    lines = [
        f"{count:,} of {total:,} labels ({count / max(total, 1):.1%}) are flagged as issues: "
        f"{REASONS[summary['by']]}. The averaged prediction contradicts "
        f"{summary['contradicted']:,} labels."
    ]
    lines += [f"Weak evidence: {reason}." for reason in summary["weak_evidence"]]
    return "\n".join(lines)
