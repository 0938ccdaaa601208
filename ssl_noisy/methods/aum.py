# SPDX-License-Identifier: Apache-2.0
"""AUM: two passes find wrong labels by their margins; the training leaves them out."""

import keras
from keras import ops

from ssl_noisy import losses
from ssl_noisy.arguments import above, choice, count, interval
from ssl_noisy.labels import aum
from ssl_noisy.robust import RobustLearner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class AUM(RobustLearner):
    """Trains on the labels that two passes over the data do not flag.

    Each pass is a training of its own, with a constant learning rate and small batches, on a
    network with one more class. The members of this class, the threshold samples, are labeled
    examples drawn at random, different ones in each pass. The area under the margin (AUM) of an
    example is the mean of its margins, the logit of the given label minus the largest other
    logit, from the second time that the example is seen: in training mode, before the update. A
    label is flagged if its AUM is below those of nearly all threshold samples. The run then
    trains from scratch on the remaining labels, for as many passes over them as `steps` make
    over all labels, so for fewer steps.

    A run with `--remove_labels=aum` makes the passes before any other method. Methods that use
    unlabeled examples keep their number of steps, because images that lose their label become
    unlabeled. `is_label_issue` follows the rule of all methods, applied to the record of the
    passes; it may differ from what is removed.

    Departures from the authors' code (asappresearch/aum at 892e76e):

    - Flagged examples are left out. There they stay in the batches with a weight of 0, so they
      pass through batch norm, and the number of steps does not change.
    - The number of threshold samples is the paper's (`threshold_samples`).
    - Logits are not rounded to half precision; no validation set is held out.

    In Python, `ssl_noisy.AUMCalculator` measures areas in your own loop, `ssl_noisy.labels.aum`
    has the threshold samples and the rule, and this class trains on the remaining labels.

    Reference:
        [Pleiss et al., 2020](https://arxiv.org/abs/2001.10528), sections 3 and 4.
    """

    pass_share: float = above(
        0, 0.5, "Epochs of a pass for each epoch of the training on all labels."
    )
    pass_batch_size: int = count(64, "Examples per step of a pass. Small batches memorize less.")
    threshold_percentile: float = interval(
        "[0, 100]", 99.0, "Flag a label below this percentile of the threshold samples."
    )
    combine: str = choice(
        "and",
        aum.COMBINE,
        "Flag a label if both passes flag it (`and`, as in the authors' code), or one of them "
        "(`or`). A threshold sample is judged by the other pass alone.",
    )
    threshold_samples: str = choice(
        "paper",
        aum.THRESHOLD_SAMPLES,
        "How many there are: `paper`, num_labels / (num_classes + 1); `authors_code`, num_labels / "
        "num_classes.",
    )
    batch_size: int = RobustLearner.batch_size.with_default(256)
    weight_decay: float = RobustLearner.weight_decay.with_default(1e-4)

    term_names = ("supervised_loss",)
    removes_labels = True
    training_defaults = RobustLearner.training_defaults | {
        "steps": 58_500,  # 300 epochs
        "steps_per_epoch": 195,
        "learning_rate": 0.1,
        "schedule": "drops_1_2_3_4",
        "nesterov": True,
    }

    def objective(self, labeled):
        logits = self.observed_logits(labeled)
        loss = ops.mean(losses.cross_entropy(self.given_labels(labeled), logits))
        return {"terms": {"supervised_loss": loss}, "monitors": {}}
