# SPDX-License-Identifier: Apache-2.0
"""Trains one run: python -m ssl_noisy.train --flagfile=RECIPE --seed=1 --run_dir=DIR

If a flag is repeated, the last one wins, so put your own flags after --flagfile.
If no flag chooses what to train (--seed, --steps and --run_dir do not), the
command runs the recipe fixmatch_digits_20: real images, 20 labels, and a
supervised baseline, in about a minute.
"""

import sys

from ssl_noisy import command, devices, recipes
from ssl_noisy.labels import detection, issues
from ssl_noisy.runs import label_report
from ssl_noisy.runs.run import run

# Flags that do not choose what to train.
_OPEN = {"seed", "steps", "steps_per_epoch", "run_dir", "data_dir", "cache_dir", "plots", "noplots"}
_OPEN |= {"plot_format", "logger", "checkpoint_seconds", "verbosity", "v"}


def main(settings):
    run_dir = settings.run_dir or settings.default_run_dir()
    result = run(settings)
    if not devices.is_first_process():
        return
    print(table(result))
    if "label_quality" in result:
        print(labels(result, run_dir))
    print(f"All files of this run: {run_dir}")


def table(result):
    """Returns a text table of the accuracies of a run, its rounds and its baseline."""
    if "clusters" in result:
        return clusters(result)
    rounds = result.get("rounds")
    rows = [(f"round {i} {one['method']}", one) for i, one in enumerate(rounds or (), 1)]
    rows = rows or [(result["method"], result)]
    if "baseline" in result:
        rows.insert(0, (result["baseline"]["method"], result["baseline"]))
    protocols = [k for k, value in result["test_accuracy"].items() if value is not None]
    if not protocols:
        return f"{result['dataset']}, {result['num_labels']} labels, no test images."
    width = max(14, *(len(name) for name, _ in rows))
    lines = [
        f"{result['dataset']}, {result['num_labels']} labels, test accuracy by protocol:",
        " " * width + "".join(f"{key:>22}" for key in protocols),
    ]
    for name, row in rows:
        accuracies = "".join(f"{row['test_accuracy'][key]:22.2%}" for key in protocols)
        lines.append(f"{name:{width}}{accuracies}")
    return "\n".join(lines)


def clusters(result):
    """Returns a text about the clusters of a run, in place of the accuracy of its classes."""
    found = result["clusters"]
    text = f"{result['dataset']}, {result['method']} without labels, "
    if "test_nmi" not in found:
        return text + f"{found['num_clusters']} clusters, no test images."
    return (
        text + f"{found['num_clusters']} clusters of test images: accuracy "
        f"{found['test_cluster_accuracy']:.2%} if each is matched with a class by the test labels, "
        f"normalized mutual information {found['test_nmi']:.3f} (last checkpoint)."
    )


def labels(result, run_dir):
    """Returns a text about what a run found out about its labels."""
    report = result["label_quality"]
    lines = [f"\nLabel quality, estimated from the training ({run_dir}/examples.csv):"]
    lines.append(issues.describe(report["label_issues"]))
    if report["most_suspicious"]:
        lines.append(label_report.describe_suspects(report["most_suspicious"]))
    if "noise" in result:
        rates = [report[name] for name in ("estimated_noise_rate", "noise_rate")]
        lines.append("Estimated noise rate {:.1%}, true {:.1%}.".format(*rates))
        lines.append(detection.describe(report))
    return "\n".join(lines)


def is_open(arguments):
    """Whether no argument of a command line chooses what to train."""
    flags = (argument for argument in arguments if argument.startswith("-"))
    return all(flag.lstrip("-").partition("=")[0] in _OPEN for flag in flags)


def main_of_default(settings):
    print(f"No flag chooses what to train. Running the recipe {recipes.default()}.", flush=True)
    main(settings)


if __name__ == "__main__":
    if is_open(sys.argv[1:]):
        command.start("ssl_noisy.train", main_of_default, [f"--flagfile={recipes.default()}"])
    else:
        command.start("ssl_noisy.train", main)
