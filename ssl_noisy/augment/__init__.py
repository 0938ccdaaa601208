# SPDX-License-Identifier: Apache-2.0
"""Views of images, weak and strong, made in the compiled step."""

from ssl_noisy.augment.autoaugment import auto_augment
from ssl_noisy.augment.cached import cached_view
from ssl_noisy.augment.interpolation import fmix, low_frequency_field, mix, mixing, mixup
from ssl_noisy.augment.operations import (
    autocontrast,
    blend,
    brightness,
    color,
    contrast,
    equalize,
    gaussian_blur,
    grayscale,
    invert,
    posterize,
    rotate,
    sharpness,
    shear_x,
    shear_y,
    solarize,
    translate_x,
    translate_y,
)
from ssl_noisy.augment.policies import POLICIES, RAND_AUGMENT, rand_augment
from ssl_noisy.augment.views import (
    STRONG_VIEWS,
    alternating_flip,
    color_jitter,
    contrastive_view,
    cutout,
    random_resized_crop,
    strong_view,
    weak_view,
)

__all__ = [
    "POLICIES",
    "RAND_AUGMENT",
    "STRONG_VIEWS",
    "alternating_flip",
    "auto_augment",
    "autocontrast",
    "blend",
    "brightness",
    "cached_view",
    "color",
    "color_jitter",
    "contrast",
    "contrastive_view",
    "cutout",
    "equalize",
    "fmix",
    "gaussian_blur",
    "grayscale",
    "invert",
    "low_frequency_field",
    "mix",
    "mixing",
    "mixup",
    "posterize",
    "rand_augment",
    "random_resized_crop",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "strong_view",
    "translate_x",
    "translate_y",
    "weak_view",
]
