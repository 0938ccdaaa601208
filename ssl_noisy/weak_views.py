# SPDX-License-Identifier: Apache-2.0
"""Weak views of a learner's images: flips, shifts and color changes."""

from keras import ops

from ssl_noisy import augment
from ssl_noisy.arguments import Configured, choice

WEAK_AUGMENTATIONS = (
    "auto",
    "flip_shift",
    "alternating_flip_shift",
    "shift",
    "crop",
    "jitter",
    "none",
)
CROP_AREA = (0.2, 1.0)  # see `augment.random_resized_crop`


class WeakViews(Configured):
    """Part of `Learner`: the weak augmentation of its images."""

    weak_augmentation: str = choice(
        "auto",
        WEAK_AUGMENTATIONS,
        "Weak views: `auto` flips and shifts, or only shifts where classes do not survive a flip; "
        "`crop`, for photos, takes 20% to 100% of the area, resizes it, and flips as `auto` does; "
        "`jitter` changes colors, shifts half as far, and flips as `auto` does.",
    )

    def weak_view(self, images, indices, stream="labeled"):
        """Returns a weak view of `images`, those of `indices`, as `weak_augmentation` says."""
        if self.weak_kind == "none":
            return images
        if self.weak_kind == "alternating_flip_shift":
            # How often the stream has passed through its pool, for each place of the batch.
            drawn = self.stage.drawn_at(self.step, stream)
            place = ops.arange(indices.shape[0], dtype="int32")
            epoch = (drawn + place) // len(self.pools()[stream])
            images = augment.alternating_flip(images, indices, epoch)
        if self.weak_kind == "jitter":
            images = augment.color_jitter(images, self.seed_generator)
        return augment.weak_view(images, self.seed_generator, **self.weak_geometry())

    def weak_geometry(self):
        """Returns how weak views are flipped, shifted and cropped: arguments of `augment`."""
        kind = self.weak_kind
        flip = kind == "flip_shift" or (kind in ("crop", "jitter") and self.task.flip)
        if kind == "crop":
            return {"flip": flip, "crop_area": CROP_AREA}
        jitter_shift = self.task.image_shape[0] // 16
        return {"flip": flip, "max_shift": {"none": 0, "jitter": jitter_shift}.get(kind)}
