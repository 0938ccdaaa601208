# SPDX-License-Identifier: Apache-2.0
"""Runs of several rounds, and runs with a teacher: settings, resuming, results and mistakes."""

import contextlib
import dataclasses
import io
import json
import os
from unittest import mock

import keras
import numpy as np
import pytest
import toy
from absl import flags
from absl.testing import absltest
from commands import MistakeCase, ThisProcess, call, read

from ssl_noisy import model_file, run_flags, sweep, train
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder, rounds
from ssl_noisy.runs import run as runs
from ssl_noisy.runs.session import Session
from ssl_noisy.runs.training import make_learner
from ssl_noisy.settings import Settings
from ssl_noisy.sweeps import conduct, estimate

SMALL = (
    *("--dataset=digits", "--network=small_cnn", "--num_labels=20", "--batch_size=8"),
    *("--steps=6", "--steps_per_epoch=3", "--noplots", "--checkpoint_seconds=0"),
)
THREE = ("--method=supervised", "--rounds=3", *SMALL)


class Killed(BaseException):
    """Ends a training at once: what is in the folder stays as it is."""


@contextlib.contextmanager
def killed_at(place, step):
    """Kills a run at the start of a step of a training in the folder `place`."""
    begin = Session.on_train_batch_begin

    def on_train_batch_begin(session, batch, logs=None):
        begin(session, batch, logs)
        if os.path.basename(session.run_dir) == place and session.done == step:
            raise Killed

    with mock.patch.object(Session, "on_train_batch_begin", on_train_batch_begin):
        yield


class SettingsTest(absltest.TestCase):
    def settings(self, **changes):
        values = {"method": "fixmatch", "rounds": 3, "steps": 40, "network": "small_cnn"} | changes
        return Settings(**values)

    def test_later_rounds_distill_the_one_before_with_the_same_settings(self):
        made = self.settings(
            seed=7,
            baseline="supervised",
            noise="symmetric:0.2",
            run_dir="here",
            initial_weights="features",
            method_arguments={
                **{"batch_size": 8, "unlabeled_ratio": 2, "weight_decay": 0.1},
                **{"distillation_temperature": 3.0},
            },
        )
        first, second, third = (rounds.settings_of(made, number) for number in (1, 2, 3))
        arguments = {"batch_size": 8, "unlabeled_ratio": 2, "weight_decay": 0.1}
        self.assertEqual(
            first, self.settings(**vars_of(made, rounds=None, method_arguments=arguments))
        )
        for one, teacher in ((second, "../round_1"), (third, "round_2")):
            self.assertEqual((one.method, one.teacher), ("distill", teacher))
            self.assertEqual(
                (one.steps, one.learning_rate, one.schedule), (40, 0.03, "cosine_7_16")
            )
            self.assertEqual((one.label_seed, one.noise_seed, one.noise), (7, 7, "symmetric:0.2"))
            self.assertEqual((one.initial_weights, one.rounds), ("features", None))
            found = one.resolved().method_arguments
            self.assertEqual((found["batch_size"], found["weight_decay"]), (8, 0.1))
            self.assertEqual((found["decayed"], found["ema_momentum"]), ("kernels", 0.999))
            self.assertEqual(found["distillation_temperature"], 3.0)
            self.assertNotIn("unlabeled_ratio", found)
        self.assertLen({made.seed, second.seed, third.seed}, 3)
        self.assertEqual([x.baseline for x in (first, second, third)], [None, None, "supervised"])

    def test_the_first_round_removes_labels(self):
        made = self.settings(method="supervised", remove_labels="aum")
        first, last = (rounds.settings_of(made, number) for number in (1, 3))
        self.assertEqual((first.remover, last.remover), ("aum", None))

    def test_one_round_is_an_ordinary_run(self):
        for number in (None, 1):
            made = self.settings(rounds=number)
            self.assertIs(rounds.settings_of(made, 1), made)
            self.assertNotIn("distillation_weight", made.takes())

    def test_a_baseline_and_an_estimate_have_no_rounds(self):
        made = self.settings(baseline="supervised", rounds=None)
        self.assertLen(estimate.trainings(made), 2)
        made = dataclasses.replace(made, rounds=2)
        self.assertIsNone(made.for_baseline().rounds)
        with self.assertRaisesRegex(UserError, "--dry_run cannot time --rounds.*: --rounds=2"):
            estimate.trainings(made)


