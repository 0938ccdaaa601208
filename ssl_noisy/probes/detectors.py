# SPDX-License-Identifier: Apache-2.0
"""Which labels the features of the images contradict: detectors without training."""

import numpy as np

from ssl_noisy.probes import consensus, held_out, linear_separation, neighbors, ni_erm

LEAST_LABELS = 3  # an example and two neighbors
MOST_CLASSES = 200  # the estimate of their noise has arrays of the cube of this


def detect(features, labels, num_classes, seed=0, probs=None, is_wrong=None):
    """Looks for wrong labels by the features of their images.

    `feature_vote` and `feature_rank` are SimiFeat's two detectors, by the nine most similar other
    labeled examples; of fewer, by all. Three departures from the authors' code: all examples vote
    in one round, not random subsets in 1 to 21 rounds; the images are not augmented; and the
    estimated rates of wrong labels get no random offset. `feature_margin` is a margin on held-out
    examples: another class has the larger probability. `feature_linear`, of which labels seem wrong
    by something else, corrects that by a line between their features and those of the others.

    Args:
        features: Float array `(n, num_features)`, finite.
        labels: Integer array `(n,)` in `[0, num_classes)`, the given labels.
        num_classes: Integer.
        seed: Seed of NI-ERM's folds.
        probs: Float array `(n, num_classes)`, held-out probabilities; rows of NaN are unknown. None
            computes those of NI-ERM.
        is_wrong: Optional bool array `(n,)`, the labels that seem wrong by their losses.

    Returns:
        A dict from name to `(score, flagged)`: a float array `(n,)`, larger for more suspicious
        labels and NaN where unknown, and a bool array `(n,)`. The first two know nothing of fewer
        than three labels, the second one of more than 200 classes, and the third one of a class
        with a single label. `feature_linear` is there with `is_wrong`, and knows nothing if none or
        all seem wrong.
    """
    labels = np.asarray(labels)
    unknown = np.full(len(labels), np.nan), np.zeros(len(labels), bool)
    found = dict.fromkeys(("feature_vote", "feature_rank", "feature_margin"), unknown)
    if len(labels) >= LEAST_LABELS:
        positions, similarities = neighbors.nearest(features, neighbors.NUM_VOTERS - 1)
        votes = neighbors.votes(labels, positions, similarities, num_classes)
        found["feature_vote"] = neighbors.by_vote(votes, labels)
        if num_classes <= MOST_CLASSES:
            noise = consensus.estimate(consensus.frequencies(labels, positions, num_classes))
            found["feature_rank"] = neighbors.by_rank(votes, labels, *noise)
    if probs is None and len(np.unique(labels)) > 1:
        probs = ni_erm.fit(features, labels, num_classes, seed=seed).held_out
    if probs is not None:
        margins = held_out.margins(probs, labels)
        found["feature_margin"] = -margins, margins < 0
    if is_wrong is not None:
        found["feature_linear"] = linear_separation.by_line(features, is_wrong)
    return found
