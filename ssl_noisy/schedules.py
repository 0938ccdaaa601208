# SPDX-License-Identifier: Apache-2.0
"""Learning rates, ramps and warm-ups as pure functions of the step."""

import math

import keras
from keras import ops

from ssl_noisy.errors import UserError

# Shares of the training after each of which the rate is divided by ten.
DROPS = {
    "drops_5_8_7_8": (5 / 8, 7 / 8),  # of 400 epochs 250 and 350: Arazo et al., 2020
    "drops_1_2_3_4": (1 / 2, 3 / 4),  # of 300 epochs 150 and 225: Pleiss et al., 2020
    "drops_1_3_5_6": (1 / 3, 5 / 6),  # of 300 epochs 100 and 250: Arazo et al., 2019
    "drops_1_3_2_3": (1 / 3, 2 / 3),  # of 120 epochs 40 and 80: Zhang and Sabuncu, 2018
    "drops_1_2": (1 / 2,),  # of 300 epochs 150: Li et al., 2020
}
SCHEDULES = ("cosine_7_16", "cosine", *DROPS, "constant")


@keras.saving.register_keras_serializable(package="ssl_noisy")
class CosineDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Decays the learning rate along part of a cosine's period.

    At step k of K it is `initial_learning_rate * cos(fraction * pi * k / K)`.
    The fraction 7/16 of FixMatch and UDA ends at 0.1951 of the initial rate,
    not at zero; `keras.optimizers.schedules.CosineDecay` is another curve.
    Steps after K keep the final rate.

    Args:
        initial_learning_rate: Float, the rate at step 0.
        steps: Positive integer K, the length of the training.
        fraction: Float in [0, 1/2], how far along the period to go.

    Reference:
        [Sohn et al., 2020](https://arxiv.org/abs/2001.07685), section 2.4.
    """

    def __init__(self, initial_learning_rate, steps, fraction=7 / 16):
        super().__init__()
        if steps < 1:
            raise UserError(f"`steps` must be at least 1. Received: steps={steps}")
        if not 0 <= fraction <= 0.5:
            raise UserError(f"`fraction` must be in [0, 0.5]. Received: fraction={fraction}")
        self.initial_learning_rate = initial_learning_rate
        self.steps = steps
        self.fraction = fraction

    def __call__(self, step):
        progress = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        return self.initial_learning_rate * ops.cos(self.fraction * math.pi * progress)

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "steps": self.steps,
            "fraction": self.fraction,
        }


def learning_rate(schedule, initial_learning_rate, steps):
    """Makes the learning rate named by `schedule`, one of `SCHEDULES`, for `steps` steps.

    `cosine_7_16` is FixMatch's, `cosine` goes to zero along a quarter period,
    those of `DROPS` are divided by ten after the shares of the steps in their names,
    `constant` is the number itself.
    """
    if schedule == "constant":
        return initial_learning_rate
    if schedule not in SCHEDULES:
        raise UserError(
            f"`schedule` must be one of {', '.join(SCHEDULES)}. Received: schedule={schedule!r}"
        )
    if schedule in DROPS:
        rates = [initial_learning_rate / 10**drop for drop in range(len(DROPS[schedule]) + 1)]
        # A rate holds up to and including its boundary, the index of a step.
        boundaries = [max(round(steps * share) - 1, 0) for share in DROPS[schedule]]
        return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    fraction = 7 / 16 if schedule == "cosine_7_16" else 1 / 2
    return CosineDecay(initial_learning_rate, steps, fraction)


def linear_ramp(progress, start, end):
    """Rises from 0 at `start` to 1 at `end`, shares of the training; a jump if they are equal.

    Args:
        progress: Float scalar tensor in [0, 1], the share of the training that is done.
        start, end: Floats in [0, 1].

    Returns:
        A float32 scalar in [0, 1].
    """
    rising = (progress - start) / max(end - start, 1e-9)
    return ops.where(progress >= end, 1.0, ops.clip(rising, 0.0, 1.0))


def warmed_up(momentum, num_updates):
    """Lowers the momentum of a moving average during its first updates.

    At 0.999, after 800 updates, 45 % of an average is still its initial value. By this momentum,
    min(momentum, (1 + n) / (10 + n)) at the n-th update, it is 1e-19, and the average spans about
    the last ninth of the updates. It has no effect from update (10 momentum - 1) / (1 - momentum)
    on: at 0.999 that is 8990.

    Args:
        momentum: Float in [0, 1), the share of the average that an update keeps in the end.
        num_updates: Scalar tensor n, the number of updates, the present one included.

    Returns:
        A float32 scalar in [0, 1).
    """
    count = ops.cast(num_updates, "float32")
    return ops.minimum(momentum, (1 + count) / (10 + count))
