# SPDX-License-Identifier: Apache-2.0
"""Runs that keep their best epoch, end in time, or have no test images."""

import contextlib
import csv
import io
import json
import os
import tempfile
from unittest import mock

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import absltest
from commands import MistakeCase, call, read

from ssl_noisy import report
from ssl_noisy.data import sources
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint, clock, folder
from ssl_noisy.runs.metrics import read_metrics

SMALL = (
    "--dataset=digits",
    "--method=supervised",
    "--noise=symmetric:0.4",
    "--noisy_validation",
    "--train_split=train[:200]",
    "--validation_split=train[200:300]",
    "--network=small_cnn",
    "--batch_size=20",
    "--steps=80",
    "--steps_per_epoch=10",
    "--noplots",
)
SEED = "--seed=1"


class Killed(BaseException):
    """Ends a run at once, like SIGKILL."""


def killed_at(number):
    """Returns a `checkpoint.save` that is killed instead of writing the newest one, once."""
    save, left = checkpoint.save, [number]

    def saving(folder, learner, metadata, names=(checkpoint.NAME, checkpoint.PREVIOUS_NAME)):
        if names != checkpoint.BEST:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
        save(folder, learner, metadata, names)

    return mock.patch.object(checkpoint, "save", saving)


def result_of(run_dir):
    return json.loads(read(run_dir, "result.json"))


