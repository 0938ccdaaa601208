# SPDX-License-Identifier: Apache-2.0
"""The recipes: flagfiles for published results and quick runs, shipped with the package."""

import difflib
import pathlib
import re

from ssl_noisy.errors import UserError

_FIGURE = re.compile(r"^#   (--(?:num_labels|noise)=\S+?)(?: \(default\))?: (.+)$", re.M)


def folder():
    """Returns the folder of recipes: beside the package in a checkout, inside it in a wheel."""
    package = pathlib.Path(__file__).resolve().parent
    inside = package / "flags"
    return inside if inside.is_dir() else package.parent / "flags"


def default():
    """Returns the path of the recipe to train if the user chooses nothing else."""
    return folder() / "fixmatch_digits_20.cfg"


def paths():
    """Returns the sorted paths of all recipes."""
    return sorted(folder().glob("*.cfg"))


def matching(words):
    """Returns the sorted paths of the recipes whose names and titles contain all `words`.

    Case does not matter, and numbers match as a whole: cifar10 is not in cifar100.

    Raises:
        UserError: If no recipe does. The message suggests a similar word.
    """
    texts = {path: f"{path.stem} {title(path)}".lower() for path in paths()}
    found = [path for path, text in texts.items() if all(_is_in(word, text) for word in words)]
    if found:
        return found
    texts = texts.values()
    missing = [word for word in words if not any(_is_in(word, text) for text in texts)]
    if not missing:
        raise UserError(f"No recipe contains all of: {' '.join(words)}. Use fewer words.")
    known = {path.stem for path in paths()} | {word for text in texts for word in text.split()}
    known |= {part for path in paths() for part in path.stem.split("_")}
    nearest = difflib.get_close_matches(missing[0].lower(), sorted(known), n=1)
    hint = f"Did you mean {nearest[0]!r}?" if nearest else "Use --recipes alone to list them all."
    raise UserError(f"No recipe contains {missing[0]!r}. {hint}")


def _is_in(word, text):
    return re.search(re.escape(word.lower()) + (r"(?!\d)" if word[-1:].isdigit() else ""), text)


def title(path):
    """Returns the text before the command in the header of a recipe, in one line."""
    header = path.read_text().partition("\n# Run:")[0]
    return " ".join(line.lstrip("# ") for line in header.splitlines())


def header(path):
    """Returns the comment at the head of a recipe."""
    text = path.read_text()
    return text[: text.index("\n--")]


def figures(path):
    """Returns the published figures of a recipe that lists several.

    Returns:
        A dict from a flag, such as `--num_labels=250`, to the text beside it.
    """
    return dict(_FIGURE.findall(header(path)))
