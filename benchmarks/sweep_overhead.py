# SPDX-License-Identifier: Apache-2.0
"""Measures what a sweep costs beyond its runs, and where the time goes.

    python benchmarks/sweep_overhead.py FOLDER    # digits: 24 runs of 600 steps

Prints one JSON line. All times are in seconds. `overhead` is the time of the command, without the
imports of its workers, divided by the time of the runs on as many workers, minus 1.
"""

import json
import os
import sys
import time

from absl import flags

from ssl_noisy import sweep
from ssl_noisy.sweeps import local, report

FLAGS = ["--dataset=digits", "--network=small_cnn", "--batch_size=16", "--unlabeled_ratio=3"]
FLAGS += ["--steps=600", "--steps_per_epoch=50", "--noplots"]
OVER = ["--over=num_labels=20,40,100,200", "--over=seed=0:2"]
OVER += ["--over=method=fixmatch,uda,supervised", "--compare_with=method=supervised"]


def age():
    """Returns the age of this process."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        start = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - start


class TimedPool(local.Pool):
    """Notes when each slot works."""

    made = []

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.began, self.spans = {}, []
        self.made.append(self)

    def begin(self, task):
        super().begin(task)
        self.began[task.name] = (self.running[task.name][0], age())

    def wait(self, seconds):
        ended = super().wait(seconds)
        for attempt in ended:
            slot, began = self.began[attempt.name]
            self.spans.append((slot, began, age(), attempt.seconds))
        return ended


def measure(folder):
    written = []
    write = report.Report.write

    def timed_write(self, *arguments, **options):
        began = time.monotonic()
        try:
            return write(self, *arguments, **options)
        finally:
            written.append(time.monotonic() - began)

    report.Report.write, local.Pool = timed_write, TimedPool
    values = flags.FlagValues()
    sweep.define_flags(values)
    sweep.main(sweep.read_flags(["sweep", f"--sweep_dir={folder}", *FLAGS, *OVER], values))
    wall, (pool,) = age(), TimedPool.made
    runs = sum(seconds for *_, seconds in pool.spans)
    imports, waits, idle, last = [], [], [], []
    for slot in range(pool.parallel):
        spans = sorted(span[1:] for span in pool.spans if span[0] == slot)
        late = [end - began - seconds for began, end, seconds in spans]
        imports.append(late[0])
        waits += late[1:]
        idle += [after[0] - before[1] for before, after in zip(spans, spans[1:])]
        last.append(spans[-1][1])
    beyond = wall - sum(imports) / pool.parallel
    return {
        "runs": len(pool.spans),
        "parallel": pool.parallel,
        "wall": wall,
        "sum_of_runs": runs,
        "command_start": min(began for _, began, _, _ in pool.spans),
        "imports": imports,
        "handing_over": sum(waits) + sum(idle),
        "one_worker_left": max(last) - min(last),
        "end": wall - max(last),
        "writing": [len(written), sum(written)],
        "overhead": beyond * pool.parallel / runs - 1,
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
