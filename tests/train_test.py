# SPDX-License-Identifier: Apache-2.0
"""The train command end to end: real processes, real kills, and user mistakes."""

import contextlib
import itertools
import json
import logging as python_logging
import os
import signal
from unittest import mock

import keras
import numpy as np
import pytest
import toy
from absl import logging
from absl.testing import absltest, parameterized
from commands import MistakeCase, call, read, start, wait_for

from ssl_noisy import machine, networks, settings, train
from ssl_noisy.data import label_budget, sources
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint, evaluation, label_report, labeling, plots, session
from ssl_noisy.runs import folder as run_folder
from ssl_noisy.runs.training import make_learner

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = (
    "--dataset=digits",
    "--num_labels=20",
    "--network=small_cnn",
    "--batch_size=8",
    "--unlabeled_ratio=2",
    "--steps=60",
    "--steps_per_epoch=20",
    "--noplots",
)
LIGHT = (*SMALL, "--method=pseudo_label")  # a step that is traced in half of the time


def setUpModule():  # noqa: N802
    logging.set_verbosity(logging.WARNING)  # as the command does
    # It warns about many learners in one process, which these tests need.
    python_logging.getLogger("tensorflow").setLevel("ERROR")


class RunTest(absltest.TestCase):
    def test_a_run_and_its_repetition(self):
        folder = os.path.join(self.create_tempdir().full_path, "run")
        arguments = [*SMALL, f"--run_dir={folder}", "--baseline=supervised", "--plots"]
        code, out, errors = call(*arguments)
        self.assertEqual((code, errors), (0, []))
        self.assertEqual(
            set(os.listdir(folder)),
            {"baseline", "checkpoint.npz", "checkpoint.previous.npz", "curves.png", "examples.csv"}
            | {"flags.cfg"}
            | {"labels.json", "metrics.csv", "model.keras", "result.json", "tensorboard"}
            | {"timing.json", "views.png"}
            | {"aum.png", "gallery.png", "labels.png", "losses.png"},
        )
        result = json.loads(read(folder, "result.json"))
        self.assertEqual(
            (result["method"], result["baseline"]["method"]), ("fixmatch", "supervised")
        )
        self.assertEqual(result["labels_sha256"], result["baseline"]["labels_sha256"])
        self.assertEqual(read(folder, "labels.json"), read(f"{folder}/baseline", "labels.json"))
        rows = read(folder, "metrics.csv").splitlines()
        self.assertLen(rows, 4)
        self.assertContainsSubset(
            ["step", "mask_rate", "pseudo_label_accuracy", "test_accuracy", "unsupervised_loss"],
            rows[0].split(","),
        )
        self.assertIn(f"{result['test_accuracy']['last']:.2%}", out)

        # The model has the averaged weights, so it alone reproduces the accuracy of the result.
        data = sources.load("digits")
        network = keras.models.load_model(os.path.join(folder, "model.keras"), safe_mode=True)
        predicted = np.argmax(network.predict(data.test_images, verbose=0), -1)
        accuracy = np.mean(predicted == data.test_labels)
        self.assertAlmostEqual(accuracy, result["test_accuracy"]["last"], places=6)

        # A finished run returns its result without loading the data.
        with mock.patch.object(labeling, "load_dataset", side_effect=AssertionError):
            again, out, _ = call(*arguments)
        self.assertEqual(again, 0)
        self.assertNotIn("steps/s", out)

        code, _, errors = call(*arguments, "--confidence_threshold=0.5")
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertIn(
            "--confidence_threshold=0.95 there, --confidence_threshold=0.5 here", errors[0]
        )

    def test_all_learners_of_a_process_have_the_same_names(self):
        """TensorFlow orders additions by name, so other names change the last bits."""
        names = []
        for _ in range(2):  # after a baseline, and resumed in another process
            wanted = settings.Settings(method="remixmatch", network="small_cnn", steps=10)
            learner = make_learner(wanted, toy.task()[0])
            variables = [*learner.variables, *learner.optimizer.variables]
            names.append([v.path for v in variables])
        self.assertEqual(names[0], names[1])

    def test_the_flagfile_of_a_run_reproduces_it_with_images_on_the_host(self):
        first, second = (os.path.join(self.create_tempdir().full_path, n) for n in "ab")
        call(*LIGHT, "--steps=20", "--seed=3", f"--run_dir={first}")
        call(f"--flagfile={first}/flags.cfg", "--resident=host", f"--run_dir={second}")
        self.assertEqual(read(first, "result.json"), read(second, "result.json"))
        self.assertEqual(read(first, "metrics.csv"), read(second, "metrics.csv"))

    def test_a_validation_split(self):
        folder = os.path.join(self.create_tempdir().full_path, "run")
        splits = ("--train_split=train[:80%]", "--validation_split=train[80%:]")
        code, _, errors = call(*LIGHT, *splits, f"--run_dir={folder}")
        self.assertEqual((code, errors), (0, []))
        self.assertIn("validation_accuracy", read(folder, "metrics.csv"))
        result = json.loads(read(folder, "result.json"))
        self.assertIsNotNone(result["test_accuracy"]["validation_choice"])


