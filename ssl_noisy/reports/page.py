# SPDX-License-Identifier: Apache-2.0
"""The page of a report: one HTML file that needs no network."""

import importlib.resources
import os
import shlex
import typing

import numpy as np

from ssl_noisy.errors import UserError
from ssl_noisy.reports import charts, review, summary
from ssl_noisy.settings import RANDOM


class Protocol(typing.NamedTuple):
    """How an accuracy was chosen: a name, what it means, and why it may be missing."""

    name: str
    meaning: str
    absent: str


# The order is that of how much a figure can be trusted.
PROTOCOLS = {
    "last": Protocol("Last checkpoint", "Nothing was chosen by the test set.", ""),
    "median_of_last_20": Protocol(
        "Median of the last 20",
        "Of the last evaluations, as in FixMatch.",
        "Fewer than 20 evaluations",
    ),
    "validation_choice": Protocol(
        "Chosen by validation",
        "Checkpoint with the best validation accuracy.",
        "No validation split",
    ),
    "best_on_test_oracle": Protocol("Best on test", "Chosen by the test set itself: too high.", ""),
}
# What a sweep's summary says of methods that find clusters.
CLUSTERS = {
    "test_cluster_accuracy": "Matched clusters, last checkpoint",
    "test_nmi": "Mutual information of clusters and classes",
}
ORACLE = "best_on_test_oracle"
SCRIPTS = ("page.js", "state.js", "review.js")


def render(collection, data, output):
    """Returns the HTML of a report.

    Args:
        collection: A `collect.Collection`.
        data: List with the `collect.Data` of each run.
        output: Path of the report.

    Raises:
        UserError: If a package of the extra `report` is not installed.
    """
    jinja2, plotly = _packages()
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = _percent
    is_alone = len(collection.runs) == 1
    shown = [_run(run, one, is_alone) for run, one in zip(collection.runs, data)]
    protocols = _used(shown)
    if is_alone and protocols:
        protocols = PROTOCOLS
    names = {key: protocol.name for key, protocol in PROTOCOLS.items()} | CLUSTERS
    rows = review.make(collection.runs[0], data[0], output) if is_alone else None
    figures = {"accuracy": charts.accuracy(collection.runs)}
    for number, one in enumerate(shown):
        figures |= {f"{name}-{number}": figure for name, figure in one["figures"].items()}
    return environment.from_string(_asset("page.html")).render(
        collection=collection,
        runs=shown,
        beginnings=_by_beginning(shown),
        sweeps=[
            {
                "name": sweep.name,
                "tables": summary.tables(sweep.rows, names),
                "curve": sweep.curve and review.data_url(sweep.curve, "image/png"),
            }
            for sweep in collection.sweeps
        ],
        common=[fact for fact in shown[0]["facts"] if all(fact in one["facts"] for one in shown)],
        seeds_share=not is_alone and charts.seed_groups(collection.runs) is not None,
        protocols=protocols,
        oracle=ORACLE,
        figures=figures,
        review=rows,
        packed=rows and review.packed(rows),
        plotly=review.compressed(plotly.get_plotlyjs()),
        css=jinja2.utils.markupsafe.Markup(_asset("page.css")),
        scripts=[jinja2.utils.markupsafe.Markup(_asset(name)) for name in SCRIPTS],
        most_thumbnails=review.MOST_THUMBNAILS,
    )


def _by_beginning(shown):
    """Returns a list of pairs: what runs begin with, and these runs. Each is a table of its own."""
    found = {}
    for one in shown:
        found.setdefault(one["beginning"], []).append(one)
    return list(found.items())


def _used(shown):
    """Returns those of `PROTOCOLS` by which at least one run has an accuracy."""
    results = [one["result"] for one in shown]
    results += [result["baseline"] for result in results if "baseline" in result]
    known = [result["test_accuracy"] for result in results]
    return {
        key: protocol
        for key, protocol in PROTOCOLS.items()
        if any(accuracy[key] is not None for accuracy in known)
    }


