# SPDX-License-Identifier: Apache-2.0
"""Two-component mixtures of losses, in NumPy and in the compiled step: small means clean.

Functions with an argument `xp` take `numpy` and its arrays, or `keras.ops` and float32 tensors.
A fit is one array `(3, 2)`, the `parameters` of two weighted beta densities. Rows are alphas, betas
and weights; columns are the clean component and the noisy one, which has the larger mean.
"""

import math

import numpy as np
from keras import ops

INITIAL = np.array([[1, 2], [2, 1], [0.5, 0.5]], "float32")  # the authors'
EDGE = 1e-4  # the distance of values from 0 and 1, where a beta density may be infinite
FLOOR = 1e-12  # of weighted densities, so no responsibility is 0 / 0
# Of alphas and betas. Clean losses are close together: a mean of 0.002 +- 0.001 has a beta of 2000.
SHAPES = (1e-3, 1e4)
GRID = np.linspace(1e-12, 1 - 1e-12, 100)  # of the table of posteriors
# The logarithms of x and 1 - x, computed in float64: in float32 the last x would be 1.
GRID_LOGS = np.stack([np.log(GRID), np.log1p(-GRID)]).astype("float32")


def log_beta(a, b, xp=np):
    """Computes log B(a, b) of arrays in [1e-3, 1e4], because `keras.ops` has no log-gamma.

    Each log-gamma(x) is Stirling's series at x + 8, with an error below 1e-10, minus the logarithm
    of the product of the eight factors in between. The large terms of the three are combined into
    logarithms of ratios, which preserves precision in float32.
    """

    def small_terms(x):
        square = 1 / xp.square(x + 8)
        series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / (x + 8)
        product = x
        for i in range(1, 8):
            product = product * (x + i)
        return series - xp.log(product) - 0.5 * xp.log(x + 8)

    whole = a + b + 8
    large = (a + 8) * xp.log((a + 8) / whole) + (b + 8) * xp.log((b + 8) / whole)
    large = large + 8 * xp.log(whole) - 8 + 0.5 * math.log(2 * math.pi)
    return large + small_terms(a) + small_terms(b) - small_terms(a + b)


def log_densities(parameters, logs, xp=np):
    """Computes log(weight * density) of each component.

    Args:
        parameters: Float array `(3, 2)`.
        logs: Pair of float arrays `(n,)`: log(x) and log(1 - x).

    Returns:
        A float array of shape `(2, n)`.
    """
    alphas, betas, weights = parameters[0], parameters[1], parameters[2]
    constants = xp.log(weights) - log_beta(alphas, betas, xp)
    return constants[:, None] + (alphas[:, None] - 1) * logs[0] + (betas[:, None] - 1) * logs[1]


def moments(shares, x, xp=np):
    """Returns totals, means and variances, `(2,)` each, of `x` `(n,)` weighted by `(2, n)`."""
    totals = xp.maximum(xp.sum(shares, axis=1), 1e-30)
    means = xp.sum(shares * x, axis=1) / totals
    variances = xp.sum(shares * xp.square(x - means[:, None]), axis=1) / totals
    return totals, means, variances


def two_means(x, weights, max_iter=10, xp=np):
    """Splits values by 2-means, starting from the minimum and maximum: shares of groups, `(2, n)`.

    Equal values are all in the first group.
    """
    border = (xp.min(x) + xp.max(x)) / 2
    for _ in range(max_iter):
        high = xp.where(x > border + 1e-6, weights, 0.0)
        means = moments(xp.stack([weights - high, high]), x, xp)[1]
        # An empty group has a mean of 0.
        border = (means[0] + xp.maximum(means[1], means[0])) / 2
    return xp.stack([weights - high, high])


def m_step(shares, x, xp=np):
    """Returns the `parameters` of beta densities with the moments of `x` weighted by `shares`.

    If alpha and beta are not in `SHAPES`, because a component is empty, has one value, or has a
    variance that no density has, both are scaled into that range, which keeps the mean.

    Args:
        shares: Float array `(2, n)`, the weight of each value in each component.
        x: Float array `(n,)` in [1e-4, 1 - 1e-4].
    """
    totals, means, variances = moments(shares, x, xp)
    means = xp.clip(means, EDGE, 1 - EDGE)
    smaller = xp.minimum(means, 1 - means)
    scale = means * (1 - means) / xp.maximum(variances, FLOOR) - 1  # alpha + beta
    scale = xp.maximum(xp.minimum(scale, SHAPES[1] / (1 - smaller)), SHAPES[0] / smaller)
    return xp.stack([means * scale, (1 - means) * scale, totals / xp.sum(totals)])


