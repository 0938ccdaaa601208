# SPDX-License-Identifier: Apache-2.0
"""From pictures without labels to a model: the commands features and choose, and draws by them."""

import csv
import json
import os
import pathlib
from unittest import mock

import commands
import keras
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from sklearn.datasets import load_digits

from ssl_noisy import choose, features
from ssl_noisy.data import feature_file, label_budget, sources
from ssl_noisy.runs import labeling
from ssl_noisy.selection import rules
from ssl_noisy.settings import Settings

QUICK = ("--network=small_cnn", "--steps=2", "--batch_size=8", "--method=supervised", "--noplots")


class Case(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.create_tempdir().full_path)
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.root)
        cache = self.create_tempdir().full_path
        self.enter_context(mock.patch.dict(os.environ, SSL_NOISY_CACHE=cache))

    def call(self, module, *arguments):
        """Runs a command that must succeed, and returns its output."""
        code, out, errors = commands.call_of(module, *arguments)
        self.assertEqual((code, errors), (0, []))
        return out

    def refuse(self, module, *arguments):
        """Runs a command that must fail with one line, and returns the line."""
        before = sorted(self.root.iterdir())
        code, out, errors = commands.call_of(module, *arguments)
        self.assertEqual((code, out), (2, ""), errors)
        self.assertLen(errors, 1)
        self.assertEqual(sorted(self.root.iterdir()), before)
        return errors[0]

    def train(self, *arguments):
        code, out, errors = commands.call(*arguments)
        self.assertEqual(code, 0, errors)
        return out

    def pixels(self, *arguments):
        self.call(features, "--network=pixels", "--output=pixels.npz", *arguments)
        return "--features=pixels.npz"

    def photos(self, count=80, place="photos"):
        """Writes digits as pictures without labels, and returns the label of each file."""
        data, labels = load_digits(), {}
        os.makedirs(place)
        for row in range(count):
            image = Image.fromarray((data.images[row] * (255 / 16)).astype(np.uint8))
            image.save(f"{place}/{row:03}.png")
            labels[f"{row:03}.png"] = f"digit {data.target[row]}"
        return labels


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class FeaturesTest(Case):
    def test_those_of_a_run_are_what_its_last_layer_takes(self):
        self.train(*QUICK, "--num_labels=40", "--run_dir=run")
        out = self.call(features, "--run_dir=run", "--batch_size=100")
        self.assertIn("run/features.npz: 1,797 images, 64 features each, by ", out)
        data = sources.load("digits")
        found = feature_file.read("run/features.npz")
        network = keras.saving.load_model("run/model.keras")
        dense = network.layers[-1]
        for images, values in (
            (data.images, found.training(data)),
            (data.test_images, found.test(data)),
        ):
            kernel, bias = dense.get_weights()
            logits = values @ kernel + bias
            expected = network.predict(images, verbose=0)
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        before = os.stat("run/features.npz").st_mtime_ns
        self.assertIn("already there", self.call(features, "--run_dir=run"))
        self.assertEqual(os.stat("run/features.npz").st_mtime_ns, before)
        # The same network as a file, and other weights.
        self.call(features, "--model=run/model.keras")
        self.assertEqual(feature_file.key_of("features.npz"), found.key)
        network.layers[2].set_weights([w + 0.1 for w in network.layers[2].get_weights()])
        network.save("changed.keras")
        self.assertRegex(
            self.refuse(features, "--model=changed.keras"), "features.npz exists, and is of other"
        )
        self.assertEqual(feature_file.key_of("features.npz"), found.key)
        self.call(features, "--model=changed.keras", "--output=changed.npz")
        self.assertNotEqual(feature_file.key_of("changed.npz"), found.key)
        # A run folder with features is still the folder of its run.
        again = self.train(*QUICK, "--num_labels=40", "--run_dir=run")
        self.assertIn("All files of this run", again)

    def test_pixels_are_scaled_and_need_no_labels(self):
        self.photos(20)
        self.pixels("--dataset=folder:photos")
        data = labeling.load_unlabeled(Settings(dataset=f"folder:{self.root}/photos"))
        self.assertEqual((data.num_classes, data.test_images), (0, None))
        values = feature_file.read("pixels.npz").training(data)
        np.testing.assert_allclose(values, data.images.reshape(20, 64) / 255, rtol=1e-6)

    def test_a_network_of_keras(self):
        self.photos(5)
        with mock.patch.object(keras.applications, "MobileNetV2", small_network):
            out = self.call(
                features,
                *("--network=keras:MobileNetV2", "--weights=none", "--image_size=16"),
                *("--dataset=folder:photos", "--batch_size=2"),
            )
        self.assertIn("5 images, 7 features each, by keras:MobileNetV2 with weights none", out)

    def test_equal_images_have_one_row(self):
        self.photos(5)
        for name in ("copy", "other"):
            with open(f"photos/{name}.png", "wb") as file:
                file.write(pathlib.Path("photos/003.png").read_bytes())
        self.pixels("--dataset=folder:photos")
        found = feature_file.read("pixels.npz")
        self.assertLen(found.features, 5)
        data = labeling.load_unlabeled(Settings(dataset=f"folder:{self.root}/photos"))
        self.assertEqual(found.training(data).shape, (7, 64))

    def test_mistakes(self):
        self.photos(5)
        photos = ("--network=pixels", "--dataset=folder:photos")
        for arguments, message in (
            ((), "Pass one of --run_dir=RUN .*Received: none of them"),
            (("--run_dir=a", "--network=pixels"), "Received: --run_dir and --network"),
            (("--run_dir=nowhere",), "There is no run .*nowhere"),
            (("--network=wrn_28_2",), "--network must be keras:NAME, hub:PRESET or pixels"),
            (("--network=pixels", "--weights=none"), "--weights has no effect without"),
            (("--model=nowhere.keras",), "There is no model file"),
            (("--network=keras:MobilNet",), "Did you mean 'keras:MobileNet'"),
            (("--network=keras:MobileNet", "--weights=none"), "images of at least 32x32"),
            (("--network=pixels", "--dataset=folder:nowhere"), "no such folder"),
            (("--network=pixels", "--image_size=4"), "--image_size has no effect"),
            ((*photos, "--test_split=train[:20%]"), "--test_split needs labels, which .* none of"),
            ((*photos, "--test_share=0.5"), "--test_share needs labels"),
            (("--network=hub:dinov2_base",), "needs the package keras-hub.*'ssl_noisy.hub"),
            (("--network=pixels", "more"), "Unexpected arguments: more"),
        ):
            self.assertRegex(self.refuse(features, *arguments), message)

    def test_images_of_another_size_and_weights_that_are_not_finite(self):
        network = keras.Sequential(
            [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
        )
        network.save("model.keras")
        self.assertRegex(
            self.refuse(features, "--model=model.keras"),
            "takes images of 4x4 pixels and 1 channels. Received: images of 8x8.*--image_size=4x4",
        )
        network = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Rescaling(np.inf)]
            + [keras.layers.Dense(2)]
        )
        network.save("model.keras")
        self.assertRegex(
            self.refuse(features, "--model=model.keras"), "must be finite numbers. Received: NaN"
        )


