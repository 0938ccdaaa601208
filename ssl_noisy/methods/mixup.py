# SPDX-License-Identifier: Apache-2.0
"""mixup: trains on mixtures of two examples, so no single label can be memorized."""

import keras
from keras import ops

from ssl_noisy import arguments, augment, losses
from ssl_noisy.robust import RobustLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class Mixup(RobustLearner):
    """Trains on mixtures of two images and of their given labels, in the same shares.

    One lambda is drawn for a batch, whose images are mixed with themselves in random order. The
    record of the examples is of the one that prevails in each mixture. Defaults are those of the
    authors' code (facebookresearch/mixup-cifar10, 1fe8c5e); against wrong labels the paper
    mixes more, with alpha 8 or 32.

    Reference:
        [Zhang et al., 2018](https://arxiv.org/abs/1710.09412), sections 2 and 3.4.
    """

    mixup_alpha: float = arguments.mixup_alpha(1.0)
    weight_decay: float = RobustLearner.weight_decay.with_default(1e-4)

    term_names = ("mixed_loss",)
    training_defaults = RobustLearner.training_defaults | {
        "steps": 78_200,  # 200 epochs
        "learning_rate": 0.1,
        "schedule": "drops_1_2_3_4",
    }

    def objective(self, labeled):
        partners, shares = augment.mixing(
            labeled.shape[0], self.seed_generator, alpha=self.mixup_alpha
        )
        views = self.weak_view(self.images(labeled), labeled)
        logits = self.network(augment.mix(views, partners, shares), training=True)
        prevailing = ops.where(shares >= 0.5, labeled, ops.take(labeled, partners))
        self.observe(prevailing, logits)
        one_hot = ops.one_hot(self.given_labels(labeled), logits.shape[-1])
        soft_labels = augment.mix(one_hot, partners, shares)
        loss = ops.mean(losses.soft_cross_entropy(soft_labels, logits))
        return {"terms": {"mixed_loss": loss}, "monitors": {}}
