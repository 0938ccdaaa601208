# SPDX-License-Identifier: Apache-2.0
"""Removal of labels before a training: the two passes of AUM, and what is left after them."""

import dataclasses
import os

import numpy as np

from ssl_noisy import methods
from ssl_noisy.errors import UserError
from ssl_noisy.labels import aum, record
from ssl_noisy.runs import folder, label_report
from ssl_noisy.runs.training import Training


def check(settings):
    """Raises the `UserError` of settings whose passes would be out of range."""
    if settings.remover:
        pass_settings(settings)


def pass_settings(settings):
    """Returns the settings of a pass: supervised training with a record of every example."""
    settings = settings.resolved()
    arguments, multiple = settings.method_arguments, settings.steps_per_execution
    batch_size = arguments["pass_batch_size"]
    ratio = arguments["batch_size"] / batch_size  # steps of the pass that see as many examples
    steps, steps_per_epoch = (
        max(round(n * ratio / multiple), 1) * multiple
        for n in (settings.steps * arguments["pass_share"], settings.steps_per_epoch)
    )
    return settings.for_method(
        "supervised",
        batch_size=batch_size,
        record_examples=True,
        steps=steps,
        steps_per_epoch=min(steps_per_epoch, steps),
        schedule="constant",
        plots=False,
        logger=None,
        keep_best=None,
        max_seconds=None,
    )


def seconds(run_dir):
    """Returns how long the finished passes of a run trained."""
    return sum(folder.read_timing(os.path.join(run_dir, f"pass_{number}")) for number in (1, 2))


def shortened(settings, fraction):
    """Returns the settings of a training on a fraction of the labels, with as many epochs.

    Evaluations and drops of the learning rate keep their epochs; an epoch has fewer steps.
    `flags.cfg` keeps the steps that the user asked for. The remaining labels follow from these
    flags and the finished passes, so a resumed run trains for the same number of steps.

    Args:
        settings: A `Settings`.
        fraction: Float in (0, 1], of the labels that `settings.steps` was meant for.
    """
    settings, multiple = settings.resolved(), settings.steps_per_execution
    epochs, rest = divmod(settings.steps, settings.steps_per_epoch)
    steps_per_epoch, rest = (
        max(round(n * fraction / multiple), min(n, 1)) * multiple
        for n in (settings.steps_per_epoch, rest)
    )
    steps = epochs * steps_per_epoch + rest
    return dataclasses.replace(settings, steps=steps, steps_per_epoch=steps_per_epoch)


def prepare(training, learner):
    """Returns the `Removal` that a training needs first, or None. It writes nothing.

    Args:
        training: The `Training`.
        learner: Its `Learner`.
    """
    settings = training.settings
    if not settings.remover:
        return None
    remover = learner
    if settings.remove_labels:
        arguments = settings.resolved().method_arguments
        names = methods.arguments(settings.remove_labels)
        own = {name: value for name, value in arguments.items() if name in names}
        remover = methods.get(settings.remove_labels)(learner.network, **own)
    samples = aum.threshold_sets(
        training.labels.positions,
        training.task.num_classes,
        seed=settings.seed,
        size=remover.threshold_samples,
    )
    return Removal(
        training, samples, pass_settings(settings), remover.threshold_percentile, remover.combine
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """The passes that find the labels to remove.

    Attributes:
        training: The `Training` that follows.
        samples: Two arrays of positions, the threshold samples of each pass.
        settings: The `Settings` of a pass.
        percentile: Float in [0, 100]: a label is flagged below this percentile of the samples.
        combine: `and` or `or`: flagged by both passes, or by one.
    """

    training: Training
    samples: tuple
    settings: object
    percentile: float
    combine: str

    def find(self, train):
        """Trains the unfinished passes and returns what they find, a `Removed`.

        Args:
            train: Function of one `Training` that trains it and writes its files.

        Raises:
            UserError: If all labels are flagged.
        """
        positions = self.training.labels.positions
        records, flags, judges, thresholds = [], [], [], []
        for number, samples in enumerate(self.samples, 1):
            areas = self._record_of_pass(f"pass_{number}", samples, train)
            is_judge = ~np.isin(positions, samples)
            thresholds.append(aum.threshold(areas["aum"][~is_judge], self.percentile))
            flags.append(areas["aum"] < thresholds[-1])
            judges.append(is_judge)
            records.append(record.masked(areas, is_judge))
        flagged = aum.combined(flags, judges, self.combine)
        if flagged.all():
            raise UserError(
                f"AUM flags all {len(flagged)} labels, so none are left to train on. Lower "
                f"--threshold_percentile={self.percentile} or train longer."
            )
        return Removed(
            record.average(records), flagged, positions[flagged], thresholds, len(self.samples[0])
        )

    def _record_of_pass(self, name, samples, train):
        """Returns the record of a pass, as `record.read`, after training it if necessary."""
        training = self.training
        positions, num_classes = training.labels.positions, training.task.num_classes
        task = training.task.relabeled(samples, num_classes, "threshold sample")
        labels = dataclasses.replace(
            training.labels, given=task.given_labels[positions], noise=None
        )
        this = training.part(name, self.settings, labels=labels, task=task)
        is_done = folder.look_into(this.run_dir, this.settings) is not None
        if not is_done or not os.path.exists(os.path.join(this.run_dir, folder.EXAMPLES)):
            train(this)
        found = label_report.read_record(this.run_dir, training.dataset.ids[positions], num_classes)
        # The class of the threshold samples is not a suggestion.
        is_class = found["prediction"] < num_classes
        return {**found, "prediction": np.where(is_class, found["prediction"], record.UNKNOWN)}


@dataclasses.dataclass(frozen=True, eq=False)
class Removed:
    """What the passes of AUM found out about the labeled examples.

    Attributes:
        record: Dict of arrays `(num_labels,)`, as `record.read`: the mean over the passes in
            which an example was not a threshold sample.
        flagged: Bool array `(num_labels,)`.
        positions: Increasing int64 array, the positions of the flagged examples.
        thresholds: List of floats, the threshold of each pass.
        num_threshold_samples: Integer, how many there were in each pass.
    """

    record: dict
    flagged: np.ndarray
    positions: np.ndarray
    thresholds: list
    num_threshold_samples: int

    def apply(self, training, learner):
        """Returns the `Training` on the labels that are left.

        Args:
            training: The `Training` on all labels.
            learner: Its `Learner`. If it draws unlabeled examples, the number of steps stays:
                images that lose their label are unlabeled then.
        """
        settings = training.settings
        if "unlabeled" not in learner.streams():
            settings = shortened(settings, 1 - float(np.mean(self.flagged)))
        task = training.task.relabeled(self.positions, -1)
        return dataclasses.replace(training, settings=settings, task=task)

    def describe(self, steps):
        """Returns a line for the user; `steps` is the length of the training that follows."""
        return (
            f"AUM removes {len(self.positions)} of {len(self.flagged)} labels. Training on the "
            f"remaining labels takes {steps} steps."
        )

    def summary(self):
        """Returns a dict for `result.json`."""
        return {
            "count": int(self.flagged.sum()),
            "thresholds": [v if np.isfinite(v) else None for v in self.thresholds],
            "num_threshold_samples": self.num_threshold_samples,
        }
