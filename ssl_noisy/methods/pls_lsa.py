# SPDX-License-Identifier: Apache-2.0
"""PLS-LSA: wrong labels by large losses and by a linear separation, which take turns."""

import functools

import keras
import numpy as np
from absl import logging
from keras import ops

from ssl_noisy import arguments, augment, losses, networks
from ssl_noisy.arguments import above, at_least, choice, count, interval, momentum, switch
from ssl_noisy.auxiliary_heads import AuxiliaryHeads
from ssl_noisy.labels import mixture, separation
from ssl_noisy.robust import TwoNetworkLearner
from ssl_noisy.strong_views import StrongViews

UNKNOWN = -1.0  # a loss of an example that was not seen, or a probability without a fit
LEAST_WRONG = 3  # labels whose pseudo-labels are weighed


@keras.saving.register_keras_serializable(package="ssl_noisy")
class PLSLSA(AuxiliaryHeads, StrongViews, TwoNetworkLearner):
    """Replaces labels that look wrong by pseudo-labels, as far as these can be trusted.

    After each pass one of two detectors says which labels are wrong. `loss`: a mixture of two
    Gaussians is fitted to the losses, and the probability of the larger one is above
    1 - `clean_threshold`. `linear`: a logistic regression separates the labels that `loss` finds
    from the others by the features of an earlier stage of the network, pooled and scaled to length
    1, and divides them again. By turns, the linear one first, they find what the other misses.

    The pseudo-label of an image is the sharpened prediction of a weak view. Those that replace
    labels have a weight: another mixture is fitted to the losses of these images with their
    pseudo-labels, and the weight is the probability of the smaller ones. The others have weight 1.

    Images with a pseudo-label are seen in a strong view, the others in a weak one. All are mixed,
    with one share for the batch, and have a weighted cross-entropy. A linear projection of the
    features of each mixture must be near those of contrastive views of images whose class is that
    of either image of the mixture. Training starts with a warm-up of at least one pass, on given
    labels, without this contrastive loss.

    With `two_networks`, it is PLS-LSA+: a label is wrong if both networks find so, its weight is
    the mean of both, and the pseudo-label is the mean of both predictions, sharpened.

    Departures from the authors' code (PaulAlbert31/LSA, 1b2ca0c):

    - Losses and features are those of plain images in evaluation mode, as there, but of the last
      pass, during which the network changed; theirs are all of the end of an epoch. A pseudo-label
      is compared with the prediction of its own step, there with that of the end of the epoch.
      Logarithms cannot be infinite, so no loss has to be replaced by the second largest one.
    - The mixtures start from a 2-means that is not random, and the regression has a small penalty
      (see `separation.probabilities`). If `loss` finds no label wrong, or all, so does `linear`;
      there it fails.
    - The stage of a network is a size of its maps (see `networks.stages`): in ResNets the authors'.
    - In the warm-up, batch norm's running statistics also follow contrastive views.
    - Contrastive views make their four changes of colors in one order, and interpolate bilinearly,
      as the crops of strong views do; there they are bicubic.
    - PLS-LSA+ updates both networks at once; there they take turns by the epoch. In the warm-up,
      each pseudo-label is the other network's; there, all are the second's by an alias. The sum of
      both is evaluated with `sum_networks`, as there.

    The linear detector is for web noise, images of no class. It looks at the image, not at the
    label: where classes were exchanged, it is hardly better than chance.

    Defaults are theirs for 50,000 images in 32x32 pixels: 200 epochs from a network that SimCLR has
    trained on the same images (`--initial_weights` of a run). For larger images, their magnitude of
    RandAugment is 4, for WebVision, `feature_stage` is 1 and `prior_weight` 1.

    Reference:
        [Albert et al., 2024](https://arxiv.org/abs/2407.05528).
    """

    detector: str = choice(
        "alternating",
        ("alternating", "loss", "linear"),
        "What finds wrong labels after each pass: `loss`, `linear`, or both by turns. With `loss`, "
        "it is PLS as the authors of PLS-LSA have it.",
    )
    clean_threshold: float = momentum(
        0.05, "Keep a label if the probability that it is clean is above this."
    )
    feature_stage: int = count(
        2,
        "Separate labels by the features at the end of this stage, from one change of the size of "
        "the maps to the next. Of a network with fewer stages, by its last features.",
        bits=10,
    )
    two_networks: bool = switch(False, "Train two networks, as PLS-LSA+ does.")
    temperature: float = arguments.temperature(0.5)
    mixup_alpha: float = arguments.mixup_alpha(1.0)
    contrastive_temperature: float = above(0, 0.2, "Temperature of the contrastive loss.")
    projection_size: int = count(128, "Number of projected features.")
    smallest_crop: float = interval(
        "(0, 1]",
        0.08,
        "A view shows at least this fraction of the area of its image.",
    )
    prior_weight: float = at_least(0, 0.0, "Weight of R_A, which keeps all classes in use.")
    warmup_end: float = arguments.warmup_end(0.0)
    strong_augmentation: str = StrongViews.strong_augmentation.with_default("lsa")
    batch_size: int = TwoNetworkLearner.batch_size.with_default(256)

    needs_pixels = True  # for a contrastive view, and features of a stage
    term_names = ("supervised_loss", "contrastive_loss")
    monitor_names = ("kept_rate", "trust")
    training_defaults = TwoNetworkLearner.training_defaults | {
        "steps": 39_200,  # 200 epochs
        "steps_per_epoch": 196,
        "learning_rate": 0.1,
        "schedule": "half_cosine",
    }

    @classmethod
    def check_arguments(cls, values):
        is_possible = values.two_networks or not values.sum_networks
        cls.require(is_possible, "sum_networks", True, "False without two_networks")

    def build_networks(self):
        if self.two_networks:
            super().build_networks()

    @property
    def networks(self):
        return super().networks if self.two_networks else (self.network,)

    @functools.cached_property
    def staged_networks(self):
        """Each of `networks` with one more output: the features of `feature_stage`."""
        user = type(self).__name__
        return tuple(networks.with_stage(one, self.feature_stage, user) for one in self.networks)

    def build_state(self):
        super().build_state()
        self.projections = [
            keras.Sequential(
                [
                    keras.Input(model.output[0].shape[1:]),
                    keras.layers.Dense(self.projection_size, dtype="float32"),
                ]
            )
            for model in self.featured_networks
        ]

    def build_example_state(self, task):
        size, count = task.num_examples, len(self.networks)
        if self.feature_stage > len(networks.stage_ends(self.network)) and self.detector != "loss":
            logging.warning(
                "%s has fewer than feature_stage=%d stages: labels are separated by its last "
                "features.",
                self.network.name,
                self.feature_stage,
            )
        # A column per network: the losses of the last pass, with the given and the pseudo-label.
        self.last_losses = self.add_state("last_losses", np.full((size, count, 2), UNKNOWN, "f4"))
        num_features = self.staged_networks[0].output[0].shape[-1]
        self.features = self.add_state("features", np.zeros((size, count, num_features), "f4"))
        # Whether a label is wrong, by the losses and by the features.
        self.wrong_probs = self.add_state("wrong_probs", np.full((size, count, 2), UNKNOWN, "f4"))
        self.is_wrong = self.add_state("is_wrong", np.zeros(size, "int8"))
        self.trust = self.add_state("trust", np.ones(size, "f4"))

    def decayed_parts(self):
        return *self.networks, *self.projections

    def images_per_step(self):
        return 2 * len(self.networks) * self.batch_size  # mixtures and contrastive views

    def strong_geometry(self):
        return {"flip": False, "crop_area": (self.smallest_crop, 1.0)}

    def contrastive_view(self, images):
        """Returns a view of `images` as SimCLR makes it: see `augment.contrastive_view`."""
        crop_area = (self.smallest_crop, 1.0)
        return augment.contrastive_view(
            images, self.seed_generator, flip=self.task.flip, crop_area=crop_area
        )

    def objective(self, labeled):
        images = self.images(labeled)
        given = ops.one_hot(self.given_labels(labeled), self.num_classes, dtype="float32")
        is_first_pass = self.step.value < self.steps_per_pass(self.task)
        is_warmup = is_first_pass | (self.fraction_done() < self.warmup_end)
        self.detect()
        # In evaluation mode, before the passes in training mode move the running statistics.
        plain = [
            tuple(map(ops.stop_gradient, model(images, training=False)))
            for model in self.staged_networks
        ]
        weak = [self.weak_view(images, labeled) for _ in range(2)]
        logits = [ops.stop_gradient(network(weak[1], training=True)) for network in self.networks]
        self.observe(labeled, logits[0])
        guesses = self.guesses(logits, is_warmup)
        self.keep(labeled, plain, given, guesses)
        is_wrong = ops.take(self.is_wrong.value, labeled, axis=0) > 0
        is_wrong = is_wrong & ops.logical_not(is_warmup)
        trust = ops.where(is_wrong, ops.take(self.trust.value, labeled, axis=0), 1.0)
        strong = self.strong_view(images)
        views = ops.where(is_wrong[:, None, None, None], strong, weak[0])
        contrasted = self.contrastive_view(images)
        totals = []
        for i, guess in enumerate(guesses):
            soft_labels = ops.where(is_wrong[:, None], guess, given)
            totals.append(self.terms(i, views, contrasted, soft_labels, trust, is_warmup))
        terms = {name: sum(terms[name] for terms in totals) for name in self.term_names}
        kept_rate = 1 - ops.mean(ops.cast(is_wrong, "float32"))
        return {"terms": terms, "monitors": {"kept_rate": kept_rate, "trust": ops.mean(trust)}}

    def guesses(self, logits, is_warmup):
        """Returns the pseudo-labels of a batch for each network, without gradient.

        Args:
            logits: For each network, float `(batch_size, num_classes)` of a weak view.
            is_warmup: Bool scalar. After the warm-up, both networks guess together.
        """
        probs = [losses.probabilities(of_one) for of_one in logits]
        mean = sum(probs) / len(probs)
        return [losses.sharpen(ops.where(is_warmup, own, mean), self.temperature) for own in probs]

    def keep(self, labeled, plain, given, guesses):
        """Stores the losses and the features of a batch, for the next detection.

        Args:
            labeled: int32 `(batch_size,)`.
            plain: For each network, features and logits of plain images.
            given, guesses: Float32 `(batch_size, num_classes)`, labels; the latter of each network.
        """
        features = ops.stack([losses.unit_length(of_one) for of_one, _ in plain], axis=1)
        values = []
        for i, (_, logits) in enumerate(plain):
            others = guesses[(i + 1) % len(guesses)]  # of the other network, if there are two
            of_one = [losses.soft_cross_entropy(labels, logits) for labels in (given, others)]
            values.append(ops.stack(of_one, axis=1))
        self.remember(self.features, labeled, features)
        self.remember(self.last_losses, labeled, ops.stack(values, axis=1))

    def detect(self):
        """Looks for wrong labels and weighs pseudo-labels, at the start of each pass but the first.

        The linear detector follows the first pass, the third one, and so on.
        """
        per_pass = self.steps_per_pass(self.task)
        is_odd = (self.step.value // per_pass) % 2 == 1
        is_linear = {"alternating": is_odd, "loss": False, "linear": True}[self.detector]

        def find():
            of_networks = []
            for i in range(len(self.networks)):
                last, before = self.last_losses.value[:, i], self.wrong_probs.value[:, i, 1]
                features = self.features.value[:, i]
                of_networks.append(self.found(last, features, before, is_linear))
            probs, is_wrong, trust = (ops.stack(parts, axis=1) for parts in zip(*of_networks))
            is_wrong = ops.all(is_wrong, axis=1)
            trust = ops.where(is_wrong, ops.mean(trust, axis=1), 1.0)
            return probs, ops.cast(is_wrong, "int8"), trust

        is_due = (self.step.value % per_pass == 0) & (self.step.value > 0)
        states = (self.wrong_probs, self.is_wrong, self.trust)
        found = ops.cond(is_due, find, lambda: tuple(state.value for state in states))
        for state, value in zip(states, found):
            state.assign(value)

    def found(self, last, features, before, is_linear):
        """Returns what one network finds in the last pass.

        Args:
            last: Float32 `(num_examples, 2)`: losses with the given and with the pseudo-label.
            features: Float32 `(num_examples, num_features)`.
            before: Float32 `(num_examples,)`, what the linear detector said last.
            is_linear: Bool, a scalar tensor or not.

        Returns:
            `(probs, is_wrong, trust)`, with the number of examples first: float32 `(..., 2)`, the
            probabilities of a wrong label by the losses and by the features; bool; and float32.
        """
        known = last[:, 0] >= 0
        clean = mixture.gaussian_posterior(mixture.scaled(ops.where(known, last[:, 0], np.inf)))
        is_wrong = known & (clean <= self.clean_threshold)
        by_features = before
        if self.detector != "loss":
            separate = lambda: separation.probabilities(features, is_wrong, known)  # noqa: E731
            by_features = ops.cond(is_linear, separate, lambda: before)
            is_wrong = ops.where(is_linear, known & (by_features > 0.5), is_wrong)
        probs = ops.stack([1 - clean, by_features], axis=1)
        return ops.where(known[:, None], probs, UNKNOWN), is_wrong, trusted(last[:, 1], is_wrong)

    def terms(self, i, views, contrasted, soft_labels, trust, is_warmup):
        """Returns the loss terms of network i.

        Args:
            i: Place of the network.
            views: Views to mix, float `(batch_size, height, width, channels)`.
            contrasted: Contrastive views of the same images.
            soft_labels: Float32 `(batch_size, num_classes)`.
            trust: Float32 `(batch_size,)`, their weights.
            is_warmup: Bool scalar.
        """
        network, projection = self.featured_networks[i], self.projections[i]
        partners, shares = augment.mixing(
            trust.shape[0], self.seed_generator, alpha=self.mixup_alpha, keep_larger=True
        )
        features, logits = network(augment.mix(views, partners, shares), training=True)
        own = losses.soft_cross_entropy(soft_labels, logits)
        other = losses.soft_cross_entropy(ops.take(soft_labels, partners, axis=0), logits)
        # The sum of the weights is the same in any order.
        values = shares * trust * own + (1 - shares) * ops.take(trust, partners) * other
        supervised = ops.sum(values) / ops.maximum(ops.sum(trust), 1e-6)
        prior = ops.where(is_warmup, 0.0, self.prior_weight * losses.prior_loss(logits))
        contrasted, _ = network(contrasted, training=True)
        targets = losses.same_class(ops.argmax(soft_labels, axis=-1))
        contrastive = losses.soft_contrastive(
            projection(features),
            projection(contrasted),
            augment.mix(targets, partners, shares),
            self.contrastive_temperature,
        )
        return {
            "supervised_loss": supervised + prior,
            "contrastive_loss": ops.where(is_warmup, 0.0, contrastive),
        }

    def image_statistics(self):
        """Returns `trust`, the weight of each image: that of its pseudo-label, or 1."""
        seen = ops.convert_to_numpy(self.wrong_probs.value)[:, 0, 0] >= 0
        return {"trust": np.where(seen, ops.convert_to_numpy(self.trust.value), np.nan)}

    def detected(self):
        """Returns `pls_lsa_loss` and `pls_lsa_linear`, the probabilities of a wrong label.

        They are those of the last fit of each detector, of two networks the mean. A label is
        flagged if all networks find it wrong.
        """
        probs = ops.convert_to_numpy(self.wrong_probs.value)
        found = {}
        for name, values, limit in (
            ("loss", probs[..., 0], 1 - self.clean_threshold),
            ("linear", probs[..., 1], 0.5),
        ):
            known = (values >= 0).all(axis=1)
            score = np.where(known, values.mean(axis=1), np.nan)
            found[f"pls_lsa_{name}"] = score, known & (values > limit).all(axis=1)
        return found


def trusted(pseudo_losses, is_wrong):
    """Weighs the pseudo-labels that replace labels, by their losses.

    Args:
        pseudo_losses: Float32 `(num_examples,)`.
        is_wrong: Bool `(num_examples,)`.

    Returns:
        Float32 `(num_examples,)` in [0, 1]: the probability of the component with the smaller mean
        where the label is wrong; 1 elsewhere, and everywhere with fewer than three wrong labels.
    """
    x = mixture.scaled(ops.where(is_wrong, pseudo_losses, np.inf))
    is_enough = ops.sum(ops.cast(is_wrong, "int32")) >= LEAST_WRONG
    return ops.where(is_wrong & is_enough, mixture.gaussian_posterior(x), 1.0)
