# SPDX-License-Identifier: Apache-2.0
"""What `--tune` asks for: ranges of flags, and the runs of a trial, which has one value of each."""

import dataclasses
import math
import re

from ssl_noisy.data import sources
from ssl_noisy.errors import UserError
from ssl_noisy.runs import labeling
from ssl_noisy.sweeps import plan
from ssl_noisy.sweeps.tables import SEEDS

OBJECTIVES = ("validation_accuracy",)
_FORMS = "LOW:HIGH, LOW:HIGH:STEP, log:LOW:HIGH or VALUE,VALUE,..."
# Flags that decide which images a trial is measured on.
_MEASURE = ("dataset", "validation_split", "test_split", "test_share")
_NUMBER = r"[-+]?[\d.]+(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(log:)?({_NUMBER}):({_NUMBER})(?::({_NUMBER}))?")


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values of one tuned flag: a range of numbers, or choices.

    Attributes:
        flag: Name of the flag.
        choices: Tuple of strings, or None.
        low, high: Numbers, both included, or None. They are integers for a flag of integers.
        step: Number, or None. It divides `high - low`.
        is_log: Whether values are drawn on a logarithmic scale.
    """

    flag: str
    choices: tuple | None = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    is_log: bool = False

    @property
    def ends(self):
        """The values to check before the first run: all choices, or both ends of the range."""
        return self.choices or (repr(self.low), repr(self.high))

    def __str__(self):
        """The value of `--tune`, the same for equal axes."""
        if self.choices:
            return f"{self.flag}={','.join(self.choices)}"
        numbers = [self.low, self.high] + ([self.step] if self.step else [])
        return f"{self.flag}={'log:' if self.is_log else ''}{':'.join(map(repr, numbers))}"

    def rounded(self, value):
        """Returns a value of the range, with about a thousandth of the range as its precision.

        It becomes a part of the name of a run, and a flag that people type.
        """
        if not isinstance(value, float):
            return value
        if self.step:
            digits = _digits(self.step, 10)
        elif self.is_log:
            digits = _digits(value * math.log(self.high / self.low), 3)
        else:
            digits = _digits(self.high - self.low, 3)
        return min(max(round(value, digits), self.low), self.high)


def _digits(size, count):
    """Returns the number of decimals for a precision of `count` digits of `size`."""
    return count - math.floor(math.log10(size))


def axes(texts):
    """Returns the `Axis` of each `--tune`, in the order of the flags of a run.

    Raises:
        UserError: If one is malformed, or two are about the same flag.
    """
    found = {}
    for axis in map(parse, texts):
        if axis.flag in found:
            raise UserError(f"--tune={axis.flag} is given twice. Leave one of them out.")
        found[axis.flag] = axis
    return [found[flag] for flag in plan.sweepable() if flag in found]


def parse(text):
    """Returns the `Axis` of one `--tune`.

    Args:
        text: `FLAG=LOW:HIGH`, `FLAG=LOW:HIGH:STEP`, `FLAG=log:LOW:HIGH` or `FLAG=VALUE,VALUE,...`.

    Raises:
        UserError: If it is malformed, or the flag cannot be tuned.
    """
    flag, equals, values = text.partition("=")
    flag, values = flag.strip().lstrip("-"), values.strip()
    if not equals or not values:
        raise UserError(f"--tune must be FLAG={_FORMS} Received: --tune={text}")
    plan.check_flag(flag, f"--tune={text}")
    if flag in SEEDS:
        raise UserError(
            f"--tune cannot choose a seed, because no seed is better than another. Use "
            f"--over={flag}=0:3 for runs with several seeds in each trial. Received: --tune={text}"
        )
    if flag in _MEASURE:
        raise UserError(
            f"--tune cannot choose --{flag}: trials must be measured on the same images. Received: "
            f"--tune={text}"
        )
    match = _RANGE.fullmatch(values)
    if match is not None:
        return _range(flag, match, text)
    choices = tuple(value.strip() for value in values.split(","))
    if len(choices) < 2 or "" in choices or len(set(choices)) < len(choices):
        raise UserError(
            f"--tune={flag} must be LOW:HIGH, LOW:HIGH:STEP, log:LOW:HIGH, or at least two "
            f"different values. Received: --tune={text}"
        )
    return Axis(flag, choices=choices)


def _range(flag, match, text):
    kind = plan.sweepable()[flag]
    if kind not in (int, float):
        raise UserError(
            f"--tune={flag} must be values, --tune={flag}=VALUE,VALUE,..., because --{flag} is "
            f"not a number. Received: --tune={text}"
        )
    try:
        low, high, step = (kind(part) if part else None for part in match.groups()[1:])
    except ValueError as error:
        names = {int: "integers", float: "numbers"}
        raise UserError(f"--tune={flag} needs {names[kind]}. Received: --tune={text}") from error
    if not -math.inf < low < high < math.inf:
        raise UserError(f"--tune={flag} needs LOW below HIGH. Received: --tune={text}")
    if match[1]:
        if low <= 0 or step is not None:
            raise UserError(
                f"--tune={flag} on a logarithmic scale needs LOW above 0 and no STEP. Received: "
                f"--tune={text}"
            )
    elif step is not None:
        if not 0 < step <= high - low:
            raise UserError(
                f"--tune={flag} needs a STEP above 0 and at most HIGH - LOW. Received: "
                f"--tune={text}"
            )
        high = low + math.floor((high - low) / step + 1e-9) * step
        high = round(high, _digits(step, 10)) if kind is float else high
    return Axis(flag, low=low, high=high, step=step, is_log=match[1] is not None)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What to tune, and how.

    Attributes:
        sweep_dir: Path of the folder of the sweep.
        axes: List of `Axis`.
        combinations: List of dicts from flag to string: each trial has a run for each of them.
        trials: Positive integer, the number of trials.
        objective: One of `OBJECTIVES`.
        swept: Names of all swept flags, the tuned ones too, in order.
        settings_of: Function of a dict from swept flag to string that returns a `Settings`.
    """

    sweep_dir: str
    axes: list
    combinations: list
    trials: int
    objective: str
    swept: list
    settings_of: object
    _there: set = dataclasses.field(default_factory=set)

    def runs_of(self, values):
        """Returns the runs of a trial, a list of `plan.Run` in the order of the combinations.

        Args:
            values: Dict from tuned flag to string.

        Raises:
            UserError: If the settings of a run are wrong.
        """
        return [
            plan.make(self.sweep_dir, self.swept, values | them, self.settings_of, self._there)
            for them in self.combinations
        ]

    def check(self):
        """Checks the ends of all ranges, and all choices. Writes nothing.

        The other tuned flags have their first values, or else their last: a value may be valid
        beside a part of the others only.

        Returns:
            A list of `plan.Run`, those that a trial with these values has.

        Raises:
            UserError: For the first value that no run can have.
        """
        if self.trials * len(self.combinations) > plan.MOST_RUNS:
            raise UserError(
                f"{self.trials:,} trials of {len(self.combinations):,} runs are too many; the most "
                f"are {plan.MOST_RUNS:,} runs."
            )
        firsts, lasts = ({axis.flag: axis.ends[i] for axis in self.axes} for i in (0, -1))
        found = {}
        for axis in self.axes:
            for end in axis.ends:
                try:
                    runs = self.runs_of(firsts | {axis.flag: end})
                except UserError as error:
                    try:
                        runs = self.runs_of(lasts | {axis.flag: end})
                    except UserError:
                        raise error from None
                found.update({run.name: run for run in runs})
        return list(found.values())

    def lines(self, run):
        """Returns what identifies the sweep and must not change, a list of strings.

        These are the ranges, the combinations and the flags of all runs, but not the number of
        trials.

        Args:
            run: The first run that `check` returns.
        """
        swept = {name for flag in self.swept for name in (f"--{flag}", f"--no{flag}")}
        common = run.settings.flag_lines(identifying=True)
        lines = [f"--tune={axis}" for axis in self.axes]
        lines.append(f"--objective={self.objective}")
        for values in filter(None, self.combinations):
            lines.append("--over=" + ",".join(f"{flag}={text}" for flag, text in values.items()))
        return lines + [line for line in common if line.partition("=")[0] not in swept]


def check_validation(runs):
    """Raises a `UserError` if a run has no validation accuracy: no such split, or no classes.

    Only the data of users may have one without the flag, so these are loaded.
    """
    seen = set()
    for run in runs:
        settings = run.settings
        if settings.learner_class.finds_clusters:
            raise UserError(
                "--objective=validation_accuracy needs a method that learns classes. Received: "
                f"--method={settings.method}, which finds clusters"
            )
        key = tuple(labeling.loading(settings).values())
        if settings.validation_split or key in seen:
            continue
        seen.add(key)
        is_source = settings.dataset.partition(":")[0] in sources.SOURCES
        if not is_source or labeling.load_dataset(settings).validation_images is None:
            raise UserError(
                "--objective=validation_accuracy needs a validation split, which "
                f"--dataset={settings.dataset} does not have. Set --validation_split: for example, "
                "--train_split=train[:90%] --validation_split=train[90%:]."
            )
