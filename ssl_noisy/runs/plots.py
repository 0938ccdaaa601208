# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: its accuracy, its views, and the labels it considers wrong."""

import os
import warnings

import numpy as np
from keras import ops

from ssl_noisy.files import replacing
from ssl_noisy.labels import detection

CURVES = {  # of the test, validation, test, unlabeled and kept images
    "test_accuracy": "test accuracy",
    "test_cluster_accuracy": "accuracy of test clusters matched with classes",
    "validation_accuracy": "validation accuracy",
    "test_knn_accuracy": "test accuracy of nearest neighbors",
    "mask_rate": "mask rate: pseudo-labels kept",
    "pseudo_label_accuracy": "accuracy of kept pseudo-labels",
}

# Colors of Okabe and Ito, distinct for the color-blind and in gray.
CLEAN, NOISY = "#0072B2", "#D55E00"
BINS = 50
COLUMNS = 8  # images in a row of a gallery
MOST_NUMBERS = 20  # a matrix of at most so many classes shows its counts


def curves(history, path, baseline=None):
    """Draws accuracy, mask rate and pseudo-label accuracy against the step.

    Args:
        history: List of dicts, one per evaluation, with `step` and any keys of `CURVES`.
        path: The file to write. The suffix of its name is the format, as for all pictures.
        baseline: Optional `(method, history)` of the baseline, whose test accuracy is drawn too.

    Returns:
        The Matplotlib figure.
    """
    figure = _figure(6.4, 4.6)
    axes = figure.subplots()
    lines = [(label, history, key, {}) for key, label in CURVES.items()]
    if baseline is not None:
        method, rows = baseline
        style = {"color": "gray", "linestyle": "--"}
        lines.append((f"test accuracy of the baseline {method}", rows, "test_accuracy", style))
    for label, rows, key, style in lines:
        if key in rows[-1]:
            values = [np.nan if row[key] is None else 100 * row[key] for row in rows]
            marker = "." if len(rows) < 30 else None
            axes.plot([row["step"] for row in rows], values, label=label, marker=marker, **style)
    # With room for half a marker at 0 and 100 %, and at the first and the last step.
    last = max(rows[-1]["step"] for _, rows, _, _ in lines)
    axes.set(xlabel="step (optimizer updates)", ylabel="fraction of the images (%)")
    axes.set(xlim=(-0.02 * last, 1.02 * last), ylim=(-2, 102))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    _save(figure, path)
    return figure


def validation_curves(histories, path):
    """Draws the mean validation accuracy of groups of runs against the epoch.

    Args:
        histories: Dict from the name of a group to a list of histories, as for `curves`. Epochs
            that a run did not reach are left out of the mean.
        path: The file to write.

    Returns:
        The Matplotlib figure.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    for name, runs in histories.items():
        rows = np.full((len(runs), max(map(len, runs))), np.nan)
        for values, history in zip(rows, runs):
            values[: len(history)] = [100 * row["validation_accuracy"] for row in history]
        marker = "." if rows.shape[1] < 30 else None
        axes.plot(range(1, 1 + rows.shape[1]), np.nanmean(rows, axis=0), label=name, marker=marker)
    axes.set(xlabel="epoch", ylabel="accuracy on validation labels (%)", ylim=(-2, 102))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)
    return figure


def views(learner, path, num_images=10):
    """Draws a grid of images, their weak views and, if the method has them, strong views.

    The learner's random state does not change.

    Args:
        learner: A `Learner` with a task.
        path: The file to write.
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

    The outer bars include the losses beyond the fitted range, clipped to its ends. A line below the
    picture says how many.

    Args:
        x: Float array `(n,)` in [0, 1], NaN if unknown, as from `detection.fit_posterior`.
        mixture: The fitted `BetaMixtureModel`, or None.
        path: The file to write.
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
    # `fit_posterior` clips to these ends, which are within 0.001 of 0 and 1.
    low, high = np.sum(x <= detection.ENDS[0]), np.sum(x >= detection.ENDS[1])
    axes.set(
        xlabel="normalized loss: 0 and 1 are the 5th and the 95th percentile\n"
        f"The first bar includes the {low:,} losses up to 0, the last one the {high:,} from 1 on.",
        ylabel="density",
        xlim=(0, 1),
        ylim=(0, 1.1 * highest),
    )
    axes.legend()
    _save(figure, path, dpi=200)
    return figure


