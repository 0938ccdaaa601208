# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, read off the syntax trees: who may import whom, and what tests run."""

import ast
import pathlib

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ssl_noisy"

# A module may import those of lower floors only (and those of the first, anything may).
FLOORS = [
    {"errors"},
    {"cost"},
    {"files", "quiet", "schedules", "signals", "contract"},
    {"losses", "networks", "optimizers", "datasets", "augment", "mixture"},
    {"task", "label_budget", "batches", "checkpoint", "ctaugment", "cifar_n", "record", "aum"}
    | {"label_issues"},
    {"learner", "evaluation", "label_noise", "detection"},
    {"semi_supervised", "robust"},
    {"methods"},
    {"settings", "progress", "plots", "recipes"},
    {"folder", "label_report"},
    {"run"},
    {"command"},
    {"train", "benchmark", "__main__"},
]


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def imports(tree):
    """Yields `(name, is_at_top)` of every imported module."""
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) in top


def floor(room):
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


class ImportsTest(absltest.TestCase):
    def test_every_room_has_a_floor(self):
        rooms = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"} | {"methods"}
        self.assertEqual(rooms, set().union(*FLOORS))
        self.assertNotIn("utils", rooms)

    def test_imports_go_downwards(self):
        checked = 0
        for path, tree in modules():
            room = path.stem if path.parent == PACKAGE else "methods"
            if path.name == "__init__.py" and path.parent == PACKAGE:
                continue
            for name, _ in imports(tree):
                parts = name.split(".")
                if parts[0] == "ssl_noisy" and len(parts) > 1 and parts[1] in set().union(*FLOORS):
                    checked += 1
                    self.assertLess(floor(parts[1]), floor(room), f"{path}: {name}")
        self.assertGreater(checked, 30)

    def test_imports_are_absolute(self):
        for path, tree in modules():
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    self.assertEqual(node.level, 0, str(path))

    def test_a_method_imports_no_other_method(self):
        for path, tree in modules():
            if path.parent.name == "methods" and path.name != "__init__.py":
                for name, _ in imports(tree):
                    self.assertFalse(name.startswith("ssl_noisy.methods"), f"{path}: {name}")

    def test_tensorflow_and_tfds_are_loaded_lazily_and_in_their_rooms(self):
        for path, tree in modules():
            for name, is_at_top in imports(tree):
                library = name.split(".")[0]
                if library in ("tensorflow", "tensorflow_datasets", "jax"):
                    self.assertIn(path.stem, ("datasets", "networks", "benchmark"), name)
                    self.assertFalse(is_at_top, f"{path}: {name}")

    def test_flags_are_read_in_settings_and_commands_alone(self):
        allowed = {"settings", *FLOORS[-1], *FLOORS[-2]}
        for path, tree in modules():
            for name, _ in imports(tree):
                if name in ("absl.flags", "absl.app"):
                    self.assertIn(path.stem, allowed, name)

    def test_no_pickle_and_no_assert(self):
        for path, tree in modules():
            for name, _ in imports(tree):
                if path.stem != "cifar_n":  # a reader of published pickles that runs nothing
                    library = name.split(".")[0]
                    self.assertNotIn(library, ("pickle", "dill", "cloudpickle"), str(path))
            for node in ast.walk(tree):
                self.assertNotIsInstance(node, ast.Assert, f"{path}:{getattr(node, 'lineno', 0)}")

    def test_no_function_is_longer_than_sixty_lines(self):
        for path, tree in modules():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    doc = (ast.get_docstring(node) or "").count("\n") + 3
                    self.assertLess(node.end_lineno - node.lineno - doc, 60, (path, node.name))


class TestsTest(absltest.TestCase):
    def test_each_test_file_runs_its_tests(self):
        """Bazel reports a test file that never calls its runner as passed."""
        paths = sorted((ROOT / "tests").glob("*_test.py"))
        self.assertGreater(len(paths), 10)
        for path in paths:
            last = ast.parse(path.read_text()).body[-1]
            self.assertEqual(
                ast.unparse(last),
                "if __name__ == '__main__':\n    absltest.main()",
                f"{path} must end in its runner",
            )

    def test_no_test_is_skipped(self):
        for path in (ROOT / "tests").glob("*_test.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    self.assertNotIn(node.attr, ("skip", "skipIf", "skipTest", "skipif"), str(path))


if __name__ == "__main__":
    absltest.main()
