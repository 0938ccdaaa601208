# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: its accuracy, its views, and the labels it considers wrong."""

import warnings

import numpy as np
from keras import ops
from sklearn import metrics

from ssl_noisy.files import replacing

CURVES = {
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "mask_rate": "mask rate (fraction kept)",
    "pseudo_label_accuracy": "accuracy of kept pseudo-labels",
}

# Colors of Okabe and Ito, distinct for the color-blind and in gray.
CLEAN, NOISY = "#0072B2", "#D55E00"
BINS = 50
COLUMNS = 8  # images in a row of a gallery
MOST_NUMBERS = 20  # a matrix of at most so many classes shows its counts


def curves(history, path):
    """Draws accuracy, mask rate and pseudo-label accuracy against the step.

    Args:
        history: List of dicts, one per evaluation, with `step` and any keys of `CURVES`.
        path: The PNG file to write.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    steps = [row["step"] for row in history]
    for key, label in CURVES.items():
        if key in history[-1]:
            values = [np.nan if row[key] is None else row[key] for row in history]
            axes.plot(steps, values, label=label, marker="." if len(steps) < 30 else None)
    axes.set(xlabel="step", ylim=(0, 1.02), xlim=(0, steps[-1]))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    _save(figure, path)


def views(learner, path, num_images=10):
    """Draws a grid of images, their weak views and, if the method has them, strong views.

    The learner's random state does not change.

    Args:
        learner: A `Learner` with a task.
        path: The PNG file to write.
        num_images: Positive integer.
    """
    rng = np.random.default_rng(0)
    positions = np.sort(rng.choice(learner.task.num_examples, num_images)).astype("int32")
    before = ops.convert_to_numpy(learner.seed_generator.state.value)
    images = learner.images(positions)
    rows = {"image": images, "weak view": learner.weak_view(images, positions)}
    if hasattr(learner, "strong_augmentation"):
        rows["strong view"] = learner.strong_view(images)
    learner.seed_generator.state.assign(before)

    figure = _figure(1.1 * num_images, 1.2 * len(rows))
    grid = figure.subplots(len(rows), num_images, squeeze=False)
    for row_of_axes, (title, batch) in zip(grid, rows.items()):
        row_of_axes[0].set_ylabel(title)
        for axes, image in zip(row_of_axes, ops.convert_to_numpy(batch) / 255.0):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    _save(figure, path)


def loss_histogram(x, mixture, path, is_wrong=None):
    """Draws the density of the normalized losses and the components of the fitted mixture.

    The outer bars include the losses beyond the fitted range, clipped to its ends.

    Args:
        x: Float array `(n,)` in [0, 1], NaN if unknown, as from `detection.fit_posterior`.
        mixture: The fitted `BetaMixtureModel`, or None.
        path: The PNG file to write.
        is_wrong: Bool array `(n,)`, which labels are wrong, or None if that is unknown.

    Returns:
        The Matplotlib figure. The areas of its bars sum to 1.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    highest = _histogram(axes, x, np.linspace(0, 1, BINS + 1), is_wrong)
    if mixture is not None:
        places = (np.arange(BINS * 8) + 0.5) / (BINS * 8)
        parts = mixture.density(places).T
        axes.plot(places, parts[0], color=CLEAN, label="clean component")
        axes.plot(places, parts[1], color=NOISY, label="noisy component")
        axes.plot(places, parts.sum(axis=0), color="black", linestyle="--", label="their sum")
        # A beta density may be infinite at 0 and 1, so the outer bins do not set the height.
        highest = max(highest, parts.sum(axis=0)[8:-8].max())
    axes.set(xlabel="normalized loss", ylabel="density", xlim=(0, 1), ylim=(0, 1.1 * highest))
    axes.legend()
    _save(figure, path, dpi=200)
    return figure


