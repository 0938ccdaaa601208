# SPDX-License-Identifier: Apache-2.0
"""Entries to the challenge end to end: what runs may see, the clock, results and texts."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, parameterized
from commands import ROOT, ThisProcess, wait_for

from ssl_noisy import challenge, command, networks, pool_flags, recipes, score, submit
from ssl_noisy.data import dataset, sources, tfds_source
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder
from ssl_noisy.submission import clock, entry_folder, isolation, results, rules, texts

SMALL = (
    "--dataset=digits",
    "--method=supervised",
    "--noise=symmetric:0.4",
    "--train_split=train[:240]",
    "--validation_split=train[240:280]",
    "--network=small_cnn",
    "--batch_size=20",
    "--learning_rate=0.05",
    "--steps=120",
    "--steps_per_epoch=60",
    "--noplots",
    "--baseline_seconds=1000",
)


def request(*arguments):
    values = flags.FlagValues()
    submit.define_flags(values)
    return submit.read_flags(["submit", *map(str, arguments)], values)


def call(module, *arguments):
    """Runs a command in this process, without workers. Returns exit code, output and errors."""
    values, out, err = flags.FlagValues(), io.StringIO(), io.StringIO()
    module.define_flags(values)
    pool = lambda self, sweep_dir: (lambda parallel, lock: ThisProcess(), 1)  # noqa: E731
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(pool_flags.Workers, "pool", pool),
        mock.patch.object(isolation, "in_another_process", in_this_process),
    ):
        try:
            wanted = module.read_flags([module.__name__, *map(str, arguments)], values)
        except (flags.Error, UserError) as error:
            code = command.fail(module.__name__, error)
        else:
            code = command.execute(module.__name__, module.main, wanted)
    return code, out.getvalue(), err.getvalue().splitlines()


def in_this_process(content, path):
    """Stands in for the process that writes the file of a regime."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = isolation.main(content, path)
    return code, errors.getvalue()


def outputs(entry_dir):
    """Returns the bytes of the arrays of an entry, by their paths."""
    paths = sorted(pathlib.Path(entry_dir).glob("*/seed_*/*.npy"))
    return {str(path.relative_to(entry_dir)): path.read_bytes() for path in paths}


def multiply_adds(name):
    """Counts the multiply-adds of a network's convolutions and last layer, for a CIFAR image."""
    network, total = networks.build(name, (32, 32, 3), 10), 0
    for layer in network.layers:
        if isinstance(layer, keras.layers.Conv2D):
            total += math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, keras.layers.Dense):
            total += math.prod(layer.kernel.shape)
    return total


