# SPDX-License-Identifier: Apache-2.0
"""SCAN's self-labeling: trains on the clusters of which a network is certain."""

import keras
from keras import ops

from ssl_noisy import arguments, losses
from ssl_noisy.clustering import ClusterLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class SelfLabel(ClusterLearner):
    """Trains strong views on the clusters of the images themselves, where the network is confident.

    It is the last stage of SCAN, and continues a training by `scan`, whose network it begins with,
    last layer included. Each cluster counts the same, however many confident images it has. No
    label counts, and the outputs are clusters in no particular order, as in SCAN.

    Defaults are the authors' for CIFAR-10 (wvangansbeke/Unsupervised-Classification, 952ec31): 200
    epochs of 50 batches of 1000 of 50,000 images. Departures from that code:

    - A probability of exactly the threshold is enough.
    - A batch without a confident image has no loss. There it is an error.
    - The cutout is that of `scan`.

    Reference:
        [Van Gansbeke et al., 2020](https://arxiv.org/abs/2005.12320), section 2.3.
    """

    batch_size: int = ClusterLearner.batch_size.with_default(1000)
    confidence_threshold: float = arguments.confidence_threshold(0.99)

    term_names = ("unsupervised_loss",)
    monitor_names = ("mask_rate", "effective_clusters")
    begins_with_clusters = True
    training_defaults = ClusterLearner.training_defaults | {
        "steps": 10_000,  # 200 epochs
        "steps_per_epoch": 250,
    }

    def streams(self):
        return {"unlabeled": self.batch_size}

    def objective(self, unlabeled):
        images = self.images(unlabeled)
        # In training mode, as in that code: both passes move batch norm's running statistics.
        probs = losses.probabilities(self.network(images, training=True))
        logits = self.network(self.strong_view(images), training=True)
        clusters, mask = losses.confident_labels(probs, self.confidence_threshold)
        values = losses.cross_entropy(clusters, logits)
        loss = losses.class_balanced_mean(values, clusters, mask, self.num_classes)
        return {
            "terms": {"unsupervised_loss": loss},
            "monitors": {
                "mask_rate": ops.mean(mask),
                "effective_clusters": ops.exp(losses.entropy_of_mean(logits)),
            },
        }
