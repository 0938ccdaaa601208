# SPDX-License-Identifier: Apache-2.0
"""The CIFAR-N challenge: its sets of labels, the files of an entry, and its scores.

The [1st Learning and Mining with Noisy Labels Challenge](http://competition.noisylabels.com/)
(IJCAI 2022) has two tasks. *Learning* is scored by accuracy on CIFAR's test images, *detection* by
the F1 of the corrupted labels. The rules and formulas are those of the branch `ijcai-lmnl-2022` of
[UCSC-REAL/cifar-10-100n](https://github.com/UCSC-REAL/cifar-10-100n/tree/ijcai-lmnl-2022).

An entry is a folder:

    run.sh  requirements.txt  REPORT.md
    REGIME/seed_N/config.json       the resolved flags of the run, and their hash
    REGIME/seed_N/timing.json       seconds of the run, of the baseline, and the limit
    REGIME/seed_N/detection.npy     bool (num_train,), True = corrupted
    REGIME/seed_N/predictions.npy   int (num_test,)
    REGIME/seed_N/test_logits.npy   float (num_test, num_classes), optional

An entry may leave out a task, or regimes. All arrays are in the published order: that of CIFAR's
own files, of torchvision, of `keras.datasets`, and of the ids of this kit. TFDS has another one.
"""

import dataclasses
import hashlib
import json
import os
import random
import typing

import numpy as np

from ssl_noisy import files
from ssl_noisy.errors import UserError

NUM_TRAIN, NUM_TEST = 50_000, 10_000
NUM_SEEDS = 5
TIME_FACTOR = 10  # the limit of a run, in times of the baseline on the same device

DETECTION, PREDICTIONS, LOGITS = "detection.npy", "predictions.npy", "test_logits.npy"
CONFIG, TIMING = "config.json", "timing.json"
TEXTS = ("run.sh", "requirements.txt", "REPORT.md")
CONFIG_KEYS = ("flags", "sha256")
TIMING_KEYS = ("seconds", "baseline_seconds", "limit_seconds")
# Flags that are no hyper-parameters: runs of one data set may differ in them.
FREE_FLAGS = ("seed", "noise", "noise_seed", "label_seed", "run_dir", "data_dir", "cache_dir")
FREE_FLAGS += ("cifarn_file", "logger", "plots", "plot_format")


class ChallengeError(UserError):
    """Arrays that cannot be scored. One line: what is required, what was received."""


class Regime(typing.NamedTuple):
    """A set of labels.

    Attributes:
        dataset: Name of the data set in TFDS; its noisy version has the suffix `_n`.
        num_classes: Positive integer.
        key: Name of the labels in the published file.
        tfds_feature: Their name in TFDS's noisy version.
        is_ranked: Whether the challenge ranks entries by it.
    """

    dataset: str
    num_classes: int
    key: str
    tfds_feature: str
    is_ranked: bool


