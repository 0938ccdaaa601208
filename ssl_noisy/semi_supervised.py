# SPDX-License-Identifier: Apache-2.0
"""What the semi-supervised methods share: streams, weights and the forward passes of views."""

import math

import keras
import numpy as np
from keras import ops

from ssl_noisy import arguments, augment, losses, machine, networks, schedules, strong_views
from ssl_noisy.arguments import choice, count, switch
from ssl_noisy.augment import ctaugment
from ssl_noisy.batches import in_stages
from ssl_noisy.errors import UserError
from ssl_noisy.learner import Learner
from ssl_noisy.strong_views import StrongViews

CTAUGMENT = ("ctaugment", "ctaugment_pixels")
STRONG_AUGMENTATIONS = (*augment.STRONG_VIEWS, *CTAUGMENT)
SHARED_PASSES = ("auto", "on", "off")


class SemiSupervisedLearner(Learner):
    """Base of the methods that draw labeled and unlabeled examples in a fixed ratio."""

    unlabeled_ratio: int = count(
        7, "Unlabeled examples for each labeled one of a batch, the papers' mu."
    )
    unsupervised_weight: float = arguments.unsupervised_weight(1.0)
    include_labeled: bool = switch(True, "Include labeled images in the unlabeled pool.")

    term_names = ("supervised_loss", "unsupervised_loss")

    def streams(self):
        return {"labeled": self.batch_size, "unlabeled": self.batch_size * self.unlabeled_ratio}

    def pools(self):
        unlabeled = self.task.unlabeled_pool(include_labeled=self.include_labeled)
        return {"labeled": self.task.labeled, "unlabeled": unlabeled}

    def weak_views(self, indices, stream):
        """Takes the images at `indices`, which came in `stream`, and returns weak views of them."""
        return self.weak_view(self.images(indices), indices, stream)

    def observed_cross_entropy(self, labeled, logits):
        """Records labeled examples, and returns their mean cross-entropy with the given labels."""
        self.observe(labeled, logits)
        return ops.mean(losses.cross_entropy(self.given_labels(labeled), logits))

    def outcome(self, supervised, unsupervised, pseudo_labels, mask, **monitors):
        """Returns the objective's dict of a method with pseudo-labels, `mask` being kept shares."""
        return {
            "terms": {
                "supervised_loss": supervised,
                "unsupervised_loss": self.unsupervised_weight * unsupervised,
            },
            "monitors": {"mask_rate": ops.mean(mask), **monitors},
            "pseudo_labels": pseudo_labels,
            "mask": mask,
        }

    def ramp(self, end, start=0.0):
        """Returns the linear ramp from 0 to 1 between two fractions of training, a scalar."""
        return schedules.linear_ramp(self.fraction_done(), start, end)

    def add_marginal(self, name):
        """Returns a new state `(num_classes,)` for a moving average of class probabilities."""
        return self.add_state(name, np.full(self.num_classes, 1 / self.num_classes, "float32"))

    def aligned(self, probs, marginal, target, momentum=0.999):
        """Aligns predictions with a class distribution: `probs * target / marginal`, normalized.

        Args:
            probs: Float tensor of shape `(batch_size, num_classes)`.
            marginal: The variable of `add_marginal`: a moving average of the mean of
                `probs`. It is updated with this batch first.
            target: Class probabilities, of shape `(num_classes,)`.
            momentum: Float in [0, 1), of the moving average. It warms up
                (`schedules.warmed_up`), for the average starts uniform: where classes are not
                balanced, that would count the target twice in a short training.

        Reference:
            [Berthelot et al., 2020](https://arxiv.org/abs/1911.09785), section 3.1.
        """
        mean = ops.mean(probs, axis=0)
        momentum = schedules.warmed_up(momentum, self.step.value + 1)
        marginal.assign(momentum * marginal + (1 - momentum) * mean)
        weighted = probs * (target + 1e-6) / (marginal.value + 1e-6)
        return weighted / ops.sum(weighted, axis=-1, keepdims=True)

    def labeled_distribution(self):
        """Returns the share of each class among the labeled examples, float32 `(num_classes,)`."""
        labels = self.task.given_labels[self.task.labeled]
        counts = np.bincount(labels, minlength=self.task.num_classes)
        return (counts / counts.sum()).astype("float32")


