# SPDX-License-Identifier: Apache-2.0
"""Memory and time of a run on more images than a device may hold. Needs Linux.

    python benchmarks/large_data.py write npz FOLDER/1000000.npz 1000000 32
    python benchmarks/large_data.py write folder FOLDER/100000 100000 96
    python benchmarks/large_data.py measure FOLDER/runs --dataset=npz:FOLDER/1000000.npz FLAGS

`write` makes color images with a pattern of their class under noise, and labels. `measure` trains
once, and once more with a process that is killed after its first checkpoint and another one that
resumes. It prints, as JSON, the memory of each process: `anonymous` is what it needs, `mapped` are
pages of files, which the system drops when others need memory.
"""

import concurrent.futures
import filecmp
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

CLASSES = 10
CHUNK = 1000  # images drawn at a time


def chunks(number, size):
    """Yields `(first, labels, images)` of synthetic data, so many images at a time."""
    patterns = np.random.default_rng(0).integers(40, 216, (CLASSES, size, size, 3))
    for first in range(0, number, CHUNK):
        rng = np.random.default_rng([1, first])
        labels = np.arange(first, min(first + CHUNK, number)) % CLASSES
        noise = rng.integers(-40, 40, (len(labels), size, size, 3))
        yield first, labels, (patterns[labels] + noise).astype("uint8")


def write_npz(path, number, size):
    """Writes `images_train` and `labels_train`, and 1,000 test images."""
    images = np.lib.format.open_memmap(f"{path}.npy", "w+", "uint8", (number, size, size, 3))
    labels = np.zeros(number, "int32")
    for first, some_labels, some in chunks(number, size):
        images[first : first + len(some)] = some
        labels[first : first + len(some)] = some_labels
    test = {"images_test": images[:1000] // 2, "labels_test": labels[:1000]}
    np.savez(path, images_train=images, labels_train=labels, **test)
    os.remove(f"{path}.npy")


def write_folder(path, number, size):
    """Writes `train/CLASS/NUMBER.png`, and `test` with a picture for every hundred of these."""
    from PIL import Image

    for split, count in (("train", number), ("test", number // 100)):
        for label in range(CLASSES):
            pathlib.Path(path, split, f"class_{label}").mkdir(parents=True)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for first, labels, images in chunks(count, size):
                places = [
                    f"{path}/{split}/class_{label}/{first + i:07}.png"
                    for i, label in enumerate(labels)
                ]
                pool.map(lambda image, p: Image.fromarray(image).save(p), images, places)


def memory_of(pid):
    """Returns anonymous and mapped memory of a process in MB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return [int(values.get(name, "0 kB").split()[0]) / 1024 for name in ("RssAnon", "RssFile")]


def train(run_dir, flags, kill_at_checkpoint=False):
    """Runs the train command, and returns its peak memory and its time, a dict."""
    command = [sys.executable, "-m", "ssl_noisy.train", f"--run_dir={run_dir}", *flags]
    began, peaks = time.monotonic(), [0.0, 0.0]
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            try:
                peaks = [max(pair) for pair in zip(peaks, memory_of(process.pid))]
            except OSError:  # it has just ended
                break
            if kill_at_checkpoint and os.path.exists(os.path.join(run_dir, "checkpoint.npz")):
                process.send_signal(signal.SIGKILL)
            time.sleep(0.1)
    names = ("peak_anonymous_mb", "peak_mapped_mb")
    figures = {name: round(peak) for name, peak in zip(names, peaks)}
    return {**figures, "seconds": round(time.monotonic() - began, 1), "exit": process.returncode}


def measure(folder, *flags):
    """Returns the figures of three processes, and whether both runs have the same metrics."""
    whole, killed = (os.path.join(folder, name) for name in ("whole", "killed"))
    found = {
        "flags": flags,
        "whole": train(whole, flags),
        "killed": train(killed, flags, kill_at_checkpoint=True),
        "resumed": train(killed, flags),
    }
    metrics = [os.path.join(path, "metrics.csv") for path in (whole, killed)]
    return {**found, "metrics_are_equal": filecmp.cmp(*metrics, shallow=False)}


def main(what, *arguments):
    if what == "measure":
        print(json.dumps(measure(*arguments)))
    else:
        kind, path, number, size = arguments
        {"npz": write_npz, "folder": write_folder}[kind](path, int(number), int(size))


if __name__ == "__main__":
    main(*sys.argv[1:])
