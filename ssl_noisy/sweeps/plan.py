# SPDX-License-Identifier: Apache-2.0
"""What a sweep runs: the values of the swept flags, and the settings of every run."""

import csv
import dataclasses
import difflib
import hashlib
import itertools
import os
import re

from ssl_noisy import files, networks, run_flags
from ssl_noisy import settings as run_settings
from ssl_noisy.errors import UserError, one_line
from ssl_noisy.runs import removal, trackers
from ssl_noisy.settings import Settings

_RANGE = re.compile(r"(-?\d+):(-?\d+)(?::(-?\d+))?")
_LONGEST_NAME = 120
MOST_RUNS = 100_000


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        name: Name of its folder, made of the swept flags.
        values: Dict from swept flag to value, None where the run leaves the flag out.
        settings: Its `Settings`.
    """

    name: str
    values: dict
    settings: Settings


# Flags that a sweep cannot change: runs that differ in them alone are equal.
PLACES = tuple(f.name for f in run_settings.fields() if f.metadata["is_place"])


def sweepable():
    """Returns a dict from the name of each flag that a sweep can change to its type."""
    fields = run_settings.fields()
    kinds = {f.name: f.metadata["argument"].kind for f in fields if f.name not in PLACES}
    for name, takers in sorted(run_flags.method_flags().items()):
        kinds[name] = takers[min(takers)].kind
    return kinds


def parse_over(text):
    """Returns the flag and the values, a list of strings, of one `--over`.

    Args:
        text: `FLAG=VALUE,VALUE,...`. For a flag that takes integers, a value may be a range
            `START:STOP` or `START:STOP:STEP`, which excludes its stop, as in Python.

    Raises:
        UserError: If it is malformed.
    """
    flag, equals, values = text.partition("=")
    flag = flag.strip().lstrip("-")
    if not equals:
        raise UserError(f"--over must be FLAG=VALUE,VALUE,... Received: --over={text}")
    check_flag(flag, f"--over={text}")
    found = []
    for value in values.split(","):
        value = value.strip()
        if not value:
            raise UserError(
                f"--over={text} has an empty value. Write --over={flag}=VALUE,VALUE, or use "
                "--over_file."
            )
        found += _integers(value, text) if sweepable()[flag] is int else [value]
    return flag, found


def _integers(value, text):
    match = _RANGE.fullmatch(value)
    if match is None:
        if not re.fullmatch(r"-?\d+", value):
            raise UserError(
                f"--over={text} needs integers or ranges START:STOP[:STEP]. Received: {value}"
            )
        return [value]
    start, stop, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if step == 0:
        raise UserError(f"--over={text} has a range with a step of 0. Received: {value}")
    numbers = range(start, stop, step)
    if not numbers:
        raise UserError(
            f"--over={text} has an empty range: {value}. The stop is excluded, as in Python."
        )
    if len(numbers) > MOST_RUNS:
        raise UserError(f"--over={text} has more than {MOST_RUNS:,} values.")
    return [str(number) for number in numbers]


def check_flag(flag, received):
    """Raises a `UserError` unless `flag` is one that a sweep can change.

    Args:
        flag: Name of the flag.
        received: Where the user named it, for the message.
    """
    kinds = sweepable()
    if flag in PLACES:
        raise UserError(
            f"--{flag} cannot be swept: any flag of a run can but {', '.join(PLACES)}, which only "
            f"say where files are. Received: {received}"
        )
    if flag not in kinds:
        nearest = difflib.get_close_matches(flag, kinds, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(f"--{flag} is not a flag of a run.{hint} Received: {received}")


def read_table(path):
    """Returns the rows of `--over_file`, dicts from flag to string.

    Args:
        path: A CSV file with a column for each flag and a row for each run. An empty cell leaves
            the flag out of the run.

    Raises:
        UserError: If it cannot be read or is malformed.
    """
    try:
        files.require_regular(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--over_file={path} cannot be read: {one_line(error)}.") from error
    lines = [line for line in lines if line]
    if len(lines) < 2:
        raise UserError(f"--over_file={path} needs a header of flags and a row for each run.")
    header = [name.strip().lstrip("-") for name in lines[0]]
    for flag in header:
        check_flag(flag, f"a column of --over_file={path}")
    if len(set(header)) < len(header):
        raise UserError(f"--over_file={path} has a column twice: {', '.join(header)}.")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise UserError(
                f"--over_file={path} row {number} has {len(line)} cells, the header {len(header)}."
            )
    rows = [dict(zip(header, map(str.strip, line))) for line in lines[1:]]
    return [{flag: value for flag, value in row.items() if value} for row in rows]


def choices(over, over_file=None, tuned=()):
    """Returns the flags of every run: the rows of the table times the product of the lists.

    Args:
        over: List of the texts of `--over`.
        over_file: Path of the table, or None.
        tuned: Names of the flags of `--tune`.

    Returns:
        A tuple: the names of the swept and tuned flags in the order of the flags of a run, and a
        list of dicts from flag to string, without the tuned ones.
    """
    axes = {}
    for flag, values in map(parse_over, over):
        if flag in axes:
            raise UserError(f"--over={flag} is given twice. Put all of its values into one list.")
        axes[flag] = values
    rows = read_table(over_file) if over_file else [{}]
    columns = {flag for row in rows for flag in row}
    if both := sorted(columns.intersection(axes)):
        raise UserError(f"--over_file and --over both set --{both[0]}. Leave one of them out.")
    flags = columns.union(axes)
    if both := sorted(flags.intersection(tuned)):
        raise UserError(
            f"--tune and {'--over' if both[0] in axes else '--over_file'} both set --{both[0]}. "
            "Leave one of them out."
        )
    if not flags and not tuned:
        raise UserError("Nothing to sweep. Use --over=FLAG=VALUE,VALUE or --over_file=CSV.")
    count = len(rows)
    for values in axes.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise UserError(f"This sweep has {count:,} runs; the most are {MOST_RUNS:,}.")
    swept = [flag for flag in sweepable() if flag in flags.union(tuned)]
    product = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    return swept, [{**row, **values} for row in rows for values in product]


def build(sweep_dir, swept, chosen, settings_of):
    """Returns the list of `Run`, each with checked settings. Writes nothing.

    Trackers and networks must be there, too: their packages, files and functions.

    Args:
        sweep_dir: Path of the folder of the sweep.
        swept: Names of the swept flags, in order.
        chosen: List of dicts from flag to string, as `choices` returns.
        settings_of: Function of such a dict that returns a `Settings`.

    Raises:
        UserError: For the first run whose settings are wrong, and for equal runs.
    """
    runs, seen, there = [], {}, set()
    for values in chosen:
        run = make(sweep_dir, swept, values, settings_of, there)
        key, given = tuple(run.settings.flag_lines(identifying=True)), _words(values)
        if key in seen:
            raise UserError(f"Two runs have the same flags: {seen[key]} and {given}.")
        seen[key] = given
        runs.append(run)
    return runs


def make(sweep_dir, swept, values, settings_of, there):
    """Returns one of the runs of `build`.

    Args:
        sweep_dir, swept, settings_of: As for `build`.
        values: Dict from swept flag to string.
        there: Set of the trackers, networks and weights that have been found. It is updated.

    Raises:
        UserError: If the settings are wrong.
    """
    try:
        settings = settings_of(values)
        removal.check(settings)
        needed = (settings.logger, settings.network, settings.weights)
        if needed not in there:
            trackers.check(settings.logger)
            networks.check_there(settings.network, settings.weights)
            there.add(needed)
    except UserError as error:
        raise UserError(f"The run {_words(values)}: {error}") from error
    typed = {flag: value_of(settings, flag) if flag in values else None for flag in swept}
    name = run_name(typed)
    run_dir = os.path.join(sweep_dir, "runs", name)
    return Run(name, typed, dataclasses.replace(settings, run_dir=run_dir))


def _words(values):
    return " ".join(f"--{flag}={value}" for flag, value in values.items())


def value_of(settings, flag):
    """Returns the value of a flag in `settings`."""
    if hasattr(settings, flag):
        return getattr(settings, flag)
    return settings.method_arguments.get(flag)


def run_name(values):
    """Returns the name of a run's folder, such as `method-fixmatch_num_labels-40_seed-0`.

    Args:
        values: Dict from swept flag to value. Flags that are None are left out.

    Returns:
        A name of at most 120 characters. If characters had to be replaced, or the name was too
        long, it ends in a hash of the values, so that different runs have different names.
    """
    texts = {flag: str(value) for flag, value in values.items() if value is not None}
    exact = "_".join(f"{flag}-{text}" for flag, text in texts.items()) or "unset"
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "_", exact)
    if name != exact or len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST_NAME - 9]}_{digest}"
    return name
