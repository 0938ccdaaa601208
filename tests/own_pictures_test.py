# SPDX-License-Identifier: Apache-2.0
"""The whole way with one's own pictures: train, review, correct, train again, predict."""

import csv
import json
import os
import pathlib
import tempfile

import commands
import messy
import numpy as np
from absl import flags
from absl.testing import absltest
from sklearn.datasets import load_digits

from ssl_noisy import command, predict

SMALL = ("--network=small_cnn", "--batch_size=8", "--steps=40", "--steps_per_epoch=20")


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


class OwnPicturesTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        digits = load_digits()
        images = (digits.images[:400] * 255 / 16).astype(np.uint8)
        cls.photos = cls.root / "photos"
        cls.truth = messy.write(cls.photos, images, digits.target[:400])
        cls.broken = messy.damage(cls.photos)
        cls.run_dir = cls.root / "run"
        cls.data = (
            f"--dataset=folder:{cls.photos}",
            f"--cache_dir={cls.root}/cache",
            "--skip_unreadable",
            "--image_size=12",
        )
        cls.code, cls.out, cls.err = commands.call(
            *cls.data, *SMALL, "--method=pseudo_label",
            f"--run_dir={cls.run_dir}", "--examples_order=suspicion", "--baseline=supervised",
        )  # fmt: skip

    def test_the_run_says_what_it_noticed(self):
        self.assertEqual((self.code, self.err), (0, []))
        for text in (
            "resized to 12x12",
            "Skipped 3 unreadable",
            "in two splits",
            "labels (groups: 1)",
        ):
            self.assertIn(text, self.out)
        self.assertIn("images, ", self.out)
        with open(self.run_dir / "result.json", encoding="utf-8") as file:
            result = json.load(file)
        self.assertEqual(sorted(result["unreadable_files"]), self.broken)
        self.assertLen(result["data_notes"], 5)
        calibration = result["calibration"]
        self.assertIn("expected_calibration_error_before", calibration)
        self.assertGreater(calibration["temperature"], 0)
        self.assertEqual(self.out.count("Skipped 3 unreadable"), 1)

    def test_unlabeled_pictures_are_trained_on(self):
        labeled = sum(name.startswith("train") for name in self.truth) + 1  # and the twin
        count = labeled + sum(name.startswith("unlabeled") for name in self.truth)
        self.assertIn(f"{count} images, {labeled} labeled", self.out)

    def test_every_label_is_traceable(self):
        examples = rows(self.run_dir / "examples.csv")
        for row in examples:
            if "twin" not in row["file"]:
                self.assertEqual(row["given_class"], self.truth[row["file"]])
        qualities = [float(row["label_quality"]) for row in examples]
        self.assertEqual(qualities, sorted(qualities))
        self.assertIn("The 10 most suspicious labels", self.out)
        for row in examples[:10]:
            self.assertIn(f" {row['file']} ", self.out)
        names = set(os.listdir(self.run_dir))
        self.assertContainsSubset({"gallery.png", "labels.png", "losses.png"}, names)

    def test_corrections(self):
        examples = rows(self.run_dir / "examples.csv")
        changes = [examples[0]["file"], examples[1]["file"], examples[2]["file"]]
        path = self.root / "corrections.csv"
        path.write_text(f"file,label\n{changes[0]},e\n{changes[1]},\n{changes[2]},remove\n")
        second = self.root / "second"
        code, out, err = commands.call(
            *self.data, *SMALL, "--method=supervised", f"--labels_csv={path}",
            f"--run_dir={second}", "--noplots",
        )  # fmt: skip
        self.assertEqual((code, err), (0, []))
        found = {row["file"]: row["given_class"] for row in rows(second / "examples.csv")}
        self.assertEqual(found[changes[0]], "e")
        self.assertNotIn(changes[1], found)
        self.assertNotIn(changes[2], found)
        self.assertLen(found, len(examples) - 2)
        self.assertIn("corrections.csv: labels changed: 2, examples removed: 1", out)
        path.write_text(f"file,label\n{changes[0]},f\n")
        code, _, err = commands.call(
            *self.data, *SMALL, "--method=supervised", f"--labels_csv={path}",
            f"--run_dir={second}", "--noplots", "--steps=60",
        )  # fmt: skip
        self.assertEqual(code, 2)
        self.assertIn("belongs to a run with other flags", err[0])

    def test_predict(self):
        values = flags.FlagValues()
        predict.define_flags(values)
        output = self.root / "p.csv"
        wanted = predict.read_flags(
            ["predict", f"--run_dir={self.run_dir}", f"--images={self.photos}/test",
             f"--output={output}"],
            values,
        )  # fmt: skip
        self.assertEqual(command.execute("predict", predict.main, wanted), 0)
        found = rows(output)
        with open(self.run_dir / "result.json", encoding="utf-8") as file:
            result = json.load(file)
        right = [row["predicted_class"] == pathlib.Path(row["file"]).parent.name for row in found]
        # The same preparation as in training: the same accuracy.
        self.assertAlmostEqual(np.mean(right), result["test_accuracy"]["last"], delta=1e-9)


if __name__ == "__main__":
    absltest.main()
