# SPDX-License-Identifier: Apache-2.0
"""Small real data and a small network, shared by the tests."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from ssl_noisy import Task, methods, networks

NUM_EXAMPLES = 120


def digits():
    """Returns uint8 images `(120, 8, 8, 1)` and their labels: scikit-learn's first digits."""
    data = load_digits()
    images = np.round(data.images[:NUM_EXAMPLES] * 255 / 16).astype("uint8")[..., None]
    return images, data.target[:NUM_EXAMPLES].astype("int32")


def task(num_labels=20):
    """Returns a `Task` with the first `num_labels` digits labeled, and its true labels."""
    images, labels = digits()
    given = np.where(np.arange(NUM_EXAMPLES) < num_labels, labels, -1).astype("int32")
    made = Task(images, given, num_classes=10, test_images=images, test_labels=labels, flip=False)
    return made, labels


def network():
    """Returns a network of one convolution, batch norm and a dense layer, in the global policy."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    x = keras.layers.ReLU()(networks.BatchNormalization(momentum=0.9)(x))
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))


def learner(method, *, seed=0, compiled=True, jit_compile="auto", steps_per_execution=1, **kwargs):
    """Returns a learner of `method` on 20 labels, and the true labels of its task."""
    keras.utils.set_random_seed(seed)
    made_task, true_labels = task()
    small = {"batch_size": 4, "ema_momentum": 0.5}
    if "unlabeled_ratio" in methods.arguments(method):
        small["unlabeled_ratio"] = 2
    made = methods.get(method)(network(), made_task, seed=seed, **{**small, **kwargs})
    if compiled:
        made.compile(
            keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
            jit_compile=jit_compile,
            steps_per_execution=steps_per_execution,
        )
    return made, true_labels


def fit(made, true_labels=None, steps=3, start=0):
    """Trains `steps` steps from step `start`, and returns the metrics' last values."""
    history = made.fit(
        made.batches(0, start, true_labels),
        steps_per_epoch=steps,
        verbose=0,
        shuffle=False,
    ).history
    return {key: values[-1] for key, values in history.items()}


def state(made):
    """Returns all values that a training depends on, as arrays."""
    return [np.array(v.numpy()) for v in [*made.variables, *made.optimizer.variables]]