def vars_of(settings, **changes):
    """Returns the fields of the first round of `settings`."""
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return {**values, "baseline": None, "run_dir": None, **changes}


class RunTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.create_tempdir().full_path, "run")

    def result(self, *parts):
        return json.loads(read(os.path.join(self.folder, *parts), "result.json"))

    @pytest.mark.slow
    def test_a_run_killed_in_each_round_resumes_to_identical_results(self):
        arguments = (*THREE, f"--run_dir={self.folder}")
        # Within a round, and before the first step of the next one.
        for place, step in (("round_1", 2), ("round_2", 0)):
            with killed_at(place, step), self.assertRaises(Killed):
                call(*arguments)
            self.assertFalse(os.path.exists(os.path.join(self.folder, folder.RESULT)))
        code, out, errors = call(*arguments)
        self.assertEqual((code, errors), (0, []))
        self.assertNotIn("round_1;", out)  # finished rounds are not repeated
        self.assertIn("The teacher is round_2.", out)
        resumed, self.folder = self.folder, os.path.join(self.create_tempdir().full_path, "other")
        _, whole, _ = call(*THREE, f"--run_dir={self.folder}")
        for part in ("", "round_1", "round_2"):
            for name in ("result.json", "metrics.csv", "examples.csv", "flags.cfg"):
                name = os.path.join(part, name)
                self.assertEqual(read(resumed, name), read(self.folder, name), name)
        lines = [line.split() for line in whole.splitlines()]
        result = self.result()
        self.assertEqual((result["method"], result["seed"]), ("supervised", 0))
        self.assertEqual(
            [one["method"] for one in result["rounds"]], ["supervised", "distill", "distill"]
        )
        for number, one in enumerate(result["rounds"], 1):
            accuracy = one["test_accuracy"]["last"]
            shown = f"{accuracy:.2%}"
            self.assertIn(["round", str(number), one["method"], shown], [x[:4] for x in lines])
            if number < 3:
                alone = self.result(f"round_{number}")
                self.assertEqual(one["test_accuracy"], alone["test_accuracy"])
        self.assertEqual(result["test_accuracy"], result["rounds"][2]["test_accuracy"])
        self.assertIn("agreement", result["last_epoch"])
        # A finished run answers at once, from another place too.
        moved = self.folder + "_moved"
        os.rename(self.folder, moved)
        with mock.patch.object(Session, "train", side_effect=Killed):
            code, again, _ = call(*THREE, f"--run_dir={moved}")
        self.assertEqual(code, 0)
        self.assertEqual(again.splitlines()[:5], whole.splitlines()[-len(again.splitlines()) :][:5])

    def test_a_student_learns_from_the_model_of_a_run(self):
        teacher = os.path.join(self.create_tempdir().full_path, "teacher")
        longer = ("--batch_size=32", "--learning_rate=0.1", "--steps=60", "--steps_per_epoch=60")
        call("--method=supervised", *SMALL, *longer, f"--run_dir={teacher}")
        student = ("--method=distill", *SMALL, *longer, "--network=wide_lenet")
        code, out, errors = call(*student, f"--teacher={teacher}", f"--run_dir={self.folder}")
        self.assertEqual((code, errors), (0, []))
        self.assertIn(f"The teacher is {teacher}.", out)
        self.assertGreater(self.result()["last_epoch"]["agreement"], 0.4)
        # Both prefer the same classes, and a file is as good as a folder.
        dataset = self.predictions(teacher), self.predictions(self.folder)
        self.assertGreater(np.mean(dataset[0] == dataset[1]), 0.5)
        made = settings_of_flags(*student, f"--teacher={teacher}/model.keras")
        made = make_learner(made, toy.task()[0]).teacher
        np.testing.assert_array_equal(self.classes(made), dataset[0])

    def test_a_teacher_in_python_is_relative_to_the_current_folder(self):
        root = self.create_tempdir().full_path
        with contextlib.chdir(root):
            call("--method=supervised", *SMALL, "--run_dir=teacher")
            student = dataclasses.replace(
                settings_of_flags("--method=distill", *SMALL), teacher="teacher", run_dir="student"
            )
            runs.run(student, io.StringIO())
        written = read(os.path.join(root, "student"), "flags.cfg")
        self.assertIn(f"--teacher={os.path.join(root, 'teacher')}\n", written)

    def predictions(self, run_dir):
        return self.classes(keras.models.load_model(os.path.join(run_dir, "model.keras")))

    def classes(self, model):
        return np.argmax(model.predict(toy.digits()[0], verbose=0), axis=1)

    if keras.backend.backend() == "tensorflow":  # JAX compiles the same steps for longer

        @pytest.mark.slow
        def test_a_sweep_of_rounds(self):
            values = flags.FlagValues()
            sweep.define_flags(values)
            over = ("--over=rounds=1,2", f"--sweep_dir={self.folder}")
            wanted = sweep.read_flags(["sweep", "--method=supervised", *SMALL, *over], values)
            with contextlib.redirect_stdout(io.StringIO()):
                conduct.conduct(
                    self.folder,
                    wanted.swept,
                    conduct.Known(self.folder, wanted.runs),
                    lambda parallel, lock: ThisProcess(),
                    parallel=1,
                    target=wanted.target,
                )
            one, two = self.result("runs", "rounds-1"), self.result("runs", "rounds-2")
            self.assertNotIn("rounds", one)
            self.assertEqual(self.result("runs", "rounds-2", "round_1"), one)  # an ordinary run
            self.assertEqual(two["rounds"][0]["test_accuracy"], one["test_accuracy"])

    def test_a_run_without_test_images(self):
        result = {"dataset": "a", "num_labels": 2, "method": "b", "test_accuracy": {"last": None}}
        self.assertIn("no test images", train.table({**result, "rounds": [result, result]}))