class DefaultRecipeTest(parameterized.TestCase):
    @parameterized.parameters("", "--seed=3", "--seed 3 --steps=20 --run_dir x", "-noplots")
    def test_flags_that_do_not_choose_what_to_train(self, arguments):
        self.assertTrue(train.is_open(arguments.split()))

    @parameterized.parameters(
        "--method=elr", "--seed=1 --batch_size 8", "--flagfile=a", "--stpes=5"
    )
    def test_flags_that_choose_what_to_train(self, arguments):
        self.assertFalse(train.is_open(arguments.split()))

    @pytest.mark.slow
    def test_the_first_line_names_the_recipe(self):
        folder = os.path.join(self.create_tempdir().full_path, "run")
        out, errors = start("--steps=2", f"--run_dir={folder}").communicate()
        self.assertEqual(errors, "")
        lines = out.splitlines()
        self.assertIn("Running the recipe", lines[0])
        self.assertIn("supervised on digits: 1297 images, 20 labeled; small_cnn", lines[1])


class ResumeTest(absltest.TestCase):
    def checkpoints(self, folder):
        path = os.path.join(folder, checkpoint.NAME)
        with contextlib.suppress(OSError):
            return os.stat(path).st_mtime_ns
        return 0

    @pytest.mark.slow
    def test_a_run_killed_at_any_moment_resumes_to_identical_results(self):
        """SIGKILL before a checkpoint, within an epoch, after it and at the end; SIGINT between.

        Each process has the images elsewhere than the one before.
        """
        undisturbed, folder = (os.path.join(self.create_tempdir().full_path, n) for n in "ab")
        # Long enough to be stopped in time. Pictures are drawn between model and result.
        arguments = [*SMALL, "--steps=120", "--steps_per_epoch=40", "--plots"]
        arguments.append("--checkpoint_seconds=0")
        whole = start(*arguments, f"--run_dir={undisturbed}")

        def exists(name):
            return lambda: os.path.exists(os.path.join(folder, name))

        def another_checkpoint(count=1):
            seen = set()

            def condition():
                seen.add(self.checkpoints(folder))
                return len(seen) > count

            return condition

        places = itertools.cycle(("host", "device"))
        for condition, signum in (
            (exists("flags.cfg"), signal.SIGKILL),
            (another_checkpoint(7), signal.SIGKILL),
            (another_checkpoint(6), signal.SIGINT),
            (exists("metrics.csv"), signal.SIGKILL),
            (exists("model.keras"), signal.SIGKILL),
        ):
            process = start(*arguments, f"--resident={next(places)}", f"--run_dir={folder}")
            wait_for(process, condition)
            process.send_signal(signum)
            _, errors = process.communicate()
            if signum == signal.SIGINT:
                self.assertEqual(process.returncode, 130, errors)
                self.assertIn("Run the same command to resume", errors)
                self.assertNotIn("Traceback", errors)
            else:
                self.assertEqual(process.returncode, -signal.SIGKILL)
            self.assertFalse(exists("result.json")())

        process = start(*arguments, f"--run_dir={folder}")
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 0, errors)
        whole.communicate()
        self.assertEqual(read(folder, "result.json"), read(undisturbed, "result.json"))
        self.assertEqual(read(folder, "metrics.csv"), read(undisturbed, "metrics.csv"))
        self.assertEmpty([name for name in os.listdir(folder) if name.endswith(".tmp")])

    def test_a_resumed_run_reads_its_labels(self):
        folder = os.path.join(self.create_tempdir().full_path, "run")
        call(*LIGHT, "--steps=20", f"--run_dir={folder}")
        os.remove(os.path.join(folder, "result.json"))
        labels = json.loads(read(folder, "labels.json"))
        labels["indices"][0] = 10**6
        with open(os.path.join(folder, "labels.json"), "w") as file:
            json.dump(labels, file)
        code, _, errors = call(*LIGHT, "--steps=20", f"--run_dir={folder}")
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertIn("labels.json", errors[0])

    @pytest.mark.slow
    def test_a_damaged_checkpoint_falls_back_with_a_warning(self):
        folder, whole = (os.path.join(self.create_tempdir().full_path, n) for n in "ab")
        call(*LIGHT, f"--run_dir={whole}")
        call(*LIGHT, f"--run_dir={folder}")
        os.remove(os.path.join(folder, "result.json"))
        with open(os.path.join(folder, checkpoint.NAME), "r+b") as file:
            file.seek(2000)
            file.write(b"\xff" * 100)
        with self.assertLogs(level="WARNING") as logs:
            code, _, _ = call(*LIGHT, f"--run_dir={folder}")
        self.assertEqual(code, 0)
        self.assertRegex(logs.output[0], "checkpoint.npz is damaged .* Falling back")
        self.assertEqual(read(folder, "result.json"), read(whole, "result.json"))


