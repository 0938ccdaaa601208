# SPDX-License-Identifier: Apache-2.0
"""ELR: keeps predictions close to those from early in training, before labels are memorized."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import losses
from ssl_noisy.arguments import at_least, momentum
from ssl_noisy.robust import RobustLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class ELR(RobustLearner):
    """Trains on the given labels and keeps predictions close to earlier ones.

    Every example has a target t, the moving average of its predictions p, which starts at zero.
    The term log(1 - <t, p>) decreases without bound as the two agree. It sustains the gradient of
    labels that the network has learned and cancels the gradient of labels that it has not. A step
    first updates t with the current p. No gradient flows through t.

    Defaults are those of the authors' code for CIFAR-10 with symmetric noise (shengliu66/ELR,
    934af53, `config_cifar10.json`), except for the learning rate: the authors restart a cosine
    every 10 epochs (`schedule="cosine_15_restarts"`), the default here is a single cosine. Their
    other configurations: CIFAR-100 uses target_momentum 0.9, early_learning_weight 7 and
    `drops_by_100_8_15_4_5`; CIFAR-10 with asymmetric noise uses 0.9, 1 and, in 120 epochs,
    `drops_by_100_1_3_2_3`.

    The authors train on 45,000 images and choose an epoch by the noisy labels of the other 5,000.
    Validation splits of this package have no wrong labels, so the recipes leave those images out
    and use the last epoch.

    Reference:
        [Liu et al., 2020](https://arxiv.org/abs/2007.00151), section 4.
    """

    target_momentum: float = momentum(
        0.7, "Fraction of an example's target that a new prediction leaves, the paper's beta."
    )
    early_learning_weight: float = at_least(
        0, 3.0, "Weight of the regularizer, the paper's lambda."
    )
    weight_decay: float = RobustLearner.weight_decay.with_default(1e-3)

    term_names = ("supervised_loss", "early_learning_loss")
    training_defaults = RobustLearner.training_defaults | {
        "steps": 58_650,  # 150 epochs
        "learning_rate": 0.02,
        "schedule": "cosine",
    }

    def build_example_state(self, task):
        zeros = np.zeros((task.num_examples, task.num_classes), "float32")
        self.targets = self.add_state("targets", zeros)

    def objective(self, labeled):
        logits = self.observed_logits(labeled)
        # The clip keeps 1 - <t, p> above 0.
        probs = ops.clip(ops.softmax(ops.cast(logits, "float32"), axis=-1), 1e-4, 1 - 1e-4)
        new = ops.stop_gradient(probs / ops.sum(probs, axis=-1, keepdims=True))
        old = ops.take(self.targets.value, labeled, axis=0)
        targets = self.target_momentum * old + (1 - self.target_momentum) * new
        self.remember(self.targets, labeled, targets)
        regularizer = ops.mean(ops.log(1 - ops.sum(targets * probs, axis=-1)))
        supervised = ops.mean(losses.cross_entropy(self.given_labels(labeled), logits))
        return {
            "terms": {
                "supervised_loss": supervised,
                "early_learning_loss": self.early_learning_weight * regularizer,
            },
            "monitors": {},
        }

    def detected(self):
        """Returns `elr`: a label is wrong where the target's largest class is another one.

        The score is half of 1 + the target of the largest other class - that of the label.
        """
        targets = ops.convert_to_numpy(self.targets.value)
        labels = self.task.given_labels
        known = (labels >= 0) & (targets.sum(axis=1) > 0)
        margins = ops.convert_to_numpy(losses.margin(np.maximum(labels, 0), targets))
        return {"elr": (np.where(known, (1 - margins) / 2, np.nan), known & (margins < 0))}
