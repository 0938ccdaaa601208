# SPDX-License-Identifier: Apache-2.0
"""The labels of a run with corrections: the draw stays, and a resumed run keeps its copy."""

import json
import os
import pathlib
import signal
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from commands import MistakeCase, call, read

from ssl_noisy.data import label_budget
from ssl_noisy.runs import folder, labeling
from ssl_noisy.runs.session import Session
from ssl_noisy.settings import Settings

SMALL = (
    *("--dataset=digits", "--method=supervised", "--num_labels=40", "--network=small_cnn"),
    *("--batch_size=20", "--steps=6", "--steps_per_epoch=2", "--noplots"),
)


class DrawTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)
        self.data = labeling.load_dataset(Settings())

    def chosen(self, lines=(), data=None, **settings):
        """Returns `(ids, given labels)` of a run, with corrections if there are lines."""
        if lines:
            path = self.root / "corrections.csv"
            path.write_text("index,label\n" + "".join(f"{line}\n" for line in lines))
            settings["labels_csv"] = str(path)
        settings = Settings(**settings)
        dataset = labeling.correct(settings, data or self.data)
        labels = labeling.choose(settings, dataset)
        labeling.write(str(self.root / "run"), dataset, labels)
        return dataset.ids[labels.positions].tolist(), labels.given.tolist()

    @parameterized.parameters("balanced", "uniform", "first")
    def test_corrections_change_labels_and_not_the_draw(self, how):
        ids, given = self.chosen(num_labels=40, label_draw=how)
        written = read(self.root, "run/labels.json")
        os.remove(self.root / "run/labels.json")
        others = np.setdiff1d(self.data.ids, ids)[:6]
        new = (given[0] + 1) % 10
        lines = [f"{ids[0]},{new}", f"{ids[1]},", f"{ids[2]},remove", f"{ids[3]},{given[3]}"]
        lines += [f"{others[0]},{new}", f"{others[1]},", f"{others[2]},remove"]
        found = self.chosen(lines, num_labels=40, label_draw=how)
        self.assertEqual(found, ([ids[0], *ids[3:]], [new, *given[3:]]))
        again = json.loads(read(self.root, "run/labels.json"))
        self.assertRegex(again.pop("corrections_sha256"), "^[0-9a-f]{64}$")
        self.assertEqual(again, json.loads(written))

    def test_a_label_file_fits_with_and_without_corrections(self):
        ids, given = self.chosen(num_labels=40)
        os.rename(self.root / "run/labels.json", self.root / "plain.json")
        lines = [f"{ids[0]},{(given[0] + 1) % 10}", f"{ids[1]},remove"]
        corrected = self.chosen(lines, num_labels=40)
        for name in ("plain.json", "run/labels.json"):
            file = str(self.root / name)
            self.assertEqual(self.chosen(label_file=file), (ids, given))
            self.assertEqual(self.chosen(lines, label_file=file), corrected)

    def test_labels_that_corrections_add(self):
        # Positions 0 to 9 have a label and the others have none.
        labels = np.arange(len(self.data.labels))
        labels[10:] = -1
        path = self.root / "data.npz"
        arrays = {"images_train": self.data.images, "labels_train": labels.astype(np.int32)}
        np.savez(
            path, **arrays, images_test=self.data.test_images, labels_test=self.data.test_labels
        )
        dataset = labeling.load_dataset(Settings(dataset=f"npz:{path}"))
        lines = ["3,", *(f"{n},{n % 10}" for n in range(20, 40))]
        ids, given = self.chosen(lines, dataset, dataset=f"npz:{path}")
        self.assertEqual(ids, [0, 1, 2, *range(4, 10), *range(20, 40)])
        self.assertEqual(given[9:], [n % 10 for n in range(20, 40)])
        os.remove(self.root / "run/labels.json")
        # A draw of all 30 contains 3, which is then left out.
        drawn = dict(dataset=f"npz:{path}", num_labels=30, label_draw="uniform")
        self.assertEqual(self.chosen(lines, dataset, **drawn), (ids, given))