class EntryTest(absltest.TestCase):
    """One small entry of digits, made once."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.entry, cls.truth = cls.root / "mine", cls.root / "truth.npz"
        cls.arguments = (f"--entry_dir={cls.entry}", *SMALL, "--num_seeds=2")
        cls.answer = call(submit, *cls.arguments, f"--truth_file={cls.truth}")

    def test_the_entry_is_scored(self):
        code, out, errors = self.answer
        self.assertEqual((code, errors), (0, []))
        self.assertIn(f"--entry_dir={self.entry} --num_seeds=2 --truth={self.truth}", out)
        scores = self.root / "scores.json"
        code, _, errors = call(
            score, *re.findall(r"--\S+=\S+", out.splitlines()[-1]), f"--output={scores}"
        )
        self.assertEqual((code, errors), (0, []))
        found = json.loads(scores.read_text())["entries"]["mine"]["custom"]
        # Far better than chance: a tenth, and flagging every label.
        self.assertGreater(found["learning"]["accuracy"]["mean"], 0.4)
        self.assertGreater(found["detection"]["f1"]["mean"], 0.7)

    def test_arrays_are_those_of_the_model_and_the_record(self):
        place, run_dir = self.entry / "custom/seed_1", f"{self.entry}_work/custom/runs/seed-1"
        data = isolation.read(f"{self.entry}_work/data/custom.npz")
        truth = np.load(self.truth)
        train = sources.load("digits", train_split="train[:280]")
        np.testing.assert_array_equal(truth["true_labels"], train.labels)
        ids = np.sort(np.concatenate([data["ids_train"], data["ids_validation"]]))
        np.testing.assert_array_equal(ids, train.ids)
        flagged = np.load(place / "detection.npy")
        self.assertEqual((flagged.shape, flagged.dtype), ((280,), bool))
        logits, predictions = (np.load(place / f"{x}.npy") for x in ("test_logits", "predictions"))
        np.testing.assert_array_equal(predictions, logits.argmax(axis=-1))
        count = folder.read_result(run_dir)["label_quality"]["label_issues"]["count"]
        is_held_out = np.isin(ids, data["ids_validation"])
        self.assertEqual(flagged[~is_held_out].sum(), count)
        self.assertEqual(flagged[is_held_out].sum(), round(count / 240 * 40))
        wrong = truth["given_labels"] != truth["true_labels"]
        self.assertEqual(wrong.sum(), 0.4 * 240 + 0.4 * 40)
        timing = json.loads((place / "timing.json").read_text())
        self.assertEqual((timing["baseline_seconds"], timing["limit_seconds"]), (1000, 10_000))
        self.assertEqual(timing["seconds"], folder.read_timing(run_dir))

    def test_running_it_again_trains_nothing_and_keeps_every_file(self):
        before = {path: path.stat().st_mtime_ns for path in self.entry.glob("custom/*/*")}
        with mock.patch.object(results, "measure", side_effect=AssertionError):
            self.assertEqual(call(submit, *self.arguments)[0], 0)
        after = {path: path.stat().st_mtime_ns for path in self.entry.glob("custom/*/*")}
        self.assertEqual(before, after)
        self.assertLen(before, 10)

    def test_another_recipe_is_refused(self):
        code, _, errors = call(submit, *self.arguments, "--learning_rate=0.1")
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertIn("--learning_rate=0.05 there, --learning_rate=0.1 here", errors[0])

    def test_an_edited_report_stays(self):
        report = self.entry / "REPORT.md"
        text = report.read_text()
        self.addCleanup(report.write_text, text)
        report.write_text(text + "Our idea.\n")
        code, out, _ = call(submit, *self.arguments)
        self.assertEqual(code, 0)
        self.assertIn("REPORT.md was edited and stays as it is", out)
        self.assertTrue(report.read_text().endswith("Our idea.\n"))

    def test_texts(self):
        run = (self.entry / "run.sh").read_text()
        self.assertIn('--flagfile="$here/recipe_custom.cfg"', run)
        recipe = request(
            f"--flagfile={self.entry}/recipe_custom.cfg", "--entry_dir=x", "--baseline_seconds=1"
        )
        original = request(*self.arguments)
        for one, other in zip(recipe.regimes.values(), original.regimes.values()):
            plots = dataclasses.replace(one, plots=False)
            self.assertEqual(plots.flag_lines(), other.flag_lines())
        needed = (self.entry / "requirements.txt").read_text().splitlines()
        self.assertIn(f"numpy=={np.__version__}", needed)
        backend = keras.backend.backend()
        self.assertTrue(any(line.startswith(f"{backend}==") for line in needed), needed)
        self.assertIn(f'KERAS_BACKEND="${{KERAS_BACKEND:-{backend}}}"', run)
        latex = (self.entry / "report.tex").read_text()
        self.assertIn(r"\section{Detection}", latex)
        self.assertEqual(latex.count(r"\begin"), latex.count(r"\end"))
        for name in ("validation.png", "validation.pdf"):
            self.assertTrue((self.entry / "figures" / name).exists())
        self.assertIn("| custom | 1, 2 |", (self.entry / "REPORT.md").read_text())

    def test_a_mistake_in_the_data_leaves_nothing_behind(self):
        entry = self.root / "never"
        absent = f"--noise=file:{self.root}/absent.npz"
        code, _, errors = call(submit, f"--entry_dir={entry}", *SMALL, absent)
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertIn("absent.npz", errors[0])
        self.assertEmpty(list(self.root.glob("never*")))

    def test_the_report_names_the_method_and_what_removes_labels(self):
        sentence = functools.partial(entry_folder.sentence, "fixmatch", "wide_lenet")
        fixmatch = "fixmatch (Sohn et al., 2020, https://arxiv.org/abs/2001.07685)"
        text = f"{fixmatch} with the network wide_lenet, from random weights."
        self.assertEqual(sentence(None), text)
        aum = "aum (Pleiss et al., 2020, https://arxiv.org/abs/2001.10528)"
        text += f" First, {aum} removes labels, after two trainings of its own."
        self.assertEqual(sentence("aum"), text)

    def test_fewer_seeds_than_before_are_refused(self):
        code, _, errors = call(submit, *self.arguments[:-1], "--seeds=2")
        self.assertEqual(code, 2)
        self.assertIn("has the run seed-1, which these flags leave out", errors[0])
        self.assertIn("another --work_dir", errors[0])

    @pytest.mark.slow
    def test_run_sh_reproduces_a_seed(self):
        place = self.create_tempdir().full_path
        more = ("--baseline_seconds=1000", "--noplots", "--max_parallel=1")
        done = subprocess.run(
            ["sh", str(self.entry / "run.sh"), "2", *more], env=environment(), cwd=place
        )
        self.assertEqual(done.returncode, 0)
        found, expected = outputs(f"{place}/entry_seed_2"), outputs(self.entry)
        self.assertLen(found, 3)
        self.assertEqual(found, {name: expected[name] for name in found})

    @pytest.mark.slow
    def test_a_killed_command_resumes_to_the_same_entry(self):
        entry = pathlib.Path(self.create_tempdir().full_path, "mine")
        arguments = (*SMALL, "--num_seeds=2", "--checkpoint_seconds=0", "--max_parallel=2")
        arguments = (*arguments, f"--entry_dir={entry}")
        program = [sys.executable, "-m", "ssl_noisy.submit", *arguments]
        checkpoint = f"{entry}_work/custom/runs/seed-1/checkpoint.npz"
        for condition in (f"{entry}_work/data/custom.npz", checkpoint):
            process = subprocess.Popen(program, env=environment(), stdout=subprocess.DEVNULL)
            wait_for(process, lambda: os.path.exists(condition))  # noqa: B023
            process.kill()
            process.wait()
        self.assertFalse((entry / "custom").exists())
        self.assertEqual(subprocess.run(program, env=environment()).returncode, 0)
        self.assertEqual(outputs(entry), outputs(self.entry))


def environment(**more):
    """Returns the environment of a process that runs a command."""
    found = {**os.environ, "PYTHONPATH": ROOT, "PYTHON": sys.executable, **more}
    return {name: value for name, value in found.items() if name != "TFDS_DATA_DIR"}


class HeldOutTest(parameterized.TestCase):
    def test_by_hand(self):
        probs = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.2, 0.2, 0.6]])
        given = np.array([0, 2, 2, 2])  # margins 0.3, -0.7, -0.1, 0.4
        for fraction, expected in ((0, ()), (0.25, (1,)), (0.5, (1, 2)), (1, (0, 1, 2, 3))):
            flagged = results.held_out(np.log(probs), given, fraction)
            np.testing.assert_array_equal(np.flatnonzero(flagged), expected)


class RulesTest(parameterized.TestCase):
    @parameterized.parameters(
        (None, ("custom",)),
        ("worst", ("worst",)),
        ("rand3,clean", ("rand3", "clean")),
        ("all", ("aggre", "rand1", "worst")),
        ("all100", ("noisy100",)),
        ("clean100,all100", ("clean100", "noisy100")),
    )
    def test_regimes(self, text, names):
        self.assertEqual(rules.regimes(text), names)

    def test_runs_of_all_regimes_differ_in_free_flags_alone(self):
        found = request("--noise_type=all,clean", "--entry_dir=x", "--baseline_seconds=7")
        self.assertEqual(list(found.regimes), ["aggre", "rand1", "worst", "clean"])
        self.assertEqual(found.seeds, (1, 2, 3, 4, 5))
        written = [rules.written(settings, 70) for settings in found.regimes.values()]
        for one in written:
            keys = one.keys() | written[0].keys()
            differ = {key for key in keys if one.get(key) != written[0].get(key)}
            self.assertLessEqual(differ, set(challenge.FREE_FLAGS))
        # The default recipe is that of the winner, shortened.
        worst = found.regimes["worst"]
        self.assertEqual((worst.method, worst.network), ("promix", "resnet_18"))
        self.assertEqual((worst.dataset, worst.noise), ("cifar10", "cifarn:worse_label"))
        trained = rules.training(dataclasses.replace(worst, seed=3), "/data/worst.npz", 70.0)
        self.assertEqual((trained.dataset, trained.test_split), ("npz:/data/worst.npz", "none"))
        self.assertIsNone(trained.noise)
        self.assertTrue(trained.keep_best)
        self.assertEqual(trained.max_seconds, 70)

    def test_a_method_has_its_own_defaults_not_those_of_the_default_recipe(self):
        found = request(
            "--noise_type=worst", "--method=elr", "--entry_dir=x", "--baseline_seconds=7"
        )
        worst = found.regimes["worst"].resolved()
        self.assertEqual((worst.method, worst.steps), ("elr", 58_650))
        self.assertEqual((worst.dataset, worst.noise), ("cifar10", "cifarn:worse_label"))

    def test_the_regime_replaces_the_noise_of_a_recipe(self):
        splits = {
            "cores_cifar10_sym40_authors": ("train[:90%]", "train[90%:]"),
            "elr_cifar10_sym_authors": ("train[:45000]", "train[45000:]"),  # what it leaves unused
        }
        for name, expected in splits.items():
            found = request(
                f"--flagfile={recipes.folder() / name}.cfg",
                "--noise_type=rand2",
                "--entry_dir=x",
                "--baseline_seconds=7",
            )
            settings = found.regimes["rand2"]
            self.assertEqual((settings.noise, settings.noise_draw), ("cifarn:random_label2", None))
            self.assertEqual((settings.train_split, settings.validation_split), expected)

    @parameterized.parameters(
        ((), "--noise_type=all or others of clean"),
        (("--noise_type=worse",), "must be one or more of clean"),
        (("--noise_type=worst,noisy100",), "regimes of one data set"),
        (("--noise_type=worst", "--dataset=digits"), "is of cifar10. Received: --dataset=digits"),
        (("--noise_type=worst", "--noise=pair:0.2"), "has labels of its own"),
        (("--noise_type=worst", "--noise", "cifarn:aggre"), "has labels of its own"),
        (("--noise_type=worst", "--seed=3"), "Use --seeds"),
        (("--noise_type=worst", "--seeds=1,x"), "must be integers"),
        (("--noise_type=worst", "--num_seeds=0"), "at least 1"),
        (("--noise_type=worst", "--num_seeds=2", "--seeds=1"), "exclude each other"),
        (("--noise_type=worst", "--truth_file=t.npz"), "for stand-ins"),
        (("--noise_type=worst", "--baseline_seconds=0"), "must be above 0"),
        (("--noise_type=worst", "--max_seconds=9"), "--baseline_seconds. Leave it out"),
        (("--noise_type=worst", "--run_dir=r"), "--work_dir"),
        (("--noise_type=worst", "--labels_csv=c.csv"), "corrections would tell"),
        (("--noise_type=worst", "--num_labels=40"), "all labels of the regime are used"),
        (("--noise_type=worst", "--features=a.npz"), "their network may have seen other images"),
        (("--noise_type=worst", "--test_split=test"), "in the last step only"),
        (
            ("--noise_type=worst", "--network=keras:ResNet50", "--normalization=scale"),
            "forbids pre-trained weights",
        ),
        (
            ("--noise_type=worst", "--network=m.keras", "--normalization=scale"),
            "forbids pre-trained weights",
        ),
        (("--noise_type=worst", "--norecord_examples"), "Use --record_examples"),
        (("--noise_type=worst", "--method=scan"), "which finds clusters"),
        (("--noise_type=worst", "--ray_address=auto"), "needs --baseline_seconds"),
        (("--noise_type=worst", "--network=there.is:nothing", "--normalization=scale"), "there.is"),
        (("--noise_type=worst", "more"), "Unexpected arguments: more"),
    )
    def test_mistakes(self, arguments, message):
        place = self.create_tempdir().full_path
        given = any(word.startswith("--noise_type=worst") for word in arguments)
        is_timed = any(re.match("--(baseline|ray)", word) for word in arguments)
        more = ["--baseline_seconds=7"] if given and not is_timed else []
        code, _, errors = call(submit, f"--entry_dir={place}/x", *arguments, *more)
        self.assertEqual(code, 2, errors)
        self.assertLen(errors, 1)
        self.assertIn(message, errors[0])
        self.assertEqual(os.listdir(place), [])

    def test_a_folder_of_something_else_is_refused(self):
        place = self.create_tempdir()
        place.create_file("thesis.tex")
        code, _, errors = call(submit, f"--entry_dir={place.full_path}", *SMALL)
        self.assertEqual(code, 2)
        self.assertIn("is not empty and no entry", errors[0])


class IsolationTest(absltest.TestCase):
    def test_cifar_n_is_read_without_true_labels(self):
        """With scrambled true labels and without other labels, the file is the same."""
        place, rng = pathlib.Path(self.create_tempdir().full_path), np.random.default_rng(0)
        images = rng.integers(0, 256, (50_000, 2, 2, 1), "uint8")
        true = rng.integers(0, 10, 50_000).astype(np.int32)
        given = rng.integers(0, 10, 50_000)
        whole = {"clean_label": true, "worse_label": given, "aggre_label": true}
        np.save(place / "alone.npy", given)
        np.savez(place / "unused.npz", **whole)
        found = request(
            "--noise_type=worst",
            "--entry_dir=x",
            "--baseline_seconds=1",
            f"--cifarn_file={place}/alone.npy",
        ).regimes["worst"]
        contents = []
        for labels in (true, rng.permutation(true)):
            data = _fake(images, labels)
            with mock.patch.object(sources, "load", lambda name, **_: data):  # noqa: B023
                isolation.write(place / "worst.npz", found)
            contents.append((place / "worst.npz").read_bytes())
        self.assertEqual(contents[0], contents[1])
        arrays = isolation.read(place / "worst.npz")
        np.testing.assert_array_equal(arrays["labels_validation"], given[45_000:])
        self.assertEqual(
            set(arrays),
            {"about", "class_names", "flip"}
            | {f"{x}_{y}" for x in ("images", "labels", "ids") for y in ("train", "validation")},
        )

    def test_a_part_of_cifar_is_no_entry(self):
        data = _fake(np.zeros((500, 2, 2, 1), "uint8"), np.arange(500, dtype=np.int32) % 10)
        found = request("--noise_type=clean", "--entry_dir=x", "--baseline_seconds=1")
        place = self.create_tempdir().full_path
        with mock.patch.object(sources, "load", lambda name, **_: data):
            with self.assertRaisesRegex(UserError, "all 50,000 training images.*Received: 500"):
                isolation.write(f"{place}/clean.npz", found.regimes["clean"])
        self.assertEqual(os.listdir(place), [])


# Writes the files that each process opens to a file of its own, its command line first.
AUDIT = """
import json, os, sys
log = open(os.path.join(os.environ["AUDITS"], f"{os.getpid()}.txt"), "a", buffering=1)
log.write(json.dumps(sys.orig_argv) + "\\n")
def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        log.write(json.dumps(os.path.abspath(os.fsdecode(args[0]))) + "\\n")
sys.addaudithook(hook)
"""


class ProofTest(absltest.TestCase):
    """Entries on a data set that looks like CIFAR-10, with tiny images, in processes."""

    flags = (
        "--method=supervised",
        "--network=small_cnn",
        "--batch_size=4500",
        "--learning_rate=0.05",
        "--steps=60",
        "--steps_per_epoch=60",  # six epochs: with fewer than five, nothing is flagged
        "--seeds=1",
        "--max_parallel=1",
        "--baseline_seconds=1000",
        "--noplots",
    )

    def setUp(self):
        super().setUp()
        self.root, rng = pathlib.Path(self.create_tempdir().full_path), np.random.default_rng(0)
        self.train, self.test = rng.integers(0, 10, 50_000), rng.integers(0, 10, 10_000)
        patterns = rng.integers(0, 200, (10, 4, 4, 1))
        self.images = [
            (patterns[y] + rng.integers(0, 56, (len(y), 4, 4, 1))).astype(np.uint8)
            for y in (self.train, self.test)
        ]
        self.given = {
            name: np.where(rng.random(50_000) < rate, rng.integers(0, 10, 50_000), self.train)
            for name, rate in (("aggre_label", 0.1), ("worse_label", 0.4))
        }

    def write_cache(self, name, specs, train, test):
        """Writes what a decoded CIFAR-10 with these labels would leave in the cache `name`."""
        split = [
            dataset.Split(
                images, labels.astype(np.int32), ids, keys=np.char.add(part, ids.astype(str))
            )
            for part, images, labels in zip(("train", "test"), self.images, (train, test))
            for ids in [np.arange(len(labels))]
        ]
        cut = np.arange(50_000) < 45_000
        parts = (split[0], None, split[1])
        if specs[1]:
            parts = (*(split[0].take(np.flatnonzero(x)) for x in (cut, ~cut)), None)
        made = dataset.assemble("cifar10", "0.0.0", tuple("abcdefghij"), parts, True)
        with mock.patch.object(tfds_source, "_decode", return_value=made):
            tfds_source.load("cifar10", str(self.root), str(self.root / name), specs)

    def submit(self, name, cache, *more, **variables):
        """Runs the command and returns its exit code."""
        places = [f"--entry_dir={self.root / name}", f"--data_dir={self.root}"]
        places += [f"--cache_dir={self.root / cache}"]
        program = [sys.executable, "-m", "ssl_noisy.submit", *places, *self.flags, *more]
        return subprocess.run(program, env=environment(**variables)).returncode

    @pytest.mark.slow
    def test_a_run_sees_the_images_and_its_own_labels_alone(self):
        slices, whole = ("train[:90%]", "train[90%:]", "none"), ("train", None, None)
        for specs in (slices, whole):
            self.write_cache("cache", specs, self.train, self.test)
        labels, alone = self.root / "all.npy", self.root / "alone.npy"
        np.save(labels, {"clean_label": self.train, **self.given}, allow_pickle=True)
        np.save(alone, self.given["worse_label"])
        audits, hooks = self.root / "audits", self.root / "hooks"
        audits.mkdir()
        hooks.mkdir()
        (hooks / "sitecustomize.py").write_text(AUDIT)
        watched = {"PYTHONPATH": f"{hooks}:{ROOT}", "AUDITS": str(audits)}
        more = ("--noise_type=aggre,worst", f"--cifarn_file={labels}")
        self.assertEqual(self.submit("one", "cache", *more, **watched), 0)
        self.check_audits(audits)

        # Again with scrambled true labels, and in the training without the sources.
        rng = np.random.default_rng(1)
        self.write_cache("scrambled", slices, rng.permutation(self.train), self.test)
        more = ("--noise_type=worst", f"--cifarn_file={alone}")
        wanted = request(
            *(*self.flags, *more, f"--entry_dir={self.root / 'two'}", f"--data_dir={self.root}"),
            f"--cache_dir={self.root / 'scrambled'}",
        )
        isolation.prepare(wanted.data_file("worst"), wanted.regimes["worst"])
        alone.unlink()
        scrambled = rng.permutation(self.train), rng.permutation(self.test)
        self.write_cache("test", whole, *scrambled)
        self.assertEqual(self.submit("two", "test", *more), 0)
        found, expected = outputs(self.root / "two"), outputs(self.root / "one")
        self.assertLen(found, 3)
        self.assertEqual(found, {name: expected[name] for name in found})
        flagged = np.load(self.root / "two/worst/seed_1/detection.npy")
        f1 = challenge.detection_score(flagged, self.given["worse_label"] != self.train)["f1"]
        self.assertGreater(f1, 0.8)

    def check_audits(self, audits):
        """Asserts that each worker has opened the file of one regime, and no other data."""
        found = []
        for path in audits.glob("*.txt"):
            program, *opened = map(json.loads, path.read_text().splitlines())
            if "ssl_noisy.sweeps.worker" in program:
                # Everything below the folder of the test but what a run writes itself.
                data = {x for x in opened if x.startswith(str(self.root)) and "/hooks/" not in x}
                found += [{x for x in data if not re.search("/one_work/[a-z]+/(runs|logs)", x)}]
        expected = [{str(self.root / f"one_work/data/{x}.npz")} for x in ("aggre", "worst")]
        self.assertCountEqual(found, expected)


def _fake(images, labels):
    """Returns a data set that looks like CIFAR-10, the last tenth for validation."""
    ids, cut = np.arange(len(images)), len(images) * 9 // 10
    return dataset.Dataset(
        name="cifar10",
        version="0",
        images=images[:cut],
        labels=labels[:cut],
        ids=ids[:cut],
        test_images=None,
        test_labels=None,
        validation_images=images[cut:],
        validation_labels=labels[cut:],
        validation_ids=ids[cut:],
        class_names=tuple("abcdefghij"),
        flip=True,
    )


class BaselineTest(absltest.TestCase):
    def test_steps_times_their_number(self):
        path = os.path.join(self.create_tempdir().full_path, "baseline.json")
        report = {"seconds_per_step": 0.5, "steps_timed": 20, "backend": "b", "device": "d"}
        with mock.patch.object(clock, "_time", return_value=report) as timed:
            measure = functools.partial(clock.measured, path, None, 45_000, tell=lambda line: None)
            self.assertEqual(measure(), 17_600)  # 100 epochs of 352 batches
            self.assertEqual(measure(), 17_600)
            timed.assert_called_once()
        pathlib.Path(path).write_text("{}")
        with self.assertRaisesRegex(UserError, "delete the file to measure again"):
            measure()

    def test_the_baseline_is_that_of_the_challenge(self):
        for name in ("cifar10", "cifar100", "custom"):
            found = rules.baseline(name, "/data.npz").resolved()
            self.assertEqual(found.network, "resnet_34")
            self.assertEqual((found.steps, found.steps_per_epoch), (35_200, 352))
            self.assertEqual(found.method_arguments["batch_size"], 128)
            self.assertEqual(found.dataset, "npz:/data.npz")

    def test_the_default_recipes_fit_the_clock_by_operations(self):
        # Of each of two networks: weak, strong and two mixtures, forward and, twice as much,
        # backward, and plain images forward.
        passes = 2 * (4 * 3 + 1)
        for regime in ("worst", "noisy100"):
            found = request(f"--noise_type={regime}", "--entry_dir=x", "--baseline_seconds=7")
            entry = found.regimes[regime].resolved()
            baseline = rules.baseline(rules.dataset_of(regime), "/data.npz").resolved()
            small, large = (multiply_adds(one.network) for one in (entry, baseline))
            examples = entry.steps * entry.method_arguments["batch_size"]
            epochs = entry.steps / entry.steps_per_epoch
            held_out = epochs * 5_000 * 2  # both networks are evaluated
            operations = (passes * examples + held_out) * small
            limit = challenge.TIME_FACTOR * 3 * baseline.steps * 128 * large
            self.assertBetween(operations / limit, 0.83, 0.85)
            self.assertEqual(epochs, 200)
            self.assertEqual(entry.steps_per_epoch, -(-45_000 // 256))  # an epoch is one pass

    def test_what_the_score_would_refuse_is_named(self):
        times = ((1, 101.0, 0.2), (2, 100.0, 0.2), (3, 1.0, 0.0))
        names = ("seed", "seconds", "flagged")
        rows = [dict(zip(names, row), baseline_seconds=10.0, epoch=4) for row in times]
        lines = entry_folder.faults({"worst": {"rows": rows}})
        self.assertLen(lines, 2)
        self.assertIn("worst/seed_1 took 101.0 s, more than 100.0 s", lines[0])
        self.assertIn("worst/seed_3 flags no label after epoch 4", lines[1])
        self.assertEmpty(entry_folder.faults({"clean": {"rows": rows[2:]}}))


class TextsTest(absltest.TestCase):
    def test_latex_is_escaped(self):
        self.assertEqual(texts._tex("a_b 5 % ± #"), r"a\_b 5 \% $\pm$ \#")

    def test_run_sh_has_a_command_per_data_set(self):
        text = texts.run_sh(["aggre", "worst", "noisy100"])
        self.assertIn("--noise_type=aggre,worst", text)
        self.assertIn("--noise_type=noisy100", text)
        self.assertEqual(text.count("ssl_noisy.submit \\"), 2)


if __name__ == "__main__":
    absltest.main()
