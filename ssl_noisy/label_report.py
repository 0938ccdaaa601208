# SPDX-License-Identifier: Apache-2.0
"""What a run found out about the labels: examples.csv, pictures, and figures for its result."""

import os

import numpy as np

from ssl_noisy import detection, plots

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
            `Learner.detected`. The first decides what is an issue; without one, the posterior.
        aum_threshold: Float, the area below which `aum` flags.
        is_wrong: Bool array `(n,)`, or None where the truth is not known.
        draw: Whether to draw `losses.png`, `aum.png`, `labels.png` and `gallery.png`.

    Returns:
        A dict for `result.json`: `detection.report`, and `label_issues`, which detector decided
        and how many it flagged.
    """
    mixture, x, posterior = detection.fit_posterior(kept["mean_loss"])
    aum_flagged = own["aum"][1] if "aum" in own else None
    detectors = detection.detectors(kept, posterior, aum_threshold, aum_flagged)
    for name, (score, flagged) in own.items():
        if name != "aum":
            detectors[name] = detection.Detector(score, flagged & np.isfinite(score))
    chosen = next(iter(own), "posterior")
    if chosen == "aum":
        quality = detection.quality_from_aum(kept["aum"], aum_threshold)
    else:
        quality = 1 - detectors[chosen].score
    issues = detectors[chosen].flagged
    path = os.path.join(run_dir, EXAMPLES)
    detection.examples_csv(
        path, dataset.ids[positions], given_labels, kept, detectors, quality, issues
    )
    if draw:
        picture = lambda name: os.path.join(run_dir, name)  # noqa: E731
        if mixture is not None:
            plots.loss_histogram(x, mixture, picture("losses.png"), is_wrong)
        if np.isfinite(kept["aum"]).any():
            plots.aum_histogram(kept["aum"], aum_threshold, picture("aum.png"), is_wrong)
        # The largest losses have one posterior: among equals the larger loss comes first.
        seen = np.argsort(-kept["mean_loss"], kind="stable")
        predicted, names = kept["prediction"], dataset.class_names
        seen = seen[predicted[seen] >= 0]
        plots.label_matrix(given_labels[seen], predicted[seen], names, picture("labels.png"))
        plots.gallery(
            dataset.images[positions[seen]],
            given_labels[seen],
            predicted[seen],
            quality[seen],
            names,
            picture("gallery.png"),
        )
    is_bimodal = mixture is not None and mixture.is_bimodal_
    decided = {"by": chosen, "count": int(issues.sum())}
    return {"label_issues": decided, **detection.report(detectors, is_bimodal, is_wrong)}


def read_record(run_dir):
    """Returns the record that `write` wrote in a run folder, as `record.read` gives it."""
    examples = detection.read_examples(os.path.join(run_dir, EXAMPLES))
    names = ("observations", "aum", "margin", "loss", "mean_loss", "agreement", "cores")
    names += ("last_correct", "forgetting_events")
    return {"prediction": examples["predicted_label"], **{name: examples[name] for name in names}}
