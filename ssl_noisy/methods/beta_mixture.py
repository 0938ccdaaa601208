# SPDX-License-Identifier: Apache-2.0
"""Loss correction: the more probably a label is wrong, the more the network's own answer counts."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import augment, losses, schedules
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
class BetaMixtureCorrection(RobustLearner):
    """Trains on given labels of which some are wrong, corrected by a mixture of the losses.

    The last loss of each example, of its weak view in evaluation mode, lies on the device. At the
    end of each pass through the labeled examples a two-component beta mixture is fitted to these
    losses (`mixture.fit_losses`): it tells how probably the label of an example is wrong. After a
    warm-up targets are bootstrapped: the label, and the network's prediction for the un-mixed
    view (training mode, without gradient), which has that probability as its weight. From
    then on R_A (`losses.prior_loss`), which keeps all classes in use, is added. Before the first
    fit every label counts as right.

    The variants, by their names in the paper:

    - `m_dyr_h`, `m_dyr_s`: images and targets are mixed, one share a batch, in the warm-up too.
      Predictions are hard (the likeliest class) or soft (probabilities).
    - `md_dyr_sh`: after the warm-up the probabilities of being clean are the shares of two images
      in their mixture. From `guided_end` on targets are mixed half and half, with soft
      predictions that harden: their temperature falls from 1 to 0.001.
    - `dyr_hard`, `dyr_soft`: nothing is mixed.
    - `static_hard`, `static_soft`: nothing is mixed, no mixture is fitted, every label has one
      weight (Reed et al., 2014, who have no R_A: `prior_weight=0`).

    Departures from the authors' code (PaulAlbert31/LabelNoiseCorrection, 5e9a73e), which lacks
    the last four variants:

    - It forwards all images once more after each epoch. Here the losses are those of the
      steps of the pass that ends, each from when its example came up.
    - Its milestones are epochs, whatever the length of the training. Here they are shares of it,
      and the temperature falls with each step, not each epoch.
    - Its weight of R_A is 0 by default, and 1 in its scripts and the paper, as here. Its R_A
      and its noise know 10 classes alone.
    - Un-mixed views pass through the network in the warm-up too, for the record of the examples;
      the running statistics of batch norm follow them.
    - A fit that fails keeps the last one, and the table of posteriors has one more repair: see
      `mixture`.

    Args:
        variant: One of `m_dyr_h`, `m_dyr_s`, `md_dyr_sh`, `dyr_hard`, `dyr_soft`, `static_hard`,
            `static_soft`.
        bootstrap_start: Float in [0, 1), the share of the training that is the warm-up.
        guided_end: Float in [0, 1), the share of the training from which on `md_dyr_sh`
            bootstraps; from `bootstrap_start` to there it mixes by the probabilities alone.
        temperature_end: Float in [0, 1], the share of the training at which the temperature of
            `md_dyr_sh` is 0.001.
        static_weight: Float in [0, 1], the weight of the given label in static variants. 0 takes
            Reed et al.'s, 0.8 hard and 0.95 soft.
        mixup_alpha: Float >= 0: the share of an image in a mixture is drawn from
            Beta(mixup_alpha, mixup_alpha). 0 mixes nothing.
        prior_weight: Float >= 0, the weight of R_A.
        low_percentile: Float in [0, 100), of the losses: those below do not count in a fit.
        high_percentile: Float in (0, 100], of the losses: those above do not count in a fit.

    Reference:
        [Arazo et al., 2019](https://arxiv.org/abs/1904.11238), section 3.
    """

    term_names = ("supervised_loss", "prior_loss")
    monitor_names = ("bootstrap_weight",)
    training_defaults = {
        "steps": 117_300,  # 300 epochs of 50,000 examples
        "steps_per_epoch": 391,
        "learning_rate": 0.1,
        "schedule": "drops_1_3_5_6",
        "momentum": 0.9,
        "nesterov": False,
    }

    def __init__(
        self,
        network,
        task=None,
        *,
        variant: str = "m_dyr_h",
        bootstrap_start: float = 105 / 300,
        guided_end: float = 110 / 300,
        temperature_end: float = 200 / 300,
        static_weight: float = 0.0,
        mixup_alpha: float = 32.0,
        prior_weight: float = 1.0,
        low_percentile: float = 5.0,
        high_percentile: float = 95.0,
        weight_decay: float = 1e-4,
        **kwargs,
    ):
        super().__init__(network, weight_decay=weight_decay, **kwargs)
        self.check_choice("variant", variant, VARIANTS)
        self.check_share(
            bootstrap_start=bootstrap_start,
            guided_end=guided_end,
            temperature_end=temperature_end,
            static_weight=static_weight,
        )
        self.check_at_least(0, mixup_alpha=mixup_alpha, prior_weight=prior_weight)
        self.check_argument(
            "low_percentile", low_percentile, 0 <= low_percentile < 100, "in [0, 100)"
        )
        is_high = low_percentile < high_percentile <= 100
        requirement = f"above low_percentile={low_percentile} and at most 100"
        self.check_argument("high_percentile", high_percentile, is_high, requirement)
        self.variant = variant
        self.bootstrap_start = bootstrap_start
        self.guided_end = guided_end
        self.temperature_end = temperature_end
        self.static_weight = static_weight
        self.mixup_alpha = mixup_alpha
        self.prior_weight = prior_weight
        self.low_percentile = low_percentile
        self.high_percentile = high_percentile
        self.check_milestones()
        if not self.is_static:
            self.mixture = self.add_state("mixture", mixture.INITIAL)
            self.loss_range = self.add_state("loss_range", np.zeros(2, "float32"))
            # All zeros until the first fit.
            self.posterior_table = self.add_state("posterior_table", np.zeros(100, "float32"))
        if task is not None:
            self.attach(task)  # whose states depend on the variant

    @property
    def is_static(self):
        """Whether all labels have the same weight, without a mixture of losses."""
        return self.variant in LABEL_WEIGHTS

    @property
    def is_guided(self):
        """Whether images are mixed by their probabilities of being clean."""
        return self.variant == "md_dyr_sh"

    def check_milestones(self):
        """Raises the `ValueError` of milestones in the wrong order, or past the last step."""
        name = "bootstrap_start"
        if self.is_guided:
            name, start, end = "guided_end", self.bootstrap_start, self.temperature_end
            is_ordered = start <= self.guided_end <= end
            requirement = f"between bootstrap_start={start} and temperature_end={end}"
            self.check_argument(name, self.guided_end, is_ordered, requirement)
        start = getattr(self, name)
        has_steps = start * self.steps <= self.steps - 1
        requirement = f"so small that it leaves one of {self.steps} steps to bootstrap in"
        self.check_argument(name, start, has_steps, requirement)

    def example_states(self, task):
        if self.is_static:
            return {}
        steps_per_pass = self.steps_per_pass(task)
        requirement = (
            f"above {steps_per_pass}, the steps of a pass, after which a mixture is fitted"
        )
        self.check_argument("steps", self.steps, self.steps > steps_per_pass, requirement)
        # No loss is -1. A checkpoint holds finite numbers alone.
        return {"last_losses": np.full(task.num_examples, -1, "float32")}

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
            image_shares = ops.where(self.progress() >= start, guided, shares)
            start = self.guided_end
            label_shares = ops.where(self.progress() >= start, 0.5, shares)
        has_started = ops.cast(self.progress() >= start, "float32")
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
        """Returns the targets of a batch: labels, and predictions by their `weights`."""
        num_classes = logits.shape[-1]
        given = ops.one_hot(self.given_labels(labeled), num_classes, dtype="float32")
        if self.is_guided:
            falling = schedules.linear_ramp(self.progress(), self.guided_end, self.temperature_end)
            predicted = losses.probabilities(logits, 1 - 0.999 * falling)
        elif self.variant in ("m_dyr_s", "dyr_soft", "static_soft"):
            predicted = losses.probabilities(logits)
        else:
            predicted = ops.one_hot(ops.argmax(logits, axis=-1), num_classes, dtype="float32")
        return given + weights[:, None] * (predicted - given)

    def probabilities_of_noise(self, labeled, views):
        """Returns how probably each label is wrong by the last fit, and keeps the new losses."""
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
        """Fits the mixture anew if this step is the last of a pass."""
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
        """Returns how probably each given label is wrong, by its last loss and the last fit.

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
