# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: how it went, and what its augmentation does to the images."""

import numpy as np
from keras import ops

from ssl_noisy.files import replacing

CURVES = {
    "test_accuracy": "test accuracy",
    "validation_accuracy": "validation accuracy",
    "mask_rate": "mask rate (share kept)",
    "pseudo_label_accuracy": "accuracy of kept pseudo-labels",
}


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


def _figure(width, height):
    # Matplotlib takes half a second to import, which the start of a run need not pay; a bare
    # Figure needs no display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path):
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
