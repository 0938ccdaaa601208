# SPDX-License-Identifier: Apache-2.0
"""The kinds of label noise, `--noise=KIND:VALUE`: a table, and what a run does with it.

To add a kind, add an entry to `KINDS`. Flags, help and runs read this table.
"""

import collections.abc
import dataclasses
import difflib
import pathlib

import numpy as np

from ssl_noisy import files
from ssl_noisy.data import cifar_n, noise_file
from ssl_noisy.data.dataset import Dataset
from ssl_noisy.data.noise_models import (
    Noise,
    NoiseError,
    NoiseModel,
    asymmetric,
    checked_rate,
    corrupt,
    from_matrix,
    instance_dependent,
    pair_flip,
    symmetric,
    transition_counts,
)
from ssl_noisy.data.rows import Rows


@dataclasses.dataclass(frozen=True)
class Request:
    """What a kind of noise makes labels from. `make` describes the attributes."""

    definition: str
    dataset: Dataset
    positions: np.ndarray
    seed: int
    draw: str
    cifarn_file: str | None
    data_dir: str | None

    @property
    def true_labels(self):
        return self.dataset.labels[self.positions]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of label noise.

    Attributes:
        make: Function of the value and a `Request`. It returns a `Noise`, or a `NoiseModel` from
            which `corrupt` draws the labels.
        help: What becomes of a label, in a few words.
        value: What follows the colon, for messages. A `RATE` reaches `make` as a float in [0, 1),
            any other value as a string.
        is_path: Whether the value is the path of a file.
        flags: The flags beside `--noise` that have an effect.
    """

    make: collections.abc.Callable
    help: str
    value: str = "RATE"
    is_path: bool = False
    flags: tuple[str, ...] = ("noise_draw", "noise_seed")


def _instance(rate, request):
    given_labels = instance_dependent(
        Rows(request.dataset.images, request.positions),
        request.true_labels,
        rate=rate,
        num_classes=request.dataset.num_classes,
        seed=request.seed,
    )
    return Noise(given_labels, request.definition, request.seed, "coin")


def _cifarn(key, request):
    found = cifar_n.labels(
        key, request.dataset, file=request.cifarn_file, data_dir=request.data_dir
    )
    return Noise(found[request.positions], request.definition, request.seed, "published")


def _matrix(path, request):
    num_classes = request.dataset.num_classes
    owner = f"The matrix file {path!r}"
    try:
        matrix = files.read_npy(pathlib.Path(path).expanduser())
    except ValueError as error:
        raise NoiseError(f"{owner} cannot be used: {error}.") from error
    try:
        model = from_matrix(matrix)
    except NoiseError as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise NoiseError(f"{owner} cannot be used: {reason}.") from error
    if len(matrix) != num_classes:
        raise NoiseError(f"{owner} must be of {num_classes} classes. Received: {matrix.shape}.")
    return model


KINDS = {
    "symmetric": Kind(
        lambda rate, request: symmetric(request.dataset.num_classes, rate), "any other class"
    ),
    "symmetric_inclusive": Kind(
        lambda rate, request: symmetric(request.dataset.num_classes, rate, include_true=True),
        "any class, the true one included",
    ),
    "asymmetric": Kind(
        lambda rate, request: asymmetric(request.dataset.name, rate),
        "a similar class of CIFAR",
    ),
    "legacy_blocks": Kind(
        lambda rate, request: asymmetric(request.dataset.name, rate, legacy_blocks=True),
        "the next class in a block of five of CIFAR-100",
    ),
    "pair": Kind(
        lambda rate, request: pair_flip(request.dataset.num_classes, rate), "the next class"
    ),
    "instance": Kind(_instance, "depends on the image", flags=("noise_seed",)),
    "matrix": Kind(_matrix, "by a transition matrix", value="FILE.npy", is_path=True),
    "cifarn": Kind(_cifarn, "human labels of CIFAR-N", value="KEY", flags=("cifarn_file",)),
    "file": Kind(
        lambda path, request: noise_file.read(path, request.dataset, request.positions),
        "labels of another run",
        value="FILE.npz",
        is_path=True,
        flags=(),
    ),
}


def usage() -> str:
    """Returns the kinds and their values in one line, for help texts."""
    return ", ".join(f"{name}:{kind.value} ({kind.help})" for name, kind in KINDS.items())


def flags_of(definition: str | None) -> tuple[str, ...]:
    """Returns the flags beside `--noise` that have an effect with a definition, as in `make`."""
    return KINDS[definition.partition(":")[0]].flags if definition else ()


def check(definition: str):
    """Raises the `NoiseError` of a definition, as in `make`, that no data set allows."""
    name, _, value = definition.partition(":")
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, 1)
        raise NoiseError(
            f"Unknown label noise {definition!r}. "
            + (f"Did you mean {near[0]!r}? " if near else "")
            + f"Available: {', '.join(KINDS)}."
        )
    if KINDS[name].value == "RATE":
        checked_rate(value, f"Label noise {definition!r}")
    elif not value:
        raise NoiseError(f"Label noise {name!r} must be {name}:{KINDS[name].value}.")


def make(
    definition: str,
    dataset: Dataset,
    positions,
    *,
    seed: int,
    draw: str = "exact",
    cifarn_file=None,
    data_dir=None,
) -> Noise:
    """Makes the noise of the labeled examples of a data set from its definition.

    Args:
        definition: `symmetric:RATE`, `symmetric_inclusive:RATE` (the true class included),
            `asymmetric:RATE`, `legacy_blocks:RATE`, `pair:RATE`, `instance:RATE`,
            `matrix:FILE.npy` (a transition matrix), `cifarn:KEY` (see `cifar_n.labels`) or
            `file:FILE.npz` (a noise file, whose own definition, seed and draw are returned).
        dataset: A `Dataset`.
        positions: Increasing integer positions of the labeled examples.
        seed: Non-negative integer.
        draw: As in `corrupt`, for definitions with a transition matrix.
        cifarn_file: Published file for `cifarn`; TFDS by default.
        data_dir: Where TFDS prepares data.

    Returns:
        The `Noise` of these examples.

    Raises:
        NoiseError: If the definition does not hold for the data.
        CifarNError: If there are no such CIFAR-N labels.
    """
    check(definition)
    name, _, value = definition.partition(":")
    kind = KINDS[name]
    request = Request(definition, dataset, np.asarray(positions), seed, draw, cifarn_file, data_dir)
    made = kind.make(float(value) if kind.value == "RATE" else value, request)
    if isinstance(made, NoiseModel):
        made = Noise(
            corrupt(request.true_labels, made, seed=seed, draw=draw), definition, seed, draw
        )
    return made


def summary(noise: Noise, true_labels, num_classes: int) -> dict:
    """Measures the actual noise.

    Args:
        noise: A `Noise`.
        true_labels: Integer array of shape `(num_labels,)`.
        num_classes: Integer.

    Returns:
        A dict for JSON: `definition`, `seed`, `draw`; `noise_rate`, the fraction of wrong labels;
        `noise_rate_by_class`, that of each true class (None for a class without examples);
        `transition_counts`, a list of rows (true classes) of counts (given classes).
    """
    counts = transition_counts(true_labels, noise.given_labels, num_classes)
    sizes, right = counts.sum(axis=1), np.diag(counts)
    by_class = [
        float((size - same) / size) if size else None
        for same, size in zip(right, sizes, strict=True)
    ]
    return {
        "definition": noise.definition,
        "seed": noise.seed,
        "draw": noise.draw,
        "noise_rate": float((sizes - right).sum() / sizes.sum()),
        "noise_rate_by_class": by_class,
        "transition_counts": counts.tolist(),
    }


def describe(summary: dict, class_names) -> str:
    """Returns a `summary` as lines for a terminal.

    Up to ten classes are shown as a table: the percentage of each true class (row) that was given
    each class (column). Of more classes, only the least, median and most noisy are named.
    """
    counts, rates = np.array(summary["transition_counts"]), summary["noise_rate_by_class"]
    lines = [
        f"label noise {summary['definition']} (seed {summary['seed']}, {summary['draw']}): "
        f"{100 * summary['noise_rate']:.2f} % of {counts.sum()} labels are wrong"
    ]
    if len(counts) > 10:
        known = [pair for pair in zip(rates, class_names, strict=True) if pair[0] is not None]
        known.sort(key=lambda pair: pair[0])
        chosen = {"min": known[0], "median": known[len(known) // 2], "max": known[-1]}
        shares = [f"{key} {100 * r:.1f} % ({name})" for key, (r, name) in chosen.items()]
        return "\n".join([*lines, f"by true class: {', '.join(shares)}"])
    width = max(len("true \\ given"), *map(len, class_names))
    lines.append(" ".join(["true \\ given".ljust(width), *(f"{n[:6]:>6}" for n in class_names)]))
    for name, row in zip(class_names, counts, strict=True):
        shares = [f"{100 * count / row.sum():6.1f}" if row.sum() else "     -" for count in row]
        lines.append(" ".join([name.ljust(width), *shares]))
    return "\n".join(lines)
