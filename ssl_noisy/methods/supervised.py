# SPDX-License-Identifier: Apache-2.0
"""The baseline: cross-entropy on the labeled examples, and nothing else."""

import keras
from keras import ops

from ssl_noisy import losses
from ssl_noisy.learner import Learner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class Supervised(Learner):
    """Trains on the labeled examples alone, with weak augmentation.

    It keeps everything else of the methods that it is compared with: network,
    optimizer, weight decay and moving average.

    Reference:
        [Oliver et al., 2018](https://arxiv.org/abs/1804.09170), section 4.1: a
        baseline counts when it has the same network and the same tuning.
    """

    term_names = ("supervised_loss",)

    def objective(self, labeled):
        logits = self.observed_logits(labeled)
        loss = ops.mean(losses.cross_entropy(self.given_labels(labeled), logits))
        return {"terms": {"supervised_loss": loss}, "monitors": {}}
