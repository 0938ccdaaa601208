# SPDX-License-Identifier: Apache-2.0
"""The mixtures against scipy, scikit-learn and the plain EM, and where that gives no number."""

import functools
from unittest import mock

import keras
import numpy as np
from absl.testing import absltest, parameterized
from keras import ops
from scipy import special, stats
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture

from ssl_noisy.labels import mixture, mixture_model
from ssl_noisy.labels.mixture_model import BetaMixtureModel

NO_FIT = (np.full((3, 2), 7, "float32"), np.zeros(2, "float32"), np.zeros(100, "float32"))


def beta_sample(*components, seed=0):
    """Returns values of beta densities, each given as alpha, beta and the number of values."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.beta(*component) for component in components])


def some_losses(n=2000, seed=0):
    rng = np.random.default_rng(seed)
    values = [rng.gamma(1.5, 0.2, 3 * n // 4), rng.normal(2.5, 0.6, n // 4)]
    return np.concatenate(values).clip(0.01).astype("float32")


def plain_em(x, steps):
    """The EM of the published description, line by line."""
    x = np.clip(x, 1e-4, 1 - 1e-4)
    alphas, betas, weights = [1, 2], [2, 1], [0.5, 0.5]
    for _ in range(steps):
        r = np.array([weights[k] * stats.beta.pdf(x, alphas[k], betas[k]) for k in (0, 1)])
        r[r < 1e-12] = 1e-12
        r /= r[0] + r[1]
        for k in (0, 1):
            mean = np.average(x, weights=r[k])
            variance = np.average((x - mean) ** 2, weights=r[k])
            alphas[k] = mean * (mean * (1 - mean) / variance - 1)
            betas[k] = alphas[k] * (1 - mean) / mean
        weights = r.sum(axis=1) / len(x)
    return np.array([alphas, betas, weights])


def parameters_of(fitted):
    return np.stack([fitted.alphas_, fitted.betas_, fitted.weights_])


def table_of(alphas, betas, weights):
    return mixture.posterior_table(np.array([alphas, betas, weights], "float64"))


@functools.lru_cache
def compiled(function, jit=True):
    """Returns `function`, of tensors, compiled as a step is, from arrays to arrays."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        inner = tf.function(function, jit_compile=jit, autograph=False)
    else:
        import jax

        inner = jax.jit(function)
    return lambda *arrays: keras.tree.map_structure(
        ops.convert_to_numpy, inner(*(ops.convert_to_tensor(array) for array in arrays))
    )


def fit(losses):
    return mixture.fit_losses(losses, NO_FIT, 0, 100)


class LogBetaTest(absltest.TestCase):
    def test_it_is_scipys(self):
        a, b = np.meshgrid(*2 * [np.geomspace(1e-3, 1e4, 40)])
        np.testing.assert_allclose(mixture.log_beta(a, b), special.betaln(a, b), rtol=0, atol=1e-10)
        a, b = a.astype("float32"), b.astype("float32")
        expected = special.betaln(a.astype("float64"), b.astype("float64"))
        found = compiled(functools.partial(mixture.log_beta, xp=ops))(a, b)
        # The difference of three log-gammas in float32 is wrong by 0.01.
        np.testing.assert_allclose(found, expected, atol=3e-3)
        is_small = (a <= 1e3) & (b <= 1e3)
        np.testing.assert_allclose(found[is_small], expected[is_small], atol=4e-4)


class AuthorsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("two_modes", ((1.5, 15, 800), (6, 3, 200))),
        ("a_pole", ((0.7, 6, 500), (5, 3, 500))),
        ("one_mode", ((1.2, 8, 1000),)),
        ("narrow", ((3, 200, 700), (3, 3, 300))),
        ("beyond_the_edges", ((0.05, 0.1, 300), (2, 2, 200))),
    )
    def test_ten_steps_are_the_published_ones(self, components):
        x = beta_sample(*components)
        fitted = BetaMixtureModel(max_iter=10, tol=0).fit(x)
        np.testing.assert_allclose(parameters_of(fitted), plain_em(x, 10), rtol=1e-7)
        self.assertEqual((fitted.n_iter_, fitted.converged_), (10, False))
        # Far from convergence, so one step more or less makes a difference.
        self.assertGreater(np.abs(plain_em(x, 9) - plain_em(x, 10)).max(), 1e-3)

    def test_a_step_by_hand(self):
        # The densities of the start are 2 (1 - x) and 2 x, so r = (1 - x, x): of totals 2 and 1,
        # means 0.23 and 0.54, variances 0.0411 and 0.0604.
        x = np.array([0.1, 0.2, 0.7])
        start = mixture.INITIAL.astype("float64")
        expected = [[0.7610706, 1.6807947], [2.5479319, 1.4317881], [2 / 3, 1 / 3]]
        np.testing.assert_allclose(mixture.em_step(start, x, np.ones(3)), expected, atol=1e-7)
        # A weight of 2 counts a value twice, a weight of 0 not at all.
        found = mixture.em_step(start, np.array([0.1, 0.2, 0.9, 0.7]), np.array([1, 2, 0, 1]))
        twice = mixture.em_step(start, np.array([0.1, 0.2, 0.2, 0.7]), np.ones(4))
        np.testing.assert_allclose(found, twice)
        self.assertGreater(np.abs(twice - expected).max(), 0.01)

    def test_responsibilities_where_densities_vanish(self):
        # The weighted densities at 1/2 are 5.9098e-11 and 3e-17, which is 1e-12.
        parameters = np.array([[48, 76], [144, 228], [0.5, 0.5]])
        weights = mixture.em_step(parameters, np.array([0.5]), np.ones(1))[2]
        np.testing.assert_allclose(weights, [0.98336, 0.01664], atol=1e-5)


class RangeTest(parameterized.TestCase):
    @parameterized.parameters((5, 95), (0, 100), (12.5, 60), (50, 50))
    def test_it_is_numpys_percentiles_of_finite_losses(self, low, high):
        losses = some_losses(37)
        expected = np.percentile(losses, [low, high])
        padded = np.concatenate([[np.nan], losses, [np.inf, np.nan]]).astype("float32")
        np.testing.assert_allclose(mixture.loss_range(padded, low, high), expected, rtol=1e-5)
        found = compiled(lambda losses: mixture.loss_range(losses, low, high, ops))(padded)
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_of_one_loss_and_of_none(self):
        np.testing.assert_array_equal(mixture.loss_range(np.array([np.nan, 3])), [3, 3])
        with np.errstate(invalid="ignore"):
            self.assertFalse(np.isfinite(mixture.loss_range(np.full(3, np.nan))).any())

    def test_normalized_by_hand(self):
        # (losses - 1.00001) / (3 - 1.00001 + 1e-6); what is within the ends stays as it is.
        losses = np.array([-5, 1, 1.0001, 2, 2.9999, 3, 9])
        expected = [0.001, 0.001, 4.50002e-5, 0.49999725, 0.9999495, 0.9999995, 0.999]
        found = mixture.normalized(losses, np.array([1, 3]))
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    @parameterized.parameters(0.0, 5e-6, 9e-6, 1e-5, 1e-4)
    def test_equal_ends_give_numbers_that_rise(self, width):
        # In the published quotient, 9e-6 divides by 0 and smaller ranges reverse the losses.
        losses = np.array([0.9, 1 - 1e-3, 1, 1 + width, 1 + 1e-3, 1.1])
        x = mixture.normalized(losses, np.array([1, 1 + width]))
        self.assertTrue((np.diff(x) >= 0).all())
        np.testing.assert_array_equal(x[[0, -1]], [0.001, 0.999])


