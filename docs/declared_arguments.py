# SPDX-License-Identifier: Apache-2.0
"""Adds declared arguments (see `ssl_noisy/arguments.py`) to the docstrings of their classes.

At run time the classes do that themselves. The documentation is built from the sources, without
importing Keras, so this extension of griffe evaluates the declarations alone.
"""

import importlib
import pathlib
import sys
import types

import griffe

ROOT = pathlib.Path(__file__).resolve().parent.parent


def load_arguments():
    """Returns the module `ssl_noisy.arguments`, without running `ssl_noisy/__init__.py`."""
    package = types.ModuleType("ssl_noisy")
    package.__path__ = [str(ROOT / "ssl_noisy")]
    sys.modules.setdefault("ssl_noisy", package)
    return importlib.import_module("ssl_noisy.arguments")


arguments = load_arguments()


class Scope(dict):
    """The names that an expression in a class body of a griffe object sees."""

    def __init__(self, scope):
        super().__init__()
        self.scope = scope

    def __missing__(self, name):
        for scope in (self.scope, self.scope.module):
            if name in scope.members:
                return value_of(scope.members[name])
        raise KeyError(name)  # a builtin


class Named:
    """A module, class or function of the package, whose attributes are evaluated on demand."""

    def __init__(self, obj):
        self._obj = obj

    def __getattr__(self, name):
        return value_of(self._obj.all_members[name])

    def __call__(self, *_, **__):
        """Stands for an object whose name in a table is all that a declaration uses."""
        return self


def value_of(obj):
    """Returns the value of a griffe object."""
    obj = obj.final_target if obj.is_alias else obj
    if obj.path.startswith("ssl_noisy.arguments"):
        return arguments if obj.is_module else getattr(arguments, obj.name)
    if obj.is_attribute:
        return eval(str(obj.value), {}, Scope(obj.parent))
    return Named(obj)


class DeclaredArguments(griffe.Extension):
    """Gives a class the signature of its arguments, and documents those that it declares itself."""

    def on_package(self, *, pkg, **_):
        classes = [cls for module in modules(pkg) for cls in module.classes.values()]
        for cls in classes:
            declared = {} if cls.is_alias else declared_by(cls)
            if declared:
                set_constructor(cls, declared)
                own = {name: value for name, value in declared.items() if name in cls.members}
                if own and cls.docstring:
                    cls.docstring.value = arguments.documented(cls.docstring.value, own)


def modules(module):
    """Yields a module and all below it."""
    yield module
    for child in module.modules.values():
        if not child.is_alias:
            yield from modules(child)


def declared_by(cls):
    """Returns a dict from name to `Argument`: the class's own, then those of its bases."""
    found = {}
    for owner in (cls, *cls.mro()):
        for name, attribute in owner.members.items():
            value = attribute.value if attribute.is_attribute else None
            if isinstance(value, griffe.ExprCall) and name not in found:
                path = value.function.canonical_path
                if path.startswith("ssl_noisy.arguments.") or path.endswith(".with_default"):
                    found[name] = value_of(attribute)
    return found


def set_constructor(cls, declared):
    """Replaces `**arguments` in the signature of a class by what it stands for."""
    kinds = griffe.ParameterKind
    keywords = [
        griffe.Parameter(
            name, annotation=x.kind.__name__, kind=kinds.keyword_only, default=repr(x.default)
        )
        for name, x in declared.items()
    ]
    positional = [p for p in cls.parameters if p.kind is kinds.positional_or_keyword]
    others = [p for p in cls.parameters if p.kind is kinds.keyword_only and p.name not in declared]
    this = [] if positional[:1] and positional[0].name == "self" else [griffe.Parameter("self")]
    function = griffe.Function(
        "__init__", parameters=griffe.Parameters(*this, *positional, *keywords, *others)
    )
    cls.set_member("__init__", function)