def aum_histogram(aum, threshold, path, is_wrong=None):
    """Draws the density of the areas under the margin and the threshold.

    Args:
        aum: Float array `(n,)`, in logits, NaN if unknown.
        threshold: Float. It is drawn if it is finite.
        path: The PNG file to write.
        is_wrong: Bool array `(n,)`, which labels are wrong, or None if that is unknown.

    Returns:
        The Matplotlib figure. The areas of its bars sum to 1.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    _histogram(axes, aum, np.histogram_bin_edges(aum[np.isfinite(aum)], BINS), is_wrong)
    if np.isfinite(threshold):
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    axes.set(xlabel="area under the margin (logits)", ylabel="density")
    axes.legend()
    _save(figure, path, dpi=200)
    return figure


def _histogram(axes, values, edges, is_wrong):
    """Draws separate histograms of clean and wrong labels, and returns the highest bar."""
    known = np.isfinite(values)
    parts = {"labels": (known, "gray")}
    if is_wrong is not None:
        parts = {"clean": (known & ~is_wrong, CLEAN), "wrong": (known & is_wrong, NOISY)}
    area = max(known.sum(), 1) * (edges[1] - edges[0])  # of all bars, before they are scaled
    highest = 1e-3
    for name, (part, color) in parts.items():
        weights = np.full(part.sum(), 1 / area)
        label = f"{name} ({part.sum():,})"
        bars, *_ = axes.hist(
            values[part], edges, weights=weights, color=color, alpha=0.4, label=label
        )
        highest = max(highest, bars.max())
    return highest


def label_matrix(given_labels, predicted_labels, class_names, path):
    """Draws how often each class was predicted for each given label.

    The color scale is the square root of the fraction of the row, because most confusions are a
    few percent.

    Args:
        given_labels: Integer array `(n,)` in [0, num_classes).
        predicted_labels: Integer array `(n,)`. Examples with -1, no prediction, are left out.
        class_names: Sequence of `num_classes` strings.
        path: The PNG file to write.

    Returns:
        The Matplotlib figure. With at most 20 classes it shows the counts.
    """
    classes = np.arange(len(class_names))
    counts = metrics.confusion_matrix(given_labels, predicted_labels, labels=classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.45 * min(len(classes), MOST_NUMBERS)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, label="fraction of the given label", shrink=0.8)
    bar.set_ticks(
        np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]), labels=["0", "1%", "5%", "20%", "50%", "100%"]
    )
    if len(classes) <= MOST_NUMBERS:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.3 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    ticks = classes[:: -(-len(classes) // 100)]  # a thousand names would be illegible
    size = 9 if len(classes) <= MOST_NUMBERS else 5
    rotation = 90 if max(map(len, class_names)) > 2 else 0
    names = [class_names[tick] for tick in ticks]
    axes.set_xticks(ticks, names, rotation=rotation, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted label", ylabel="given label")
    _save(figure, path, dpi=200)
    return figure


def gallery(
    images,
    given_labels,
    suggested_labels,
    label_quality,
    class_names,
    path,
    count=64,
    files=None,
):
    """Draws the examples of the lowest label quality, worst first, as given → suggested label.

    Args:
        images: uint8 array `(n, height, width, channels)`, 1 or 3 channels.
        given_labels: Integer array `(n,)`.
        suggested_labels: Integer array `(n,)`, such as the last predictions.
        label_quality: Float array `(n,)` in [0, 1]. Examples with NaN, unknown, are left out. Ties
            keep their order.
        class_names: Sequence of strings.
        path: The PNG file to write.
        count: Positive integer, the maximum number of examples. A row has eight.
        files: Sequence of n names of files to write below the examples, or None.

    Returns:
        The Matplotlib figure.
    """
    worst = np.argsort(label_quality, kind="stable")  # NaN comes last
    worst = worst[np.isfinite(label_quality[worst])][:count]
    rows = max(-(-len(worst) // COLUMNS), 1)
    names = [class_names[label] for label in [*given_labels[worst], *suggested_labels[worst]]]
    short = max(map(len, names), default=0) < 6
    arrow = " → " if short else "\n→ "
    height = (1.3 if short else 1.45) + (0.12 if files is not None else 0)
    figure = _figure(1.1 * COLUMNS, height * rows)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(worst) :]:
        axes.axis("off")
    for axes, position, given, suggested in zip(grid, worst, names, names[len(worst) :]):
        axes.imshow(images[position].squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(given + arrow + suggested, fontsize=8, parse_math=False)
        axes.set(xticks=[], yticks=[])
        if files is not None:
            axes.set_xlabel(_shortened(files[position]), fontsize=6, parse_math=False)
    _save(figure, path, dpi=200)
    return figure


def _shortened(name, most=22):
    """Returns a name without its middle, if it is too long to write below an image."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _figure(width, height):
    # Importing Matplotlib takes half a second, which would delay the start of a run. A bare Figure
    # needs no display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path, dpi=120):
    with replacing(path) as file, warnings.catch_warnings():
        # A class may have a name in a script that Matplotlib's font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format="png", dpi=dpi)
