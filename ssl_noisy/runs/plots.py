# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: how it went, what its views look like, which labels it takes for wrong."""

import numpy as np
from keras import ops
from sklearn import metrics

from ssl_noisy.files import replacing

CURVES = {
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "mask_rate": "mask rate (share kept)",
    "pseudo_label_accuracy": "accuracy of kept pseudo-labels",
}

# Of Okabe and Ito: told apart by the color-blind, and in gray.
CLEAN, NOISY = "#0072B2", "#D55E00"
BINS = 50
COLUMNS = 8  # of a gallery
MOST_NUMBERS = 20  # classes, up to which a matrix shows its numbers


def curves(history, path):
    """Draws accuracy, mask rate and pseudo-label accuracy against the step.

    Args:
        history: List of dicts, one an evaluation, with `step` and any of the keys of `CURVES`.
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
    """Draws a grid: an image, its weak view and, where the method makes one, its strong view.

    The learner's random state is left as it was.

    Args:
        learner: A `Learner` with a task.
        path: The PNG file to write.
        num_images: Positive integer.
    """
    rng = np.random.default_rng(0)
    indices = np.sort(rng.choice(learner.task.num_examples, num_images)).astype("int32")
    before = ops.convert_to_numpy(learner.seed_generator.state.value)
    images = learner.images(indices)
    columns = {"image": images, "weak view": _weak_view(learner, images, indices)}
    if hasattr(learner, "strong_augmentation"):
        columns["strong view"] = learner.strong_view(images)
    learner.seed_generator.state.assign(before)

    figure = _figure(1.1 * num_images, 1.2 * len(columns))
    grid = figure.subplots(len(columns), num_images, squeeze=False)
    for row, (title, batch) in zip(grid, columns.items()):
        row[0].set_ylabel(title)
        for axes, image in zip(row, ops.convert_to_numpy(batch) / 255.0):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    _save(figure, path)


def _weak_view(learner, images, indices):
    return learner.weak_view(images, indices)


def loss_histogram(x, mixture, path, is_wrong=None):
    """Draws the density of the normalized losses and the components of the fitted mixture.

    The outer bars hold the losses beyond either end of the range too, which were not fitted.

    Args:
        x: Float array `(n,)` in [0, 1], NaN where unknown, as from `detection.fit_posterior`.
        mixture: The fitted `BetaMixture`, or None.
        path: The PNG file to write.
        is_wrong: Bool array `(n,)`, which tells clean from wrong, or None.

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
        # A beta density may be infinite at 0 and 1: what stands beyond the outer bins is cut.
        highest = max(highest, parts.sum(axis=0)[8:-8].max())
    axes.set(xlabel="normalized loss", ylabel="density", xlim=(0, 1), ylim=(0, 1.1 * highest))
    axes.legend()
    _save(figure, path, dpi=200)
    return figure


def aum_histogram(aum, threshold, path, is_wrong=None):
    """Draws the density of the areas under the margin, and the threshold.

    Args:
        aum: Float array `(n,)`, in logits, NaN where unknown.
        threshold: Float. One that is not finite is not drawn.
        path: The PNG file to write.
        is_wrong: Bool array `(n,)`, which tells clean from wrong, or None.

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
    """Draws the histogram of the known values, clean and wrong apart; returns its highest bar."""
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
    """Draws how often each given label was predicted as each class.

    The color is the share of the row, by its square root: confusions are a few percent.

    Args:
        given_labels: Integer array `(n,)` in [0, num_classes).
        predicted_labels: Integer array `(n,)`, -1 where there is none: that is left out.
        class_names: Sequence of `num_classes` strings.
        path: The PNG file to write.

    Returns:
        The Matplotlib figure. Up to 20 classes it shows the counts.
    """
    classes = np.arange(len(class_names))
    counts = metrics.confusion_matrix(given_labels, predicted_labels, labels=classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.45 * min(len(classes), MOST_NUMBERS)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, label="share of the given label", shrink=0.8)
    bar.set_ticks(
        np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]), labels=["0", "1%", "5%", "20%", "50%", "100%"]
    )
    if len(classes) <= MOST_NUMBERS:
        for row, column in np.ndindex(counts.shape):
            color = "white" if shares[row, column] > 0.3 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    ticks = classes[:: -(-len(classes) // 100)]  # of a thousand names none could be read
    size = 9 if len(classes) <= MOST_NUMBERS else 5
    rotation = 90 if max(map(len, class_names)) > 2 else 0
    names = [class_names[tick] for tick in ticks]
    axes.set_xticks(ticks, names, rotation=rotation, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted label", ylabel="given label")
    _save(figure, path, dpi=200)
    return figure


def gallery(images, given_labels, suggested_labels, label_quality, class_names, path, count=64):
    """Draws the examples of the lowest label quality, worst first: given → suggested label.

    Args:
        images: uint8 array `(n, height, width, channels)`, 1 or 3 channels.
        given_labels: Integer array `(n,)`.
        suggested_labels: Integer array `(n,)`, such as the last predictions.
        label_quality: Float array `(n,)` in [0, 1]. NaN, unknown, is left out; ties go by place.
        class_names: Sequence of strings.
        path: The PNG file to write.
        count: Positive integer, the most examples, eight a row.

    Returns:
        The Matplotlib figure.
    """
    worst = np.argsort(label_quality, kind="stable")  # NaN comes last
    worst = worst[np.isfinite(label_quality[worst])][:count]
    rows = max(-(-len(worst) // COLUMNS), 1)
    names = [class_names[label] for label in [*given_labels[worst], *suggested_labels[worst]]]
    short = max(map(len, names), default=0) < 6
    arrow = " → " if short else "\n→ "
    figure = _figure(1.1 * COLUMNS, (1.3 if short else 1.45) * rows)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(worst) :]:
        axes.axis("off")
    for axes, place, given, suggested in zip(grid, worst, names, names[len(worst) :]):
        axes.imshow(images[place].squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(given + arrow + suggested, fontsize=8, parse_math=False)
        axes.set(xticks=[], yticks=[])
    _save(figure, path, dpi=200)
    return figure


def _figure(width, height):
    # Matplotlib takes half a second to import, which the start of a run need not pay; a bare
    # Figure needs no display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path, dpi=120):
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
