# SPDX-License-Identifier: Apache-2.0
"""Distillation: on all images, a network learns the soft labels of a finished one."""

import keras
from keras import ops

from ssl_noisy import contract, losses
from ssl_noisy.arguments import above, fraction
from ssl_noisy.errors import UserError
from ssl_noisy.learner import Learner


@keras.saving.register_keras_serializable(package="ssl_noisy")
class Distill(Learner):
    """Learns the predictions of a teacher, a finished network, for all images, labeled or not.

    A weak view of each image passes through both networks. The teacher is frozen: batch norm uses
    its running statistics, and dropout does nothing. With the temperature T, the loss is

    `T**2 * mean(cross_entropy(softmax(teacher / T), softmax(network / T)))`.

    With `distillation_weight` below 1, the cross-entropy with the given labels, of those images of
    the batch that have one, has the rest of the weight. Otherwise labels have no effect.

    A network of the same architecture that begins with random weights is a born-again network; its
    own student is the next generation. `--rounds` trains several. A network that was pre-trained
    without labels and fine-tuned on a few is the teacher of SimCLRv2. The teacher may have any
    architecture.

    Defaults are those of SimCLRv2's distillation as far as it says them: 400 epochs, here of 50,000
    images, the batch size, schedule and weight decay of its pre-training, for which this kit takes
    those of `simclr`. Departures from google-research/simclr:

    - SGD with momentum instead of LARS.
    - Weak views flip and shift; there they crop and flip. `weak_augmentation="crop"` does so.
    - The paper's equation lacks the factor T**2, which the authors' notebook has.
    - The paper adds up the loss of the labels over all labeled images; here it is a mean over those
      of a batch, which may have none.

    The keyword `teacher` of the constructor takes the teacher, a `keras.Model` from pixels to
    logits, which it freezes.

    Reference:
        [Chen et al., 2020](https://arxiv.org/abs/2006.10029), section 2 and equations 2 and 3;
        [Furlanello et al., 2018](https://arxiv.org/abs/1805.04770), section 3.
    """

    distillation_temperature: float = above(
        0, 1.0, "Divide the logits of teacher and network by this. Below 1 it sharpens soft labels."
    )
    distillation_weight: float = fraction(
        1.0, "Weight of the teacher's soft labels. The given labels have the rest, 1 minus this."
    )
    batch_size: int = Learner.batch_size.with_default(512)
    weight_decay: float = Learner.weight_decay.with_default(1e-4)
    decayed: str = Learner.decayed.with_default("all")
    ema_momentum: float = Learner.ema_momentum.with_default(0.0)

    term_names = ("distillation_loss", "supervised_loss")
    monitor_names = ("agreement",)  # how often both networks prefer the same class
    needs_labels = False
    needs_teacher = True
    training_defaults = Learner.training_defaults | {
        "steps": 39_000,  # 400 epochs
        "steps_per_epoch": 975,
        "learning_rate": 0.4,
        "schedule": "half_cosine_1_1000",
        "nesterov": False,
    }

    def __init__(self, network, task=None, *, teacher=None, name=None, **given):
        contract.num_logits(network, task)  # builds a network that has no weights yet
        super().__init__(network, name=name, **given)
        if teacher is None or teacher is network:
            raise UserError(
                "The `teacher` argument of `Distill` must be a trained keras.Model other than the "
                f"network. Received: teacher={teacher and teacher.name}"
            )
        teacher.trainable = False
        self.teacher = teacher
        if task is not None:
            self.attach(task)

    def attach(self, task):
        contract.check_teacher(self.teacher, task.image_shape, task.num_classes)
        super().attach(task)

    def streams(self):
        return {"unlabeled": self.batch_size}

    def pools(self):
        return {"unlabeled": self.task.unlabeled_pool()}

    def objective(self, unlabeled):
        views = self.weak_view(self.images(unlabeled), unlabeled, "unlabeled")
        taught = self.teacher(views, training=False)
        logits = self.network(views, training=True)
        self.observe(unlabeled, logits)
        distillation = losses.distillation(taught, logits, self.distillation_temperature)
        supervised = losses.labeled_cross_entropy(self.given_labels(unlabeled), logits)
        agrees = ops.argmax(taught, axis=-1) == ops.argmax(logits, axis=-1)
        return {
            "terms": {
                "distillation_loss": self.distillation_weight * ops.mean(distillation),
                "supervised_loss": (1 - self.distillation_weight) * supervised,
            },
            "monitors": {"agreement": ops.mean(ops.cast(agrees, "float32"))},
        }

    def get_config(self):
        teacher = keras.saving.serialize_keras_object(self.teacher)
        return {**super().get_config(), "teacher": teacher}

    @classmethod
    def from_config(cls, config):
        teacher = keras.saving.deserialize_keras_object(config["teacher"])
        return super().from_config({**config, "teacher": teacher})
