# SPDX-License-Identifier: Apache-2.0
"""Random views of images: weak, RandAugment and cutout, drawn per image.

Everything is `keras.ops` on whole batches with static shapes, so a view is a
part of the compiled training step. Images are float tensors of shape
`(batch, height, width, channels)` with 1 or 3 channels that hold whole numbers
from 0 to 255; every function returns such a float32 tensor, whatever the
precision policy. The operations compute what Pillow computes: operations on
single pixel values, and sharpness, give the same numbers; warps take the same
source pixel.
"""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops
from scipy import special

from ssl_noisy.errors import UserError

GRAY = 127.0
# Colors of the cutout in TorchSSL's code, and of the operation in UDA's: near CIFAR-10's mean
# color. From the number of channels; gray is the luma.
TORCHSSL_COLOR = {3: (125.0, 123.0, 114.0), 1: (123.0,)}
UDA_COLOR = {3: (125.0, 122.0, 113.0), 1: (122.0,)}
# Between the operations of a policy, a transparent pixel has the values of its color less 256.
OPAQUE = 256.0
TRANSPARENT_BLACK = 0.0 - OPAQUE


@dataclasses.dataclass(frozen=True)
class Policy:
    """One published form of RandAugment.

    Attributes:
        draws: How many operations are drawn for each image, with replacement.
        probability: Probability that a drawn operation is applied; the number of
            operations divided by it is a whole number.
        magnitudes: From operation to what its magnitude is drawn from: the
            `(low, high)` of an interval if `continuous`, else 1, 9 or 18
            levels. Translations and cutouts are shares of the image side.
        continuous: Whether magnitudes are drawn from intervals.
        warp_fill: Value of the pixels that a warp takes from outside. `TRANSPARENT_BLACK`
            ends as gray, see `rand_augment`.
        cutout: `(low, high)` of the cutout side, as shares of the shorter image side.
        weak_last: Whether the flip and the shift come after all that.
        torchssl_cutout: Whether the square is drawn as in TorchSSL's code, see `cutout`. Its
            side is then a share of the width.
    """

    draws: int
    probability: float
    magnitudes: dict
    continuous: bool
    warp_fill: float
    cutout: tuple
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
RAND_AUGMENT = {
    "google_code": Policy(2, 0.5, _CODE_MAGNITUDES, False, TRANSPARENT_BLACK, (0.5, 0.5)),
    "paper": Policy(2, 1.0, _PAPER_MAGNITUDES, True, GRAY, (0.0, 0.5)),
    "torchssl": Policy(3, 1.0, _PAPER_MAGNITUDES, True, 0.0, (0.0, 0.5), True, True),
    "usb": Policy(3, 1.0, _PAPER_MAGNITUDES, True, 0.0, (0.0, 0.5), False, True),
    "uda": Policy(2, 0.5, _UDA_MAGNITUDES, False, TRANSPARENT_BLACK, (0.5, 0.5), True),
}
POLICIES = tuple(RAND_AUGMENT)


def weak_view(images, seed, *, flip=True, max_shift=None):
    """Flips and shifts each image at random.

    The shift is a crop from the image padded by reflection.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        flip: Whether to mirror each image left to right with probability 1/2.
        max_shift: Integer, largest shift along each axis in pixels, below the
            shorter side. `None` means an eighth of the height: 4 of 32.

    Returns:
        A float32 tensor of the same shape.

    Raises:
        ValueError: If the shape of `images` or `max_shift` is out of range.
    """
    images = _checked(images)
    batch, height, width, _ = images.shape
    max_shift = height // 8 if max_shift is None else max_shift
    if not 0 <= max_shift < min(height, width):
        raise UserError(
            "The `max_shift` argument of `weak_view` must be at least 0 and below the "
            f"shorter image side, {min(height, width)}. Received: max_shift={max_shift}"
        )
    uniform = keras.random.uniform((3, batch, 1), dtype="float32", seed=seed)
    shift = ops.floor((2 * max_shift + 1) * uniform[:2]) - max_shift
    rows = _reflect(_positions(height) + shift[0], height)
    columns = _reflect(_positions(width) + shift[1], width)
    if flip:
        columns = ops.where(uniform[2] < 0.5, width - 1 - columns, columns)
    return _take_pixels(images, rows[:, :, None], columns[:, None, :])


