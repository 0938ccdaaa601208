# SPDX-License-Identifier: Apache-2.0
"""Learners on given labels whose formulas can be computed by hand."""

import keras
import numpy as np
import toy

from ssl_noisy import Task, methods


class ModeLookUp(toy.LookUp):
    """A table whose first half answers in training mode, the second half in evaluation mode."""

    def call(self, images, training=False):
        return super().call(images if training else images + self.num_rows // 2)


def make(method, probs, given_labels, second=None, **kwargs):
    """Returns a learner of `method` on examples of one pixel, seen as they are.

    Args:
        method: Name of a method.
        probs: Rows of probabilities. Example i is an image of one pixel of value i, and the
            network answers it with the logarithms of row i.
        given_labels: The label of each example, -1 where unlabeled.
        second: As `probs`, the answers of the second network of a method that has two.
    """
    inputs = keras.Input((1, 1, 1))
    network = keras.Model(inputs, toy.LookUp(*np.shape(probs))(inputs))
    images = np.arange(len(probs), dtype="uint8").reshape(-1, 1, 1, 1)
    task = Task(images, np.array(given_labels), num_classes=np.shape(probs)[1])
    small = {"batch_size": len(probs), "weight_decay": 0.0, "weak_augmentation": "none"}
    made = methods.get(method)(network, task, **{**small, **kwargs})
    network.set_weights([np.log(np.array(probs, "float32"))])
    if second is not None:
        made.second_network.set_weights([np.log(np.array(second, "float32"))])
    return made


def step(made, labeled):
    """Returns terms and monitors of the objective on `labeled` in one dict, as floats."""
    outcome = made.objective(labeled=np.array(labeled, "int32"))
    return {key: float(value) for key, value in {**outcome["terms"], **outcome["monitors"]}.items()}
