# SPDX-License-Identifier: Apache-2.0
"""SoftMatch: weights pseudo-labels, less the further their confidence is below the mean."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import losses
from ssl_noisy.arguments import above, momentum, switch
from ssl_noisy.semi_supervised import WeakStrongLearner


def soft_weights(confidence, mean, variance, num_sigmas=2.0):
    """Returns exp(-min(confidence - mean, 0)^2 num_sigmas^2 / (2 variance)), in [0, 1].

    Args:
        confidence: Float tensor `(batch_size,)`, the largest probability of each example.
        mean, variance: Float scalars, of confidences.
        num_sigmas: Float > 0: at `mean - sqrt(variance)` the weight is exp(-num_sigmas^2 / 2).
    """
    below = ops.minimum(confidence - mean, 0.0)
    # The floor is for confidences that are all equal.
    return ops.exp(-ops.square(below) * num_sigmas**2 / (2 * ops.maximum(variance, 1e-12)))


@keras.saving.register_keras_serializable(package="ssl_noisy")
class SoftMatch(WeakStrongLearner):
    """FixMatch with a weight for each pseudo-label instead of a threshold.

    Below the mean confidence the weight falls like a normal density. Mean and (unbiased)
    variance are moving averages over batches, which start at 1 / num_classes and 1.
    `mask_rate` is the mean weight.

    Predictions aligned with equal classes give the weights, but not the labels. Mean and
    variance use predictions before alignment, as in the paper and TorchSSL;
    microsoft/Semi-supervised-learning uses them after it. The average for the alignment
    starts at equal classes, and its momentum warms up; in that code it starts at the first
    batch's mean. Mean and variance do not warm up. On the digits a warm-up made no
    difference in 200, 800 and 3,000 steps. Labeled, weak and strong views are a forward pass
    each, where that code passes them as one batch: `joint_batch_norm=True`.

    Strong views are FixMatch's by default; the authors' are `strong_augmentation="usb"`.

    Reference:
        [Chen et al., 2023](https://arxiv.org/abs/2301.10921), section 3.
    """

    uniform_alignment: bool = switch(
        True, "First align the predictions that give the weights with equal classes."
    )
    num_sigmas: float = above(0, 2.0, "How fast the weight falls; see `soft_weights`.")
    threshold_momentum: float = momentum(0.999, "Momentum of the moving averages.")

    def build_state(self):
        super().build_state()
        self.mean = self.add_state("confidence_mean", np.float32(1 / self.num_classes))
        self.variance = self.add_state("confidence_variance", np.float32(1.0))
        self.marginal = self.add_marginal("marginal")

    def objective(self, labeled, unlabeled):
        labeled_logits, weak_logits, strong_logits = self.weak_and_strong(labeled, unlabeled)
        probs = losses.probabilities(weak_logits)
        self.follow(ops.max(probs, axis=-1))
        uniform = np.full(probs.shape[-1], 1 / probs.shape[-1], "float32")
        aligned = self.aligned(probs, self.marginal, uniform, self.threshold_momentum)
        confidence = ops.max(aligned if self.uniform_alignment else probs, axis=-1)
        weights = soft_weights(confidence, self.mean.value, self.variance.value, self.num_sigmas)
        pseudo_labels = ops.cast(ops.argmax(probs, axis=-1), "int32")
        values = losses.cross_entropy(pseudo_labels, strong_logits)
        unsupervised = losses.batch_mean(values, weights)
        supervised = self.observed_cross_entropy(labeled, labeled_logits)
        return self.outcome(supervised, unsupervised, pseudo_labels, weights)

    def follow(self, confidence):
        """Takes a batch of confidences into the moving averages of their mean and variance."""
        size = confidence.shape[0]
        unbiased = ops.var(confidence) * size / max(size - 1, 1)
        for average, value in ((self.mean, ops.mean(confidence)), (self.variance, unbiased)):
            average.assign(average + (1 - self.threshold_momentum) * (value - average))
