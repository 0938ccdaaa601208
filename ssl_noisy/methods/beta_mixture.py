# SPDX-License-Identifier: Apache-2.0
"""Loss correction: replaces labels by predictions in proportion to how likely they are wrong."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import arguments, augment, losses, schedules
from ssl_noisy.arguments import at_least, choice, fraction, interval
from ssl_noisy.labels import mixture
from ssl_noisy.robust import RobustLearner

VARIANTS = (
    "m_dyr_h",
    "m_dyr_s",
    "md_dyr_sh",
    "dyr_hard",
    "dyr_soft",
    "static_hard",
    "static_soft",
)
LABEL_WEIGHTS = {"static_hard": 0.8, "static_soft": 0.95}  # Reed et al., 2014


@keras.saving.register_keras_serializable(package="ssl_noisy")
class BetaMixture(RobustLearner):
    """Trains on given labels of which some are wrong, corrected by a mixture of the losses.

    The last loss of each example, of its weak view in evaluation mode, is kept on the device. At
    the end of each pass through the labeled examples, a two-component beta mixture is fitted to
    these losses (`mixture.fit_losses`). It gives the probability that the label of an example is
    wrong. After a warm-up, targets are bootstrapped: they are a mean of the label and the
    network's prediction for the unmixed view (in training mode, without gradient), and the
    prediction has that probability as its weight. From then on, R_A (`losses.prior_loss`), which
    keeps all classes in use, is added. Before the first fit, every label counts as right.

    The variants, by their names in the paper:

    - `m_dyr_h`, `m_dyr_s`: images and targets are mixed, with one lambda per batch, also in the
      warm-up. Predictions are hard (the most probable class) or soft (probabilities).
    - `md_dyr_sh`: after the warm-up, two images are mixed in proportion to their probabilities of
      being clean. From `guided_end` on, targets are mixed half and half, with soft predictions
      that harden: their temperature falls from 1 to 0.001.
    - `dyr_hard`, `dyr_soft`: no mixing.
    - `static_hard`, `static_soft`: no mixing and no mixture model; every label has the same
      weight (Reed et al., 2014, who have no R_A: `prior_weight=0`).

    Departures from the authors' code (PaulAlbert31/LabelNoiseCorrection, 5e9a73e), which lacks
    the last four variants:

    - It runs all images through the network again after each epoch. Here the losses are those of
      the steps of the past pass, each from the step in which the example was seen.
    - Its milestones are epochs, whatever the length of training. Here they are fractions of
      training, and the temperature falls with each step, not each epoch.
    - Its default weight of R_A is 0; its scripts and the paper use 1, as here. Its R_A
      and its noise support 10 classes only.
    - Unmixed views pass through the network in the warm-up too, for the record of the examples.
      The running statistics of batch norm follow them.
    - If a fit fails, the previous one stays, and the table of posteriors has one more correction:
      see `mixture`.

    Reference:
        [Arazo et al., 2019](https://arxiv.org/abs/1904.11238), section 3.
    """

    variant: str = choice("m_dyr_h", VARIANTS, "Variant of the paper; see the class.")
    bootstrap_start: float = fraction(105 / 300, "Fraction of training that is the warm-up.")
    guided_end: float = fraction(
        110 / 300,
        "Fraction of training after which `md_dyr_sh` bootstraps. Between `bootstrap_start` and "
        "this, it mixes by the probabilities alone.",
    )
    temperature_end: float = fraction(
        200 / 300, "Fraction of training after which the temperature of `md_dyr_sh` is 0.001."
    )
    static_weight: float = fraction(
        0.0,
        "Weight of the given label in static variants. 0 means Reed et al.'s: 0.8 hard, 0.95 soft.",
    )
    mixup_alpha: float = arguments.mixup_alpha(32.0)
    prior_weight: float = at_least(0, 1.0, "Weight of R_A, which keeps all classes in use.")
    low_percentile: float = interval("[0, 100)", 5.0, "A fit ignores losses below this percentile.")
    high_percentile: float = interval(
        "(0, 100]", 95.0, "A fit ignores losses above this percentile."
    )
    weight_decay: float = RobustLearner.weight_decay.with_default(1e-4)

    term_names = ("supervised_loss", "prior_loss")
    monitor_names = ("bootstrap_weight",)
    training_defaults = RobustLearner.training_defaults | {
        "steps": 117_300,  # 300 epochs of 50,000 examples
        "learning_rate": 0.1,
        "schedule": "drops_1_3_5_6",
    }

    @classmethod
    def check_arguments(cls, values):
        cls.require(
            values.low_percentile < values.high_percentile,
            "high_percentile",
            values.high_percentile,
            f"above low_percentile={values.low_percentile}",
        )
        name, start = "bootstrap_start", values.bootstrap_start
        if values.variant == "md_dyr_sh":
            end, value = values.temperature_end, values.guided_end
            requirement = f"between bootstrap_start={start} and temperature_end={end}"
            cls.require(start <= value <= end, "guided_end", value, requirement)
            name, start = "guided_end", value
        has_steps = start * values.steps <= values.steps - 1
        requirement = f"small enough to leave one of {values.steps} steps for bootstrapping"
        cls.require(has_steps, name, start, requirement)

    def build_state(self):
        if not self.is_static:
            self.mixture = self.add_state("mixture", mixture.INITIAL)
            self.loss_range = self.add_state("loss_range", np.zeros(2, "float32"))
            # All zeros until the first fit.
            self.posterior_table = self.add_state("posterior_table", np.zeros(100, "float32"))

    def build_example_state(self, task):
        if self.is_static:
            return
        steps_per_pass = self.steps_per_pass(task)
        requirement = (
            f"above {steps_per_pass}, the steps of a pass, after which a mixture is fitted"
        )
        self.require(self.steps > steps_per_pass, "steps", self.steps, requirement)
        # -1 means no loss yet. A checkpoint contains finite numbers only.
        self.last_losses = self.add_state("last_losses", np.full(task.num_examples, -1, "float32"))

    @property
    def is_static(self):
        """Whether all labels have the same weight, without a mixture of losses."""
        return self.variant in LABEL_WEIGHTS

    @property
    def is_guided(self):
        """Whether images are mixed by their probabilities of being clean."""
        return self.variant == "md_dyr_sh"

    def objective(self, labeled):
        views = self.weak_view(self.images(labeled), labeled)
        plain_logits = self.network(views, training=True)
        self.observe(labeled, plain_logits)
        noisy = self.probabilities_of_noise(labeled, views)
        is_mixed = self.variant.startswith("m")
        partners, shares = augment.mixing(
            labeled.shape[0], self.seed_generator, alpha=self.mixup_alpha if is_mixed else 0
        )
        image_shares = label_shares = shares
        start = self.bootstrap_start
        if self.is_guided:
            clean = 1 - noisy
            guided = clean / (clean + ops.take(clean, partners))
            image_shares = ops.where(self.fraction_done() >= start, guided, shares)
            start = self.guided_end
            label_shares = ops.where(self.fraction_done() >= start, 0.5, shares)
        has_started = ops.cast(self.fraction_done() >= start, "float32")
        targets = self.bootstrapped(labeled, plain_logits, has_started * noisy)
        logits = plain_logits
        if is_mixed:
            logits = self.network(augment.mix(views, partners, image_shares), training=True)
        soft_labels = augment.mix(targets, partners, label_shares)
        return {
            "terms": {
                "supervised_loss": ops.mean(losses.soft_cross_entropy(soft_labels, logits)),
                "prior_loss": self.prior_weight * has_started * losses.prior_loss(logits),
            },
            "monitors": {"bootstrap_weight": ops.mean(has_started * noisy)},
        }

    def bootstrapped(self, labeled, logits, weights):
        """Returns the targets of a batch: labels, and predictions with their `weights`."""
        num_classes = logits.shape[-1]
        given = ops.one_hot(self.given_labels(labeled), num_classes, dtype="float32")
        if self.is_guided:
            falling = schedules.linear_ramp(
                self.fraction_done(), self.guided_end, self.temperature_end
            )
            predicted = losses.probabilities(logits, 1 - 0.999 * falling)
        elif self.variant in ("m_dyr_s", "dyr_soft", "static_soft"):
            predicted = losses.probabilities(logits)
        else:
            predicted = ops.one_hot(ops.argmax(logits, axis=-1), num_classes, dtype="float32")
        return given + weights[:, None] * (predicted - given)

    def probabilities_of_noise(self, labeled, views):
        """Stores the new losses, and returns the probabilities of noise by the last fit."""
        if self.is_static:
            weight = self.static_weight or LABEL_WEIGHTS[self.variant]
            return ops.full(labeled.shape, 1 - weight, "float32")
        logits = ops.stop_gradient(self.network(views, training=False))
        values = losses.cross_entropy(self.given_labels(labeled), logits)
        x = mixture.normalized(values, self.loss_range.value, ops)
        noisy = mixture.lookup(self.posterior_table.value, x, ops)
        self.remember(self.last_losses, labeled, values)
        self.fit_mixture()
        return ops.clip(noisy, 1e-4, 1 - 1e-4)

    def fit_mixture(self):
        """Refits the mixture if this step is the last of a pass."""
        variables = self.mixture, self.loss_range, self.posterior_table
        previous = tuple(ops.convert_to_tensor(v.value) for v in variables)

        def fitted():
            values = self.last_losses.value
            known = ops.where(values >= 0, values, np.nan)
            return mixture.fit_losses(known, previous, self.low_percentile, self.high_percentile)

        is_end = (self.step.value + 1) % self.steps_per_pass(self.task) == 0
        for variable, value in zip(variables, ops.cond(is_end, fitted, lambda: previous)):
            variable.assign(value)

    def noisy_posterior(self):
        """Returns the probability that a given label is wrong, from its last loss and the last fit.

        Returns:
            A float32 array `(num_examples,)`, NaN where no loss is known, before the
            first fit, and for static variants everywhere.
        """
        posterior = np.full(self.task.num_examples, np.nan, "float32")
        if not self.is_static and ops.any(self.posterior_table.value > 0):
            values, ends, table = (
                ops.convert_to_numpy(variable.value)
                for variable in (self.last_losses, self.loss_range, self.posterior_table)
            )
            known = values >= 0
            posterior[known] = mixture.lookup(table, mixture.normalized(values[known], ends))
        return posterior

    def detected(self):
        score = self.noisy_posterior()
        return {} if self.is_static else {"beta_mixture": (score, score > 0.5)}
