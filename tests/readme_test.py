# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows is true: examples run, commands parse, names and links exist."""

import ast
import contextlib
import csv
import dataclasses
import glob
import importlib.util
import inspect
import io
import os
import pathlib
import re
import shlex
import textwrap
import tomllib
from unittest import mock

import keras
import numpy as np
import toy
from absl import flags
from absl.testing import absltest, parameterized
from keras import ops

import ssl_noisy
from ssl_noisy import __main__ as listing
from ssl_noisy import (
    benchmark,
    choose,
    command,
    features,
    methods,
    networks,
    predict,
    probe,
    recipes,
    report,
    run_flags,
    score,
    submit,
    sweep,
)
from ssl_noisy.arguments import fraction
from ssl_noisy.augment import views as augment_views
from ssl_noisy.data import feature_file, label_noise, sources
from ssl_noisy.labels import detection, mixture, mixture_model
from ssl_noisy.runs import labeling, run

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in FILES}


def fenced(text, language):
    """Returns the code blocks of `text` in `language`."""
    return [textwrap.dedent(code) for code in re.findall(rf"```{language}\n(.*?)```", text, re.S)]


def examples_in_docstrings():
    """Returns the Python examples in docstrings, by `module.function` or `module.Class`."""
    found = {}
    for path in sorted((ROOT / "ssl_noisy").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
                for code in fenced(ast.get_docstring(node) or "", "python"):
                    found[f"{path.stem}.{getattr(node, 'name', '')}"] = code
    return found


EXAMPLES = {name: fenced(text, "python") for name, text in PAGES.items()}
DOCSTRINGS = examples_in_docstrings()


def shortened(example, *replacements):
    """Returns `example` with each `(long, short)` replaced; every `long` must be there."""
    for long, short in replacements:
        if long not in example:
            raise AssertionError(f"{long!r} is not in the example:\n{example}")
        example = example.replace(long, short)
    return example


class ExampleCase(parameterized.TestCase):
    """Base of the tests that run examples, each in an empty folder."""

    def setUp(self):
        super().setUp()
        self.folder, before = self.create_tempdir().full_path, os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.folder)

    def settings(self, *arguments):
        values = flags.FlagValues()
        run_flags.define_flags(values)
        return command.parse_settings(["train", *arguments], values)


