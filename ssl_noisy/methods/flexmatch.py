# SPDX-License-Identifier: Apache-2.0
"""FlexMatch: FixMatch with a lower threshold for classes that are not yet learned."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import losses
from ssl_noisy.arguments import fraction
from ssl_noisy.semi_supervised import WeakStrongLearner


def class_thresholds(counts, num_unselected, confidence_threshold):
    """Returns the threshold of each class: `confidence_threshold * M(beta)`, M(x) = x / (2 - x).

    Args:
        counts: Float tensor `(num_classes,)`: how many examples are at present counted as
            confident examples of each class, the paper's sigma.
        num_unselected: Float scalar, how many examples of the pool are counted to none.
        confidence_threshold: Float in [0, 1], the threshold of the class that is best learned.

    Returns:
        A float32 tensor `(num_classes,)`. beta is `counts` divided by the largest of all counts
        and `num_unselected` (the paper's threshold warm-up).
    """
    largest = ops.maximum(ops.maximum(ops.max(counts), num_unselected), 1.0)
    beta = counts / largest
    return confidence_threshold * beta / (2 - beta)


@keras.saving.register_keras_serializable(package="ssl_noisy")
class FlexMatch(WeakStrongLearner):
    """FixMatch with a threshold per class, in proportion to how well the class is learned.

    A class is learned as well as many unlabeled examples were assigned to it when they were
    last confident (`>=` `confidence_threshold`). That label of each example is on the
    device, and the step counts labels by a segment sum.

    Labeled, weak and strong views are a forward pass each, where the authors' code
    (TorchSSL) passes them as one batch: `joint_batch_norm=True`.

    Strong views are FixMatch's by default; the authors' are `strong_augmentation="torchssl"`.

    Reference:
        [Zhang et al., 2021](https://arxiv.org/abs/2110.08263), section 3.
    """

    confidence_threshold: float = fraction(
        0.95,
        "Threshold of the best learned class. Keep a pseudo-label if its probability is >= the "
        "threshold of its class.",
    )

    def build_example_state(self, task):
        none_yet = np.full(task.num_examples, -1, "int32")
        self.confident_labels = self.add_state("confident_labels", none_yet)

    def objective(self, labeled, unlabeled):
        labeled_logits, weak_logits, strong_logits = self.weak_and_strong(labeled, unlabeled)
        probs = losses.probabilities(weak_logits)
        thresholds = self.thresholds()
        pseudo_labels, confident = losses.confident_labels(probs, self.confidence_threshold)
        passes = ops.max(probs, axis=-1) >= ops.take(thresholds, pseudo_labels)
        mask = ops.cast(passes, "float32")
        self.remember(unlabeled, pseudo_labels, confident)
        unsupervised = losses.batch_mean(losses.cross_entropy(pseudo_labels, strong_logits), mask)
        supervised = self.observed_cross_entropy(labeled, labeled_logits)
        return self.outcome(supervised, unsupervised, pseudo_labels, mask)

    def thresholds(self):
        """Returns the threshold of each class before this step, float32 `(num_classes,)`."""
        # Segment 0 counts the examples without a confident label.
        ones = ops.ones((self.task.num_examples,), "float32")
        segments = self.confident_labels.value + 1
        counts = ops.segment_sum(ones, segments, num_segments=self.num_classes + 1)[1:]
        unselected = float(len(self.pools()["unlabeled"])) - ops.sum(counts)
        return class_thresholds(counts, unselected, self.confidence_threshold)

    def remember(self, unlabeled, pseudo_labels, confident):
        """Writes the labels of the confident examples of this step to their places."""
        # A maximum does not depend on the order of an example that comes up twice in a batch.
        new = ops.segment_max(
            ops.where(confident > 0, pseudo_labels, -1),
            unlabeled,
            num_segments=self.task.num_examples,
        )
        self.confident_labels.assign(ops.where(new >= 0, new, self.confident_labels.value))
