# SPDX-License-Identifier: Apache-2.0
"""The labels against which entries to the CIFAR-N challenge are scored, loaded when needed."""

import os
import re

import numpy as np

from ssl_noisy import challenge, files
from ssl_noisy.data import cifar_n, sources
from ssl_noisy.errors import UserError

STAND_IN = "stand-in"  # the data set of labels from a file of one's own
_COLUMNS = ("given_labels", "true_labels", "test_labels")


class Truths:
    """A `challenge.Truth` for each regime, by name.

    Attributes:
        datasets: Dict from the name of each regime that an entry may have to its data set.
    """

    def __init__(self, stand_ins=(), *, cifarn_files=(), data_dir=None, cache_dir=None):
        """Names the data. Only stand-ins are read at once.

        Args:
            stand_ins: Texts `NAME:FILE.npz`, or `FILE.npz` for the name `custom`: regimes to
                use instead of those of CIFAR-N. See `read_stand_in`.
            cifarn_files: Published files of CIFAR-N. One whose name has a 100 is that of
                CIFAR-100N. By default TFDS's data is read.
            data_dir: Where TFDS prepares data.
            cache_dir: Where decoded data sets are kept.

        Raises:
            UserError: If a stand-in cannot be used.
        """
        self._datasets = {}
        self._places = {"data_dir": data_dir, "cache_dir": cache_dir}
        self._cifarn_files = {_dataset_of(file): file for file in cifarn_files}
        if len(self._cifarn_files) < len(cifarn_files):
            raise UserError(
                "Pass at most one --cifarn_file of CIFAR-10N, and one of CIFAR-100N, whose name "
                f"has a 100. Received: {', '.join(cifarn_files)}"
            )
        places = [_named(text) for text in stand_ins]
        if len(dict(places)) < len(places):
            names = ", ".join(name for name, _ in places)
            raise UserError(f"Each --truth needs a name of its own, NAME:FILE. Received: {names}")
        self._known = {name: read_stand_in(path) for name, path in places}
        self.datasets = {name: regime.dataset for name, regime in challenge.REGIMES.items()}
        if stand_ins:
            self.datasets = dict.fromkeys(self._known, STAND_IN)

    def __getitem__(self, name) -> challenge.Truth:
        """Returns the truth of a regime. CIFAR is loaded at the first use.

        Raises:
            UserError: If the data cannot be found.
        """
        if name not in self._known:
            regime = challenge.REGIMES[name]
            if regime.dataset not in self._datasets:
                self._datasets[regime.dataset] = sources.load(regime.dataset, **self._places)
            self._known[name] = self._cifar(regime, self._datasets[regime.dataset])
        return self._known[name]

    def _cifar(self, regime, dataset):
        given = dataset.labels
        if regime.key != "clean_label":
            given = cifar_n.labels(
                regime.key,
                dataset,
                file=self._cifarn_files.get(regime.dataset),
                data_dir=self._places["data_dir"],
            )
        return challenge.Truth(given, dataset.labels, dataset.test_labels, regime.num_classes)

    def together(self, name):
        """Returns the given labels of all noisy regimes with the same examples, by name."""
        names = [x for x in self.datasets if self.datasets[x] == self.datasets[name]]
        found = {other: self[other] for other in names}
        return {
            other: truth.given_labels
            for other, truth in found.items()
            if truth.corrupted.any() and np.array_equal(truth.true_labels, found[name].true_labels)
        }


def _dataset_of(path):
    return "cifar100" if "100" in os.path.basename(path) else "cifar10"


def _named(text):
    match = re.fullmatch(r"(?:([A-Za-z]\w{0,31}):)?(.+)", text, re.ASCII)
    if not match:
        raise UserError(f"--truth must be FILE.npz or NAME:FILE.npz. Received: --truth={text}")
    return match[1] or "custom", match[2]


def read_stand_in(path) -> challenge.Truth:
    """Reads labels that stand in for those of CIFAR-N.

    Args:
        path: An .npz file with the integer arrays `given_labels` and `true_labels`, of shape
            `(num_train,)`, and `test_labels`, of shape `(num_test,)`.

    Raises:
        UserError: If it has no such arrays.
    """
    try:
        arrays = files.read_npz(path)
        missing = [name for name in _COLUMNS if name not in arrays]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        given, true, test = (arrays[name] for name in _COLUMNS)
        for values in (given, true, test):
            if values.dtype.kind not in "iu" or values.ndim != 1 or not values.size:
                raise ValueError(f"{values.dtype} {values.shape} instead of integers, one a row")
            if values.min() < 0 or values.max() > 100_000:
                raise ValueError(f"classes must be in [0, 100000], not {values.min()}")
        if given.shape != true.shape:
            raise ValueError(f"{given.size} given labels and {true.size} true ones")
    except ValueError as error:
        raise UserError(
            f"--truth={path} cannot be used: {error}. Write {', '.join(_COLUMNS)} with np.savez."
        ) from error
    num_classes = 1 + max(int(values.max()) for values in (given, true, test))
    given, true, test = (values.astype(np.int32) for values in (given, true, test))
    return challenge.Truth(given, true, test, num_classes)