def check_packages():
    """Raises a `UserError` if a package that a report needs is not installed."""
    _packages()


def _packages():
    try:
        import jinja2
        import plotly.offline
    except ImportError as error:
        raise UserError(
            f"A report needs the package {error.name}. Install it: pip install 'ssl_noisy[report]'."
        ) from error
    return jinja2, plotly.offline


def _asset(name):
    return (importlib.resources.files("ssl_noisy.reports") / name).read_text(encoding="utf-8")


def _percent(value):
    return "–" if value is None else f"{value:.2%}".replace("%", " %")


def _run(run, data, is_alone):
    """Returns what the template shows of a run."""
    flags = os.path.join(run.run_dir, "flags.cfg")
    name = "probe" if any(line.startswith("--by=") for line in run.flags) else "train"
    command = f"python -m ssl_noisy.{name} --flagfile={shlex.quote(flags)}"
    result = run.result
    quality = result.get("label_quality")
    return {
        "name": run.name,
        "run_dir": run.run_dir,
        "result": result,
        "beginning": run.beginning or RANDOM,
        "facts": _facts(run),
        "figures": _figures(run, data, is_alone),
        "views": run.views and review.data_url(run.views, "image/png"),
        "flags": "\n".join(run.flags),
        "command": f"{command} --run_dir=NEW",
        "correct": f"{command} --labels_csv=corrections.csv --run_dir=NEW",
        "review": f"python -m ssl_noisy.report {shlex.quote(run.run_dir)}",
        "timing": run.timing,
        "quality": quality,
        "missing": data.missing,
        "noise": result.get("noise"),
        "notes": result.get("data_notes", []),
    }


def _facts(run):
    """Returns what was trained, pairs of a name and a value."""
    result = run.result
    facts = [
        ("Method", result["method"]),
        ("Data", result["dataset"]),
        ("Labels", f"{result['num_labels']:,}"),
        ("Network", f"{result['network']}, {result['parameters']:,} parameters"),
        ("Steps", f"{result['steps']:,}"),
        ("Seed", str(result["seed"])),
    ]
    if "test_nmi" in result.get("clusters", ()):
        found = result["clusters"]
        facts += [
            ("Clusters", str(found["num_clusters"])),
            ("Clusters matched by test labels", _percent(found["test_cluster_accuracy"])),
            ("Normalized mutual information", f"{found['test_nmi']:.3f}"),
        ]
    if run.beginning:
        facts.append(("Begins with", run.beginning))
    if "noise" in result:
        noise = result["noise"]
        facts.append(("Noise", f"{noise['definition']} ({noise['noise_rate']:.1%} of the labels)"))
    return facts


def _figures(run, data, is_alone):
    """Returns the figures of one run, by name. A figure that a run has no data for is left out."""
    names, result, found = run.class_names, run.result, {}
    if is_alone:
        found["losses"] = charts.losses(run)
    if "confusion_matrix" in result:
        found["confusion"] = charts.matrix(
            result["confusion_matrix"], names, "true class", "predicted class"
        )
    if "counts_by_class" in result.get("clusters", ()):
        found["confusion"] = charts.clusters(result["clusters"], names)
    if "reliability" in result["calibration"]:
        found["calibration"] = charts.calibration(result["calibration"]["reliability"])
    if "noise" in result:
        found["noise"] = charts.matrix(
            result["noise"]["transition_counts"], names, "true class", "given class"
        )
    if run.examples is not None:
        found["given"] = charts.matrix(
            charts.given_against_predicted(run.examples, names),
            names,
            "given class",
            "predicted class",
        )
        found["loss"] = charts.loss_histogram(run.examples["mean_loss"], data.is_wrong)
        found["aum"] = charts.aum_histogram(
            run.examples["aum"], _aum_threshold(result), data.is_wrong
        )
    return {name: figure for name, figure in found.items() if figure is not None}


def _aum_threshold(result):
    thresholds = result.get("removed_labels", {}).get("thresholds", [])
    known = [value for value in thresholds if value is not None]
    return float(np.mean(known)) if known else 0.0
