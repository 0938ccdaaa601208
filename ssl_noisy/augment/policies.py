# SPDX-License-Identifier: Apache-2.0
"""RandAugment in its published forms, with operations drawn per image."""

import dataclasses

import keras
import numpy as np
from keras import ops

from ssl_noisy.augment import operations
from ssl_noisy.augment.operations import GRAY
from ssl_noisy.augment.slots import Slots, slots_per_operation
from ssl_noisy.errors import UserError

# Color of the cutout operation in UDA's code, near CIFAR-10's mean color, by the number of
# channels; gray is the luma.
UDA_COLOR = {3: (125.0, 122.0, 113.0), 1: (122.0,)}
# Between the operations of a policy, a transparent pixel holds the values of its color minus 256.
OPAQUE = 256.0
TRANSPARENT_BLACK = 0.0 - OPAQUE


@dataclasses.dataclass(frozen=True)
class Policy:
    """One published form of RandAugment.

    Attributes:
        draws: Number of operations drawn for each image, with replacement.
        probability: Probability that a drawn operation is applied. The number of operations
            divided by it must be a whole number.
        magnitudes: Dict from operation to its range of magnitudes: an interval `(low, high)` if
            `continuous`, else 1, 2, 9 or 18 levels. Translations and cutouts are fractions of the
            image side.
        continuous: Whether magnitudes are drawn from intervals.
        warp_fill: Value of the pixels that a warp takes from outside the image.
            `TRANSPARENT_BLACK` becomes gray at the end, see `rand_augment`.
        cutout: `(low, high)` of the cutout side, as fractions of the shorter image side. None cuts
            nothing.
        weak_last: Whether flip and shift come last.
        torchssl_cutout: Whether the square is drawn as in TorchSSL's code (see `views.cutout`),
            with a side that is a fraction of the width.
    """

    draws: int
    probability: float
    magnitudes: dict
    continuous: bool
    warp_fill: float
    cutout: tuple | None
    weak_last: bool = False
    torchssl_cutout: bool = False


