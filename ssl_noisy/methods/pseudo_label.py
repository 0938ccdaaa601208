# SPDX-License-Identifier: Apache-2.0
"""Pseudo-Label: trains on predicted classes, with a weight that ramps up."""

import keras

from ssl_noisy import arguments, losses
from ssl_noisy.semi_supervised import SemiSupervisedLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class PseudoLabel(SemiSupervisedLearner):
    """Trains on labels, and on the most probable class of each unlabeled image.

    Each update predicts the class again, from the same weak view that it then
    labels. There are two forms:

    - The one of benchmarks (Oliver et al., 2018; google-research/fixmatch), the
      default here: only classes of probability `>=` 0.95 count (there `>`), with a weight
      that rises to 1 during the first 40 % of training.
    - Lee's own: `confidence_threshold=0` and a weight that rises between `ramp_start` and
      `ramp_end`. It is often cited as rising to 3 between epochs 100 and 600, which we could not
      confirm.

    As in that benchmark code, batch norm's running statistics follow the labeled views
    alone. The network, augmentation and optimizer are those of the other methods; Lee
    trained fully connected networks on MNIST.

    Reference:
        [Lee, 2013](http://deeplearning.net/wp-content/uploads/2013/03/pseudo_label_final.pdf),
        equations 15 and 16;
        [Oliver et al., 2018](https://arxiv.org/abs/1804.09170), section 3.
    """

    unlabeled_ratio: int = SemiSupervisedLearner.unlabeled_ratio.with_default(1)
    confidence_threshold: float = arguments.confidence_threshold(0.95)
    ramp_start: float = arguments.ramp_start(0.0)
    ramp_end: float = arguments.ramp_end(0.4)

    monitor_names = ("mask_rate",)

    @classmethod
    def check_arguments(cls, values):
        cls.require_order(values, "ramp_start", "ramp_end")

    def objective(self, labeled, unlabeled):
        with self.kept_statistics():
            logits = self.network(self.weak_views(unlabeled, "unlabeled"), training=True)
        labeled_logits = self.network(self.weak_views(labeled, "labeled"), training=True)
        probs = losses.probabilities(logits)
        pseudo_labels, mask = losses.confident_labels(probs, self.confidence_threshold)
        unsupervised = losses.batch_mean(losses.cross_entropy(pseudo_labels, logits), mask)
        unsupervised *= self.ramp(self.ramp_end, start=self.ramp_start)
        supervised = self.observed_cross_entropy(labeled, labeled_logits)
        return self.outcome(supervised, unsupervised, pseudo_labels, mask)
