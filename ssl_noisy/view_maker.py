# SPDX-License-Identifier: Apache-2.0
"""Weak and strong views of all images of a data set, made once: those of frozen features."""

import dataclasses

import keras
import numpy as np
from keras import ops

from ssl_noisy import augment
from ssl_noisy.weak_views import geometry, kind_of, strong_geometry

BLOCK = 16  # images whose views are made together
WEAK = ("auto", "flip_shift", "shift", "crop", "jitter")  # those that do not depend on the step


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Which views there are of each image.

    Attributes:
        count: Positive integer, the number of weak views, and of strong ones.
        weak_augmentation: One of `WEAK`.
        strong_augmentation: One of `augment.STRONG_VIEWS`.
        seed: Non-negative integer.
    """

    count: int
    weak_augmentation: str = "auto"
    strong_augmentation: str = "google_code"
    seed: int = 0

    def describe(self):
        """Returns the recipe as text."""
        return (
            f"{self.count} weak views ({self.weak_augmentation}) and {self.count} strong views "
            f"({self.strong_augmentation}) of each, seed {self.seed}"
        )


class ViewMaker(keras.Model):
    """Makes the views of a `Recipe` in a compiled step, `BLOCK` images at a time.

    Args:
        recipe: The `Recipe`.
        flip: Whether a mirrored image keeps its class.
    """

    def __init__(self, recipe, flip):
        super().__init__()
        self.recipe = recipe
        self.kind, self.flip = kind_of(recipe.weak_augmentation, flip), flip
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, images):
        recipe, height = self.recipe, images.shape[1]
        images = ops.reshape(ops.cast(images, "float32"), (BLOCK, *images.shape[1:]))
        copies = ops.repeat(images, recipe.count, axis=0)
        weak = copies
        if self.kind == "jitter":
            weak = augment.color_jitter(weak, self.seed_generator)
        weak = augment.weak_view(
            weak, self.seed_generator, **geometry(self.kind, self.flip, height)
        )
        strong = augment.strong_view(
            copies,
            self.seed_generator,
            policy=recipe.strong_augmentation,
            **strong_geometry(self.kind, self.flip, height),
        )
        shape = (BLOCK, recipe.count, *images.shape[1:])
        views = [ops.reshape(one, shape) for one in (weak, strong)]
        return ops.round(ops.clip(ops.concatenate(views, axis=1), 0, 255))

    def make(self, images, start):
        """Returns the views of a block of images, which depend on the seed and `start` alone.

        Args:
            images: uint8 array `(n, height, width, channels)`, n at most `BLOCK`.
            start: Integer, the position of the first image, a multiple of `BLOCK`.

        Returns:
            A uint8 array `(n, 2 * count, height, width, channels)`, the weak views first.
        """
        batch = np.zeros((BLOCK, *images.shape[1:]), np.uint8)
        batch[: len(images)] = images
        state = np.random.SeedSequence([self.recipe.seed, start]).generate_state(2)
        self.seed_generator.state.assign(state)
        return np.asarray(self.predict_on_batch(batch))[: len(images)].astype(np.uint8)
