# SPDX-License-Identifier: Apache-2.0
"""The views of `ssl_noisy.augment` as Keras layers, for your own model or input pipeline."""

import keras
from keras import ops

from ssl_noisy import augment
from ssl_noisy.augment import ctaugment, policies
from ssl_noisy.errors import UserError

CHUNK = 64  # images at a time, where the size of the batch is not known in advance


class View(keras.layers.Layer):
    """Base of the layers: a view of each image in training, the image itself otherwise.

    Images have shape `(batch_size, height, width, channels)` with 1 or 3 channels, uint8 or float,
    from 0 to 255. Floats are rounded and clipped to whole pixel values. The output is float32,
    whatever the precision policy. Height, width and channels must be known in advance.

    If the batch size is known in advance, as on JAX, a view equals that of the function which the
    layer wraps, with a `SeedGenerator` of the same seed. TensorFlow's `fit` and `Dataset.batch`
    without `drop_remainder` do not know it in advance. The layer then works on chunks of 64 images,
    the last of which is filled up: sizes that are multiples of 64 waste nothing.

    A file of the layer contains its seed, not how many random numbers were drawn.

    Args:
        seed: Integer, or None for a random one.
    """

    def __init__(self, *, seed=None, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def view(self, images):
        """Returns views of float32 images of a static shape."""
        raise NotImplementedError(f"{type(self).__name__} must define `view`.")

    def __call__(self, images, *args, **kwargs):
        library = type(images).__module__.split(".")[0]
        if library == "tensorflow" and keras.backend.backend() != "tensorflow":
            raise UserError(
                f"{type(self).__name__} runs on Keras's backend, and `tf.data` on TensorFlow. Put "
                "the layer into the model, or set KERAS_BACKEND to tensorflow. Received: a "
                f"TensorFlow tensor, on {keras.backend.backend()}"
            )
        return super().__call__(images, *args, **kwargs)

    def call(self, images, training=None):
        _check_shape(type(self).__name__, images)
        is_whole = not keras.backend.is_float_dtype(keras.backend.standardize_dtype(images.dtype))
        images = ops.cast(images, "float32")
        if not training:
            return images
        images = images if is_whole else ops.clip(ops.round(images), 0, 255)
        return self.view(images) if images.shape[0] is not None else self._by_chunks(images)

    def _by_chunks(self, images):
        sides, size = tuple(images.shape[1:]), ops.shape(images)[0]
        chunks = (size + CHUNK - 1) // CHUNK
        filled = ops.take(images, ops.arange(chunks * CHUNK) % size, axis=0)
        views = ops.map(self.view, ops.reshape(filled, (chunks, CHUNK, *sides)))
        return ops.reshape(views, (-1, *sides))[:size]

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, images, training=None):
        _check_shape(type(self).__name__, images)
        return keras.KerasTensor(images.shape, "float32")

    def get_config(self):
        return super().get_config() | {"seed": self.seed}


@keras.saving.register_keras_serializable(package="ssl_noisy")
class RandAugment(View):
    """RandAugment with operations drawn per image: `augment.rand_augment`.

    Weak view and cutout, which FixMatch adds, are layers of their own. Unlike
    `keras.layers.RandAugment`, each image has operations of its own, and their pixels are those of
    Pillow.

    Args:
        policy: One of `augment.POLICIES`: the published forms of RandAugment.
        seed: Integer, or None for a random one.

    Reference:
        [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719)
    """

    def __init__(self, policy="google_code", *, seed=None, **kwargs):
        policies.find(policy)
        super().__init__(seed=seed, **kwargs)
        self.policy = policy

    def view(self, images):
        return augment.rand_augment(images, self.seed_generator, policy=self.policy)

    def get_config(self):
        return super().get_config() | {"policy": self.policy}


