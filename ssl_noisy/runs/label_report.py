# SPDX-License-Identifier: Apache-2.0
"""What a run found out about the labels: examples.csv, pictures, and figures for its result."""

import os

import numpy as np

from ssl_noisy.labels import detection, issues, record
from ssl_noisy.runs import plots

EXAMPLES = "examples.csv"


def write(run_dir, dataset, positions, given_labels, kept, *, own, aum_threshold, is_wrong, draw):
    """Writes the record of the labeled examples, and pictures of it.

    Args:
        run_dir: The run folder.
        dataset: The `Dataset`.
        positions: Integer array `(n,)`, the labeled examples.
        given_labels: Integer array `(n,)`.
        kept: Dict of arrays `(n,)`, as `record.read` gives it.
        own: Dict from name to `(score, flagged)`, arrays `(n,)`: what the method itself says, as
            `Learner.detected`. They are reported beside the others; none decides.
        aum_threshold: Float, the area below which `aum` flags.
        is_wrong: Bool array `(n,)`, or None where the truth is not known.
        draw: Whether to draw `losses.png`, `aum.png`, `labels.png` and `gallery.png`.

    Returns:
        A dict for `result.json`: `label_issues`, the summary of the `issues.Decision`, and
        `detection.report`, with the decision among the detectors as `label_issues`.
    """
    mixture, x, posterior = detection.fit_posterior(kept["mean_loss"])
    decision = issues.decide(kept, posterior, given_labels)
    aum_flagged = own["aum"][1] if "aum" in own else None
    detectors = detection.detectors(
        kept, posterior, decision.noise_rate, aum_threshold, aum_flagged
    )
    for name, (score, flagged) in own.items():
        if name != "aum":
            detectors[name] = detection.Detector(score, flagged & np.isfinite(score))
    quality, is_issue = decision.label_quality, decision.is_issue
    detectors = {"label_issues": detection.Detector(1 - quality, is_issue), **detectors}
    path = os.path.join(run_dir, EXAMPLES)
    detection.examples_csv(
        path, dataset.ids[positions], given_labels, kept, detectors, quality, is_issue
    )
    if draw:
        picture = lambda name: os.path.join(run_dir, name)  # noqa: E731
        if mixture is not None:
            plots.loss_histogram(x, mixture, picture("losses.png"), is_wrong)
        if np.isfinite(kept["aum"]).any():
            plots.aum_histogram(kept["aum"], aum_threshold, picture("aum.png"), is_wrong)
        predicted, names = kept["prediction"], dataset.class_names
        seen = np.flatnonzero(predicted >= 0)
        plots.label_matrix(given_labels[seen], predicted[seen], names, picture("labels.png"))
        plots.gallery(
            dataset.images[positions[seen]],
            given_labels[seen],
            predicted[seen],
            quality[seen],
            names,
            picture("gallery.png"),
        )
    report = detection.report(detectors, decision.noise_rate, is_wrong)
    return {"label_issues": decision.summary(), **report}


def read_record(run_dir, ids, num_classes):
    """Returns the record that `write` wrote in a run folder, as `record.read` gives it.

    Args:
        run_dir: The run folder.
        ids: Integer array `(n,)`, the published indices of its labeled examples.
        num_classes: Integer, without a class of threshold samples.

    Raises:
        ExamplesFileError: If the file cannot be read, or is of other examples.
    """
    path = os.path.join(run_dir, EXAMPLES)
    advice = f"{path} belongs to this run: delete it, and the same command writes it again."
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
            f"The file of examples {path!r} holds other examples or classes than this run. {advice}"
        )
    names = (*record.MEANS, *record.COUNTS, "last_correct")
    return {"prediction": predicted, **{name: examples[name] for name in names}}
