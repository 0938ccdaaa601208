# SPDX-License-Identifier: Apache-2.0
"""How the first layer of a network normalizes pixels."""

import numpy as np

from ssl_noisy.errors import UserError

NORMALIZATIONS = ("scale", "dataset", "imagenet")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixel_normalization(kind, images):
    """Returns the `normalization` argument of `build` for a name.

    Args:
        kind: `scale` (to [-1, 1]), `dataset` (by the mean and standard deviation of each channel
            over all of `images`) or `imagenet` (by ImageNet's, for color images).
        images: uint8 array of shape `(num_images, height, width, channels)`, the training images,
            labeled or not. `dataset` counts values, so the result is exact in any order.

    Returns:
        None for `scale`, else a tuple `(means, deviations)` of lists with one pixel value in
        [0, 255] for each channel. The deviation of a constant channel is 1.

    Raises:
        ValueError: If there is no such kind, or if the images for `imagenet` are not in color.
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
        return [255 * share for share in IMAGENET_MEAN], [255 * share for share in IMAGENET_STD]
    values, counts = np.arange(256), np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 1024):
        pixels = images[start : start + 1024]
        for channel, count in enumerate(counts):
            count += np.bincount(pixels[..., channel].ravel(), minlength=256)
    means = counts @ values / counts.sum(axis=1)
    variances = np.sum(counts * (values - means[:, None]) ** 2, axis=1) / counts.sum(axis=1)
    return means.tolist(), np.sqrt(np.where(variances == 0, 1.0, variances)).tolist()
