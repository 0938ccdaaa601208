# SPDX-License-Identifier: Apache-2.0
"""The flags of a run, made from the declarations of `Settings` and of the methods."""

from absl import flags

from ssl_noisy import methods, networks, settings
from ssl_noisy.data import label_noise, sources
from ssl_noisy.errors import UserError

_FILES = ("label_file", "cifarn_file", "labels_csv", "features", "initial_weights")
_FILES += ("teacher",)

_DEFINE = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    str: flags.DEFINE_string,
}


def define_flags(flag_values):
    """Defines a flag for each field of `Settings` and each argument of any method.

    Returns:
        The list of their names.
    """
    names = define_settings(flag_values)
    for name, takers in method_flags().items():
        meanings = {}
        for method, argument in takers.items():
            default = argument.default
            shown = f"{default:.4g}" if isinstance(default, float) else str(default)
            meanings.setdefault(_help(argument), {}).setdefault(shown, []).append(method)
        help = " ".join(
            f"{meaning} Default: "
            + "; ".join(f"{default} ({', '.join(them)})" for default, them in defaults.items())
            + "."
            for meaning, defaults in meanings.items()
        )
        kind = takers[min(takers)].kind
        _DEFINE[kind](name, None, help, flag_values=flag_values)
    return [*names, *method_flags()]


def define_settings(flag_values, names=None):
    """Defines the flags of some fields of `Settings`; None means all. Returns their names."""
    fields = [field for field in settings.fields() if names is None or field.name in names]
    for field in fields:
        argument = field.metadata["argument"]
        help = _help(argument)
        _DEFINE[argument.kind](field.name, field.default, help, flag_values=flag_values)
    return [field.name for field in fields]


def _help(argument):
    """Returns the range and the meaning of an argument, for `--help`."""
    requirement = argument.requirement
    return f"{argument.help} Must be {requirement}." if requirement else argument.help


def method_flags():
    """Returns, for each argument of any method, a dict from method to `Argument`."""
    found = {}
    for method in methods.names():
        for name, argument in methods.arguments(method).items():
            found.setdefault(name, {})[method] = argument
    return found


def from_lines(lines):
    """Returns the `Settings` that the lines of a run's `flags.cfg` state.

    Raises:
        UserError: If a flag is unknown or wrong.
    """
    values = flags.FlagValues()
    define_flags(values)
    flags.DEFINE_string("by", None, "The classifier of a probe.", flag_values=values)
    try:
        values(["flags.cfg", *lines])
    except flags.Error as error:
        raise UserError(str(error)) from error
    return from_flags(values)


def values_of(flag_values, names=None):
    """Returns the values of flags of `Settings`, a dict. Paths become absolute.

    Args:
        flag_values: absl's flag values, parsed.
        names: Names of fields of `Settings`. None: those that `flag_values` has.
    """
    fields = [f for f in settings.fields() if f.name in (flag_values if names is None else names)]
    values = {field.name: flag_values[field.name].value for field in fields}
    for field in fields:
        if (field.metadata["is_place"] or field.name in _FILES) and values[field.name]:
            values[field.name] = settings.absolute_path(values[field.name])
    for name, table in (("dataset", sources.SOURCES), ("noise", label_noise.KINDS)):
        kind, _, path = (values.get(name) or "").partition(":")
        if path and kind in table and table[kind].is_path:
            values[name] = f"{kind}:{settings.absolute_path(path)}"
    if "network" in values:
        values["network"] = networks.absolute(values["network"], settings.absolute_path)
    if values.get("weights") not in (None, "imagenet", "none"):
        values["weights"] = settings.absolute_path(values["weights"])
    return values


def from_flags(flag_values):
    """Returns the `Settings` that the parsed flags state. Paths become absolute.

    Flags of `Settings` that are not defined have their default.

    Raises:
        UserError: As `Settings`.
    """
    values = values_of(flag_values)
    if values.get("baseline") in ("", values.get("method")):
        values["baseline"] = None
    arguments = {
        name: flag_values[name].value
        for name in method_flags()
        if name in flag_values and flag_values[name].present
    }
    made = settings.Settings(**values, method_arguments=arguments)
    if made.baseline:
        made.for_baseline()  # which checks it too
    return made
