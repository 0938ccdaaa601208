# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of the digits into README and docs/ from results/: python docs/tables.py"""

import json
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md", "docs/performance.md")
NAMES = {"pseudo_label_lee": "`pseudo_label`, Lee's form", "supervised": "`supervised` (baseline)"}
SHORT = {8: "1 % of the steps", 40: "5 %", 160: "20 %"}


def main():
    for page in PAGES:
        path = ROOT / page
        path.write_text(updated(path.read_text()))


def updated(text):
    """Returns a page with each table between `<!-- table NAME -->` and `<!-- end -->` anew."""

    def replaced(match):
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    pattern = r"(<!-- table (\w+) -->)\n.*?\n(<!-- end -->)"
    return re.sub(pattern, replaced, text, flags=re.S)


def overview():
    few = [(name, figure(x["last"], 100)) for name, x in ranked("digits_20")]
    few = [row for row in few if row[0] != "pseudo_label_lee"]
    wrong = [(name, figure(x)) for name, x in ranked("digits_sym40")]
    wrong += [("", "")] * (len(few) - len(wrong))
    rows = [[*a, "", *b] for a, b in zip(few, wrong, strict=True)]
    return table(["20 labels", "accuracy", "", "40 % of the labels wrong", "accuracy"], rows)


def digits_20():
    methods = dict(ranked("digits_20"))
    baseline = methods["supervised"]["last"]["values"]
    rows = []
    for name, x in methods.items():
        values = x["last"]["values"]
        above = sum(value > base for value, base in zip(values, baseline, strict=True))
        rows.append(
            [
                name,
                figure(x["last"], 100),
                ", ".join(f"{100 * value:.1f}" for value in values),
                "" if name == "supervised" else f"{above} of {len(values)}",
                figure(x["best_on_test_oracle"], 100),
                seconds(x),
            ]
        )
    columns = ["method", "accuracy", "by seed", "seeds above supervised", "best on test *(oracle)*"]
    return table([*columns, "seconds per seed"], rows)


def digits_sym40():
    rows = []
    for name, x in ranked("digits_sym40"):
        issues = [figure(x["label_issues"][key]) for key in ("precision", "recall", "f1")]
        issues.append(figure(x["label_issues"]["false_negative_rate"]))
        own = [f"`{x['own_detector']}`", figure(x["own_f1"])] if x["own_detector"] else ["", ""]
        rows.append([name, figure(x), figure(x["best_on_test_oracle"]), *issues, *own, seconds(x)])
    columns = ["method", "last", "best on test *(oracle)*", "issues: precision", "recall", "F1"]
    return table([*columns, "false negatives", "own detector", "its F1", "seconds per seed"], rows)


def short_runs():
    results = load("digits_20")
    rows = []
    for name in dict.fromkeys(key.rpartition("_")[0] for key in results["short"]):
        runs = [results["short"][f"{name}_{steps}"] for steps in SHORT]
        runs.append(results["methods"][name])
        rows.append([f"{name}_digits_20", *(figure(run["last"], 100) for run in runs)])
    return table(["recipe (800 steps)", *SHORT.values(), "all"], rows)


def load(name):
    return json.loads((ROOT / "results" / f"{name}.json").read_text())


def ranked(name):
    """Returns `(method, results)` by increasing accuracy."""
    return sorted(
        load(name)["methods"].items(), key=lambda item: item[1].get("last", item[1])["mean"]
    )


def figure(results, scale=1):
    return f"{scale * results['mean']:.1f} ± {scale * results['std']:.1f}"


def seconds(results):
    taken = [run["seconds_of_the_run"] for run in results["runs"]]
    return f"{min(taken):.0f} to {max(taken):.0f}"


def table(header, rows):
    """Returns a Markdown table; methods and recipes are code."""
    names = [
        [NAMES.get(x, f"`{x}`" if re.fullmatch("[a-z_]+[0-9]*", x) else x) for x in r] for r in rows
    ]
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *names])


TABLES = {
    "overview": overview,
    "digits_20": digits_20,
    "digits_sym40": digits_sym40,
    "short_runs": short_runs,
}

if __name__ == "__main__":
    main()
