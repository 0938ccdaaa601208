# SPDX-License-Identifier: Apache-2.0
"""Fits a classifier to features: python -m ssl_noisy.probe --features=FILE --run_dir=DIR

FILE has a row of numbers for each image, from `python -m ssl_noisy.features`.
--by is the classifier:

  ni_erm             logistic regression as if no label were wrong; 5-fold
                     cross-validation on the given labels chooses it
  logistic           logistic regression as scikit-learn's defaults have it
  label_propagation  few labels spread along a graph of nearest neighbors

The data and label flags are those of ssl_noisy.train. DIR has the files of a
run: python -m ssl_noisy.report DIR shows suspicious labels for review.
"""

from absl import flags

from ssl_noisy import command, run_flags
from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection
from ssl_noisy.runs import label_report, probing


def define_flags(values):
    """Defines the flags of this command and returns their names."""
    names = run_flags.define_settings(values, probing.FLAGS)
    flags.DEFINE_enum("by", "ni_erm", list(probing.PROBES), "Classifier.", flag_values=values)
    return [*names, "by"]


def read_flags(argv, values):
    """Returns the `Request` of a command line.

    Raises:
        absl.flags.Error, UserError: If it is wrong.
    """
    command.parse(argv, values)
    for name, advice in (
        ("features", "FILE, as python -m ssl_noisy.features writes it"),
        ("run_dir", "DIR, the folder to write"),
    ):
        if not values[name].value:
            raise UserError(f"Pass --{name}={advice}.")
    return probing.Request(values["by"].value, run_flags.from_flags(values))


def main(request):
    result = probing.probe(request)
    print(table(result))
    print(labels(result))
    if result["features"]["challenge"]:
        print(result["features"]["challenge"])
    print(f"All files of this probe: {request.settings.run_dir}")


def table(result):
    """Returns a text table of what a probe chose and how it did."""
    choice = result["choice"]
    rows = {"classifier": result["method"]}
    if "C" in choice:
        rows["C, max_iter"] = f"{choice['C']:g}, {choice['max_iter']}"
    if choice["cross_validation_accuracy"] is not None:
        rows["accuracy on held-out given labels"] = f"{choice['cross_validation_accuracy']:.2%}"
    if "unlabeled_accuracy" in choice:
        rows["accuracy on unlabeled images"] = f"{choice['unlabeled_accuracy']:.2%}"
    rows["test accuracy"] = f"{result['test_accuracy']['last']:.2%} ({result['protocol']})"
    title = f"{result['dataset']}, {result['num_labels']} labels, {result['network']}:"
    return "\n".join([title, *(f"{name:34}{value}" for name, value in rows.items())])


def labels(result):
    """Returns a text about what a probe found out about the labels."""
    report = result["label_quality"]
    issues = report["label_issues"]
    lines = [
        f"\n{issues['count']:,} of {issues['of']:,} labels are flagged as issues: as many as the "
        "classifier contradicts with confidence if it has not seen them. It contradicts "
        f"{issues['contradicted']:,}."
    ]
    lines += [f"Weak evidence: {reason}." for reason in issues["weak_evidence"]]
    if report["most_suspicious"]:
        lines.append(label_report.describe_suspects(report["most_suspicious"]))
    if "noise" in result:
        lines.append(f"{report['noise_rate']:.1%} of the labels are wrong.")
    lines.append(detection.describe(report))
    return "\n".join(lines)


if __name__ == "__main__":
    command.start("ssl_noisy.probe", main, define_flags=define_flags, read_flags=read_flags)
