# SPDX-License-Identifier: Apache-2.0
"""Damaged and unwritable run folders: the error is one line, and its advice helps."""

import errno
import json
import os
import shutil
import tempfile
from unittest import mock

import pytest
from absl import logging
from absl.testing import absltest, parameterized
from commands import call, largest_file, read

from ssl_noisy import files
from ssl_noisy.runs import checkpoint, folder

SMALL = (
    "--dataset=digits",
    "--method=supervised",
    "--noise=symmetric:0.4",
    "--num_labels=100",
    "--network=small_cnn",
    "--batch_size=20",
    "--steps=4",
    "--steps_per_epoch=2",
    "--noplots",
)


def setUpModule():  # noqa: N802
    logging.set_verbosity(logging.WARNING)  # as the command does


def contents(run_dir):
    """Returns the text of each file that must be equal in two equal runs."""
    found = {}
    for name in folder.FILES - {folder.TIMING, folder.MODEL, folder.FLAGS}:
        path = os.path.join(run_dir, name)
        if os.path.exists(path) and not path.endswith(("npz", "png")):
            found[name] = read(run_dir, name)
    return found


class FolderCase(parameterized.TestCase):
    arguments = SMALL

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        parent = tempfile.TemporaryDirectory()
        cls.addClassCleanup(parent.cleanup)
        cls.finished = os.path.join(parent.name, "run")
        code, _, errors = call(*cls.arguments, f"--run_dir={cls.finished}")
        if code:
            raise AssertionError(errors)

    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.create_tempdir().full_path, "run")
        shutil.copytree(self.finished, self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def remove(self, *names):
        for name in names:
            path = self.path(name)
            (shutil.rmtree if os.path.isdir(path) else os.remove)(path)

    def call(self, *arguments):
        return call(*self.arguments, *arguments, f"--run_dir={self.folder}")

    def refuse(self, name, *arguments):
        """Asserts that the error is one line that names the file."""
        code, out, errors = self.call(*arguments)
        self.assertEqual(code, 2, errors)
        self.assertLen(errors, 1)
        self.assertIn(self.path(name), errors[0])
        self.assertNotIn("by protocol", out)  # no result is shown
        return errors[0]

    def assert_same_results(self):
        code, _, errors = self.call()
        self.assertEqual((code, errors), (0, []))
        self.assertEqual(contents(self.folder), contents(self.finished))


class DamagedTest(FolderCase):
    def test_result(self):
        text = read(self.folder, "result.json")
        for damaged in (
            "",
            text[: len(text) // 2],
            "\0\udcff\udcfe",
            "[]",
            "[" * 100_000,
            "{}",
            text.replace('"last": 0.', '"last": NaN, "was": 0.'),
            text.replace('"steps": 4', '"steps": 5'),
            text.replace('"method"', '"way"'),
        ):
            self.assertNotEqual(damaged, text)
            with open(self.path("result.json"), "wb") as file:
                file.write(damaged.encode(errors="surrogateescape"))
            error = self.refuse("result.json")
            self.assertIn("Delete it and run the same command again", error)
        with mock.patch.object(
            checkpoint, "save", side_effect=AssertionError
        ):  # no step is trained
            self.remove("result.json")
            self.assert_same_results()

    def test_an_unfinished_run_that_began_before_some_settings_existed(self):
        self.remove("result.json")
        lines = read(self.folder, "flags.cfg").splitlines()
        self.assertNotIn("--freeze", [line.partition("=")[0] for line in lines])
        self.assert_same_results()
        code, _, errors = self.call("--freeze=backbone")
        self.assertEqual(code, 2)
        self.assertIn("(none) there, --freeze=backbone here", errors[0])

    def test_a_result_that_a_tool_reformatted(self):
        result = json.loads(read(self.folder, "result.json"))
        with open(self.path("result.json"), "w") as file:
            json.dump(result, file, sort_keys=True)
        self.assertEqual(self.call()[0], 0)

    def test_flags(self):
        for content in (b"--steps=\xff\n", None):
            self.remove("flags.cfg")
            if content is None:
                os.mkdir(self.path("flags.cfg"))
            else:
                with open(self.path("flags.cfg"), "wb") as file:
                    file.write(content)
            error = self.refuse("flags.cfg")
            self.assertIn("Restore the file, or choose another --run_dir", error)
        self.remove("flags.cfg")
        shutil.copy(os.path.join(self.finished, "flags.cfg"), self.path("flags.cfg"))
        self.assertEqual(self.call()[0], 0)

    def test_files_that_the_run_reads(self):
        self.remove("result.json", checkpoint.PREVIOUS_NAME)
        for name, message in (
            ("labels.json", "belongs to this run. If the data has not changed, delete the file"),
            ("noise.npz", "belongs to this run. If the data has not changed, delete the file"),
            ("checkpoint.npz", "to train from the start"),
        ):
            for content in (b"", b"PK\xff{"):
                with open(self.path(name), "wb") as file:
                    file.write(content)
                self.assertIn(message, self.refuse(name))
            self.remove(name)
        self.assert_same_results()

    def test_both_checkpoints(self):
        self.remove("result.json")
        for name in (checkpoint.NAME, checkpoint.PREVIOUS_NAME):
            with open(self.path(name), "r+b") as file:
                file.truncate(1000)
        self.assertIn(self.path(checkpoint.NAME), self.refuse(checkpoint.PREVIOUS_NAME))

    def test_a_directory_with_the_name_of_a_file(self):
        """The error comes before the training, not after it."""
        self.remove("result.json")
        for name in ("model.keras", "metrics.csv", "checkpoint.npz", "aum.png"):
            kept = os.path.exists(self.path(name))
            if kept:
                os.rename(self.path(name), self.path("kept"))
            os.mkdir(self.path(name))
            self.assertIn("is not a regular file. Remove it", self.refuse(name))
            self.remove(name)
            if kept:
                os.rename(self.path("kept"), self.path(name))

    def test_a_pipe_with_the_name_of_a_file_and_a_file_with_that_of_a_directory(self):
        self.remove("result.json", "tensorboard")
        os.mkfifo(self.path("result.json"))
        self.assertIn("is not a regular file. Remove it", self.refuse("result.json"))
        self.remove("result.json")
        with open(self.path("tensorboard"), "w"):
            pass
        self.assertIn("is not a directory. Remove it", self.refuse("tensorboard"))
        self.remove("tensorboard")
        self.assert_same_results()

    @pytest.mark.slow
    def test_a_run_checks_all_files_that_it_writes(self):
        names = set(os.listdir(self.folder))
        self.assertContainsSubset(names, folder.FILES | folder.FOLDERS)
        for kind in ("png", "svg"):  # another format does not make another run
            run = [*SMALL, "--plots", "--baseline=gce", f"--run_dir={self.folder}/plots"]
            self.assertEqual(call(*run, f"--plot_format={kind}")[0], 0)
            pictures = {n for n in os.listdir(self.path("plots")) if n.endswith(kind)}
            self.assertContainsSubset({f"curves.{kind}", f"labels.{kind}"}, pictures)
            self.assertContainsSubset(pictures, folder.FILES)
            self.remove("plots/result.json")
        with open(self.path("plots/curves.svg")) as file:
            self.assertIn("<!-- test accuracy of the baseline gce -->", file.read())

    def test_a_run_dir_that_is_a_file(self):
        path = self.create_tempfile().full_path
        code, _, errors = call(*SMALL, f"--run_dir={path}")
        self.assertEqual((code, len(errors)), (2, 1))
        self.assertIn(f"Cannot read the folder {path}: Not a directory", errors[0])


class UnwritableTest(FolderCase):
    @pytest.mark.slow
    def test_at_the_end(self):
        self.remove("result.json")
        replace = os.replace
        for name in ("flags.cfg", "examples.csv", "model.keras", "timing.json", "result.json"):

            def full(source, target, name=name):
                if os.path.basename(target) == name:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                replace(source, target)

            there = os.path.exists(self.path(name)) and os.stat(self.path(name)).st_mtime_ns
            with mock.patch.object(os, "replace", full):
                error = self.refuse(name)
            self.assertIn("No space left on device. Free some disk space.", error)
            self.assertFalse(any(files.is_left_over(n) for n in os.listdir(self.folder)))
            self.assertFalse(os.path.exists(self.path("result.json")))
            if there:
                self.assertEqual(os.stat(self.path(name)).st_mtime_ns, there)
        self.assert_same_results()

    @pytest.mark.slow
    def test_from_the_start(self):
        """With a limit on the size of files, small files are written and large ones fail."""
        self.remove(*os.listdir(self.folder))
        for size, name in ((100, "flags.cfg"), (1200, "noise.npz"), (20_000, "checkpoint.npz")):
            with largest_file(size):
                self.assertIn("File too large", self.refuse(name))
            self.assertFalse(os.path.exists(self.path(name)))
            self.assertFalse(any(files.is_left_over(n) for n in os.listdir(self.folder)))
        self.assert_same_results()


class FailedStartTest(FolderCase):
    wrong = ("--learning_rate=1e38", "--steps=8", "--steps_per_epoch=8")

    def test_other_flags_can_use_a_folder_in_which_nothing_was_saved(self):
        self.remove(*os.listdir(self.folder))
        code, _, errors = self.call(*self.wrong)
        self.assertEqual((code, len(errors)), (2, 1), errors)
        self.assertIn("not finite", errors[0])
        self.assertIn(f"a run with other flags can use {self.folder}.", errors[0])
        self.assert_same_results()
        self.assertLen(os.listdir(self.path("tensorboard")), 1)  # that of the failed run is gone

    def test_a_folder_with_a_checkpoint_stays(self):
        self.remove("result.json")
        kept = contents(self.folder)
        code, _, errors = self.call("--learning_rate=0.5")
        self.assertEqual((code, len(errors)), (2, 1))
        self.assertIn("belongs to a run with other flags: --learning_rate=0.03", errors[0])
        self.assertEqual(contents(self.folder), kept)

    def test_other_files_stay(self):
        """A folder with nothing but the flags and labels of a user must not be cleared."""
        self.remove(*[n for n in os.listdir(self.folder) if n not in ("flags.cfg", "labels.json")])
        kept = contents(self.folder)
        code, _, errors = self.call("--learning_rate=0.5")
        self.assertEqual((code, len(errors)), (2, 1))
        self.assertEqual(contents(self.folder), kept)
        with open(self.path("thesis.tex"), "w"):
            pass
        self.assertTrue(folder.discard(self.folder))
        self.assertEqual(os.listdir(self.folder), ["thesis.tex"])
        with open(self.path("checkpoint.npz"), "w"):
            pass
        self.assertFalse(folder.discard(self.folder))
        self.assertLen(os.listdir(self.folder), 2)


@pytest.mark.slow
class PassesTest(FolderCase):
    arguments = (*SMALL, "--method=aum", "--pass_batch_size=20", "--baseline=supervised")

    def test_damaged_files_of_passes_and_baseline(self):
        self.remove("result.json")
        names = ("pass_1/result.json", "pass_2/examples.csv", "baseline/result.json")
        texts = {name: read(self.folder, name) for name in names}
        for name, text in texts.items():
            for content in (text[: len(text) // 2], ""):
                with open(self.path(name), "w") as file:
                    file.write(content)
                self.assertIn("delete it", self.refuse(name).lower())
            with open(self.path(name), "w") as file:
                file.write(text)
        self.remove(*names)
        self.assert_same_results()
        self.assertEqual({name: read(self.folder, name) for name in names}, texts)

    def test_examples_of_another_run(self):
        text = read(self.folder, "pass_1/examples.csv").splitlines(keepends=True)
        self.remove("result.json")
        cells = text[1].split(",")
        for changed in (
            text[:-1],
            [*text[:1], ",".join(["99999", *cells[1:]]), *text[2:]],
            [*text[:1], ",".join([*cells[:4], "77", *cells[5:]]), *text[2:]],
        ):
            with open(self.path("pass_1/examples.csv"), "w") as file:
                file.write("".join(changed))
            self.assertIn("Delete it", self.refuse("pass_1/examples.csv"))


if __name__ == "__main__":
    absltest.main()
