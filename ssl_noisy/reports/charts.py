# SPDX-License-Identifier: Apache-2.0
"""The charts of a report, as Plotly figures without colors.

A color is the name of a CSS variable of the page, such as `--accent`, which the page replaces, so
charts follow its light and dark theme. Text comes from users: `_text` keeps Plotly from reading it
as markup.
"""

import html
import math

import numpy as np

from ssl_noisy.labels import detection
from ssl_noisy.runs.calibration import BINS
from ssl_noisy.settings import RANDOM, identifying_lines
from ssl_noisy.sweeps import tables

SERIES = ("--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6")
MOST_NUMBERS = 20  # classes of a matrix whose cells show their counts
BARS = 40
FEW = 30  # points of a curve that are marked


def _text(name):
    return html.escape(name, quote=False)  # Plotly would show &quot; as it is


def seed_groups(runs):
    """Returns the name of each run's group, the runs that differ from it in seeds alone.

    Returns:
        List of strings; None if there are no such runs, or method and labels do not tell groups
        apart.
    """
    seeds = tuple(f"--{name}=" for name in tables.SEEDS)
    keys = [
        tuple(line for line in identifying_lines(run.flags) if not line.startswith(seeds))
        for run in runs
    ]
    names = [f"{run.result['method']}, {run.result['num_labels']:,} labels" for run in runs]
    if len({run.beginning for run in runs}) > 1:
        names = [f"{name}, {run.beginning or RANDOM}" for run, name in zip(runs, names)]
    groups = set(zip(keys, names))
    if len(groups) == len(runs) or len(set(names)) < len(groups) or len(set(keys)) < len(groups):
        return None
    return names


def accuracy(runs):
    """Test accuracy over the steps of all runs, with baselines as dashed lines.

    If no run has test images, it is the accuracy on validation images.
    """
    if len(runs) == 1:
        return _figure(_lines_of_a_run(runs[0]))
    has_test = any("test_accuracy" in run.history[0] for run in runs)
    measure = "test_accuracy" if has_test else "validation_accuracy"
    names, data = seed_groups(runs) or [run.name for run in runs], []
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    for run, name in zip(runs, names):
        again, place = divmod(numbers[name], len(SERIES))
        dash, color = "dot" if again % 2 else None, SERIES[place]
        lines = [_curve(run.history, measure, name, color, dash)]
        if run.baseline:
            title = f"{name}: {run.result['baseline']['method']} (baseline)"
            lines.append(_curve(run.baseline, measure, title, color, "dash"))
        for line in lines:
            line["legendgroup"] = line["name"]
            line["showlegend"] = all(line["name"] != other["name"] for other in data)
        data += lines
    return _figure(data)


def _lines_of_a_run(run):
    data = []
    if "test_accuracy" in run.history[0]:
        data.append(_curve(run.history, "test_accuracy", run.result["method"], SERIES[0]))
    if "validation_accuracy" in run.history[0]:
        title = "validation (given labels)"
        data.append(_curve(run.history, "validation_accuracy", title, SERIES[1]))
    if "test_cluster_accuracy" in run.history[0]:
        title = f"{run.result['method']}, clusters matched by test labels"
        data.append(_curve(run.history, "test_cluster_accuracy", title, SERIES[0]))
    if run.baseline and "test_accuracy" in run.baseline[0]:
        title = f"{run.result['baseline']['method']} (baseline)"
        data.append(_curve(run.baseline, "test_accuracy", title, "--muted", "dash"))
    return data


def _figure(data):
    known = [value for line in data for value in line["y"] if value is not None] or [0, 1]
    margin = 0.02 + 0.05 * (max(known) - min(known))
    limits = [max(min(known) - margin, 0), min(max(known) + margin, 1.005)]
    layout = {
        "xaxis": {"title": "step"},
        "yaxis": {"title": "accuracy", "tickformat": ".0%", "range": limits},
    }
    return {"data": data, "layout": layout}


def losses(run):
    """The terms of the loss over the steps of a run."""
    names = [name for name in run.history[0] if name == "loss" or name.endswith("_loss")]
    data = [
        _curve(run.history, name, name, SERIES[number % len(SERIES)])
        for number, name in enumerate(names)
    ]
    return {"data": data, "layout": {"xaxis": {"title": "step"}, "yaxis": {"title": "loss"}}}


def _curve(history, name, title, color, dash=None):
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(history) <= FEW else "lines",
        "name": _text(title),
        "x": [row["step"] for row in history],
        "y": [row.get(name) for row in history],
        "line": {"color": color, "width": 2, **({"dash": dash} if dash else {})},
        "marker": {"color": color, "size": 7},
    }