def alternating_flip(images, indices, epoch):
    """Mirrors each image left to right in every other epoch.

    Whether an image is mirrored in the even or in the odd epochs is a fixed
    pseudo-random bit of its index, so that two successive epochs show both
    sides of every image and each epoch mirrors about half of the images.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        indices: Integer tensor of shape `(batch,)`.
        epoch: Integer or integer tensor, a scalar or of shape `(batch,)`.

    Returns:
        A float32 tensor of the same shape as `images`.

    Reference:
        [Jordan, 2024](https://arxiv.org/abs/2404.00498). The bit is from MD5
        there, and here from the finalizer of MurmurHash3.
    """
    images = _checked(images)
    bits = ops.cast(indices, "uint32")
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ops.bitwise_xor(bits, ops.right_shift(bits, shift))
        bits = bits * ops.convert_to_tensor(np.uint32(factor))
    bits = ops.bitwise_xor(bits, ops.right_shift(bits, 16))
    parity = (ops.cast(bits & 1, "int32") + ops.cast(epoch, "int32")) % 2
    return ops.where(_per_image(parity) == 1, ops.flip(images, axis=2), images)


def strong_view(images, seed, *, policy="google_code", flip=True, max_shift=None):
    """Makes a strong view: weak view, RandAugment, cutout, in this order.

    Args:
        images, seed, flip, max_shift: As in `weak_view`; this draws its own.
        policy: One of `POLICIES`, see `rand_augment`. The side of the gray cutout square is
            half the shorter image side (`google_code`, `uda`) or uniform below that (`paper`).
            `torchssl` and `usb` draw it as TorchSSL's code, see `cutout`, with a side that is
            uniform below half the width: of 32x32 pixels it covers 85 on average, and
            that of `paper` 64. `uda` and `torchssl` make the weak view last.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), section 2.3;
        [Xie et al., 2019](https://arxiv.org/abs/1904.12848), appendix.
    """
    rules = _policy(policy)
    if not rules.weak_last:
        images = weak_view(images, seed, flip=flip, max_shift=max_shift)
    images = rand_augment(images, seed, policy=policy)
    side = images.shape[2] if rules.torchssl_cutout else min(images.shape[1:3])
    size = tuple(share * side for share in rules.cutout)
    images = cutout(images, seed, size=size, torchssl=rules.torchssl_cutout)
    if rules.weak_last:
        images = weak_view(images, seed, flip=flip, max_shift=max_shift)
    return images