def em_step(parameters, x, weights, xp=np):
    """Makes one step of EM and returns the new `parameters`.

    Args:
        parameters: Float array `(3, 2)`.
        x: Float array `(n,)` in [1e-4, 1 - 1e-4].
        weights: Float array `(n,)`, the weight of each value.
    """
    densities = xp.exp(log_densities(parameters, (xp.log(x), xp.log1p(-x)), xp))
    densities = xp.maximum(densities, FLOOR)
    return m_step(densities / xp.sum(densities, axis=0) * weights, x, xp)


def ordered(parameters, xp=np):
    """Returns `parameters` with the component of the larger mean last."""
    means = parameters[0] / (parameters[0] + parameters[1])
    # Components with equal means keep their order, whatever the rounding.
    return xp.where(means[0] > means[1] + 1e-6, xp.flip(parameters, axis=1), parameters)


def loss_range(losses, low=5.0, high=95.0, xp=np):
    """Finds the range that `normalized` maps to [0, 1].

    Args:
        losses: Float array `(n,)`. Losses that are not finite do not count.
        low, high: Percentiles, in [0, 100].

    Returns:
        The two percentiles, float `(2,)`; not finite if no loss is.
    """
    values = xp.sort(xp.where(xp.isfinite(losses), losses, np.inf))
    last = xp.maximum(xp.sum(xp.where(xp.isfinite(losses), 1.0, 0.0)) - 1, 0.0)
    percentiles = []
    for percent in (low, high):
        place = percent / 100 * last
        below, above = (
            xp.take(values, _integers(whole, xp)) for whole in (xp.floor(place), xp.ceil(place))
        )
        percentiles.append(below + (place - xp.floor(place)) * (above - below))
    return xp.stack(percentiles)


def normalized(losses, range_of_losses, xp=np):
    """Maps losses to x in (0, 1): linear between the ends of a `loss_range`, 0.001 or 0.999 beyond.

    As in the authors' code, the lower end is raised by 1e-5 and the range widened by 1e-6. Equal
    ends would give a range below 0, which counts as 0.
    """
    low = range_of_losses[0] + 1e-5
    x = (losses - low) / (xp.maximum(range_of_losses[1] - low, 0.0) + 1e-6)
    return xp.where(x >= 1, 0.999, xp.where(x <= 0, 0.001, x))


def posterior_table(parameters, xp=np):
    """Tabulates the probability of being noisy, corrected where it falls as the loss grows.

    The posterior of a beta mixture may fall back to 0 at x = 1: all entries after the largest one
    are set to it. It may also rise to 1 at x = 0, if the clean component vanishes faster there.
    The authors' table is then 1 everywhere (PaulAlbert31/LabelNoiseCorrection, issue 3); here no
    entry below the mean of the clean component is larger than the entry at the mean.

    Returns:
        A float array `(100,)`, at `linspace(1e-12, 1 - 1e-12, 100)`, for `lookup`.
    """
    densities = xp.exp(log_densities(parameters, GRID_LOGS, xp))
    table = densities[1] / (xp.sum(densities, axis=0) + FLOOR)
    mean = parameters[0, 0] / (parameters[0, 0] + parameters[1, 0])
    places = np.arange(len(GRID), dtype="int32")
    below = places < _integers(len(GRID) * mean, xp)
    table = xp.where(below, xp.minimum(table, lookup(table, mean, xp)), table)
    return xp.where(places >= xp.argmax(table), xp.max(table), table)


def lookup(table, x, xp=np):
    """Returns the entries of a `posterior_table` at x in [0, 1].

    As in the authors' code, the entry is int(100 x), although entries are 1/99 apart: on average
    half an entry too low at x = 0, right at 0.5 and half an entry too high at 1.
    """
    return xp.take(table, xp.clip(_integers(len(GRID) * x, xp), 0, len(GRID) - 1))


