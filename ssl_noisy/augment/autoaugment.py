# SPDX-License-Identifier: Apache-2.0
"""AutoAugment's policy for CIFAR-10: 25 pairs of operations, of which each image draws one."""

import itertools

import keras
import numpy as np
from keras import ops

from ssl_noisy.augment import operations
from ssl_noisy.augment.slots import Slots, slots_per_operation

FILL = 128.0  # of the pixels that a warp takes from outside the image
# Operation, probability and level, 0 to 9.
CIFAR = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
_WARPS = ("rotate", *operations.OFFSETS)


def auto_augment(images, seed):
    """Applies to each image a pair of operations of its own, as AutoAugment found for CIFAR-10.

    Each image draws one of the 25 pairs of `CIFAR`. Each operation of a pair has a probability of
    its own. Shears, translations, brightness, color, contrast and sharpness go either way.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        [Cubuk et al., 2018](https://arxiv.org/abs/1805.09501), appendix A, with the magnitudes of
        DeepVoltaire/AutoAugment, which the code of UNICON and CrossSplit uses. As there, rotations
        are counterclockwise. Its shears are bicubic; here they take the nearest pixel.
    """
    images = operations.checked(images)
    size = slots_per_operation(images.shape[0], len(CIFAR))
    uniform = keras.random.uniform((5, len(CIFAR) * size), dtype="float32", seed=seed)
    slots = Slots(uniform[:1], images.shape[0], size)
    dealt = slots.deal(images, 0)
    for draw in range(2):
        dealt = _applied(draw, dealt, uniform[1 + draw], uniform[3 + draw], size)
    return slots.collect(dealt, 0)


def _applied(draw, images, chances, signs, size):
    """Applies the first or the second operations of all pairs to the images in their slots."""
    # Equal operations side by side, so that each is traced once, and the warps first.
    steps = [pair[draw] for pair in CIFAR]
    order = sorted(range(len(CIFAR)), key=lambda k: (steps[k][0] not in _WARPS, steps[k]))
    slots = (size * np.array(order)[:, None] + np.arange(size)).ravel()
    steps = [steps[k] for k in order]
    before = ops.take(images, slots, axis=0)
    low, high = (
        np.repeat([_magnitude(*step, way, images.shape) for step in steps], size) for way in (-1, 1)
    )
    is_high = ops.take(signs, slots) < 0.5
    magnitudes = ops.where(is_high, high.astype("float32"), low.astype("float32"))
    coefficients, results, first = [], [], 0
    for name, group in itertools.groupby(steps, key=lambda step: step[0]):
        part = slice(first, first + size * len(list(group)))
        if name == "rotate":
            coefficients.append(operations.rotation(magnitudes[part], *images.shape[1:3]))
        elif name in _WARPS:
            coefficients.append(operations.offset(name, magnitudes[part]))
        else:
            results.append(operations.OPERATIONS[name](before[part], magnitudes[part]))
        first = part.stop
    coefficients = ops.concatenate(coefficients)
    warped = operations.warp(before[: coefficients.shape[0]], coefficients, FILL)
    after = ops.concatenate([warped, *results])
    probabilities = np.repeat([chance for _, chance, _ in steps], size).astype("float32")
    is_applied = ops.take(chances, slots) < probabilities
    after = ops.where(operations.per_image(is_applied), after, before)
    return ops.take(after, np.argsort(slots), axis=0)


def _magnitude(name, _, level, way, shape):
    """Returns the magnitude of a step; `way` is -1 or 1, where there are two."""
    share = level / 9
    one_way = {"rotate": 30 * share, "posterize": round(8 - 4 * share)}
    one_way["solarize"] = 256 - 256 * share
    two_ways = {
        **dict.fromkeys(("shear_x", "shear_y"), 0.3 * share * way),
        "translate_x": 150 / 331 * share * way * shape[2],
        "translate_y": 150 / 331 * share * way * shape[1],
        **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 1 + 0.9 * share * way),
    }
    return (one_way | two_ways).get(name, 0)
