# SPDX-License-Identifier: Apache-2.0
"""What one's own pictures are worth, measured: python benchmarks/own_pictures.py WHAT FOLDER

WHAT is one of:
  corrections  15 % of the labels of a folder of digits are wrong; the 15 % most suspicious are
               reviewed; a second run trains on the corrected labels
  unlabeled    a messy folder of CIFAR-10's pictures: FixMatch with the unlabeled pictures beside
               supervised training on the labeled ones alone
  decoding     20,000 pictures of 96x96: first start, memory, second start, prediction

Everything is written below FOLDER. `corrections` and `unlabeled` print one JSON line per seed.
"""

import csv
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
SEEDS = range(5)


def train(folder, *arguments):
    """Runs the train command, quietly, and returns the content of its result.json."""
    command = [sys.executable, "-m", "ssl_noisy.train", *arguments, f"--run_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "result.json").read_text())


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def corrections(root):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(images))
        test, labeled = order[:360], order[360:]
        wrong = rng.permutation(len(labeled)) < round(0.15 * len(labeled))
        given = digits.target.copy()
        given[labeled[wrong]] = (given[labeled[wrong]] + rng.integers(1, 10, wrong.sum())) % 10
        photos = root / f"photos_{seed}"
        for split, positions in (("train", labeled), ("test", test)):
            for position in positions:
                path = photos / split / str(given[position]) / f"{position}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[position]).save(path)
        flags = (f"--dataset=folder:{photos}", "--network=small_cnn", "--steps=1000")
        flags += ("--batch_size=32", f"--seed={seed}", "--noplots")
        by_suspicion = ("--method=elr", "--examples_order=suspicion")
        first = train(root / f"first_{seed}", *flags, *by_suspicion)
        reviewed = rows(root / f"first_{seed}" / "examples.csv")[: round(0.15 * len(labeled))]
        # The reviewer knows the true class and corrects what is wrong.
        table, found = root / f"corrections_{seed}.csv", 0
        with open(table, "w", encoding="utf-8") as file:
            file.write("file,label\n")
            for row in reviewed:
                true = digits.target[int(pathlib.Path(row["file"]).stem)]
                found += row["given_class"] != str(true)
                file.write(f"{row['file']},{true}\n")
        corrected, plain = f"--labels_csv={table}", "--method=supervised"
        second = train(root / f"second_{seed}", *flags, *by_suspicion, corrected)
        plain_first = train(root / f"plain_first_{seed}", *flags, plain)
        plain_second = train(root / f"plain_second_{seed}", *flags, plain, corrected)
        flagged = [
            row
            for row in rows(root / f"first_{seed}" / "examples.csv")
            if row["is_label_issue"] == "True"
        ]
        print(json.dumps({
            "seed": seed,
            "labels": len(labeled),
            "wrong": int(wrong.sum()),
            "reviewed": len(reviewed),
            "found": found,
            "flagged": len(flagged),
            "elr": [one["test_accuracy"]["last"] for one in (first, second)],
            "supervised": [one["test_accuracy"]["last"] for one in (plain_first, plain_second)],
        }), flush=True)  # fmt: skip


def unlabeled(root):
    import messy

    from ssl_noisy.data import sources

    data = sources.load("cifar10")
    chosen = np.flatnonzero(np.isin(data.labels, range(5)))[:4000]
    photos = root / "photos"
    messy.write(
        photos, data.images[chosen], data.labels[chosen],
        unlabeled=0.72, test=0.2, validation=0.03,
    )  # fmt: skip
    messy.damage(photos)
    flags = (f"--dataset=folder:{photos}", "--skip_unreadable", "--image_size=32")
    flags += ("--network=small_cnn", "--steps=3000", "--batch_size=16", "--noplots")
    flags += ("--learning_rate=0.06", f"--cache_dir={root}/cache")
    fixmatch = ("--method=fixmatch", "--unlabeled_ratio=3", "--confidence_threshold=0.8")
    for seed in SEEDS:
        ours = train(root / f"fixmatch_{seed}", *flags, *fixmatch, f"--seed={seed}")
        alone = train(root / f"alone_{seed}", *flags, "--method=supervised", f"--seed={seed}")
        print(json.dumps({
            "seed": seed,
            "labeled": ours["num_labels"],
            "fixmatch": ours["test_accuracy"]["last"],
            "supervised": alone["test_accuracy"]["last"],
        }), flush=True)  # fmt: skip


def decoding(root):
    from ssl_noisy.data import sources

    photos, cache = root / "photos", root / "cache"
    if not photos.exists():
        rng = np.random.default_rng(0)
        for number in range(20_000):
            coarse = rng.integers(0, 256, (12, 12, 3), np.uint8)
            picture = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
            path = photos / "train" / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=90)
    for _ in range(2):
        began = time.monotonic()
        sources.load(f"folder:{photos}", cache_dir=str(cache))
        seconds = time.monotonic() - began
        # Memory-mapped pages, which the system can drop, count too.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": round(seconds, 2), "peak_memory_mb": round(peak)}), flush=True)
    prediction(root, photos / "train" / "a")


def prediction(root, pictures):
    """Times `predict` beside a plain loop of Keras, in turn: pictures per second."""
    import keras

    from ssl_noisy import model_file, networks, predict
    from ssl_noisy.data import decoded

    network = networks.build("small_cnn", (96, 96, 3), 2)
    listed = [decoded.File(str(path), str(path)) for path in sorted(pictures.iterdir())[:5000]]
    metadata = model_file.Metadata(("a", "b"))

    def ours():
        return sum(1 for _ in predict.predict(network, metadata, listed, 64))

    def keras_loop():
        dataset = keras.utils.image_dataset_from_directory(
            str(pictures), labels=None, image_size=(96, 96), batch_size=64, shuffle=False,
            verbose=False,
        )  # fmt: skip
        return len(model.predict(dataset.take(len(listed) // 64), verbose=0))

    model = model_file.deployed(network, metadata)
    for name in ("warm", "1", "2", "3"):
        speeds = {}
        for function in (ours, keras_loop):
            began = time.monotonic()
            count = function()
            speeds[function.__name__] = round(count / (time.monotonic() - began))
        print(json.dumps({"round": name, "pictures_per_second": speeds}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    place = pathlib.Path(sys.argv[2])
    place.mkdir(parents=True, exist_ok=True)
    {"corrections": corrections, "unlabeled": unlabeled, "decoding": decoding}[sys.argv[1]](place)
