# SPDX-License-Identifier: Apache-2.0
"""ProMix: small losses of each class, confident labels and labels that two networks guess alike."""

import math

import keras
import numpy as np
from keras import ops
from scipy import special

from ssl_noisy import arguments, augment, losses, schedules
from ssl_noisy.arguments import at_least, fraction, interval, momentum
from ssl_noisy.robust import TwoNetworkLearner
from ssl_noisy.strong_views import StrongViews

UNKNOWN = np.finfo("float32").max  # of an example that was not seen yet


@keras.saving.register_keras_serializable(package="ssl_noisy")
class ProMix(StrongViews, TwoNetworkLearner):
    """Trains two networks, each on the labels that it selects itself, by four losses.

    Once a pass, each network selects the smallest losses of each class, as many in every class.
    In a batch it adds the labels whose probability is above `selection_threshold`. Late in the
    training, while fewer than `guess_fraction` of a batch are selected, labels are guessed for
    others: images of which both networks say the same, both with a probability above the
    threshold, the surest first. The selected images have a cross-entropy on weak views. They also
    have one on strong views, on mixtures by mixup and on mixtures by FMix; the weight of these
    three rises from 0. Training starts with a warm-up on the weak views of all labels.

    With `debias` above 0, as in the paper of 2023, the losses are of logits plus `debias` times
    the logarithm of a moving average of the predictions on selected images, so that rare classes
    need a larger margin. Labels are guessed from logits less the same amount.

    Departures from the authors' code (Justherozen/ProMix, branch LMNL_challenge, 0a1de4f, the
    entry that won the CIFAR-N challenge of 2022, whose settings for CIFAR-10N are the defaults):

    - The losses that select are those of plain images in evaluation mode, as there, but of the
      last pass, during which the networks changed. Theirs are all of the end of an epoch. In the
      first pass of a training, if the warm-up is shorter, all labels are selected.
    - Batches have one shape: images that are not selected are also mixed, with each other, and have
      no loss. They are part of batch norm's statistics.
    - In FMix, that code takes the first two rows of its spectrum for real and imaginary parts. Its
      masks have the frequencies 0 and 1 along one axis. Here they have all, as in FMix's paper.
    - Their warm-up adds the negative entropy of the first network only; here `warmup_penalty`
      is of both, as in the code of 2023, which has it for asymmetric noise alone, with weight 1.
      Both codes also replace negative logits by 0 in it.
    - Only the first network is evaluated; with `sum_networks`, the sum of both. Theirs is the mean.
    - The moving average of `debias` is warmed up (see `schedules.warmed_up`).

    The paper of 2023 also trains a second head, which is not evaluated, on guesses for what is not
    selected. It is not implemented.

    For CIFAR-100N their selection_threshold is 0.95 and warmup_end 30 / 420. At 20 % symmetric
    noise their selection_fraction is 0.7.

    Reference:
        [Xiao et al., 2023](https://arxiv.org/abs/2207.10276), section 3.
    """

    selection_fraction: float = interval(
        "(0, 1]",
        0.5,
        "Number of small losses that are selected, as a fraction of the labels, the paper's rho. "
        "It is the same number for each class, rounded up; a smaller class is selected whole.",
    )
    selection_threshold: float = fraction(
        0.99, "Also select a label if its probability is above this, the paper's tau."
    )
    guess_fraction: float = fraction(
        0.9, "Guess labels until this fraction of a batch is selected. 0 guesses none."
    )
    guess_start: float = fraction(
        270 / 420, "Fraction of training after which labels are guessed where both networks agree."
    )
    debias: float = at_least(
        0, 0.0, "How far margins follow the frequencies of the classes, the paper's alpha."
    )
    debias_momentum: float = momentum(
        0.9999, "Momentum of the moving average of the frequencies of the classes."
    )
    mixup_alpha: float = arguments.mixup_alpha(4.0)
    fmix_alpha: float = at_least(
        0, 1.0, "The same for FMix, which takes that fraction of the pixels of a mixture."
    )
    warmup_penalty: float = arguments.warmup_penalty(0.0)
    warmup_end: float = arguments.warmup_end(10 / 420)
    weight_ramp_end: float = fraction(
        50 / 420,
        "Fraction of training after which the losses of strong and mixed views have their full "
        "weight. It rises from the start, and counts after the warm-up.",
    )
    strong_augmentation: str = StrongViews.strong_augmentation.with_default("torchssl")
    batch_size: int = TwoNetworkLearner.batch_size.with_default(256)

    needs_pixels = True  # for FMix, and for losses without augmentation
    term_names = ("supervised_loss", "strong_loss", "mixup_loss", "fmix_loss")
    monitor_names = ("kept_rate", "guessed_rate")
    training_defaults = TwoNetworkLearner.training_defaults | {
        "steps": 81_900,  # 420 epochs
        "steps_per_epoch": 195,
        "learning_rate": 0.05,
        "schedule": "half_cosine_1_1000",
    }

    def build_state(self):
        super().build_state()
        uniform = np.full((2, self.num_classes), 1 / self.num_classes, "float32")
        self.class_averages = self.add_state("class_averages", uniform)

    def build_example_state(self, task):
        # A column per network.
        self.last_losses = self.add_state(
            "last_losses", np.full((task.num_examples, 2), UNKNOWN, "float32")
        )
        self.is_small = self.add_state("is_small", np.ones((task.num_examples, 2), "float32"))
        self.joint_margins = self.add_state(
            "joint_margins", np.full(task.num_examples, UNKNOWN, "float32")
        )

    def images_per_step(self):
        return 8 * self.batch_size  # weak, strong and two mixtures, two networks

    def objective(self, labeled):
        labels, images = self.given_labels(labeled), self.images(labeled)
        is_small = self.small_losses(labeled, labels, images)
        weak, strong = self.weak_view(images, labeled), self.strong_view(images)
        logits = [
            [network(view, training=True) for view in (weak, strong)] for network in self.networks
        ]
        self.observe(labeled, logits[0][0])
        probs = [losses.probabilities(of_weak) for of_weak, _ in logits]
        is_warmup = self.fraction_done() < self.warmup_end
        agreement = agreed(*probs, self.selection_threshold)
        outcomes = []
        for i, network in enumerate(self.networks):
            kept = is_small[:, i] | is_warmup | matched(labels, probs[i], self.selection_threshold)
            guessed = self.guessed(kept, agreement)
            biases = self.debias * ops.log(ops.maximum(self.class_averages.value[i], 1e-8))
            guesses = ops.argmax(ops.cast(logits[i][0], "float32") - biases, axis=-1)
            targets = ops.where(guessed, ops.cast(guesses, "int32"), labels)
            one_hot = ops.one_hot(targets, self.num_classes, dtype="float32")
            terms = self.terms(network, weak, logits[i], one_hot, kept | guessed, biases)
            outcomes.append((terms, kept | guessed, guessed))
        self.update_averages(probs, [selected for _, selected, _ in outcomes], is_warmup)
        terms = {name: sum(of_one[name] for of_one, _, _ in outcomes) for name in self.term_names}
        weight = ops.where(
            is_warmup, 0.0, schedules.linear_ramp(self.fraction_done(), 0.0, self.weight_ramp_end)
        )
        terms = {n: v if n == "supervised_loss" else weight * v for n, v in terms.items()}
        entropy = sum(ops.mean(losses.entropy(of_weak)) for of_weak, _ in logits)
        terms["supervised_loss"] -= ops.where(is_warmup, self.warmup_penalty * entropy, 0.0)
        rates = [
            sum(ops.mean(ops.cast(outcome[place], "float32")) for outcome in outcomes) / 2
            for place in (1, 2)
        ]
        return {"terms": terms, "monitors": dict(zip(self.monitor_names, rates))}

    def small_losses(self, labeled, labels, images):
        """Keeps the losses of plain images, and selects the small ones at the start of a pass.

        Returns:
            For each network, whether it selected the labels of the batch: bool `(batch_size, 2)`.
        """
        # In evaluation mode, before the passes in training mode move the running statistics.
        plain = [
            ops.cast(ops.stop_gradient(network(images, training=False)), "float32")
            for network in self.networks
        ]
        values = ops.stack([losses.cross_entropy(labels, one) for one in plain], axis=1)
        self.remember(self.last_losses, labeled, values)
        self.remember(self.joint_margins, labeled, losses.margin(labels, sum(plain) / 2))
        share = self.selection_fraction * len(self.task.labeled) / self.num_classes
        quotas = np.full(self.num_classes, max(math.ceil(share - 1e-6), 1), "int32")

        def select():
            chosen = [
                losses.smallest_of_each_class(
                    self.last_losses.value[:, i], self.resident.given_labels.value, quotas
                )
                for i in range(2)
            ]
            return ops.cast(ops.stack(chosen, axis=1), "float32")

        is_due = (self.step.value % self.steps_per_pass(self.task) == 0) & (self.step.value > 0)
        self.is_small.assign(ops.cond(is_due, select, lambda: self.is_small.value))
        return ops.take(self.is_small.value, labeled, axis=0) > 0

    def guessed(self, kept, agreement):
        """Chooses the examples whose labels are guessed.

        Args:
            kept: Bool `(batch_size,)`, the labels that are selected.
            agreement: Float `(batch_size,)`, as `agreed`.

        Returns:
            A bool tensor of shape `(batch_size,)`.
        """
        candidates = ops.where(kept, 0.0, agreement)
        ranks = ops.argsort(ops.argsort(-candidates))
        limit = int(self.guess_fraction * kept.shape[0])
        room = ops.where(
            self.fraction_done() < self.guess_start, 0, limit - ops.sum(ops.cast(kept, "int32"))
        )
        return (candidates > 0) & (ops.cast(ranks, "int32") < room)

    def terms(self, network, weak, logits, one_hot, selected, biases):
        """Returns the four losses of one network, without their weights.

        Args:
            network: One of the two.
            weak: Weak views, `(batch_size, height, width, channels)`.
            logits: Its logits of weak and of strong views, `(batch_size, num_classes)`.
            one_hot: Float32 `(batch_size, num_classes)`, given or guessed labels.
            selected: Bool `(batch_size,)`, the examples that have a loss.
            biases: Float32 `(num_classes,)`, to add to all logits.
        """
        size, seed = selected.shape[0], self.seed_generator

        def mean(soft_labels, logits):
            values = losses.soft_cross_entropy(soft_labels, ops.cast(logits, "float32") + biases)
            return losses.masked_mean(values, ops.cast(selected, "float32"))

        partners, shares = augment.mixing(
            size, seed, alpha=self.mixup_alpha, keep_larger=True, kept=selected
        )
        mixup_logits = network(augment.mix(weak, partners, shares), training=True)
        mixup = mean(augment.mix(one_hot, partners, shares), mixup_logits)
        partners, shares = augment.mixing(size, seed, alpha=self.fmix_alpha, kept=selected)
        fmix_logits = network(augment.fmix(weak, partners, shares, seed), training=True)
        fmix = mean(augment.mix(one_hot, partners, shares), fmix_logits)
        values = (mean(one_hot, logits[0]), mean(one_hot, logits[1]), mixup, fmix)
        return dict(zip(self.term_names, values))

    def update_averages(self, probs, selected, is_warmup):
        """Takes the predictions on selected images into the moving average of each network."""
        first = math.ceil(self.warmup_end * self.steps)
        momentum = schedules.warmed_up(self.debias_momentum, self.step.value - first + 1)
        averages = []
        for average, of_one, mask in zip(ops.unstack(self.class_averages.value), probs, selected):
            mask = ops.cast(mask, "float32")
            mean = ops.sum(of_one * mask[:, None], axis=0) / ops.maximum(ops.sum(mask), 1.0)
            is_kept = is_warmup | (ops.sum(mask) == 0)
            averages.append(ops.where(is_kept, average, momentum * average + (1 - momentum) * mean))
        self.class_averages.assign(ops.stack(averages))

    def detected(self):
        """Returns `promix`: labels that are not the prediction of the mean logits of both networks.

        They are of plain images in evaluation mode, when they were last seen. The score is the
        sigmoid of the largest other logit less the label's.
        """
        margins = ops.convert_to_numpy(self.joint_margins.value)
        known = margins < UNKNOWN
        score = special.expit(np.where(known, -margins, np.nan))
        return {"promix": (score, known & (margins < 0))}


def matched(labels, probs, threshold):
    """Returns whether the probability of each label is above the threshold, bool `(n,)`."""
    own = ops.take_along_axis(probs, labels[:, None], axis=-1)
    return ops.squeeze(own, axis=-1) > threshold


def agreed(probs, other_probs, threshold):
    """Measures the agreement of two networks on each image.

    Returns:
        The mean of their largest probabilities where both are above the threshold and of the same
        class, 0 elsewhere: float32 `(batch_size,)`.
    """
    largest, other = (ops.max(one, axis=-1) for one in (probs, other_probs))
    is_same = ops.argmax(probs, axis=-1) == ops.argmax(other_probs, axis=-1)
    is_sure = (largest > threshold) & (other > threshold)
    return ops.where(is_same & is_sure, (largest + other) / 2, 0.0)
