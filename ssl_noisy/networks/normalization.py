# SPDX-License-Identifier: Apache-2.0
"""How the first layer of a network normalizes pixels."""

import typing

import numpy as np

from ssl_noisy.errors import UserError

NORMALIZATIONS = ("scale", "dataset", "imagenet", "whitening")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PATCH = 2  # height and width of the patches that are whitened
WHITENED = 5000  # images, whose patches are enough
WHITENING_EPSILON = 5e-4  # added to the variances of patches, of pixels of variance 1


class Normalization(typing.NamedTuple):
    """What the first layers of a network do with pixels.

    Attributes:
        means, deviations: Lists with a pixel value in [0, 255] for each channel.
        whitening: Optional float32 array, the kernel of a convolution with the result, which is
            not trained.
    """

    means: list
    deviations: list
    whitening: np.ndarray | None = None


def pixel_normalization(kind, images):
    """Returns the `normalization` argument of `build` for a name.

    Args:
        kind: `scale` (to [-1, 1]), `dataset` (by the mean and standard deviation of each channel
            over all of `images`), `imagenet` (by ImageNet's, for color images), or `whitening` (as
            `dataset`, followed by `whitening_kernel`).
        images: uint8 array of shape `(num_images, height, width, channels)`, the training images,
            labeled or not. `dataset` counts values, so the result is exact in any order.

    Returns:
        None for `scale`, else a `Normalization`. The deviation of a constant channel is 1.

    Raises:
        ValueError: If there is no such kind, if the images for `imagenet` are not in color, or if
            those for `whitening` have no patch of 2x2 pixels.
    """
    if kind not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise UserError(f"`normalization` must be one of {known}. Received: {kind!r}")
    if kind == "scale":
        return None
    if kind == "imagenet":
        if images.shape[-1] != 3:
            raise UserError(
                "--normalization=imagenet needs color images, with 3 channels. Received: images of "
                f"shape {images.shape[1:]}. Use --normalization=dataset."
            )
        means, deviations = ([255 * one for one in ones] for ones in (IMAGENET_MEAN, IMAGENET_STD))
        return Normalization(means, deviations)
    if kind == "whitening" and min(images.shape[1:3]) < PATCH:
        raise UserError(
            f"--normalization=whitening needs images of at least {PATCH}x{PATCH}. Received: images "
            f"of shape {images.shape[1:]}. Use --normalization=dataset."
        )
    values, counts = np.arange(256), np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 1024):
        pixels = images[start : start + 1024]
        for channel, count in enumerate(counts):
            count += np.bincount(pixels[..., channel].ravel(), minlength=256)
    means = counts @ values / counts.sum(axis=1)
    variances = np.sum(counts * (values - means[:, None]) ** 2, axis=1) / counts.sum(axis=1)
    deviations = np.sqrt(np.where(variances == 0, 1.0, variances))
    kernel = whitening_kernel(images, means, deviations) if kind == "whitening" else None
    return Normalization(means.tolist(), deviations.tolist(), kernel)


def whitening_kernel(images, means, deviations):
    """Returns the kernel of a convolution that whitens small patches.

    Its filters are the principal components of 2x2 patches, each divided by its standard deviation,
    so that on these images their outputs are uncorrelated and of variance 1.

    Args:
        images: uint8 array of shape `(num_images, height, width, channels)`. At most 5,000 of them
            count, evenly spaced.
        means, deviations: Float arrays of shape `(channels,)`, by which pixels are normalized.

    Returns:
        A float32 array of shape `(2, 2, channels, 4 * channels)`.

    Reference:
        [Jordan, 2024](https://arxiv.org/abs/2404.01508), section 3.1. There the filters' negatives
        follow, a bias, which is trained for some epochs, and a GELU.
    """
    chosen = images[:: -(-len(images) // WHITENED)]
    size = PATCH**2 * images.shape[-1]
    # Sums of whole numbers below 2^53, so they are exact, whatever the order of the additions.
    sums, products, count = np.zeros(size), np.zeros((size, size)), 0
    for start in range(0, len(chosen), 256):
        pixels = chosen[start : start + 256].astype("float64")
        height, width = (side - PATCH + 1 for side in pixels.shape[1:3])
        shifted = [
            pixels[:, i : i + height, j : j + width] for i in range(PATCH) for j in range(PATCH)
        ]
        patches = np.concatenate(shifted, axis=-1).reshape(-1, size)
        sums += patches.sum(axis=0)
        products += patches.T @ patches
        count += len(patches)
    centers, scales = np.tile(means, PATCH**2), np.tile(deviations, PATCH**2)
    crossed = np.outer(centers, sums / count)
    moments = products / count - crossed - crossed.T + np.outer(centers, centers)
    variances, components = np.linalg.eigh(moments / np.outer(scales, scales))
    # An eigenvector has no sign of its own: its largest entry is positive here, on each machine.
    largest = np.argmax(np.abs(components), axis=0)
    components *= np.sign(components[largest, np.arange(len(variances))])
    filters = components / np.sqrt(np.maximum(variances, 0) + WHITENING_EPSILON)
    return filters.astype("float32").reshape(PATCH, PATCH, images.shape[-1], size)
