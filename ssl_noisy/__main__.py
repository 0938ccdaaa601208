# SPDX-License-Identifier: Apache-2.0
"""Lists what there is: python -m ssl_noisy"""

import inspect
import re

import ssl_noisy
from ssl_noisy import methods, networks, recipes

COMMANDS = ("train", "benchmark")


def listing():
    """Returns the commands, the methods with their papers, the networks and the recipes."""
    lines = [
        f"ssl_noisy {ssl_noisy.__version__}",
        "",
        "Commands: python -m ssl_noisy.COMMAND --help",
    ]
    for name in COMMANDS:
        module = importlib_doc(name)
        lines.append(f"  {name:14}{module.splitlines()[0]}")
    lines += ["", "Methods: --method=NAME"]
    for name in methods.names():
        doc = inspect.getdoc(methods.get(name))
        paper = re.search(r"\[(.+?)\]\((.+?)\)", doc)
        lines.append(f"  {name:14}{paper[1]}, {paper[2]}")
    lines += ["", "Networks: --network=NAME", f"  {', '.join(networks.names())}"]
    lines += ["", "Recipes: python -m ssl_noisy.train --flagfile=PATH"]
    for path in recipes.paths():
        lines += [f"  {path}", f"      {recipes.title(path)}"]
    return "\n".join(lines)


def importlib_doc(command):
    import importlib

    return importlib.import_module(f"ssl_noisy.{command}").__doc__


if __name__ == "__main__":
    print(listing())