class ResumedRunTest(MistakeCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)
        self.csv = self.root / "corrections.csv"
        settings = Settings(num_labels=40)
        data = labeling.load_dataset(settings)
        labels = labeling.choose(settings, data)
        self.ids, self.given = data.ids[labels.positions], labels.given
        self.write_corrections((self.given[0] + 1) % 10)
        self.run_dir = str(self.root / "run")
        self.command = (*SMALL, f"--labels_csv={self.csv}", f"--run_dir={self.run_dir}")

    def write_corrections(self, label):
        text = f"index,label,why\n{self.ids[0]},{label},blurred\n{self.ids[1]},remove,\n"
        self.csv.write_text(text)

    def stop(self):
        """Starts the run and stops it at step 2."""

        def begin(session, batch, logs=None, original=Session.on_train_batch_begin):
            if session._first + batch == 2:
                signal.raise_signal(signal.SIGTERM)
            original(session, batch, logs)

        with mock.patch.object(Session, "on_train_batch_begin", begin):
            code, out, _ = call(*self.command)
        self.assertEqual(code, 128 + signal.SIGTERM, out)

    def test_a_resumed_run_does_not_need_the_file_again(self):
        code, out, err = call(*self.command[:-1], f"--run_dir={self.root}/whole")
        self.assertEqual((code, err), (0, []))
        self.assertIn("corrections.csv: labels changed: 1, examples removed: 1", out)
        self.assertIn("39 labeled", out)
        self.stop()
        copy = read(self.run_dir, folder.CORRECTIONS)
        new = (self.given[0] + 1) % 10
        self.assertEqual(copy, f"index,label\n{self.ids[0]},{new}\n{self.ids[1]},remove\n")
        self.csv.rename(self.root / "moved.csv")
        self.assertEqual(call(*self.command)[0], 0)
        for name in ("labels.json", "metrics.csv", "examples.csv", "result.json"):
            self.assertEqual(read(self.run_dir, name), read(self.root, f"whole/{name}"), name)

    def test_corrections_that_changed_are_an_error(self):
        self.stop()
        self.write_corrections((self.given[0] + 2) % 10)
        code, _, err = call(*self.command)
        self.assertEqual(code, 2)
        self.assertIn("has changed since this run began", err[-1])

    @parameterized.parameters("index\n", "index,label\n", "index,label\n{id},remove\n")
    def test_an_edited_copy_is_an_error(self, text):
        self.stop()
        copy = pathlib.Path(self.run_dir, folder.CORRECTIONS)
        copy.write_text(text.format(id=self.ids[1]))
        code, _, err = call(*self.command)
        self.assertEqual(code, 2)
        self.assertLen(err, 1)
        self.assertIn(str(copy), err[0])

    @pytest.mark.slow
    def test_a_lost_copy_is_restored_from_equal_corrections_alone(self):
        self.stop()
        copy = pathlib.Path(self.run_dir, folder.CORRECTIONS)
        text = copy.read_text()
        copy.unlink()
        before = self.csv.read_text()
        self.write_corrections((self.given[0] + 2) % 10)
        code, _, err = call(*self.command)
        self.assertEqual(code, 2)
        self.assertRegex(err[-1], f"Restore {copy}, or choose another --run_dir")
        self.csv.write_text(before)
        self.assertEqual(call(*self.command)[0], 0)
        self.assertEqual(copy.read_text(), text)

    def test_a_run_of_an_earlier_version_keeps_its_labels(self):
        settings = Settings(num_labels=40, labels_csv=str(self.csv))
        data = labeling.correct(settings, labeling.load_dataset(settings))
        positions = label_budget.draw(data.labels, 40, num_classes=10, seed=0)
        os.mkdir(self.run_dir)
        path = f"{self.run_dir}/labels.json"
        label_budget.write(path, data, positions, how="balanced", seed=0)
        written = read(self.run_dir, "labels.json")
        again = labeling.correct(settings, labeling.load_dataset(settings), self.run_dir)
        labels = labeling.choose(settings, again, self.run_dir)
        labeling.write(self.run_dir, again, labels)
        np.testing.assert_array_equal(labels.positions, positions)
        self.assertEqual(os.listdir(self.run_dir), ["labels.json"])
        self.assertEqual(read(self.run_dir, "labels.json"), written)


if __name__ == "__main__":
    absltest.main()
