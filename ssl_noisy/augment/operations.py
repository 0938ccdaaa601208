# SPDX-License-Identifier: Apache-2.0
"""Operations on images with Pillow's numbers: pixel values, warps, filled squares.

Images are float tensors of shape `(batch, height, width, channels)` with 1 or 3 channels that
hold whole numbers from 0 to 255. Every function returns such a float32 tensor, whatever the
precision policy. Operations on pixel values, and sharpness, equal Pillow's bit for bit; warps take
the same source pixel. Shapes are static, so an operation is part of the compiled training step.
"""

import functools

import numpy as np
from keras import ops

from ssl_noisy.errors import UserError

GRAY = 127.0


def rotate(images, degrees, fill=GRAY):
    """Rotates each image counterclockwise by `degrees`, of shape `(batch,)`."""
    images = checked(images)
    return warp(images, rotation(degrees, *images.shape[1:3]), fill)


def shear_x(images, factor, fill=GRAY):
    """Takes pixel x from x + `factor` * y; `factor` has shape `(batch,)`."""
    return warp(checked(images), offset("shear_x", factor), fill)


def shear_y(images, factor, fill=GRAY):
    """Takes pixel y from y + `factor` * x; `factor` has shape `(batch,)`."""
    return warp(checked(images), offset("shear_y", factor), fill)


def translate_x(images, pixels, fill=GRAY):
    """Moves each image left by `pixels`, of shape `(batch,)`."""
    return warp(checked(images), offset("translate_x", pixels), fill)


def translate_y(images, pixels, fill=GRAY):
    """Moves each image up by `pixels`, of shape `(batch,)`."""
    return warp(checked(images), offset("translate_y", pixels), fill)


def blend(degenerate, images, factor):
    """Computes PIL's `Image.blend` to the last bit; `factor` has shape `(batch,)`."""
    change = per_image(factor) * (images - degenerate)
    # The clip has no effect on values. It keeps XLA from fusing product and sum into one rounding,
    # where PIL rounds twice.
    return ops.clip(ops.floor(degenerate + ops.clip(change, -1e6, 1e6)), 0, 255)


def brightness(images, factor):
    """Blends with black: 0 is black, 1 changes nothing. As `ImageEnhance`."""
    images = checked(images)
    return blend(ops.zeros_like(images), images, factor)


def color(images, factor):
    """Blends with the gray image; changes nothing if there is one channel."""
    images = checked(images)
    return blend(_luma(images), images, factor)


def contrast(images, factor):
    """Blends with the rounded mean of the gray image. As `ImageEnhance`."""
    images = checked(images)
    area = images.shape[1] * images.shape[2]
    total = ops.sum(_luma(images), axis=(1, 2, 3), keepdims=True)
    # A quarter changes no whole result, and outweighs the rounding of `/`.
    mean = ops.floor((total + area / 2 + 0.25) / area)
    return blend(mean, images, factor)


def grayscale(images):
    """Replaces each pixel by its gray value, in all channels. As `Image.convert("L")`."""
    images = checked(images)
    return ops.broadcast_to(_luma(images), images.shape)


def gaussian_blur(images, sigma, radius=6):
    """Blurs each image with a Gaussian, and rounds to whole numbers.

    Beyond the border the image is continued by its last pixel. Pillow does the same, with three box
    filters in place of the Gaussian, which differ by a few gray levels.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`, 0 to 255.
        sigma: Float tensor of shape `(batch,)`, above 0: standard deviations in pixels.
        radius: Positive integer, the pixel up to which the Gaussian is computed. 6 is 3 of the
            largest standard deviation in use, 2.
    """
    images = checked(images)
    offsets = np.arange(-radius, radius + 1)
    weights = ops.exp(
        -ops.square(offsets.astype("float32") / ops.cast(sigma, "float32")[:, None]) / 2
    )
    weights = weights / ops.sum(weights, axis=-1, keepdims=True)
    # A pass along an axis is a product with a matrix: row i has the weights of pixel i's neighbors.
    for axis, product in ((1, "bij,bjwc->biwc"), (2, "bij,bhjc->bhic")):
        side = images.shape[axis]
        neighbors = np.clip(np.arange(side)[:, None] + offsets, 0, side - 1)
        places = np.eye(side, dtype="float32")[neighbors].transpose(1, 0, 2)
        images = ops.einsum(product, ops.tensordot(weights, places, axes=1), images)
    return ops.clip(ops.round(images), 0, 255)


def sharpness(images, factor):
    """Blends with PIL's SMOOTH filter, which does not change the border."""
    images = checked(images)
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
    step = per_image(step)
    return ops.floor(checked(images) / step) * step


def solarize(images, threshold):
    """Inverts pixels of at least `threshold`, of shape `(batch,)`."""
    images = checked(images)
    return ops.where(images < per_image(threshold), images, 255 - images)


def invert(images):
    """Replaces each pixel by 255 minus its value."""
    return 255 - checked(images)


