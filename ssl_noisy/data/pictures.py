# SPDX-License-Identifier: Apache-2.0
"""From the bytes of one picture file to pixels, for training and for prediction alike."""

import dataclasses
import io
import re

import numpy as np

from ssl_noisy.data.dataset import DatasetError
from ssl_noisy.errors import UserError

FITS = ("crop", "pad", "stretch")
LARGEST_AUTO = 128  # a larger picture is a choice, because it takes longer to train on
# JPEG decodes at a half, a quarter or an eighth of the size for a fraction of the time. Pillow
# calls the result of resizing from three times the size indistinguishable.
_GAP = 3


@dataclasses.dataclass(frozen=True)
class Format:
    """The form that all pictures of a data set get.

    Attributes:
        height, width: Positive integers, in pixels.
        channels: 1 (gray) or 3 (RGB).
        fit: What happens to a picture of another aspect ratio: `crop` scales the shorter side and
            crops the center, `pad` scales the longer side and adds black, `stretch` changes the
            ratio.
    """

    height: int
    width: int
    channels: int
    fit: str = "crop"

    def pixels(self, data):
        """Decodes a picture.

        Transparency is put on white, the orientation of EXIF is applied, 16 bits are scaled to 8,
        and the first frame of an animation is used.

        Args:
            data: Bytes of a file that Pillow reads.

        Returns:
            A uint8 array `(height, width, channels)`.

        Raises:
            Exception: Any, if the file is damaged: Pillow raises a dozen types.
        """
        _, ops, _ = _pillow()
        with _opened(data) as image:
            image.draft(None, (_GAP * self.width, _GAP * self.height))
            image = ops.exif_transpose(image)
            image = _opaque(image).convert("L" if self.channels == 1 else "RGB")
            image = self._fitted(image)
            return np.asarray(image).reshape(self.height, self.width, self.channels)

    def _fitted(self, image):
        _, ops, resampling = _pillow()
        size = (self.width, self.height)
        if image.size == size:
            return image
        if self.fit == "stretch":
            return image.resize(size, resampling, reducing_gap=_GAP)
        if self.fit == "pad":
            return ops.pad(image, size, resampling)
        return ops.fit(image, size, resampling)


def measure(data):
    """Returns `(height, width, is_gray)` of a picture as it will be seen, from its header.

    Raises:
        Exception: Any, if it is no picture.
    """
    with _opened(data) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) >= 5:  # turned by 90 degrees
            width, height = height, width
        return height, width, image.mode in ("1", "L", "LA", "La") or image.mode[0] == "I"


def parse_size(text, flag="--image_size"):
    """Returns `(height, width)` of "96" or "96x128", or None of None and "auto".

    Raises:
        UserError: If it is something else.
    """
    if text in (None, "auto"):
        return None
    match = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    if not match:
        raise UserError(
            f"{flag} must be a number of pixels such as 96, or HEIGHTxWIDTH such as 96x128. "
            f"Received: {flag}={text}"
        )
    height = int(match[1])
    return height, int(match[2] or height)


def automatic_size(sizes):
    """Returns the `(height, width)` for pictures of these sizes, an integer array `(n, 2)`.

    It is their own if they have one in common, else a square with the median of the shorter
    sides; at most `LARGEST_AUTO` on each side.
    """
    sizes = np.asarray(sizes)
    if len(np.unique(sizes, axis=0)) > 1:
        side = int(np.median(sizes.min(axis=1)))
        sizes = np.array([[side, side]])
    height, width = (int(side) for side in sizes[0])
    scale = min(1, LARGEST_AUTO / max(height, width))
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _pillow():
    """Returns Pillow's modules `Image` and `ImageOps`, and how it resamples."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DatasetError(
            f"Picture files need Pillow: {error}. Install it: pip install pillow."
        ) from error
    return Image, ImageOps, Image.Resampling.BICUBIC


def _opened(data):
    images, _, _ = _pillow()
    if not data:
        raise ValueError("it is empty")
    try:
        image = images.open(io.BytesIO(data))
    except images.UnidentifiedImageError as error:
        raise ValueError("it is not a picture that Pillow can read") from error
    if image.width * image.height > images.MAX_IMAGE_PIXELS:
        raise ValueError(f"it has {image.width}x{image.height} pixels, too many to be a picture")
    return image


def _opaque(image):
    """Returns an image of 8 bits a channel without transparency."""
    images, _, _ = _pillow()
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 bits")
    if image.mode[0] == "I":  # 16 bits, which Pillow would clip instead of scaling
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("its pixels have more than 16 bits; save it with 8 bits")
        return images.fromarray(np.rint(pixels / 257).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = images.new("RGBA", image.size, (255, 255, 255, 255))
        image = images.alpha_composite(white, image)
    return image