@keras.saving.register_keras_serializable(package="ssl_noisy")
class Cutout(View):
    """Fills a square at a random place of each image: `augment.cutout`.

    Args:
        size: Side of the square in pixels, or a pair `(low, high)`: the side of each image is then
            uniform in `[low, high)`, rounded down.
        fill: Value of the pixels in the square.
        seed: Integer, or None for a random one.

    Reference:
        [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552)
    """

    def __init__(self, size, fill=augment.operations.GRAY, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.size = tuple(size) if isinstance(size, (tuple, list)) else size
        self.fill = fill

    def view(self, images):
        return augment.cutout(images, self.seed_generator, size=self.size, fill=self.fill)

    def get_config(self):
        return super().get_config() | {"size": self.size, "fill": self.fill}


@keras.saving.register_keras_serializable(package="ssl_noisy")
class WeakView(View):
    """Flips and shifts each image at random: `augment.weak_view`.

    Args:
        flip: Whether to mirror each image horizontally with probability 1/2.
        max_shift: Integer, largest shift along each axis in pixels. None means an eighth of the
            height.
        seed: Integer, or None for a random one.
    """

    def __init__(self, flip=True, max_shift=None, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.flip, self.max_shift = flip, max_shift

    def view(self, images):
        geometry = {"flip": self.flip, "max_shift": self.max_shift}
        return augment.weak_view(images, self.seed_generator, **geometry)

    def get_config(self):
        return super().get_config() | {"flip": self.flip, "max_shift": self.max_shift}


@keras.saving.register_keras_serializable(package="ssl_noisy")
class CTAugment(View):
    """CTAugment's strong view: `augment.ctaugment.strong_view`, with rates that `update` learns.

    The view is a weak view, two operations, and a cutout. Until the first `update` all magnitudes
    are equally likely. Without updates they stay so: call it about once per training step, on a
    batch of labeled images.

    ```python
    augment = ssl_noisy.CTAugment(seed=0)
    augment.update(labeled_images, labels, lambda probes: softmax(network(probes)))
    strong_views = augment(unlabeled_images, training=True)
    ```

    The rates are a weight of the layer: they are saved with the model.

    Args:
        flip, max_shift: As for `WeakView`.
        pixel_translation: Whether translations are at most 0.3 pixels, as in the authors' code.
        seed: Integer, or None for a random one.

    Reference:
        [Berthelot et al., 2020](https://arxiv.org/abs/1911.09785), section 3.2
    """

    def __init__(self, flip=True, max_shift=None, pixel_translation=False, *, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        self.flip, self.max_shift, self.pixel_translation = flip, max_shift, pixel_translation
        initial = ctaugment.initial_rates()
        self.rates = self.add_weight(
            initial.shape,
            lambda shape, dtype: ops.convert_to_tensor(initial, dtype),
            "float32",
            trainable=False,
            autocast=False,
            name="rates",
        )

    def view(self, images):
        return ctaugment.strong_view(
            images,
            self.seed_generator,
            self.rates.value,
            flip=self.flip,
            max_shift=self.max_shift,
            pixel_translation=self.pixel_translation,
        )

    def update(self, images, given_labels, predict):
        """Moves the rates toward how well a network recognizes distorted images.

        Two random operations distort each image. The rates of the magnitudes they used move toward
        the proximity of the prediction to the label, by 1 % for each image.

        Args:
            images: uint8 or float `(batch_size, height, width, channels)`, 0 to 255: weak views of
                labeled images. The batch size must be known in advance.
            given_labels: Integer `(batch_size,)`.
            predict: Function from distorted images, float32 of the shape of `images`, to class
                probabilities `(batch_size, num_classes)`. The authors take the averaged network.
        """
        images = ops.cast(images, "float32")
        probes, bins = ctaugment.probe(
            images, self.seed_generator, pixel_translation=self.pixel_translation
        )
        proximity = ctaugment.proximity(given_labels, predict(probes))
        self.rates.assign(ctaugment.updated_rates(self.rates.value, bins, proximity))

    def get_config(self):
        names = ("flip", "max_shift", "pixel_translation")
        return super().get_config() | {name: getattr(self, name) for name in names}


def _check_shape(name, images):
    shape = tuple(images.shape)
    if len(shape) != 4 or None in shape[1:] or shape[-1] not in (1, 3):
        raise UserError(
            f"{name} takes images of shape (batch_size, height, width, channels) with 1 or 3 "
            "channels, of which only the batch size may be unknown in advance. Received: shape "
            f"{shape}"
        )
