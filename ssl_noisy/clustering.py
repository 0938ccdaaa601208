# SPDX-License-Identifier: Apache-2.0
"""What the methods share that group images without labels: no label counts, strong views."""

from ssl_noisy.learner import Learner
from ssl_noisy.strong_views import StrongViews


class ClusterLearner(StrongViews, Learner):
    """Base of the methods whose network sorts images into clusters, in no particular order.

    No label counts, and none is recorded. The network has one output for each cluster, as many as
    the task has classes. What `evaluate` calls accuracy compares numbers of clusters with labels
    and means nothing: match them first, by `ssl_noisy.matching`.

    A weak view is the image itself. A strong view is flipped, where the classes survive it, and not
    shifted before the operations of `strong_augmentation`.

    Nothing is averaged, unless you say so.
    """

    batch_size: int = Learner.batch_size.with_default(128)
    weight_decay: float = Learner.weight_decay.with_default(1e-4)
    decayed: str = Learner.decayed.with_default("all")
    ema_momentum: float = Learner.ema_momentum.with_default(0.0)
    strong_augmentation: str = StrongViews.strong_augmentation.with_default("scan")

    record_examples = False  # no argument: a cluster is not a class
    weak_augmentation = "none"  # no argument, as above

    needs_labels = False
    needs_pixels = True  # to make strong views that are not shifted before
    finds_clusters = True
    training_defaults = {
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "schedule": "constant",
        "momentum": 0.9,
    }

    def pools(self):
        return {"unlabeled": self.task.unlabeled_pool()}

    def strong_geometry(self):
        return {"flip": self.task.flip, "max_shift": 0}
