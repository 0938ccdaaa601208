# SPDX-License-Identifier: Apache-2.0
"""Small real data and a small network, shared by the tests."""

import keras
import numpy as np
from sklearn.datasets import load_digits

from ssl_noisy import Task, devices, methods, networks

NUM_EXAMPLES = 120


def digits():
    """Returns uint8 images `(120, 8, 8, 1)` and their labels: scikit-learn's first digits."""
    data = load_digits()
    images = np.round(data.images[:NUM_EXAMPLES] * 255 / 16).astype("uint8")[..., None]
    return images, data.target[:NUM_EXAMPLES].astype("int32")


def task(num_labels=20, **fields):
    """Returns a `Task` with the first `num_labels` digits labeled, and its true labels."""
    images, labels = digits()
    given = np.where(np.arange(NUM_EXAMPLES) < num_labels, labels, -1).astype("int32")
    fields = {"num_classes": 10, "test_images": images, "test_labels": labels, **fields}
    made = Task(images, given, flip=False, **fields)
    return made, labels


def network():
    """Returns a network of one convolution, batch norm and a dense layer, in the global policy."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Rescaling(1 / 127.5, -1)(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    x = keras.layers.ReLU()(networks.BatchNormalization(momentum=0.9)(x))
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))


@keras.saving.register_keras_serializable(package="ssl_noisy_tests")
class Subclassed(keras.Model):
    """A subclassed model, as in Keras's guides."""

    def __init__(self, num_classes=10, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.scale = keras.layers.Rescaling(1 / 127.5, -1)
        self.features = keras.layers.Conv2D(4, 3, strides=2)
        self.normalize = keras.layers.BatchNormalization()
        self.flatten = keras.layers.Flatten()
        self.logits = keras.layers.Dense(num_classes)

    def call(self, images, training=None):
        x = self.normalize(self.features(self.scale(images)), training=training)
        return self.logits(self.flatten(x))

    def get_config(self):
        return super().get_config() | {"num_classes": self.num_classes}


def users_network(kind, image_shape=(8, 8, 1)):
    """Returns a network as a user may bring it: one of `USERS_NETWORKS`, or `group_norm`.

    The sequential and the subclassed one have no weights yet.
    """
    if kind == "subclassed":
        return Subclassed()
    inputs = keras.Input(image_shape)
    scaled = keras.layers.Rescaling(1 / 127.5, -1)
    body = [
        keras.layers.Conv2D(4, 3, strides=2),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.1),
        keras.layers.Flatten(),
    ]
    if kind == "group_norm":  # no batch norm at all
        body[1:2] = [keras.layers.GroupNormalization(2), keras.layers.LayerNormalization()]
    logits = keras.layers.Dense(10)
    if kind == "sequential":
        return keras.Sequential([scaled, *body, logits])
    if kind == "nested":  # a backbone of three channels, with a layer of this package
        body[1] = networks.BatchNormalization()
        backbone = keras.Sequential([keras.Input((*image_shape[:2], 3)), *body], name="backbone")
        x = scaled(inputs)
        x = x if image_shape[2] == 3 else keras.layers.Concatenate()([x, x, x])
        return keras.Model(inputs, logits(backbone(x)))
    x = scaled(inputs)
    for layer in body:
        x = layer(x)
    return keras.Model(inputs, logits(x))


USERS_NETWORKS = ("sequential", "functional", "nested", "subclassed")


def learner(
    method,
    *,
    seed=0,
    compiled=True,
    jit_compile="auto",
    steps_per_execution=1,
    resident="auto",
    **kwargs,
):
    """Returns a learner of `method` on 20 labels, and the true labels of its task."""
    devices.make_repeatable()  # as a run does
    keras.utils.set_random_seed(seed)
    fields = {"resident": resident}
    if methods.get(method).needs_features:
        fields["features"] = digits()[0].reshape(NUM_EXAMPLES, -1) / np.float32(255)
    made_task, true_labels = task(**fields)
    small = {"batch_size": 4, "ema_momentum": 0.5, "unlabeled_ratio": 2, "unlabeled_batch_size": 4}
    small.update({"warmup_epochs": 0, "entropy_weight": 0.5, "distillation_weight": 0.5})
    small.update({"ramp_start": 0.0, "ramp_end": 0.0, "bootstrap_start": 0.0, "two_networks": True})
    if not methods.get(method).needs_labels:
        small.update({"batch_size": 32, "queue_size": 64, "record_examples": True})
    small = {name: value for name, value in small.items() if name in methods.arguments(method)}
    settings = {"seed": seed, "steps": 8, **small, **kwargs}
    if methods.get(method).needs_teacher:
        settings["teacher"] = network()
    made = methods.get(method)(network(), made_task, **settings)
    if compiled:
        made.compile(
            keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
            jit_compile=jit_compile,
            steps_per_execution=steps_per_execution,
        )
    return made, true_labels


