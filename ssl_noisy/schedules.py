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
# The same, divided by a hundred: Liu et al., 2020, of 120 epochs 40 and 80, of 150 80 and 120.
DROPS_BY_100 = {
    "drops_by_100_1_3_2_3": (1 / 3, 2 / 3),
    "drops_by_100_8_15_4_5": (8 / 15, 4 / 5),
}
# The same, divided by five: Gidaris et al., 2018, of 200 epochs 60, 120 and 160.
DROPS_BY_5 = {"drops_by_5_3_10_3_5_4_5": (3 / 10, 3 / 5, 4 / 5)}
# Half a cosine's period, down to this share of the rate.
HALF_COSINES = {
    "half_cosine_1_1000": 1 / 1000,  # Xiao et al., 2023
    "half_cosine_1_50": 1 / 50,  # Kim et al., 2023
    "half_cosine": 0.0,  # MoCo's code
}
SCHEDULES = (
    "cosine_7_16",
    "cosine",
    *HALF_COSINES,
    "cosine_15_restarts",
    "linear_2_5",
    *DROPS,
    *DROPS_BY_100,
    *DROPS_BY_5,
    "constant",
)


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


@keras.saving.register_keras_serializable(package="ssl_noisy")
class CosineRestarts(keras.optimizers.schedules.LearningRateSchedule):
    """Goes down half a cosine's period to a fraction of the learning rate, again and again.

    Args:
        initial_learning_rate: Float, the rate at the start of each cycle.
        steps: Positive integer, the length of the training.
        cycles: Positive integer. 15 of 10 epochs each are those of Liu et al., 2020.
        final_fraction: Float in [0, 1], of the initial rate, at the end of a cycle. Theirs is
            0.001 / 0.02.

    Reference:
        [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1608.03983), equation 5.
    """

    def __init__(self, initial_learning_rate, steps, cycles=15, final_fraction=0.05):
        super().__init__()
        if steps < 1 or cycles < 1:
            raise UserError(
                f"`steps` and `cycles` must be at least 1. Received: steps={steps}, cycles={cycles}"
            )
        if not 0 <= final_fraction <= 1:
            raise UserError(
                f"`final_fraction` must be in [0, 1]. Received: final_fraction={final_fraction}"
            )
        self.initial_learning_rate = initial_learning_rate
        self.steps = steps
        self.cycles = cycles
        self.final_fraction = final_fraction

    def __call__(self, step):
        # A whole number of steps: rounding must not put the first step of a cycle into the last.
        length = max(-(-self.steps // self.cycles), 1)
        step = ops.minimum(ops.cast(step, "int32"), self.steps - 1)
        share = ops.cast(step % length, "float32") / length
        shape = (1 + ops.cos(math.pi * share)) / 2
        fraction = self.final_fraction + (1 - self.final_fraction) * shape
        return self.initial_learning_rate * fraction

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "steps": self.steps,
            "cycles": self.cycles,
            "final_fraction": self.final_fraction,
        }


@keras.saving.register_keras_serializable(package="ssl_noisy")
class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Keeps the learning rate for part of the training, then decays it linearly to 0.

    Args:
        initial_learning_rate: Float, the rate until the decay begins.
        steps: Positive integer, the length of the training. Later steps keep the rate 0.
        start: Float in [0, 1), the share of the training after which the decay begins.

    Reference:
        [Han et al., 2018](https://arxiv.org/abs/1804.06872): from epoch 80 of 200, a share of 2/5.
    """

    def __init__(self, initial_learning_rate, steps, start=2 / 5):
        super().__init__()
        if steps < 1:
            raise UserError(f"`steps` must be at least 1. Received: steps={steps}")
        if not 0 <= start < 1:
            raise UserError(f"`start` must be in [0, 1). Received: start={start}")
        self.initial_learning_rate = initial_learning_rate
        self.steps = steps
        self.start = start

    def __call__(self, step):
        left = (1 - ops.cast(step, "float32") / self.steps) / (1 - self.start)
        return self.initial_learning_rate * ops.clip(left, 0.0, 1.0)

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "steps": self.steps,
            "start": self.start,
        }


def learning_rate(schedule, initial_learning_rate, steps):
    """Makes the learning rate named by `schedule`, one of `SCHEDULES`, for `steps` steps.

    `cosine_7_16` is FixMatch's, `cosine` goes to zero along a quarter period, those of
    `HALF_COSINES` go to the share in their names, or 0, along half a period, `cosine_15_restarts`
    is `CosineRestarts`, `linear_2_5` is `LinearDecay`, those of `DROPS` are divided by ten after
    the shares of the steps in their names, those of `DROPS_BY_100` by a hundred, those of
    `DROPS_BY_5` by five, `constant` is the number itself.
    """
    if schedule == "constant":
        return initial_learning_rate
    if schedule not in SCHEDULES:
        raise UserError(
            f"`schedule` must be one of {', '.join(SCHEDULES)}. Received: schedule={schedule!r}"
        )
    for drops, factor in ((DROPS, 10), (DROPS_BY_100, 100), (DROPS_BY_5, 5)):
        if schedule in drops:
            rates = [initial_learning_rate / factor**i for i in range(len(drops[schedule]) + 1)]
            # A rate holds up to and including its boundary, the index of a step.
            boundaries = [max(round(steps * share) - 1, 0) for share in drops[schedule]]
            return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    if schedule == "cosine_15_restarts":
        return CosineRestarts(initial_learning_rate, steps)
    if schedule in HALF_COSINES:
        final = HALF_COSINES[schedule]
        return CosineRestarts(initial_learning_rate, steps, cycles=1, final_fraction=final)
    if schedule == "linear_2_5":
        return LinearDecay(initial_learning_rate, steps)
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


def curriculum_progress(share, curvature=0.7):
    """Returns when a batch has grown to a share of its final size, by the curriculum of sizes.

    The share at a fraction 1 - x of training is 1 - x / (1 - curvature + curvature * x), the
    paper's "bounded exponential". It rises slowly at first: a half is reached at 77 % of training,
    and the mean is 0.31.

    Args:
        share: Float in [0, 1].
        curvature: Float in [0, 1), the paper's alpha; 0 is a straight line.

    Returns:
        A float in [0, 1], the fraction of training at which `share` is reached.

    Reference:
        [Chen et al., 2023](https://arxiv.org/abs/2309.03469).
    """
    left = (1 - share) * (1 - curvature) / (1 - curvature * (1 - share))
    return 1 - left


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