def rand_augment(images, seed, *, policy="google_code"):
    """Applies to each image operations of its own, drawn at random.

    Each draw puts the images, in random order, into equally many slots for
    every operation and for being left alone; an operation runs on its slots
    only. So each image meets each operation with exactly the probability of
    the policy, its draws are independent, and in a batch each operation comes
    about equally often.

    In `google_code` and `uda` the pixels that a warp takes from outside, and those of UDA's
    cutout operation, are transparent. At the end they become gray 127. The next operation sees
    them black, those of the cutout (125, 122, 113); and if it is `autocontrast`, `equalize`,
    `invert`, `posterize` or `solarize`, it makes them opaque: then they keep its result.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        policy: `"google_code"`, the FixMatch authors' code: 2 of 14
            operations, each applied with probability 1/2, levels 1 to 9 (its conversion to
            bytes, which darkens 47 of the 256 values by 1, is not repeated);
            `"paper"`, the table in their paper: always applied, uniform
            magnitudes; `"torchssl"`: as the paper, but 3 operations, and
            warps fill with black instead of gray, and `"usb"` the same (they differ in
            `strong_view`); or `"uda"`, the UDA authors'
            code: as `google_code`, of 15 operations, with invert and cutout,
            and without identity.

    Returns:
        A float32 tensor of the same shape.

    Raises:
        ValueError: If `policy` is unknown or `images` has a wrong shape.

    Reference:
        [Cubuk et al., 2019](https://arxiv.org/abs/1909.13719), with the ranges
        of [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), appendix D.
    """
    rules = _policy(policy)
    images = _checked(images)
    batch, height, width, _ = images.shape
    groups = round(len(rules.magnitudes) / rules.probability)
    size = -(-batch // groups)
    shape = (4 if "cutout" in rules.magnitudes else 2, rules.draws, groups * size)
    uniform = keras.random.uniform(shape, dtype="float32", seed=seed)
    image_of_slot = ops.argsort(uniform[0], axis=-1)
    slot_of_image = ops.argsort(image_of_slot, axis=-1)[:, :batch]
    magnitudes = _magnitudes(rules, uniform[1], size, height, width)
    for draw in range(rules.draws):
        # Slots beyond the batch hold some image once more; nothing reads them.
        slots = ops.take(images, image_of_slot[draw] % batch, axis=0)
        slots = _apply_operations(
            rules, slots, magnitudes[draw], size, uniform[2:, draw], is_first=draw == 0
        )
        images = ops.take(slots, slot_of_image[draw], axis=0)
    return ops.where(images < 0, GRAY, images) if rules.warp_fill < 0 else images


def cutout(images, seed, *, size, fill=GRAY, torchssl=False):
    """Fills a square at a random place of each image.

    The center is uniform over the image, so the square may be clipped.

    With `torchssl` the square is drawn as in the code of TorchSSL and USB: from a corner that is
    moved inside the image, its last row and column included. So its side is rounded up, and only
    the lower and the right border clip it. Its color is (125, 123, 114), and on gray images, which
    that code does not take, 123.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        size: Side of the square in pixels, or a pair: then the side is uniform
            in `[low, high)`, rounded down, for each image. Numbers, or tensors of
            shape `(batch,)`.
        fill: Value of the pixels in the square. `torchssl` has its own.
        torchssl: Whether to draw the square as TorchSSL's code does.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552).
    """
    images = _checked(images)
    low, high = size if isinstance(size, (tuple, list)) else (size, size)
    uniform = keras.random.uniform((3, images.shape[0]), dtype="float32", seed=seed)
    size = low + (high - low) * uniform[2]
    if not torchssl:
        return _cut(images, size, uniform[:2], fill)
    height, width, channels = images.shape[1:]
    rows, columns = (
        ops.floor(ops.maximum(side * place - size / 2, 0))
        for side, place in ((height, uniform[0]), (width, uniform[1]))
    )
    return _fill_squares(images, rows, columns, ops.floor(size) + 1, TORCHSSL_COLOR[channels])


def color_jitter(images, seed, *, strength=0.4, max_turn=0.1):
    """Changes brightness, contrast, saturation and hue of each image at random, in this order.

    Gray images have no saturation and no hue to change.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        strength: Float in [0, 1]: the three factors are uniform in 1 -+ this.
        max_turn: Float in [0, 0.5]: the hue turns by a uniform share of the color circle
            in -+ this.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        `ColorJitter` of torchvision, which draws the order of the four for each image, and
        rounds colors to bytes in HSV too.
    """
    images = _checked(images)
    uniform = keras.random.uniform((4, images.shape[0]), dtype="float32", seed=seed)
    factors = 1 + strength * (2 * uniform - 1)
    images = contrast(brightness(images, factors[0]), factors[1])
    if images.shape[-1] == 1:
        return images
    hsv = ops.image.rgb_to_hsv(color(images, factors[2]) / 255)
    turn = _per_image(max_turn * (2 * uniform[3] - 1))
    hsv = ops.concatenate([(hsv[..., :1] + turn) % 1.0, hsv[..., 1:]], axis=-1)
    return ops.round(ops.clip(255 * ops.image.hsv_to_rgb(hsv), 0, 255))


def mixup(images, soft_labels, seed, *, alpha, per_image=False, keep_larger=False):
    """Mixes each image and its label with those of another of the batch.

    Args:
        images: Float tensor of shape `(batch, height, width, channels)`.
        soft_labels: Float tensor of shape `(batch, num_classes)`.
        seed, alpha, per_image, keep_larger: As `mixing`.

    Returns:
        A tuple of mixed images and labels, float32, of the same shapes.

    Reference:
        [Zhang et al., 2018](https://arxiv.org/abs/1710.09412), section 2.
    """
    partners, shares = mixing(
        images.shape[0], seed, alpha=alpha, per_image=per_image, keep_larger=keep_larger
    )
    return mix(images, partners, shares), mix(soft_labels, partners, shares)


def mixing(size, seed, *, alpha, per_image=False, keep_larger=False):
    """Draws which other example each of a batch is mixed with, and its own share.

    Args:
        size: Positive integer, the size of the batch.
        seed: A `keras.random.SeedGenerator`; its state advances.
        alpha: Float >= 0. Shares are drawn from Beta(alpha, alpha); 0 mixes nothing.
        per_image: Whether a share is drawn for each image rather than one for the batch.
        keep_larger: Whether a share is replaced by max(share, 1 - share), so that the own image
            prevails ([Berthelot et al., 2019](https://arxiv.org/abs/1905.02249), equation 9).

    Returns:
        A tuple `(partners, shares)` for `mix`: int32 `(size,)`, the batch in random order, and
        float32 `(size,)` in [0, 1].
    """
    if alpha == 0:
        return ops.arange(size, dtype="int32"), ops.ones((size,), "float32")
    uniform = keras.random.uniform((2, size), dtype="float32", seed=seed)
    shares = _beta_quantile(uniform[0] if per_image else ops.repeat(uniform[0, :1], size), alpha)
    if keep_larger:
        shares = ops.maximum(shares, 1 - shares)
    return ops.cast(ops.argsort(uniform[1]), "int32"), shares


def mix(values, partners, shares):
    """Returns `shares * values + (1 - shares) * values[partners]`, row by row, in float32."""
    values = ops.cast(values, "float32")
    shares = ops.reshape(shares, (-1, *[1] * (len(values.shape) - 1)))
    return shares * values + (1 - shares) * ops.take(values, partners, axis=0)


def rotate(images, degrees, fill=GRAY):
    """Turns each image counterclockwise by `degrees`, of shape `(batch,)`."""
    images = _checked(images)
    return _warp(images, _rotation(degrees, *images.shape[1:3]), fill)


def shear_x(images, factor, fill=GRAY):
    """Takes pixel x from x + `factor` * y; `factor` has shape `(batch,)`."""
    return _warp(_checked(images), _offset("shear_x", factor), fill)


def shear_y(images, factor, fill=GRAY):
    """Takes pixel y from y + `factor` * x; `factor` has shape `(batch,)`."""
    return _warp(_checked(images), _offset("shear_y", factor), fill)


def translate_x(images, pixels, fill=GRAY):
    """Moves each image to the left by `pixels`, of shape `(batch,)`."""
    return _warp(_checked(images), _offset("translate_x", pixels), fill)


def translate_y(images, pixels, fill=GRAY):
    """Moves each image up by `pixels`, of shape `(batch,)`."""
    return _warp(_checked(images), _offset("translate_y", pixels), fill)


def blend(degenerate, images, factor):
    """Computes PIL's `Image.blend` to the last bit; `factor` has shape `(batch,)`."""
    change = _per_image(factor) * (images - degenerate)
    # The clip changes nothing. It keeps XLA from fusing the product and the sum into
    # one rounding, where PIL rounds twice.
    return ops.clip(ops.floor(degenerate + ops.clip(change, -1e6, 1e6)), 0, 255)


def brightness(images, factor):
    """Blends with black: 0 is black, 1 changes nothing. As `ImageEnhance`."""
    images = _checked(images)
    return blend(ops.zeros_like(images), images, factor)


def color(images, factor):
    """Blends with the gray image; changes nothing if there is one channel."""
    images = _checked(images)
    return blend(_luma(images), images, factor)


def contrast(images, factor):
    """Blends with the rounded mean of the gray image. As `ImageEnhance`."""
    images = _checked(images)
    area = images.shape[1] * images.shape[2]
    total = ops.sum(_luma(images), axis=(1, 2, 3), keepdims=True)
    # A quarter changes no whole result, and outweighs the rounding of `/`.
    mean = ops.floor((total + area / 2 + 0.25) / area)
    return blend(mean, images, factor)


def sharpness(images, factor):
    """Blends with PIL's SMOOTH filter, which leaves the border as it is."""
    images = _checked(images)
    if 1 in images.shape[1:3]:  # all border
        return blend(images, images, factor)
    inner = images[:, 1:-1, 1:-1]
    total = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    total = total[:, :, :-2] + total[:, :, 1:-1] + total[:, :, 2:] + 4 * inner
    change = ops.floor((total + 6.5) / 13) - inner
    smooth = images + ops.pad(change, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return blend(smooth, images, factor)


def posterize(images, bits):
    """Keeps the upper `bits` (0 to 8, rounded down) of each pixel."""
    step = ops.take(2.0 ** np.arange(8, -1, -1, dtype="float32"), ops.cast(bits, "int32"))
    step = _per_image(step)
    return ops.floor(_checked(images) / step) * step


def solarize(images, threshold):
    """Inverts the pixels that are not below `threshold`, of shape `(batch,)`."""
    images = _checked(images)
    return ops.where(images < _per_image(threshold), images, 255 - images)


def invert(images):
    """Turns each pixel into 255 minus it."""
    return 255 - _checked(images)


def autocontrast(images):
    """Stretches each channel of each image to the range 0 to 255."""
    images = _checked(images)
    low = ops.min(images, axis=(1, 2), keepdims=True)
    high = ops.max(images, axis=(1, 2), keepdims=True)
    span = ops.maximum(high - low, 1)
    stretched = 255 * (images - low)
    quotient = _divide(stretched, span)
    flaws = ops.take(_autocontrast_flaws(), ops.cast(256 * low + high, "int32"))
    flawed = ops.right_shift(flaws, ops.cast(ops.floor(quotient / 15), "int32")) & 1
    flawed = ops.where(quotient * span == stretched, ops.cast(flawed, "float32"), 0.0)
    return ops.where(high > low, quotient - flawed, images)


def equalize(images):
    """Equalizes the histogram of each channel of each image.

    An image of fewer than 256 pixels comes back as it is, as from PIL.
    """
    images = _checked(images)
    batch, height, width, channels = images.shape
    pixels = ops.reshape(ops.transpose(images, (0, 3, 1, 2)), (batch * channels, -1))
    # A pixel is 16 * high + low: the product of the two one-hot codes counts
    # the pairs.
    digits = np.arange(16, dtype="float32")
    high = ops.floor(pixels / 16)[..., None]
    low = pixels[..., None] - 16 * high
    high, low = (ops.cast(part == digits, "float32") for part in (high, low))
    histogram = ops.matmul(ops.transpose(high, (0, 2, 1)), low)
    histogram = ops.reshape(histogram, (-1, 256))
    below = ops.cumsum(histogram, axis=-1) - histogram
    brightest = ops.cast(pixels == ops.max(pixels, axis=-1, keepdims=True), "float32")
    others = height * width - ops.sum(brightest, axis=-1, keepdims=True)
    step = _divide(others, 255.0)
    table = _divide(ops.floor(step / 2) + below, ops.maximum(step, 1))
    table = ops.where(step > 0, ops.minimum(table, 255), np.arange(256, dtype="float32"))
    first = 256 * np.arange(batch * channels, dtype="int32").reshape(batch, 1, 1, channels)
    return ops.take(ops.reshape(table, (-1,)), ops.cast(images, "int32") + first)


# Which of the six coefficients of a warp the magnitude goes to.
_OFFSETS = {"shear_x": 1, "shear_y": 3, "translate_x": 2, "translate_y": 5}
_OPERATIONS = {
    "brightness": brightness,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": lambda images, _: autocontrast(images),
    "equalize": lambda images, _: equalize(images),
    "invert": lambda images, _: invert(images),
    "identity": lambda images, _: images,
}


def _checked(images):
    """Returns `images` as float32 after a check of the shape."""
    shape = tuple(images.shape)
    if len(shape) != 4 or None in shape or shape[-1] not in (1, 3):
        raise UserError(
            "`images` must have a static shape (batch, height, width, channels) "
            f"with 1 or 3 channels. Received: images.shape={shape}"
        )
    return ops.cast(images, "float32")


def _policy(name):
    if name not in RAND_AUGMENT:
        raise UserError(f"Unknown policy {name!r}. Available: {', '.join(POLICIES)}.")
    return RAND_AUGMENT[name]


def _magnitudes(rules, uniform, size, height, width):
    """Turns `(draws, slots)` numbers in [0, 1) into a magnitude for each slot."""
    sides = {"translate_x": width, "translate_y": height, "cutout": min(height, width)}
    rows = {name: np.multiply(row, sides.get(name, 1)) for name, row in rules.magnitudes.items()}
    uniform = uniform[:, : len(rows) * size]
    if rules.continuous:
        low, high = np.repeat(list(rows.values()), size, axis=0).T.astype("float32")
        return low + (high - low) * uniform
    # Rows of 1, 9 or 18 levels: repeating them to 18 keeps all equally likely.
    table = np.stack([np.resize(row, 18) for row in rows.values()]).astype("float32")
    first = np.repeat(18 * np.arange(len(rows), dtype="int32"), size)
    return ops.take(table.ravel(), first + ops.cast(18 * uniform, "int32"))


def _apply_operations(rules, slots, magnitudes, size, places, is_first):
    """Applies each operation to its own `size` slots, and none to the rest.

    `places`, numbers in [0, 1) of shape `(2, slots)`, are where cutouts go. Before the first
    draw no pixel is transparent.
    """
    sees_transparent = rules.warp_fill < 0 and not is_first
    names = list(rules.magnitudes)
    parts = {name: slice(i * size, (i + 1) * size) for i, name in enumerate(names)}
    # One gather for the five warps, whose slots come first.
    coefficients = [_rotation(magnitudes[parts["rotate"]], *slots.shape[1:3])]
    coefficients += [_offset(name, magnitudes[parts[name]]) for name in _OFFSETS]
    warps = len(coefficients)
    results = [_warp(slots[: warps * size], ops.concatenate(coefficients), rules.warp_fill)]
    for name in names[warps:]:
        part, magnitude = slots[parts[name]], magnitudes[parts[name]]
        if name == "cutout":
            fill = np.subtract(UDA_COLOR[slots.shape[-1]], OPAQUE)
            results.append(_cut(part, magnitude, places[:, parts[name]], fill))
        elif sees_transparent and name != "identity":
            results.append(_on_transparent(name, part, magnitude))
        else:
            results.append(_OPERATIONS[name](part, magnitude))
    return ops.concatenate([*results, slots[len(names) * size :]])


def _on_transparent(name, images, magnitude):
    """Applies an operation, not a warp, to images of which some pixels are transparent.

    It sees their color. As in Pillow, those of `ImageEnhance` leave them transparent; the others
    are of RGB images, without transparency.
    """
    transparent = images < 0
    results = _OPERATIONS[name](ops.where(transparent, images + OPAQUE, images), magnitude)
    return ops.where(transparent, results - OPAQUE, results) if name in _ENHANCE else results


def _beta_quantile(uniform, alpha):
    """Turns uniform numbers into draws from Beta(alpha, alpha), by a table of 4096 quantiles.

    XLA has no gamma distribution on TensorFlow, which `keras.random.beta` draws from.
    """
    table = special.betaincinv(alpha, alpha, np.linspace(0, 1, 4097)).astype("float32")
    place = 4096 * uniform
    low = ops.cast(ops.floor(place), "int32")
    low = ops.minimum(low, 4095)
    below, above = ops.take(table, low), ops.take(table, low + 1)
    return below + (place - ops.cast(low, "float32")) * (above - below)


def _cut(images, size, places, fill):
    """Fills squares of `size` pixels, rounded down, around `places`, shares of height and width."""
    size = ops.floor(size)
    rows, columns = (
        ops.floor(side * place) - ops.floor(size / 2)
        for side, place in zip(images.shape[1:3], (places[0], places[1]))
    )
    return _fill_squares(images, rows, columns, size, fill)


def _fill_squares(images, rows, columns, size, fill):
    """Fills squares of `size` pixels whose first row and column are given, all `(batch,)`."""

    def covered(side, first):
        distance = _positions(side) - first[:, None]
        return ops.logical_and(distance >= 0, distance < size[:, None])

    in_row, in_column = covered(images.shape[1], rows), covered(images.shape[2], columns)
    square = ops.logical_and(in_row[:, :, None], in_column[:, None, :])
    return ops.where(square[..., None], np.array(fill, "float32"), images)


def _warp(images, coefficients, fill):
    """Takes pixel (x, y) from (a x + b y + c, d x + e y + f), as PIL's AFFINE.

    As in PIL coefficients have 16 binary places, so float32 is exact up to 256 pixels.
    """
    _, height, width, _ = images.shape
    a, b, c, d, e, f = (part[:, None, None] for part in ops.unstack(coefficients, axis=1))
    fixed = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    a, b, c, d, e, f = (ops.floor(65536 * value + 0.5) / 65536 for value in fixed)
    x, y = _positions(width), _positions(height)[:, None]
    columns, rows = ops.floor(a * x + b * y + c), ops.floor(d * x + e * y + f)
    nearest_column = ops.clip(columns, 0, width - 1)
    nearest_row = ops.clip(rows, 0, height - 1)
    inside = ops.logical_and(columns == nearest_column, rows == nearest_row)
    warped = _take_pixels(images, nearest_row, nearest_column)
    return ops.where(inside[..., None], warped, float(fill))


def _rotation(degrees, height, width):
    radians = ops.cast(degrees, "float32") * (np.pi / 180)
    cos, sin = ops.cos(radians), ops.sin(radians)
    c = (width - cos * width + sin * height) / 2
    f = (height - sin * width - cos * height) / 2
    return ops.stack([cos, -sin, c, sin, cos, f], axis=-1)


def _offset(name, magnitude):
    identity, units = np.array([1, 0, 0, 0, 1, 0], "float32"), np.eye(6, dtype="float32")
    return identity + ops.cast(magnitude, "float32")[:, None] * units[_OFFSETS[name]]


def _luma(images):
    """Returns PIL's conversion to gray, one channel."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return ops.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


@functools.cache
def _autocontrast_flaws():
    """Lists where PIL's autocontrast falls one short of the exact quotient.

    In double arithmetic `value * scale + offset` can miss a whole number q by
    an ulp, for one in seven pairs (low, high) even at q = 255. Bit `q // 15`
    of entry `256 * low + high` says that it does; all such q are multiples of
    15 or 17.
    """
    low, high = np.ogrid[:256, :256]
    span = np.maximum(high - low, 1)
    scale = 255.0 / span
    flaws = np.zeros((256, 256), "int32")
    for quotient in {*range(15, 256, 15), *range(17, 256, 17)}:
        above, rest = np.divmod(quotient * span, 255)
        pillow = ((low + above) * scale + -low * scale).astype("int32")
        flawed = (high > low) & (rest == 0) & (pillow < quotient)
        flaws |= flawed.astype("int32") << (quotient // 15)
    return flaws.ravel()


def _divide(dividend, divisor):
    """Divides whole numbers, rounding down, safely for inexact float division."""
    return ops.floor((dividend + 0.5) / divisor)


def _take_pixels(images, rows, columns):
    """Gathers pixels by whole row and column numbers that broadcast to `(batch, height, width)`."""
    batch, height, width, channels = images.shape
    first = height * width * np.arange(batch, dtype="int32")[:, None, None]
    index = ops.cast(width * rows + columns, "int32") + first
    return ops.take(ops.reshape(images, (-1, channels)), index, axis=0)


def _reflect(positions, side):
    """Folds positions beyond the first and last back inside, as np.pad does."""
    return (side - 1) - ops.abs((side - 1) - ops.abs(positions))


def _positions(side):
    return np.arange(side, dtype="float32")


def _per_image(values):
    """Reshapes `(batch,)` values to broadcast over `(batch, height, width, channels)`."""
    return ops.reshape(values, (-1, 1, 1, 1))
