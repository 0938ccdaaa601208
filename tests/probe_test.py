# SPDX-License-Identifier: Apache-2.0
"""The probe command end to end, and feature detectors in a training."""

import contextlib
import csv
import io
import json
import os
from unittest import mock

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized
from commands import call, read

from ssl_noisy import command, probe, report
from ssl_noisy.data import feature_file, label_noise, sources
from ssl_noisy.errors import UserError
from ssl_noisy.labels import detection
from ssl_noisy.runs import frozen, labeling

NOISY = ("--dataset=digits", "--noise=symmetric:0.4")
FEW = ("--dataset=digits", "--num_labels=20", "--by=label_propagation")


def write_pixels(path, extractor="pixels", rows=slice(None), change=None):
    """Writes the pixels of the digits as features."""
    data = sources.load("digits")
    images = np.concatenate([data.images, data.test_images])[rows]
    digests, first = np.unique(feature_file.digests(images), return_index=True)
    features = images[first].reshape(len(first), -1).astype("float32") / 255
    if change is not None:
        features[:, 0] = change
    with feature_file.writing(path, digests, extractor, "key") as writer:
        writer.append(features)
    return path


def run(*arguments, main=probe):
    """Runs a command in this process and returns its exit code, output and error lines."""
    values = flags.FlagValues()
    main.define_flags(values)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            wanted = main.read_flags(["probe", *arguments], values)
        except (flags.Error, UserError) as error:
            code = command.fail("probe", error)
        else:
            code = command.execute("probe", main.main, wanted)
    return code, out.getvalue(), err.getvalue().splitlines()


class ProbeCase(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.pixels = write_pixels(os.path.join(absltest.get_default_test_tmpdir(), "pixels.npz"))

    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.create_tempdir().full_path, "probe")
        self.here = (f"--features={self.pixels}", f"--run_dir={self.folder}")

    def result(self):
        return json.loads(read(self.folder, "result.json"))


