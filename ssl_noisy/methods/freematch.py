# SPDX-License-Identifier: Apache-2.0
"""FreeMatch: thresholds that follow the network's confidence, and a fairness term."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import losses
from ssl_noisy.arguments import at_least, momentum
from ssl_noisy.semi_supervised import WeakStrongLearner


def fairness_loss(strong_logits, mask, probs_average, label_average):
    """Computes the self-adaptive fairness loss of the kept examples, exactly 0 if none is kept.

    Args:
        strong_logits: Float tensor `(batch_size, num_classes)`.
        mask: Float tensor `(batch_size,)` of 0 and 1.
        probs_average: Moving average `(num_classes,)` of weak probabilities, the paper's p tilde.
        label_average: Moving average `(num_classes,)` of the frequencies of pseudo-labels, h tilde.

    Returns:
        A float32 scalar, equation 11 of the paper: the sum of N(p~ / h~) log N(p_s / h_s), where N
        divides by the sum. Classes without a kept example count as zero.
    """
    probs = ops.softmax(ops.cast(strong_logits, "float32"), axis=-1)
    num_kept = ops.maximum(ops.sum(mask), 1.0)
    mean = ops.sum(probs * mask[:, None], axis=0) / num_kept
    classes = ops.one_hot(ops.argmax(probs, axis=-1), probs.shape[-1])
    histogram = ops.stop_gradient(ops.sum(classes * mask[:, None], axis=0) / num_kept)

    def normalized_ratio(numerator, denominator):
        ratio = ops.where(denominator > 0, numerator / ops.maximum(denominator, 1e-12), 0.0)
        return ratio / ops.maximum(ops.sum(ratio), 1e-12)

    target = ops.stop_gradient(normalized_ratio(probs_average, label_average))
    value = ops.sum(target * ops.log(normalized_ratio(mean, histogram) + 1e-12))
    return ops.where(ops.sum(mask) > 0, value, 0.0)


@keras.saving.register_keras_serializable(package="ssl_noisy")
class FreeMatch(WeakStrongLearner):
    """FixMatch whose threshold is the network's mean confidence, lower for rarer classes.

    The threshold of class c is tau * p_c / max p. tau is a moving average of the mean largest
    probability of weak views, starting from 1 / num_classes, and p a moving average of their mean
    probabilities. A pseudo-label is kept if its probability is `>=` its threshold.

    As in the authors' code (microsoft/Semi-supervised-learning), the averages include the
    current batch before it is masked, and the weight of the fairness term is the 0.001 of its
    configurations (its code's default is 0.01). Its option to clip the threshold at 0.95,
    used for SVHN, is not implemented. Labeled, weak and strong views are separate forward
    passes; that code passes them as one batch, as `joint_batch_norm=True` does here.

    Strong views are FixMatch's by default; the authors' are `strong_augmentation="usb"`.

    Reference:
        [Wang et al., 2023](https://arxiv.org/abs/2205.07246), section 3.
    """

    fairness_weight: float = at_least(0, 0.001, "Weight of the fairness term, the paper's w_f.")
    threshold_momentum: float = momentum(0.999, "Momentum of the moving averages.")

    term_names = ("supervised_loss", "unsupervised_loss", "fairness_loss")
    monitor_names = ("mask_rate", "confidence")

    def build_state(self):
        super().build_state()
        self.confidence = self.add_state("confidence", np.float32(1 / self.num_classes))
        self.probs_average = self.add_marginal("probs_average")
        self.label_average = self.add_marginal("label_average")

    def objective(self, labeled, unlabeled):
        labeled_logits, weak_logits, strong_logits = self.weak_and_strong(labeled, unlabeled)
        probs = losses.probabilities(weak_logits)
        self.follow(probs)
        relative = self.probs_average.value / ops.max(self.probs_average.value)
        pseudo_labels = ops.cast(ops.argmax(probs, axis=-1), "int32")
        threshold = self.confidence.value * ops.take(relative, pseudo_labels)
        mask = ops.cast(ops.max(probs, axis=-1) >= threshold, "float32")
        unsupervised = losses.batch_mean(losses.cross_entropy(pseudo_labels, strong_logits), mask)
        fairness = fairness_loss(
            strong_logits, mask, self.probs_average.value, self.label_average.value
        )
        supervised = self.observed_cross_entropy(labeled, labeled_logits)
        monitors = {"confidence": self.confidence.value}
        outcome = self.outcome(supervised, unsupervised, pseudo_labels, mask, **monitors)
        outcome["terms"]["fairness_loss"] = self.fairness_weight * fairness
        return outcome

    def follow(self, probs):
        """Updates the three moving averages with a batch of weak probabilities."""
        labels = ops.one_hot(ops.argmax(probs, axis=-1), probs.shape[-1])
        for average, value in (
            (self.confidence, ops.mean(ops.max(probs, axis=-1))),
            (self.probs_average, ops.mean(probs, axis=0)),
            (self.label_average, ops.mean(labels, axis=0)),
        ):
            average.assign(average + (1 - self.threshold_momentum) * (value - average))
