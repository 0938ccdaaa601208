# SPDX-License-Identifier: Apache-2.0
"""Runs with wrong labels end to end: noise, the record, AUM's passes and real kills."""

import csv
import json
import os
import signal
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from commands import MistakeCase, call, read, start, wait_for

from ssl_noisy.data import sources
from ssl_noisy.labels import detection
from ssl_noisy.runs import checkpoint, label_report

SMALL = (
    "--dataset=digits",
    "--method=supervised",
    "--noise=symmetric:0.4",
    "--num_labels=200",
    "--network=small_cnn",
    "--batch_size=20",
    "--steps=40",
    "--steps_per_epoch=20",
    "--noplots",
)
AUM = (*SMALL, "--method=aum", "--pass_batch_size=20", "--steps=60")


def result_of(folder):
    return json.loads(read(folder, "result.json"))


class NoisyRunTest(absltest.TestCase):
    def folder(self):
        return os.path.join(self.create_tempdir().full_path, "run")

    def test_noisy_validation_chooses_by_noisy_labels(self):
        splits = ("--train_split=train[:80%]", "--validation_split=train[80%:]")
        flags = (*SMALL, *splits, "--noise=symmetric:0.5", "--steps=80")
        clean, noisy = self.folder(), self.folder() + "_noisy"
        self.assertEqual(call(*flags, f"--run_dir={clean}")[0], 0)
        self.assertEqual(call(*flags, "--noisy_validation", f"--run_dir={noisy}")[0], 0)
        dataset = sources.load("digits", train_split="train[:80%]", validation_split="train[80%:]")
        noise = result_of(noisy)["validation_noise"]
        size = len(dataset.validation_labels)
        self.assertEqual(noise["noise_rate"], (size // 2) / size)
        np.testing.assert_array_equal(
            np.sum(noise["transition_counts"], axis=1), np.bincount(dataset.validation_labels)
        )
        with np.load(os.path.join(noisy, "validation_noise.npz"), allow_pickle=False) as file:
            given, ids = file["given_labels"], file["ids"]
        np.testing.assert_array_equal(ids, dataset.validation_ids)
        model = keras.saving.load_model(os.path.join(noisy, "model.keras"), compile=False)
        predicted = np.argmax(model.predict(dataset.validation_images, verbose=0), axis=-1)
        last = result_of(noisy)["last_epoch"]
        self.assertAlmostEqual(last["validation_accuracy"], np.mean(predicted == given), places=6)
        # The training is the same, and so is the test.
        with (
            open(os.path.join(clean, "metrics.csv")) as file,
            open(os.path.join(noisy, "metrics.csv")) as other,
        ):
            rows = list(zip(csv.DictReader(file), csv.DictReader(other)))
        self.assertLen(rows, 4)
        for one, two in rows:
            self.assertNotEqual(one.pop("validation_accuracy"), two.pop("validation_accuracy"))
            self.assertEqual(one, two)
        # A resumed run reads its labels: others would be drawn from another seed.
        os.remove(os.path.join(noisy, "result.json"))
        before = os.path.getmtime(os.path.join(noisy, "validation_noise.npz"))
        self.assertEqual(call(*flags, "--noisy_validation", f"--run_dir={noisy}")[0], 0)
        self.assertEqual(os.path.getmtime(os.path.join(noisy, "validation_noise.npz")), before)

    def test_noise_is_printed_written_and_trained_on(self):
        folder = self.folder()
        code, out, _ = call(*SMALL, "--plots", f"--run_dir={folder}")
        self.assertEqual(code, 0)
        self.assertIn("40.0", out)  # the noise rate
        result, dataset = result_of(folder), sources.load("digits")
        self.assertEqual(result["noise"]["noise_rate"], 0.4)
        self.assertEqual(np.sum(result["noise"]["transition_counts"]), 200)
        examples = detection.read_examples(os.path.join(folder, "examples.csv"))
        with np.load(os.path.join(folder, "noise.npz"), allow_pickle=False) as noise:
            np.testing.assert_array_equal(examples["given_label"], noise["given_labels"])
            np.testing.assert_array_equal(examples["index"], noise["ids"])
        true_labels = dataset.labels[np.searchsorted(dataset.ids, examples["index"])]
        self.assertEqual((examples["given_label"] != true_labels).sum(), 80)
        self.assertEqual(set(examples["observations"]), {4})  # 40 steps of 20 of 200
        report = result["label_quality"]
        self.assertEqual(report["noise_rate"], 0.4)
        detectors = ["label_issues", "probability_margin", "aum", "small_loss", "posterior"]
        detectors += ["agreement", "wrong_predictions", "cores"]
        self.assertEqual(list(report["detectors"]), detectors)
        for name in detectors:
            self.assertGreater(report["detectors"][name]["average_precision"], 0.4, name)
            missed = 1 - report["detectors"][name]["precision_at_true_count"]
            self.assertEqual(report["detectors"][name]["false_negative_rate"], missed)
        # Four epochs are too few to flag anything, and the run says so.
        self.assertEqual(
            (report["label_issues"]["count"], examples["is_label_issue"].sum()), (0, 0)
        )
        self.assertIn("0 of 200 labels (0.0%) are flagged as issues", out)
        self.assertIn("Weak evidence: 200 of 200 labels were seen fewer than 5 times", out)
        for picture in ("losses.png", "aum.png", "labels.png", "gallery.png"):
            self.assertTrue(os.path.exists(os.path.join(folder, picture)), picture)
        header = next(csv.reader(read(folder, "examples.csv").splitlines()))
        self.assertEqual(
            header[:8],
            ["index", "file", "given_label", "given_class", "predicted_label", "predicted_class"]
            + ["label_quality", "is_label_issue"],
        )

    @pytest.mark.slow
    def test_the_noise_file_reproduces_the_run_and_another_seed_does_not(self):
        first, second, third = self.folder(), self.folder(), self.folder()
        call(*SMALL, f"--run_dir={first}")
        call(*SMALL, f"--noise=file:{first}/noise.npz", f"--run_dir={second}")
        call(*SMALL, "--noise_seed=9", f"--run_dir={third}")
        self.assertEqual(read(first, "examples.csv"), read(second, "examples.csv"))
        self.assertEqual(read(first, "metrics.csv"), read(second, "metrics.csv"))
        self.assertEqual(result_of(third)["labels_sha256"], result_of(first)["labels_sha256"])
        self.assertNotEqual(result_of(third)["noise"], result_of(first)["noise"])

    @pytest.mark.slow
    def test_few_noisy_labels_and_clean_labels(self):
        folder = self.folder()
        small = (*SMALL[:-4], "--steps=20", "--steps_per_epoch=20", "--noplots")
        few = (*small, "--method=fixmatch", "--num_labels=50", "--batch_size=10")
        removing = ("--remove_labels=aum", "--pass_batch_size=5", "--unlabeled_ratio=1")
        removing += ("--threshold_percentile=50",)
        code, _, errors = call(*few, *removing, f"--run_dir={folder}")
        self.assertEqual((code, errors), (0, []))
        result = result_of(folder)
        self.assertEqual((result["noise"]["noise_rate"], result["num_labels"]), (0.4, 50))
        self.assertEqual(result["removed_labels"]["num_threshold_samples"], 50 // 11)
        self.assertIn("mask_rate", result["last_epoch"])
        self.assertGreater(result["removed_labels"]["count"], 0)
        self.assertEqual(result["steps"], 20)  # images without labels are still drawn
        clean = self.folder()
        longer = ("--steps=200", "--steps_per_epoch=200", "--learning_rate=0.1")
        _, out, _ = call(*(f for f in SMALL if "noise" not in f), *longer, f"--run_dir={clean}")
        result = result_of(clean)
        self.assertNotIn("noise", result)
        self.assertNotIn("noise_rate", result["label_quality"])
        issues = result["label_quality"]["label_issues"]
        self.assertLessEqual(issues["count"], 4)  # of 200 clean labels
        self.assertRegex(out, rf"\b{issues['count']} of 200 labels .* are flagged as issues")
        examples = detection.read_examples(os.path.join(clean, "examples.csv"))
        self.assertEqual(examples["is_label_issue"].sum(), issues["count"])
        np.testing.assert_array_equal(examples["is_label_issue"], examples["label_quality"] < 0.5)


@pytest.mark.slow
class PassesTest(absltest.TestCase):
    def test_a_run_killed_in_each_of_its_three_trainings_resumes_to_identical_results(self):
        undisturbed, folder = (os.path.join(self.create_tempdir().full_path, n) for n in "ab")
        arguments = [*AUM, "--checkpoint_seconds=0"]
        whole = start(*arguments, f"--run_dir={undisturbed}")
        for part in ("pass_1", "pass_2", "."):
            process = start(*arguments, f"--run_dir={folder}")
            path = os.path.join(folder, part, checkpoint.NAME)
            wait_for(process, lambda path=path: os.path.exists(path))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            self.assertFalse(os.path.exists(os.path.join(folder, part, "result.json")), part)
        code, out, errors = call(*arguments, f"--run_dir={folder}")
        self.assertEqual((code, errors), (0, []))
        self.assertNotIn("pass_1", out)  # finished passes are not repeated
        _, errors = whole.communicate()
        self.assertEqual(whole.returncode, 0, errors)
        for name in ("result.json", "metrics.csv", "examples.csv", "pass_2/examples.csv"):
            self.assertEqual(read(folder, name), read(undisturbed, name), name)
        result = result_of(folder)
        # AUM removes labels by its own rule. Label issues follow the rule of all methods.
        removed, report = result["removed_labels"]["count"], result["label_quality"]
        self.assertGreater(removed, 0)
        self.assertEqual(report["detectors"]["aum"]["flagged"], removed)
        examples = detection.read_examples(os.path.join(folder, "examples.csv"))
        self.assertEqual(examples["is_label_issue"].sum(), report["label_issues"]["count"])
        # Threshold samples are judged by one pass, the others by two.
        counts = np.bincount(examples["observations"])
        self.assertEqual(np.flatnonzero(counts).tolist(), [3, 6])
        self.assertEqual(counts[3], 2 * (200 // 11))

    def test_training_leaves_flagged_labels_out(self):
        folder = os.path.join(self.create_tempdir().full_path, "run")
        low = ("--threshold_percentile=100", "--combine=or")
        code, out, _ = call(*AUM, *low, f"--run_dir={folder}")
        self.assertEqual(code, 0)
        kept = 200 - result_of(folder)["removed_labels"]["count"]
        self.assertLess(kept, 200)
        self.assertIn(f"{kept} labeled", out)
        # 60 steps see all labels 6 times. The shorter training sees the remaining ones 6 times.
        result, epoch = result_of(folder), round(20 * kept / 200)
        self.assertEqual(result["steps"], 3 * epoch)
        rows = list(csv.DictReader(read(folder, "metrics.csv").splitlines()))
        self.assertEqual([int(row["step"]) for row in rows], [epoch, 2 * epoch, 3 * epoch])
        self.assertIn("--steps=60", read(folder, "flags.cfg").splitlines())
        code, again, _ = call(
            *AUM, *low, f"--run_dir={folder}"
        )  # a finished run returns its result at once
        self.assertEqual((code, "pass_1" in again), (0, False))

    def test_the_class_of_threshold_samples_is_not_suggested(self):
        read_record, whole = label_report.read_record, np.array([True] * 100 + [False] * 100)

        def taken_for_threshold_samples(*args):
            kept = read_record(*args)
            return {**kept, "prediction": np.where(whole, 10, kept["prediction"])}

        folder = os.path.join(self.create_tempdir().full_path, "run")
        with mock.patch.object(label_report, "read_record", taken_for_threshold_samples):
            code, _, errors = call(*AUM, "--pass_share=0.1", "--plots", f"--run_dir={folder}")
        self.assertEqual((code, errors), (0, []))
        examples = detection.read_examples(os.path.join(folder, "examples.csv"))
        self.assertEqual(set(examples["predicted_label"][whole]), {-1})
        self.assertGreater((examples["predicted_label"][~whole] >= 0).sum(), 30)
        self.assertTrue(os.path.exists(os.path.join(folder, "gallery.png")))


class MistakeTest(MistakeCase):
    @parameterized.parameters(
        ("--noise=symetric:0.4", "Did you mean 'symmetric'?"),
        ("--noise=symmetric:1.0", "1.0"),
        ("--noise=symmetric:-0.1", "-0.1"),
        ("--noise=symmetric:nan", "nan"),
        ("--noise=symmetric:lots", "lots"),
        ("--noise=symmetric", "symmetric"),
        ("--noise=asymmetric:0.4", "cifar10"),
        ("--noise=cifarn:worse_label", "cifar10"),
        ("--noise=file:/no/such/noise.npz", "/no/such/noise.npz"),
        ("--noise=matrix:/no/such/matrix.npy", "/no/such/matrix.npy"),
        ("--noise_draw=dice", "exact"),
        ("--cifarn_file=/no/such.pt", "--cifarn_file has no effect with --noise=symmetric:0.4"),
        ("--noisy_validation", "--noisy_validation needs a validation split"),
        ("--remove_labels=fixmatch", "aum"),
        ("--pass_share=0.5", "--pass_share is not a flag of method 'supervised'"),
    )
    def test_one_line(self, argument, message):
        self.assertIn(message, self.refuse(*SMALL, argument))

    @parameterized.parameters(
        ("--pass_share=0", "`pass_share` argument of `AUM` must be above 0"),
        ("--combine=xor", "`combine` argument"),
        ("--num_labels=10", "AUM needs at least 11 labeled examples"),
        ("--remove_labels=aum", "removes labels itself"),
    )
    def test_aum(self, argument, message):
        self.assertIn(message, self.refuse(*AUM, argument))

    def test_a_matrix_whose_rows_do_not_sum_to_one(self):
        path = os.path.join(self.create_tempdir().full_path, "matrix.npy")
        np.save(path, np.full((10, 10), 0.2))
        self.assertIn("sum", self.refuse(*SMALL, f"--noise=matrix:{path}"))

    def test_a_noise_file_that_was_edited_or_belongs_to_other_data(self):
        folder = os.path.join(self.create_tempdir().full_path, "run")
        call(*SMALL, "--steps=2", "--steps_per_epoch=2", f"--run_dir={folder}")
        with np.load(os.path.join(folder, "noise.npz"), allow_pickle=False) as file:
            arrays = dict(file)
        changed = os.path.join(self.create_tempdir().full_path, "noise.npz")
        labels = arrays["given_labels"]
        np.savez(changed, **{**arrays, "given_labels": (labels + 1) % 10})
        self.assertIn("checksum", self.refuse(*SMALL, f"--noise=file:{changed}"))
        np.savez(changed, **{**arrays, "given_labels": labels[:-1]})
        self.assertIn(changed, self.refuse(*SMALL, f"--noise=file:{changed}"))
        rng = np.random.default_rng(0)
        other = os.path.join(self.create_tempdir().full_path, "other.npz")
        images = rng.integers(0, 256, (1300, 8, 8, 1), "uint8")
        np.savez(
            other,
            images_train=images,
            labels_train=np.arange(1300) % 10,
            images_test=images[:10],
            labels_test=np.arange(10),
        )
        error = self.refuse(*SMALL, f"--dataset=npz:{other}", f"--noise=file:{folder}/noise.npz")
        self.assertIn("noise.npz", error)


if __name__ == "__main__":
    absltest.main()