_LEVELS = range(1, 10)
_SIGNED = (*range(-9, 0), *range(1, 10))
_SHEARS = ("shear_x", "shear_y")
_SHIFTS = ("translate_x", "translate_y")
_ENHANCE = ("brightness", "color", "contrast", "sharpness")
_FREE = ("autocontrast", "equalize", "identity")
_CODE_MAGNITUDES = {
    "rotate": tuple(3 * level for level in _SIGNED),
    **dict.fromkeys(_SHEARS, tuple(0.03 * level for level in _SIGNED)),
    **dict.fromkeys(_SHIFTS, tuple(level / 32 for level in _SIGNED)),
    **dict.fromkeys(_ENHANCE, tuple(0.1 + 0.18 * level for level in _LEVELS)),
    "posterize": tuple(4 - 4 * level // 10 for level in _LEVELS),
    "solarize": tuple(256 - 256 * level // 10 for level in _LEVELS),
    **dict.fromkeys(_FREE, (0,)),
}
_UDA_MAGNITUDES = {
    **{name: levels for name, levels in _CODE_MAGNITUDES.items() if name != "identity"},
    "invert": (0,),
    "cutout": tuple(level / 16 for level in _LEVELS),
}
_PAPER_MAGNITUDES = {
    "rotate": (-30, 30),
    **dict.fromkeys((*_SHEARS, *_SHIFTS), (-0.3, 0.3)),
    **dict.fromkeys(_ENHANCE, (0.05, 0.95)),
    "posterize": (4, 8),
    "solarize": (0, 256),
    **dict.fromkeys(_FREE, (0, 0)),
}
_SCAN_MAGNITUDES = _PAPER_MAGNITUDES | dict.fromkeys((*_SHEARS, *_SHIFTS), (-0.1, 0.1))
# torchvision's `RandAugment(1, 6)`: a fifth of each range, at random with either sign.
_LSA_MAGNITUDES = {
    "rotate": (-6, 6),
    **dict.fromkeys(_SHEARS, (-0.06, 0.06)),
    **dict.fromkeys(_SHIFTS, (-30 / 331, 30 / 331)),
    **dict.fromkeys(_ENHANCE, (0.82, 1.18)),
    "posterize": (7,),
    "solarize": (204,),
    **dict.fromkeys(_FREE, (0,)),
}
RAND_AUGMENT = {
    "google_code": Policy(2, 0.5, _CODE_MAGNITUDES, False, TRANSPARENT_BLACK, (0.5, 0.5)),
    "paper": Policy(2, 1.0, _PAPER_MAGNITUDES, True, GRAY, (0.0, 0.5)),
    "torchssl": Policy(3, 1.0, _PAPER_MAGNITUDES, True, 0.0, (0.0, 0.5), True, True),
    "usb": Policy(3, 1.0, _PAPER_MAGNITUDES, True, 0.0, (0.0, 0.5), False, True),
    "uda": Policy(2, 0.5, _UDA_MAGNITUDES, False, TRANSPARENT_BLACK, (0.5, 0.5), True),
    "scan": Policy(4, 1.0, _SCAN_MAGNITUDES, True, 0.0, (0.0, 0.5)),
    "lsa": Policy(1, 1.0, _LSA_MAGNITUDES, False, 0.0, None),
}
POLICIES = tuple(RAND_AUGMENT)


def find(name):
    if name not in RAND_AUGMENT:
        raise UserError(f"Unknown policy {name!r}. Available: {', '.join(POLICIES)}.")
    return RAND_AUGMENT[name]


def rand_augment(images, seed, *, policy="google_code"):
    """Applies to each image operations of its own, drawn at random.

    Each draw deals the images to `Slots` for every operation and for no operation. Each image gets
    each operation with exactly the probability of the policy, and its draws are independent.

    In `google_code` and `uda`, pixels that a warp takes from outside the image and those of UDA's
    cutout operation are transparent. At the end they become gray 127. The next operation sees
    black there, or (125, 122, 113) in a cutout. If it is `autocontrast`, `equalize`, `invert`,
    `posterize` or `solarize`, it makes them opaque and they keep its result.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        policy: `"google_code"`, the FixMatch authors' code: 2 of 14
            operations, each applied with probability 1/2, levels 1 to 9 (without its
            conversion to bytes, which darkens 47 of the 256 values by 1);
            `"paper"`, the table in their paper: always applied, uniform
            magnitudes; `"torchssl"`: as the paper, but 3 operations, and
            warps fill with black instead of gray; `"usb"`, the same (they differ only in
            `strong_view`); `"uda"`, the UDA authors'
            code: as `google_code`, of 15 operations, with invert and cutout,
            and without identity; `"scan"`, the SCAN authors' code: as `torchssl`, but 4
            operations, with a third of the shears and translations; or `"lsa"`, torchvision's with
            1 operation and magnitude 6, as PLS-LSA has it, but for translations, which are not
            rounded to whole pixels before the warp.

    Returns:
        A float32 tensor of the same shape.

    Raises:
        ValueError: If `policy` is unknown or `images` has a wrong shape.

    Reference:
        [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719), with the ranges
        of [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), appendix D.
    """
    rules = find(policy)
    images = operations.checked(images)
    batch, height, width, _ = images.shape
    num_operations = round(len(rules.magnitudes) / rules.probability)  # or none, with the rest
    size = slots_per_operation(batch, num_operations)
    num_uniform = 4 if "cutout" in rules.magnitudes else 2
    shape = (num_uniform, rules.draws, num_operations * size)
    uniform = keras.random.uniform(shape, dtype="float32", seed=seed)
    slots = Slots(uniform[0], batch, size)
    magnitudes = _magnitudes(rules, uniform[1], size, height, width)
    for draw in range(rules.draws):
        results = _apply_operations(
            rules,
            slots,
            slots.deal(images, draw),
            magnitudes[draw],
            uniform[2:, draw],
            is_first=draw == 0,
        )
        images = slots.collect(results, draw)
    return ops.where(images < 0, GRAY, images) if rules.warp_fill < 0 else images


def _magnitudes(rules, uniform, size, height, width):
    """Turns `(draws, slots)` numbers in [0, 1) into a magnitude for each slot."""
    sides = {"translate_x": width, "translate_y": height, "cutout": min(height, width)}
    rows = {name: np.multiply(row, sides.get(name, 1)) for name, row in rules.magnitudes.items()}
    uniform = uniform[:, : len(rows) * size]
    if rules.continuous:
        low, high = np.repeat(list(rows.values()), size, axis=0).T.astype("float32")
        return low + (high - low) * uniform
    # Rows of 1, 2, 9 or 18 levels: repeating them to 18 keeps all equally likely.
    table = np.stack([np.resize(row, 18) for row in rows.values()]).astype("float32")
    first = np.repeat(18 * np.arange(len(rows), dtype="int32"), size)
    return ops.take(table.ravel(), first + ops.cast(18 * uniform, "int32"))


def _apply_operations(rules, slots, images, magnitudes, places, is_first):
    """Applies each operation to the images in its own slots, and none to the rest.

    `places`, numbers in [0, 1) of shape `(2, num_slots)`, are the places of cutouts. In the first
    draw no pixel is transparent yet.
    """
    sees_transparent = rules.warp_fill < 0 and not is_first
    names = list(rules.magnitudes)
    parts = {name: slots.of_operation(place) for place, name in enumerate(names)}
    # One gather for the five warps, whose slots come first.
    coefficients = [operations.rotation(magnitudes[parts["rotate"]], *images.shape[1:3])]
    coefficients += [
        operations.offset(name, magnitudes[parts[name]]) for name in operations.OFFSETS
    ]
    warps = len(coefficients)
    warped = operations.warp(
        images[: warps * slots.size], ops.concatenate(coefficients), rules.warp_fill
    )
    results = [warped]
    for name in names[warps:]:
        part, magnitude = images[parts[name]], magnitudes[parts[name]]
        if name == "cutout":
            fill = np.subtract(UDA_COLOR[images.shape[-1]], OPAQUE)
            results.append(operations.cut(part, magnitude, places[:, parts[name]], fill))
        elif sees_transparent and name != "identity":
            results.append(_on_transparent(name, part, magnitude))
        else:
            results.append(operations.OPERATIONS[name](part, magnitude))
    return ops.concatenate([*results, images[len(names) * slots.size :]])


def _on_transparent(name, images, magnitude):
    """Applies an operation, but not a warp, to images with transparent pixels.

    The operation sees their color. As in Pillow, operations of `ImageEnhance` keep pixels
    transparent; the others convert to RGB, without transparency.
    """
    transparent = images < 0
    results = operations.OPERATIONS[name](
        ops.where(transparent, images + OPAQUE, images), magnitude
    )
    return ops.where(transparent, results - OPAQUE, results) if name in _ENHANCE else results
