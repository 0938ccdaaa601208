# SPDX-License-Identifier: Apache-2.0
"""Arguments: one declaration gives keyword, signature, check, config and documentation."""

import inspect
import math

from absl.testing import absltest, parameterized

from ssl_noisy import arguments
from ssl_noisy.arguments import Configured


class Oven(Configured):
    """Bakes.

    Reference:
        Bread, 2020.
    """

    heat: float = arguments.interval("(0, 250]", 180.0, "Temperature of the oven.")
    minutes: int = arguments.count(None, "Time. None bakes until it is done.")
    mode: str = arguments.choice("fan", ("fan", "grill"), "Where the heat comes from.")
    is_steamed: bool = arguments.switch(False, "Add steam.")

    def __init__(self, bread, *, name=None, **given):
        self.bread, self.name = bread, name
        vars(self).update(vars(self.checked_arguments(**given)))


class Grill(Oven):
    """Browns."""

    mode: str = Oven.mode.with_default("grill")
    rest: float = arguments.fraction(0.5, "Fraction of the time without heat.")

    @classmethod
    def check_arguments(cls, values):
        cls.require_order(values, "rest", "heat")


class ConfiguredTest(parameterized.TestCase):
    def test_values_are_attributes(self):
        oven = Oven("rye", heat=200, is_steamed=True)
        self.assertEqual(
            (oven.heat, oven.minutes, oven.mode, oven.is_steamed), (200, None, "fan", 1)
        )
        self.assertEqual(Grill("rye").mode, "grill")
        self.assertEqual(Oven("rye").mode, "fan")  # another default leaves the base alone

    def test_an_assignment_is_checked(self):
        oven = Oven("rye")
        oven.heat = 250
        with self.assertRaisesRegex(ValueError, r"`heat` argument of `Oven` must be in \(0, 250\]"):
            oven.heat = 251
        self.assertEqual(oven.heat, 250)

    def test_the_signature_is_complete_with_own_arguments_first(self):
        parameters = inspect.signature(Grill).parameters
        names = ["bread", "mode", "rest", "heat", "minutes", "is_steamed", "name"]
        self.assertEqual([*parameters], names)
        self.assertEqual(parameters["mode"].default, "grill")
        self.assertIs(parameters["rest"].annotation, float)

    def test_the_docstring_lists_the_arguments_before_the_reference(self):
        expected = "Bakes.\n\nArgs:\n    heat: float in (0, 250], default 180.0. Temperature of "
        self.assertStartsWith(Oven.__doc__, expected)
        self.assertEndsWith(Oven.__doc__, "Add steam.\n\nReference:\n    Bread, 2020.")
        self.assertIn("    mode: str one of fan, grill, default grill. Where the", Grill.__doc__)

    @parameterized.parameters(
        ({"heat": 0}, r"`heat` argument of `Oven` must be in \(0, 250\]. Received: heat=0"),
        ({"heat": math.nan}, "Received: heat=nan"),
        ({"heat": "hot"}, r"must be a number, in \(0, 250\]. Received: heat=hot"),
        ({"heat": True}, "must be a number"),
        ({"heat": None}, "must be a number"),
        ({"minutes": 0}, r"must be at least 1 and below 2\*\*31. Received: minutes=0"),
        ({"minutes": 2**31}, r"below 2\*\*31"),
        ({"minutes": 1.5}, "must be an integer, at least 1"),
        ({"mode": "boil"}, "must be one of fan, grill. Received: mode=boil"),
        ({"is_steamed": 1}, "must be True or False. Received: is_steamed=1"),
    )
    def test_values_out_of_range(self, given, message):
        with self.assertRaisesRegex(ValueError, message):
            Oven("rye", **given)

    def test_values_that_contradict_one_another(self):
        message = "`rest` argument of `Grill` must be at most heat=0.25. Received: rest=0.5"
        with self.assertRaisesRegex(ValueError, message):
            Grill("rye", heat=0.25)

    def test_an_unknown_name_is_a_type_error_with_the_nearest_one(self):
        with self.assertRaisesRegex(TypeError, "Oven has no argument 'heet'. Did you mean 'heat'?"):
            Oven("rye", heet=1)

    def test_bad_values_for_tests_are_bad(self):
        for name, argument in Grill.arguments().items():
            for value in argument.invalid:
                with self.assertRaisesRegex(ValueError, f"`{name}` argument of `Grill`"):
                    Grill("rye", **{name: value})


if __name__ == "__main__":
    absltest.main()