def settings_of_flags(*arguments):
    values = flags.FlagValues()
    run_flags.define_flags(values)
    values(["train", *arguments])
    return run_flags.from_flags(values)


class MistakesTest(MistakeCase):
    def teacher(self, image_shape=(8, 8, 1), class_names=tuple("0123456789")):
        """Returns the path of a model file."""
        inputs = keras.Input(image_shape)
        x = keras.layers.Dense(len(class_names))(keras.layers.Flatten()(inputs))
        path = os.path.join(self.create_tempdir().full_path, "model.keras")
        keras.Model(inputs, x).save(path)
        model_file.add_metadata(path, model_file.Metadata(class_names))
        return path

    def test_a_teacher_must_be_there_and_fit(self):
        unfinished = self.create_tempdir().full_path
        for path, message in (
            (None, "--method=distill needs --teacher=RUN, the folder of a finished run"),
            ("/no/run", "There is no model file '/no/run/model.keras'. Finish the run"),
            (unfinished, f"There is no model file '{unfinished}/model.keras'. Finish the run"),
            (__file__ + ".keras", "There is no model file"),
            (
                self.teacher(class_names=tuple("abcd")),
                "must know the task's 10 classes. Received: ",
            ),
            (
                self.teacher((8, 8, 3)),
                "of shape (8, 8, 1). Received: one of images of shape (8, 8, 3)",
            ),
            (
                self.teacher(class_names=tuple("0123456798")),
                "Received: one with '9' where the task",
            ),
        ):
            teacher = [f"--teacher={path}"] if path else []
            self.assertIn(message, self.refuse("--method=distill", *SMALL, *teacher))

    def test_flags_that_have_no_effect_or_contradict(self):
        for arguments, message in (
            (
                ("--teacher=runs/a",),
                "--teacher has no effect with --method=fixmatch, only with dist",
            ),
            (("--rounds=0",), "--rounds must be at least 1"),
            (("--rounds=16",), "--rounds must be at least 1 and below 2**4. Received: --rounds=16"),
            (("--rounds=2", "--max_seconds=9"), "--max_seconds does not work with --rounds"),
            (("--distillation_weight=0.5",), "--distillation_weight is not a flag of method"),
            (
                ("--rounds=2", "--distillation_weight=2"),
                "`distillation_weight` argument of `Distill`",
            ),
            (("--rounds=2", "--distillation_temperature=0"), "must be above 0"),
            (("--rounds=2", "--network=wide_lenet", "--dataset=nothing"), "nothing"),
            (
                ("--rounds=2", "--method=self_label"),
                "--rounds does not go with --method=self_label",
            ),
            (
                ("--rounds=2", "--remove_labels=aum", "--distillation_weight=0.5"),
                "--distillation_weight must be 1 if the first round removes labels",
            ),
            # Mistakes that only the first round makes.
            (("--rounds=2", "--method=aum", "--num_labels=10"), "AUM needs at least 11"),
        ):
            self.assertIn(message, self.refuse(*SMALL, *arguments))


if __name__ == "__main__":
    absltest.main()
