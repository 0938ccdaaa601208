# SPDX-License-Identifier: Apache-2.0
"""Arguments: each setting of a method or a run is declared once, in a class body.

```python
class MyMethod(Learner):
    confidence_threshold: float = fraction(0.95, "Keep pseudo-labels from this probability on.")
    batch_size: int = Learner.batch_size.with_default(32)
```

The declaration gives the constructor its keyword, with a complete `inspect.signature`, and makes
the check and its error message, the entry in `get_config`, the flag with its text in `--help`, the
`Args` of the docstring, and the bad values that the tests try.
"""

import copy
import difflib
import inspect
import math
import numbers
import textwrap
import types
from typing import Any, dataclass_transform

from ssl_noisy.errors import UserError

_TYPES = {bool: (bool, "True or False"), str: (str, "a string")}
_TYPES |= {int: (numbers.Integral, "an integer"), float: (numbers.Real, "a number")}


class Argument:
    """One keyword argument: a descriptor under its name in a class body.

    Args:
        kind: `bool`, `int`, `float` or `str`.
        default: The default value. With None, `help` says what decides instead.
        help: What the argument does, in a sentence or two.
        requirement: The range as text, such as "in [0, 1]". Empty if each value will do.
        limit: Rest of the range, which only error messages state: ", below 2**31".
        is_valid: Function of a value of the right type: whether it is in the range.
        invalid: Values out of range, for tests.
        is_flag: Whether a command has a flag for it. A run sets the others itself.
    """

    def __init__(
        self,
        kind,
        default,
        help,
        requirement="",
        limit="",
        is_valid=lambda value: True,
        invalid=(),
        is_flag=True,
    ):
        self.kind = kind
        self.default = default
        self.help = help
        self.requirement = requirement
        self.limit = limit
        self.is_valid = is_valid
        self.invalid = tuple(invalid)
        self.is_flag = is_flag
        self.name = None

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        if instance is None:
            return self
        if self.name not in vars(instance):
            raise AttributeError(f"{type(instance).__name__} has no {self.name!r} yet.")
        return vars(instance)[self.name]

    def __set__(self, instance, value):
        # `vars` is outside of Keras's tracking: values stay what they are.
        vars(instance)[self.name] = self.checked(value, *argument_of(type(instance), self.name))

    def with_default(self, default) -> Any:
        """Returns the same argument with another default, for a subclass."""
        other = copy.copy(self)
        other.default = default
        return other

    def checked(self, value, subject, name):
        """Returns `value`.

        Args:
            value: What to check. None is valid if it is the default.
            subject: Beginning of the error message: "The `steps` argument of `FixMatch`".
            name: What the message calls the argument where it repeats the value.

        Raises:
            UserError: If the value has another type or is out of range.
        """
        if value is None and self.default is None:
            return value
        accepted, type_name = _TYPES[self.kind]
        requirement = self.requirement + self.limit
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            requirement = ", ".join(text for text in (type_name, requirement) if text)
        elif self.is_valid(value):
            return value
        raise UserError(f"{subject} must be {requirement}. Received: {name}={value}")

    def summary(self):
        """Returns type, range, default and meaning as text."""
        kind = " ".join(text for text in (self.kind.__name__, self.requirement) if text)
        return f"{kind}, default {self.default}. {self.help}"


def switch(default, help, **kwargs) -> Any:
    """Declares an argument that is True or False."""
    return Argument(bool, default, help, **kwargs)


def string(default, help, **kwargs) -> Any:
    """Declares an argument that is any string."""
    return Argument(str, default, help, **kwargs)


def choice(default, choices, help, **kwargs) -> Any:
    """Declares an argument that is one of a few strings."""
    return Argument(
        str,
        default,
        help,
        requirement="one of " + ", ".join(choices),
        is_valid=lambda v: v in choices,
        invalid=("?",),
        **kwargs,
    )


def count(default, help, minimum=1, bits=31, **kwargs) -> Any:
    """Declares an integer of at least `minimum` and below 2 to the power of `bits`."""
    return Argument(
        int,
        default,
        help,
        requirement=f"at least {minimum}",
        limit=f" and below 2**{bits}",
        is_valid=lambda v: minimum <= v < 2**bits,
        invalid=(minimum - 1, minimum - 3, 2**bits),
        **kwargs,
    )


def at_least(minimum, default, help, **kwargs) -> Any:
    """Declares a finite number >= `minimum`."""
    return Argument(
        float,
        default,
        help,
        requirement=f"at least {minimum}",
        is_valid=lambda v: minimum <= v < math.inf,
        invalid=(minimum - 1e-9, math.nan, math.inf),
        **kwargs,
    )


def above(minimum, default, help, **kwargs) -> Any:
    """Declares a finite number > `minimum`."""
    return Argument(
        float,
        default,
        help,
        requirement=f"above {minimum}",
        is_valid=lambda v: minimum < v < math.inf,
        invalid=(float(minimum), minimum - 1.0, math.nan, math.inf),
        **kwargs,
    )


def interval(ends, default, help, **kwargs) -> Any:
    """Declares a number in an interval, written as "[0, 1)": square brackets include an end."""
    low, high = (float(end) for end in ends[1:-1].split(","))
    has_low, has_high = ends[0] == "[", ends[-1] == "]"
    return Argument(
        float,
        default,
        help,
        requirement=f"in {ends}",
        is_valid=lambda v: low <= v <= high and (has_low or v > low) and (has_high or v < high),
        invalid=(low - 0.01 * has_low, high + 0.01 * has_high, math.nan),
        **kwargs,
    )