def small_network(
    include_top=True, weights="imagenet", input_shape=None, include_preprocessing=True
):
    """Stands for an architecture of `keras.applications`, all of which are large."""
    inputs = keras.Input(input_shape)
    outputs = keras.layers.Conv2D(7, 3)(inputs)
    return keras.Model(inputs, outputs, name="mobilenetv2")


class ChooseTest(Case):
    def test_a_benchmark_gets_a_label_file(self):
        out = self.call(choose, "--budget=12", self.pixels(), "--by=typiclust", "--output=first")
        self.assertIn("12 of 1,297 unlabeled images of digits, by typiclust; 0 had a label", out)
        self.assertRegex(out, r"classes covered: \d+ of 10, with \d to \d labels each")
        data = sources.load("digits")
        positions, content = label_budget.read("first/labels.json", data)
        self.assertEqual((content.how, len(positions)), ("typiclust", 12))
        rows = rows_of("first/chosen.csv")
        self.assertEqual([row["rank"] for row in rows], [str(n) for n in range(1, 13)])
        self.assertEqual(sorted(int(row["index"]) for row in rows), data.ids[positions].tolist())
        for row in rows:
            position = np.searchsorted(data.ids, int(row["index"]))
            self.assertEqual(row["class"], data.class_names[data.labels[position]])
        covered = len(set(data.labels[positions]))
        self.assertIn(f"classes covered: {covered} of 10", out)
        self.assertTrue(Image.open("first/chosen.png").size[0] > 100)
        self.train(*QUICK, "--label_file=first/labels.json", "--run_dir=run")
        # More of them, with the first ones kept.
        out = self.call(
            choose,
            *("--budget=8", "--features=pixels.npz", "--label_file=first/labels.json"),
            "--output=second",
        )
        self.assertIn("8 of 1,285 unlabeled images of digits, by typiclust; 12 had a label", out)
        both, _ = label_budget.read("second/labels.json", data)
        self.assertLen(both, 20)
        self.assertContainsSubset(positions, both)

    def test_pictures_without_labels_are_chosen_labeled_trained_on_and_more_are_chosen(self):
        labels = self.photos()
        where = ("--dataset=folder:photos", self.pixels("--dataset=folder:photos"))
        self.call(choose, *where, "--budget=12", "--output=first")
        rows = rows_of("first/to_label.csv")
        self.assertEqual(
            [row["file"] for row in rows], [r["file"] for r in rows_of("first/chosen.csv")]
        )
        self.assertEqual({row["label"] for row in rows}, {""})
        self.assertRegex(
            self.refuse(choose, *where, "--budget=5", "--labels_csv=first/to_label.csv"),
            "at least 2 classes, since the pictures have none. Received: no label. Fill in",
        )
        self.fill_in("first/to_label.csv", labels)
        data = "--labels_csv=first/to_label.csv"
        out = self.train(*QUICK, where[0], data, "--run_dir=run")
        self.assertIn("12 labels, no test images", out)
        written = json.loads(pathlib.Path("run/result.json").read_text())
        names = sorted({labels[row["file"]] for row in rows})
        self.assertEqual(written["class_names"], names)
        self.assertEqual(written["num_labels"], 12)
        out = self.call(choose, *where, data, "--budget=5", "--output=second")
        self.assertIn("5 of 68 unlabeled images", out)
        again = rows_of("second/to_label.csv")
        self.assertLen(again, 17)
        self.assertEqual(sum(not row["label"] for row in again), 5)
        self.assertEqual(
            {row["file"]: row["label"] for row in again if row["label"]},
            {row["file"]: labels[row["file"]] for row in rows},
        )

    def fill_in(self, path, labels):
        rows = rows_of(path)
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("file", "label"))
            writer.writerows((row["file"], row["label"] or labels[row["file"]]) for row in rows)

    def partly_labeled_photos(self):
        """Saves 30 pictures without a label, and 5 each of the classes a and b."""
        self.photos(30, "photos/unlabeled")
        self.photos(40, "all")
        for label, rows in (("a", range(30, 35)), ("b", range(35, 40))):
            os.makedirs(f"photos/train/{label}")
            for row in rows:
                os.rename(f"all/{row:03}.png", f"photos/train/{label}/{row:03}.png")

    def test_in_a_folder_with_some_labels_the_others_are_chosen(self):
        self.partly_labeled_photos()
        where = ("--dataset=folder:photos", "--test_share=0.2")
        out = self.call(choose, *where, self.pixels(*where), "--budget=7", "--by=probcover")
        self.assertIn("7 of 30 unlabeled images", out)
        self.assertIn("8 had a label before", out)
        self.assertRegex(out, r"radius: 0\.\d+\n  fraction covered: [01]")
        rows = rows_of("chosen/to_label.csv")
        self.assertLen(rows, 7)
        for row in rows:
            self.assertStartsWith(row["file"], "unlabeled/")

    def test_test_pictures_have_the_classes_of_pictures_without_labels(self):
        labels = self.photos(30)
        self.photos(40, "more")
        data = load_digits()
        for row in range(30, 40):
            os.makedirs(f"photos/test/digit {data.target[row]}", exist_ok=True)
            os.rename(f"more/{row:03}.png", f"photos/test/digit {data.target[row]}/{row:03}.png")
        where = ("--dataset=folder:photos", self.pixels("--dataset=folder:photos"))
        self.assertLen(feature_file.read("pixels.npz").features, 40)
        out = self.call(choose, *where, "--budget=9")
        self.assertIn("9 of 30 unlabeled images", out)
        self.fill_in("chosen/to_label.csv", labels)
        out = self.train(*(*QUICK, where[0], "--labels_csv=chosen/to_label.csv", "--run_dir=run"))
        self.assertIn("9 labels, test accuracy by protocol", out)

    def test_labels_that_were_taken_away_stay_away_and_notes_are_shown(self):
        self.partly_labeled_photos()
        pathlib.Path("photos/train/readme.txt").write_text("text")
        where = ("--dataset=folder:photos", "--test_share=0.2", "--by=uniform", "--budget=3")
        data = labeling.load_unlabeled(
            Settings(dataset=f"folder:{self.root}/photos", test_share=0.2)
        )
        pathlib.Path("mine.csv").write_text(f"file,label\n{data.files[0]},\n")
        out = self.call(choose, *where, "--labels_csv=mine.csv")
        self.assertIn("Ignored 1 files that are not pictures", out)
        rows = {row["file"]: row["label"] for row in rows_of("chosen/to_label.csv")}
        self.assertEqual(rows[data.files[0]], "")
        self.assertIn("7 had a label before", out)

    def test_when_all_are_labeled_nothing_is_left(self):
        labels = self.photos(12)
        where = ("--dataset=folder:photos", "--by=uniform")
        self.call(choose, *where, "--budget=12", "--output=first")
        self.fill_in("first/to_label.csv", labels)
        self.assertRegex(
            self.refuse(choose, *where, "--budget=1", "--labels_csv=first/to_label.csv"),
            r"in \[1, 0\], the number of examples that are still to be labeled",
        )

    def test_a_label_file_and_corrections_go_together(self):
        self.call(choose, "--budget=10", "--by=uniform", "--output=first")
        index = rows_of("first/chosen.csv")[0]["index"]
        pathlib.Path("mine.csv").write_text(f"index,label\n{index},remove\n")
        both = ("--label_file=first/labels.json", "--labels_csv=mine.csv")
        out = self.call(choose, "--budget=5", "--by=uniform", "--output=second", *both)
        self.assertIn("9 had a label before", out)

    def test_removed_pictures_stay_removed(self):
        labels = self.photos(40)
        where = ("--dataset=folder:photos", self.pixels("--dataset=folder:photos"))
        self.call(choose, *where, "--budget=6", "--output=first")
        first = rows_of("first/to_label.csv")[0]["file"]
        self.fill_in("first/to_label.csv", {**labels, first: "remove"})
        self.call(
            choose, *where, "--budget=3", "--output=second", "--labels_csv=first/to_label.csv"
        )
        rows = {row["file"]: row["label"] for row in rows_of("second/to_label.csv")}
        self.assertEqual(rows[first], "remove")
        self.assertLen(rows, 9)

    def test_mistakes(self):
        self.photos(5)
        file = self.pixels()
        self.call(features, "--network=pixels", "--dataset=folder:photos", "--output=photos.npz")
        photos = ("--dataset=folder:photos", "--budget=2")
        for arguments, message in (
            ((), "Pass --budget=NUMBER"),
            (("--budget=0",), "--budget"),
            (("--budget=1298", file), r"budget must be in \[1, 1297\].*Received: 1298"),
            (("--budget=4",), "typiclust needs features: pass --features=FILE"),
            (("--budget=4", file, "--by=uniform"), "--features has no effect with --by=uniform"),
            (("--budget=4", file, "--radius=0.5"), "--radius has no effect with --by=typiclust"),
            (("--budget=4", "--features=no.npz"), "cannot be read: No such file"),
            (("--budget=4", "--features=photos.npz"), "none for 1297 of them. It is of other"),
            ((*photos, "--by=balanced"), "needs the labels of all images. Received: 5 without"),
            (
                (*photos, "--features=photos.npz", "--label_file=a.json"),
                "--label_file has no effect",
            ),
            (("--budget=4", file, "--label_file=a.json"), "a.json' cannot be used"),
        ):
            self.assertRegex(self.refuse(choose, *arguments), message)
        self.call(choose, "--budget=4", "--by=uniform")
        self.assertRegex(
            self.refuse(choose, "--budget=5", "--by=uniform"), "chosen/chosen.csv exists. Choose"
        )


