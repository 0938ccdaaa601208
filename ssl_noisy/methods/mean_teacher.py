# SPDX-License-Identifier: Apache-2.0
"""Mean Teacher: the network must agree with the moving average of itself."""

import keras
from keras import ops

from ssl_noisy import arguments, losses
from ssl_noisy.semi_supervised import SemiSupervisedLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class MeanTeacher(SemiSupervisedLearner):
    """Trains on labels, and on the squared distance to the averaged network's predictions.

    Each unlabeled image has two weak views: one for the network, one for the moving average of
    its weights, the teacher. The squared difference of their probabilities, averaged over
    examples and classes, has a weight that rises from 0. No gradient flows through the teacher.
    Batch norm normalizes both by the batch, and its running statistics follow the labeled views
    alone; otherwise training is unstable (Zhang et al., 2021, appendix B.1).

    Defaults are those of the FixMatch authors' benchmark code, as in TorchSSL. The paper has
    other networks, other noise and a sigmoid-shaped ramp. The average's momentum warms up, as in
    most Mean Teacher code, which uses min(ema_momentum, 1 - 1 / n) at the n-th update.

    Reference:
        [Tarvainen and Valpola, 2017](https://arxiv.org/abs/1703.01780), section 2.
    """

    unlabeled_ratio: int = SemiSupervisedLearner.unlabeled_ratio.with_default(1)
    unsupervised_weight: float = SemiSupervisedLearner.unsupervised_weight.with_default(50.0)
    ramp_end: float = arguments.ramp_end(0.4)

    def objective(self, labeled, unlabeled):
        teacher = losses.probabilities(
            self.averaged_logits(self.weak_views(unlabeled, "unlabeled"))
        )
        with self.kept_statistics():
            logits = self.network(self.weak_views(unlabeled, "unlabeled"), training=True)
        labeled_logits = self.network(self.weak_views(labeled, "labeled"), training=True)
        distance = ops.mean(ops.square(ops.softmax(ops.cast(logits, "float32")) - teacher))
        weight = self.unsupervised_weight * self.ramp(self.ramp_end)
        return {
            "terms": {
                "supervised_loss": self.observed_cross_entropy(labeled, labeled_logits),
                "unsupervised_loss": weight * distance,
            },
            "monitors": {},
        }
