# SPDX-License-Identifier: Apache-2.0
"""Rounds of self-training: each training but the first distills the one before it.

The last round is the run itself, so the folder of the run has its model, as that of any run. Each
earlier round is a training of its own in a folder within.
"""

import dataclasses
import os

from ssl_noisy import methods
from ssl_noisy.runs import folder

_NEXT_SEED = 1_000_003  # far from the seeds that people use next to each other


def settings_of(settings, number):
    """Returns the settings of a round.

    The first round is the run without `rounds`. The later ones have its settings, as far as their
    method takes them, and seeds of their own: other initial weights, another order, other views.
    Labels and noise are the same in all.

    Args:
        settings: The `Settings` of the run. Without several rounds, they are those of its only one.
        number: Integer in [1, rounds].
    """
    if not settings.student:
        return settings
    if number == 1:
        later = methods.arguments(settings.student).keys() - methods.arguments(settings.method)
        arguments = {k: v for k, v in settings.method_arguments.items() if k not in later}
        changes = {"rounds": None, "baseline": None, "run_dir": None, "logger": None}
        return dataclasses.replace(settings, method_arguments=arguments, **changes)
    is_last = number == settings.rounds
    return settings.for_method(
        settings.student,
        seed=(settings.seed + (number - 1) * _NEXT_SEED) % 2**32,
        teacher=os.path.join("" if is_last else "..", folder.round_name(number - 1)),
        baseline=settings.baseline if is_last else None,
        logger=settings.logger if is_last else None,
    )


def train_earlier(training, train):
    """Trains the unfinished rounds, but not the last one.

    Args:
        training: The `Training` of the run.
        train: Function of one `Training` that trains it, writes its files and returns its result.

    Returns:
        The list of the results of these rounds, in order.
    """
    results = []
    for number in range(1, training.settings.rounds):
        part = training.part(folder.round_name(number), settings_of(training.settings, number))
        result = folder.look_into(part.run_dir, part.settings)
        has_model = os.path.exists(os.path.join(part.run_dir, folder.MODEL))
        results.append(result if result is not None and has_model else train(part))
    return results


def first(training):
    """Returns the `Training` of the first round: without several rounds, the only one."""
    settings = settings_of(training.settings, 1)
    if not training.settings.student:
        return training
    return training.part(folder.round_name(1), settings)


def last(training):
    """Returns the `Training` of the last round, in the folder of the run."""
    settings = training.settings
    return dataclasses.replace(training, settings=settings_of(settings, settings.rounds or 1))


def summarized(settings, earlier, result):
    """Returns the result of a run: that of its last round, and a summary of all of them.

    Args:
        settings: The `Settings` of the run.
        earlier: The results of all rounds but the last.
        result: That of the last round.
    """
    rounds = [
        {name: one[name] for name in ("method", "seed", "test_accuracy", "last_epoch")}
        for one in (*earlier, result)
    ]
    return {**result, "method": settings.method, "seed": settings.seed, "rounds": rounds}
