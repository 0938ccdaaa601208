# SPDX-License-Identifier: Apache-2.0
"""Slots: operations drawn per image, each run only on the images that drew it."""

from keras import ops


class Slots:
    """Deals the images of a batch to equally many slots per operation, in random order.

    Shapes stay static, and each operation costs its share of the batch rather than all of it.
    Each image meets each operation with equal probability, draws are independent, and in a batch
    every operation comes about equally often.

    Args:
        uniform: Tensor of shape `(draws, num_operations * size)`, random numbers in [0, 1): in
            each draw, their order decides which slot an image gets.
        num_images: Integer, the size of the batch, at most `num_operations * size`.
        size: Integer, the number of slots of an operation, as from `slots_per_operation`.
    """

    def __init__(self, uniform, num_images, size):
        self.num_images, self.size = num_images, size
        self.image_of_slot = ops.argsort(uniform, axis=-1)
        self.slot_of_image = ops.argsort(self.image_of_slot, axis=-1)[:, :num_images]

    def deal(self, images, draw):
        """Returns the images in the slots of a draw: those of the first operation come first."""
        # Slots beyond the batch repeat some image; `collect` drops them.
        return ops.take(images, self.image_of_slot[draw] % self.num_images, axis=0)

    def collect(self, values, draw):
        """Returns the slots' values in the order of the images; inverse of `deal`."""
        return ops.take(values, self.slot_of_image[draw], axis=0)

    def of_operation(self, place):
        """Returns the slice of the slots of the operation at a place in the policy's order."""
        return slice(place * self.size, (place + 1) * self.size)


def slots_per_operation(num_images, num_operations):
    """Returns the least number of slots per operation that hold all images."""
    return -(-num_images // num_operations)
