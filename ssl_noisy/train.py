# SPDX-License-Identifier: Apache-2.0
"""Trains one run: python -m ssl_noisy.train --flagfile=RECIPE --seed=1 --run_dir=DIR

Flags stand in any order and the last one wins, so put your own after --flagfile.
Without --dataset and --flagfile it runs the recipe fixmatch_digits_20: real
images, 20 labels, and a supervised baseline, in about a minute.
"""

import sys

from ssl_noisy import command, recipes
from ssl_noisy.run import run


def main(settings):
    run_dir = settings.run_dir or settings.default_run_dir()
    result = run(settings)
    print(table(result))
    print(f"Everything of this run: {run_dir}")


def table(result):
    """Returns the accuracies of a run, and of its baseline, as a text table."""
    rows = [result["baseline"], result] if "baseline" in result else [result]
    lines = [
        f"{result['dataset']}, {result['num_labels']} labels, test accuracy",
        f"{'':14}{'last':>8}{'median of last 20':>20}{'best on test (oracle)':>24}",
    ]
    for row in rows:
        accuracy = row["test_accuracy"]
        lines.append(
            f"{row['method']:14}{accuracy['last']:8.2%}{accuracy['median_of_last_20']:20.2%}"
            f"{accuracy['best_on_test_oracle']:24.2%}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    chosen = any(a.lstrip("-").startswith(("dataset", "flagfile")) for a in sys.argv[1:])
    default = [] if chosen else [f"--flagfile={recipes.folder() / recipes.DEFAULT}"]
    command.start("ssl_noisy.train", main, default)
