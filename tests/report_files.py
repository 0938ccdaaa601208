# SPDX-License-Identifier: Apache-2.0
"""Writes folders of finished runs without training, for tests of reports."""

import json
import pathlib

import numpy as np
from PIL import Image

from ssl_noisy.data import label_budget
from ssl_noisy.labels import detection
from ssl_noisy.runs import folder, labeling

HOSTILE = ("<script>alert(1)</script>", "</script>", '--"quoted", & <b>')  # names of classes


def write(run_dir, settings, *, predicted=None, quality=None, seed=0, accuracy=(0.5, 0.75)):
    """Writes the files of a run that a report reads, with a record that is made up.

    Args:
        run_dir: Path of the folder.
        settings: `Settings` of data that can be loaded.
        predicted: Integer array `(num_labels,)`, the predicted labels. None: the given ones.
        quality: Float array `(num_labels,)`. None: random.
        seed: Integer, of the record.
        accuracy: The test accuracy of each evaluation.

    Returns:
        The `Dataset`.
    """
    run_dir = pathlib.Path(run_dir)
    run_dir.mkdir(parents=True)
    dataset = labeling.correct(settings, labeling.load_dataset(settings))
    labels = labeling.choose(settings, dataset)
    (run_dir / folder.FLAGS).write_text("\n".join(settings.flag_lines()) + "\n")
    labeling.write(str(run_dir), dataset, labels)
    record(
        run_dir / folder.EXAMPLES, dataset.ids[labels.positions], labels.given,
        dataset.class_names, predicted=predicted, quality=quality, seed=seed,
        files=dataset.files and [dataset.files[position] for position in labels.positions],
    )  # fmt: skip
    rows = [f"{10 * (n + 1)},{n + 1},0.5,{value}" for n, value in enumerate(accuracy)]
    (run_dir / folder.METRICS).write_text(
        "\n".join(["step,epoch,loss,test_accuracy", *rows]) + "\n"
    )
    (run_dir / folder.TIMING).write_text(json.dumps({"backend": "tensorflow", "keras": "3.15.1"}))
    folder.write_result(str(run_dir), result(settings, dataset, labels, accuracy))
    return dataset


def write_pictures(root, names=HOSTILE, count=6, side=20):
    """Writes a table of pictures, because no folder can have a slash in its name.

    Returns:
        The `dataset` of `Settings`. One picture of each class is in the test set.
    """
    root.mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,label,split"]
    for number in range(count * len(names)):
        (root / "<i>" / f"{number}<").mkdir(parents=True)
        file = f"<i>/{number}</i>.png"
        Image.fromarray(rng.integers(0, 256, (side, side, 3), "uint8")).save(root / file)
        name = names[number % len(names)].replace('"', '""')
        lines.append(f'{file},"{name}",{"test" if number < len(names) else "train"}')
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{root}/table.csv"


def record(path, ids, given, class_names, *, predicted=None, quality=None, seed=0, files=None):
    """Writes an `examples.csv`."""
    rng, n = np.random.default_rng(seed), len(ids)
    quality = rng.uniform(size=n) if quality is None else quality
    values = {
        "prediction": given if predicted is None else predicted,
        "observations": np.full(n, 20),
        "wrong_predictions": rng.integers(0, 21, n),
        "last_correct": rng.integers(0, 2, n),
        "forgetting_events": rng.integers(0, 3, n),
    }
    floats = ("margin", "aum", "loss", "mean_loss", "cores", "label_probability")
    values |= {name: rng.gamma(2.0, size=n) for name in floats}
    values |= {"probability_margin": rng.uniform(-1, 1, n), "agreement": rng.uniform(size=n)}
    detectors = {"posterior": detection.Detector(rng.uniform(size=n), np.zeros(n, bool))}
    detection.examples_csv(
        path, ids, given, values, detectors, quality, quality < 0.5,
        files=files, class_names=class_names,
    )  # fmt: skip


def result(settings, dataset, labels, accuracy):
    """Returns the content of a `result.json`."""
    names = dataset.class_names
    noise = labeling.noise_summary(dataset, labels)
    return {
        "method": settings.method,
        "dataset": f"{dataset.name} {dataset.version}",
        "num_labels": len(labels.positions),
        "labels_sha256": label_budget.digest(dataset, labels.positions),
        "seed": settings.seed,
        "network": settings.network,
        "parameters": 1234,
        "steps": 20,
        "backend": "tensorflow",
        "test_accuracy": {
            "last": accuracy[-1],
            "median_of_last_20": None,
            "validation_choice": None,
            "best_on_test_oracle": max(accuracy),
        },
        "class_names": list(names),
        "per_class_recall": dict.fromkeys(names, 0.5),
        "confusion_matrix": (np.eye(len(names), dtype=int) * 3 + 1).tolist(),
        "calibration": {"temperature": 1.0, "expected_calibration_error": 0.125},
        **({} if noise is None else {"noise": noise}),
    }
