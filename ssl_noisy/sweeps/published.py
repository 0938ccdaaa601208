# SPDX-License-Identifier: Apache-2.0
"""Published figures beside the results of a sweep: those of recipes that its runs follow."""

import dataclasses
import re

from ssl_noisy import recipes, run_flags
from ssl_noisy.settings import identifying_lines
from ssl_noisy.sweeps import tables

_FREE = ("num_labels", *tables.SEEDS)  # what a run may choose and still follow a recipe


@dataclasses.dataclass(frozen=True)
class Mark:
    """One published figure.

    Attributes:
        num_labels: Positive integer.
        error: Float, the mean test error in %: the median of the last 20 checkpoints where the
            recipe has it.
        is_oracle: Whether it is that of the checkpoint that is best on the test set.
    """

    num_labels: int
    error: float
    is_oracle: bool


def marks(settings):
    """Returns the published figures for the recipes that a run follows, at all their budgets.

    A run follows a recipe if they differ in `num_labels` and seeds alone: a shorter training has no
    published figure.

    Args:
        settings: The `Settings` of the run.

    Returns:
        List of `Mark`, without duplicates.
    """
    found = {}
    for path in recipes.paths():
        listed = recipes.figures(path)
        lines = [x for x in path.read_text().splitlines() if x.startswith("--")]
        if not any(flag.startswith("--num_labels=") for flag in listed):
            continue
        # Parsing all recipes takes a second.
        chosen = {f"--method={settings.method}", f"--dataset={settings.dataset}"}
        if not chosen <= set(lines):
            continue
        if _followed(run_flags.from_lines(lines)) == _followed(settings):
            is_best = "best on the test" in " ".join(recipes.header(path).split("\n#  "))
            for flag, figure in listed.items():
                mark = Mark(int(flag.partition("=")[2]), *_error(figure, is_best))
                found[mark] = None
    return list(found)


def _followed(settings):
    """Returns what a run and its recipe have in common, as lines of a flagfile."""
    free = tuple(f"--{name}=" for name in _FREE)
    return [x for x in identifying_lines(settings.flag_lines()) if not x.startswith(free)]


def _error(figure, is_best):
    """Returns the error in a text such as "4.86 +- 0.05 % (5.12 +- 0.33 %)", and `is_oracle`.

    The figure in parentheses is the median of the last 20 checkpoints.
    """
    numbers = re.findall(r"(?:^|\()(\d+(?:\.\d+)?)", figure)
    return float(numbers[-1]), is_best and len(numbers) == 1
