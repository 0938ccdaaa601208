# SPDX-License-Identifier: Apache-2.0
"""SCAN: an image and its nearest neighbors belong to one cluster."""

import keras
import numpy as np
from keras import ops

from ssl_noisy import losses
from ssl_noisy.arguments import at_least, count
from ssl_noisy.batches import Partners
from ssl_noisy.clustering import ClusterLearner
from ssl_noisy.errors import UserError
from ssl_noisy.probes import neighbors


@keras.saving.register_keras_serializable(package="ssl_noisy")
class SCAN(ClusterLearner):
    """Learns to put an image and its neighbors into the same one of several balanced clusters.

    The neighbors of an image are those whose features, of a network that was trained without
    labels, have the largest cosine with its own. A step compares a strong view of each image with
    one of a neighbor, or of the image itself. The network should begin with the weights that
    computed the features.

    No label counts. The outputs are clusters in no particular order: to compare them with classes,
    they must be matched first, as runs do (`ssl_noisy.matching`).

    Defaults are the authors' for CIFAR-10 (wvangansbeke/Unsupervised-Classification, 952ec31): 50
    epochs of 390 batches of 128 of 50,000 images. Departures from that code:

    - The weights are those of the end. There they are those of the epoch with the lowest loss on
      the test images and their neighbors.
    - The neighbors are those of the features, there of their projection to 128 numbers.
    - The cutout is gray and has a side of 0 to 15 pixels of 32, there the mean color and an even
      side of 0 to 16.
    - There is one set of clusters. The code can train several, and for ImageNet trains ten.

    The authors then train on the confident ones of these clusters: `self_label`.

    Reference:
        [Van Gansbeke et al., 2020](https://arxiv.org/abs/2005.12320), section 2.2.
    """

    num_neighbors: int = count(20, "Nearest neighbors of each image, by the features of the task.")
    balance_weight: float = at_least(
        0, 5.0, "Weight of the entropy of a batch's mean prediction, so that clusters are balanced."
    )

    term_names = ("consistency_loss", "balance_loss")
    monitor_names = ("confidence", "effective_clusters")
    needs_features = True
    training_defaults = ClusterLearner.training_defaults | {
        "steps": 19_500,  # 50 epochs
        "steps_per_epoch": 390,
    }

    def build_example_state(self, task):
        if self.num_neighbors >= task.num_examples:
            raise UserError(
                f"num_neighbors must be below the number of images, {task.num_examples}. Received: "
                f"{self.num_neighbors}"
            )
        # Saved, so that a run that is resumed on another machine has the same ones.
        nearest, _ = neighbors.nearest(task.features, self.num_neighbors)
        rows = np.column_stack([np.arange(task.num_examples), nearest])  # the image itself, too
        self.neighbors = self.add_state("neighbors", rows.astype("int32"))

    def streams(self):
        return {"unlabeled": self.batch_size, "neighbor": self.batch_size}

    def partners(self):
        return {"neighbor": Partners("unlabeled", ops.convert_to_numpy(self.neighbors.value))}

    def objective(self, unlabeled, neighbor):
        positions = ops.concatenate([unlabeled, neighbor])  # one call: views take seconds to trace
        views = ops.split(self.strong_view(self.images(positions)), 2)
        anchors, others = (self.network(of_one, training=True) for of_one in views)
        consistency = ops.mean(losses.disagreement(anchors, others))
        entropy = losses.entropy_of_mean(anchors)
        return {
            "terms": {
                "consistency_loss": consistency,
                "balance_loss": -self.balance_weight * entropy,
            },
            "monitors": {
                "confidence": ops.mean(ops.max(losses.probabilities(anchors), axis=-1)),
                "effective_clusters": ops.exp(entropy),
            },
        }