def fraction(default, help, **kwargs) -> Any:
    """Declares a number in [0, 1]."""
    return interval("[0, 1]", default, help, **kwargs)


def momentum(default, help, **kwargs) -> Any:
    """Declares a number in [0, 1)."""
    return interval("[0, 1)", default, help, **kwargs)


def argument_of(cls, name):
    """Returns how error messages name an argument of a class, and its value."""
    return f"The `{name}` argument of `{cls.__name__}`", name


# With the annotations in the class bodies, editors complete the keywords of constructors.
@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(switch, string, choice, count, at_least, above, interval, fraction, momentum),
)
class Configured:
    """Base of classes whose constructor takes the arguments that their bodies declare."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        declared = cls.arguments()
        own = inspect.signature(cls.__init__).parameters.values()
        keywords = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=a.default, annotation=a.kind
            )
            for name, a in declared.items()
        ]
        positional = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
        others = [p for p in own if p.kind is p.KEYWORD_ONLY and p.name not in declared]
        cls.__signature__ = inspect.Signature([*positional, *keywords, *others])
        if cls.__dict__.get("__doc__"):
            cls.__doc__ = documented(inspect.cleandoc(cls.__doc__), declared)

    @classmethod
    def arguments(cls):
        """Returns a dict from name to `Argument`: the class's own, then those of its bases.

        An attribute that is no `Argument` hides that of a base, whose value it fixes.
        """
        found = {}
        for base in cls.__mro__:
            for name, value in vars(base).items():
                found.setdefault(name, value)
        return {name: value for name, value in found.items() if isinstance(value, Argument)}

    @classmethod
    def checked_arguments(cls, **given):
        """Returns the values of all arguments, as a `types.SimpleNamespace`.

        Args:
            **given: Values that replace the defaults.

        Raises:
            TypeError: If there is no argument of a name.
            UserError: If a value is out of range, or values contradict one another.
        """
        declared = cls.arguments()
        for name in given:
            if name not in declared:
                nearest = difflib.get_close_matches(name, declared, n=1)
                hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
                raise TypeError(f"{cls.__name__} has no argument {name!r}.{hint}")
        values = {
            name: argument.checked(given.get(name, argument.default), *argument_of(cls, name))
            for name, argument in declared.items()
        }
        arguments = types.SimpleNamespace(**values)
        cls.check_arguments(arguments)
        return arguments

    @classmethod
    def check_arguments(cls, arguments):
        """Raises the `UserError` of values that contradict one another; by default there are none.

        Args:
            arguments: What `checked_arguments` returns. Each value is in its own range.
        """

    @classmethod
    def require(cls, is_valid, name, value, requirement):
        """Raises the `UserError` of an argument whose range depends on other values."""
        if not is_valid:
            subject, name = argument_of(cls, name)
            raise UserError(f"{subject} must be {requirement}. Received: {name}={value}")

    @classmethod
    def require_order(cls, arguments, *names):
        """Raises the `UserError` of the first of the named arguments that exceeds the next."""
        values = vars(arguments)
        for name, later in zip(names, names[1:]):
            is_valid = values[name] <= values[later]
            cls.require(is_valid, name, values[name], f"at most {later}={values[later]}")


def documented(doc, arguments):
    """Returns a docstring with an `Args` section for `arguments`, before its `Reference`."""
    entries = [
        textwrap.fill(
            f"{name}: {argument.summary()}",
            96,
            initial_indent=4 * " ",
            subsequent_indent=8 * " ",
            break_on_hyphens=False,
        )
        for name, argument in arguments.items()
    ]
    text, heading, reference = doc.partition("\nReference:")
    return "\n".join([text.rstrip(), "", "Args:", *entries, heading + reference])


# Arguments that several methods or settings share.


def seed(default, help, **kwargs) -> Any:
    return count(default, help, minimum=0, bits=32, **kwargs)  # NumPy's legacy seeds are uint32


def unlabeled_batch_size(default) -> Any:
    return count(default, "Unlabeled examples per step, of each network.")


def mixup_alpha(default) -> Any:
    help = "Mix images by a fraction drawn from Beta(mixup_alpha, mixup_alpha). 0 mixes nothing."
    return at_least(0, default, help)


def mixup_per_image(default) -> Any:
    return switch(default, "Draw that fraction for each image instead of once per batch.")


def temperature(default) -> Any:
    return above(0, default, "Temperature that sharpens the guessed labels. 1 leaves them.")


def unsupervised_weight(default) -> Any:
    return at_least(0, default, "Weight of the unsupervised loss, the papers' lambda_u.")


def warmup_end(default) -> Any:
    help = "Fraction of training after which the warm-up on all given labels ends."
    return fraction(default, help)


def warmup_penalty(default) -> Any:
    return at_least(0, default, "Weight of the negative entropy of predictions in the warm-up.")


def ramp_start(default) -> Any:
    return fraction(default, "Fraction of training after which the unsupervised weight rises.")


def ramp_end(default) -> Any:
    help = "Fraction of training after which the unsupervised weight has reached its full value."
    return fraction(default, help)


def confidence_threshold(default) -> Any:
    return fraction(default, "Keep a pseudo-label if its probability is >= this.")