class ContrastTest(Case):
    def test_a_training_without_labels_tells_which_images_are_hard(self):
        labels = self.photos(40)
        self.train(
            *("--method=moco_v2", "--dataset=folder:photos", "--network=small_cnn", "--noplots"),
            *("--batch_size=20", "--batch_norm_splits=1", "--queue_size=40", "--run_dir=run"),
            *("--steps=4", "--steps_per_epoch=2"),
        )
        images = {row["file"]: row for row in rows_of("run/images.csv")}
        self.assertEqual(sorted(images), sorted(labels))
        for row in images.values():
            self.assertBetween(float(row["confidence"]), 0, 1)
            self.assertGreater(float(row["variability"]), 0)  # each image was drawn twice
        self.call(features, "--run_dir=run")
        where = ("--dataset=folder:photos", "--features=run/features.npz", "--budget=6")
        for how, name in (("ambiguous", "variability"), ("hard", "confidence")):
            self.call(choose, *where, f"--by=contrast_{how}", f"--output={how}")
            for row in rows_of(f"{how}/chosen.csv"):
                expected = float(images[row["file"]][name])
                self.assertAlmostEqual(float(row[name]), expected, places=5)
        # A flag about the same data changes nothing.
        self.assertIn("already there", self.call(features, "--run_dir=run", "--fit=crop"))
        with open("run/images.csv", "a") as file:
            file.write("3,x.png,0.5,0.5\n")
        os.remove("run/features.npz")
        code, _, errors = commands.call_of(features, "--run_dir=run")
        self.assertEqual((code, len(errors)), (2, 1))
        self.assertRegex(errors[0], "images.csv: its indices do not increase. Delete result.json")
        # An image that the training left out is unknown.
        lines = pathlib.Path("run/images.csv").read_text().splitlines()[:-2]
        pathlib.Path("run/images.csv").write_text("\n".join(lines) + "\n")
        self.call(features, "--run_dir=run")
        data = labeling.load_unlabeled(Settings(dataset=f"folder:{self.root}/photos"))
        known = feature_file.read("run/features.npz").statistic("confidence", data)
        self.assertEqual(np.flatnonzero(np.isnan(known)).tolist(), [39])


