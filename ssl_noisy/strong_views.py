# SPDX-License-Identifier: Apache-2.0
"""Strong views of a learner's images: RandAugment and cutout, or AutoAugment."""

from ssl_noisy import augment
from ssl_noisy.arguments import choice
from ssl_noisy.errors import UserError
from ssl_noisy.weak_views import WeakViews, strong_geometry

HELP = (
    "RandAugment and cutout of a code base or paper (see `augment.strong_view`), or `autoaugment`, "
    "AutoAugment's policy for CIFAR-10. Methods for few labels also take `ctaugment`, which learns "
    "its magnitudes, and `ctaugment_pixels`, the same with a slip of the public code, whose "
    "translations are below a pixel."
)


class StrongViews(WeakViews):
    """Part of a learner that compares weak views with strong ones."""

    strong_augmentation: str = choice("google_code", augment.STRONG_VIEWS, HELP)

    def check_views(self, views):
        name = type(self).__name__
        if not self.needs_pixels and not views[1]:
            raise UserError(
                f"{name} draws strong views, and these features have none. Compute them: python -m "
                "ssl_noisy.features --views=8. Received: features of the images alone"
            )
        super().check_views(views)
        if self.strong_augmentation not in augment.STRONG_VIEWS:
            raise UserError(
                f"{name} draws strong views that were made before, and CTAugment would have to "
                "learn them. Use the strong_augmentation of the feature file. Received: "
                f"strong_augmentation={self.strong_augmentation}"
            )

    def strong_view(self, images):
        """Returns a strong view of `images`, as `strong_augmentation` says, weak view included."""
        if self.task.views is not None:
            weak, strong = self.task.views
            return augment.cached_view(images, self.seed_generator, first=1 + weak, count=strong)
        policy = self.strong_augmentation
        return augment.strong_view(
            images, self.seed_generator, policy=policy, **self.strong_geometry()
        )

    def strong_geometry(self):
        """Returns how strong views are flipped and shifted: arguments of `augment`."""
        return strong_geometry(self.weak_kind, self.task.flip, self.task.image_shape[0])