# By the names of the challenge's flag --noise_type.
REGIMES = {
    "clean": Regime("cifar10", 10, "clean_label", "label", False),
    "aggre": Regime("cifar10", 10, "aggre_label", "aggre_label", True),
    "rand1": Regime("cifar10", 10, "random_label1", "random_label1", True),
    "rand2": Regime("cifar10", 10, "random_label2", "random_label2", False),
    "rand3": Regime("cifar10", 10, "random_label3", "random_label3", False),
    "worst": Regime("cifar10", 10, "worse_label", "worse_label", True),
    "clean100": Regime("cifar100", 100, "clean_label", "label", False),
    "noisy100": Regime("cifar100", 100, "noisy_label", "noise_label", True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """What an entry is scored against, in the published order.

    Attributes:
        given_labels: Integer array of shape `(num_train,)`: the labels of the regime.
        true_labels: Integer array of shape `(num_train,)`.
        test_labels: Integer array of shape `(num_test,)`.
        num_classes: Positive integer.
    """

    given_labels: np.ndarray
    true_labels: np.ndarray
    test_labels: np.ndarray
    num_classes: int

    @property
    def corrupted(self):
        """Bool array of shape `(num_train,)`: whether a label is wrong."""
        return self.given_labels != self.true_labels


def run_folder(entry_dir, regime, seed):
    """Returns the path of the folder of one run."""
    return os.path.join(entry_dir, regime, f"seed_{seed}")


def config_hash(flags):
    """Returns the SHA-256 of a dict of flags, a hex string. The order of the flags is no part."""
    text = json.dumps(flags, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write_run(
    folder,
    *,
    flags,
    seconds,
    baseline_seconds,
    detection=None,
    predictions=None,
    test_logits=None,
):
    """Writes the files of one run, each atomically.

    Args:
        folder: Path, see `run_folder`.
        flags: Dict of the resolved flags, from name to string, number, bool or None.
        seconds: Seconds that the run took, with compilation and evaluation.
        baseline_seconds: Seconds of the organizers' baseline on the same device.
        detection: Optional bool array of shape `(num_train,)`: whether a label is corrupted.
        predictions: Optional integer array of shape `(num_test,)`.
        test_logits: Optional float array of shape `(num_test, num_classes)`.
    """
    arrays = {DETECTION: detection, PREDICTIONS: predictions, LOGITS: test_logits}
    for name, values in arrays.items():
        if values is not None:
            with files.replacing(os.path.join(folder, name)) as file:
                np.save(file, values, allow_pickle=False)
    times = (float(seconds), float(baseline_seconds), TIME_FACTOR * float(baseline_seconds))
    texts = {
        CONFIG: dict(zip(CONFIG_KEYS, (flags, config_hash(flags)))),
        TIMING: dict(zip(TIMING_KEYS, times)),
    }
    for name, content in texts.items():
        with files.replacing(os.path.join(folder, name), "w") as file:
            file.write(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def detection_score(flagged, corrupted):
    """Scores a detection by the organizers' formula, for the class of the corrupted labels.

    With tp = sum(flagged & corrupted): precision = tp / sum(flagged), recall = tp /
    sum(corrupted), f1 = 2 * precision * recall / (precision + recall). A fraction 0 / 0, where
    the organizers' program returns NaN, is 0 here: a detection that flags nothing has F1 = 0.

    Args:
        flagged: Bool array of shape `(num_train,)`: whether a label is called corrupted.
        corrupted: Bool array of shape `(num_train,)`: whether it is.

    Returns:
        A dict of floats in [0, 1]: `precision`, `recall`, `f1`.

    Raises:
        ChallengeError: If the arrays are not bool, not of one dimension, or of different lengths.
    """
    flagged, corrupted = np.asarray(flagged), np.asarray(corrupted)
    for name, values in (("flagged", flagged), ("corrupted", corrupted)):
        if values.dtype != np.bool_ or values.ndim != 1 or values.shape != corrupted.shape:
            raise ChallengeError(
                f"{name} must be bool with one value per label, {corrupted.shape}. Received: "
                f"{values.dtype} {values.shape}. Use values.astype(bool), one row per label."
            )
    hits = int((flagged & corrupted).sum())
    precision = _ratio(hits, int(flagged.sum()))
    recall = _ratio(hits, int(corrupted.sum()))
    f1 = _ratio(2.0 * precision * recall, precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1}


def _ratio(part, whole):
    return part / whole if whole else 0.0


def scored_subset(seed, num_test=NUM_TEST, with_replacement=False):
    """Returns the test examples by which the challenge scores the run of a seed.

    The rules say "with replacement". The organizers' program draws without: it calls
    `random.sample` right after `random.seed(seed)`. Both draws are 8,000 of 10,000 here.

    Args:
        seed: Integer, the seed of the run.
        num_test: Number of test examples. The subset has 4/5 of them.
        with_replacement: As in the rules instead of the program.

    Returns:
        int64 positions of shape `(num_test * 4 // 5,)`.
    """
    source, size = random.Random(seed), num_test * 4 // 5
    draw = source.choices if with_replacement else source.sample
    return np.array(draw(range(num_test), k=size), np.int64)


def learning_score(predictions, test_labels, seed):
    """Scores predictions of the test images.

    Args:
        predictions: Integer array of shape `(num_test,)`.
        test_labels: Integer array of shape `(num_test,)`.
        seed: Integer, the seed of the run, which fixes the subsets.

    Returns:
        A dict of floats in [0, 1]: `subset_accuracy`, by which the organizers' program ranks,
        `resampled_accuracy` on a subset with replacement, as the rules say, and `accuracy` on all
        test images.

    Raises:
        ChallengeError: If the arrays are not integers, not of one dimension, or of different
            lengths.
    """
    predictions, test_labels = np.asarray(predictions), np.asarray(test_labels)
    for name, values in (("predictions", predictions), ("test_labels", test_labels)):
        if values.dtype.kind not in "iu" or values.ndim != 1 or values.shape != test_labels.shape:
            raise ChallengeError(
                f"{name} must be integers, one per test image, {test_labels.shape}. Received: "
                f"{values.dtype} {values.shape}. Use logits.argmax(axis=-1)."
            )
    correct = predictions == test_labels
    subset, resampled = (scored_subset(seed, len(correct), again) for again in (False, True))
    return {
        "subset_accuracy": float(correct[subset].mean()),
        "resampled_accuracy": float(correct[resampled].mean()),
        "accuracy": float(correct.mean()),
    }


def f1_interval(flagged, corrupted, **options):
    """Returns a bootstrap interval of the mean F1 of several runs, over the labels.

    Args:
        flagged: Bool array of shape `(num_runs, num_train)`.
        corrupted: Bool array of shape `(num_train,)`.
        **options: As those of `accuracy_interval`.

    Returns:
        `(low, high)`, floats in [0, 1].
    """
    patterns, counts = _resampled([corrupted, *flagged], **options)
    is_corrupted, flags = patterns[:, :1], patterns[:, 1:]
    hits = counts @ (flags & is_corrupted)
    sizes = counts @ flags.astype(int) + counts @ is_corrupted
    f1 = np.divide(2 * hits, sizes, out=np.zeros(hits.shape), where=sizes > 0)
    return _bounds(f1.mean(axis=1))


def accuracy_interval(correct, **options):
    """Returns a bootstrap interval of the mean accuracy of several runs, over the test examples.

    The same examples are drawn for all runs. The interval says how much a score depends on the
    choice of examples; the standard deviation over seeds says how much it depends on the training.

    Args:
        correct: Bool array of shape `(num_runs, num_test)`.
        **options: `seed` (0) and number of `draws` (2,000) of the bootstrap.

    Returns:
        `(low, high)`, floats in [0, 1]: the percentiles 2.5 and 97.5.
    """
    patterns, counts = _resampled(correct, **options)
    return _bounds((counts @ patterns).mean(axis=1) / counts[0].sum())


def _resampled(rows, seed=0, draws=2_000):
    """Returns the distinct columns of bool rows, and how often each is in each bootstrap sample.

    Examples with equal columns are interchangeable, so a sample is one multinomial draw.
    """
    patterns, counts = np.unique(np.stack(rows, axis=1), axis=0, return_counts=True)
    total = counts.sum()
    return patterns, np.random.default_rng(seed).multinomial(total, counts / total, size=draws)


def _bounds(values):
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def over_seeds(values):
    """Returns a dict with the `mean` of the seeds' values, and `std` if there are several."""
    spread = {"std": float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return {"mean": float(np.mean(values)), **spread}


def borda(scores):
    """Ranks entries by Borda points: those of rank i are max(11 - i, 0), summed over regimes.

    Entries with equal scores share the better rank. One without a score has the last rank.

    Args:
        scores: Dict from regime to a dict from entry to score, more is better.

    Returns:
        A dict from entry to a dict with `ranks`, from regime to rank, and `points`.
    """
    entries = dict.fromkeys(name for known in scores.values() for name in known)
    found = {name: {"ranks": {}, "points": 0} for name in entries}
    for regime, known in scores.items():
        for name, result in found.items():
            rank = len(entries)
            if name in known:
                rank = 1 + sum(other > known[name] for other in known.values())
            result["ranks"][regime] = rank
            result["points"] += max(11 - rank, 0)
    return found