class MistakeTest(MistakeCase):
    @parameterized.parameters(
        ("--method=fixmtach", "Unknown method 'fixmtach'. Did you mean 'fixmatch'?"),
        ("--network=wrn_28_3_1", "wrn"),
        ("--network=wrn_27_2", "depth"),
        ("--network=smal_cnn", "small_cnn"),
        ("--dataset=digts", "digits"),
        ("--dataset=npz:/no/such/file.npz", "/no/such/file.npz"),
        ("--dataset=folder:/no/such/folder", "/no/such/folder"),
        ("--num_labels=9", "A balanced draw"),
        ("--num_labels=100000", "Received: 100000"),
        ("--num_labels=-1", "--num_labels must be"),
        ("--batch_size=0", "`batch_size` argument of `FixMatch` must be at least 1"),
        ("--confidence_threshold=nan", "`confidence_threshold` argument of `FixMatch` must be in"),
        ("--unsupervised_weight=inf", "`unsupervised_weight` argument"),
        ("--ema_momentum=1.5", "`ema_momentum` argument of `FixMatch` must be in [0, 1)"),
        ("--batch_norm_momentum=1", "--batch_norm_momentum must be in [0, 1)"),
        ("--strong_augmentation=strong", "one of google_code, paper, torchssl"),
        ("--steps=zero", "steps"),
        ("--label_file=/no/such/labels.json", "/no/such/labels.json"),
        ("--flagfile=/no/such/recipe.cfg", "/no/such/recipe.cfg"),
        ("--train_split=train[:oops]", "train[:oops]"),
        ("--baseline=supervisd", "Unknown method 'supervisd'. Did you mean 'supervised'?"),
        ("surprise", "Unexpected arguments: surprise"),
    )
    def test_one_line(self, argument, message):
        self.assertIn(message, self.refuse(*SMALL, argument))

    def test_a_flag_of_another_method(self):
        error = self.refuse("--method=supervised", "--unlabeled_ratio=3")
        self.assertIn("is not a flag of method 'supervised', which takes: --average_stat", error)

    def test_a_malformed_flagfile(self):
        path = self.create_tempfile(content="--steps=5  # few\n").full_path
        self.assertIn("steps", self.refuse(f"--flagfile={path}"))

    @parameterized.parameters("not json", "{}", '{"indices": [0, 0]}')
    def test_a_malformed_label_file(self, content):
        path = self.create_tempfile(content=content).full_path
        self.assertIn(path, self.refuse(*SMALL, f"--label_file={path}"))

    def test_a_label_file_of_another_data_set(self):
        rng = np.random.default_rng(0)
        other = os.path.join(self.create_tempdir().full_path, "other.npz")
        arrays = {
            "images_train": rng.integers(0, 256, (40, 8, 8, 1), "uint8"),
            "labels_train": np.arange(40) % 10,
            "images_test": rng.integers(0, 256, (10, 8, 8, 1), "uint8"),
            "labels_test": np.arange(10),
        }
        np.savez(other, **arrays)
        folder = os.path.join(self.create_tempdir().full_path, "run")
        code, _, errors = call(*LIGHT, f"--dataset=npz:{other}", "--steps=2", f"--run_dir={folder}")
        self.assertEqual((code, errors), (0, []))
        error = self.refuse(*LIGHT, f"--label_file={folder}/labels.json")
        self.assertIn("labels.json", error)
        both = (f"--dataset=npz:{other}", f"--label_file={folder}/labels.json", "--num_labels=30")
        self.assertIn("labels 20 examples. Received: --num_labels=30", self.refuse(*LIGHT, *both))

    def test_a_folder_with_other_files(self):
        folder = self.create_tempdir()
        folder.create_file("thesis.tex")
        code, _, errors = call(*SMALL, f"--run_dir={folder.full_path}")
        self.assertEqual(code, 2)
        self.assertIn("is not empty and is not a run folder", errors[0])
        self.assertEqual(os.listdir(folder.full_path), ["thesis.tex"])

    def test_a_folder_that_cannot_be_written(self):
        path = self.create_tempfile(content="a file").full_path
        code, _, errors = call(*SMALL, f"--run_dir={path}/run")
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertIn("Cannot write", errors[0])

    def test_a_loss_that_is_not_finite_stops_the_run(self):
        folder = os.path.join(self.create_tempdir().full_path, "run")
        code, _, errors = call(
            *LIGHT, "--learning_rate=1e30", "--checkpoint_seconds=0", f"--run_dir={folder}"
        )
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertRegex(errors[0], r"not finite from step \d+ on \(.*supervised_loss")
        self.assertIn("--learning_rate", errors[0])
        self.assertIn(f"choose another --run_dir: {folder} keeps what was saved", errors[0])
        self.assertFalse(os.path.exists(os.path.join(folder, "result.json")))
        with np.load(os.path.join(folder, checkpoint.NAME)) as archive:
            for key in archive.files:
                if archive[key].dtype.kind == "f":
                    self.assertTrue(np.isfinite(archive[key]).all())

    def test_weights_that_are_not_finite_are_never_saved(self):
        """The update after a finite loss can make weights infinite before a loss shows it."""
        folder = os.path.join(self.create_tempdir().full_path, "run")
        steps = ("--steps=2", "--steps_per_epoch=1", "--checkpoint_seconds=0")
        code, _, errors = call(*LIGHT, *steps, "--learning_rate=1e39", f"--run_dir={folder}")
        self.assertEqual(code, 2)
        self.assertLen(errors, 1)
        self.assertIn("no longer finite", errors[0])
        with np.load(os.path.join(folder, checkpoint.NAME)) as archive:
            self.assertEqual(json.loads(str(archive["record"]))["step"], 0)
            for key in archive.files:
                if archive[key].dtype.kind == "f":
                    self.assertTrue(np.isfinite(archive[key]).all())

    @parameterized.parameters(
        (("--noinclude_labeled", "--num_labels=1297"), "Label fewer of them (--num_labels)."),
        (("--dataset=npz:{}",), "1 or 3 channels"),
    )
    def test_data_that_the_method_cannot_use(self, arguments, message):
        path = os.path.join(self.create_tempdir().full_path, "four_channels.npz")
        labels = np.arange(40) % 10
        images = np.zeros((40, 8, 8, 4), "uint8")
        np.savez(
            path, images_train=images, labels_train=labels, images_test=images, labels_test=labels
        )
        arguments = [argument.format(path) for argument in arguments]
        self.assertIn(message, self.refuse(*SMALL, "--label_draw=uniform", *arguments))

    @parameterized.parameters(f"flags.cfg.{'0f' * 16}.tmp", "")
    def test_a_folder_is_usable_after_a_kill_at_the_start(self, left):
        folder = self.create_tempdir()
        if left:
            folder.create_file(left)
        code, _, errors = call(*LIGHT, "--steps=2", f"--run_dir={folder.full_path}")
        self.assertEqual((code, errors), (0, []))
        self.assertNotIn(left or "x", os.listdir(folder.full_path))

    def test_a_folder_that_another_process_uses(self):
        folder = self.create_tempdir().full_path
        with run_folder.only_process(folder):
            code, _, errors = call(*SMALL, f"--run_dir={folder}")
        self.assertEqual(code, 2)
        self.assertIn("Another process is training in", errors[0])
        self.assertEmpty(os.listdir(folder))

    def test_ctrl_c_outside_the_training(self):
        with mock.patch.object(labeling, "load_dataset", side_effect=KeyboardInterrupt):
            code, _, errors = call(*SMALL, f"--run_dir={self.create_tempdir().full_path}/run")
        self.assertEqual(code, 130)
        self.assertEqual(errors[-1], "train: stopped. Run the same command to resume or restart.")

    def test_help_lists_the_flags_and_the_methods_that_take_them(self):
        process = start("--help")
        out, errors = process.communicate()
        self.assertEqual((process.returncode, errors), (0, ""))
        for text in (
            "--num_labels",
            "--confidence_threshold",
            "Default: False (fixmatch)",
            "--run_dir",
        ):
            self.assertIn(text, out)

    def test_a_process_prints_one_line_and_no_traceback(self):
        process = start("--method=fixmtach")
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 2)
        self.assertEqual(len(errors.splitlines()), 1, errors)
        self.assertStartsWith(errors, "ssl_noisy.train: Unknown method 'fixmtach'.")

    @pytest.mark.slow
    def test_a_process_prints_one_line_about_an_unknown_data_set(self):
        folder = f"--run_dir={self.create_tempdir().full_path}/run"
        _, errors = start("--dataset=digts", folder).communicate()
        self.assertEqual(len(errors.splitlines()), 1, errors)
        self.assertStartsWith(errors, "ssl_noisy.train: Unknown data set 'digts'. Nearest: digits")

    @pytest.mark.slow
    def test_bugs_keep_their_traceback(self):
        """Some bugs raise ValueError, as mistakes do, or OSError, as full disks do."""

        def unpack(*args, **kwargs):
            _, _ = [1]

        def look_up(*args, **kwargs):
            return {}["a"]

        def read_a_file(*args, **kwargs):
            open("/no/such/file")

        small = [argument for argument in SMALL if "unlabeled" not in argument]
        small += ["--method=supervised", "--steps=1", "--steps_per_epoch=1", "--plots"]
        folder = os.path.join(self.create_tempdir().full_path, "run")
        for module, name, bug, error in (
            (sources, "load", unpack, ValueError),
            (label_budget, "draw", read_a_file, OSError),
            (networks, "build", look_up, KeyError),
            (json, "dumps", unpack, ValueError),  # where labels.json is written
            (checkpoint, "restore", read_a_file, OSError),
            (evaluation, "evaluate", unpack, ValueError),
            (session, "write_metrics", read_a_file, OSError),
            (checkpoint.np, "savez", read_a_file, OSError),
            (label_report, "examine", look_up, KeyError),
            (plots, "curves", unpack, ValueError),
            (machine, "environment", read_a_file, OSError),
        ):
            with (
                self.subTest(name),
                mock.patch.object(module, name, bug),
                self.assertRaises(error) as caught,
            ):
                call(*small, f"--run_dir={folder}")
            self.assertNotIsInstance(caught.exception, UserError)


if __name__ == "__main__":
    absltest.main()
