# SPDX-License-Identifier: Apache-2.0
"""GCE: a loss between cross-entropy and the absolute error, which a wrong label pulls less."""

import keras
from keras import ops

from ssl_noisy import losses
from ssl_noisy.robust import RobustLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class GeneralizedCrossEntropy(RobustLearner):
    """Trains on the generalized cross-entropy (1 - p^q) / q, p being the given label's probability.

    Its gradient is p^q times that of cross-entropy: the less the network believes a label, the
    less it learns it. The truncated loss of the paper's section 3.4, which leaves labels below a
    probability out and chooses them anew every ten epochs, is not here.

    Training defaults are those of AlanChou/Truncated-Loss (93a2464), not by the authors.

    Args:
        loss_exponent: Float in (0, 1], the paper's q. Towards 0 the loss is cross-entropy, at 1
            it is half the mean absolute error, which wrong labels hardly disturb and which is
            slow to learn.

    Reference:
        [Zhang and Sabuncu, 2018](https://arxiv.org/abs/1805.07836), equation 6.
    """

    term_names = ("supervised_loss",)
    training_defaults = {
        "steps": 46_920,  # 120 epochs
        "steps_per_epoch": 391,
        "learning_rate": 0.01,
        "schedule": "drops_1_3_2_3",
        "momentum": 0.9,
        "nesterov": False,
    }

    def __init__(
        self,
        network,
        task=None,
        *,
        loss_exponent: float = 0.7,
        weight_decay: float = 1e-4,
        **kwargs,
    ):
        super().__init__(network, task, weight_decay=weight_decay, **kwargs)
        self.check_argument("loss_exponent", loss_exponent, 0 < loss_exponent <= 1, "in (0, 1]")
        self.loss_exponent = loss_exponent

    def objective(self, labeled):
        values = losses.cross_entropy(self.given_labels(labeled), self.weak_logits(labeled))
        # p^q of log p: the gradient of a power of p is not finite at 0.
        values = -ops.expm1(-self.loss_exponent * values) / self.loss_exponent
        return {"terms": {"supervised_loss": ops.mean(values)}, "monitors": {}}