class ProbeTest(ProbeCase):
    def test_ni_erm_and_its_folder(self):
        code, out, errors = run(*NOISY, "--by=ni_erm", *self.here)
        self.assertEqual((code, errors), (0, []))
        self.assertEqual(
            set(os.listdir(self.folder)),
            {"examples.csv", "flags.cfg", "labels.json", "metrics.csv", "noise.npz", "result.json"}
            | {"timing.json"},
        )
        result = self.result()
        self.assertIn(f"{result['test_accuracy']['last']:.2%}", out)
        self.assertGreater(result["test_accuracy"]["last"], 0.9)
        self.assertIsNone(result["test_accuracy"]["best_on_test_oracle"])
        confusion, data = np.array(result["confusion_matrix"]), sources.load("digits")
        recall = np.diag(confusion) / np.bincount(data.test_labels)
        np.testing.assert_allclose(list(result["per_class_recall"].values()), recall)
        choice = result["choice"]
        self.assertIn(f"{choice['C']:g}, {choice['max_iter']}", out)
        self.assertIn(f"{choice['cross_validation_accuracy']:.2%}", out)
        self.assertEqual(result["features"]["extractor"], "pixels")
        self.assertNotIn("legal", out)

        examples = detection.read_examples(os.path.join(self.folder, "examples.csv"))
        with np.load(os.path.join(self.folder, "noise.npz"), allow_pickle=False) as noise:
            np.testing.assert_array_equal(examples["given_label"], noise["given_labels"])
        differs = examples["predicted_label"] != examples["given_label"]
        quality = result["label_quality"]
        self.assertEqual(quality["label_issues"]["contradicted"], differs.sum())
        # With confidence: at least as probable as labels of that class are on average.
        margins, own = examples["probability_margin"], examples["label_probability"]
        np.testing.assert_array_equal(margins < 0, differs)
        usual = [own[examples["given_label"] == label].mean() for label in range(10)]
        other = (own - margins)[differs]
        count = (other >= np.array(usual)[examples["predicted_label"][differs]]).sum()
        self.assertLess(count, differs.sum())
        smallest = np.argsort(margins)[:count]
        self.assertEqual(set(np.flatnonzero(examples["is_label_issue"])), set(smallest))
        np.testing.assert_array_equal(examples["is_label_issue"], examples["label_quality"] < 0.5)
        self.assertAlmostEqual(1 - differs.mean(), choice["cross_validation_accuracy"], places=3)
        self.assertEqual(quality["label_issues"]["count"], count)
        self.assertEqual(
            list(quality["detectors"]),
            ["label_issues", "feature_vote", "feature_rank", "feature_margin"],
        )
        for name, one in quality["detectors"].items():
            self.assertGreater(one["f1"], 0.85, name)

        # The report reads the folder, with the flags to repeat and to correct it.
        path = os.path.join(self.folder, "report.html")
        self.assertEqual(run(self.folder, f"--output={path}", main=report)[0], 0)
        self.assertIn("python -m ssl_noisy.probe --flagfile=", read(self.folder, "report.html"))

        # The same command returns the result without loading the data.
        with mock.patch.object(labeling, "load_dataset", side_effect=AssertionError):
            again, repeated, _ = run(*NOISY, *self.here)
        self.assertEqual((again, repeated), (0, out))
        code, _, errors = run(*NOISY, "--seed=1", *self.here)
        self.assertEqual(code, 2)
        self.assertIn("--seed=0 there", errors[0])
        self.assertIn("--by=ni_erm --features=", call(*NOISY, f"--run_dir={self.folder}")[2][0])

    def test_the_same_flags_give_the_same_files(self):
        run(*NOISY, "--by=logistic", *self.here)
        other = self.folder + "_again"
        run(f"--flagfile={self.folder}/flags.cfg", f"--run_dir={other}")
        for name in ("flags.cfg", "labels.json", "examples.csv", "result.json"):
            self.assertEqual(read(self.folder, name), read(other, name), name)
        choice = self.result()["choice"]
        self.assertEqual((choice["C"], choice["max_iter"]), (1.0, 100))
        # A killed one, which has no result yet, resumes with its own labels.
        os.remove(os.path.join(self.folder, "result.json"))
        with mock.patch.object(label_noise, "make", side_effect=AssertionError):
            run(*NOISY, "--by=logistic", *self.here)
        self.assertEqual(read(self.folder, "result.json"), read(other, "result.json"))

    def test_label_propagation_of_few_labels(self):
        code, out, errors = run(*FEW, *self.here)
        self.assertEqual((code, errors), (0, []))
        result = self.result()
        self.assertGreater(result["test_accuracy"]["last"], 0.7)
        self.assertGreater(result["choice"]["unlabeled_accuracy"], 0.7)
        self.assertIn(f"{result['choice']['unlabeled_accuracy']:.2%}", out)
        self.assertIn("Weak evidence: there are only 2 labels per class.", out)

    def test_clean_labels_are_no_issues(self):
        self.assertEqual(run(NOISY[0], *self.here)[0], 0)
        report = self.result()["label_quality"]
        self.assertLessEqual(report["label_issues"]["count"], 3)  # of 1,297
        self.assertGreater(report["detectors"]["feature_margin"]["flagged"], 30)

    def test_one_label_per_class_says_nothing_about_labels(self):
        code, out, errors = run(*FEW, "--num_labels=10", *self.here)
        self.assertEqual((code, errors), (0, []))
        self.assertIsNone(self.result()["choice"]["cross_validation_accuracy"])
        self.assertIn("0 of 10 labels", out)
        self.assertIn("10 labels are the only ones of their class", out)

    @parameterized.parameters(
        ("keras:MobileNetV2 with weights imagenet", frozen.NOT_LEGAL),
        ("hub:dinov2_small", frozen.NOT_LEGAL),
        ("", frozen.PERHAPS_LEGAL),
        ("runs/a/model.keras", frozen.PERHAPS_LEGAL),
    )
    def test_what_the_challenge_allows(self, extractor, note):
        path = write_pixels(os.path.join(self.create_tempdir().full_path, "f.npz"), extractor)
        code, out, _ = run(*FEW, f"--features={path}", f"--run_dir={self.folder}")
        self.assertEqual(code, 0)
        self.assertIn(note, out)
        self.assertIn(f"features of {extractor or 'unknown'}", out)


