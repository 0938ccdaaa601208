# SPDX-License-Identifier: Apache-2.0
"""What the methods share that learn features without labels: a probe, views and projections."""

import keras
from keras import ops

from ssl_noisy import augment, losses
from ssl_noisy.arguments import above, count, fraction, interval
from ssl_noisy.auxiliary_heads import AuxiliaryHeads
from ssl_noisy.learner import Learner


class SelfSupervisedLearner(AuxiliaryHeads, Learner):
    """Base of the methods that learn features from images alone.

    The network's last layer is a probe: it learns the labels that the images of a batch happen to
    have, and no gradient flows from it to the other layers. So the accuracy of the network is that
    of a linear classifier on the features so far, and the features are the same without any label.
    google-research/simclr does so too, by default.

    Nothing is averaged, and labels are not recorded, unless you say so.
    """

    batch_size: int = Learner.batch_size.with_default(512)
    decayed: str = Learner.decayed.with_default("all")
    ema_momentum: float = Learner.ema_momentum.with_default(0.0)
    record_examples: bool = Learner.record_examples.with_default(False)

    needs_labels = False
    needs_pixels = True
    learns_features = True
    probes = True
    training_defaults = Learner.training_defaults | {"nesterov": False}

    def streams(self):
        return {"unlabeled": self.batch_size}

    def pools(self):
        return {"unlabeled": self.task.unlabeled_pool()}

    def probe_loss(self, positions, logits):
        """Returns the mean cross-entropy of the labels that are given, 0 without one: a scalar.

        Args:
            positions: int32 `(batch_size,)`.
            logits: Float tensor `(num_views * batch_size, num_classes)`: those of the first view of
                each image, then those of the second, and so on.
        """
        size = positions.shape[0]
        self.observe(positions, logits[:size])
        labels = ops.tile(self.given_labels(positions), (logits.shape[0] // size,))
        return losses.labeled_cross_entropy(labels, logits)


class ContrastiveLearner(SelfSupervisedLearner):
    """Base of the methods that recognize an image by another view of it.

    Views are compared after a projection of the features, a small network that is discarded after
    the training.
    """

    contrastive_temperature: float = above(0, 0.1, "Temperature of the contrastive loss.")
    projection_layers: int = count(
        2,
        "Dense layers of the projection. All but the last are as wide as the features, with a "
        "ReLU; 1 is a linear projection.",
    )
    projection_size: int = count(128, "Number of projected features.")
    smallest_crop: float = interval(
        "(0, 1]", 0.2, "A view shows at least this fraction of the area of its image."
    )
    jitter_strength: float = fraction(
        0.4,
        "Change brightness, contrast and saturation of a view by a factor of 1 +- this, and turn "
        "its hue by up to a quarter of it.",
    )
    jitter_probability: float = fraction(0.8, "Probability of that change of colors.")
    gray_probability: float = fraction(0.2, "Probability that a view loses its colors.")
    blur_probability: float = fraction(
        0.0, "Probability that a view is blurred, by a Gaussian of 0.1 to 2 pixels."
    )

    term_names = ("contrastive_loss", "probe_loss")
    monitor_names = ("alignment", "uniformity")
    weak_augmentation = "contrastive"  # no argument: the views have arguments of their own

    @classmethod
    def check_arguments(cls, values):
        size = values.batch_size
        cls.require(size > 1, "batch_size", size, "at least 2, since images are told apart")

    def build_state(self):
        super().build_state()
        size = self.featured_networks[0].output[0].shape[-1]
        hidden = [
            keras.layers.Dense(size, activation="relu", dtype="float32")
            for _ in range(self.projection_layers - 1)
        ]
        last = keras.layers.Dense(self.projection_size, dtype="float32")
        self.projection = keras.Sequential([keras.Input((size,)), *hidden, last])

    def decayed_parts(self):
        return *self.networks, self.projection

    def weak_view(self, images, indices, stream="labeled"):
        """Returns a contrastive view of `images`: see `augment.contrastive_view`."""
        return augment.contrastive_view(
            images,
            self.seed_generator,
            flip=self.task.flip,
            crop_area=(self.smallest_crop, 1.0),
            jitter=self.jitter_strength,
            jitter_probability=self.jitter_probability,
            gray_probability=self.gray_probability,
            blur_probability=self.blur_probability,
        )

    def two_views(self, positions):
        """Makes two views of each image: first views, then second ones, `(2 * batch_size, ...)`."""
        positions = ops.tile(positions, (2,))  # one call, since views take seconds to trace
        return self.weak_view(self.images(positions), positions, "unlabeled")

    def outcome(self, contrastive, probe, projected, others):
        """Returns the objective's dict.

        Args:
            contrastive, probe: The loss terms, scalars.
            projected, others: Projections of two views, float32 `(batch_size, projection_size)`.
        """
        uniformity = (losses.uniformity(projected) + losses.uniformity(others)) / 2
        return {
            "terms": {"contrastive_loss": contrastive, "probe_loss": probe},
            "monitors": {
                "alignment": losses.alignment(projected, others),
                "uniformity": uniformity,
            },
        }
