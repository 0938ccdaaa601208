# SPDX-License-Identifier: Apache-2.0
"""Co-teaching: two networks, and each learns the labels that the other finds easiest."""

import keras
from keras import ops

from ssl_noisy import losses, schedules
from ssl_noisy.robust import TwoNetworkLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class CoTeaching(TwoNetworkLearner):
    """Trains two networks, each on the smallest losses that the other has in a batch.

    At first all of a batch is taken; the share that is left out rises to that of wrong
    labels, which must be known or guessed. The first network is the one that is evaluated.

    Departures from the authors' code (bhanML/Co-teaching): that takes the mean over
    the labels taken and divides it by their number once more; here it is the mean. SGD trains both
    networks in one step, with weight decay and a cosine, where they have an Adam each,
    without weight decay, and a linear decay from epoch 80 of 200 on.

    Args:
        assumed_noise_rate: Float in [0, 1), the share of wrong labels, the paper's tau. Of a
            batch that share is left out, rounded up; one example stays at least.
        selection_end: Float in [0, 1], the share of the training at which the share that is left
            out, rising from 0, reaches `assumed_noise_rate`.

    Reference:
        [Han et al., 2018](https://arxiv.org/abs/1804.06872), algorithm 1.
    """

    term_names = ("supervised_loss",)
    monitor_names = ("kept_rate",)
    training_defaults = {
        "steps": 78_200,  # 200 epochs
        "steps_per_epoch": 391,
        "learning_rate": 0.02,
        "schedule": "cosine",
        "momentum": 0.9,
        "nesterov": False,
    }

    def __init__(
        self,
        network,
        task=None,
        *,
        assumed_noise_rate: float = 0.2,
        selection_end: float = 0.05,
        **kwargs,
    ):
        super().__init__(network, task, **kwargs)
        self.check_momentum(assumed_noise_rate=assumed_noise_rate)
        self.check_share(selection_end=selection_end)
        self.assumed_noise_rate = assumed_noise_rate
        self.selection_end = selection_end

    def images_per_step(self):
        return 2 * self.batch_size  # two networks

    def objective(self, labeled):
        labels, num_kept = self.given_labels(labeled), self.num_kept(labeled.shape[0])
        views = self.weak_view(self.images(labeled), labeled)
        logits = [network(views, training=True) for network in self.networks]
        self.observe(labeled, logits[0])
        values = [losses.cross_entropy(labels, of_one) for of_one in logits]
        # The place of each example in the order of losses, so that as many are kept as said.
        ranks = [ops.argsort(ops.argsort(ops.stop_gradient(of_one))) for of_one in values]
        kept = [ops.cast(of_one, "float32") < num_kept for of_one in ranks]
        exchanged = zip(values, reversed(kept))
        total = sum(ops.sum(ops.where(chosen, own, 0.0)) for own, chosen in exchanged)
        return {
            "terms": {"supervised_loss": total / num_kept},
            "monitors": {"kept_rate": num_kept / labeled.shape[0]},
        }

    def num_kept(self, size):
        """Returns how many of a batch of `size` examples are taken now, a float32 scalar."""
        ramp = schedules.linear_ramp(self.progress(), 0.0, self.selection_end)
        # 0.4 * 10 is below 4 in float32.
        return ops.maximum(ops.floor((1 - self.assumed_noise_rate * ramp) * size + 1e-3), 1.0)