class WeakStrongLearner(StrongViews, SemiSupervisedLearner):
    """Base of the methods whose unlabeled images have a weak view, without gradient, and a strong.

    Labeled, weak and strong views are a forward pass each: the weak one, without
    gradient, is a third less work. Batch norm then normalizes each kind of view
    by its own batch, and its running statistics follow labeled and weak views,
    which are like the test images, not the strong ones. `joint_batch_norm=True`
    is the one batch of most public code. A step of WRN-28-2 on two cores took
    1.16 s apart and 1.68 s joint.

    On a GPU labeled and strong views share a pass, with the same numbers (`shared_pass`).
    """

    strong_augmentation: str = choice("google_code", STRONG_AUGMENTATIONS, strong_views.HELP)
    joint_batch_norm: bool = switch(False, "Pass all views through batch norm as one batch.")
    shared_pass: str = choice(
        "auto",
        SHARED_PASSES,
        "Pass labeled and strong views through the network in one batch. Batch norm still "
        "normalizes each separately, so results are equal up to rounding. `auto`: on one GPU or "
        "TPU with JAX.",
    )
    curriculum_batch_size: bool = switch(
        False,
        "Begin with as many unlabeled as labeled images in a batch, and let their number grow to "
        "--unlabeled_ratio times as many, slowly at first: 38 % of the work at a ratio of 7.",
    )

    monitor_names = ("mask_rate",)

    def stages(self):
        """Returns the stages of training: with `curriculum_batch_size` one for each ratio.

        The curriculum of [Chen et al., 2023](https://arxiv.org/abs/2309.03469), rounded up to
        multiples of the labeled batch, so that the step is compiled `unlabeled_ratio` times at
        most.
        """
        if not self.curriculum_batch_size:
            return super().stages()
        sizes = self.streams()
        begins = [
            math.ceil(self.steps * schedules.curriculum_progress(i / self.unlabeled_ratio))
            for i in range(self.unlabeled_ratio)
        ]
        return in_stages(
            {
                step: sizes | {"unlabeled": sizes["unlabeled"] * ratio // self.unlabeled_ratio}
                for ratio, step in enumerate(begins, 1)
            }
        )

    def attach(self, task):
        if self.curriculum_batch_size and self.unlabeled_ratio == 1:
            raise UserError(
                "`curriculum_batch_size` needs an `unlabeled_ratio` of at least 2, to which the "
                "ratio grows from 1. Received: unlabeled_ratio=1"
            )
        super().attach(task)
        able = networks.can_pass_apart(self.network) and not self.joint_batch_norm
        if self.shared_pass == "on" and not able:
            raise UserError(
                "`shared_pass=on` needs a Sequential or functional network of Keras's layers, "
                "whose batch normalization, if any, is this kit's and of images, and no "
                f"`joint_batch_norm`. Use shared_pass=auto. Received: {self.network.name!r}, "
                f"joint_batch_norm={self.joint_batch_norm}"
            )
        wanted = {"on": True, "off": False, "auto": machine.launches_kernels()}
        self.shares_pass = able and wanted[self.shared_pass]

    def build_state(self):
        if self.strong_augmentation in CTAUGMENT:
            self.rates = self.add_state("ctaugment_rates", ctaugment.initial_rates())

    def strong_view(self, images):
        if self.strong_augmentation not in CTAUGMENT:
            return super().strong_view(images)
        return ctaugment.strong_view(
            images,
            self.seed_generator,
            self.rates.value,
            pixel_translation=self.strong_augmentation == "ctaugment_pixels",
            **self.strong_geometry(),
        )

    def weak_and_strong(self, labeled, unlabeled, weak_gradient=False):
        """Makes the views of a step and passes them through the network, in training mode.

        Returns:
            The logits of labeled, weak and strong views; no gradient flows through the weak
            ones unless `weak_gradient`.
        """
        labeled_views = self.weak_views(labeled, "labeled")
        images = self.images(unlabeled)
        weak_views = self.weak_view(images, unlabeled, "unlabeled")
        strong_views = self.strong_view(images)
        self.learn_augmentation(labeled_views, labeled)
        n, m = labeled.shape[0], unlabeled.shape[0]
        if self.joint_batch_norm:
            views = ops.concatenate([labeled_views, weak_views, strong_views])
            logits = self.network(views, training=True)
            labeled_logits, weak_logits = logits[:n], logits[n : n + m]
            strong_logits = logits[n + m :]
        else:
            weak_logits = self.network(weak_views, training=True)
            labeled_logits, strong_logits = self.passed_apart(labeled_views, strong_views)
        if not weak_gradient:
            weak_logits = ops.stop_gradient(weak_logits)
        return labeled_logits, weak_logits, strong_logits

    def passed_apart(self, first, second, network=None):
        """Passes two batches through a network in training mode, each normalized separately.

        The running statistics follow the first.

        Args:
            first, second: Tensors of images.
            network: `network`, which None means, or a model of its layers with more outputs.

        Returns:
            A tuple with what the network returns for each.
        """
        network = network or self.network
        if not self.shares_pass:
            with self.kept_statistics():
                second = network(second, training=True)
            return network(first, training=True), second
        size = first.shape[0]
        with networks.apart(network, (size, second.shape[0])):
            both = network(ops.concatenate([first, second]), training=True)
        return tuple(
            keras.tree.map_structure(lambda x, rows=rows: x[rows], both)
            for rows in (slice(size), slice(size, None))
        )

    def learn_augmentation(self, labeled_views, labeled):
        """Updates CTAugment's rates by how well the averaged network knows distorted images.

        The network is the one before this step's update, the authors' the one after it. Other
        augmentations have no rates.
        """
        if self.strong_augmentation not in CTAUGMENT:
            return
        probes, bins = ctaugment.probe(
            labeled_views,
            self.seed_generator,
            pixel_translation=self.strong_augmentation == "ctaugment_pixels",
        )
        probs = losses.probabilities(self.averaged_logits(probes, training=False))
        proximity = ctaugment.proximity(self.given_labels(labeled), probs)
        self.rates.assign(ctaugment.updated_rates(self.rates.value, bins, proximity))
