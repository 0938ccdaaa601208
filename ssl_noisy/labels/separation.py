# SPDX-License-Identifier: Apache-2.0
"""A linear separation of two groups of examples by their features, in the compiled step."""

import numpy as np
from keras import ops

PENALTY = 1e-4  # see `probabilities`
STEPS = 20  # of Newton's method
LENGTHS = np.array([1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 0], "float32")  # of a step, as fractions


def probabilities(features, is_second, known):
    """Fits a logistic regression to a division in two, and divides again by what it learned.

    Where the groups are linearly separable but for some errors of the division, the fit irons out
    the errors. It is the authors' `LogisticRegression(penalty=None, class_weight="balanced")` of
    scikit-learn on standardized features, by Newton's method. Where no line of two groups errs,
    that fit has no end but its tolerance of 1e-4. Here a penalty of half of 1e-4 times the sum of
    squares of the coefficients ends it.

    Args:
        features: Float32 tensor `(n, num_features)`.
        is_second: Bool tensor `(n,)`, the members of the second group.
        known: Bool tensor `(n,)`. Other examples are not fitted.

    Returns:
        A float32 tensor `(n,)` in [0, 1], the probability of the second group, also of examples
        that are not fitted. It is that of the division itself, 0 or 1, if a group is empty.

    Reference:
        [Albert et al., 2024](https://arxiv.org/abs/2407.05528), section 3.3.
    """
    known, target = ops.cast(known, "float32"), ops.cast(is_second, "float32")
    x = _standardized(ops.cast(features, "float32"), known)
    x = ops.concatenate([x, ops.ones_like(x[:, :1])], axis=1)
    sizes = ops.stack([ops.sum(known * (1 - target)), ops.sum(known * target)])
    # Each group weighs 1/2.
    shares = known * ops.where(
        is_second, 0.5 / ops.maximum(sizes[1], 1), 0.5 / ops.maximum(sizes[0], 1)
    )
    signs = 2 * target - 1
    penalty = PENALTY * np.r_[np.ones(x.shape[1] - 1), 0].astype("float32")  # not of the intercept

    def newton(_, coefficients):
        odds = ops.matmul(x, coefficients[:, None])[:, 0]
        probs = ops.sigmoid(odds)
        slope = ops.matmul(ops.transpose(x), (shares * (probs - target))[:, None])[:, 0]
        slope = slope + penalty * coefficients
        curvature = shares * probs * (1 - probs)
        # 1e-6 more on the diagonal, since the intercept has no penalty.
        hessian = ops.matmul(ops.transpose(x * curvature[:, None]), x)
        hessian = hessian + ops.diag(ops.convert_to_tensor(penalty + 1e-6))
        step = -ops.solve(hessian, slope[:, None])[:, 0]
        step = ops.where(ops.all(ops.isfinite(step)), step, 0.0)
        moved = odds[:, None] + LENGTHS * ops.matmul(x, step[:, None])
        losses = ops.sum(shares[:, None] * ops.softplus(-signs[:, None] * moved), axis=0)
        others = coefficients[:, None] + LENGTHS * step[:, None]
        losses = losses + ops.sum(penalty[:, None] * ops.square(others), axis=0) / 2
        return ops.take(others, ops.argmin(losses), axis=1)

    start = ops.zeros((x.shape[1],), "float32")
    coefficients = ops.fori_loop(0, STEPS, newton, start)
    probs = ops.sigmoid(ops.matmul(x, coefficients[:, None])[:, 0])
    return ops.where(ops.min(sizes) > 0, probs, target)


def _standardized(features, known):
    """Shifts and scales each feature to mean 0 and variance 1 over the known examples."""
    shares = (known / ops.maximum(ops.sum(known), 1.0))[:, None]
    centered = features - ops.sum(shares * features, axis=0)
    deviations = ops.sqrt(ops.sum(shares * ops.square(centered), axis=0))
    return centered / ops.where(deviations > 1e-7, deviations, 1.0)
