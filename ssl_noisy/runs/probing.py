# SPDX-License-Identifier: Apache-2.0
"""The story of a probe: a classifier on frozen features, measured and written like a run."""

import dataclasses
import json
import os
import time

import numpy as np

from ssl_noisy import files
from ssl_noisy.data import feature_file, label_budget
from ssl_noisy.data.task import Task
from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection, issues
from ssl_noisy.probes import detectors, held_out, label_propagation, ni_erm
from ssl_noisy.runs import evaluation, folder, frozen, label_report, labeling, metrics
from ssl_noisy.runs.training import Training
from ssl_noisy.settings import Settings

# The flags of a run that a probe has: its data and its labels.
FLAGS = (*labeling.LOADING, "labels_csv", "num_labels", "label_draw", "label_seed", "label_file")
FLAGS += ("features", "noise", "noise_draw", "noise_seed", "cifarn_file", "seed", "run_dir")

PROTOCOL = "one fit; nothing was chosen on test images"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user wants.

    Attributes:
        by: A key of `PROBES`.
        settings: `Settings`, of which a probe uses `FLAGS`.
    """

    by: str
    settings: Settings

    def flag_lines(self, identifying=False):
        """Returns the lines of `flags.cfg`, as `Settings.flag_lines`."""
        lines = self.settings.flag_lines(identifying)
        known = tuple(f"--{name}=" for name in FLAGS)
        switches = ("--skip_unreadable", "--noskip_unreadable")
        kept = [line for line in lines if line.startswith(known) or line in switches]
        return [f"--by={self.by}", *kept]


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted probe.

    Attributes:
        probs: Function from features to probabilities, `(n, num_classes)`.
        held_out: Float array `(num_labels, num_classes)`; rows of NaN are unknown.
        parameters: Integer, the number of fitted numbers.
        iterations: Integer.
        choice: Dict of what was chosen or measured, for `result.json`.
    """

    probs: object
    held_out: np.ndarray
    parameters: int
    iterations: int
    choice: dict


def _regression(features, training, **grid):
    labels, num_classes = training.labels, training.dataset.num_classes
    features = features[labels.positions]
    probe = ni_erm.fit(features, labels.given, num_classes, seed=training.settings.seed, **grid)
    parameters = (features.shape[1] + 1) * num_classes
    choice = {
        "C": probe.strength,
        "max_iter": probe.iterations,
        "cross_validation_accuracy": probe.accuracy,
    }
    return Fitted(probe.probs, probe.held_out, parameters, probe.iterations, choice)


def _logistic(features, training):
    return _regression(features, training, strengths=(1.0,), iterations=(100,))


def _label_propagation(features, training):
    labels, dataset = training.labels, training.dataset
    given = np.full(len(features), -1)
    given[labels.positions] = labels.given
    found = label_propagation.fit(features, given, dataset.num_classes, seed=training.settings.seed)
    known = found.held_out[labels.positions]
    choice = {"cross_validation_accuracy": held_out.accuracy(known, labels.given)}
    spread = (given < 0) & (dataset.labels >= 0)
    if spread.any():  # for measurement only
        probs = label_propagation.probabilities(found.scores)[spread]
        choice["unlabeled_accuracy"] = held_out.accuracy(probs, dataset.labels[spread])
    iterations = label_propagation.MOST_ITERATIONS
    return Fitted(found.probs, known, found.scores.size, iterations, choice)


PROBES = {
    "ni_erm": _regression,
    "label_propagation": _label_propagation,
    "logistic": _logistic,
}


def probe(request):
    """Fits a probe and writes its folder, or returns its result if it is finished.

    The folder has the files of a run, as far as there is something to write: `flags.cfg`,
    `labels.json`, `noise.npz`, `examples.csv`, `metrics.csv` with a single row, `timing.json` and
    `result.json`, which marks the end.

    Args:
        request: A `Request`.

    Returns:
        The content of `result.json`, a dict.

    Raises:
        UserError: For a mistake. Nothing is written then.
    """
    settings, run_dir = request.settings, request.settings.run_dir
    finished = folder.look_into(run_dir, request)
    if finished is not None:
        frozen.check_unchanged(settings.features, finished["features"]["fingerprint"], run_dir)
        return finished
    stored = feature_file.read(settings.features)
    dataset = labeling.load_dataset(settings)
    dataset = labeling.correct(settings, dataset, run_dir)
    labeling.check_corrections(settings, dataset, run_dir)
    if dataset.test_images is None:
        raise UserError(
            f"A probe needs test images, which {dataset.name!r} lacks here. Use another "
            "--test_split."
        )
    labels = labeling.choose(settings, dataset, run_dir)
    if len(np.unique(labels.given)) < 2:
        raise UserError(
            "A probe needs labels of at least 2 classes. Received: "
            f"{len(labels.given)} labels of {len(np.unique(labels.given))}. Use more --num_labels."
        )
    features, test_features = stored.training(dataset), stored.test(dataset)
    task = Task.from_dataset(dataset, labels.positions, labels.given, **settings.residence())
    training = Training(settings, run_dir, dataset, labels, task)
    files.make_folder(run_dir)
    with folder.only_process(run_dir):
        # Another process may have begun here since this one looked.
        finished = folder.look_into(run_dir, request)
        if finished is None:
            folder.begin(run_dir, request)
            labeling.write(run_dir, dataset, labels)
            finished = _fit(request, training, features, test_features)
            folder.write_result(run_dir, finished)
    return finished