class TableTest(parameterized.TestCase):
    def test_by_hand(self):
        # Weighted densities 0.25 * 2 (1 - x) and 0.75 * 2 x: the posterior is 3 x / (1 + 2 x).
        table = table_of([1, 2], [2, 1], [0.25, 0.75])
        x = np.arange(100) / 99
        np.testing.assert_allclose(table, 3 * x / (1 + 2 * x), atol=1e-6)

    def test_it_does_not_fall_back_to_0_at_1(self):
        # The noisy density vanishes at 1 and the clean one does not.
        table = table_of([1, 20], [3, 8], [0.5, 0.5])
        noisy, clean = (stats.beta.pdf(np.arange(99) / 99, *shapes) for shapes in ((20, 8), (1, 3)))
        posterior = noisy / (noisy + clean)
        peak = posterior.argmax()
        self.assertTrue(50 < peak < 95)
        self.assertLess(posterior[98], 0.01)
        np.testing.assert_allclose(table[:peak], posterior[:peak], atol=1e-6)
        np.testing.assert_allclose(table[peak:], posterior[peak], atol=1e-6)

    def test_a_clean_component_that_vanishes_at_0_does_not_make_all_noisy(self):
        shapes = [2, 1.2], [40, 3], [0.6, 0.4]
        logs = mixture.log_densities(np.array(shapes), mixture.GRID_LOGS)
        self.assertGreater(1 / (1 + np.exp(logs[0] - logs[1]))[0], 0.999)
        table = table_of(*shapes)
        self.assertLess(table[:5].max(), 0.1)  # the mean of the clean component is 0.048
        self.assertTrue((np.diff(table[4:]) >= 0).all())
        self.assertGreater(table[99], 0.99)

    def test_lookup(self):
        table = np.arange(100.0)
        x = np.array([-0.5, 0, 0.00999, 0.0101, 0.505, 0.999, 1, 1.7])
        expected = [0, 0, 0, 1, 50, 99, 99, 99]
        np.testing.assert_array_equal(mixture.lookup(table, x), expected)
        found = compiled(functools.partial(mixture.lookup, xp=ops))(table, x.astype("float32"))
        np.testing.assert_array_equal(found, expected)


class StepTest(parameterized.TestCase):
    @parameterized.parameters(True, False)
    def test_it_is_the_estimator_of_the_authors(self, jit):
        losses = some_losses()
        low, high = ends = np.percentile(losses, [10, 90])
        x = mixture.normalized(losses, ends)[(losses >= low) & (losses <= high)]
        expected = parameters_of(BetaMixtureModel(10, tol=0, init_params="authors").fit(x))
        # Unknown losses do not count.
        padded = np.insert(losses, [0, 7, len(losses)], [np.nan, np.inf, np.nan])
        found = compiled(lambda v: mixture.fit_losses(v, NO_FIT, 10, 90), jit)(padded)
        np.testing.assert_allclose(found[0], expected, rtol=1e-3)
        np.testing.assert_allclose(found[1], ends, rtol=1e-5)
        np.testing.assert_allclose(found[2], mixture.posterior_table(expected), atol=1e-3)

    def test_max_iter_is_the_number_of_steps(self):
        losses = some_losses()
        ends = np.percentile(losses, [0, 100])
        expected = plain_em(mixture.normalized(losses, ends), 3)
        found = compiled(lambda v: mixture.fit_losses(v, NO_FIT, 0, 100, 3))(losses)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3)

    def test_a_fit_that_fails_keeps_the_last_one(self):
        one = np.where(np.arange(50) == 3, 0.5, np.nan)
        nearly_equal = np.linspace(0.7, 0.7 + 9e-6, 50)
        for losses in (np.full(50, 0.7), np.zeros(50), np.full(50, np.nan), one, nearly_equal):
            found = compiled(fit)(losses.astype("float32"))
            for new, old in zip(found, NO_FIT):
                np.testing.assert_array_equal(new, old)

    def test_degenerate_losses_give_numbers(self):
        two_values, one_apart = np.repeat([0.1, 2.0], 25), np.where(np.arange(50) == 3, 5.0, 0.1)
        two_losses = np.where(np.arange(50) < 2, np.arange(50), np.nan)
        for losses in (two_values, one_apart, two_losses, np.geomspace(1e-9, 1e9, 50)):
            parameters, ends, table = compiled(fit)(losses.astype("float32"))
            self.assertTrue(np.isfinite(parameters).all())
            self.assertNotEqual(parameters[0, 0], 7)
            self.assertAlmostEqual(parameters[2].sum(), 1, places=5)
            self.assertGreater(ends[1], ends[0])
            self.assertTrue(((table >= 0) & (table <= 1)).all())


