# SPDX-License-Identifier: Apache-2.0
"""SimCLR: of all views in a batch, each one finds the other view of its image."""

import keras
from keras import ops

from ssl_noisy import losses
from ssl_noisy.self_supervised import ContrastiveLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class SimCLR(ContrastiveLearner):
    """Learns features, without labels, by which two views of an image are recognized.

    Each image of a batch has two views. The projection of a view must be nearer to that of the
    other view of its image than to those of all other views (`losses.contrastive`).

    The network's last layer learns the given labels, if there are any, by a gradient that stops
    there: the accuracy of a run is that of a linear probe.

    Defaults are those of the short recipe for CIFAR of SCAN and TypiClust: 500 epochs of 97 batches
    of 50,000 images, momentum without Nesterov's, no LARS, the rate falling along half a cosine to
    a thousandth. Departures from that code (wvangansbeke/Unsupervised-Classification, 57dff92):

    - Both views look for each other, as in the paper; there the first view looks for the second.
    - The rate changes with each step, there with each epoch.
    - The jitter changes brightness, contrast, saturation and hue in this order, there in a random
      one.
    - The momentum of batch norm's running statistics warms up.

    The recipe for CIFAR-10 of google-research/simclr has 1000 epochs, LARS, a temperature of 0.5,
    batch norm in the projection, and crops from 8 % of the area on.

    Reference:
        [Chen et al., 2020](https://arxiv.org/abs/2002.05709), section 2.
    """

    weight_decay: float = ContrastiveLearner.weight_decay.with_default(1e-4)

    training_defaults = ContrastiveLearner.training_defaults | {
        "steps": 48_500,  # 500 epochs
        "steps_per_epoch": 970,
        "learning_rate": 0.4,
        "schedule": "half_cosine_1_1000",
    }

    def images_per_step(self):
        return 2 * self.batch_size

    def objective(self, unlabeled):
        views = self.two_views(unlabeled)
        features, logits = self.featured_networks[0](views, training=True)
        first, second = ops.split(self.projection(features), 2)
        contrastive = losses.contrastive(first, second, self.contrastive_temperature)
        return self.outcome(contrastive, self.probe_loss(unlabeled, logits), first, second)
