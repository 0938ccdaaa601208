# SPDX-License-Identifier: Apache-2.0
"""What a run found out about the labels: examples.csv, pictures, and figures for its result."""

import os

import numpy as np

from ssl_noisy import networks
from ssl_noisy.data import feature_file
from ssl_noisy.data.rows import Rows
from ssl_noisy.labels import detection, issues, record
from ssl_noisy.probes import detectors as feature_detectors
from ssl_noisy.runs import folder, plots

MOST_SUSPICIOUS = 10  # labels that a result names


def check_features(settings, dataset):
    """Raises the `FeatureError` that `examine` would raise after the training."""
    if settings.features:
        feature_file.read(settings.features).training(dataset)


def by_features(training, is_wrong):
    """Returns what the features of the images say about the labels, as `detectors.detect`.

    It is empty without `settings.features`, for a training that another one needs first, and for a
    classifier of the same features, since the detectors would not be independent evidence.
    """
    settings = training.settings
    if not settings.features or training.is_part or networks.is_head(settings.network):
        return {}
    labels, dataset = training.labels, training.dataset
    features = feature_file.read(training.settings.features).training(dataset)[labels.positions]
    return feature_detectors.detect(
        features,
        labels.given,
        dataset.num_classes,
        seed=training.settings.seed,
        is_wrong=is_wrong,
    )


def examine(training, learner, removed=None):
    """Writes the record of the labeled examples and, with `settings.plots`, pictures of it.

    These are `losses`, `aum`, `labels` and `gallery`, as `folder.picture` names them. With
    `settings.features`, the features of the images are four more detectors. Detectors of the method
    itself and of the features have columns of their own.

    Args:
        training: The `Training`.
        learner: Its `Learner`, trained.
        removed: The `removal.Removed` labels, or None. If there are any, the record is that of
            the passes that found them.

    Returns:
        A dict for `result.json`: `label_issues`, the summary of the `issues.Decision`,
        `most_suspicious`, the labels of the lowest quality, and `detection.report`, with the
        decision among the detectors as `label_issues`. None if nothing was recorded, or there is
        no label.
    """
    labels, dataset, is_wrong = training.labels, training.dataset, training.is_wrong
    # What the method itself detects is reported beside the other detectors. None of it decides.
    own = {
        name: tuple(values[labels.positions] for values in detected)
        for name, detected in learner.detected().items()
    }
    if removed is not None:
        kept, threshold = removed.record, float(np.mean(removed.thresholds))
    elif learner.record_examples and len(labels.positions):
        kept, threshold = learner.example_record(labels.positions), 0.0
    else:
        return None
    mixture, x, posterior = detection.fit_posterior(kept["mean_loss"])
    own |= by_features(training, posterior > 0.5)
    decision = issues.decide(kept, posterior, labels.given)
    aum_flagged = None if removed is None else removed.flagged
    detectors = {
        "label_issues": detection.Detector(1 - decision.label_quality, decision.is_issue),
        **detection.detectors(kept, posterior, decision.noise_rate, threshold, aum_flagged),
        **{
            name: detection.Detector(score, flagged & np.isfinite(score))
            for name, (score, flagged) in own.items()
        },
    }
    detection.examples_csv(
        os.path.join(training.run_dir, folder.EXAMPLES),
        dataset.ids[labels.positions],
        labels.given,
        kept,
        detectors,
        decision.label_quality,
        decision.is_issue,
        files=files_of(training),
        class_names=training.task.class_names,
        order=training.settings.examples_order or detection.ORDERS[0],
        more={name: detectors[name] for name in own},
    )
    if training.settings.plots:
        _draw(training, kept, mixture, x, decision.label_quality, threshold)
    report = detection.report(detectors, decision.noise_rate, is_wrong)
    suspects = most_suspicious(
        training, kept["prediction"], decision.label_quality, decision.is_issue
    )
    return {"label_issues": decision.summary(), "most_suspicious": suspects, **report}


