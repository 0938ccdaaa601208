# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, read off the syntax trees: who may import whom, and what tests run."""

import ast
import pathlib
import sys

from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ssl_noisy"

# A module may import those of lower floors only (and those of the first, anything may).
FLOORS = [
    {"cache", "errors", "imports", "streams", "probes.held_out", "probes.consensus"},
    {"devices"},
    {"arguments", "contract", "machine", "data.rows"},
    {"work"},
    {"files", "matching", "schedules", "runs.signals", "runs.clock"},
    {"runs.trackers"},
    {"networks.batch_norm"},
    {
        "losses",
        "networks.layers",
        "networks.freezing",
        "networks.stages",
        "networks.normalization",
        "optimizers",
        "data.dataset",
        "labels.mixture",
        "labels.separation",
        "challenge",
    }
    | {"augment.operations", "augment.interpolation", "augment.slots", "augment.cached"},
    {
        "augment.policies",
        "augment.autoaugment",
        "networks.blocks",
        "networks.body",
        "labels.mixture_model",
        "data.feature_file",
    },
    {"augment.views", "networks.cnn", "networks.heads", "networks.resnet"}
    | {"networks.wide_resnet", "networks.applications", "networks.own", "networks.hub"}
    | {"probes.neighbors", "probes.linear_separation"},
    {
        "augment",
        "networks",
        "data.label_budget",
        "selection.neighbors",
        "probes.ni_erm",
        "probes.label_propagation",
        "data.noise_models",
        "data.tfds_source",
    }
    | {"data.pictures"},
    {"data.decoded", "selection.rules", "probes.detectors"},
    {"data.picture_files"},
    {"data.hugging_face", "data.corrections"},
    {"augment.ctaugment", "data.task", "data.noise_file", "data.sources", "data.cifar_n", "batches"}
    | {"labels.record", "labels.aum", "labels.issues", "runs.checkpoint"},
    {
        "augment.layers",
        "data.label_noise",
        "labels.detection",
        "moving_average",
        "weak_views",
        "example_record",
        "recorded_model",
        "residence",
    },
    {"learner", "recorder", "truths", "leaks", "strong_views", "auxiliary_heads", "view_maker"},
    {
        "semi_supervised",
        "clustering",
        "self_supervised",
        "robust",
        "labels.export",
        "entry",
        "reports.leaderboard",
    },
    {"methods"},
    {"runs.calibration", "runs.representation", "runs.cost", "model_file", "conflicts"},
    {"settings", "recipes", "runs.evaluation", "runs.progress", "runs.plots"},
    {"runs.folder", "run_flags", "side_by_side"},
    {"runs.labeling", "runs.metrics", "runs.label_report", "runs.image_statistics"},
    {"runs.frozen"},
    {"runs.training", "runs.session"},
    {"runs.removal", "runs.processes", "runs.probing", "runs.rounds"},
    {"runs.run"},
    {"sweeps.plan", "sweeps.worker", "sweeps.folder", "sweeps.display"}
    | {"sweeps.hparams", "sweeps.plots", "sweeps.copies"},
    {"sweeps.local", "sweeps.tables"},
    {"sweeps.summary", "sweeps.published", "sweeps.estimate", "sweeps.tune", "sweeps.cluster"},
    {"sweeps.report", "sweeps.study"},
    {"sweeps.conduct"},
    {"sweeps.trials"},
    {"reports.collect", "reports.charts", "reports.summary"},
    {"reports.review"},
    {"reports.page"},
    {"submission.rules"},
    {"submission.isolation", "submission.clock", "submission.results", "submission.texts"},
    {"submission.entry_folder"},
    {"command", "pool_flags"},
    {"train", "sweep", "submit", "score", "predict", "features", "choose", "probe", "report"}
    | {"benchmark", "__main__"},
]
ROOMS = set().union(*FLOORS)


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


def room(path):
    """The module of a file, without the package's name; all methods are one room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == "methods":
        return "methods"
    return ".".join(part for part in parts if part != "__init__")


def floor(name):
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def imported_room(name):
    """The room of an imported name, or None if it is not of this package."""
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        if name.startswith("ssl_noisy.") and ".".join(parts[:end]) in ROOMS:
            return ".".join(parts[:end])
    return None


class ImportsTest(absltest.TestCase):
    def test_every_room_has_a_floor(self):
        rooms = {room(path) for path in PACKAGE.rglob("*.py")} - {
            "",
            "data",
            "labels",
            "probes",
            "reports",
            "runs",
            "selection",
            "sweeps",
            "submission",
        }
        self.assertEqual(rooms, ROOMS)
        self.assertNotIn("utils", rooms)

    def test_imports_go_downwards(self):
        checked = 0
        for path, tree in modules():
            here = room(path)
            for name, _ in imports(tree) if here else ():
                there = imported_room(name)
                if there is not None:
                    checked += 1
                    self.assertLess(floor(there), floor(here), f"{path}: {name}")
        self.assertGreater(checked, 30)

    def test_no_command_hides_a_module_of_python(self):
        """The folder of a script is first on Python's path: select.py would hide `select`."""
        names = {path.stem for path in PACKAGE.glob("*.py")}
        self.assertEmpty(names & sys.stdlib_module_names)

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
                    rooms = ("batch_norm", "cache", "devices", "tfds_source", "work")
                    self.assertIn(path.stem, rooms, name)
                    self.assertFalse(is_at_top, f"{path}: {name}")

    def test_flags_are_read_in_settings_and_commands_alone(self):
        allowed = {"run_flags", *FLOORS[-1], *FLOORS[-2]}
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
