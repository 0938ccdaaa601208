# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labeling against confirmation bias: soft labels, mixed and regularized."""

import contextlib

import keras
import numpy as np
from keras import ops

from ssl_noisy import arguments, augment, losses
from ssl_noisy.arguments import at_least, count
from ssl_noisy.learner import Learner


def dropout_layers(model):
    """Yields the dropout layers of a model, of models within it too."""
    for layer in getattr(model, "layers", ()):
        if isinstance(layer, keras.layers.Dropout):
            yield layer
        yield from dropout_layers(layer)


@keras.saving.register_keras_serializable(package="ssl_noisy")
class Arazo(Learner):
    """Trains on soft labels of all examples, which the network itself renews once an epoch.

    Each example has a soft label on the device. Labeled examples always keep their given label.
    An unlabeled example keeps the softmax of the last pass in which it was seen: on the plain
    image, in training mode, without dropout. Each step takes both kinds of examples and mixes
    them, with one lambda per batch. Beside the cross-entropy, the loss has R_A, which keeps all
    classes in use (`losses.prior_loss`), and R_H, the mean entropy, both of the mixed
    predictions. Training starts with a warm-up on the given labels alone. The evaluated weights
    are the mean of snapshots from the last eighth of training.

    Departures from the authors' code (EricArazo/PseudoLabeling, 1cca107):

    - After the warm-up, that code labels all examples at once, in evaluation mode on weak
      views. Here an example gets that label when it is first seen. The optimizer's
      momentum continues from the warm-up.
    - There, an epoch skips the unlabeled images that do not fill a batch: 24 of 49,500 with 500
      labels of CIFAR-10. In the next epoch their labels are zeros, so they add no cross-entropy.
      Here a batch may span two passes and every pass uses every image, so no label is missing.
    - The learning rate drops after 5/8 and 7/8 of training, including the warm-up. In that code
      it drops after 249 and 349 of the 400 epochs after the warm-up, about one epoch earlier.
    - Batch norm's running statistics are averaged over the snapshots, not recomputed.
    - The four color changes have a fixed order (see `augment.color_jitter`).

    Reference:
        [Arazo et al., 2020](https://arxiv.org/abs/1908.02983), section 3.
    """

    batch_size: int = Learner.batch_size.with_default(16)
    unlabeled_batch_size: int = arguments.unlabeled_batch_size(84)  # labeled ones in the warm-up
    warmup_epochs: int = count(
        10,
        "Epochs on the labeled examples alone at the start, at most a tenth of training.",
        minimum=0,
    )
    mixup_alpha: float = arguments.mixup_alpha(1.0)
    prior_weight: float = at_least(0, 0.8, "Weight of R_A, which keeps all classes in use.")
    entropy_weight: float = at_least(0, 0.4, "Weight of the mean entropy of predictions.")
    num_snapshots: int = count(
        10,
        "Snapshots in the last eighth of training. Until the first one, the average is the moving "
        "average of `ema_momentum`.",
    )
    weight_decay: float = Learner.weight_decay.with_default(1e-4)
    decayed: str = Learner.decayed.with_default("all")
    ema_momentum: float = Learner.ema_momentum.with_default(0.0)
    average_statistics: bool = Learner.average_statistics.with_default(True)
    weak_augmentation: str = Learner.weak_augmentation.with_default("jitter")

    needs_pixels = True  # it passes images without augmentation through the network
    term_names = ("mixed_loss", "prior_loss", "entropy_loss")
    monitor_names = ("mask_rate",)
    always_averages = True
    training_defaults = Learner.training_defaults | {
        "steps": 235_650,  # of 500 labels: 10 epochs of 5 steps, then 400 of 589
        "steps_per_epoch": 589,
        "learning_rate": 0.1,
        "schedule": "drops_5_8_7_8",
        "nesterov": False,
    }

    @classmethod
    def check_arguments(cls, values):
        # A batch comes from two pools, whose passes alternate at different steps.
        kind = values.weak_augmentation
        is_valid = kind != "alternating_flip_shift"
        cls.require(is_valid, "weak_augmentation", kind, "another than alternating_flip_shift")

    def build_example_state(self, task):
        one_hot = np.eye(task.num_classes, dtype="float32")
        # A row of zeros is an example that has no label yet.
        soft_labels = one_hot[task.given_labels] * (task.given_labels >= 0)[:, None]
        self.soft_labels = self.add_state("soft_labels", soft_labels.astype("float32"))

    def streams(self):
        labeled, unlabeled = self.batch_size, self.unlabeled_batch_size
        return {"warmup": labeled + unlabeled, "labeled": labeled, "unlabeled": unlabeled}

    def images_per_step(self):
        return self.batch_size + self.unlabeled_batch_size

    def pools(self):
        labeled, unlabeled = self.task.labeled, self.task.unlabeled_pool(include_labeled=False)
        return {"warmup": labeled, "labeled": labeled, "unlabeled": unlabeled}

    @property
    def warmup_steps(self):
        """Number of steps at the start that use labeled examples alone."""
        steps_per_epoch = -(-len(self.task.labeled) // self.streams()["warmup"])
        return min(self.warmup_epochs * steps_per_epoch, self.steps // 10)

    def objective(self, warmup, labeled, unlabeled):
        is_warmup = self.step.value < self.warmup_steps
        indices = ops.where(is_warmup, warmup, ops.concatenate([labeled, unlabeled]))
        images = self.images(indices)
        views = self.weak_view(images, indices)
        soft_labels = self.labels_of(indices, views)
        self.renew(images, indices, unlabeled, is_warmup)
        mixed, mixed_labels = augment.mixup(
            views, soft_labels, self.seed_generator, alpha=self.mixup_alpha
        )
        logits = self.network(mixed, training=True)
        mask = ops.ones(unlabeled.shape, "float32") * ops.cast(~is_warmup, "float32")
        return {
            "terms": {
                "mixed_loss": ops.mean(losses.soft_cross_entropy(mixed_labels, logits)),
                "prior_loss": self.prior_weight * losses.prior_loss(logits),
                "entropy_loss": self.entropy_weight * ops.mean(losses.entropy(logits)),
            },
            "monitors": {"mask_rate": ops.mean(mask)},
            "pseudo_labels": ops.cast(ops.argmax(soft_labels[self.batch_size :], axis=-1), "int32"),
            "mask": mask,
        }

    def labels_of(self, indices, views):
        """Returns the soft labels of a batch, predicted from its views where there is none yet."""
        stored = ops.take(self.soft_labels.value, indices, axis=0)
        is_new = ops.sum(stored, axis=-1, keepdims=True) == 0

        def first():
            return losses.probabilities(self.network(views, training=False))

        made = ops.cond(ops.any(is_new), first, lambda: stored)
        return ops.where(is_new, made, stored)

    def renew(self, images, indices, unlabeled, is_warmup):
        """After the warm-up, stores the current predictions of the unlabeled images of a batch.

        As in the authors' code, the whole batch passes through the network, for batch norm.
        """
        with self.without_dropout():
            logits = self.network(images, training=True)
        self.observe(indices, logits)
        probs = losses.probabilities(logits)
        stored = ops.take(self.soft_labels.value, unlabeled, axis=0)
        rows = ops.where(is_warmup, stored, probs[self.batch_size :])
        self.soft_labels.assign(
            ops.scatter_update(self.soft_labels.value, unlabeled[:, None], rows)
        )

    @contextlib.contextmanager
    def without_dropout(self):
        """Turns off dropout in training mode, within this context."""
        rates = {layer: layer.rate for layer in dropout_layers(self.network)}
        try:
            for layer in rates:
                layer.rate = 0.0  # read when the step is traced
            yield
        finally:
            for layer, rate in rates.items():
                layer.rate = rate

    def average_momentum(self):
        # Equally spaced snapshots, the last one at the end. Between them the average stays.
        num_snapshots = min(self.num_snapshots, self.steps)  # at most one a step
        share = np.arange(1, num_snapshots + 1) / num_snapshots
        moments = np.unique(np.round(self.steps * (7 / 8 + share / 8)).astype("int32"))
        taken = ops.sum(ops.cast(moments <= self.step.value, "float32"))
        is_snapshot = ops.any(moments == self.step.value)
        mean_so_far = ops.where(is_snapshot, 1 - 1 / ops.maximum(taken, 1.0), 1.0)
        return ops.where(taken > 0, mean_so_far, super().average_momentum())
