# SPDX-License-Identifier: Apache-2.0
"""What entries to the CIFAR-N challenge reach, their ranks, and the tables that show both."""

import html
import importlib.resources
import re
import typing

import numpy as np

from ssl_noisy import challenge

# Test accuracy and F1 as published by the winners of the challenge, read off the two tables. Their
# learning table repeats the figures of other methods, some of which are those of the epoch that is
# best on the test set; those of the winners are of the last epoch.
_SOURCE = "https://github.com/Justherozen/ProMix/tree/LMNL_challenge#main-results"
_COLUMNS = ("aggre", "rand1", "worst", "noisy100")
PUBLISHED = {
    "learning": {
        "ProMix*, winner": (0.9739, 0.9697, 0.9616, 0.7339),
        "SOP": (0.9561, 0.9528, 0.9324, 0.6781),
        "DivideMix": (0.9501, 0.9516, 0.9256, 0.7113),
        "ELR+": (0.9483, 0.9443, 0.9109, 0.6672),
        "cross entropy": (0.8777, 0.8502, 0.7769, 0.5550),
    },
    "detection": {"ProMix, winner": (0.8986, 0.9388, 0.9606, 0.7987)},
}
# What each task is ranked by.
RANKED_BY = {"learning": "subset_accuracy", "detection": "f1"}
_NAMES = {"cifar10": "CIFAR-10N", "cifar100": "CIFAR-100N"}


