# SPDX-License-Identifier: Apache-2.0
"""Scoring of entries: figures by hand, and broken and hostile entries, refused line by line."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import challenge_entries as entries
import commands
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import challenge, command, entry, leaks, score, truths
from ssl_noisy.data import cifar_n
from ssl_noisy.errors import UserError
from ssl_noisy.reports import leaderboard

# Tests change the working folder. Without the variables, these are folders that do not exist.
REAL = os.path.abspath(os.environ.get("CIFAR_N_DIR") or os.devnull)  # with the published files
DATA = os.path.abspath(os.environ.get("TFDS_DATA_DIR") or os.devnull)


def call(*arguments):
    """Runs the command and returns its exit code, output and lines of errors."""
    values, out, err = flags.FlagValues(), io.StringIO(), io.StringIO()
    score.define_flags(values)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            wanted = score.read_flags(["score", *map(str, arguments)], values)
        except (flags.Error, UserError) as error:
            code = command.fail("score", error)
        else:
            code = command.execute("score", score.main, wanted)
    return code, out.getvalue(), err.getvalue().splitlines()


class Case(parameterized.TestCase):
    """Base of tests with a good entry, which is written once, in the current folder."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.original = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        entries.write_entry(cls.original / "good")
        cls.flags = [*entries.write_truths(cls.original), "--num_seeds=2"]

    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.root)
        shutil.copytree(self.original / "good", self.root / "good")

    def call(self, *names, more=()):
        places = [f"--entry_dir={self.root / name}" for name in names]
        return call(*places, *self.flags, *more)