def _integers(values, xp):
    return np.asarray(values).astype("int32") if xp is np else ops.cast(values, "int32")


def fit_losses(losses, previous, low=5.0, high=95.0, max_iter=10):
    """Fits the mixture to losses between two percentiles, as the authors do, in a compiled step.

    Args:
        losses: Float32 tensor `(n,)`. Losses that are not finite do not count.
        previous: The result to keep if this fit fails: if there is no finite loss, if all are
            equal (within 1e-5), or if a parameter is not finite.
        low, high: Percentiles, in [0, 100].
        max_iter: Positive integer, the number of EM steps.

    Returns:
        `(parameters, loss_range, posterior_table)`, of shapes `(3, 2)`, `(2,)`, `(100,)`.
    """
    ends = loss_range(losses, low, high, ops)
    is_within = (losses >= ends[0]) & (losses <= ends[1])
    x = normalized(ops.where(is_within, losses, ends[0]), ends, ops)
    x, weights = ops.clip(x, EDGE, 1 - EDGE), ops.cast(is_within, "float32")
    initial = ops.convert_to_tensor(INITIAL)
    parameters = ops.fori_loop(0, max_iter, lambda _, p: em_step(p, x, weights, ops), initial)
    parameters = ordered(parameters, ops)
    is_good = ops.all(ops.isfinite(parameters)) & (ends[1] - ends[0] > 1e-5)
    found = (parameters, ends, posterior_table(parameters, ops))
    return tuple(ops.where(is_good, new, old) for new, old in zip(found, previous))


def scaled(losses):
    """Maps losses to [0, 1], linearly between minimum and maximum.

    Args:
        losses: Float32 tensor `(n,)`. Losses that are not finite do not count and do not change.
    """
    is_known = ops.isfinite(losses)
    least = ops.min(ops.where(is_known, losses, np.inf))
    largest = ops.max(ops.where(is_known, losses, -np.inf))
    x = (losses - least) / ops.maximum(largest - least, FLOOR)
    return ops.where(is_known, x, losses)


def gaussian_posterior(x, max_iter=10, tol=1e-2, reg_covar=5e-4):
    """Computes the probability of being clean by a mixture of two Gaussians of losses.

    This is scikit-learn's `GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4)`, as in the
    authors' code, except for its random start: here EM starts from `two_means`.

    Args:
        x: Float32 tensor `(n,)`, `scaled` losses. Values that are not finite do not count.
        max_iter: Positive integer, the maximum number of steps of 2-means, then of EM.
        tol: Float >= 0. EM stops when the mean log-likelihood changes by less.
        reg_covar: Float > 0, added to the variances.

    Returns:
        A float32 tensor `(n,)` in [0, 1], the posterior of the component with the smaller mean;
        0 where `x` is not finite.

    Reference:
        [Li et al., 2020](https://arxiv.org/abs/2002.07394), section 3.1.
    """
    known = ops.cast(ops.isfinite(x), "float32")
    num_known = ops.maximum(ops.sum(known), 1.0)
    mean = ops.sum(ops.where(known > 0, x, 0.0)) / num_known
    x = ops.where(known > 0, x, mean)  # within the range, where 2-means starts

    def log_shares(totals, means, variances):
        scales = (variances + reg_covar)[:, None]
        distances = ops.square(x - means[:, None]) / scales
        return ops.log(totals)[:, None] - (distances + ops.log(scales)) / 2

    fit = moments(two_means(x, known, max_iter, ops), x, ops)
    bound, is_done = -np.inf, False
    for _ in range(max_iter):
        logs, before = log_shares(*fit), bound
        bound = ops.sum(ops.logsumexp(logs, axis=0) * known) / num_known
        new = moments(ops.softmax(logs, axis=0) * known, x, ops)
        fit = [ops.where(is_done, old, value) for old, value in zip(fit, new)]
        is_done = (ops.abs(bound - before) < tol) | is_done
    shares = ops.softmax(log_shares(*fit), axis=0) * known
    return ops.where(fit[1][0] <= fit[1][1], shares[0], shares[1])
