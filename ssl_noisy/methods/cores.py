# SPDX-License-Identifier: Apache-2.0
"""CORES: the network is made confident, and labels that it then finds unlikely are left out."""

import keras
import numpy as np
from keras import ops
from scipy import special

from ssl_noisy import losses, schedules
from ssl_noisy.robust import RobustLearner, mean_of_kept


@keras.saving.register_keras_serializable(package="ssl_noisy")
class Cores(RobustLearner):
    """Trains on cross-entropy less its mean over all classes, and sieves the labels by it.

    The loss of an example is -log p[label] - beta * mean over classes k of -log p[k]. Its second
    part rewards confidence; beta rises from 0. Later a label takes part only if it passes the
    sieve, -log p[label] <= mean of -log p[k]: the mean of the loss is over those of the
    batch that do, and 0 if none does.

    Defaults are those of the authors' code, phase 1 (haochenglouis/cores, a8dba02). As there,
    probabilities in the mean over classes, of the loss and of the sieve, have a floor of 1e-8.
    Without it the loss falls without limit, and the sieve passes wrong labels once the network is
    confident. The sieve begins after 31 of 100 epochs: the authors count from 0, and keep all
    labels up to epoch 30. They divide the learning rate by 1 + beta; here the loss is divided,
    which for SGD is the same.

    The method depends on its optimizer. On digits with 40 % of the labels wrong, these defaults
    reach 97.5 % test accuracy and an F1 of 94 % in finding wrong labels; with momentum 0.9, weight
    decay and `drops_1_3_5_6` it is 90 and 78 % (`flags/cores_digits_sym40.cfg`).

    Departures: the second part's mean over classes has equal weights, as in the sieve, not the
    shares of the given labels; their phase 2, consistency training, is not here.

    Args:
        confidence_weight: Float >= 0, the weight that the second part of the loss reaches, the
            paper's beta.
        confidence_start: Float in [0, 1], the share of the training at which that weight begins
            to rise from 0.
        confidence_end: Float in [0, 1], the share of the training at which it is reached.
        sieve_start: Float in [0, 1], the share of the training from which the sieve leaves
            labels out.

    Reference:
        [Cheng et al., 2021](https://arxiv.org/abs/2010.02347), section 3.
    """

    term_names = ("supervised_loss",)
    monitor_names = ("kept_rate",)
    training_defaults = {
        "steps": 78_200,  # 100 epochs
        "steps_per_epoch": 782,
        "learning_rate": 0.1,
        "schedule": "drops_1_2",
        "momentum": 0.0,
        "nesterov": False,
    }

    def __init__(
        self,
        network,
        task=None,
        *,
        confidence_weight: float = 2.0,
        confidence_start: float = 0.1,
        confidence_end: float = 0.4,
        sieve_start: float = 0.31,
        batch_size: int = 64,
        weight_decay: float = 0.0,
        **kwargs,
    ):
        super().__init__(network, task, batch_size=batch_size, weight_decay=weight_decay, **kwargs)
        self.check_at_least(0, confidence_weight=confidence_weight)
        self.check_share(
            confidence_start=confidence_start,
            confidence_end=confidence_end,
            sieve_start=sieve_start,
        )
        self.check_order(confidence_start=confidence_start, confidence_end=confidence_end)
        self.confidence_weight = confidence_weight
        self.confidence_start = confidence_start
        self.confidence_end = confidence_end
        self.sieve_start = sieve_start

    def example_states(self, task):
        return {"sieve_values": np.full(task.num_examples, np.finfo("float32").max, "float32")}

    def objective(self, labeled):
        labels, logits = self.given_labels(labeled), self.weak_logits(labeled)
        sieve_values = ops.stop_gradient(losses.cores(labels, logits))
        self.remember(self.sieve_values, labeled, sieve_values)
        is_kept = (sieve_values <= 0) | (self.progress() < self.sieve_start)
        kept = ops.cast(is_kept, "float32")
        weight = self.confidence_weight * schedules.linear_ramp(
            self.progress(), self.confidence_start, self.confidence_end
        )
        confidence = losses.uniform_cross_entropy(logits)
        values = losses.cross_entropy(labels, logits) - weight * confidence
        loss = mean_of_kept(values, kept) / (1 + weight)
        return {"terms": {"supervised_loss": loss}, "monitors": {"kept_rate": ops.mean(kept)}}

    def detected(self):
        """Returns `cores_sieve`: labels that did not pass the sieve when they last came up.

        The score is the sigmoid of -log p[label] less the mean of -log p[k].
        """
        values = ops.convert_to_numpy(self.sieve_values.value)
        known = values < np.finfo("float32").max
        score = special.expit(np.where(known, values, np.nan))
        return {"cores_sieve": (score, known & (values > 0))}
