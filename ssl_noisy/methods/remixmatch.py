# SPDX-License-Identifier: Apache-2.0
"""ReMixMatch: MixMatch with aligned labels, strong views anchored to weak ones, and rotation."""

import keras
from keras import ops

from ssl_noisy import arguments, augment, losses
from ssl_noisy.arguments import at_least, count
from ssl_noisy.auxiliary_heads import AuxiliaryHeads
from ssl_noisy.semi_supervised import WeakStrongLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class ReMixMatch(AuxiliaryHeads, WeakStrongLearner):
    """Trains on mixtures of labeled, weak and strong images, and on three more losses.

    The label of an unlabeled image is the prediction on its weak view, aligned with the
    class distribution of the given labels, then sharpened. Beside the mixtures (cross-entropy,
    weight `unsupervised_weight`), the first strong view, unmixed, must have that label
    (`anchor_weight`), and a second head must predict by how many quarter turns it was rotated
    (`rotation_weight`). The first two weights rise from 0.

    Departures from google-research/fixmatch (d4985a1, `remixmatch_no_cta.py`, whose weights
    these are):

    - Two strong views, as in later kits (paper: 8), by RandAugment;
      `strong_augmentation="ctaugment"` is the paper's. Its labels come from the weak view
      alone, as in the paper.
    - The marginal of the predictions is a moving average with momentum 0.999, warmed up, that
      includes the current batch; that code uses a window of the 128 batches before. The rotation
      head has no weight decay.
    - Batch norm sees all mixed images as one batch, where the code interleaves them, and its
      running statistics follow the mixed images; `joint_batch_norm` puts the weak, strong and
      rotated views into one batch of their own.

    TorchSSL (f26e1d4) draws one lambda per batch, as `mixup_per_image=False` does.

    Reference:
        [Berthelot et al., 2020](https://arxiv.org/abs/1911.09785), section 3.
    """

    unlabeled_ratio: int = WeakStrongLearner.unlabeled_ratio.with_default(1)
    unsupervised_weight: float = WeakStrongLearner.unsupervised_weight.with_default(1.5)
    temperature: float = arguments.temperature(0.5)
    mixup_alpha: float = arguments.mixup_alpha(0.75)
    mixup_per_image: bool = arguments.mixup_per_image(True)
    anchor_weight: float = at_least(
        0, 0.5, "Weight of the loss of strong views that are not mixed."
    )
    rotation_weight: float = at_least(0, 0.5, "Weight of the rotation loss.")
    num_strong_views: int = count(2, "Strong views of each unlabeled image, the paper's K.")
    ramp_end: float = arguments.ramp_end(1 / 64)

    needs_pixels = True  # to turn them
    term_names = ("supervised_loss", "unsupervised_loss", "anchor_loss", "rotation_loss")
    monitor_names = ()

    def build_state(self):
        super().build_state()
        self.marginal = self.add_marginal("marginal")
        features = self.featured_networks[0].output[0]
        self.rotation_head = keras.layers.Dense(
            4, kernel_initializer="glorot_normal", dtype="float32", name="rotation"
        )
        self.rotation_head.build(features.shape)

    def attach(self, task):
        super().attach(task)
        self.check_square(task)

    def images_per_step(self):
        # Mixed are labeled, weak and all strong views; unmixed a strong one, and that turned.
        return self.batch_size * (1 + self.unlabeled_ratio * (self.num_strong_views + 3))

    def objective(self, labeled, unlabeled):
        labeled_views = self.weak_views(labeled, "labeled")
        images = self.images(unlabeled)
        weak = self.weak_view(images, unlabeled, stream="unlabeled")
        strong = [self.strong_view(images) for _ in range(self.num_strong_views)]
        self.learn_augmentation(labeled_views, labeled)
        weak_logits, strong_logits, turned_logits, turns = self.unmixed(weak, strong[0])
        guessed = self.aligned(
            losses.probabilities(weak_logits), self.marginal, self.labeled_distribution()
        )
        guessed = losses.sharpen(guessed, self.temperature)
        given = ops.one_hot(self.given_labels(labeled), guessed.shape[-1])
        mixed, soft_labels = augment.mixup(
            ops.concatenate([labeled_views, weak, *strong]),
            ops.concatenate([given] + [guessed] * (1 + self.num_strong_views)),
            self.seed_generator,
            alpha=self.mixup_alpha,
            per_image=self.mixup_per_image,
            keep_larger=True,
        )
        ramp, n = self.ramp(self.ramp_end), labeled.shape[0]
        logits = self.network(mixed, training=True)
        self.observe(labeled, logits[:n])  # of mixtures in which the example prevails
        values = losses.soft_cross_entropy(soft_labels, logits)
        anchor = ops.mean(losses.soft_cross_entropy(guessed, strong_logits))
        return {
            "terms": {
                "supervised_loss": ops.mean(values[:n]),
                "unsupervised_loss": self.unsupervised_weight * ramp * ops.mean(values[n:]),
                "anchor_loss": self.anchor_weight * ramp * anchor,
                "rotation_loss": self.rotation_weight
                * ops.mean(losses.cross_entropy(turns, turned_logits)),
            },
            "monitors": {},
        }

    def unmixed(self, weak, strong):
        """Passes unmixed views through the network, whose running statistics stay.

        Returns:
            The logits of weak views (no gradient flows through them) and of strong ones, the
            rotation head's of strong views turned by quarters, and by how many quarters.
        """
        n = weak.shape[0]
        turned = ops.concatenate([ops.rot90(strong[k::4], k, axes=(1, 2)) for k in range(4)])
        turns = ops.concatenate([ops.full((len(range(k, n, 4)),), k, "int32") for k in range(4)])
        with self.kept_statistics():
            if self.joint_batch_norm:
                views = ops.concatenate([weak, strong, turned])
                features, logits = self.featured_networks[0](views, training=True)
                weak_logits, strong_logits, features = logits[:n], logits[n : 2 * n], features[-n:]
            else:
                weak_logits = self.network(weak, training=True)
                (_, strong_logits), (features, _) = self.passed_apart(
                    strong, turned, self.featured_networks[0]
                )
        return ops.stop_gradient(weak_logits), strong_logits, self.rotation_head(features), turns