class PythonTest(ExampleCase):
    def test_every_example_is_run_by_a_test(self):
        counts = {name: len(examples) for name, examples in EXAMPLES.items() if examples}
        run_below = {
            "README.md": 2,
            "CONTRIBUTING.md": 3,
            "docs/choosing_labels.md": 1,
            "docs/getting_started.md": 1,
            "docs/networks.md": 1,
            "docs/own_loop.md": 5,
            "docs/wrong_labels.md": 2,
            "docs/your_data.md": 1,
        }
        self.assertEqual(counts, run_below)
        run_below = {
            "arguments.",
            "aum.AUMCalculator",
            "layers.CTAugment",
            "learner.Learner",
            "mixture_model.BetaMixtureModel",
            "recorder.Recorder",
            "run.run",
        }
        self.assertEqual(set(DOCSTRINGS), run_below)

    @parameterized.parameters("build", *toy.USERS_NETWORKS)
    def test_training(self, kind):
        example = EXAMPLES["README.md"][0]
        if kind != "build":
            example, count = re.subn("ssl_noisy.networks.build.*", "users_network", example)
            self.assertEqual(count, 1)
            self.enter_context(mock.patch.object(augment_views, "rand_augment", toy.noise))
        example = shortened(
            example,
            *([("wrn_28_2", "small_cnn")] if kind == "build" else []),
            ("network, task, ", "network, task, batch_size=2, "),
            ("steps_per_epoch=1024, epochs=10", "steps_per_epoch=2"),
        )
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, 32, 32, 3), "uint8")
        labels = np.arange(40) % 10
        names = {
            "users_network": None if kind == "build" else toy.users_network(kind, (32, 32, 3)),
            "images": images,
            "given_labels": np.where(np.arange(40) < 20, labels, -1),
            "test_images": images,
            "test_labels": labels,
        }
        exec(example, names)
        use = EXAMPLES["docs/getting_started.md"][0]
        used = {"images": images}
        exec(shortened(use, ("runs/a/model.keras", "model.keras")), used)
        self.assertEqual(used["probs"].shape, (40, 10))
        model = used["model"]
        backbones = [x for x in model.layers if isinstance(x, keras.Model)]
        for layer in [*model.layers, *(x for backbone in backbones for x in backbone.layers)]:
            self.assertStartsWith(type(layer).__module__, "keras.")

    def test_features_from_elsewhere(self):
        exec(EXAMPLES["docs/choosing_labels.md"][0], {})
        found = feature_file.read("digits.npz").training(sources.load("digits"))
        self.assertEqual(found.shape, (1297, 64))

    def test_arrays(self):
        images, labels = toy.digits()
        names = {"train_images": images[:80], "train_labels": labels[:80]}
        exec(
            EXAMPLES["docs/your_data.md"][0],
            {**names, "test_images": images[80:], "test_labels": labels[80:]},
        )
        loaded = labeling.load_dataset(self.settings("--dataset=npz:photos.npz"))
        np.testing.assert_array_equal(loaded.images, images[:80])
        np.testing.assert_array_equal(loaded.test_labels, labels[80:])

    def test_a_network_of_a_function(self):
        with open("nets.py", "w") as file:
            file.write(EXAMPLES["docs/networks.md"][0])
        made = networks.build("nets.py:small", (8, 8, 1), 10)
        self.assertEqual(made.count_params(), 10 * 32 + 33 * 10)

    def test_a_training_loop_of_ones_own(self):
        rng = np.random.default_rng(0)
        names = {
            "ssl_noisy": ssl_noisy,
            "images": np.zeros((50, 8, 8, 1), "uint8"),
            "logits": np.eye(50, 10),
            "given_labels": np.arange(50) % 10,
            "indices": np.arange(50),
            "losses_scaled_to_0_1": rng.uniform(size=50),
        }
        exec(EXAMPLES["docs/wrong_labels.md"][1], names)
        self.assertEqual(names["areas"].values[:11].tolist(), [1.0] * 10 + [0.0])
        self.assertEqual(names["mixture"].predict_proba(rng.uniform(size=7)).shape, (7, 2))

    def test_your_own_fit(self):
        """The page on your own loop, from the network to the files of other tools."""
        import tensorflow as tf

        rng = np.random.default_rng(0)
        images, labels = rng.normal(size=(40, 4)).astype("float32"), np.arange(40) % 10
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)])
        shown = []
        names = {"ssl_noisy": ssl_noisy, "keras": keras, "np": np, "print": shown.append}
        names |= {"network": network, "images": images, "given_labels": labels}
        names |= {"dataset": tf.data.Dataset.from_tensor_slices((images, labels))}
        names |= {"files": [f"{i}.jpg" for i in range(40)], "class_names": list("abcdefghij")}
        record, pipeline, layers, cleanlab, others = EXAMPLES["docs/own_loop.md"]
        self.assertEqual(EXAMPLES["README.md"][1], record)
        self.assertLess(record.count("\n"), 6)
        exec(shortened(record, ("epochs=20", "epochs=5, verbose=0")), names)
        examples = detection.read_examples("examples.csv")
        self.assertEqual(examples["observations"].tolist(), [5] * 40)
        exec(shortened(pipeline, ("epochs=20", "epochs=2, verbose=0")), names)
        self.assertEqual(names["recorder"].record()["observations"].tolist(), [7] * 40)
        self.assertEqual(
            names["review"].tolist(), np.flatnonzero(names["decision"].is_issue).tolist()
        )
        exec(cleanlab, names)
        self.assertEqual(
            shown[0]["is_training_record_issue"].sum(), examples["is_label_issue"].sum()
        )
        self.assertIn("is_label_issue", names["lab"].get_issues("label"))
        exec(others, names)
        self.assertIn('<Choice value="j"/>', shown[1])
        self.assertEqual(set(os.listdir()), {"examples.csv", "labels.json", "tasks.json"})
        names["network"] = keras.layers.Flatten()
        exec(layers, names)
        self.assertEqual(names["augmented"].output_shape, (None, 3072))

    def test_a_new_method_is_one_file(self):
        example = EXAMPLES["CONTRIBUTING.md"][0]
        with open("pi_model.py", "w") as file:
            file.write(example)
        methods.__path__.append(self.folder)
        self.addCleanup(methods.__path__.remove, self.folder)
        made = self.settings(
            *("--method=pi_model", "--num_labels=20", "--network=small_cnn", "--noplots"),
            *("--batch_size=8", "--steps=4", "--ramp_end=0.5", "--run_dir=run"),
        )
        result = run.run(made, stream=io.StringIO())
        self.assertEqual(result["method"], "pi_model")
        self.assertGreater(result["last_epoch"]["unsupervised_loss"], 0)
        self.assertIn("Laine and Aila, https://arxiv.org/abs/1610.02242", listing.listing())
        self.assertLess(example.count("\n"), 41)

        shown = []  # the worst labels of that run, as the page on wrong labels prints them
        worst = shortened(EXAMPLES["docs/wrong_labels.md"][0], ("runs/b", "run"))
        exec(worst, {"print": lambda *values: shown.append(values)})
        with open("run/examples.csv") as file:
            qualities = sorted(float(row["label_quality"]) for row in csv.DictReader(file))
        self.assertEqual([float(row[-1]) for row in shown], qualities[:10])

    def test_a_new_data_source_is_one_entry(self):
        self.enter_context(mock.patch.dict(sources.SOURCES))
        exec(EXAMPLES["CONTRIBUTING.md"][1], dict(vars(sources)))
        dataset = labeling.load_dataset(self.settings("--dataset=stripes:3", "--num_labels=20"))
        self.assertEqual((len(dataset.images), len(dataset.test_images)), (200, 50))
        for image, label in zip(dataset.images[..., 0], dataset.labels):
            self.assertEqual(np.ptp(image, axis=1 - label).max(), 0, dataset.class_names[label])

    def test_a_new_kind_of_noise_is_one_entry(self):
        self.enter_context(mock.patch.dict(label_noise.KINDS))
        exec(EXAMPLES["CONTRIBUTING.md"][2], dict(vars(label_noise)))
        made = self.settings("--noise=opposite:0.5")
        dataset = labeling.load_dataset(made)
        given = labeling.choose(made, dataset).given
        wrong = given != dataset.labels
        self.assertEqual(wrong.sum(), len(given) // 2)
        np.testing.assert_array_equal(given[wrong], 9 - dataset.labels[wrong])


class DocstringTest(ExampleCase):
    def test_learner(self):
        self.enter_context(mock.patch.object(augment_views, "rand_augment", toy.noise))
        task, _ = toy.task()
        names = {"task": task, "network": toy.network(), "networks": networks, "keras": keras}
        example = shortened(
            DOCSTRINGS["learner.Learner"],
            ("network, task", "network, task, batch_size=4, unlabeled_ratio=2, ema_momentum=0.0"),
            ("steps_per_epoch=1024, epochs=10", "steps_per_epoch=2"),
        )
        exec(example, {**names, "FixMatch": ssl_noisy.FixMatch})
        model = keras.models.load_model("model.keras")
        self.assertEqual(model.predict(task.test_images, verbose=0).shape, (120, 10))

    def test_run(self):
        made = self.settings(
            *("--method=supervised", "--num_labels=20", "--network=small_cnn", "--noplots"),
            *("--batch_size=8", "--steps=2", "--steps_per_epoch=2"),
        )
        results = []
        names = {"settings": made, "labeling": labeling, "dataclasses": dataclasses}
        names["run"] = lambda *args, **kwargs: results.append(
            run.run(*args, stream=io.StringIO(), **kwargs)
        )
        exec(shortened(DOCSTRINGS["run.run"], ("range(5)", "range(2)")), names)
        self.assertEqual([result["seed"] for result in results], [0, 1])

    def test_aum(self):
        labels = np.array([0, 1, 1])
        names = {
            "ssl_noisy": ssl_noisy,
            "np": np,
            "images": np.float32([[4, 0], [3, 1], [0, 2]]),
            "network": lambda images, training: images,
            "given_labels": labels,
            "batches": [np.array([0, 1]), np.array([2])],
        }
        exec(DOCSTRINGS["aum.AUMCalculator"], names)
        self.assertEqual(names["aum"].values.tolist(), [4.0, -2.0, 2.0])
        self.assertEqual(names["suspicious"].tolist(), [1, 2, 0])

    def test_recorder(self):
        names = {"ssl_noisy": ssl_noisy, "keras": keras, "images": np.eye(20, dtype="float32")}
        names["network"] = keras.Sequential([keras.Input((20,)), keras.layers.Dense(10)])
        names["given_labels"] = np.arange(20) % 10
        example = DOCSTRINGS["recorder.Recorder"]
        exec(shortened(example, ("epochs=20", "epochs=2, verbose=0")), names)
        self.assertLen(detection.read_examples("examples.csv")["index"], 20)

    def test_ctaugment_layer(self):
        images = np.zeros((2, 8, 8, 3), "uint8")
        names = {"ssl_noisy": ssl_noisy, "softmax": ops.softmax, "labels": np.array([0, 1])}
        names |= {"labeled_images": images, "unlabeled_images": images}
        names["network"] = lambda images: np.zeros((2, 4), "float32")
        exec(DOCSTRINGS["layers.CTAugment"], names)
        self.assertEqual(names["strong_views"].shape, (2, 8, 8, 3))

    def test_declared_arguments(self):
        names = {"Learner": ssl_noisy.Learner, "fraction": fraction}
        exec(DOCSTRINGS["arguments."], names)
        parameters = inspect.signature(names["MyMethod"]).parameters
        self.assertEqual(parameters["confidence_threshold"].default, 0.95)
        self.assertEqual(parameters["batch_size"].default, 32)

    def test_beta_mixture(self):
        rng = np.random.default_rng(0)
        losses = np.concatenate([rng.gamma(2, 0.1, 300), 2 + rng.gamma(2, 0.2, 100)])
        names = {"losses": losses, "mixture": mixture, "mixture_model": mixture_model}
        exec(DOCSTRINGS["mixture_model.BetaMixtureModel"], names)
        noisy = names["probability_of_noise"] > 0.5
        self.assertGreater(np.mean(noisy == (losses > 2)), 0.95)


# The commands that take no recipe, and what a request of each must have.
NOT_A_RUN = {
    "ssl_noisy.choose": (choose, "budget"),
    "ssl_noisy.features": (features, "output"),
    "ssl_noisy.predict": (predict, "model"),
    "ssl_noisy.probe": (probe, "by"),
    "ssl_noisy.report": (report, "places"),
    "ssl_noisy.score": (score, "entry_dirs"),
}


def commands():
    """Yields `(page, command, arguments)` of each shell line that runs a command of the kit."""
    for page, text in PAGES.items():
        for line in "\n".join(fenced(text, "sh")).splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                names = [word for word in words if re.fullmatch(r"ssl_noisy(\.\w+)?", word)]
                if names:
                    yield page, names[0], words[words.index(names[0]) + 1 :]


class ShellTest(ExampleCase):
    def test_commands_parse(self):
        os.mkdir("photos")
        count = 0
        for page, name, arguments in commands():
            if "--help" in arguments:
                continue
            if name == "ssl_noisy":
                with contextlib.redirect_stdout(io.StringIO()):
                    self.assertEqual(listing.main(arguments), 0, page)
                continue
            if name in NOT_A_RUN:
                values, (module, place) = flags.FlagValues(), NOT_A_RUN[name]
                module.define_flags(values)
                (made,) = self.filled_in(arguments)
                request = module.read_flags([name, *made], values)
                self.assertTrue(getattr(request, place), page)
                continue
            for made in self.filled_in(arguments):
                with self.subTest(page=page, arguments=made):
                    values = flags.FlagValues()
                    if name == "ssl_noisy.submit":
                        submit.define_flags(values)
                        self.assertNotEmpty(submit.read_flags([name, *made], values).regimes, page)
                        count += 1
                        continue
                    if name == "ssl_noisy.sweep":
                        sweep.define_flags(values)
                        self.assertNotEmpty(sweep.read_flags([name, *made], values).runs, page)
                        count += 1
                        continue
                    if name == "ssl_noisy.benchmark":
                        benchmark.define_flags(values)
                        self.assertGreater(benchmark.read_flags([name, *made], values).pairs, 0)
                        count += 1
                        continue
                    run_flags.define_flags(values)
                    command.parse_settings([name, *made], values)
                    count += 1
        self.assertGreater(count, 20)

    def filled_in(self, arguments):
        """Returns `arguments` for each recipe that METHOD stands for, with paths from here."""
        text = "\n".join(arguments).replace("=SEED", "=1")
        recipe = re.search("=flags/(.*)", text)
        if not recipe:
            return [text.split("\n") if text else []]
        names = glob.glob(recipe[1].replace("METHOD", "*"), root_dir=recipes.folder())
        self.assertNotEmpty(names, recipe[1])
        paths = [str(recipes.folder() / name) for name in names]
        return [text.replace(recipe[0], f"={path}").split("\n") for path in paths]


class NamesTest(absltest.TestCase):
    def test_flags_exist(self):
        known = {"flagfile", "help", "recipes", "logdir", "no-deps"}
        # The flags of `benchmark` are those of a run, and its own.
        for module in (benchmark, sweep, submit, *(module for module, _ in NOT_A_RUN.values())):
            module.define_flags(values := flags.FlagValues())
            known |= {*values, *(f"no{name}" for name in values)}
        for page, text in PAGES.items():
            if page != "CONTRIBUTING.md":  # it names flags of other programs
                # So do commands of Ray, and scripts before they call ours.
                text = re.sub("`ray [^`]*`", "", text)
                text = re.sub(
                    "```(?:bash|yaml)\n(.*?)```",
                    lambda match: match[1].partition("-m ssl_noisy.")[2],
                    text,
                    flags=re.DOTALL,
                )
                for name in re.findall(r"(?<![\w-])--([\w-]+\w)", text):
                    self.assertIn(name, known, page)

    def test_recipes_exist(self):
        names = {path.stem for path in recipes.paths()}
        for page, text in PAGES.items():
            for name in re.findall(r"`(\w+_(?:digits|cifar\d+n?)_\w+)`", text):
                self.assertIn(name, names, page)
            for name in re.findall(r"flags/([a-z]\w*)\.cfg", text):
                self.assertIn(name, names, page)

    def test_files_and_links_exist(self):
        for page, text in PAGES.items():
            pattern = r"`((?:ssl_noisy|tests|results|benchmarks|docs|flags)/[\w./]*)`"
            for name in re.findall(pattern, text):
                self.assertTrue((ROOT / name).exists(), f"{page}: {name}")
            for name in re.findall(r"\]\(((?!http|#)[^)#]+)", text):
                self.assertTrue((ROOT / page).parent.joinpath(name).exists(), f"{page}: {name}")

    def test_methods_are_those_of_the_folder(self):
        for page in ("README.md", "docs/methods.md"):
            table = PAGES[page][PAGES[page].index("| `--method` |") :]
            for name in methods.names():
                self.assertIn(f"\n| `{name}` | ", table, page)

    def test_tables_have_the_figures_of_the_results(self):
        spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/tables.py")
        tables = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tables)
        for page in tables.PAGES:
            self.assertIn("<!-- table ", PAGES[page])
            self.assertEqual(tables.updated(PAGES[page]), PAGES[page], "run docs/tables.py")

    def test_a_wheel_has_every_package(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("ssl_noisy/**/__init__.py")}
        names = {".".join(folder.parts) for folder in folders} | {"ssl_noisy.flags"}
        self.assertEqual(set(project["tool"]["setuptools"]["packages"]), names)

    def test_nothing_is_left_to_fill_in(self):
        for page, text in PAGES.items():
            self.assertNotIn("@@", text, page)


if __name__ == "__main__":
    absltest.main()
