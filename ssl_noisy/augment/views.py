# SPDX-License-Identifier: Apache-2.0
"""Random views of images, drawn per image: weak, strong, contrastive, cutout, color jitter.

Views are `keras.ops` on whole batches with static shapes, so they are part of the compiled
training step. `operations` describes the images that they take and return.
"""

import keras
import numpy as np
from keras import ops

from ssl_noisy.augment import policies
from ssl_noisy.augment.autoaugment import auto_augment
from ssl_noisy.augment.operations import (
    GRAY,
    brightness,
    checked,
    color,
    contrast,
    coordinates,
    cut,
    fill_squares,
    gaussian_blur,
    grayscale,
    per_image,
    take_pixels,
)
from ssl_noisy.augment.policies import rand_augment
from ssl_noisy.errors import UserError

# Color of the cutout in TorchSSL's code, near CIFAR-10's mean color, by the number of channels;
# gray is the luma.
TORCHSSL_COLOR = {3: (125.0, 123.0, 114.0), 1: (123.0,)}
STRONG_VIEWS = (*policies.POLICIES, "autoaugment")
BLUR_SIGMA = (0.1, 2.0)  # pixels, as in SimCLR and MoCo v2
CROP_ATTEMPTS = 10  # as in torchvision and in FixMatch's ImageNet code


def weak_view(images, seed, *, flip=True, max_shift=None, crop_area=None):
    """Flips and shifts each image at random, or crops it.

    To shift it, the image is padded by reflection and cropped at a random place.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        flip: Whether to mirror each image horizontally with probability 1/2.
        max_shift: Integer, largest shift along each axis in pixels, below the
            shorter side. `None` means an eighth of the height: 4 of 32.
        crop_area: Pair of shares of the image's area, for `random_resized_crop` in place of the
            shift. `None` shifts.

    Returns:
        A float32 tensor of the same shape.

    Raises:
        ValueError: If the shape of `images` or `max_shift` is out of range.
    """
    if crop_area is not None:
        return random_resized_crop(images, seed, flip=flip, area=crop_area)
    images = checked(images)
    batch, height, width, _ = images.shape
    max_shift = height // 8 if max_shift is None else max_shift
    if not 0 <= max_shift < min(height, width):
        raise UserError(
            "The `max_shift` argument of `weak_view` must be at least 0 and below the "
            f"shorter image side, {min(height, width)}. Received: max_shift={max_shift}"
        )
    uniform = keras.random.uniform((3, batch, 1), dtype="float32", seed=seed)
    shift = ops.floor((2 * max_shift + 1) * uniform[:2]) - max_shift
    rows = _reflect(coordinates(height) + shift[0], height)
    columns = _reflect(coordinates(width) + shift[1], width)
    if flip:
        columns = ops.where(uniform[2] < 0.5, width - 1 - columns, columns)
    return take_pixels(images, rows[:, :, None], columns[:, None, :])


def random_resized_crop(images, seed, *, flip=True, area=(0.2, 1.0), ratio=(3 / 4, 4 / 3)):
    """Crops a random part of each image and resizes it to the size of the image.

    Interpolation is bilinear. A crop is never larger than the image, so this enlarges, and pixels
    equal those of Pillow's `resize`, which rounds after each of the two axes. Area and logarithm
    of the ratio are uniform. Of 10 draws, the first that lies inside the image counts. If none
    does, the crop is the largest central one whose ratio is in the range.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        flip: Whether to mirror each image horizontally with probability 1/2.
        area: Pair `(low, high)` in (0, 1], the range of the crop's share of the image's area.
            torchvision's default begins at 0.08. FixMatch's ImageNet code does too, but it makes
            both views of one crop. Here each view has a crop of its own, and a pseudo-label from
            a crop of 8% often names something that the other one does not show.
        ratio: Pair `(low, high)`, the range of the crop's width divided by its height.

    Returns:
        A float32 tensor of the same shape, whole numbers.

    Reference:
        [Szegedy et al., 2015](https://arxiv.org/abs/1409.4842), section 6, with the distribution
        of `RandomResizedCrop` of torchvision.
    """
    images = checked(images)
    batch, height, width, _ = images.shape
    n = CROP_ATTEMPTS
    uniform = keras.random.uniform((2 * n + 3, batch), dtype="float32", seed=seed)
    areas = height * width * (area[0] + (area[1] - area[0]) * uniform[:n])
    low, high = np.log(ratio[0]), np.log(ratio[1])
    ratios = ops.exp(low + (high - low) * uniform[n : 2 * n])
    heights = ops.round(ops.sqrt(areas / ratios))
    widths = ops.round(ops.sqrt(areas * ratios))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    first = ops.cast(ops.argmax(ops.cast(fits, "int32"), axis=0), "int32")[None]
    central = (min(height, round(width / ratio[0])), min(width, round(height * ratio[1])))
    rows, columns = (
        ops.where(ops.any(fits, axis=0), ops.take_along_axis(sides, first, axis=0)[0], side)
        for sides, side in ((heights, central[0]), (widths, central[1]))
    )
    # Of a central crop both margins are equal, so it begins at half of what is left.
    place = ops.where(ops.any(fits, axis=0), uniform[2 * n : 2 * n + 2], 0.5)
    top, left = (
        ops.floor(share * (side - length + 1))
        for share, side, length in ((place[0], height, rows), (place[1], width, columns))
    )
    mirrored = (uniform[2 * n + 2] < 0.5) if flip else None
    images = _resized(images, left, columns, axis=2, mirrored=mirrored)
    return _resized(images, top, rows, axis=1)


