# SPDX-License-Identifier: Apache-2.0
"""The texts of an entry: recipe, `run.sh`, pinned packages, and a report in Markdown and LaTeX."""

import hashlib
import importlib.metadata
import json
import os
import re

import keras
import numpy as np

from ssl_noisy import challenge, files
from ssl_noisy.submission import rules

FIGURE = "figures/validation"
_NOT_IN_RECIPE = ("seed", "label_seed", "keep_best", "noisy_validation", "logger", "plots")
_NOT_IN_RECIPE += ("plot_format", "checkpoint_seconds", "data_dir", "cache_dir", "cifarn_file")
_OF_REGIME = ("noise", "noise_draw", "noise_seed")
_RUN = """\
#!/bin/sh
# Trains all regimes of this entry with one seed: sh run.sh SEED [more flags of ssl_noisy.submit]
# The result is in entry_seed_SEED, unless --entry_dir says otherwise.
set -eu
export KERAS_BACKEND="${KERAS_BACKEND:-BACKEND}"
here=$(cd "$(dirname "$0")" && pwd)
seed=${1:?Usage: sh run.sh SEED [more flags of ssl_noisy.submit]}
shift
"""


def recipe_name(dataset):
    """Returns the name of the file with the recipe for a data set."""
    return f"recipe_{dataset}.cfg"


def recipe(regime, settings):
    """Returns the flagfile of the recipe, without what the rules, the regime and the user add."""
    left_out = {*_NOT_IN_RECIPE, *(_OF_REGIME if regime != rules.CUSTOM else ())}
    lines = []
    for line in settings.flag_lines():
        name = re.match("--(?:no(?=keep_best|noisy_v|plots))?([a-z_0-9]+)", line)[1]
        if name not in left_out:
            lines.append(line)
    return "\n".join(lines) + "\n"


def run_sh(regimes):
    """Returns the text of `run.sh` for regimes."""
    groups = {}
    for regime in regimes:
        groups.setdefault(rules.dataset_of(regime), []).append(regime)
    text = _RUN.replace("-BACKEND}", f"-{keras.backend.backend()}}}")
    for dataset, names in groups.items():
        words = [
            '"${PYTHON:-python}" -m ssl_noisy.submit',
            f'--flagfile="$here/{recipe_name(dataset)}"',
        ]
        if dataset != rules.CUSTOM:
            words.append(f"--noise_type={','.join(names)}")
        words.append('--seeds="$seed" --entry_dir="entry_seed_$seed" "$@"')
        text += " \\\n  ".join(words) + "\n"
    return text


def requirements():
    """Returns the text of `requirements.txt`: this package and what it needs, as installed."""
    found, waiting = {}, ["ssl_noisy", keras.backend.backend()]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # of another platform, or not needed
            continue
        found[name] = package.version
        for line in package.requires or ():
            if "extra ==" not in line:
                waiting.append(re.match(r"[\w.-]+", line)[0])
    version = found.pop("ssl-noisy", None)
    first = [f"# ssl_noisy {version}: install it from its repository"] if version else []
    return "\n".join([*first, *(f"{k}=={v}" for k, v in sorted(found.items()))]) + "\n"


def write_unless_edited(path, text, digests):
    """Writes a text that its reader may edit. Edited texts stay as they are.

    Args:
        path: Path of the file.
        text: What to write.
        digests: Dict from the name of each text to the hash of what was written. It is updated.

    Returns:
        Whether the file has this text now.
    """
    name = os.path.basename(path)
    if os.path.exists(path):
        with open(path, "rb") as file:
            there = hashlib.sha256(file.read()).hexdigest()
        if there != digests.get(name):
            return False
    with files.replacing(path, "w") as file:
        file.write(text)
    digests[name] = hashlib.sha256(text.encode()).hexdigest()
    return True


def describe(rows):
    """Returns the figures of a regime, a dict of texts.

    Args:
        rows: List of dicts, one per seed, as `submit` gathers them.
    """
    accuracy = [100 * row["validation_accuracy"] for row in rows]
    flagged = [100 * row["flagged"] for row in rows]
    share = [
        100 * row["seconds"] / (challenge.TIME_FACTOR * row["baseline_seconds"]) for row in rows
    ]
    return {
        "seeds": ", ".join(str(row["seed"]) for row in rows),
        "epoch": f"{min(row['epoch'] for row in rows)} to {max(row['epoch'] for row in rows)}",
        "accuracy": _mean(accuracy),
        "flagged": _mean(flagged),
        "seconds": f"{np.mean([row['seconds'] for row in rows]):,.1f}",
        "baseline": f"{rows[0]['baseline_seconds']:,.1f}",
        "share": f"{max(share):,.1f}",
        "stopped": str(sum(row["is_stopped"] for row in rows)),
    }


def _mean(values):
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread}"


