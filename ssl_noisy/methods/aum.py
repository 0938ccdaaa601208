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

    The passes are trainings of their own, with a constant learning rate and small batches, on a
    network with one more class. Its members, the threshold samples, are labeled examples drawn
    at random, others in each pass. The area under the margin (AUM) of an example is the mean of
    logit of the given label less largest other logit, from the second time on that the example
    is seen: in training mode, before the update. Below nearly all threshold samples, the label
    is flagged. A run then trains this method from scratch on the labels that are left, with as many
    passes over them as `steps` make over all labels, so with fewer steps.

    A run with `--remove_labels=aum` makes the passes before any other method. Methods that draw
    unlabeled examples keep their number of steps: the images whose labels were removed are
    unlabeled then. Which labels are issues (`is_label_issue`) is decided on the record of the
    passes by the rule of all methods: it may differ from what is removed.

    Departures from the authors' code (asappresearch/aum at 892e76e):

    - Flagged examples are left out. There they stay in the batches with a weight of 0, so they
      pass through batch norm, and a pass has as many steps as before.
    - There are as many threshold samples as the paper says (`threshold_samples`).
    - Logits are not rounded to half precision; no validation set is held out.

    In Python, `ssl_noisy.AUMCalculator` measures areas in your own loop, `ssl_noisy.labels.aum`
    has the threshold samples and the rule, and this class trains on the labels that are left.

    Reference:
        [Pleiss et al., 2020](https://arxiv.org/abs/2001.10528), sections 3 and 4.
    """

    pass_share: float = above(
        0, 0.5, "Epochs of a pass for each epoch of the training on all labels."
    )
    pass_batch_size: int = count(64, "Examples per step of a pass: few, to memorize less.")
    threshold_percentile: float = interval(
        "[0, 100]", 99.0, "Flag a label below this percentile of the threshold samples."
    )
    combine: str = choice(
        "and",
        aum.COMBINE,
        "Flag a label if both passes do (`and`, as in the authors' code), or one (`or`). Only the "
        "other pass judges a threshold sample.",
    )
    threshold_samples: str = choice(
        "paper",
        aum.THRESHOLD_SAMPLES,
        "How many: `paper`, num_labels / (num_classes + 1); `authors_code`, num_labels / "
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