def _resized(images, start, length, axis, mirrored=None):
    """Enlarges `length` pixels from `start` on, `(batch,)`, to the whole axis, as Pillow does."""
    side = images.shape[axis]
    places = (coordinates(side) + 0.5) * (length[:, None] / side) - 0.5
    places = start[:, None] + ops.clip(places, 0, length[:, None] - 1)
    if mirrored is not None:
        places = ops.where(mirrored[:, None], ops.flip(places, axis=1), places)
    before = ops.floor(places)
    share = ops.reshape(places - before, (-1, side, 1, 1) if axis == 1 else (-1, 1, side, 1))
    after = ops.minimum(before + 1, side - 1)
    height, width = images.shape[1:3]
    low, high = (
        take_pixels(images, place[:, :, None], coordinates(width))
        if axis == 1
        else take_pixels(images, coordinates(height)[:, None], place[:, None, :])
        for place in (before, after)
    )
    return ops.floor(low + share * (high - low) + 0.5)


def alternating_flip(images, indices, epoch):
    """Mirrors each image horizontally in every other epoch.

    A fixed pseudo-random bit of its position decides whether an image is mirrored in even or in
    odd epochs. Two successive epochs show both sides of every image, and each epoch mirrors about
    half of the images.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        indices: Integer tensor of shape `(batch,)`.
        epoch: Integer or integer tensor, a scalar or of shape `(batch,)`.

    Returns:
        A float32 tensor of the same shape as `images`.

    Reference:
        [Jordan, 2024](https://arxiv.org/abs/2404.00498), where MD5 gives the bit; here it is the
        finalizer of MurmurHash3.
    """
    images = checked(images)
    bits = ops.cast(indices, "uint32")
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = ops.bitwise_xor(bits, ops.right_shift(bits, shift))
        bits = bits * ops.convert_to_tensor(np.uint32(factor))
    bits = ops.bitwise_xor(bits, ops.right_shift(bits, 16))
    parity = (ops.cast(bits & 1, "int32") + ops.cast(epoch, "int32")) % 2
    return ops.where(per_image(parity) == 1, ops.flip(images, axis=2), images)


def strong_view(images, seed, *, policy="google_code", flip=True, max_shift=None, crop_area=None):
    """Makes a strong view: weak view, RandAugment and cutout, or AutoAugment, in this order.

    Args:
        images, seed, flip, max_shift, crop_area: As in `weak_view`.
        policy: One of `STRONG_VIEWS`. `autoaugment` is `auto_augment`, without a cutout. The others
            are those of `rand_augment`. The side of the gray cutout square is
            half the shorter image side (`google_code`, `uda`) or uniform below that (`paper`,
            `scan`; the code of SCAN rounds it to an even number of pixels).
            `torchssl` and `usb` draw it as in TorchSSL's code (see `cutout`), with a side that
            is uniform below half the width. In an image of 32x32 pixels it covers 85 pixels on
            average, that of `paper` 64. `uda` and `torchssl` make the weak view last. `lsa` has no
            cutout.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), section 2.3;
        [Xie et al., 2019](https://arxiv.org/abs/1904.12848), appendix.
    """
    geometry = {"flip": flip, "max_shift": max_shift, "crop_area": crop_area}
    if policy == "autoaugment":
        return auto_augment(weak_view(images, seed, **geometry), seed)
    rules = policies.find(policy)
    if not rules.weak_last:
        images = weak_view(images, seed, **geometry)
    images = rand_augment(images, seed, policy=policy)
    if rules.cutout is None:
        return images
    side = images.shape[2] if rules.torchssl_cutout else min(images.shape[1:3])
    size = tuple(share * side for share in rules.cutout)
    images = cutout(images, seed, size=size, torchssl=rules.torchssl_cutout)
    if rules.weak_last:
        images = weak_view(images, seed, **geometry)
    return images