def aum_histogram(aum, threshold, path, is_wrong=None):
    """Draws the density of the areas under the margin and the threshold.

    Args:
        aum: Float array `(n,)`, in logits, NaN if unknown.
        threshold: Float. It is drawn if it is finite.
        path: The file to write.
        is_wrong: Bool array `(n,)`, which labels are wrong, or None if that is unknown.

    Returns:
        The Matplotlib figure. The areas of its bars sum to 1.
    """
    figure = _figure(6.4, 4.0)
    axes = figure.subplots()
    _histogram(axes, aum, np.histogram_bin_edges(aum[np.isfinite(aum)], BINS), is_wrong)
    if np.isfinite(threshold):
        axes.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    axes.set(xlabel="area under the margin (logits)", ylabel="density (1 / logits)")
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


def label_matrix(given_labels, predicted_labels, class_names, path, num_unlabeled=0):
    """Draws how often each class was predicted for each given label.

    Every label counts: the column `none`, if there is one, has the labels without a prediction, and
    the title states the sums. The color scale is the square root of the fraction of the row,
    because most confusions are a few percent.

    Args:
        given_labels: Integer array `(n,)` in [0, num_classes).
        predicted_labels: Integer array `(n,)`; -1 means no prediction, as for an example that no
            step has seen.
        class_names: Sequence of `num_classes` strings.
        path: The file to write.
        num_unlabeled: Integer, the images without a label, which the title mentions.

    Returns:
        The Matplotlib figure. With at most 20 classes it shows the counts.
    """
    from sklearn import metrics  # late, as Matplotlib below

    classes = np.arange(len(class_names))
    unseen = predicted_labels < 0
    columns = [*class_names, "none"] if unseen.any() else [*class_names]
    # The matrix of scikit-learn has a row for the last column, too, without a label.
    predicted = np.where(unseen, len(classes), predicted_labels)
    counts = metrics.confusion_matrix(given_labels, predicted, labels=np.arange(len(columns)))
    counts = counts[: len(classes)]
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
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    if unseen.any():
        ticks, names = [*ticks, len(classes)], [*names, columns[-1]]
    axes.set_xticks(ticks, names, rotation=rotation, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted label", ylabel="given label")
    axes.set_title(_sums(counts, num_unlabeled), fontsize=10)
    _save(figure, path, dpi=200)
    return figure


def _sums(counts, num_unlabeled):
    """Returns what becomes of all labels of a matrix, as text."""
    same = np.trace(counts)
    unseen = counts[:, len(counts) :].sum()
    parts = [f"{same:,} predicted as given", f"{counts.sum() - same - unseen:,} otherwise"]
    parts += [f"{unseen:,} without a prediction"] if unseen else []
    text = f"{counts.sum():,} labels: {', '.join(parts)}"
    return text + (f"\n{num_unlabeled:,} unlabeled images are not shown" if num_unlabeled else "")


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
        path: The file to write.
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


def pictures(images, positions, titles, path, files=None):
    """Draws some images in the given order.

    Args:
        images: uint8 array `(n, height, width, channels)`, 1 or 3 channels.
        positions: Integer array `(num_pictures,)`, the images to draw.
        titles: Sequence of `num_pictures` strings, above the images.
        path: The file to write.
        files: Sequence of `num_pictures` names of files to write below the images, or None.

    Returns:
        The Matplotlib figure.
    """
    rows = -(-len(positions) // COLUMNS)
    figure = _figure(1.1 * COLUMNS, (1.3 if files is None else 1.42) * rows)
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(positions) :]:
        axes.axis("off")
    for number, (axes, position) in enumerate(zip(grid, positions)):
        axes.imshow(np.asarray(images[position]).squeeze(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(titles[number], fontsize=8, parse_math=False)
        axes.set(xticks=[], yticks=[])
        if files is not None:
            axes.set_xlabel(_shortened(files[number]), fontsize=6, parse_math=False)
    _save(figure, path, dpi=100)
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
    import matplotlib  # late, as above

    kind = os.path.splitext(path)[1][1:]
    # Equal runs write equal files: no date, no random names of parts. Type 42 fonts, which journals
    # ask for, keep the text of a PDF.
    settings = {"svg.hashsalt": "ssl_noisy", "pdf.fonttype": 42}
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with (
        replacing(path) as file,
        warnings.catch_warnings(),
        matplotlib.rc_context(settings),
    ):
        # A class may have a name in a script that Matplotlib's font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