def _fit(request, training, features, test_features):
    """Fits a probe, writes all files but the result, and returns that."""
    settings, dataset, labels = request.settings, training.dataset, training.labels
    began = time.monotonic()
    fitted = PROBES[request.by](features, training)
    # Calibration expects logits, of which these are some.
    logits = np.log(np.maximum(fitted.probs(test_features), 1e-30))
    accuracy = float(np.mean(np.argmax(logits, axis=1) == dataset.test_labels))
    described = frozen.describe(settings.features)
    result = {
        "method": request.by,
        "dataset": f"{dataset.name} {dataset.version}",
        "num_labels": len(labels.positions),
        "labels_sha256": label_budget.digest(dataset, labels.positions),
        "seed": settings.seed,
        "network": f"features of {described['extractor']}",
        "begins_with": f"frozen features of {described['extractor']}",
        "parameters": fitted.parameters,
        "steps": fitted.iterations,
        "backend": "scikit-learn",
        "features": {"num_features": features.shape[1], **described},
        "choice": fitted.choice,
        "test_accuracy": {**dict.fromkeys(evaluation.PROTOCOLS), "last": accuracy},
        "protocol": PROTOCOL,
        "class_names": list(dataset.class_names),
        **evaluation.of_test(logits, dataset),
    }
    if dataset.notes:
        result["data_notes"] = list(dataset.notes)
    if dataset.unreadable:
        result["unreadable_files"] = dataset.unreadable
    noise = labeling.noise_summary(dataset, labels)
    if noise is not None:
        result["noise"] = noise
    result["label_quality"] = _examine(training, features, fitted.held_out)
    row = {"step": fitted.iterations, "epoch": 1, "test_accuracy": accuracy}
    metrics.write_metrics(training.run_dir, [row])
    _write_timing(training.run_dir, time.monotonic() - began)
    return result


def _write_timing(run_dir, seconds):
    import sklearn  # late: it takes a second

    timing = {"seconds": round(seconds, 3), "scikit-learn": sklearn.__version__}
    timing |= {"numpy": np.__version__, "cores": os.cpu_count()}
    folder.write_text(run_dir, folder.TIMING, json.dumps(timing, indent=2) + "\n")


def _examine(training, features, probs):
    """Writes `examples.csv` and returns what the held-out predictions say about the labels."""
    labels, dataset = training.labels, training.dataset
    margins = held_out.margins(probs, labels.given)
    known = np.isfinite(margins)
    own = probs[np.arange(len(probs)), labels.given]
    predicted = np.where(known, np.argmax(np.where(known[:, None], probs, 0), axis=1), -1)
    agrees = np.where(known, margins >= 0, np.nan)
    loss = -np.log(np.maximum(own, 1e-30))
    unknown = np.full(len(probs), np.nan)
    record = {
        "prediction": predicted,
        "margin": unknown,
        "aum": unknown,
        "cores": unknown,
        "loss": loss,
        "mean_loss": loss,
        "label_probability": own,
        "probability_margin": margins,
        "observations": known.astype(int),
        "agreement": agrees,
        "wrong_predictions": (margins < 0).astype(int),
        "last_correct": np.where(known, margins >= 0, -1),
        "forgetting_events": np.zeros(len(probs), int),
    }
    is_issue, label_quality, summary = _decide(record, labels.given)
    posterior = detection.Detector(detection.fit_posterior(loss)[2], np.zeros(len(loss), bool))
    found = {
        name: detection.Detector(score, flagged)
        for name, (score, flagged) in detectors.detect(
            features[labels.positions], labels.given, dataset.num_classes, probs=probs
        ).items()
    }
    every = {"label_issues": detection.Detector(1 - label_quality, is_issue), **found}
    detection.examples_csv(
        os.path.join(training.run_dir, folder.EXAMPLES),
        dataset.ids[labels.positions],
        labels.given,
        record,
        {"posterior": posterior},
        label_quality,
        is_issue,
        files=label_report.files_of(training),
        class_names=dataset.class_names,
        more=found,
    )
    suspects = label_report.most_suspicious(training, predicted, label_quality, is_issue)
    noise_rate = summary["count"] / max(known.sum(), 1)
    report = detection.report(every, noise_rate, training.is_wrong)
    return {"label_issues": summary, "most_suspicious": suspects, **report}


def _decide(record, labels):
    """Decides which labels are issues: as many as are contradicted with confidence.

    It is the rule of `issues.decide` for a record without two modes. The labels with the smallest
    held-out margins are issues, and `label_quality` is 0.5 between the last of them and the next.

    Returns:
        `(is_issue, label_quality, summary)`, as in `issues.Decision`.
    """
    margins = record["probability_margin"]
    known = np.isfinite(margins)
    count = issues.confident_contradictions(record, labels, known)
    support = (1 + margins) / 2
    threshold = issues.threshold_of(support[known], count)
    is_issue = known & (support < threshold)
    summary = {
        "count": int(is_issue.sum()),
        "of": len(labels),
        "by": "confident",
        "contradicted": int((margins < 0).sum()),
        "weak_evidence": _weak_evidence(known, labels),
    }
    return is_issue, issues.quality(support, threshold), summary


def _weak_evidence(known, labels):
    """Returns reasons to distrust the label issues, a list of clauses."""
    found = []
    rare = int((~known).sum())
    if rare:
        found.append(f"{rare:,} labels are the only ones of their class and are never flagged")
    per_class = len(labels) / len(np.unique(labels))
    if per_class < issues.FEW_LABELS:
        found.append(f"there are only {per_class:.3g} labels per class")
    return found