class Table(typing.NamedTuple):
    """A table of texts.

    Attributes:
        title: String.
        header: Names of the columns.
        rows: List of lists of strings.
        note: A sentence below the table.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


def measure(entry, truths):
    """Scores the runs of an entry.

    Args:
        entry: An `entry.Entry` without faults.
        truths: The `truths.Truths` of its regimes.

    Returns:
        A dict from regime to a dict with `learning` and `detection`, as far as the entry has them.
        Each has the scores of all `seeds`, of each score `mean` and `std`, and the bootstrap
        `interval` of 95 % of the mean: of `accuracy`, or of `f1`.
    """
    found = {}
    for regime, runs in entry.runs.items():
        truth, seeds = truths[regime], sorted(runs)
        found[regime] = {}
        if runs[seeds[0]].predictions is not None:
            rows = [runs[seed].predictions for seed in seeds]
            scores = [
                challenge.learning_score(r, truth.test_labels, s) for r, s in zip(rows, seeds)
            ]
            interval = challenge.accuracy_interval([row == truth.test_labels for row in rows])
            found[regime]["learning"] = _summary(seeds, scores, interval)
        # Without wrong labels, there is nothing to detect.
        if runs[seeds[0]].detection is not None and truth.corrupted.any():
            rows = [runs[seed].detection for seed in seeds]
            scores = [challenge.detection_score(row, truth.corrupted) for row in rows]
            scores = [one | {"flagged": int(row.sum())} for one, row in zip(scores, rows)]
            interval = challenge.f1_interval(rows, truth.corrupted)
            found[regime]["detection"] = _summary(seeds, scores, interval)
    return found


def _summary(seeds, scores, interval):
    over = {key: challenge.over_seeds([one[key] for one in scores]) for key in scores[0]}
    by_seed = {str(seed): one for seed, one in zip(seeds, scores)}
    return {"seeds": by_seed, **over, "interval": list(interval)}


def rank(measured, datasets, with_published=True):
    """Ranks entries per task and data set.

    Args:
        measured: Dict from entry to what `measure` returns.
        datasets: Dict from regime to data set, see `Truths.datasets`.
        with_published: Whether published figures take part.

    Returns:
        A list of dicts with `task`, `dataset`, `regimes`, and `entries`: from name to `scores`,
        `ranks`, `points`, `rank` and `published`, the best first.
    """
    boards = []
    for task in RANKED_BY:
        for dataset in dict.fromkeys(datasets.values()):
            regimes = [name for name, its in datasets.items() if its == dataset]
            if dataset in _NAMES:
                regimes = [name for name in _COLUMNS if name in regimes]
            scores = {regime: _scores(measured, regime, task) for regime in regimes}
            if not any(scores.values()):
                continue
            if with_published and dataset in _NAMES:
                for name, values in PUBLISHED[task].items():
                    for regime in regimes:
                        value = values[_COLUMNS.index(regime)]
                        scores[regime][f"{name} (published)"] = value
            board = {"task": task, "dataset": dataset, "regimes": regimes}
            boards.append({**board, "entries": _ranked(scores, measured)})
    return boards


def _scores(measured, regime, task):
    """Returns a dict from entry to the score by which it is ranked, for those that have one."""
    return {
        name: regimes[regime][task][RANKED_BY[task]]["mean"]
        for name, regimes in measured.items()
        if task in regimes.get(regime, {})
    }


def _ranked(scores, measured):
    result = challenge.borda(scores)
    for name, one in result.items():
        one["rank"] = 1 + sum(other["points"] > one["points"] for other in result.values())
        one["scores"] = {regime: known[name] for regime, known in scores.items() if name in known}
        one["published"] = name not in measured
    best_first = sorted(result, key=lambda name: (result[name]["rank"], name))
    return {name: result[name] for name in best_first}


def tables(measured, ranks):
    """Returns the tables of ranks, then those of all scores, a list of `Table`."""
    return [*map(_ranks_table, ranks), *_score_tables(measured)]


def _ranks_table(board):
    is_learning = board["task"] == "learning"
    rows = [
        [
            str(one["rank"]),
            name,
            str(one["points"]),
            *(
                f"{_percent(one['scores'].get(regime))} ({one['ranks'][regime]})"
                for regime in board["regimes"]
            ),
        ]
        for name, one in board["entries"].items()
    ]
    what = "test accuracy in % on the subset" if is_learning else "F1 of the corrupted labels in %"
    name = _NAMES.get(board["dataset"], board["dataset"])
    note = "In parentheses, the rank. Rank i has max(11 - i, 0) points; no result, the last rank."
    if any(one["published"] for one in board["entries"].values()):
        note += f" Published figures are those of other test images and seeds: {_SOURCE}"
    return Table(
        f"{board['task'].capitalize()}, {name}: {what}",
        ["rank", "entry", "points", *board["regimes"]],
        rows,
        note,
    )


def _score_tables(measured):
    columns = {
        "learning": ("subset_accuracy", "resampled_accuracy", "accuracy"),
        "detection": ("precision", "recall", "f1", "flagged"),
    }
    notes = {
        "learning": "Subset: the 4/5 of the test images that the organizers' program draws with "
        "the seed. Resampled: drawn with replacement, as the rules say. The interval is that of "
        "the mean accuracy on all test images.",
        "detection": "Of the corrupted labels. The interval is that of the mean F1.",
    }
    for task, keys in columns.items():
        rows = [
            [
                entry,
                regime,
                str(len(found[task]["seeds"])),
                *(_spread(found[task][key], key) for key in keys),
                " to ".join(map(_percent, found[task]["interval"])),
            ]
            for entry, regimes in measured.items()
            for regime, found in regimes.items()
            if task in found
        ]
        if rows:
            names = [key.replace("_", " ").replace("f1", "F1") for key in keys]
            yield Table(
                f"{task.capitalize()}: mean ± std over seeds, in %",
                ["entry", "regime", "seeds", *names, "95 % interval"],
                rows,
                notes[task],
            )


def _percent(value):
    return "–" if value is None else f"{100 * value:.2f}"


def _spread(score, key):
    if key == "flagged":
        return f"{score['mean']:,.0f}"
    spread = f" ± {100 * score['std']:.2f}" if "std" in score else ""
    return f"{_percent(score['mean'])}{spread}"


def markdown(shown, refused):
    """Returns the tables, and the faults of refused entries, as Markdown for a terminal."""
    parts = []
    for table in shown:
        cells = [list(map(_escaped, row)) for row in (table.header, *table.rows)]
        widths = np.max([[len(cell) for cell in row] for row in cells], axis=0)
        lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells]
        lines.insert(1, f"|{'|'.join('-' * (width + 2) for width in widths)}|")
        parts.append("\n".join([f"**{table.title}**", "", *lines, "", table.note]))
    if refused:
        faults = [f"- {_escaped(fault)}" for faults in refused.values() for fault in faults]
        parts.append("\n".join(["**Refused**", "", *faults]))
    return "\n\n".join(parts) + "\n"


def _escaped(text):
    """Returns text that Markdown shows as it is: no columns, no HTML."""
    return re.sub("[|<]", r"\\\g<0>", text)


def page(shown, refused):
    """Returns the tables, and the faults of refused entries, as an HTML page without scripts."""
    css = importlib.resources.files("ssl_noisy.reports") / "page.css"
    sections = []
    for table in shown:
        header = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
        rows = "\n".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
            for row in table.rows
        )
        sections.append(
            f"<section>\n<h2>{html.escape(table.title)}</h2>\n"
            f'<div class="scroll"><table>\n<thead><tr>{header}</tr></thead>\n'
            f"<tbody>\n{rows}\n</tbody>\n</table></div>\n"
            f'<p class="muted">{html.escape(table.note)}</p>\n</section>'
        )
    faults = [fault for faults in refused.values() for fault in faults]
    if faults:
        items = "\n".join(f"<li>{html.escape(fault)}</li>" for fault in faults)
        sections.append(f"<section>\n<h2>Refused</h2>\n<ul>\n{items}\n</ul>\n</section>")
    return _PAGE.format(css=css.read_text(encoding="utf-8"), sections="\n".join(sections))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>CIFAR-N challenge</title>
<style>
{css}
</style>
</head>
<body>
<header class="top"><div class="wrap"><h1>CIFAR-N challenge</h1></div></header>
<main class="wrap">
{sections}
</main>
</body>
</html>
"""