class DegenerateTest(parameterized.TestCase):
    """Where the published formulas divide by 0 or leave the parameters of a density."""

    def check(self, shares, x):
        with np.errstate(all="raise"):
            found = mixture.m_step(np.array(shares, "float64"), np.array(x, "float64"))
        low, high = mixture.SHAPES
        self.assertTrue((found[:2] >= low * 0.999).all(), found)
        self.assertTrue((found[:2] <= high * 1.001).all(), found)
        self.assertAlmostEqual(found[2].sum(), 1)
        self.assertTrue(np.isfinite(mixture.log_densities(found, np.log([[0.5], [0.5]]))).all())
        return found[0] / (found[0] + found[1])

    def test_an_empty_component(self):
        self.check([[1, 1, 1], [0, 0, 0]], [0.2, 0.3, 0.4])
        self.check(np.zeros((2, 3)), [0.2, 0.3, 0.4])

    def test_a_component_of_one_value_keeps_its_mean(self):
        means = self.check([[1, 1, 0], [0, 0, 1]], [0.3, 0.3, 0.9])
        np.testing.assert_allclose(means, [0.3, 0.9])

    def test_a_variance_of_no_density_keeps_the_mean(self):
        # m (1 - m) = 0.2244 < s2 = 0.2245 gives a negative alpha: not of values in [0, 1], but of
        # rounded sums.
        x = [1e-4, 1e-4, 1 - 1e-4]
        means = self.check([[1, 1, 1], [1, 1, 2]], x)
        np.testing.assert_allclose(means, [0.3334, 0.5], atol=1e-4)
        means = self.check([[1, 1, 1], [1, 1, 2]], [0, 0, 1])
        np.testing.assert_allclose(means, [1 / 3, 0.5])

    def test_components_are_ordered_by_their_means(self):
        swapped = np.array([[6.0, 1.5], [3, 15], [0.2, 0.8]])
        np.testing.assert_array_equal(mixture.ordered(swapped), swapped[:, ::-1])
        np.testing.assert_array_equal(mixture.ordered(swapped[:, ::-1]), swapped[:, ::-1])
        # alpha alone does not tell: Beta(1, 1) has the mean 1/2, Beta(2, 40) 1/21.
        found = mixture.ordered(np.array([[1.0, 2], [1, 40], [0.5, 0.5]]))
        np.testing.assert_array_equal(found[0], [2, 1])

    def test_fits_whose_components_change_places_are_ordered(self):
        losses, authors = some_losses(), BetaMixtureModel(10, tol=0, init_params="authors")
        x = mixture.normalized(losses, mixture.loss_range(losses, 0, 100))
        expected = parameters_of(authors.fit(x))
        with mock.patch.object(mixture, "INITIAL", mixture.INITIAL[:, ::-1].copy()):
            np.testing.assert_allclose(parameters_of(authors.fit(x)), expected)
            found = mixture.fit_losses(losses, NO_FIT, 0, 100)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-3)


class EstimatorTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("apart", (2, 10, 6000), (8, 3, 4000), 0.1),
        ("noise_is_rare", (1.5, 15, 9000), (6, 3, 1000), 0.1),
        ("noise_prevails", (2, 12, 3000), (4, 2, 7000), 0.1),
        ("poles", (0.7, 6, 5000), (5, 3, 5000), 0.1),
    )
    def test_it_finds_two_components(self, clean, noisy, tolerance):
        fitted = BetaMixtureModel().fit(beta_sample(clean, noisy))
        expected = np.array([clean, noisy], "float64").T / [[1], [1], [1e4]]
        np.testing.assert_allclose(parameters_of(fitted), expected, rtol=tolerance)
        self.assertTrue(fitted.is_bimodal_)
        self.assertTrue(fitted.converged_)
        self.assertLess(fitted.n_iter_, 100)

    def test_the_start_of_the_authors_may_end_elsewhere(self):
        x = beta_sample((2, 10, 6000), (8, 3, 4000), seed=1)
        own = BetaMixtureModel().fit(x)
        authors = BetaMixtureModel(init_params="authors").fit(x)
        self.assertGreater(own.lower_bound_, authors.lower_bound_ + 0.15)
        self.assertFalse(authors.is_bimodal_)

    def test_the_likeliest_step_is_kept_unless_there_is_no_test_of_convergence(self):
        x, likelihoods = beta_sample((2, 10, 6000), (8, 3, 4000), seed=1), []
        for steps in (1, 10, 50):
            fitted = BetaMixtureModel(steps, tol=0, init_params="authors").fit(x)
            likelihoods.append(np.mean(np.log(fitted.density(x).sum(axis=1))))
            self.assertAlmostEqual(fitted.lower_bound_, likelihoods[-1])
        self.assertGreater(likelihoods[1], max(likelihoods[::2]) + 2e-4)
        fitted = BetaMixtureModel(50, init_params="authors").fit(x)
        self.assertGreaterEqual(fitted.lower_bound_, likelihoods[1])
        likelihood = np.mean(np.log(fitted.density(x).sum(axis=1)))
        self.assertAlmostEqual(fitted.lower_bound_, likelihood)

    @parameterized.named_parameters(
        ("few_large_losses", (1.2, 8)), ("symmetric", (5, 5)), ("flat", (1, 1)), ("pole", (0.5, 5))
    )
    def test_one_mode_is_not_two(self, shapes):
        fitted = BetaMixtureModel().fit(beta_sample((*shapes, 10_000)))
        self.assertFalse(fitted.is_bimodal_)
        self.assertLess(fitted.dip_, 0.15)
        # Although it considers many noisy.
        self.assertGreater(fitted.weights_.min(), 0.1)

    def test_two_modes_are_two(self):
        self.assertTrue(BetaMixtureModel().fit(beta_sample((0.5, 0.5, 10_000))).is_bimodal_)
        self.assertTrue(BetaMixtureModel().fit(np.repeat([0, 1], 20)).is_bimodal_)
        # A mode with a weight below 0.01 does not count.
        few = BetaMixtureModel().fit(beta_sample((3, 20, 9950), (60, 6, 50)))
        self.assertGreater(few.dip_, 0.5)
        self.assertFalse(few.is_bimodal_)

    def test_density_and_posterior(self):
        fitted = BetaMixtureModel().fit(beta_sample((2, 10, 600), (8, 3, 400)))
        x = np.array([0.05, 0.3, 0.5, 0.9])
        expected = np.stack(
            [
                fitted.weights_[k] * stats.beta.pdf(x, fitted.alphas_[k], fitted.betas_[k])
                for k in (0, 1)
            ],
            axis=1,
        )
        np.testing.assert_allclose(fitted.density(x), expected)
        whole = expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(fitted.predict_proba(x[:, None]), expected / whole)
        self.assertTrue((np.diff(fitted.predict_proba(x)[:, 1]) > 0).all())
        likelihood = np.mean(
            np.log(fitted.density(x := beta_sample((2, 10, 600), (8, 3, 400))).sum(1))
        )
        self.assertAlmostEqual(fitted.lower_bound_, likelihood)
        self.assertTrue(np.isfinite(fitted.predict_proba([0, 1])).all())

    @parameterized.named_parameters(
        ("equal", np.full(50, 0.3)),
        ("zeros", np.zeros(50)),
        ("ones", np.ones(50)),
        ("two", np.array([0.2, 0.9])),
        ("one_apart", np.where(np.arange(50) == 3, 1.0, 0.1)),
    )
    def test_degenerate_samples_give_numbers(self, x):
        for init_params in mixture_model.STARTS:
            fitted = BetaMixtureModel(init_params=init_params).fit(x)
            self.assertTrue(np.isfinite(parameters_of(fitted)).all())
            self.assertTrue(np.isfinite([fitted.lower_bound_, fitted.dip_]).all())
            np.testing.assert_allclose(fitted.predict_proba(x).sum(axis=1), 1)
            means = fitted.alphas_ / (fitted.alphas_ + fitted.betas_)
            self.assertLessEqual(means[0], means[1] + 1e-6)
        if np.ptp(x) == 0:  # if all are equal, none is noisy
            self.assertGreater(BetaMixtureModel().fit(x).weights_[0], 0.999)
            self.assertFalse(fitted.is_bimodal_)

    def test_max_iter_and_tol(self):
        x = beta_sample((1.2, 20, 600), (4, 4, 400))
        short = BetaMixtureModel(max_iter=3).fit(x)
        self.assertEqual((short.n_iter_, short.converged_), (3, False))
        loose, tight = (BetaMixtureModel(1000, tol=tol).fit(x) for tol in (1e-3, 1e-8))
        self.assertTrue(loose.converged_ and tight.converged_)
        self.assertLess(loose.n_iter_, tight.n_iter_)

    def test_it_is_an_estimator(self):
        fitted = BetaMixtureModel(max_iter=7, tol=0.5, init_params="authors")
        expected = {"max_iter": 7, "tol": 0.5, "init_params": "authors"}
        self.assertEqual(clone(fitted).get_params(), expected)
        self.assertIs(fitted.set_params(max_iter=8, tol=0), fitted)
        x = beta_sample((2, 10, 60), (8, 3, 40))
        self.assertIs(fitted.fit(x[:, None]), fitted)
        self.assertEqual(fitted.n_iter_, 8)
        np.testing.assert_array_equal(clone(fitted).fit(x).alphas_, fitted.alphas_)
        with self.assertRaises(NotFittedError):
            BetaMixtureModel().predict_proba(x)

    def test_what_is_refused(self):
        for x in ([0.5], [0.1, np.nan], [0.1, 1.01], [-1e-9, 0.5], np.ones((4, 2)) / 2, 0.5):
            with self.assertRaisesRegex(ValueError, r"`x` must have shape \(n,\) or") as caught:
                BetaMixtureModel().fit(x)
            self.assertNotIn("\n", str(caught.exception))
        for wrong in ({"max_iter": 0}, {"tol": -1e-9}, {"tol": np.nan}, {"init_params": "random"}):
            with self.assertRaisesRegex(ValueError, "`max_iter` must be at least 1.*Received: "):
                BetaMixtureModel(**wrong).fit([0.1, 0.9])
        fitted = BetaMixtureModel().fit([0.1, 0.9])
        self.assertEqual(fitted.predict_proba([0.5]).shape, (1, 2))
        with self.assertRaisesRegex(ValueError, "1 outside"):
            fitted.density([0.5, 2])


