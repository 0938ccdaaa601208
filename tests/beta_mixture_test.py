# SPDX-License-Identifier: Apache-2.0
"""The corrected losses by hand, when they begin, and the fit inside the step."""

import contextlib
from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import Task, augment, methods
from ssl_noisy.labels import mixture, mixture_model
from ssl_noisy.methods import beta_mixture

PIXELS = [0, 10, 41]  # of the three images: their mixtures have pixels of their own
LABELS = [1, 0, 2]
PLAIN = np.array([[0.7, 0.2, 0.1], [0.3, 0.1, 0.6], [0.25, 0.35, 0.4]])  # in training mode
HARD = [0, 2, 2]
# By 0.75 of the image itself, and by the share of its probability of being clean (below).
MIXED = np.array([[0.5, 0.4, 0.1], [0.2, 0.3, 0.5], [0.15, 0.6, 0.25]])
GUIDED = np.array([[0.45, 0.15, 0.4], [0.35, 0.55, 0.1], [0.05, 0.8, 0.15]])
EVALUATED = [0.3, 0.8, 0.6]  # the probability of the given label in evaluation mode
NOISY = np.array([0.6, 0.11, 0.25])  # int(100 x) / 100 of -log of them, over 2
PARTNERS = [1, 2, 0]
MIXED_BY = 0.75
AFTER = {"m_dyr_h": 105, "m_dyr_s": 105, "md_dyr_sh": 110, "dyr_hard": 105, "dyr_soft": 105}
AFTER.update(static_hard=105, static_soft=105)
VARIANTS = [(name, name) for name in beta_mixture.VARIANTS]