class ScoreTest(Case):
    def test_figures(self):
        code, out, errors = self.call("good", more=["--output=scores.json"])
        self.assertEqual((code, errors), (0, []))
        content = json.loads((self.root / "scores.json").read_text())
        found = content["entries"]["good"]
        # By hand: a has 20 wrong labels and 20 flags, 19 of them right; b has 12, and 11 are right.
        for regime, value, flagged in (("a", 19 / 20, 20), ("b", 11 / 12, 12)):
            detection = found[regime]["detection"]
            for key in ("precision", "recall", "f1"):
                self.assertAlmostEqual(detection[key]["mean"], value, places=12)
                self.assertEqual(detection[key]["std"], 0)
            self.assertEqual(detection["seeds"]["2"]["flagged"], flagged)
            low, high = detection["interval"]
            self.assertBetween(value, low, high)
        learning = found["a"]["learning"]
        self.assertEqual(learning["accuracy"], {"mean": 16 / 20, "std": 0})
        self.assertBetween(16 / 20, *learning["interval"])
        for seed in (1, 2):
            subset = challenge.scored_subset(seed, entries.TEST)
            value = learning["seeds"][str(seed)]["subset_accuracy"]
            self.assertEqual(value, np.mean(subset >= 4))  # the first four are wrong
        self.assertIn("| good  | a      | 2     | 95.00 ± 0.00 | 95.00 ± 0.00 | 95.00 ± 0.00 ", out)
        boards = [(board["task"], board["regimes"]) for board in content["ranks"]]
        self.assertEqual(boards, [("learning", ["a", "b"]), ("detection", ["a", "b"])])

    def test_ranks(self):
        entries.write_entry(self.root / "better|<b>")
        for seed in (1, 2):
            entries.write_run(
                self.root / "better|<b>", "a", seed, detection=entries.GIVEN["a"] != entries.TRUE
            )
            shutil.rmtree(challenge.run_folder(self.root / "good", "b", seed))
        (self.root / "good/b").rmdir()
        outputs = [f"--output=board{suffix}" for suffix in score.FORMATS]
        code, out, errors = self.call("good", "better|<b>", more=outputs)
        self.assertEqual((code, errors), (0, []))
        content = json.loads((self.root / "board.json").read_text())
        learning, detection = (board["entries"] for board in content["ranks"])
        self.assertEqual(list(detection), ["better|<b>", "good"])
        self.assertEqual(detection["good"]["ranks"], {"a": 2, "b": 2})
        self.assertEqual((detection["good"]["points"], detection["good"]["rank"]), (18, 2))
        self.assertEqual(learning["good"]["ranks"], {"a": 1, "b": 2})
        self.assertEqual(learning["better|<b>"]["points"], 20)
        text = (self.root / "board.md").read_text()
        self.assertIn(text, out)
        self.assertIn("| better\\|\\<b> | 20     | 100.00 (1) | 91.67 (1) |", text)
        self.assertIn("| good         | 18     | 95.00 (2)  | – (2)     |", text)
        page = (self.root / "board.html").read_text()
        self.assertIn("<td>better|&lt;b&gt;</td><td>20</td><td>100.00 (1)</td>", page)
        for part in ("<script", "<b>", "http:", 'src="'):
            self.assertNotIn(part, page)

    def test_one_task_alone(self):
        for regime, seed in itertools.product(entries.GIVEN, (1, 2)):
            folder = pathlib.Path(challenge.run_folder(self.root / "good", regime, seed))
            (folder / "predictions.npy").unlink()
            (folder / "test_logits.npy").unlink()
        code, out, errors = self.call("good", more=["--output=scores.json"])
        self.assertEqual((code, errors), (0, []))
        content = json.loads((self.root / "scores.json").read_text())
        self.assertEqual(list(content["entries"]["good"]["a"]), ["detection"])
        self.assertLen(content["ranks"], 1)
        self.assertNotIn("Learning", out)

    def test_labels_without_errors_have_no_detection(self):
        arrays = {
            "given_labels": entries.TRUE,
            "true_labels": entries.TRUE,
            "test_labels": entries.TEST_LABELS,
        }
        np.savez(self.root / "a.npz", **arrays)
        for seed in (1, 2):
            entries.write_run(
                self.root / "good", "a", seed, detection=np.zeros(entries.TRAIN, bool)
            )
        shutil.rmtree(self.root / "good/b")
        self.flags = ["--truth=a:a.npz", "--num_seeds=2"]
        code, _, errors = self.call("good", more=["--output=scores.json"])
        self.assertEqual((code, errors), (0, []))
        content = json.loads((self.root / "scores.json").read_text())
        self.assertEqual(list(content["entries"]["good"]["a"]), ["learning"])

    def test_learning_is_ranked_by_the_subset(self):
        measured = {
            name: {"a": {"learning": {key: {"mean": v} for key, v in scores.items()}}}
            for name, scores in {
                "one": {"subset_accuracy": 0.8, "resampled_accuracy": 0.85, "accuracy": 0.9},
                "two": {"subset_accuracy": 0.81, "resampled_accuracy": 0.7, "accuracy": 0.75},
            }.items()
        }
        (board,) = leaderboard.rank(measured, {"a": "a.npz"})
        self.assertEqual(list(board["entries"]), ["two", "one"])
        self.assertEqual(board["entries"]["two"]["scores"], {"a": 0.81})

    def test_published_figures(self):
        measured = {"mine": {"worst": {"detection": {"f1": {"mean": 0.97}}}}}
        datasets = truths.Truths().datasets
        (board,) = leaderboard.rank(measured, datasets)
        self.assertEqual(board["regimes"], ["aggre", "rand1", "worst"])
        promix, mine = board["entries"].values()
        self.assertEqual(mine["ranks"], {"aggre": 2, "rand1": 2, "worst": 1})
        self.assertEqual((promix["points"], mine["points"]), (29, 28))
        self.assertEqual(promix["scores"]["rand1"], 0.9388)
        self.assertTrue(promix["published"])
        (board,) = leaderboard.rank(measured, datasets, with_published=False)
        self.assertEqual(list(board["entries"]), ["mine"])
        (table, *_) = leaderboard.tables({}, leaderboard.rank(measured, datasets))
        self.assertIn("github.com/Justherozen/ProMix", table.note)

    @pytest.mark.slow
    def test_a_process(self):
        shutil.copytree(self.root / "good", self.root / "bad")
        entries.write_run(self.root / "bad", "b", 2, detection=np.ones(entries.TRAIN, bool))
        places = [f"--entry_dir={name}" for name in ("good", "bad")]
        done = subprocess.run(
            [sys.executable, "-m", "ssl_noisy.score", *places, *self.flags],
            env={**os.environ, "PYTHONPATH": commands.ROOT},
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 2)
        line = "ssl_noisy.score: bad/b/seed_2/detection.npy flags all of 60 labels.\n"
        self.assertEqual(done.stderr, line)
        self.assertIn("**Detection, stand-in: F1 of the corrupted labels in %**", done.stdout)