def matrix(counts, class_names, rows, columns, column_names=None):
    """A matrix of counts, colored by the square root of the fraction of the row.

    Most confusions are a few percent, which a linear scale would hide.

    Args:
        counts: Integer array `(num_classes, num_columns)`.
        class_names: Sequence of `num_classes` strings.
        rows, columns: What they are, such as "true class".
        column_names: Sequence of `num_columns` strings. None: `class_names`.
    """
    counts = np.asarray(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_text(name) for name in class_names]
    across = names if column_names is None else [_text(name) for name in column_names]
    data = {
        "type": "heatmap",
        "x": across,
        "y": names,
        "z": np.sqrt(shares).round(3).tolist(),
        "zmin": 0,
        "zmax": 1,
        "customdata": counts.tolist(),
        "hovertemplate": f"{rows} %{{y}}<br>{columns} %{{x}}<br>%{{customdata:,}}<extra></extra>",
        "colorscale": [[0, "--scale-low"], [0.5, "--scale-middle"], [1, "--scale-high"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    if len(names) <= MOST_NUMBERS:
        data["text"] = [[str(count or "") for count in row] for row in counts.tolist()]
        data["texttemplate"] = "%{text}"
    layout = {
        "xaxis": {"title": columns, **_ticks(across)},
        "yaxis": {"title": rows, "autorange": "reversed", **_ticks(names)},
    }
    return {"data": [data], "layout": layout}


def _ticks(names):
    return {
        "type": "category",  # or classes named 0 to 9 would be numbers
        "tickmode": "array",
        "tickvals": names[:: math.ceil(len(names) / 50)],  # a thousand would be illegible
        "showgrid": False,
    }


def clusters(found, class_names):
    """A matrix of the test images of each class in each cluster, matched ones on the diagonal.

    Args:
        found: The `clusters` of a `result.json`, with `counts_by_class`.
        class_names: Sequence of strings.
    """
    matched = [
        len(class_names) if name is None else class_names.index(name)
        for name in found["class_of_cluster"]
    ]
    order = np.argsort(matched, kind="stable")
    counts = np.array([found["counts_by_class"][name] for name in class_names])[:, order]
    return matrix(counts, class_names, "true class", "cluster", [f"{i}" for i in order])


def given_against_predicted(examples, class_names):
    """Counts predicted classes for each given one. Examples without a prediction are left out."""
    given, predicted = examples["given_label"], examples["predicted_label"]
    known = (predicted >= 0) & (predicted < len(class_names))
    counts = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(counts, (given[known], predicted[known]), 1)
    return counts


def calibration(reliability):
    """A reliability diagram, from what `calibration.reliability` returns."""
    count = np.array(reliability["count"])
    seen = count > 0
    right = np.array(reliability["right"])[seen] / count[seen]
    middle = ((np.arange(BINS) + 0.5) / BINS)[seen]
    confidence = np.array(reliability["confidence"])[seen] / count[seen]
    bars = {
        "type": "bar",
        "name": "accuracy",
        "x": middle.tolist(),
        "y": right.tolist(),
        "width": 0.92 / BINS,
        "customdata": [[int(n), float(c)] for n, c in zip(count[seen], confidence)],
        "hovertemplate": "accuracy %{y:.1%}<br>mean confidence %{customdata[1]:.1%}<br>"
        "%{customdata[0]:,} images<extra></extra>",
        "marker": {"color": "--series-1"},
    }
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "perfect calibration",
        "x": [0, 1],
        "y": [0, 1],
        "hoverinfo": "skip",
        "line": {"color": "--muted", "dash": "dash", "width": 1.5},
    }
    axis = {"range": [0, 1], "tickformat": ".0%"}
    layout = {
        "xaxis": {"title": "confidence", **axis},
        "yaxis": {"title": "accuracy", **axis},
    }
    return {"data": [bars, line], "layout": layout}


def loss_histogram(mean_loss, is_wrong=None):
    """The normalized mean losses and the beta mixture fitted to them; None if nothing fits."""
    fitted, x, _ = detection.fit_posterior(mean_loss)
    if fitted is None:
        return None
    edges = np.linspace(0, 1, BARS + 1)
    data = _bars(x, edges, is_wrong)
    places = (np.arange(BARS * 4) + 0.5) / (BARS * 4)
    parts = fitted.density(places).T
    curves = {
        "clean component": (parts[0], "--clean", "solid"),
        "noisy component": (parts[1], "--noisy", "solid"),
        "their sum": (parts.sum(axis=0), "--text", "dash"),
    }
    for name, (density, color, dash) in curves.items():
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": places.round(5).tolist(),
                "y": density.round(5).tolist(),
                "line": {"color": color, "dash": dash, "width": 2},
            }
        )
    # A beta density may be infinite at 0 and 1, so the outer bins do not set the height.
    bars = np.sum([bar["y"] for bar in data if bar["type"] == "bar"], axis=0)
    highest = max(bars.max(), parts.sum(axis=0)[4:-4].max())
    layout = {
        "barmode": "stack",
        "bargap": 0.04,
        "xaxis": {"title": "normalized mean loss", "range": [0, 1]},
        "yaxis": {"title": "density", "range": [0, 1.1 * float(highest)]},
    }
    return {"data": data, "layout": layout}


def aum_histogram(aum, threshold, is_wrong=None):
    """The areas under the margin, with the threshold of a run; None if there are none."""
    known = aum[np.isfinite(aum)]
    if not len(known):
        return None
    edges = np.histogram_bin_edges(known, BARS)
    layout = {
        "barmode": "stack",
        "bargap": 0.04,
        "xaxis": {"title": "area under the margin (logits)"},
        "yaxis": {"title": "density"},
        "shapes": [
            {
                "type": "line",
                "x0": threshold,
                "x1": threshold,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": {"color": "--text", "dash": "dash", "width": 1.5},
            }
        ],
    }
    return {"data": _bars(aum, edges, is_wrong), "layout": layout}


def _bars(values, edges, is_wrong):
    """Stacked histograms of right and wrong labels, or of all, whose areas sum to 1."""
    known = np.isfinite(values)
    parts = {"labels": (known, "--bars")}
    if is_wrong is not None:
        parts = {
            "right labels": (known & ~is_wrong, "--clean-bars"),
            "wrong labels": (known & is_wrong, "--noisy-bars"),
        }
    area = known.sum() * (edges[1] - edges[0])
    return [
        {
            "type": "bar",
            "name": f"{name} ({int(part.sum()):,})",
            "x": ((edges[1:] + edges[:-1]) / 2).round(6).tolist(),
            "y": (np.histogram(values[part], edges)[0] / area).round(6).tolist(),
            "marker": {"color": color},
        }
        for name, (part, color) in parts.items()
    ]
