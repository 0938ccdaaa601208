# SPDX-License-Identifier: Apache-2.0
"""Co-teaching: each of two networks trains on the labels with small losses in the other."""

import keras
from keras import ops

from ssl_noisy import losses, schedules
from ssl_noisy.arguments import fraction, momentum
from ssl_noisy.robust import TwoNetworkLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class CoTeaching(TwoNetworkLearner):
    """Trains two networks, each on the smallest losses that the other has in a batch.

    At first, nearly all of a batch is used. The fraction left out rises with each pass to that of
    the wrong labels, which must be known or guessed. The first network is evaluated.

    Departures from the authors' code (bhanML/Co-teaching): that code divides the mean over the
    selected labels by their number once more, which hardly matters with Adam; here the loss is
    the mean. It also lowers Adam's `beta_1` from 0.9 to 0.1 when the learning rate starts to fall.
    Here `beta_1` is constant, and the rate falls with every step instead of every epoch.

    Reference:
        [Han et al., 2018](https://arxiv.org/abs/1804.06872), algorithm 1.
    """

    assumed_noise_rate: float = momentum(
        0.2,
        "Fraction of wrong labels, the paper's tau. This fraction of a batch is left out, rounded "
        "up; at least one example remains.",
    )
    selection_end: float = fraction(
        0.05,
        "Fraction of training after which the fraction left out reaches `assumed_noise_rate`. It "
        "rises with each epoch.",
    )
    weight_decay: float = TwoNetworkLearner.weight_decay.with_default(0.0)

    term_names = ("supervised_loss",)
    monitor_names = ("kept_rate",)
    training_defaults = {
        "steps": 78_200,  # 200 epochs
        "steps_per_epoch": 391,
        "optimizer": "adam",
        "learning_rate": 0.001,
        "schedule": "linear_2_5",
        "momentum": 0.9,
    }

    def images_per_step(self):
        return 2 * self.batch_size  # two networks

    def objective(self, labeled):
        labels, num_kept = self.given_labels(labeled), self.num_kept(labeled.shape[0])
        views = self.weak_view(self.images(labeled), labeled)
        logits = [network(views, training=True) for network in self.networks]
        self.observe(labeled, logits[0])
        values = [losses.cross_entropy(labels, of_one) for of_one in logits]
        # The rank of each loss, so that ties do not change how many are kept.
        ranks = [ops.argsort(ops.argsort(ops.stop_gradient(of_one))) for of_one in values]
        kept = [ops.cast(of_one, "float32") < num_kept for of_one in ranks]
        exchanged = zip(values, reversed(kept))
        total = sum(ops.sum(ops.where(chosen, own, 0.0)) for own, chosen in exchanged)
        return {
            "terms": {"supervised_loss": total / num_kept},
            "monitors": {"kept_rate": num_kept / labeled.shape[0]},
        }

    def num_kept(self, size):
        """Returns how many examples of a batch of `size` are used now, a float32 scalar."""
        # As the authors train: the first pass is number 1 of 0 to T - 1, with T passes of rising.
        length = self.steps_per_pass(self.task)
        last = self.selection_end * self.steps / length - 1
        if last > 1:
            done = ops.cast(self.step.value // length, "float32")
            ramp = ops.minimum((done + 1) / last, 1.0)
        else:  # in two passes or fewer it rises with each step
            ramp = schedules.linear_ramp(self.fraction_done(), 0.0, self.selection_end)
        # 0.4 * 10 is below 4 in float32.
        return ops.maximum(ops.floor((1 - self.assumed_noise_rate * ramp) * size + 1e-3), 1.0)
