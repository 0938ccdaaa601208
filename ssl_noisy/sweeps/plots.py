# SPDX-License-Identifier: Apache-2.0
"""The picture of a sweep: error against labels."""

import pathlib

from matplotlib.backends import backend_agg, backend_pdf
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ssl_noisy.files import replacing

# Colors of Okabe and Ito, distinct for the color-blind.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"


def budget_curve(curves, path, published=None):
    """Draws the test error in % against the number of labels, with 95 % intervals of the mean.

    Args:
        curves: What `summary.curves` returns.
        path: The file to write, .png or .pdf.
        published: Dict from the name of a curve to a list of `published.Mark`, or None.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    ticks = sorted({point["num_labels"] for points in curves.values() for point in points})
    for i, (name, points) in enumerate(curves.items()):
        errors = [100 * (1 - point["mean"]) for point in points]
        halves = [100 * ((point["high"] or point["mean"]) - point["mean"]) for point in points]
        axes.errorbar(
            # A shift of 1.5 % keeps the bars of equal budgets apart.
            [point["num_labels"] * 1.015 ** (i - (len(curves) - 1) / 2) for point in points],
            errors,
            yerr=halves,
            label=name,
            color=_COLORS[i % len(_COLORS)],
            marker=_MARKERS[i // len(_COLORS) % len(_MARKERS)],
            capsize=3,
        )
        for mark in (published or {}).get(name, ()):
            axes.plot(
                mark.num_labels,
                mark.error,
                marker="*" if mark.is_oracle else "P",
                color=_COLORS[i % len(_COLORS)],
                markerfacecolor="none",
                markersize=9,
                linestyle="none",
                label=f"{name}, published" + " (oracle: best on the test set)" * mark.is_oracle,
            )
    axes.set(xscale="log", xlabel="labels", ylabel="test error in % (last checkpoint)")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, min(axes.get_ylim()[1], 100))  # intervals of few seeds can be wider
    axes.grid(alpha=0.3)
    # One entry for all figures of a curve.
    entries = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    axes.legend(
        entries.values(),
        entries.keys(),
        title="mean and 95 % interval over seeds",
        fontsize="small",
    )
    is_pdf = pathlib.Path(path).suffix == ".pdf"
    canvas = (backend_pdf.FigureCanvasPdf if is_pdf else backend_agg.FigureCanvasAgg)(figure)
    with replacing(path) as file:
        canvas.print_figure(file, format="pdf" if is_pdf else "png", dpi=150)