class GaussianTest(parameterized.TestCase):
    @parameterized.parameters((0.01, True), (0.01, False), (1e-4, False), (0.0, False))
    def test_it_is_scikit_learns(self, tol, jit):
        losses = some_losses(3000)
        x = ((losses - losses.min()) / np.ptp(losses))[:, None].astype("float64")
        # From 2-means alike, and as many steps.
        expected = GaussianMixture(2, max_iter=10, reg_covar=5e-4, tol=tol, random_state=0)
        if tol == 0.01:  # of the authors, and the default
            expected.fit(x)
            self.assertLess(expected.n_iter_, 10)
        else:
            with self.assertWarns(ConvergenceWarning):
                expected.fit(x)
        clean = expected.means_[:, 0].argmin()
        padded = np.insert(losses, [0, 11], [np.nan, np.inf])
        given = {} if tol == 0.01 else {"tol": tol}

        def posterior(values):
            return mixture.gaussian_posterior(mixture.scaled(values), **given)

        found = compiled(posterior, jit)(padded)
        np.testing.assert_array_equal(found[[0, 12]], [0, 0])
        found = np.delete(found, [0, 12])
        np.testing.assert_allclose(found, expected.predict_proba(x)[:, clean], atol=2e-3)

    def test_degenerate_losses_give_numbers(self):
        # All equal: all clean.
        for losses, expected in (
            ([0.7, 0.7, 0.7, 0.7], 1),
            ([0, 0, 0, 0], 1),
            ([np.nan] * 4, 0),
            ([0, 0, 0, 5], [1, 1, 1, 0]),
        ):
            scaled = mixture.scaled(np.array(losses, "float32"))
            found = compiled(mixture.gaussian_posterior)(scaled)
            np.testing.assert_allclose(found, expected, atol=1e-3)


class SeparationTest(absltest.TestCase):
    def test_separation_by_hand(self):
        fitted = mixture_model.BetaMixtureModel().fit(np.linspace(0.2, 0.8, 20))
        fitted.fit(np.concatenate([np.linspace(0.05, 0.15, 50), np.linspace(0.85, 0.95, 50)]))
        # Uniform samples of width 0.1: means 0.1 and 0.9, variances 0.1^2 / 12 and a little.
        deviation = np.linspace(0.05, 0.15, 50).std()
        self.assertAlmostEqual(fitted.separation_, 0.8 / deviation, delta=0.01)

    def test_monotone_posterior_keeps_the_value_of_the_turning_point(self):
        fitted = mixture_model.BetaMixtureModel().fit(np.linspace(0.1, 0.9, 50))
        # Log odds of 2 log x + log(1 - x): they turn at 2/3, and fall from there on.
        fitted.alphas_, fitted.betas_ = np.array([2.0, 4.0]), np.array([2.0, 3.0])
        x = np.array([0.2, 0.5, 2 / 3, 0.8, 0.99])
        found, raw = fitted.monotone_posterior(x), fitted.predict_proba(x)[:, 1]
        np.testing.assert_allclose(found[:3], raw[:3])
        np.testing.assert_allclose(found[3:], raw[2])
        self.assertLess(raw[4], raw[2])


if __name__ == "__main__":
    absltest.main()