class KeepBestTest(MistakeCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.best = os.path.join(cls.enterClassContext(tempfile.TemporaryDirectory()), "run")
        cls.code = call(*SMALL, SEED, "--keep_best", f"--run_dir={cls.best}")[0]

    def test_the_model_is_that_of_the_first_best_validation_accuracy(self):
        self.assertEqual(self.code, 0)
        result, rows = result_of(self.best), read_metrics(self.best)
        accuracies = [row["validation_accuracy"] for row in rows]
        number = accuracies.index(max(accuracies))
        self.assertLess(number, len(rows) - 1)  # or keeping it would make no difference
        self.assertEqual(
            result["model_of"],
            {
                "step": 10 * (number + 1),
                "epoch": number + 1,
                "validation_accuracy": max(accuracies),
            },
        )
        self.assertEqual(
            result["test_accuracy"]["validation_choice"], rows[number]["test_accuracy"]
        )
        self.assertEqual(result["test_accuracy"]["last"], rows[-1]["test_accuracy"])
        data = sources.load("digits")
        model = keras.saving.load_model(os.path.join(self.best, "model.keras"), compile=False)
        predicted = np.argmax(model.predict(data.test_images, verbose=0), axis=-1)
        self.assertAlmostEqual(
            np.mean(predicted == data.test_labels), rows[number]["test_accuracy"], places=6
        )
        matrix = np.array(result["confusion_matrix"])
        self.assertAlmostEqual(np.trace(matrix) / matrix.sum(), rows[number]["test_accuracy"])

    def test_the_record_is_that_of_the_same_epoch(self):
        step = result_of(self.best)["model_of"]["step"]
        examples = list(csv.DictReader(read(self.best, "examples.csv").splitlines()))
        self.assertEqual(sum(int(row["observations"]) for row in examples), 20 * step)

    def test_the_training_is_the_same_without_it(self):
        plain = os.path.join(self.create_tempdir().full_path, "run")
        self.assertEqual(call(*SMALL, SEED, f"--run_dir={plain}")[0], 0)
        self.assertEqual(read(plain, "metrics.csv"), read(self.best, "metrics.csv"))
        self.assertNotIn("model_of", result_of(plain))
        self.assertFalse(os.path.exists(os.path.join(plain, checkpoint.BEST[0])))

    def test_a_kill_between_the_best_checkpoint_and_the_newest_one(self):
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        best_epoch = result_of(self.best)["model_of"]["epoch"]
        with killed_at(best_epoch), self.assertRaises(Killed):
            call(*SMALL, SEED, "--keep_best", f"--run_dir={run_dir}")
        self.assertEqual(call(*SMALL, SEED, "--keep_best", f"--run_dir={run_dir}")[0], 0)
        for name in ("result.json", "examples.csv", "metrics.csv"):
            self.assertEqual(read(run_dir, name), read(self.best, name))

    @pytest.mark.slow
    def test_a_kill_after_the_training(self):
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        with mock.patch.object(folder, "write_result", side_effect=Killed):
            with self.assertRaises(Killed):
                call(*SMALL, SEED, "--keep_best", f"--run_dir={run_dir}")
        self.assertEqual(call(*SMALL, SEED, "--keep_best", f"--run_dir={run_dir}")[0], 0)
        self.assertEqual(read(run_dir, "result.json"), read(self.best, "result.json"))

    def test_a_lost_checkpoint_is_named(self):
        with self.assertRaisesRegex(UserError, "best evaluation, step 10, is lost"):
            checkpoint.restore_best(self.create_tempdir().full_path, None, 10)

    def test_it_needs_a_validation_split(self):
        flags = [flag for flag in SMALL if "validation" not in flag]
        self.assertIn("--keep_best needs a validation split", self.refuse(*flags, "--keep_best"))


class ClockTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.now = 100.0
        patch = mock.patch.object(clock.time, "monotonic", lambda: self.now)
        self.enterContext(patch)

    def epoch(self, one, *steps, is_first=False):
        one.epoch_begins()
        for seconds in steps:
            one.step_begins()
            self.now += seconds
        one.epoch_ends(is_first)

    def test_it_ends_before_an_epoch_that_would_not_fit(self):
        one = clock.Clock(100)
        self.epoch(one, 40, 5, 5, is_first=True)  # 50; compiling apart, an epoch takes 10
        self.assertFalse(one.is_over)
        self.epoch(one, 5, 10, 10)  # 75, an epoch 20
        self.assertFalse(one.is_over)
        self.epoch(one, 5, 10, 9)  # 99
        self.assertTrue(one.is_over)
        self.assertFalse(one.is_late)
        self.assertEqual(one.counted, 99)

    def test_a_slow_epoch_is_late_and_does_not_count(self):
        one = clock.Clock(100)
        self.epoch(one, 40, 5, 5, is_first=True)
        self.epoch(one, 20, 20, 20)
        self.assertTrue(one.is_over)
        self.assertTrue(one.is_late)
        self.assertEqual(one.counted, 50)

    def test_the_first_evaluation_always_counts(self):
        one = clock.Clock(100)
        self.epoch(one, 200, 1, is_first=True)
        self.assertTrue(one.is_over)
        self.assertFalse(one.is_late)
        self.assertEqual(one.counted, 201)

    def test_time_accumulates_over_resumes(self):
        one = clock.Clock(100, spent=7)
        self.epoch(one, 40, 5, 5, is_first=True)
        state = json.loads(json.dumps(one.state()))
        self.now += 1000  # nothing runs
        other = clock.Clock(100, spent=7)
        other.resume(state)
        self.now += 3
        self.assertEqual((other.seconds, other.counted), (60, 57))

    def test_without_a_limit_it_never_ends(self):
        one = clock.Clock(None)
        self.epoch(one, 1e9, 1e9)
        self.assertFalse(one.is_over or one.is_late)


class MaxSecondsTest(absltest.TestCase):
    def train(self, *flags, seconds):
        """Trains with a clock on which each evaluation ends at the next of `seconds`."""
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        ends = iter(seconds)

        class Clock(clock.Clock):
            def epoch_ends(self, is_first):
                self._before = next(ends)
                self._began = clock.time.monotonic()
                self._epoch_began = self._began - 1  # an epoch takes a second
                super().epoch_ends(is_first)

        with mock.patch("ssl_noisy.runs.session.Clock", Clock):
            code = call(*SMALL, SEED, *flags, f"--run_dir={run_dir}")[0]
            again = call(*SMALL, SEED, *flags, f"--run_dir={run_dir}")[0]
        self.assertEqual((code, again), (0, 0))
        return run_dir, result_of(run_dir), len(list(ends))

    def test_the_run_ends_in_good_order(self):
        run_dir, result, left = self.train("--max_seconds=100", seconds=[20, 40, 99.5, 1e9])
        self.assertEqual(left, 1)
        self.assertEqual(result["stopped_by_max_seconds_at_step"], 30)
        self.assertLen(read_metrics(run_dir), 3)
        self.assertBetween(folder.read_timing(run_dir), 99.5, 99.9)
        self.assertTrue(os.path.exists(os.path.join(run_dir, "model.keras")))

    def test_a_late_epoch_is_not_the_best(self):
        run_dir, result, _ = self.train(
            "--keep_best", "--max_seconds=100", seconds=[50, 101, 1e9, 1e9]
        )
        self.assertEqual(result["stopped_by_max_seconds_at_step"], 20)
        self.assertEqual(result["model_of"]["step"], 10)
        self.assertEqual(result["test_accuracy"]["last"], read_metrics(run_dir)[0]["test_accuracy"])
        self.assertBetween(folder.read_timing(run_dir), 50, 50.4)

    @pytest.mark.slow
    def test_passes_of_aum_take_time_and_keep_no_best_epoch(self):
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        flags = [flag for flag in SMALL if "method" not in flag]
        flags += ["--method=aum", "--pass_batch_size=20", "--keep_best", "--max_seconds=1e6"]
        self.assertEqual(call(*flags, SEED, f"--run_dir={run_dir}")[0], 0)
        passes = [os.path.join(run_dir, f"pass_{number}") for number in (1, 2)]
        for place in passes:
            self.assertFalse(os.path.exists(os.path.join(place, checkpoint.BEST[0])))
        spent = sum(map(folder.read_timing, passes))
        self.assertGreater(folder.read_timing(run_dir), spent)
        self.assertGreater(spent, 0)

    def test_a_run_that_was_fast_enough_says_so(self):
        _, result, _ = self.train("--max_seconds=1000", seconds=range(1, 9))
        self.assertIsNone(result["stopped_by_max_seconds_at_step"])


class NoTestTest(absltest.TestCase):
    def test_a_run_without_test_images(self):
        run_dir = os.path.join(self.create_tempdir().full_path, "run")
        flags = (*SMALL[:-1], SEED, "--keep_best", "--test_split=none", f"--run_dir={run_dir}")
        code, out, _ = call(*flags)
        self.assertEqual(code, 0)
        self.assertIn("no test images", out)
        result = result_of(run_dir)
        self.assertEqual(set(result["test_accuracy"].values()), {None})
        self.assertNotIn("confusion_matrix", result)
        self.assertNotEqual(result["calibration"]["temperature"], 1)
        rows = read_metrics(run_dir)
        self.assertNotIn("test_accuracy", rows[0])
        self.assertIn("validation_accuracy", rows[0])
        self.assertTrue(os.path.exists(os.path.join(run_dir, "curves.png")))
        page = os.path.join(self.create_tempdir().full_path, "page.html")
        values = absl_flags.FlagValues()
        report.define_flags(values)
        with contextlib.redirect_stdout(io.StringIO()):
            report.main(report.read_flags(["report", run_dir, f"--output={page}"], values))
        with open(page, encoding="utf-8") as file:
            self.assertTrue("No test images" in file.read(), page)
        self.assertEqual(call(*flags)[0], 0)
        data = sources.load("digits", test_split="none")
        self.assertIsNone(data.test_images)


if __name__ == "__main__":
    absltest.main()