BY_PIXELS = [name for name in rules.BY_FEATURES if not name.startswith("contrast_")]


class DrawTest(Case):
    @parameterized.parameters(*BY_PIXELS)
    def test_a_run_draws_what_the_command_chooses(self, how):
        file = self.pixels()
        self.call(choose, "--budget=10", file, f"--by={how}", "--seed=3")
        data = sources.load("digits")
        expected, _ = label_budget.read("chosen/labels.json", data)
        settings = Settings(
            num_labels=10, label_draw=how, features=str(self.root / "pixels.npz"), seed=3
        )
        labels = labeling.choose(settings, data)
        np.testing.assert_array_equal(labels.positions, expected)
        self.assertEqual((labels.how, labels.seed), (how, 3))

    def test_a_finished_run_needs_the_feature_file_no_more(self):
        flags = (*QUICK, self.pixels(), "--label_draw=kmeans", "--num_labels=10", "--run_dir=run")
        self.train(*flags)
        os.remove("pixels.npz")
        self.assertIn("10 labels", self.train(*flags))
        found = json.loads(pathlib.Path("run/labels.json").read_text())
        self.assertEqual((found["how"], found["num_labels"]), ("kmeans", 10))

    def test_mistakes(self):
        self.pixels()
        for arguments, message in (
            (("--label_draw=typiclust", "--num_labels=5"), "needs --features=FILE"),
            (
                ("--label_draw=kmeans", "--num_labels=2000", "--features=pixels.npz"),
                r"num_labels must be in \[1, 1297\]",
            ),
            (("--label_draw=kmeans", "--num_labels=5", "--features=no.npz"), "cannot be read"),
            (("--norecord_examples", "--features=pixels.npz"), "--features has no effect without"),
        ):
            code, _, errors = commands.call(*QUICK, *arguments, "--run_dir=run")
            self.assertEqual((code, len(errors)), (2, 1))
            self.assertRegex(errors[0], message)
            self.assertFalse(os.path.exists("run"))


if __name__ == "__main__":
    absltest.main()
