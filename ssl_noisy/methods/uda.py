# SPDX-License-Identifier: Apache-2.0
"""UDA: strong views must agree with the sharpened, confident predictions on weak views."""

import keras
from keras import ops

from ssl_noisy import arguments, losses
from ssl_noisy.arguments import at_least, choice, fraction
from ssl_noisy.semi_supervised import WeakStrongLearner

TSA = ("none", "linear", "log", "exp")


def tsa_threshold(kind, progress, num_classes):
    """Returns the probability above which a labeled example is left out, the paper's eta_t.

    It rises from `1 / num_classes` at progress 0 to 1 at progress 1: linearly, fast at first
    (`log`, which ends at 0.993 of the range) or at the end (`exp`, which starts at 0.007 of it).

    Reference:
        [Xie et al., 2019](https://arxiv.org/abs/1904.12848), section 2.3 of version 1.
    """
    alpha = {
        "linear": lambda: progress,
        "log": lambda: 1 - ops.exp(-5 * progress),
        "exp": lambda: ops.exp(5 * (progress - 1)),
    }[kind]()
    return alpha * (1 - 1 / num_classes) + 1 / num_classes


@keras.saving.register_keras_serializable(package="ssl_noisy")
class UDA(WeakStrongLearner):
    """Trains on labels, and on the divergence of strong views from sharpened weak ones.

    The divergence is KL(sharpened weak || strong). It counts where the largest weak
    probability, before sharpening, is `>` the threshold, and is averaged over all unlabeled
    examples, including those left out. The optional entropy term is that of the weak views; only
    then does a gradient flow through them. Defaults are the values of the authors' CIFAR-10
    script (google-research/uda, 960684e, `run_cifar10_gpu.sh`).

    Departures from that code:

    - Strong views are new in each step; the code stores 100 of each image. As there, flip and
      shift come after them. Cutouts and warps fill with gray 127, not with the mean color.
    - Labeled, weak and strong views are separate forward passes; `joint_batch_norm=True`
      passes them as one batch, as the code does.
    - It labels the first N images. Here the draw is a setting, balanced by default.

    Reference:
        [Xie et al., 2019](https://arxiv.org/abs/1904.12848), section 2 and appendix.
    """

    confidence_threshold: float = fraction(
        0.8, "Keep an unlabeled example if its largest probability is > this."
    )
    temperature: float = arguments.temperature(0.4)
    tsa: str = choice(
        "none",
        TSA,
        "Training signal annealing: leave out a labeled example while the probability of its label "
        "is above a threshold that rises to 1; see `tsa_threshold`.",
    )
    entropy_weight: float = at_least(0, 0.0, "Weight of the mean entropy of predictions.")
    strong_augmentation: str = WeakStrongLearner.strong_augmentation.with_default("uda")
    decayed: str = WeakStrongLearner.decayed.with_default("all")
    ema_momentum: float = WeakStrongLearner.ema_momentum.with_default(0.9999)
    average_statistics: bool = WeakStrongLearner.average_statistics.with_default(True)

    term_names = ("supervised_loss", "unsupervised_loss", "entropy_loss")
    monitor_names = ("mask_rate", "labeled_mask_rate")
    training_defaults = WeakStrongLearner.training_defaults | {"steps": 500_000}

    def objective(self, labeled, unlabeled):
        labeled_logits, weak_logits, strong_logits = self.weak_and_strong(
            labeled, unlabeled, weak_gradient=self.entropy_weight > 0
        )
        probs = losses.probabilities(weak_logits)
        mask = ops.cast(ops.max(probs, axis=-1) > self.confidence_threshold, "float32")
        target = losses.probabilities(weak_logits, self.temperature)
        unsupervised = losses.batch_mean(losses.kl_divergence(target, strong_logits), mask)

        supervised, kept = self.annealed_loss(labeled, labeled_logits)
        pseudo_labels = ops.cast(ops.argmax(probs, axis=-1), "int32")
        monitors = {"labeled_mask_rate": ops.mean(kept)}
        outcome = self.outcome(supervised, unsupervised, pseudo_labels, mask, **monitors)
        entropy = ops.mean(losses.entropy(weak_logits))
        outcome["terms"]["entropy_loss"] = self.entropy_weight * entropy
        return outcome

    def annealed_loss(self, labeled, logits):
        """Returns the mean loss of the labeled examples that TSA keeps, and which those are."""
        given_labels = self.given_labels(labeled)
        self.observe(labeled, logits)
        values = losses.cross_entropy(given_labels, logits)
        if self.tsa == "none":
            return ops.mean(values), ops.ones_like(values)
        # exp(-cross-entropy) is the probability of the label.
        threshold = tsa_threshold(self.tsa, self.fraction_done(), logits.shape[-1])
        kept = ops.cast(ops.stop_gradient(ops.exp(-values)) <= threshold, "float32")
        return losses.masked_mean(values, kept), kept
