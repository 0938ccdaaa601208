# SPDX-License-Identifier: Apache-2.0
"""Where a learner's images are: all on the device, or on the host, which sends those of a step."""

import contextlib
import math

import keras
import numpy as np
from keras import ops

from ssl_noisy import work
from ssl_noisy.batches import image_key
from ssl_noisy.errors import UserError


def of(task):
    """Returns the data of a `Task` for a learner, `OnDevice` or `OnHost`, as `task.resident` says.

    Raises:
        UserError: If the images must be on the device and are larger than its memory.
    """
    size, memory = task.num_bytes, work.device_memory()
    if task.resident == "device" and memory is not None and size > memory:
        raise UserError(
            f"The images need {size / 1e9:,.1f} GB, and the device has {memory / 1e9:,.1f} GB. Use "
            "resident=host, which leaves them on the host. Received: resident=device"
        )
    limit = math.inf if memory is None else memory / 2
    if task.resident_limit is not None:
        limit = task.resident_limit * 1e9
    is_on_host = task.resident == "host" or (task.resident == "auto" and size > limit)
    return (OnHost if is_on_host else OnDevice)(task)


class _Data(keras.layers.Layer):
    """Given labels on the device, an int32 variable, and images. They are never saved."""

    def __init__(self, task):
        super().__init__(trainable=False, name="resident_data")
        self.given_labels = keras.Variable(
            task.given_labels, dtype="int32", trainable=False, name="given_labels"
        )
        self.built = True

    def save_own_variables(self, store):
        del store

    def load_own_variables(self, store):
        del store


class OnDevice(_Data):
    """All images are on the device. A batch has positions alone."""

    place = "device"
    sent = None  # the images that go with a batch's positions

    def __init__(self, task):
        super().__init__(task)
        images = np.asarray(task.images)
        self.images = keras.Variable(
            images, dtype=images.dtype.name, trainable=False, autocast=False, name="images"
        )

    def keys(self, streams):
        """Returns the keys that a batch must have."""
        return set(streams)

    def step(self, streams, batch):
        """Returns the context of a step."""
        del streams, batch
        return contextlib.nullcontext()

    def take(self, indices):
        """Takes images as float32 pixels `(batch_size, height, width, channels)`, or features."""
        return ops.cast(ops.take(self.images, indices, axis=0), "float32")


class OnHost(_Data):
    """The images stay on the host. A batch has those of its positions too.

    The step finds an image by its position in the task, so a method may ask for a part of a
    stream, for streams together, or in another order.
    """

    place = "host"

    def __init__(self, task):
        super().__init__(task)
        self.sent = task.images
        self._batch = None

    def keys(self, streams):
        """Returns the keys that a batch must have."""
        return {*streams, *map(image_key, streams)}

    @contextlib.contextmanager
    def step(self, streams, batch):
        """Makes `take` find the images of a batch within this context.

        Args:
            streams: Dict from the name of each stream to its positions, of static shape.
            batch: Dict with their images.
        """
        images = [
            ops.reshape(batch[image_key(name)], (positions.shape[0], *self.sent.shape[1:]))
            for name, positions in streams.items()
        ]
        self._batch = ops.concatenate(list(streams.values())), ops.concatenate(images)
        try:
            yield
        finally:
            self._batch = None

    def take(self, indices):
        """Takes images as float32 pixels `(batch_size, height, width, channels)`.

        Within a step, these must be images of its streams. Others are NaN, which stops a training.
        """
        if self._batch is None:
            return ops.cast(self.sent[ops.convert_to_numpy(indices)], "float32")
        positions, images = self._batch
        is_same = ops.cast(indices[:, None] == positions[None, :], "int32")
        taken = ops.cast(ops.take(images, ops.argmax(is_same, axis=1), axis=0), "float32")
        is_there = ops.max(is_same, axis=1) > 0
        is_there = ops.reshape(is_there, (-1, *[1] * (len(taken.shape) - 1)))
        return ops.where(is_there, taken, np.nan)
