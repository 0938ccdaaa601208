# SPDX-License-Identifier: Apache-2.0
"""CrossSplit: two networks on two halves of the labels, which they correct for each other."""

import keras
import numpy as np
from keras import layers, ops

from ssl_noisy import arguments, augment, losses, networks, schedules
from ssl_noisy.arguments import above, at_least, fraction, switch
from ssl_noisy.auxiliary_heads import AuxiliaryHeads
from ssl_noisy.errors import UserError
from ssl_noisy.robust import TwoNetworkLearner
from ssl_noisy.strong_views import StrongViews

STREAMS = ("labeled", "second_labeled", "unlabeled", "second_unlabeled")
PROJECTION = 128  # features that are contrasted
UNKNOWN = -1.0  # divergence of a label that its peer has not seen yet
NEUTRAL = 0.5  # doubt where nothing is known of the class


@keras.saving.register_keras_serializable(package="ssl_noisy")
class CrossSplit(AuxiliaryHeads, StrongViews, TwoNetworkLearner):
    """Trains two networks, each on half of the labels, softened by the other, its peer.

    The labels are split once, at random. A network takes the images of the other half, and those
    without a label, as unlabeled. Its peer has never seen its labels, so it has not memorized the
    wrong ones. The doubt in a label is the Jensen-Shannon divergence of the label and the peer's
    prediction, scaled to [0, 1] by the smallest and the largest one of its class. The target is
    the doubt times that prediction plus the rest times the label. At first doubts are drawn
    towards 1/2 (see `relaxation`). The target of an unlabeled image is the network's own
    prediction. Predictions are means over two weak views, and all targets are sharpened.

    Two strong views of each image are mixed, with one lambda per batch. Mixtures that are mostly
    a labeled image have a cross-entropy, the others a squared distance, and all have
    `losses.prior_loss`, which keeps all classes in use. On the strong views of unlabeled images,
    unmixed, a second head has a contrastive loss. Training starts with a warm-up on the weak
    views of given labels, which ends when the weight of the squared distance starts to rise.

    Departures from the authors' code (SAITPublic/CrossSplit, 28b9f1f):

    - That code does not split: it draws from `random_split(...)[i].dataset`, which is the whole
      data set. Each network trains on all labels, which its peer has seen too. If the published
      figures are of that code, they are of no split. `split_labels=False` reproduces it.
    - With the split, a network sees no label of the other half in the warm-up either. Theirs is
      on all labels. It has 512 images a step; here it has two views of `batch_size`.
    - Both networks are updated at once; the authors' take turns by the epoch.
    - The smallest and largest divergences are those of the last pass's weak views, of the labels
      of each network. Theirs are of plain images, all at the start of an epoch. Where both are
      equal, or nothing is known of a class yet, the doubt is 1/2; there it is not a number.

    As there, a network guesses in training mode for itself, and in evaluation mode for its peer.
    The record of examples is of the peer's predictions.

    Defaults are theirs for CIFAR-10: 10 of 300 epochs of warm-up, and 16 more until the full
    weight. For CIFAR-100 the warm-up is 30 epochs. For asymmetric noise, warmup_penalty is 0.1.

    Reference:
        [Kim et al., 2023](https://arxiv.org/abs/2212.01674), section 3.
    """

    split_labels: bool = switch(
        True, "Give each network half of the labels. Otherwise both have all, as in their code."
    )
    unlabeled_batch_size: int = arguments.unlabeled_batch_size(128)
    relaxation: float = fraction(
        10 / 300,
        "After the warm-up, draw doubts to 1/2 for three times this fraction of training: to 0.6 "
        "of their distance, and in the last third to 0.8 of it.",
    )
    temperature: float = arguments.temperature(0.5)
    mixup_alpha: float = arguments.mixup_alpha(4.0)
    unsupervised_weight: float = arguments.unsupervised_weight(30.0)
    contrastive_weight: float = at_least(0, 0.025, "Weight of the contrastive loss.")
    contrastive_temperature: float = above(0, 0.05, "Temperature of the contrastive loss.")
    warmup_penalty: float = arguments.warmup_penalty(0.0)
    ramp_start: float = arguments.ramp_start(10 / 300)
    ramp_end: float = arguments.ramp_end(26 / 300)
    strong_augmentation: str = StrongViews.strong_augmentation.with_default("autoaugment")
    batch_size: int = TwoNetworkLearner.batch_size.with_default(256)
    sum_networks: bool = TwoNetworkLearner.sum_networks.with_default(True)

    term_names = ("supervised_loss", "unsupervised_loss", "contrastive_loss", "prior_loss")
    monitor_names = ("label_weight",)
    training_defaults = TwoNetworkLearner.training_defaults | {
        "steps": 58_800,  # 300 epochs
        "steps_per_epoch": 196,
        "learning_rate": 0.1,
        "schedule": "half_cosine_1_50",
    }

    @classmethod
    def check_arguments(cls, values):
        cls.require_order(values, "ramp_start", "ramp_end")

    def build_state(self):
        super().build_state()
        self.projections = [
            keras.Sequential(
                [
                    keras.Input(model.output[0].shape[1:]),
                    layers.Dense(PROJECTION, dtype="float32"),
                    networks.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype="float32"),
                ]
            )
            for model in self.featured_networks
        ]
        # For each network, the smallest and the largest divergence of each class.
        unknown = np.full((2, 2, self.num_classes), UNKNOWN, "float32")
        self.ranges = self.add_state("ranges", unknown)

    def build_example_state(self, task):
        # A column per network, of the divergence of its label from its peer's prediction.
        unknown = np.full((task.num_examples, 2), UNKNOWN, "float32")
        self.divergences = self.add_state("divergences", unknown)

    def decayed_parts(self):
        return *self.networks, *self.projections

    def streams(self):
        sizes = (self.batch_size,) * 2 + (self.unlabeled_batch_size,) * 2
        return dict(zip(STREAMS, sizes))

    def pools(self):
        every = np.arange(self.task.num_examples)
        halves, unlabeled = (self.task.labeled,) * 2, (every,) * 2
        if self.split_labels:
            order = np.random.default_rng(self.seed).permutation(self.task.labeled)
            halves = np.array_split(order, 2)
            unlabeled = [np.setdiff1d(every, half) for half in halves]
        return dict(zip(STREAMS, (*halves, *unlabeled)))

    def attach(self, task):
        if self.split_labels and len(task.labeled) < 2:
            raise UserError(
                f"{type(self).__name__} splits the labels in two. Label at least two images. "
                f"Received: {len(task.labeled)} labeled"
            )
        super().attach(task)

    def steps_per_pass(self, task):
        num_labels = -(-len(task.labeled) // 2) if self.split_labels else len(task.labeled)
        return max(1, -(-num_labels // self.batch_size))

    def images_per_step(self):
        # Mixed are two views of all images, contrasted two of the unlabeled ones; two networks.
        return 2 * (2 * self.batch_size + 4 * self.unlabeled_batch_size)

    def objective(self, **indices):
        labeled = [indices[name] for name in STREAMS[:2]]
        weak, strong = self.views([indices[name] for name in STREAMS])
        # In evaluation mode, before the passes in training mode move the running statistics.
        peers = [
            losses.mean_probabilities(network(view, training=False) for view in views)
            for network, views in zip(reversed(self.networks), weak)
        ]
        seen = 2 if self.split_labels else 1  # without a split, the second's labels are the same
        self.observe(ops.concatenate(labeled[:seen]), ops.log(ops.concatenate(peers[:seen]) + 1e-8))
        is_warmup = self.fraction_done() < self.ramp_start
        self.update_ranges()
        outcomes, weights = [], []
        for i in range(2):
            labels = self.given_labels(labeled[i])
            one_hot = ops.one_hot(labels, self.num_classes, dtype="float32")
            doubts = self.doubts(i, labeled[i], losses.jensen_shannon(one_hot, peers[i]))
            doubts = ops.where(is_warmup, 0.0, self.relaxed(doubts))
            soft_labels = doubts[:, None] * peers[i] + (1 - doubts[:, None]) * one_hot
            soft_labels = losses.sharpen(soft_labels, self.temperature)
            views = (weak[i], weak[2 + i], strong[i], strong[2 + i])
            outcomes.append(self.terms(i, views, soft_labels, is_warmup))
            weights.append(1 - ops.mean(doubts))
        terms = {name: outcomes[0][name] + outcomes[1][name] for name in self.term_names}
        return {"terms": terms, "monitors": {"label_weight": sum(weights) / 2}}

    def views(self, positions):
        """Makes two weak and two strong views of the images of each stream."""
        images = [self.images(one) for one in positions]
        weak = [
            [self.weak_view(pixels, one, stream) for _ in range(2)]
            for pixels, one, stream in zip(images, positions, STREAMS)
        ]
        # One call, since augmentation takes seconds to trace.
        ends = np.cumsum([one.shape[0] for one in positions * 2])[:-1]
        strong = ops.split(self.strong_view(ops.concatenate(images * 2)), ends.tolist())
        return weak, list(zip(strong[:4], strong[4:]))

    def update_ranges(self):
        """Takes the ranges of the divergences from the last pass at the start of a pass."""

        def find():
            labels = self.resident.given_labels.value
            found = [
                class_ranges(self.divergences.value[:, i], labels, self.num_classes)
                for i in range(2)
            ]
            return ops.stack(found)

        is_due = self.step.value % self.steps_per_pass(self.task) == 0
        self.ranges.assign(ops.cond(is_due, find, lambda: self.ranges.value))

    def doubts(self, i, labeled, divergences):
        """Keeps the divergences of network i's labels, and returns its doubts in them."""
        rows = ops.take(self.divergences.value, labeled, axis=0)
        rows = ops.where(np.arange(2) == i, divergences[:, None], rows)
        self.remember(self.divergences, labeled, rows)
        return scaled(divergences, self.ranges.value[i], self.given_labels(labeled))

    def relaxed(self, doubts):
        """Draws doubts towards 1/2, by the paper's gamma."""
        done = self.fraction_done() - self.ramp_start
        gamma = ops.where(done < 3 * self.relaxation, 0.8, 1.0)
        gamma = ops.where(done < 2 * self.relaxation, 0.6, gamma)
        return (doubts - NEUTRAL) * gamma + NEUTRAL

    def terms(self, i, views, soft_labels, is_warmup):
        """Returns the loss terms of network i.

        Args:
            i: 0 or 1.
            views: Two weak views of labeled images, two of unlabeled ones, and two strong views of
                each. A view is a float tensor `(images, height, width, channels)`.
            soft_labels: Float32 `(batch_size, num_classes)`.
            is_warmup: Bool scalar. There is no mixing in the warm-up.
        """
        network, projection = self.featured_networks[i], self.projections[i]
        weak, weak_unlabeled, strong, strong_unlabeled = views
        guessed = losses.mean_probabilities(
            network(view, training=True)[1] for view in weak_unlabeled
        )
        guessed = losses.sharpen(guessed, self.temperature)
        features = [
            projection(network(view, training=True)[0], training=True) for view in strong_unlabeled
        ]
        contrastive = losses.contrastive(*features, self.contrastive_temperature)
        targets = ops.concatenate([soft_labels, soft_labels, guessed, guessed])
        partners, shares = augment.mixing(
            targets.shape[0], self.seed_generator, alpha=self.mixup_alpha, keep_larger=True
        )
        shares = ops.where(is_warmup, 1.0, shares)
        images = ops.where(
            is_warmup,
            ops.concatenate([*weak, *weak_unlabeled]),
            ops.concatenate([*strong, *strong_unlabeled]),
        )
        targets = augment.mix(targets, partners, shares)
        _, logits = network(augment.mix(images, partners, shares), training=True)
        probs, n = ops.softmax(ops.cast(logits, "float32"), axis=-1), 2 * soft_labels.shape[0]
        supervised = ops.mean(losses.soft_cross_entropy(targets[:n], logits[:n]))
        penalty = self.warmup_penalty * ops.mean(losses.entropy(logits[:n]))
        weight = self.unsupervised_weight * schedules.linear_ramp(
            self.fraction_done(), self.ramp_start, self.ramp_end
        )
        return {
            "supervised_loss": supervised - ops.where(is_warmup, penalty, 0.0),
            "unsupervised_loss": weight * ops.mean(ops.square(probs[n:] - targets[n:])),
            "contrastive_loss": ops.where(is_warmup, 0.0, self.contrastive_weight * contrastive),
            "prior_loss": ops.where(is_warmup, 0.0, losses.prior_loss(logits)),
        }

    def detected(self):
        """Returns `cross_split`: labels that their peer outweighs. The score is the doubt."""
        labels = ops.convert_to_tensor(self.task.given_labels)
        doubts = []
        for divergences in ops.unstack(self.divergences.value, axis=1):
            ranges = class_ranges(divergences, labels, self.num_classes)
            of_one = scaled(divergences, ranges, ops.maximum(labels, 0))
            doubts.append(ops.convert_to_numpy(ops.where(divergences >= 0, of_one, 0.0)))
        known = ops.convert_to_numpy(self.divergences.value) >= 0
        with np.errstate(invalid="ignore"):
            score = sum(doubts) / known.sum(axis=1)  # 0 / 0 where unknown
        return {"cross_split": (score, score > NEUTRAL)}


def class_ranges(divergences, labels, num_classes):
    """Returns the smallest and the largest known divergence of each class.

    Args:
        divergences: Float32 `(num_examples,)`, negative where unknown.
        labels: int32 `(num_examples,)`; those of -1 belong to no class.
        num_classes: Integer.

    Returns:
        A float32 tensor of shape `(2, num_classes)`, whose rows are in the wrong order for a class
        without a known divergence.
    """
    belongs = (labels[:, None] == ops.arange(num_classes)) & (divergences >= 0)[:, None]
    lows = ops.min(ops.where(belongs, divergences[:, None], 1.0), axis=0)  # at most log 2
    highs = ops.max(ops.where(belongs, divergences[:, None], UNKNOWN), axis=0)
    return ops.stack([lows, highs])


def scaled(divergences, ranges, labels):
    """Scales the divergences of labels to [0, 1] by the ranges of their classes.

    Arguments as for `class_ranges` and what it returns. The result is 1/2 where a range is empty.
    """
    lows, highs = (ops.take(one, labels) for one in ops.unstack(ranges))
    shares = ops.clip((divergences - lows) / ops.maximum(highs - lows, 1e-12), 0.0, 1.0)
    return ops.where(highs > lows, shares, NEUTRAL)
