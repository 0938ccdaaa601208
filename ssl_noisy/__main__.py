# SPDX-License-Identifier: Apache-2.0
"""Lists commands, methods and networks, or recipes: python -m ssl_noisy [--recipes [WORD ...]]"""

import argparse
import importlib
import inspect
import itertools
import pathlib
import re
import sys
import textwrap

import ssl_noisy
from ssl_noisy import command, methods, networks, recipes
from ssl_noisy.errors import UserError

COMMANDS = ("train", "sweep", "submit", "score", "predict", "report", "features", "choose")
COMMANDS += ("probe", "benchmark")


class _Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, without the usage that argparse prints first
        sys.exit(command.fail("ssl_noisy", f"{message}. See {self.prog} --help"))


def main(argv):
    """Prints what the arguments ask for, and returns the exit code."""
    parser = _Parser(
        "python -m ssl_noisy", description="List commands, methods and networks, or recipes."
    )
    parser.add_argument(
        "--recipes",
        nargs="*",
        metavar="WORD",
        help="list the recipes whose name or title contains all of these words; no word: all",
    )
    words = parser.parse_args(argv).recipes
    try:
        print(listing() if words is None else list_of_recipes(words))
    except UserError as error:
        return command.fail("ssl_noisy", error)
    return 0


def listing():
    """Returns the commands, the methods with their papers, and the networks: one screen."""
    lines = [f"ssl_noisy {ssl_noisy.__version__}: train image classifiers with few or wrong labels"]
    lines += ["", "Commands: python -m ssl_noisy.COMMAND --help"]
    lines += _in_two_columns([f"{name:10}{_summary(name)}" for name in COMMANDS])
    lines += ["", "Methods: --method=NAME"]
    without = [name for name in methods.names() if not methods.get(name).needs_labels]
    for name in methods.names():
        if name in without:
            continue
        paper = re.search(r"\[(.+?)\]\((.+?)\)", inspect.getdoc(methods.get(name)))
        lines.append(f"  {name:14}{paper[1]}, {paper[2]}")
    lines.append(f"  and without labels: {', '.join(without)}")
    lines += ["", "Networks: --network=NAME"]
    lines += _wrapped(f"{', '.join(networks.names())}, wrn_DEPTH_WIDTH")
    lines += ["", "Start with: python -m ssl_noisy.train; recipes: python -m ssl_noisy --recipes"]
    return "\n".join(lines)


def _summary(command_name):
    doc = importlib.import_module(f"ssl_noisy.{command_name}").__doc__
    return f"{doc.partition(':')[0]}."


def _in_two_columns(texts):
    half = -(-len(texts) // 2)
    pairs = itertools.zip_longest(texts[:half], texts[half:], fillvalue="")
    return [f"  {left:52}{right}".rstrip() for left, right in pairs]


def list_of_recipes(words):
    """Returns the names and titles of the recipes that contain all `words`."""
    here, folder = pathlib.Path.cwd(), recipes.folder()
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    lines = [f"Run one with: python -m ssl_noisy.train --flagfile={folder}/NAME.cfg"]
    for path in recipes.matching(words):
        lines += [path.stem, *_wrapped(recipes.title(path))]
    return "\n".join(lines)


def _wrapped(text):
    return textwrap.wrap(
        text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


if __name__ == "__main__":
    command.use_standard_streams()
    sys.exit(main(sys.argv[1:]))
