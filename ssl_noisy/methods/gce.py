# SPDX-License-Identifier: Apache-2.0
"""GCE: a loss between cross-entropy and absolute error, more robust to wrong labels."""

import keras
from keras import ops

from ssl_noisy import losses
from ssl_noisy.arguments import interval
from ssl_noisy.robust import RobustLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class GCE(RobustLearner):
    """Trains on the generalized cross-entropy (1 - p^q) / q, p being the given label's probability.

    Its gradient is p^q times that of cross-entropy: the less the network believes a label, the
    less it learns it. The truncated loss of the paper's section 3.4, which leaves labels below a
    probability out and chooses them again every ten epochs, is not here.

    Training defaults are those of AlanChou/Truncated-Loss (93a2464), not by the authors.

    Reference:
        [Zhang and Sabuncu, 2018](https://arxiv.org/abs/1805.07836), equation 6.
    """

    loss_exponent: float = interval(
        "(0, 1]",
        0.7,
        "The paper's q. Near 0 the loss is cross-entropy. At 1 it is half the mean absolute error, "
        "which is robust to wrong labels and slow to learn.",
    )
    weight_decay: float = RobustLearner.weight_decay.with_default(1e-4)

    term_names = ("supervised_loss",)
    training_defaults = RobustLearner.training_defaults | {
        "steps": 46_920,  # 120 epochs
        "learning_rate": 0.01,
        "schedule": "drops_1_3_2_3",
    }

    def objective(self, labeled):
        values = losses.cross_entropy(self.given_labels(labeled), self.observed_logits(labeled))
        # p^q of log p: the gradient of a power of p is not finite at 0.
        values = -ops.expm1(-self.loss_exponent * values) / self.loss_exponent
        return {"terms": {"supervised_loss": ops.mean(values)}, "monitors": {}}
