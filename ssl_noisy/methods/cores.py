# SPDX-License-Identifier: Apache-2.0
"""CORES: makes the network confident, then leaves out the labels that it finds unlikely."""

import keras
import numpy as np
from keras import ops
from scipy import special

from ssl_noisy import losses, schedules
from ssl_noisy.arguments import at_least, fraction
from ssl_noisy.robust import RobustLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class CORES(RobustLearner):
    """Trains on cross-entropy less its mean over all classes, and sieves the labels by it.

    The loss of an example is -log p[label] - beta * mean over classes k of -log p[k]. Its second
    part rewards confidence; beta rises from 0. Later, a label counts only if it passes the
    sieve, -log p[label] <= mean of -log p[k]. The loss is the mean over the labels of the batch
    that pass, or 0 if none does.

    Defaults are those of the authors' code, phase 1 (haochenglouis/cores, a8dba02). As there,
    probabilities in the mean over classes, both in the loss and in the sieve, have a floor of
    1e-8. Without it the loss falls without limit, and the sieve passes wrong labels once the
    network is confident. The sieve starts after 31 of 100 epochs: the authors count from 0 and
    keep all labels up to epoch 30. They divide the learning rate by 1 + beta; here the loss is
    divided, which is the same for SGD.

    The method depends on its optimizer. On digits with 40 % of the labels wrong, these defaults
    reach 97.5 % test accuracy and an F1 of 94 % in finding wrong labels; with momentum 0.9, weight
    decay and `drops_1_3_5_6`, they reach 90 and 78 % (`flags/cores_digits_sym40.cfg`).

    Departures: the mean over classes has equal weights, as in the sieve, not the frequencies of
    the given labels. Phase 2, consistency training, is not implemented.

    Reference:
        [Cheng et al., 2021](https://arxiv.org/abs/2010.02347), section 3.
    """

    confidence_weight: float = at_least(
        0, 2.0, "Final weight of the second part of the loss, the paper's beta."
    )
    confidence_start: float = fraction(0.1, "Fraction of training after which this weight rises.")
    confidence_end: float = fraction(
        0.4, "Fraction of training after which this weight has its final value."
    )
    sieve_start: float = fraction(0.31, "Fraction of training after which the sieve is used.")
    batch_size: int = RobustLearner.batch_size.with_default(64)
    weight_decay: float = RobustLearner.weight_decay.with_default(0.0)

    term_names = ("supervised_loss",)
    monitor_names = ("kept_rate",)
    training_defaults = RobustLearner.training_defaults | {
        "steps": 78_200,  # 100 epochs
        "steps_per_epoch": 782,
        "learning_rate": 0.1,
        "schedule": "drops_1_2",
        "momentum": 0.0,
    }

    @classmethod
    def check_arguments(cls, values):
        cls.require_order(values, "confidence_start", "confidence_end")

    def build_example_state(self, task):
        unknown = np.full(task.num_examples, np.finfo("float32").max, "float32")
        self.sieve_values = self.add_state("sieve_values", unknown)

    def objective(self, labeled):
        labels, logits = self.given_labels(labeled), self.observed_logits(labeled)
        sieve_values = ops.stop_gradient(losses.cores(labels, logits))
        self.remember(self.sieve_values, labeled, sieve_values)
        is_kept = (sieve_values <= 0) | (self.fraction_done() < self.sieve_start)
        kept = ops.cast(is_kept, "float32")
        weight = self.confidence_weight * schedules.linear_ramp(
            self.fraction_done(), self.confidence_start, self.confidence_end
        )
        confidence = losses.uniform_cross_entropy(logits)
        values = losses.cross_entropy(labels, logits) - weight * confidence
        loss = losses.masked_mean(values, kept) / (1 + weight)
        return {"terms": {"supervised_loss": loss}, "monitors": {"kept_rate": ops.mean(kept)}}

    def detected(self):
        """Returns `cores_sieve`: labels that did not pass the sieve when they were last seen.

        The score is the sigmoid of -log p[label] less the mean of -log p[k].
        """
        values = ops.convert_to_numpy(self.sieve_values.value)
        known = values < np.finfo("float32").max
        score = special.expit(np.where(known, values, np.nan))
        return {"cores_sieve": (score, known & (values > 0))}