def cutout(images, seed, *, size, fill=GRAY, torchssl=False):
    """Fills a square at a random place of each image.

    The center is uniform over the image, so the square may be clipped.

    With `torchssl` the square is drawn as in the code of TorchSSL and USB: from a corner that is
    moved inside the image, including the last row and column. Its side is therefore rounded up,
    and only the lower and right borders clip it. Its color is (125, 123, 114), or 123 on gray
    images, which that code does not support.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        size: Side of the square in pixels, or a pair `(low, high)`: the side of each image is then
            uniform in `[low, high)`, rounded down. Numbers or tensors of shape `(batch,)`.
        fill: Value of the pixels in the square. Has no effect with `torchssl`.
        torchssl: Whether to draw the square as in TorchSSL's code.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552).
    """
    images = checked(images)
    low, high = size if isinstance(size, (tuple, list)) else (size, size)
    uniform = keras.random.uniform((3, images.shape[0]), dtype="float32", seed=seed)
    size = low + (high - low) * uniform[2]
    if not torchssl:
        return cut(images, size, uniform[:2], fill)
    height, width, channels = images.shape[1:]
    rows, columns = (
        ops.floor(ops.maximum(side * place - size / 2, 0))
        for side, place in ((height, uniform[0]), (width, uniform[1]))
    )
    return fill_squares(images, rows, columns, ops.floor(size) + 1, TORCHSSL_COLOR[channels])


def color_jitter(images, seed, *, strength=0.4, max_turn=0.1):
    """Changes brightness, contrast, saturation and hue of each image at random, in this order.

    Gray images have no saturation and no hue to change.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        strength: Float in [0, 1]. The three factors are uniform in `1 - strength` to
            `1 + strength`.
        max_turn: Float in [0, 0.5]. The hue turns by a uniform fraction of the color circle,
            `-max_turn` to `max_turn`.

    Returns:
        A float32 tensor of the same shape.

    Reference:
        `ColorJitter` of torchvision, which also draws the order of the four changes for each
        image and rounds colors to bytes in HSV too.
    """
    images = checked(images)
    uniform = keras.random.uniform((4, images.shape[0]), dtype="float32", seed=seed)
    factors = 1 + strength * (2 * uniform - 1)
    images = contrast(brightness(images, factors[0]), factors[1])
    if images.shape[-1] == 1:
        return images
    hsv = ops.image.rgb_to_hsv(color(images, factors[2]) / 255)
    turn = per_image(max_turn * (2 * uniform[3] - 1))
    hsv = ops.concatenate([(hsv[..., :1] + turn) % 1.0, hsv[..., 1:]], axis=-1)
    return ops.round(ops.clip(255 * ops.image.hsv_to_rgb(hsv), 0, 255))


def contrastive_view(
    images,
    seed,
    *,
    flip=True,
    crop_area=(0.2, 1.0),
    jitter=0.4,
    jitter_probability=0.8,
    gray_probability=0.2,
    blur_probability=0.0,
):
    """Crops each image, and at random changes its colors, makes it gray and blurs it.

    The order is that. On gray images the jitter changes brightness and contrast alone.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        seed: A `keras.random.SeedGenerator`; its state advances.
        flip: Whether to mirror each image horizontally with probability 1/2.
        crop_area: Pair `(low, high)` in (0, 1], as the `area` of `random_resized_crop`.
        jitter: Float in [0, 1], the `strength` of `color_jitter`. A quarter of it is the largest
            turn of the hue.
        jitter_probability, gray_probability, blur_probability: Floats in [0, 1]. Each image is
            changed with this probability.

    Returns:
        A float32 tensor of the same shape, whole numbers.

    Reference:
        [Chen et al., 2020](https://arxiv.org/abs/2002.05709), appendix A, with the ranges of
        [He et al., 2020](https://arxiv.org/abs/1911.05722) for the crops and the jitter.
    """
    images = random_resized_crop(images, seed, flip=flip, area=crop_area)
    uniform = keras.random.uniform((4, images.shape[0]), dtype="float32", seed=seed)

    def changed(row, probability, change):
        is_changed = per_image(uniform[row]) < probability
        return ops.where(is_changed, change(images), images) if probability else images

    jittered = lambda x: color_jitter(x, seed, strength=jitter, max_turn=jitter / 4)  # noqa: E731
    images = changed(0, jitter_probability, jittered)
    if images.shape[-1] == 3:
        images = changed(1, gray_probability, grayscale)
    low, high = BLUR_SIGMA
    sigma = low + (high - low) * uniform[3]
    return changed(2, blur_probability, lambda x: gaussian_blur(x, sigma))


def _reflect(positions, side):
    """Reflects positions beyond the first and the last back inside, as `np.pad` does."""
    return (side - 1) - ops.abs((side - 1) - ops.abs(positions))
