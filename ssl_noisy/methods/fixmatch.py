# SPDX-License-Identifier: Apache-2.0
"""FixMatch: confident labels of weak views are the targets of strong views."""

import keras
from keras import ops

from ssl_noisy import augment, losses
from ssl_noisy.learner import Learner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class FixMatch(Learner):
    """Trains on labels, and on the network's own confident labels of unlabeled images.

    Departures from the authors' TF1 code (google-research/fixmatch, d4985a1),
    whose defaults these are:

    - The strong views are RandAugment's, not CTAugment's.
    - Labeled, weak and strong views are a forward pass each: the weak one, without
      gradient, is a third less work. Batch norm then normalizes each kind of view
      by its own batch, and its running statistics follow labeled and weak views,
      which are like the test images, not the strong ones. `joint_batch_norm=True`
      is the one batch of the code. A step of WRN-28-2 on two cores took 1.16 s
      apart and 1.68 s joint.
    - Examples come in passes through the pools (see `IndexBatches`).

    Args:
        unlabeled_ratio: Positive integer, unlabeled examples for each labeled
            one of a batch, the paper's mu.
        confidence_threshold: Float in [0, 1], the paper's tau. A pseudo-label is
            kept when its probability is `>=` this value.
        unsupervised_weight: Float >= 0, the paper's lambda_u.
        strong_augmentation: One of `google_code`, `paper`, `torchssl`: which
            RandAugment and cutout (see `augment.strong_view`).
        include_labeled: Whether labeled images are in the unlabeled pool too.
        joint_batch_norm: Whether all views are one batch for batch norm.

    Reference:
        [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), section 2.2 and
        table 4.
    """

    term_names = ("supervised_loss", "unsupervised_loss")
    monitor_names = ("mask_rate",)

    def __init__(
        self,
        network,
        task=None,
        *,
        unlabeled_ratio: int = 7,
        confidence_threshold: float = 0.95,
        unsupervised_weight: float = 1.0,
        strong_augmentation: str = "google_code",
        include_labeled: bool = True,
        joint_batch_norm: bool = False,
        **kwargs,
    ):
        super().__init__(network, task, **kwargs)
        check = self.check_argument
        check("unlabeled_ratio", unlabeled_ratio, unlabeled_ratio >= 1, "at least 1")
        in_range = 0 <= confidence_threshold <= 1
        check("confidence_threshold", confidence_threshold, in_range, "in [0, 1]")
        check("unsupervised_weight", unsupervised_weight, unsupervised_weight >= 0, "at least 0")
        is_policy = strong_augmentation in augment.POLICIES
        policies = "one of " + ", ".join(augment.POLICIES)
        check("strong_augmentation", strong_augmentation, is_policy, policies)
        self.unlabeled_ratio = unlabeled_ratio
        self.confidence_threshold = confidence_threshold
        self.unsupervised_weight = unsupervised_weight
        self.strong_augmentation = strong_augmentation
        self.include_labeled = include_labeled
        self.joint_batch_norm = joint_batch_norm

    def streams(self):
        return {"labeled": self.batch_size, "unlabeled": self.batch_size * self.unlabeled_ratio}

    def pools(self):
        unlabeled = self.task.unlabeled_pool(include_labeled=self.include_labeled)
        return {"labeled": self.task.labeled, "unlabeled": unlabeled}

    def objective(self, labeled, unlabeled):
        labeled_views = self.weak_view(self.images(labeled), labeled)
        images = self.images(unlabeled)
        weak_views = self.weak_view(images, unlabeled, stream="unlabeled")
        strong_views = self.strong_view(images)

        labeled_logits, weak_logits, strong_logits = self.forward(
            labeled_views, weak_views, strong_views
        )
        pseudo_labels, mask = losses.confident_pseudo_labels(weak_logits, self.confidence_threshold)
        supervised = ops.mean(losses.cross_entropy(self.given_labels(labeled), labeled_logits))
        unsupervised = losses.masked_mean(losses.cross_entropy(pseudo_labels, strong_logits), mask)
        return {
            "terms": {
                "supervised_loss": supervised,
                "unsupervised_loss": self.unsupervised_weight * unsupervised,
            },
            "monitors": {"mask_rate": ops.mean(mask)},
            "pseudo_labels": pseudo_labels,
            "mask": mask,
        }

    def forward(self, labeled_views, weak_views, strong_views):
        """Returns the logits of the three kinds of views, in training mode."""
        n, m = self.batch_size, self.batch_size * self.unlabeled_ratio
        if self.joint_batch_norm:
            views = ops.concatenate([labeled_views, weak_views, strong_views])
            logits = self.network(views, training=True)
            return logits[:n], logits[n : n + m], logits[n + m :]
        with self.kept_statistics():
            strong_logits = self.network(strong_views, training=True)
        weak_logits = ops.stop_gradient(self.network(weak_views, training=True))
        return self.network(labeled_views, training=True), weak_logits, strong_logits