def noise(images, seed, **kwargs):
    """Stands in for RandAugment, which takes seconds to trace: whole numbers, as random as it."""
    shift = keras.random.uniform(images.shape, -20, 20, dtype="float32", seed=seed)
    return keras.ops.clip(keras.ops.round(images + shift), 0, 255)


@keras.saving.register_keras_serializable(package="ssl_noisy_tests")
class LookUp(keras.layers.Layer):
    """Answers an image, whose first pixel is a whole number, with that row of its table."""

    def __init__(self, num_rows, num_classes, **kwargs):
        super().__init__(**kwargs)
        self.num_rows = num_rows
        self.num_classes = num_classes

    def build(self, input_shape):
        shape = (self.num_rows, self.num_classes)
        self.table = self.add_weight(name="table", shape=shape, initializer="zeros")

    def call(self, images):
        return keras.ops.take(self.table, keras.ops.cast(images[:, 0, 0, 0], "int32"), axis=0)


def make(method, probs, given_labels, *, strong=None, **kwargs):
    """Returns a learner of `method` whose formula can be computed by hand.

    Args:
        method: Name of a method.
        probs: Rows of probabilities. Example i is an image of one pixel of value i, and the
            network answers it with the logarithms of row i.
        given_labels: The label of each example, -1 where unlabeled.
        strong: As which example each one is seen in its strong view; as itself by default. The
            weak view is the image itself.
    """
    probs = np.array(probs, "float32")
    inputs = keras.Input((1, 1, 1))
    made_network = keras.Model(inputs, LookUp(*probs.shape)(inputs))
    made_network.set_weights([np.log(probs)])
    images = np.arange(len(probs), dtype="uint8").reshape(-1, 1, 1, 1)
    made_task = Task(images, np.array(given_labels), num_classes=probs.shape[1])
    # A step of `fit` takes every example once as unlabeled.
    small = {"batch_size": 1, "unlabeled_ratio": len(probs), "weight_decay": 0.0}
    made = methods.get(method)(made_network, made_task, **{**small, **kwargs})
    seen = np.array(range(len(probs)) if strong is None else strong, "float32")
    made.weak_view = lambda images, indices, stream="labeled": images
    made.strong_view = lambda images: keras.ops.take(seen, keras.ops.cast(images, "int32"))
    return made


def objective(made, labeled, unlabeled):
    """Returns terms, monitors, pseudo-labels and mask of a step in one dict, as arrays."""
    outcome = made.objective(
        labeled=np.array(labeled, "int32"), unlabeled=np.array(unlabeled, "int32")
    )
    flat = {**outcome.pop("terms"), **outcome.pop("monitors"), **outcome}
    return {key: keras.ops.convert_to_numpy(value) for key, value in flat.items()}


def table_gradient(made):
    """Returns the gradient of the whole loss by each row of a `make`, all examples unlabeled."""
    before = made.network.get_weights()[0]
    made.compile(keras.optimizers.SGD(1.0))
    fit(made, steps=1)
    return before - made.network.get_weights()[0]


def statistics(method, gray):
    """Returns batch norm's running statistics before and after a step, unlabeled views all gray."""
    made, _ = learner(method)
    views = made.weak_views

    def weak_views(indices, stream):
        made_views = views(indices, stream)
        return made_views if stream == "labeled" else keras.ops.full_like(made_views, gray)

    made.weak_views = weak_views
    before = np.concatenate([v.numpy() for v in made.running_statistics])
    fit(made, steps=1)
    return before, np.concatenate([v.numpy() for v in made.running_statistics])


def gradients(function, variables):
    """Gradients of `function()`, which also updates moving statistics, on either backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = function()
        return tape.gradient(value, [v.value for v in variables])
    import jax

    def pure(values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function()

    return jax.grad(pure)([v.value for v in variables])


def fit(made, true_labels=None, steps=3, start=0):
    """Trains `steps` steps from step `start`, and returns the metrics' last values."""
    history = made.fit(
        made.batches(0, start, true_labels),
        steps_per_epoch=steps,
        verbose=0,
        shuffle=False,
    ).history
    return {key: values[-1] for key, values in history.items()}


def variables(made):
    """Returns all variables that a training depends on."""
    return [*made.variables, *made.optimizer.variables]


def state(made):
    """Returns the values of `variables`, as arrays."""
    return [np.array(v.numpy()) for v in variables(made)]
