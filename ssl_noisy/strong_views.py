# SPDX-License-Identifier: Apache-2.0
"""Strong views of a learner's images: RandAugment and cutout, or AutoAugment."""

from ssl_noisy import augment
from ssl_noisy.arguments import choice
from ssl_noisy.weak_views import WeakViews

HELP = (
    "RandAugment and cutout of a code base or paper (see `augment.strong_view`), or `autoaugment`, "
    "AutoAugment's policy for CIFAR-10. Methods for few labels also take `ctaugment`, which learns "
    "its magnitudes, and `ctaugment_pixels`, the same with a slip of the public code, whose "
    "translations are below a pixel."
)


class StrongViews(WeakViews):
    """Part of a learner that compares weak views with strong ones."""

    strong_augmentation: str = choice("google_code", augment.STRONG_VIEWS, HELP)

    def strong_view(self, images):
        """Returns a strong view of `images`, as `strong_augmentation` says, weak view included."""
        policy = self.strong_augmentation
        return augment.strong_view(
            images, self.seed_generator, policy=policy, **self.strong_geometry()
        )

    def strong_geometry(self):
        """Returns how strong views are flipped and shifted: arguments of `augment`."""
        geometry = self.weak_geometry()
        return geometry | {"flip": geometry["flip"] or "flip" in self.weak_kind}