class MistakeTest(ProbeCase):
    def refuse(self, *arguments):
        code, out, errors = run(*arguments)
        self.assertEqual((code, out), (2, ""), errors)
        self.assertLen(errors, 1)
        self.assertFalse(os.path.exists(self.folder))
        return errors[0]

    @parameterized.parameters(
        ("--test_split=none", "needs test images"),
        ("--num_labels=1", "2 classes"),
        ("--by=svm", "ni_erm"),
        ("--features=", "Pass --features=FILE"),
        ("--features=/no/such.npz", "/no/such.npz"),
        ("--run_dir=", "Pass --run_dir=DIR"),
        ("--label_file=/no/such.json", "/no/such.json"),
    )
    def test_one_line(self, argument, message):
        arguments = (*NOISY[:1], "--label_draw=first", *self.here, argument)
        self.assertIn(message, self.refuse(*arguments))

    def test_features_of_other_data_and_bad_numbers(self):
        path = os.path.join(self.create_tempdir().full_path, "f.npz")
        here = (*NOISY, f"--features={path}", f"--run_dir={self.folder}")
        write_pixels(path, rows=slice(1000))
        self.assertIn("training images of 'digits'", self.refuse(*here))
        write_pixels(path, rows=slice(1500))
        self.assertIn("test images of 'digits'", self.refuse(*here))
        write_pixels(path, change=np.nan)
        self.assertIn("NaN", self.refuse(*here))
        np.savez(path, ids=np.arange(3), features=np.zeros((3, 2, 2), "float32"))
        self.assertIn("(3, 2, 2)", self.refuse(*here))

    def test_a_feature_file_that_has_changed(self):
        path = os.path.join(self.create_tempdir().full_path, "f.npz")
        write_pixels(path)
        here = (*FEW, f"--features={path}", f"--run_dir={self.folder}")
        self.assertEqual(run(*here)[0], 0)
        write_pixels(path, change=0.5)
        code, _, errors = run(*here)
        self.assertEqual(code, 2)
        self.assertIn("has changed since", errors[0])
        os.remove(path)
        self.assertEqual(run(*here)[0], 0)


class TrainTest(ProbeCase):
    flags = (*NOISY, "--method=supervised", "--network=small_cnn", "--batch_size=20", "--noplots")
    flags += ("--steps=20", "--steps_per_epoch=20")

    def test_feature_detectors_are_beside_those_of_the_record_and_the_method(self):
        small = (*self.flags, "--method=cores", "--num_labels=200", "--baseline=gce")
        code, out, errors = call(*small, *self.here)
        self.assertEqual((code, errors), (0, []))
        names = ["cores_sieve", "feature_vote", "feature_rank", "feature_margin", "feature_linear"]
        report = self.result()["label_quality"]["detectors"]
        self.assertEqual(list(report)[-5:], names)
        baseline = self.result()["baseline"]["label_quality"]["detectors"]
        self.assertNotIn("feature_vote", baseline)  # nothing of it depends on the method
        examples = os.path.join(self.folder, "examples.csv")
        rows = list(csv.DictReader(read(self.folder, "examples.csv").splitlines()))
        for name in names:
            self.assertIn(name, out)
            if name not in ("cores_sieve", "feature_linear"):  # in 20 steps; of images alone
                self.assertGreater(report[name]["average_precision"], 0.7)
            flagged = sum(row[f"is_{name}_issue"] == "True" for row in rows)
            self.assertEqual(report[name]["flagged"], flagged)
        score = np.array([float(row["feature_margin"]) for row in rows])
        np.testing.assert_array_equal(
            score > 0, [row["is_feature_margin_issue"] == "True" for row in rows]
        )
        self.assertLen(detection.read_examples(examples)["index"], 200)

    def test_two_labels(self):
        code, _, errors = call(
            *("--method=supervised", "--network=small_cnn", "--noplots", "--steps=2"),
            *("--batch_size=2", "--num_labels=2", "--label_draw=uniform"),
            *self.here,
        )
        self.assertEqual((code, errors), (0, []))
        rows = list(csv.DictReader(read(self.folder, "examples.csv").splitlines()))
        self.assertEqual([row["feature_vote"] for row in rows], ["", ""])

    def test_a_bad_file_is_an_error_before_the_training(self):
        path = os.path.join(self.create_tempdir().full_path, "f.npz")
        write_pixels(path, rows=slice(1000))
        code, out, errors = call(*self.flags, f"--features={path}", f"--run_dir={self.folder}")
        self.assertEqual((code, out), (2, ""))
        self.assertIn("training images of 'digits'", errors[0])
        self.assertFalse(os.path.exists(self.folder))


if __name__ == "__main__":
    absltest.main()