@keras.saving.register_keras_serializable(package="ssl_noisy_tests")
class TwoTables(toy.LookUp):
    """Answers in evaluation mode from the second half of its table."""

    def call(self, images, training=None):
        return super().call(images if training else images + self.num_rows // 2)


def make(pixels=PIXELS, labels=LABELS, *, rows=None, steps=300, **kwargs):
    """Returns a learner whose images are one pixel, the row of the table that is the answer."""
    if rows is None:
        rows = np.full((2, 42, 3), [0.97, 0.01, 0.02])
        rows[0, [0, 10, 41]] = PLAIN
        rows[0, [2, 17, 30]] = MIXED
        rows[0, [6, 24, 26]] = GUIDED
        for pixel, label, probability in zip(PIXELS, LABELS, EVALUATED):
            rows[1, pixel] = (1 - probability) / 2
            rows[1, pixel, label] = probability
    rows = rows.reshape(-1, rows.shape[-1])
    inputs = keras.Input((1, 1, 1))
    network = keras.Model(inputs, TwoTables(*rows.shape)(inputs))
    network.set_weights([np.log(rows).astype("float32")])
    images = np.array(pixels, "uint8").reshape(-1, 1, 1, 1)
    task = Task(images, np.array(labels), num_classes=rows.shape[-1])
    kwargs = {"batch_size": 3, "weight_decay": 0.0, "weak_augmentation": "none", **kwargs}
    learner = methods.get("beta_mixture")(network, task, steps=steps, **kwargs)
    if not learner.is_static:
        learner.loss_range.assign([0, 2])
        learner.posterior_table.assign(np.arange(100) / 100)
    return learner


@contextlib.contextmanager
def fixed():
    """Within this context mixtures are those of `PARTNERS` and `MIXED_BY`, and no fit comes."""

    def mixing(size, seed, *, alpha):
        if alpha == 0:
            return ops.arange(size, dtype="int32"), ops.ones((size,))
        return np.array(PARTNERS, "int32"), ops.full((size,), MIXED_BY)

    # JAX would compile both branches anew in each call.
    no_fit = mock.patch.object(ops, "cond", lambda is_end, fitted, previous: previous())
    with mock.patch.object(augment, "mixing", side_effect=mixing) as mixing, no_fit:
        yield mixing


def step(learner, done, labeled=(0, 1, 2)):
    """Returns terms and monitors of the step after `done` ones."""
    learner.step.assign(done)
    with fixed():
        outcome = learner.objective(labeled=np.array(labeled, "int32"))
    return {k: float(v) for k, v in {**outcome["terms"], **outcome["monitors"]}.items()}


def expected_loss(probs, predicted, noisy, share, partners=PARTNERS):
    """The loss of the paper, example by example; `predicted` are rows of probabilities."""

    def bootstrapped(i, j):
        """The loss of mixture i with the target of example j."""
        label = -np.log(probs[i][LABELS[j]])
        prediction = -sum(q * np.log(p) for q, p in zip(predicted[j], probs[i]))
        return (1 - noisy[j]) * label + noisy[j] * prediction

    return np.mean(
        [share * bootstrapped(i, i) + (1 - share) * bootstrapped(i, partners[i]) for i in range(3)]
    )


class LossTest(parameterized.TestCase):
    def check(self, terms, *expected):
        self.assertAlmostEqual(terms["supervised_loss"], expected_loss(*expected), places=5)

    def test_m_dyr_h(self):
        terms = step(make(), 106)
        self.check(terms, MIXED, np.eye(3)[HARD], NOISY, MIXED_BY)
        # 0.75 (0.4 * 0.9163 + 0.6 * 0.6931) + 0.25 (0.89 * 0.6931 + 0.11 * 2.3026) = 0.8043,
        # 0.75 (0.89 * 1.6094 + 0.11 * 0.6931) + 0.25 * 0.6931 = 1.3047,
        # 0.75 * 1.3863 + 0.25 (0.4 * 0.5108 + 0.6 * 1.8971) = 1.3754: their mean.
        self.assertAlmostEqual(terms["supervised_loss"], 1.16146, places=4)
        self.assertAlmostEqual(terms["bootstrap_weight"], 0.32, places=5)

    def test_m_dyr_s(self):
        self.check(step(make(variant="m_dyr_s"), 106), MIXED, PLAIN, NOISY, MIXED_BY)

    @parameterized.parameters((110, 1.0), (155, 0.5005), (200, 0.001), (299, 0.001))
    def test_md_dyr_sh(self, done, temperature):
        # Images by 0.4 / 1.29, 0.89 / 1.64 and 0.75 / 1.15: pixels 6.9, 24.2 and 26.7.
        powers = (PLAIN / PLAIN.max(axis=1, keepdims=True)) ** (1 / temperature)
        predicted = powers / powers.sum(axis=1, keepdims=True)
        terms = step(make(variant="md_dyr_sh"), done)
        self.check(terms, GUIDED, predicted, NOISY, 0.5)
        self.assertGreater(terms["prior_loss"], 0)

    def test_md_dyr_sh_first_mixes_by_the_posterior_and_corrects_no_label(self):
        for done in (105, 109):
            terms = step(make(variant="md_dyr_sh"), done)
            self.check(terms, GUIDED, PLAIN, np.zeros(3), MIXED_BY)
            self.assertEqual((terms["prior_loss"], terms["bootstrap_weight"]), (0, 0))
        terms = step(make(variant="md_dyr_sh"), 104)
        self.check(terms, MIXED, PLAIN, np.zeros(3), MIXED_BY)

    def test_dyr_mixes_nothing(self):
        self.check(step(make(variant="dyr_hard"), 106), PLAIN, np.eye(3)[HARD], NOISY, 1)
        self.check(step(make(variant="dyr_soft"), 106), PLAIN, PLAIN, NOISY, 1)

    def test_static_weights_are_reeds_or_given(self):
        hard = np.eye(3)[HARD]
        for variant, predicted, kwargs, weight in (
            ("static_hard", hard, {}, 0.8),
            ("static_soft", PLAIN, {}, 0.95),
            ("static_hard", hard, {"static_weight": 0.3}, 0.3),
            ("static_soft", PLAIN, {"static_weight": 1.0}, 1.0),
        ):
            terms = step(make(variant=variant, **kwargs), 106)
            self.check(terms, PLAIN, predicted, np.full(3, 1 - weight), 1)
            self.assertAlmostEqual(terms["bootstrap_weight"], 1 - weight, places=5)

    @parameterized.named_parameters(VARIANTS)
    def test_the_warm_up_is_mixup_or_plain(self, variant):
        learner = make(variant=variant)
        probs, share = (MIXED, MIXED_BY) if variant.startswith("m") else (PLAIN, 1)
        for done in (0, 104):
            terms = step(learner, done)
            self.check(terms, probs, PLAIN, np.zeros(3), share)
            self.assertEqual((terms["prior_loss"], terms["bootstrap_weight"]), (0, 0))

    @parameterized.named_parameters(VARIANTS)
    def test_milestones_follow_the_length(self, variant):
        for steps in (30, 300, 3000):
            start = AFTER[variant] * steps // 300
            learner = make(variant=variant, steps=steps)
            self.assertEqual(step(learner, start - 1)["prior_loss"], 0)
            self.assertGreater(step(learner, start + 1)["prior_loss"], 0)
            self.assertGreater(step(learner, start + 1)["bootstrap_weight"], 0)
        learner = make(variant=variant, bootstrap_start=0.2, guided_end=0.6)
        start = 180 if variant == "md_dyr_sh" else 60
        self.assertEqual(step(learner, start - 1)["bootstrap_weight"], 0)
        self.assertGreater(step(learner, start)["bootstrap_weight"], 0)

    def test_prior_loss_is_of_the_mixtures_whatever_the_number_of_classes(self):
        # h = (0.85, 1.3, 0.85) / 3; with C = 10 in place of 3 it would be 0.3239.
        terms = step(make(prior_weight=0.5), 106)
        expected = -0.5 * (2 * np.log(0.85 / 3) + np.log(1.3 / 3)) / 3
        self.assertAlmostEqual(terms["prior_loss"], expected, places=5)
        self.assertAlmostEqual(expected, 0.55975, places=5)

    def test_mixtures_are_drawn_as_the_authors_do(self):
        for variant, alpha in (("m_dyr_h", 32.0), ("md_dyr_sh", 32.0), ("dyr_hard", 0)):
            learner = make(variant=variant)
            with fixed() as mixing:
                learner.objective(labeled=np.arange(3, dtype="int32"))
            self.assertEqual(mixing.call_args.args, (3, learner.seed_generator))
            self.assertEqual(mixing.call_args.kwargs, {"alpha": alpha})


class GradientTest(parameterized.TestCase):
    @parameterized.named_parameters(VARIANTS)
    def test_it_flows_through_what_is_classified_alone(self, variant):
        """Static weights trained nothing after the warm-up once; targets are constants."""
        learner = make(variant=variant, prior_weight=0.0)
        learner.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
        is_mixed = variant.startswith("m")
        share = MIXED_BY if is_mixed else 1
        weight = {"static_hard": 0.2, "static_soft": 0.05}.get(variant, NOISY[:, None])
        predicted = PLAIN if variant.endswith(("s", "soft")) else np.eye(3)[HARD]
        for done in (0, 150):
            pixels, probs = ([2, 17, 30], MIXED) if is_mixed else (PIXELS, PLAIN)
            targets = np.eye(3)[LABELS]
            if done:
                targets = targets + weight * (predicted - targets)
                if variant == "md_dyr_sh":
                    pixels, probs, share = [6, 24, 26], GUIDED, 0.5
                    powers = PLAIN ** (1 / (1 - 0.999 * 40 / 90))
                    soft = powers / powers.sum(axis=1, keepdims=True)
                    targets = np.eye(3)[LABELS] * (1 - weight) + weight * soft
            targets = share * targets + (1 - share) * targets[PARTNERS]
            before = make().network.get_weights()[0]
            learner.network.set_weights([before])
            learner.step.assign(done)
            with fixed():
                learner.fit({"labeled": np.arange(3)}, batch_size=3, shuffle=False, verbose=0)
            change = np.zeros_like(before)
            change[pixels] = (targets - probs) / 3
            np.testing.assert_allclose(
                learner.network.get_weights()[0] - before, change, atol=1e-5, err_msg=str(done)
            )


class PosteriorTest(parameterized.TestCase):
    def test_it_is_kept_from_0_and_1(self):
        learner = make()
        for value, expected in ((0.0, 1e-4), (1.0, 1 - 1e-4)):
            learner.posterior_table.assign(np.full(100, value))
            self.assertAlmostEqual(step(learner, 106)["bootstrap_weight"], expected, places=6)

    def test_a_loss_beyond_the_range_has_the_last_entry(self):
        learner = make()
        learner.loss_range.assign([0, 0.2])  # below all the losses
        self.assertAlmostEqual(step(learner, 106)["bootstrap_weight"], 0.99, places=6)
        learner.loss_range.assign([5, 9])  # above them
        self.assertAlmostEqual(step(learner, 106)["bootstrap_weight"], 1e-4, places=6)

    def test_before_a_fit_all_labels_are_right(self):
        learner = make(variant="md_dyr_sh")
        fresh = methods.get("beta_mixture")(learner.network, learner.task, batch_size=3, steps=9)
        for name in ("loss_range", "posterior_table"):
            getattr(learner, name).assign(getattr(fresh, name).value)
        terms = step(learner, 120)
        self.assertAlmostEqual(terms["bootstrap_weight"], 1e-4, places=6)
        self.assertTrue(np.isfinite(terms["supervised_loss"]))

    def test_of_every_example(self):
        learner = make([*PIXELS, 5], [*LABELS, -1])
        np.testing.assert_array_equal(learner.noisy_posterior(), np.full(4, np.nan))
        step(learner, 106, [0, 1, 0])
        posterior = learner.noisy_posterior()
        self.assertEqual(posterior.dtype, np.float32)
        np.testing.assert_allclose(posterior, [*NOISY[:2], np.nan, np.nan], atol=1e-6)
        step(learner, 106)
        np.testing.assert_allclose(learner.noisy_posterior(), [*NOISY, np.nan], atol=1e-6)
        ((name, (score, flagged)),) = learner.detected().items()
        self.assertEqual(name, "beta_mixture")
        np.testing.assert_array_equal(score, learner.noisy_posterior())
        np.testing.assert_array_equal(flagged, [True, False, False, False])
        learner.posterior_table.assign(np.zeros(100))  # as before the first fit
        np.testing.assert_array_equal(learner.noisy_posterior(), np.full(4, np.nan))

    def test_static_variants_have_none(self):
        learner = make(variant="static_hard")
        step(learner, 106)
        np.testing.assert_array_equal(learner.noisy_posterior(), np.full(3, np.nan))
        self.assertEqual(learner.detected(), {})

    def test_losses_are_of_evaluation_mode_and_the_record_of_training_mode(self):
        learner = make()
        step(learner, 0)
        np.testing.assert_allclose(learner.last_losses, -np.log(EVALUATED), atol=1e-5)
        record = learner.example_record()
        np.testing.assert_array_equal(record["observations"], [1, 1, 1])
        expected = -np.log(PLAIN[np.arange(3), LABELS])
        np.testing.assert_allclose(record["loss"], expected, atol=1e-5)


class FitTest(parameterized.TestCase):
    def make(self, **kwargs):
        """Returns a learner on 40 labeled examples, 8 a step, and 8 others, and their losses."""
        rng = np.random.default_rng(0)
        right = np.concatenate([rng.beta(12, 2, 30), rng.beta(2, 12, 18)])
        rows = np.stack([right, 1 - right], axis=1)[None].repeat(2, axis=0)
        labels = np.where(np.arange(48) % 6 == 5, -1, 0)
        learner = make(np.arange(48), labels, rows=rows, batch_size=8, **kwargs)
        learner.mixture.assign(np.full((3, 2), 7.0))
        learner.compile(keras.optimizers.SGD(0.0))
        return learner, np.where(labels == 0, -np.log(right), -1)

    def states(self, learner):
        names = ("mixture", "loss_range", "posterior_table")
        return [getattr(learner, name).numpy() for name in names]

    def test_it_comes_at_the_end_of_a_pass_is_the_estimators_and_outlives_equal_losses(self):
        learner, expected = self.make(low_percentile=10.0, high_percentile=80.0)
        before = self.states(learner)
        toy.fit(learner, steps=4)
        for old, new in zip(before, self.states(learner)):
            np.testing.assert_array_equal(new, old)
        self.assertEqual((learner.last_losses.numpy() >= 0).sum(), 32)
        toy.fit(learner, steps=1, start=4)
        np.testing.assert_allclose(learner.last_losses, expected, atol=1e-5)

        labeled = expected[learner.task.labeled]
        low, high = ends = np.percentile(labeled, [10, 80])
        x = mixture.normalized(labeled, ends)[(labeled >= low) & (labeled <= high)]
        self.assertLen(x, 28)
        fitted = mixture_model.BetaMixtureModel(10, tol=0, init_params="authors").fit(x)
        parameters = np.stack([fitted.alphas_, fitted.betas_, fitted.weights_])
        after = self.states(learner)
        np.testing.assert_allclose(after[0], parameters, rtol=2e-3)
        np.testing.assert_allclose(after[1], ends, rtol=1e-4)
        np.testing.assert_allclose(after[2], mixture.posterior_table(parameters), atol=1e-3)

        # The next fit is at the end of the next pass, not before.
        learner.network.set_weights([learner.network.get_weights()[0] * 0.5])
        toy.fit(learner, steps=4, start=5)
        for old, new in zip(after, self.states(learner)):
            np.testing.assert_array_equal(new, old)
        toy.fit(learner, steps=1, start=9)
        last = self.states(learner)
        self.assertGreater(np.abs(last[0] - after[0]).max(), 0.1)

        # Equal losses tell nothing: the last fit stays, and no number is lost.
        learner.network.set_weights([np.zeros_like(learner.network.get_weights()[0])])
        logs = toy.fit(learner, steps=10, start=10)
        for old, new in zip(last, self.states(learner)):
            np.testing.assert_array_equal(new, old)
        self.assertTrue(np.isfinite(logs["loss"]))
        self.assertEqual(np.ptp(learner.last_losses.numpy()[learner.task.labeled]), 0)

    def test_a_batch_larger_than_the_pool_fits_each_step(self):
        self.assertEqual(make(batch_size=50).steps_per_pass(make().task), 1)
        self.assertEqual(make(batch_size=2).steps_per_pass(make().task), 2)


class ArgumentsTest(parameterized.TestCase):
    def test_defaults_are_the_authors(self):
        task, _ = toy.task()
        learner = methods.get("beta_mixture")(toy.network(), task)
        self.assertEqual((learner.variant, learner.batch_size), ("m_dyr_h", 128))
        self.assertEqual((learner.mixup_alpha, learner.prior_weight), (32.0, 1.0))
        self.assertEqual((learner.low_percentile, learner.high_percentile), (5.0, 95.0))
        self.assertEqual((learner.weight_decay, learner.decayed), (1e-4, "all"))
        self.assertEqual(learner.averages, [])
        epochs = [learner.bootstrap_start, learner.guided_end, learner.temperature_end]
        np.testing.assert_allclose(np.multiply(epochs, 300), [105, 110, 200])
        defaults = learner.training_defaults
        self.assertEqual(defaults["steps"], 300 * -(-50_000 // 128))
        self.assertEqual(defaults["steps_per_epoch"], 391)
        self.assertEqual((defaults["learning_rate"], defaults["momentum"]), (0.1, 0.9))
        self.assertEqual((defaults["schedule"], defaults["nesterov"]), ("drops_1_3_5_6", False))

    @parameterized.parameters(
        ({"bootstrap_start": 1.0}, "bootstrap_start", "leave one of 300 steps"),
        ({"bootstrap_start": 0.9, "steps": 9}, "bootstrap_start", "leave one of 9 steps"),
        ({"variant": "static_hard", "bootstrap_start": 1.0}, "bootstrap_start", "leave one"),
        ({"guided_end": 0.34, "variant": "md_dyr_sh"}, "guided_end", "between bootstrap_start="),
        ({"temperature_end": 0.36, "variant": "md_dyr_sh"}, "guided_end", "temperature_end=0.36"),
        (
            {"guided_end": 1.0, "temperature_end": 1.0, "variant": "md_dyr_sh"},
            "guided_end",
            "leave one",
        ),
        ({"steps": 3, "batch_size": 1}, "steps", "above 3, the steps of a pass"),
        ({"low_percentile": 95.0}, "high_percentile", "above low_percentile=95.0"),
        ({"low_percentile": 100.0}, "low_percentile", r"in \[0, 100\)"),
    )
    def test_a_training_that_cannot_bootstrap_is_refused(self, arguments, name, requirement):
        pattern = f"`{name}` argument of .* must be .*{requirement}.*Received: {name}="
        with self.assertRaisesRegex(ValueError, pattern) as caught:
            make(**arguments)
        self.assertNotIn("\n", str(caught.exception))

    def test_one_that_just_can_is_taken(self):
        make(steps=4, batch_size=1)
        make(steps=9, bootstrap_start=8 / 9)
        make(variant="md_dyr_sh", bootstrap_start=0.4, guided_end=0.4, temperature_end=0.4)
        make(variant="m_dyr_h", bootstrap_start=0.9)  # what is not its own is not compared
        make(variant="static_hard", steps=2, batch_size=1, bootstrap_start=0.0)


if __name__ == "__main__":
    absltest.main()
