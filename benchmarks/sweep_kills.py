# SPDX-License-Identifier: Apache-2.0
"""Kills a sweep over digits twice at random and compares its results with single runs.

    python benchmarks/sweep_kills.py sweep FOLDER    # 3 methods, 3 budgets, 3 seeds; two kills
    python benchmarks/sweep_kills.py overhead FOLDER # the same without kills: time
    python benchmarks/sweep_kills.py alone FOLDER    # every run by ssl_noisy.train, and compares

`sweep` and `overhead` write FOLDER/sweep and FOLDER/overhead. `alone` may be stopped and resumed.
"""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

from ssl_noisy.sweeps import tables

FLAGS = ["--dataset=digits", "--network=small_cnn", "--batch_size=16", "--unlabeled_ratio=3"]
FLAGS += ["--steps=200", "--steps_per_epoch=50", "--noplots"]
OVER = ["--over=method=fixmatch,uda,supervised", "--over=num_labels=20,40,200"]
OVER += ["--over=seed=0:3", "--compare_with=method=supervised", "--target_accuracy=90"]


def start(folder):
    command = [sys.executable, "-m", "ssl_noisy.sweep", f"--sweep_dir={folder}", *FLAGS, *OVER]
    return subprocess.Popen(command, start_new_session=True)


def descendants(pid):
    """Returns the process ids of all children of a process, and theirs."""
    text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    children = [int(word) for word in text.split()]
    return children + [other for child in children for other in descendants(child)]


def sweep(folder):
    began, rng = time.monotonic(), random.Random(time.time_ns())
    for _ in range(2):
        process, wait = start(folder), rng.uniform(20, 60)
        time.sleep(wait)
        if process.poll() is not None:
            raise SystemExit("The sweep ended before it could be killed.")
        children = descendants(process.pid)
        for pid in [process.pid, *children]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        done = len(list(pathlib.Path(folder).glob("runs/*/result.json")))
        print(f"killed the sweep and {len(children)} children after {wait:.0f} s, {done} done")
    code = start(folder).wait()
    print(f"exit code {code}, {time.monotonic() - began:.0f} s in all")
    logs = [path.read_text() for path in pathlib.Path(folder, "logs").glob("*.log")]
    ends = [len(re.findall(r"^\w+ 200/200 ", text, re.M)) for text in logs]
    print(f"{len(logs)} runs reached the last step; each {min(ends)} to {max(ends)} times")


def overhead(folder):
    began = time.monotonic()
    code = start(folder).wait()
    wall = time.monotonic() - began
    seconds = sum(row["seconds"] for row in tables.read(folder))
    parallel = len(os.sched_getaffinity(0))
    figures = {"exit_code": code, "wall": wall, "parallel": parallel, "sum_of_runs": seconds}
    print(json.dumps({**figures, "overhead": wall * parallel / seconds - 1}))


def alone(folder):
    differ = []
    for row in tables.read(os.path.join(folder, "sweep")):
        run_dir = os.path.join(folder, "alone", row["name"])
        flags = [f"--{flag}={row[flag]}" for flag in ("method", "num_labels", "seed")]
        rest = [f for f in FLAGS if row["method"] != "supervised" or "unlabeled" not in f]
        command = [sys.executable, "-m", "ssl_noisy.train", *rest, *flags, f"--run_dir={run_dir}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name in ("metrics.csv", "result.json", "labels.json", "examples.csv"):
            one = pathlib.Path(run_dir, name).read_bytes()
            for kind in ("sweep", "overhead"):
                if one != pathlib.Path(folder, kind, row["run_dir"], name).read_bytes():
                    differ.append((kind, row["name"], name))
    print(f"files that differ: {differ}")


if __name__ == "__main__":
    kind, folder = sys.argv[1:]
    if kind == "alone":
        alone(folder)
    else:
        {"sweep": sweep, "overhead": overhead}[kind](os.path.join(folder, kind))
