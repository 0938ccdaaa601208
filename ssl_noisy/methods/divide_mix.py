# SPDX-License-Identifier: Apache-2.0
"""DivideMix: two networks filter labels for each other; MixMatch trains on the rest unlabeled."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import arguments, augment, losses, schedules
from ssl_noisy.arguments import count, momentum
from ssl_noisy.labels import mixture
from ssl_noisy.robust import TwoNetworkLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class DivideMix(TwoNetworkLearner):
    """Trains two networks by MixMatch, each without the labels that the other takes for wrong.

    A mixture of two Gaussians is fitted to the losses of all examples under each network. It
    gives the probability w that an example belongs to the lower component, which divides the
    examples for the other network. Above `clean_threshold` they are labeled, with w times the
    given label plus 1 - w times that network's own prediction. The rest are unlabeled, and their
    label is the mean of both networks' predictions. Predictions are means over two weak views,
    and labels are sharpened. All views are mixed, with one lambda per batch. Mixtures that are
    mostly a labeled view have a cross-entropy, the others a squared distance, and all have
    `losses.prior_loss`, which keeps all classes in use. Training starts with a warm-up on the
    given labels alone. It ends when the weight of the squared distance starts to rise from 0, and
    lasts at least one pass, because there is no fit before that.

    Departures from the authors' code (LiJunnan1992/DivideMix, d9d3058):

    - Everything is one step. Each example of a batch is labeled or unlabeled, so both kinds
      are seen in proportion to their numbers. In that code a step has 64 of each, and an epoch
      is one pass through the labeled ones: the more labels are wrong, the fewer steps 300 epochs
      have. Both networks are updated at once; the authors' take turns by the epoch.
    - The losses are those of the last pass's weak views, in evaluation mode. Theirs are of plain
      images, all at the end of an epoch. The mixture is fitted at the first step of each pass and
      starts from a 2-means that is not random. An example that no fit has seen is unlabeled.
    - The warm-up has 128 examples a step, as there, but both views of each. It has no confidence
      penalty, which they use for asymmetric noise.
    - Only the first network is evaluated; with `sum_networks`, the sum of both, as there.

    As there, a network predicts in training mode when it learns, and in evaluation mode when it
    guesses labels for the other.

    Defaults are theirs for CIFAR-10: 10 of 300 epochs of warm-up, and 16 more until the full
    weight. For CIFAR-100 the warm-up is 30 epochs. Their unsupervised_weight depends on the noise,
    from 0 to 150. At 90 % noise they use clean_threshold 0.6 and loss_window 5, and
    unsupervised_weight 50 for CIFAR-10.

    Reference:
        [Li et al., 2020](https://arxiv.org/abs/2002.07394), section 3.
    """

    clean_threshold: float = momentum(
        0.5, "Keep a label if the probability that it is clean is above this."
    )
    loss_window: int = count(
        1,
        "Fit the mixture to the mean of the losses, scaled to [0, 1], of this many epochs. The "
        "first one is the last epoch of the warm-up.",
        bits=10,  # each example keeps that many numbers
    )
    temperature: float = arguments.temperature(0.5)
    mixup_alpha: float = arguments.mixup_alpha(4.0)
    unsupervised_weight: float = arguments.unsupervised_weight(25.0)
    ramp_start: float = arguments.ramp_start(10 / 300)
    ramp_end: float = arguments.ramp_end(26 / 300)

    term_names = ("supervised_loss", "unsupervised_loss", "prior_loss")
    monitor_names = ("kept_rate",)
    training_defaults = TwoNetworkLearner.training_defaults | {
        "steps": 117_300,  # 300 epochs
        "learning_rate": 0.02,
        "schedule": "drops_1_2",
    }

    @classmethod
    def check_arguments(cls, values):
        cls.require_order(values, "ramp_start", "ramp_end")

    def build_example_state(self, task):
        # A column per network; -1 where there is no loss or no fit yet.
        unknown = np.full((task.num_examples, 2), -1, "float32")
        history = np.repeat(unknown[..., None], self.loss_window, axis=-1)
        self.last_losses = self.add_state("last_losses", unknown)
        self.loss_history = self.add_state("loss_history", history)
        self.clean_probs = self.add_state("clean_probs", unknown)

    def images_per_step(self):
        return 4 * self.batch_size  # two views, two networks

    def objective(self, labeled):
        labels, images = self.given_labels(labeled), self.images(labeled)
        views = [self.weak_view(images, labeled) for _ in range(2)]
        # In evaluation mode, before the passes in training mode move the running statistics.
        plain = [self.plain_logits(network, views) for network in self.networks]
        logits = [[network(view, training=True) for view in views] for network in self.networks]
        self.observe(labeled, logits[0][0])
        is_first_pass = self.step.value < self.steps_per_pass(self.task)
        is_warmup = is_first_pass | (self.fraction_done() < self.ramp_start)
        ramp = schedules.linear_ramp(self.fraction_done(), self.ramp_start, self.ramp_end)
        self.divide(labeled, labels, plain, is_warmup)
        own, plain = (
            [losses.mean_probabilities(of_views) for of_views in both] for both in (logits, plain)
        )
        clean_probs = ops.take(self.clean_probs.value, labeled, axis=0)
        clean_probs = ops.where(is_warmup, 1.0, clean_probs)
        one_hot = ops.one_hot(labels, own[0].shape[-1])
        totals, kept_rates = [], []
        for i, network in enumerate(self.networks):
            clean = clean_probs[:, 1 - i, None]
            is_kept = clean > self.clean_threshold
            refined, guessed = clean * one_hot + (1 - clean) * own[i], (own[i] + plain[1 - i]) / 2
            soft_labels = losses.sharpen(ops.where(is_kept, refined, guessed), self.temperature)
            terms = self.mixed_terms(network, views, soft_labels, is_kept[:, 0], ramp, is_warmup)
            totals.append(terms)
            kept_rates.append(ops.mean(ops.cast(is_kept, "float32")))
        terms = {name: totals[0][name] + totals[1][name] for name in self.term_names}
        return {"terms": terms, "monitors": {"kept_rate": sum(kept_rates) / 2}}

    def plain_logits(self, network, views):
        """Returns the logits of each view in evaluation mode, without gradient."""
        logits = ops.stop_gradient(network(ops.concatenate(views), training=False))
        return ops.split(logits, len(views))

    def divide(self, labeled, labels, logits, is_warmup):
        """Stores the losses of a batch, and fits the mixtures at the first step of each pass.

        Args:
            labeled: int32 `(batch_size,)`.
            labels: int32 `(batch_size,)`, their given labels.
            logits: For each network, for each view, float `(batch_size, num_classes)`.
            is_warmup: Bool scalar. The history of losses begins after the warm-up.
        """
        values = [[losses.cross_entropy(labels, one) for one in of_views] for of_views in logits]
        means = ops.stack([sum(of_views) / 2 for of_views in values], axis=1)
        self.remember(self.last_losses, labeled, means)
        last = self.last_losses.value

        def fit():
            known = ops.where(last >= 0, last, np.inf)
            present = ops.stack([mixture.scaled(known[:, i]) for i in range(2)], axis=1)
            history = ops.concatenate(
                [self.loss_history.value[..., 1:], present[..., None]], axis=-1
            )
            is_known = (history >= 0) & ops.isfinite(history)
            total = ops.sum(ops.where(is_known, history, 0.0), axis=-1)
            x = total / ops.sum(ops.cast(is_known, "float32"), axis=-1)  # 0 / 0 where unknown
            clean = ops.stack([mixture.gaussian_posterior(x[:, i]) for i in range(2)], axis=1)
            history = ops.where(is_known & ~is_warmup, history, -1.0)
            return history, ops.where(last >= 0, clean, -1.0)

        is_due = self.step.value % self.steps_per_pass(self.task) == 0
        states = (self.loss_history, self.clean_probs)
        found = ops.cond(is_due, fit, lambda: tuple(state.value for state in states))
        for state, value in zip(states, found):
            state.assign(value)

    def mixed_terms(self, network, views, soft_labels, is_kept, ramp, is_warmup):
        """Mixes the views of a batch, and returns the loss terms of one network.

        Args:
            network: One of the two.
            views: Two float tensors of shape `(batch_size, height, width, channels)`.
            soft_labels: Float32 `(batch_size, num_classes)`.
            is_kept: Bool `(batch_size,)`, whether an example is labeled.
            ramp: Float scalar in [0, 1], the fraction of the unsupervised weight.
            is_warmup: Bool scalar. There is no mixing in the warm-up.
        """
        soft_labels = ops.concatenate([soft_labels, soft_labels])
        partners, shares = augment.mixing(
            soft_labels.shape[0], self.seed_generator, alpha=self.mixup_alpha, keep_larger=True
        )
        shares = ops.where(is_warmup, 1.0, shares)
        images = augment.mix(ops.concatenate(views), partners, shares)
        soft_labels = augment.mix(soft_labels, partners, shares)
        logits = network(images, training=True)
        probs = ops.softmax(ops.cast(logits, "float32"), axis=-1)
        distances = ops.mean(ops.square(probs - soft_labels), axis=-1)
        kept = ops.cast(ops.concatenate([is_kept, is_kept]), "float32")
        weight = self.unsupervised_weight * ramp
        return {
            "supervised_loss": losses.masked_mean(
                losses.soft_cross_entropy(soft_labels, logits), kept
            ),
            "unsupervised_loss": weight * losses.masked_mean(distances, 1 - kept),
            "prior_loss": ops.where(is_warmup, 0.0, losses.prior_loss(logits)),
        }

    def detected(self):
        """Returns `divide_mix`: the mean over both networks of the probability of being wrong."""
        clean = ops.convert_to_numpy(self.clean_probs.value).mean(axis=1)
        known = clean >= 0
        flagged = known & (clean <= self.clean_threshold)
        return {"divide_mix": (np.where(known, 1 - clean, np.nan), flagged)}