def autocontrast(images):
    """Stretches each channel of each image to the range 0 to 255."""
    images = checked(images)
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

    As in PIL, an image of fewer than 256 pixels does not change.
    """
    images = checked(images)
    batch, height, width, channels = images.shape
    pixels = ops.reshape(ops.transpose(images, (0, 3, 1, 2)), (batch * channels, -1))
    # A pixel is 16 * high + low: the product of the two one-hot codes counts the pairs.
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


# The coefficient of a warp that the magnitude sets.
OFFSETS = {"shear_x": 1, "shear_y": 3, "translate_x": 2, "translate_y": 5}
# The operations that are not warps, as functions of images and magnitudes.
OPERATIONS = {
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


def checked(images):
    """Returns `images` as float32 after a check of the shape."""
    shape = tuple(images.shape)
    if len(shape) != 4 or None in shape or shape[-1] not in (1, 3):
        raise UserError(
            "`images` must have a static shape (batch, height, width, channels) "
            f"with 1 or 3 channels. Received: images.shape={shape}"
        )
    return ops.cast(images, "float32")


def warp(images, coefficients, fill):
    """Takes pixel (x, y) from (a x + b y + c, d x + e y + f), as PIL's AFFINE.

    As in PIL, coefficients have 16 binary places, so float32 is exact up to 256 pixels.
    """
    _, height, width, _ = images.shape
    a, b, c, d, e, f = (part[:, None, None] for part in ops.unstack(coefficients, axis=1))
    fixed = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    a, b, c, d, e, f = (ops.floor(65536 * value + 0.5) / 65536 for value in fixed)
    x, y = coordinates(width), coordinates(height)[:, None]
    columns, rows = ops.floor(a * x + b * y + c), ops.floor(d * x + e * y + f)
    nearest_column = ops.clip(columns, 0, width - 1)
    nearest_row = ops.clip(rows, 0, height - 1)
    inside = ops.logical_and(columns == nearest_column, rows == nearest_row)
    warped = take_pixels(images, nearest_row, nearest_column)
    return ops.where(inside[..., None], warped, float(fill))


def rotation(degrees, height, width):
    """Returns the coefficients, `(batch, 6)`, of the warp that turns images counterclockwise."""
    radians = ops.cast(degrees, "float32") * (np.pi / 180)
    cos, sin = ops.cos(radians), ops.sin(radians)
    c = (width - cos * width + sin * height) / 2
    f = (height - sin * width - cos * height) / 2
    return ops.stack([cos, -sin, c, sin, cos, f], axis=-1)


def offset(name, magnitude):
    """Returns the coefficients, `(batch, 6)`, of a shear or a translation, a key of `OFFSETS`."""
    identity, units = np.array([1, 0, 0, 0, 1, 0], "float32"), np.eye(6, dtype="float32")
    return identity + ops.cast(magnitude, "float32")[:, None] * units[OFFSETS[name]]


def cut(images, size, places, fill):
    """Fills squares of `size` pixels, rounded down, around `places`, shares of height and width."""
    size = ops.floor(size)
    rows, columns = (
        ops.floor(side * place) - ops.floor(size / 2)
        for side, place in zip(images.shape[1:3], (places[0], places[1]))
    )
    return fill_squares(images, rows, columns, size, fill)


def fill_squares(images, rows, columns, size, fill):
    """Fills squares of `size` pixels whose first row and column are given, all `(batch,)`."""

    def covered(side, first):
        distance = coordinates(side) - first[:, None]
        return ops.logical_and(distance >= 0, distance < size[:, None])

    in_row, in_column = covered(images.shape[1], rows), covered(images.shape[2], columns)
    square = ops.logical_and(in_row[:, :, None], in_column[:, None, :])
    return ops.where(square[..., None], np.array(fill, "float32"), images)


def take_pixels(images, rows, columns):
    """Gathers pixels by whole row and column numbers that broadcast to `(batch, height, width)`."""
    batch, height, width, channels = images.shape
    first = height * width * np.arange(batch, dtype="int32")[:, None, None]
    index = ops.cast(width * rows + columns, "int32") + first
    return ops.take(ops.reshape(images, (-1, channels)), index, axis=0)


def coordinates(side):
    """Returns the float32 numbers 0 to `side - 1`."""
    return np.arange(side, dtype="float32")


def per_image(values):
    """Reshapes `(batch,)` values to broadcast over `(batch, height, width, channels)`."""
    return ops.reshape(values, (-1, 1, 1, 1))


def _luma(images):
    """Returns PIL's conversion to gray, one channel."""
    if images.shape[-1] == 1:
        return images
    red, green, blue = (images[..., i : i + 1] for i in range(3))
    return ops.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


@functools.cache
def _autocontrast_flaws():
    """Lists where PIL's autocontrast is one below the exact quotient.

    In double precision `value * scale + offset` can miss a whole number q by one ulp, for one in
    seven pairs (low, high) even at q = 255. Bit `q // 15` of entry `256 * low + high` marks these
    cases. All such q are multiples of 15 or 17.
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
    """Divides whole numbers and rounds down, even where float division is inexact."""
    return ops.floor((dividend + 0.5) / divisor)