_COLUMNS = {
    "seeds": "seeds",
    "epoch": "chosen epoch",
    "accuracy": "noisy validation accuracy, %",
    "flagged": "flagged labels, %",
    "seconds": "seconds",
    "baseline": "baseline, seconds",
    "share": "most of the limit, %",
    "stopped": "stopped by the limit",
}
_SELECTION = (
    "A part of the noisy training set is held out, --validation_split of the recipe. After each "
    "epoch the accuracy on these given, partly wrong labels is measured, and the model of the "
    "first best epoch is the result. No true label and no test image takes part in training or in "
    "this choice. All regimes of a data set have the same hyper-parameters."
)
_DETECTION = (
    "A training label is flagged on the evidence that the training recorded up to that epoch, or "
    "the passes of AUM if there are any: margins of averaged probabilities, and how often the "
    "label was predicted. The held-out labels have no such record. As many of them are flagged, in "
    "proportion, as of the training labels: those with the smallest margins of the final model."
)
_CLOCK = (
    "The time of a run has compilation and evaluations. It ends before ten times the time of the "
    "baseline, ResNet-34 for 100 epochs in batches of 128: the median time of a step after a "
    "warm-up, times the number of steps. A run that would exceed the limit ends after the last "
    "evaluation that is in time."
)


def markdown(name, methods, tables, recipes):
    """Returns the text of `REPORT.md`.

    Args:
        name: Name of the entry.
        methods: Dict from data set to a sentence about the method.
        tables: Dict from regime to what `describe` returns.
        recipes: Dict from data set to the text of its recipe.
    """
    head = ["regime", *_COLUMNS.values()]
    table = [head, ["---"] * len(head)]
    table += [[regime, *(row[key] for key in _COLUMNS)] for regime, row in tables.items()]
    parts = [f"# {name}: an entry to the CIFAR-N challenge", "## Method"]
    for dataset, text in methods.items():
        parts += [f"{dataset}: {text}", f"```\n{recipes[dataset]}```"]
    parts += ["## Selection of the model", _SELECTION, "## Detection", _DETECTION]
    parts += ["## Time", _CLOCK, "## Results without the truth"]
    parts += ["\n".join(f"| {' | '.join(cells)} |" for cells in table)]
    parts += [
        "Means and standard deviations over the seeds.",
        f"![Noisy validation accuracy]({FIGURE}.png)",
        "## Reproduce",
        "```sh\npip install -r requirements.txt\nsh run.sh SEED\n```",
    ]
    return "\n\n".join(parts) + "\n"


def latex(name, methods, tables, recipes):
    """Returns a LaTeX skeleton of the report, with what the entry knows. As `markdown`."""
    shown = ("seeds", "epoch", "accuracy", "flagged", "share")
    head = " & ".join(["regime", *(_tex(_COLUMNS[key]) for key in shown)])
    body = [
        " & ".join([_tex(regime), *(_tex(row[key]) for key in shown)]) + r" \\"
        for regime, row in tables.items()
    ]
    method = []
    for dataset, text in methods.items():
        method += [
            rf"\paragraph{{{_tex(dataset)}.}} {_tex(text)} The resolved flags:",
            rf"{{\footnotesize\begin{{verbatim}}{chr(10)}{recipes[dataset]}\end{{verbatim}}}}",
        ]
    lines = [
        "% The challenge asks for 2 to 8 pages in the IJCAI format: use its style file here.",
        r"\documentclass[10pt]{article}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage[margin=1in]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        rf"\title{{{_tex(name)}}}",
        r"\author{Names and affiliations}",
        r"\begin{document}",
        r"\maketitle",
        r"\begin{abstract}",
        "Describe the idea in a few sentences. Code: address of the public repository.",
        r"\end{abstract}",
        r"\section{Introduction}",
        "What is new, and why it should help with human label noise.",
        r"\section{Method}",
        *method,
        r"\section{Selection of the model}",
        _tex(_SELECTION),
        r"\section{Detection}",
        _tex(_DETECTION),
        r"\section{Time}",
        _tex(_CLOCK),
        r"\section{Results}",
        r"\begin{table}[h]\centering\footnotesize",
        rf"\begin{{tabular}}{{l{'l' * len(shown)}}}\toprule",
        head + r" \\ \midrule",
        *body,
        r"\bottomrule\end{tabular}",
        r"\caption{What is known without true labels. Means and standard deviations over seeds.}",
        r"\end{table}",
        r"\begin{figure}[h]\centering",
        rf"\includegraphics[width=0.7\linewidth]{{{FIGURE}.pdf}}",
        r"\caption{Accuracy on the noisy validation labels, mean over seeds.}",
        r"\end{figure}",
        r"\section{Conclusion}",
        "What the results show, and their limits.",
        r"\end{document}",
    ]
    return "\n".join(lines) + "\n"


def _tex(text):
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    return text.replace("±", r"$\pm$").replace("~", r"\textasciitilde{}")


def read_json(path):
    """Returns a dict that an earlier call of the command wrote, empty without one."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):  # it is written again
        return {}
