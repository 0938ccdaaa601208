# SPDX-License-Identifier: Apache-2.0
"""MixMatch: guesses and sharpens labels, and mixes all examples."""

import keras
from keras import ops

from ssl_noisy import arguments, augment, losses
from ssl_noisy.semi_supervised import SemiSupervisedLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class MixMatch(SemiSupervisedLearner):
    """Trains on mixtures of labeled and unlabeled images, whose labels it guesses.

    The label of an unlabeled image is the sharpened mean of the predictions on two weak
    views. Labeled images and both views are mixed with the batch of all three. Mixed labeled
    images have a cross-entropy, mixed unlabeled ones a squared distance (mean over examples
    and classes) whose weight rises from 0.

    Defaults are those of google-research/fixmatch (d4985a1, `mixmatch.py`): one lambda per
    image, Beta(0.5, 0.5), weight 100 after 1/64 of training. The paper has alpha 0.75 and
    weight 75 for CIFAR-10, and trains with Adam. Departure from both: batch norm sees all mixed
    images as one batch, where the code interleaves them into three.

    Reference:
        [Berthelot et al., 2019](https://arxiv.org/abs/1905.02249), section 3.
    """

    unlabeled_ratio: int = SemiSupervisedLearner.unlabeled_ratio.with_default(1)
    unsupervised_weight: float = SemiSupervisedLearner.unsupervised_weight.with_default(100.0)
    temperature: float = arguments.temperature(0.5)
    mixup_alpha: float = arguments.mixup_alpha(0.5)
    mixup_per_image: bool = arguments.mixup_per_image(True)
    ramp_end: float = arguments.ramp_end(1 / 64)

    def images_per_step(self):
        return self.batch_size * (1 + 2 * self.unlabeled_ratio)

    def objective(self, labeled, unlabeled):
        views = [self.weak_views(unlabeled, "unlabeled") for _ in range(2)]
        guessed = self.guessed_labels(views)
        given = ops.one_hot(self.given_labels(labeled), guessed.shape[-1])
        images, soft_labels = augment.mixup(
            ops.concatenate([self.weak_views(labeled, "labeled"), *views]),
            ops.concatenate([given, guessed, guessed]),
            self.seed_generator,
            alpha=self.mixup_alpha,
            per_image=self.mixup_per_image,
            keep_larger=True,
        )
        logits = self.network(images, training=True)
        n = labeled.shape[0]
        self.observe(labeled, logits[:n])  # of mixtures in which the example prevails
        supervised = ops.mean(losses.soft_cross_entropy(soft_labels[:n], logits[:n]))
        probs = ops.softmax(ops.cast(logits[n:], "float32"), axis=-1)
        distance = ops.mean(ops.square(probs - soft_labels[n:]))
        weight = self.unsupervised_weight * self.ramp(self.ramp_end)
        return {
            "terms": {"supervised_loss": supervised, "unsupervised_loss": weight * distance},
            "monitors": {},
        }

    def guessed_labels(self, views):
        """Returns the sharpened mean of the predictions on several views, without gradient."""
        with self.kept_statistics():
            probs = losses.mean_probabilities(self.network(view, training=True) for view in views)
        return losses.sharpen(probs, self.temperature)
