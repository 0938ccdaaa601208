# SPDX-License-Identifier: Apache-2.0
"""The methods: one file a paper, found by their files' names.

A new file here that defines one `Learner` is a new `--method`, with its flags,
its place in the conformance tests and in `python -m ssl_noisy`.
"""

import difflib
import importlib
import inspect
import pkgutil

from ssl_noisy.errors import UserError
from ssl_noisy.learner import Learner


def names():
    """Returns the sorted names of all methods: those of the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name):
    """Returns the `Learner` class of the method `name`.

    Raises:
        ValueError: If there is no such method (with the list and the nearest
            name), or its file does not define exactly one `Learner`.
    """
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UserError(f"Unknown method {name!r}.{hint} Available: {', '.join(names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Learner) and cls.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"The method file {module.__file__} must define one Learner. Received: "
            f"{[cls.__name__ for cls in found]}"
        )
    return found[0]


def arguments(name):
    """Returns the arguments of the method `name` that are flags: a dict to `Argument`."""
    return {key: value for key, value in get(name).arguments().items() if value.is_flag}


def own_arguments(name):
    """Returns those of `arguments` that not every method has: the baseline lacks them."""
    shared = arguments("supervised")
    return {key: value for key, value in arguments(name).items() if key not in shared}


def check(name, **arguments):
    """Raises the `UserError` of arguments of the method `name` that are out of range.

    It needs no data. What depends on the data is checked when a `Task` is attached.
    """
    get(name).checked_arguments(**arguments)
