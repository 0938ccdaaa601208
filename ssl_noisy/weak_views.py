# SPDX-License-Identifier: Apache-2.0
"""Weak views of a learner's images: flips, shifts and color changes."""

from keras import ops

from ssl_noisy import augment
from ssl_noisy.arguments import Configured, choice
from ssl_noisy.errors import UserError

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
        if self.task.views is not None:
            return self.cached_weak_view(images)
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

    def check_views(self, views):
        """Raises a `UserError` if frozen features do not have the views that the step draws.

        Args:
            views: The numbers `(weak, strong)` of a task of features.
        """
        name = type(self).__name__
        if self.needs_pixels:
            raise UserError(
                f"{name} makes its views of pixels, so it cannot learn from frozen features. Use a "
                "network of images, or another method, such as FixMatch."
            )
        if not views[0] and self.weak_augmentation != "none":
            raise UserError(
                f"{name} draws weak views, and these features have none. Compute them: python -m "
                "ssl_noisy.features --views=8. Or use weak_augmentation=none, which takes the "
                f"features of the images. Received: weak_augmentation={self.weak_augmentation}"
            )

    def cached_weak_view(self, rows):
        """Draws one of the weak views of frozen features; with `none` takes those of the image."""
        if self.weak_kind == "none":
            return rows[:, 0]
        count = self.task.views[0]
        return augment.cached_view(rows, self.seed_generator, first=1, count=count)

    def weak_geometry(self):
        """Returns how weak views are flipped, shifted and cropped: arguments of `augment`."""
        return geometry(self.weak_kind, self.task.flip, self.task.image_shape[0])


def kind_of(weak_augmentation, flip):
    """Returns what `auto` means for images that keep their class if mirrored, or not."""
    automatic = "flip_shift" if flip else "shift"
    return automatic if weak_augmentation == "auto" else weak_augmentation


def geometry(kind, flip, height):
    """Returns how weak views are flipped, shifted and cropped: arguments of `augment`.

    Args:
        kind: One of `WEAK_AUGMENTATIONS`, not `auto`.
        flip: Whether a mirrored image keeps its class.
        height: Integer, in pixels.
    """
    flip = kind == "flip_shift" or (kind in ("crop", "jitter") and flip)
    if kind == "crop":
        return {"flip": flip, "crop_area": CROP_AREA}
    return {"flip": flip, "max_shift": {"none": 0, "jitter": height // 16}.get(kind)}


def strong_geometry(kind, flip, height):
    """Returns how strong views are flipped, shifted and cropped, as `geometry`."""
    found = geometry(kind, flip, height)
    return found | {"flip": found["flip"] or "flip" in kind}
