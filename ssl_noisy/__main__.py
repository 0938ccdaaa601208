# SPDX-License-Identifier: Apache-2.0
"""Lists what there is: python -m ssl_noisy"""

import importlib
import inspect
import re

import ssl_noisy
from ssl_noisy import command, methods, networks, recipes

COMMANDS = ("train", "benchmark")


def listing():
    """Returns the commands, the methods with their papers, the networks and the recipes."""
    lines = [f"ssl_noisy {ssl_noisy.__version__}", ""]
    lines.append("Commands: python -m ssl_noisy.COMMAND --help")
    for name in COMMANDS:
        doc = importlib.import_module(f"ssl_noisy.{name}").__doc__
        lines.append(f"  {name:14}{doc.splitlines()[0]}")
    lines += ["", "Methods: --method=NAME"]
    for name in methods.names():
        paper = re.search(r"\[(.+?)\]\((.+?)\)", inspect.getdoc(methods.get(name)))
        lines.append(f"  {name:14}{paper[1]}, {paper[2]}")
    lines += ["", "Networks: --network=NAME"]
    lines.append(f"  {', '.join(networks.names())}, wrn_DEPTH_WIDTH")
    lines += ["", "Recipes: python -m ssl_noisy.train --flagfile=PATH"]
    for path in recipes.paths():
        lines += [f"  {path}", f"      {recipes.title(path)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    command.use_standard_streams()
    print(listing())
