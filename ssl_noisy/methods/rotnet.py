# SPDX-License-Identifier: Apache-2.0
"""RotNet: a network learns by how many quarter turns an image was rotated."""

import keras
from keras import ops

from ssl_noisy import losses
from ssl_noisy.self_supervised import SelfSupervisedLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class RotNet(SelfSupervisedLearner):
    """Learns features, without labels, that show which way up an image is.

    A batch has each image four times: as it is, and turned counterclockwise by one, two and three
    quarters. A second head predicts which (class k is k quarter turns).

    The network's last layer learns the given labels, if there are any, of images that are not
    turned, by a gradient that stops there: the accuracy of a run is that of a linear probe.

    Defaults are the authors' for CIFAR-10 (gidariss/FeatureLearningRotNet, 8539de6): 200 epochs of
    391 batches of 128 of 50,000 images, that is 512 turned ones. Departures from that code:

    - The features are those of the last layer. The authors classify those of the second of four
      blocks of a Network-in-Network, which transfer better: later ones serve the rotations.
    - Shifted images are padded by reflection, there with black.
    - The momentum of batch norm's running statistics warms up.

    Reference:
        [Gidaris et al., 2018](https://arxiv.org/abs/1803.07728), section 2.
    """

    batch_size: int = SelfSupervisedLearner.batch_size.with_default(128)

    term_names = ("rotation_loss", "probe_loss")
    monitor_names = ("rotation_accuracy",)
    training_defaults = SelfSupervisedLearner.training_defaults | {
        "steps": 78_200,  # 200 epochs
        "steps_per_epoch": 1955,
        "learning_rate": 0.1,
        "schedule": "drops_by_5_3_10_3_5_4_5",
        "nesterov": True,
    }

    def build_state(self):
        super().build_state()
        self.rotation_head = keras.layers.Dense(4, dtype="float32", name="rotation")
        self.rotation_head.build(self.featured_networks[0].output[0].shape)

    def decayed_parts(self):
        return *self.networks, self.rotation_head

    def attach(self, task):
        super().attach(task)
        self.check_square(task)

    def images_per_step(self):
        return 4 * self.batch_size

    def objective(self, unlabeled):
        views = self.weak_view(self.images(unlabeled), unlabeled, "unlabeled")
        features, logits = self.featured_networks[0](turned(views), training=True)
        turns = ops.repeat(ops.arange(4, dtype="int32"), views.shape[0])
        predicted = self.rotation_head(features)
        is_right = ops.cast(ops.argmax(predicted, axis=-1), "int32") == turns
        return {
            "terms": {
                "rotation_loss": ops.mean(losses.cross_entropy(turns, predicted)),
                "probe_loss": self.probe_loss(unlabeled, logits[: views.shape[0]]),
            },
            "monitors": {"rotation_accuracy": ops.mean(ops.cast(is_right, "float32"))},
        }


def turned(images):
    """Turns square images counterclockwise by zero to three quarters.

    Args:
        images: Tensor of shape `(batch_size, side, side, channels)`.

    Returns:
        A tensor with all images as they are, then all turned by one quarter, and so on:
        `(4 * batch_size, side, side, channels)`.
    """
    return ops.concatenate([ops.rot90(images, k, axes=(1, 2)) for k in range(4)])