class MistakeTest(Case):
    @parameterized.parameters(*entries.BAD)
    def test_is_refused(self, name):
        change, *expected = entries.BAD[name]
        shutil.copytree(self.root / "good", self.root / "bad")
        change(self.root / "bad")
        code, out, errors = self.call("good", "bad", more=["--output=scores.json"])
        self.assertEqual(code, 2)
        self.assertLen(errors, len(expected), errors)
        for line in errors:
            self.assertTrue(line.isprintable())
            self.assertLess(len(line), 500)
            line = line.replace("score: bad/", "").replace("score: 'bad/", "'")
            line = line.replace("score: bad has", ". has")
            self.assertTrue(any(line.startswith(start) for start in expected), line)
        content = json.loads((self.root / "scores.json").read_text())
        self.assertEqual(list(content["entries"]), ["good"])
        self.assertEqual([f"score: {fault}" for fault in content["refused"]["bad"]], errors)
        self.assertIn("| good ", out)
        self.assertNotIn("| bad ", out)
        self.assertFalse(os.path.exists(entries.TOUCHED))

    def test_the_pickle_is_an_attack(self):
        """Otherwise the tests above would prove nothing."""
        pickle.loads(pickle.dumps(entries.Attack())).close()
        self.assertTrue(os.path.exists(entries.TOUCHED))

    def test_other_hyper_parameters(self):
        """All faults are listed at once; flags that name the regime or the place may differ."""
        shutil.copytree(self.root / "good", self.root / "bad")
        for seed in (1, 2):
            changed = entries.FLAGS | {"learning_rate": 0.2, "seed": seed, "noise": "x"}
            entries.write_run(self.root / "bad", "b", seed, flags=changed, seconds=1e9)
        code, out, errors = self.call("bad", more=["--output=scores.json"])
        self.assertEqual((code, out), (2, ""))
        self.assertFalse((self.root / "scores.json").exists())
        where = "must have the hyper-parameters of a/seed_1/config.json, as all runs on one data "
        where += "set. Received: learning_rate=0.2 (there 0.1)."
        time = "timing.json has 1e+09 seconds, over the limit of 100."
        self.assertCountEqual(
            errors,
            [f"score: bad/b/seed_{s}/config.json {where}" for s in (1, 2)]
            + [f"score: bad/b/seed_{s}/{time}" for s in (1, 2)],
        )

    def test_name_of_an_entry(self):
        shutil.copytree(self.root / "good", self.root / "a\x1b[2J")
        code, out, errors = self.call("a\x1b[2J")
        self.assertEqual((code, out), (2, ""))
        self.assertEqual(
            errors, [r"score: 'a\x1b[2J' has a name with control characters. Rename it."]
        )

    def test_an_absent_flag_is_not_none(self):
        flags = {name: value for name, value in entries.FLAGS.items() if name != "freeze"}
        entries.write_run(self.root / "good", "b", 2, flags=flags)
        _, _, errors = self.call("good")
        self.assertLen(errors, 1)
        self.assertIn("freeze=None (there None)", errors[0])

    @parameterized.named_parameters(
        ("no_entry", [], "--entry_dir=DIR"),
        ("no_folder", ["--entry_dir=nowhere"], "no folder"),
        ("same_names", ["--entry_dir=good", "--entry_dir=x/../good"], "different names"),
        ("words", ["--entry_dir=good", "more"], "Unexpected arguments: more"),
        ("output", ["--entry_dir=good", "--output=board.csv"], "must end in .json, .md, .html"),
        ("num_seeds", ["--entry_dir=good", "--num_seeds=0"], "num_seeds"),
        ("truth", ["--entry_dir=good", "--truth=nowhere.npz"], "nowhere.npz cannot be used"),
        ("truth_twice", ["--entry_dir=good", "--truth=a.npz", "--truth=b.npz"], "custom, custom"),
        ("files", ["--entry_dir=good", "--cifarn_file=a.pt", "--cifarn_file=b.pt"], "at most one"),
    )
    def test_flags(self, arguments, part):
        code, out, errors = call(*arguments)
        self.assertEqual((code, out), (2, ""))
        self.assertLen(errors, 1)
        self.assertIn(part, errors[0])

    @parameterized.named_parameters(
        ("missing", {"true_labels": None}, "it has no true_labels"),
        ("floats", {"test_labels": entries.TEST_LABELS * 1.0}, "float64 (20,) instead of integers"),
        ("negative", {"given_labels": entries.TRUE - 1}, "not -1"),
        ("length", {"given_labels": entries.TRUE[1:]}, "59 given labels and 60 true ones"),
        ("objects", {"given_labels": np.array([None])}, "Object arrays are pickles"),
    )
    def test_truth(self, changes, part):
        arrays = {
            "given_labels": entries.TRUE,
            "true_labels": entries.TRUE,
            "test_labels": entries.TEST_LABELS,
        } | changes
        np.savez("a.npz", **{k: v for k, v in arrays.items() if v is not None})
        code, _, errors = call("--entry_dir=good", "--truth=a.npz")
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertIn(part, errors[0])


