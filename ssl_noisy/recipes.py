# SPDX-License-Identifier: Apache-2.0
"""The recipes: flagfiles, one for each published number, that travel with the package."""

import pathlib


def folder():
    """Returns the folder of recipes: beside the package in a checkout, inside it in a wheel."""
    package = pathlib.Path(__file__).resolve().parent
    inside = package / "flags"
    return inside if inside.is_dir() else package.parent / "flags"


def default():
    """Returns the path of the recipe that is trained where nothing else is chosen."""
    return folder() / "fixmatch_digits_20.cfg"


def paths():
    """Returns the sorted paths of all recipes."""
    return sorted(folder().glob("*.cfg"))


def title(path):
    """Returns what the header of a recipe says before its command, in one line."""
    header = path.read_text().partition("\n# Run:")[0]
    return " ".join(line.lstrip("# ") for line in header.splitlines())
