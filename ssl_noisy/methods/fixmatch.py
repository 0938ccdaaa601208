# SPDX-License-Identifier: Apache-2.0
"""FixMatch: confident labels of weak views are the targets of strong views."""

import keras

from ssl_noisy import arguments, losses
from ssl_noisy.arguments import switch
from ssl_noisy.semi_supervised import WeakStrongLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class FixMatch(WeakStrongLearner):
    """Trains on labels, and on the network's own confident labels of unlabeled images.

    Departures from the authors' TF1 code (google-research/fixmatch, d4985a1),
    whose defaults these are:

    - The strong views are RandAugment's; `strong_augmentation="ctaugment"` is the
      code's own default.
    - Labeled, weak and strong views are a forward pass each; `joint_batch_norm=True`
      is the one batch of the code.
    - Examples come in passes through the pools (see `IndexBatches`).
    - With distribution alignment, off by default, the model's marginal is a moving
      average of momentum 0.999, warmed up, not a window of 128 batches.

    Reference:
        [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), section 2.2 and
        table 4; alignment: section 2.5.
    """

    confidence_threshold: float = arguments.confidence_threshold(0.95)
    distribution_alignment: bool = switch(
        False, "First align predictions on weak views with the class distribution of the labels."
    )

    def build_state(self):
        super().build_state()
        self.marginal = self.add_marginal("marginal") if self.distribution_alignment else None

    def objective(self, labeled, unlabeled):
        labeled_logits, weak_logits, strong_logits = self.weak_and_strong(labeled, unlabeled)
        probs = losses.probabilities(weak_logits)
        if self.distribution_alignment:
            probs = self.aligned(probs, self.marginal, self.labeled_distribution())
        pseudo_labels, mask = losses.confident_labels(probs, self.confidence_threshold)
        unsupervised = losses.batch_mean(losses.cross_entropy(pseudo_labels, strong_logits), mask)
        supervised = self.observed_cross_entropy(labeled, labeled_logits)
        return self.outcome(supervised, unsupervised, pseudo_labels, mask)