def files_of(training):
    """Returns the file of each label, or None for data that is not in files."""
    files = training.dataset.files
    return files and [files[position] for position in training.labels.positions]


def most_suspicious(training, predicted, label_quality, is_issue):
    """Returns the labels of the lowest quality, the lowest one first, as a list of dicts.

    Args:
        training: The `Training`.
        predicted: Integer array `(num_labels,)`; -1 is unknown.
        label_quality: Float array `(num_labels,)`; NaN is unknown.
        is_issue: Bool array `(num_labels,)`.
    """
    labels, names = training.labels, training.task.class_names
    files, ids = files_of(training), training.dataset.ids[labels.positions]
    worst = np.argsort(label_quality, kind="stable")  # NaN comes last
    worst = worst[np.isfinite(label_quality[worst])][:MOST_SUSPICIOUS]
    return [
        {
            "example": files[row] if files else int(ids[row]),
            "given_class": names[labels.given[row]],
            "predicted_class": names[predicted[row]] if predicted[row] >= 0 else None,
            "label_quality": float(label_quality[row]),
            "is_label_issue": bool(is_issue[row]),
        }
        for row in worst
    ]


def describe_suspects(suspects):
    """Returns `most_suspicious` of a result as lines for a terminal."""
    lines = [f"The {len(suspects)} most suspicious labels, * = label issue:"]
    width = max(len(str(one["example"])) for one in suspects)
    for one in suspects:
        lines.append(
            f"{'*' if one['is_label_issue'] else ' '} {one['example']!s:{width}}  quality "
            f"{one['label_quality']:.3f}  given {one['given_class']}, predicted "
            f"{one['predicted_class'] or '-'}"
        )
    return "\n".join(lines)


def _draw(training, kept, mixture, x, label_quality, aum_threshold):
    """Draws the losses, the areas under the margin, the predictions, and the worst labels."""
    labels, dataset = training.labels, training.dataset

    def path(name):
        return folder.picture(training.run_dir, name, training.settings.plot_format)

    if mixture is not None:
        plots.loss_histogram(x, mixture, path("losses"), training.is_wrong)
    if np.isfinite(kept["aum"]).any():
        plots.aum_histogram(kept["aum"], aum_threshold, path("aum"), training.is_wrong)
    seen = np.flatnonzero(kept["prediction"] >= 0)
    given, predicted, names = labels.given, kept["prediction"], dataset.class_names
    num_unlabeled = len(dataset.images) - len(given)
    plots.label_matrix(given, predicted, names, path("labels"), num_unlabeled)
    images = Rows(dataset.images, labels.positions[seen])
    files = files_of(training)
    plots.gallery(
        images,
        given[seen],
        predicted[seen],
        label_quality[seen],
        names,
        path("gallery"),
        files=files and [os.path.basename(files[row]) for row in seen],
    )


def read_record(run_dir, ids, num_classes):
    """Returns the record that `examine` wrote in a run folder, as `record.read` gives it.

    Args:
        run_dir: The run folder.
        ids: Integer array `(num_labels,)`, the published ids of its labeled examples.
        num_classes: Integer, without a class of threshold samples.

    Raises:
        ExamplesFileError: If the file cannot be read or describes other examples.
    """
    path = os.path.join(run_dir, folder.EXAMPLES)
    advice = f"{path} belongs to this run. Delete it and run the same command again to restore it."
    try:
        examples = detection.read_examples(path)
    except detection.ExamplesFileError as error:
        raise detection.ExamplesFileError(f"{error} {advice}") from error
    predicted = examples["predicted_label"]
    if (
        not np.array_equal(examples["index"], ids)
        or not np.isin(predicted, np.arange(-1, num_classes + 1)).all()
    ):
        raise detection.ExamplesFileError(
            f"The file {path!r} describes other examples or classes than those of this run. "
            f"{advice}"
        )
    names = (*record.MEANS, *record.COUNTS, "last_correct")
    return {"prediction": predicted, **{name: examples[name] for name in names}}
