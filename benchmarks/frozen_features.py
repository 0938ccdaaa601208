# SPDX-License-Identifier: Apache-2.0
"""Few labels on frozen features of the digits: python benchmarks/frozen_features.py FILE OUTPUT

FILE has features of the digits with views, from `python -m ssl_noisy.features
--views=8`. It compares classifiers at 10, 20, 40 and 100 labels, as many of each
class, and at 10 chosen by TypiClust, with seeds 0 to 4, and writes the figures
to OUTPUT, a JSON file. Started again, it measures only what OUTPUT lacks.
"""

import datetime
import io
import json
import os
import sys
import tempfile
import time

import numpy as np

from ssl_noisy import files
from ssl_noisy.runs import frozen, labeling, probing, run
from ssl_noisy.settings import Settings

SEEDS = (0, 1, 2, 3, 4)
BUDGETS = {"balanced": (10, 20, 40, 100), "typiclust": (10,)}  # by how labels are drawn
PROBES = ("logistic", "label_propagation")
TRAININGS = ("fixmatch", "flexmatch")


def classifiers():
    """Yields the name of each classifier, and a function of `Settings` that measures it."""
    for by in PROBES:
        yield by, lambda settings, by=by: probing.probe(probing.Request(by, settings))
    for method in TRAININGS:
        yield method, lambda settings, method=method: train(settings, method)


def train(settings, method):
    """Trains the linear classifier of the settings by a method and returns the result."""
    changed = settings.for_method(method, run_dir=settings.run_dir)
    return run.run(changed, io.StringIO())


def measure(path, draw, num_labels, classify):
    """Returns the figures of a classifier for all seeds, a dict."""
    found = {"seeds": list(SEEDS), "labels_sha256": [], "test_accuracy_last": [], "seconds": []}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(
                dataset="digits",
                features=path,
                num_labels=num_labels,
                label_draw=draw,
                seed=seed,
                run_dir=os.path.join(folder, "run"),
                network="linear",
                plots=False,
            )
            began = time.monotonic()
            result = classify(settings)
            found["seconds"].append(round(time.monotonic() - began, 1))
        found["labels_sha256"].append(result["labels_sha256"])
        found["test_accuracy_last"].append(result["test_accuracy"]["last"])
    return found


def main(path, output):
    content = {"environment": {}, "groups": []}
    if os.path.exists(output):
        with open(output, encoding="utf-8") as file:
            content = json.load(file)
    described = frozen.describe(path)
    names = {"extractor": described["extractor"]}
    names["views"] = described["views"]
    today = datetime.date.today().isoformat()
    content["environment"] = {"date": today, "cores": os.cpu_count(), **names}
    known = {group["name"] for group in content["groups"]}
    labeling.load_dataset(Settings())  # so that the first classifier does not wait for it
    for draw, budgets in BUDGETS.items():
        for num_labels in budgets:
            for classifier, classify in classifiers():
                name = f"{classifier}, {num_labels} labels, {draw}"
                if name in known:
                    continue
                group = {"name": name, **measure(path, draw, num_labels, classify)}
                content["groups"].append(group)
                with files.replacing(output, "w") as file:
                    json.dump(content, file, indent=1)
                accuracy = 100 * np.array(group["test_accuracy_last"])
                print(
                    f"{name}: {accuracy.mean():.1f} ± {accuracy.std(ddof=1):.1f} %, "
                    f"{np.median(group['seconds']):.1f} s a run",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
