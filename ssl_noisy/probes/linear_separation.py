# SPDX-License-Identifier: Apache-2.0
"""PLS-LSA's linear separation: a division of labels in two, corrected by frozen features."""

import warnings

import numpy as np

from ssl_noisy.data.feature_file import normalized


def separate(features, is_second):
    """Fits a logistic regression to a division in two, and divides again by what it learned.

    The features are scaled to length 1, then standardized. The regression has no penalty, and both
    groups weigh the same, as in the authors' code (PaulAlbert31/LSA, 1b2ca0c). It converges, or
    ends after 1000 iterations.

    Args:
        features: Float array `(n, num_features)`, finite.
        is_second: Bool array `(n,)`, the members of the second group.

    Returns:
        A float64 array `(n,)`, the probability of the second group; NaN if a group is empty.

    Reference:
        [Albert et al., 2024](https://arxiv.org/abs/2407.05528).
    """
    from sklearn.linear_model import LogisticRegression  # late: it takes a second
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    if len(np.unique(is_second)) < 2:
        return np.full(len(features), np.nan)
    x = StandardScaler().fit_transform(normalized(features))
    model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # of separable groups the fit has no end
        return model.fit(x, is_second).predict_proba(x)[:, 1]


def by_line(features, is_wrong):
    """Flags the labels on the wrong side of a line between right and wrong ones.

    Args:
        features: Float array `(n, num_features)`, finite.
        is_wrong: Bool array `(n,)`, labels that seem wrong by their losses.

    Returns:
        `(score, flagged)`: the probability of a wrong label, float `(n,)`, NaN if there is no
        division; and where it is above 0.5, bool `(n,)`.
    """
    score = separate(features, is_wrong)
    return score, score > 0.5