class LeaksTest(absltest.TestCase):
    """What only arrays of CIFAR's size show: the order of TFDS's files."""

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        true = rng.integers(0, 10, challenge.NUM_TRAIN)
        given = np.where(rng.random(len(true)) < 0.4, (true + 1) % 10, true)
        test = rng.integers(0, 10, challenge.NUM_TEST)
        self.truth = challenge.Truth(given, true, test, 10)
        self.flagged = self.truth.corrupted ^ (rng.random(len(true)) < 0.1)

    def test_order_of_a_detection(self):
        self.assertIsNone(leaks.of_detection(self.flagged, self.truth, {}))
        order = cifar_n.tfds_order("train", challenge.NUM_TRAIN)
        text = leaks.of_detection(self.flagged[order], self.truth, {})
        self.assertStartsWith(text, "is in the order of TFDS's files: F1 87.")

    def test_order_of_predictions(self):
        predictions = self.truth.test_labels.copy()
        predictions[:2_000] = 0
        self.assertIsNone(leaks.of_predictions(predictions, self.truth))
        order = cifar_n.tfds_order("test", challenge.NUM_TEST)
        text = leaks.of_predictions(predictions[order], self.truth)
        self.assertStartsWith(text, "is in the order of TFDS's files: accuracy 8")

    def test_chance_is_no_leak(self):
        rng = np.random.default_rng(1)
        for rate in (0.01, 0.5, 0.99):
            flagged = rng.random(challenge.NUM_TRAIN) < rate
            self.assertIsNone(leaks.of_detection(flagged, self.truth, {}))


class CifarTest(Case):
    """Entries of the real regimes, on data sets of their names and sizes."""

    def setUp(self):
        super().setUp()
        self.truth = challenge.Truth(entries.GIVEN["a"], entries.TRUE, entries.TEST_LABELS, 10)
        self.enterContext(mock.patch.object(truths.Truths, "__getitem__", lambda *_: self.truth))

    def read(self, **changes):
        shutil.rmtree("good/b")
        os.rename("good/a", "good/worst")
        for seed in (1, 2):
            flags = {**entries.FLAGS, **changes}
            entries.write_run(self.root / "good", "a", seed, flags=flags, test_logits=None)
            shutil.rmtree(f"good/worst/seed_{seed}")
            os.rename(f"good/a/seed_{seed}", f"good/worst/seed_{seed}")
        os.rmdir("good/a")
        return entry.read("good", truths.Truths(), 2)

    def test_noise_of_the_regime(self):
        found, faults = self.read(noise="cifarn:worse_label")
        self.assertEqual(faults, [])
        self.assertEqual(list(found.runs), ["worst"])

    def test_noise_of_another_regime(self):
        _, faults = self.read(noise="cifarn:aggre_label")
        self.assertLen(faults, 2)
        required = "must have the noise cifarn:worse_label. Received: cifarn:aggre_label"
        self.assertIn(required, faults[0])


class RealTest(Case):
    """The organizers' example, and what the labels of other regimes reveal, on CIFAR-10N."""

    if os.path.isdir(REAL) and os.path.isdir(os.path.join(DATA, "cifar10")):

        def test_cifar10n(self):
            labels = truths.Truths(cifarn_files=[f"{REAL}/CIFAR-10_human.pt"], data_dir=DATA)
            worst = labels["worst"]
            sets = labels.together("worst")
            self.assertEqual(list(sets), ["aggre", "rand1", "rand2", "rand3", "worst"])
            toy = worst.corrupted & (np.arange(challenge.NUM_TRAIN) < 25_000)
            self.assertIsNone(leaks.of_detection(toy, worst, sets))
            self.assertIsNone(leaks.of_detection(worst.corrupted, worst, sets))  # a perfect one
            run = entry.Run(toy, worst.test_labels, {})
            found = leaderboard.measure(entry.Entry("toy", {"worst": {1: run}}), labels)["worst"]
            self.assertEqual(found["detection"]["f1"], {"mean": 0.6706780837769035})
            self.assertEqual(found["learning"]["subset_accuracy"], {"mean": 1.0})
            random = [sets[f"rand{i}"] for i in (1, 2, 3)]
            for flagged, names, f1 in (
                (sets["worst"] != sets["aggre"], "aggre, worst", 0.9149395509499136),
                (np.ptp(random, axis=0) > 0, "rand1, rand2, rand3", 0.9929369333266542),
            ):
                score = challenge.detection_score(flagged, worst.corrupted)
                self.assertAlmostEqual(score["f1"], f1, places=12)
                text = leaks.of_detection(flagged, worst, sets)
                self.assertStartsWith(text, f"flags the labels that differ between {names}.")


if __name__ == "__main__":
    absltest.main()
