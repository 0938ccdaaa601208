# SPDX-License-Identifier: Apache-2.0
"""Prediction and export: the same pixels as in training, any pictures, and every mistake."""

import contextlib
import csv
import io
import os
import pathlib
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import toy
from absl import flags
from absl.testing import absltest, parameterized
from PIL import Image

from ssl_noisy import command, model_file, predict
from ssl_noisy.data import pictures

NAMES = tuple("zero one two three four five six seven eight nüne".split())
METADATA = model_file.Metadata(NAMES, "stretch", 1.6)


def save_model(path, network=None):
    network = toy.network() if network is None else network
    network.save(path)
    model_file.add_metadata(path, METADATA)
    return network


class Case(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.model = str(self.root / "model.keras")

    def call(self, *arguments):
        """Runs the command in this process and returns exit code, output and error."""
        values, out, err = flags.FlagValues(), io.StringIO(), io.StringIO()
        predict.define_flags(values)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                wanted = predict.read_flags(["predict", *arguments], values)
            except (flags.Error, ValueError) as error:
                return command.fail("predict", error), "", err.getvalue()
            code = command.execute("predict", predict.main, wanted)
        return code, out.getvalue(), err.getvalue()

    def pictures(self, count, folder="images"):
        """Saves digits as 8x8 pictures and returns them as arrays."""
        images, _ = toy.digits()
        for number, image in enumerate(images[:count]):
            path = self.root / folder / f"{number % 3}" / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
        return images[:count]

    def rows(self, path):
        with open(path, encoding="utf-8") as file:
            return list(csv.DictReader(file))


class PredictTest(Case):
    def test_rows_agree_with_the_network(self):
        network = save_model(self.model)
        images, output = self.pictures(23), self.root / "p.csv"
        (self.root / "images/0/.hidden.png").write_bytes(b"")
        (self.root / "images/notes.txt").write_text("no picture")
        code, out, _ = self.call(
            f"--model={self.model}", f"--images={self.root}/images", f"--output={output}",
            "--batch_size=4",
        )  # fmt: skip
        self.assertEqual(code, 0)
        self.assertIn("23 pictures, 0 unreadable", out)
        rows = self.rows(output)
        self.assertEqual(tuple(rows[0]), predict.COLUMNS)
        logits = keras.ops.convert_to_numpy(network(images.astype("float32")))
        probs = np.exp(logits / 1.6) / np.exp(logits / 1.6).sum(axis=-1, keepdims=True)
        self.assertLen(rows, 23)
        for row in rows:
            wanted = probs[int(pathlib.Path(row["file"]).stem)]
            first, second = np.argsort(-wanted)[:2]
            self.assertEqual(
                (row["predicted_class"], row["second_class"]), (NAMES[first], NAMES[second])
            )
            self.assertAlmostEqual(float(row["confidence"]), wanted[first], delta=1e-5)
            self.assertAlmostEqual(float(row["second_confidence"]), wanted[second], delta=1e-5)

    def test_unreadable_pictures_have_empty_cells_and_are_listed(self):
        save_model(self.model)
        self.pictures(3)
        (self.root / "images/1/bad.png").write_bytes(b"bad")
        output = self.root / "p.csv"
        code, out, err = self.call(
            f"--model={self.model}", f"--images={self.root}/images", f"--output={output}"
        )
        self.assertEqual(code, 0)
        self.assertIn("3 pictures, 1 unreadable", out)
        self.assertRegex(err, "Cannot read .*images/1/bad.png: it is not a picture")
        bad = [row for row in self.rows(output) if row["file"].endswith("bad.png")]
        self.assertEqual([list(row.values())[1:] for row in bad], [[""] * 4])

    def test_pictures_of_another_size_and_mode(self):
        network = save_model(self.model)
        image = np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)
        path = self.root / "photo.png"
        Image.fromarray(image).save(path)
        code, _, _ = self.call(f"--model={self.model}", f"--output={self.root}/p.csv", str(path))
        self.assertEqual(code, 0)
        (row,) = self.rows(self.root / "p.csv")
        gray = Image.fromarray(image).convert("L").resize((8, 8), Image.Resampling.BICUBIC)
        logits = network(np.asarray(gray, "float32")[None, ..., None])
        best = int(np.argmax(keras.ops.convert_to_numpy(logits)))
        self.assertEqual(row["predicted_class"], NAMES[best])
        self.assertEqual(row["file"], str(path))

    @pytest.mark.slow
    def test_a_real_process(self):
        save_model(self.model)
        self.pictures(2)
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        done = subprocess.run(
            [sys.executable, "-m", "ssl_noisy.predict", "--model=model.keras", "--images=images"],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = self.rows(self.root / "predictions.csv")
        self.assertEqual([row["file"] for row in rows], ["images/0/000.png", "images/1/001.png"])

    def test_mistakes(self):
        save_model(self.model)
        self.pictures(1)
        (self.root / "empty").mkdir()
        (self.root / "bad.png").write_bytes(b"bad")
        (self.root / "bad.keras").write_bytes(b"bad")
        model, images = f"--model={self.model}", f"--images={self.root}/images"
        for arguments, part in (
            ([], "--run_dir=RUN of a finished run"),
            ([model, f"--run_dir={self.root}", images], "--run_dir=RUN of a finished run"),
            ([f"--run_dir={self.root}/none", images], "There is no model file"),
            ([f"--model={self.root}/bad.keras", images], "cannot be read"),
            ([model], "--images=FOLDER"),
            ([model, f"--images={self.root}/none"], "There is no file or folder"),
            ([model, f"--images={self.root}/empty"], "No picture in"),
            ([model, f"--images={self.root}/bad.png"], "None of 1 pictures can be read"),
            ([model, images, "--logits"], "--logits has no effect without --export"),
            ([model, images, "--input_size=9"], "--input_size has no effect"),
            ([model, images, "--batch_size=0"], "batch_size"),
            ([model, images, "--unknown"], "unknown"),
            ([model, images, f"--output={self.root}/images"], "Cannot write"),
            ([model, "--export=onnx", "--output="], "--output=PATH"),
            ([model, images, "--export=onnx", f"--output={self.root}/m.onnx"], "no pictures"),
            ([model, "--export=onnx", f"--output={self.model}"], "exists"),
        ):
            with self.subTest(part=part):
                code, _, error = self.call(f"--output={self.root}/p.csv", *arguments)
                self.assertEqual(code, 2)
                self.assertIn(part, error)
                self.assertLen(error.splitlines(), 1)
                self.assertFalse((self.root / "p.csv").exists())


class ModelFileTest(Case):
    def test_keras_alone_loads_the_file(self):
        network = save_model(self.model)
        loaded = keras.saving.load_model(self.model)
        images, _ = toy.digits()
        np.testing.assert_array_equal(loaded(images[:3]), network(images[:3]))
        _, metadata = model_file.read(self.model)
        self.assertEqual(metadata, METADATA)

    def test_a_file_of_another_program(self):
        toy.network().save(self.model)
        _, metadata = model_file.read(self.model)
        self.assertEqual(metadata, model_file.Metadata(tuple("0123456789")))

    def test_a_subclassed_network_has_no_input_shape(self):
        network = toy.users_network("subclassed")
        images = toy.digits()[0][:4].astype("float32")
        wanted = keras.ops.convert_to_numpy(network(images))
        network.save(self.model)
        model_file.add_metadata(self.model, model_file.Metadata(NAMES, image_shape=(8, 8, 1)))
        loaded, metadata = model_file.read(self.model)
        self.assertEqual(model_file.format_of(loaded, metadata), pictures.Format(8, 8, 1))
        model = model_file.deployed(loaded, metadata, probabilities=False)
        np.testing.assert_allclose(model(images), wanted, rtol=1e-5, atol=1e-5)

    @parameterized.parameters("crop", "pad", "stretch")
    def test_another_input_size(self, fit):
        network = toy.network()
        metadata = model_file.Metadata(NAMES, fit)
        model = model_file.deployed(network, metadata, probabilities=False, input_size=(16, 32))
        small = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 1)).astype("float32")
        large = np.zeros((2, 16, 32, 1), "float32")
        if fit == "crop":  # the middle half of the width remains
            large[:, :, 8:24] = small.repeat(2, 1).repeat(2, 2)
        elif fit == "stretch":
            large = small.repeat(2, 1).repeat(4, 2)
        else:  # the rows 2 to 5 of 8
            large = small[:, 2:6].repeat(4, 1).repeat(4, 2)
            small[:, [0, 1, 6, 7]] = 0
        wanted = keras.ops.convert_to_numpy(network(small))
        np.testing.assert_allclose(model(large), wanted, rtol=1e-4, atol=1e-4)


if keras.backend.backend() == "tensorflow":

    class ExportTest(Case):
        def export(self, kind, name, *options):
            network = save_model(self.model)
            path = str(self.root / name)
            arguments = (f"--export={kind}", f"--output={path}", f"--model={self.model}")
            code, _, err = self.call(*arguments, *options)
            self.assertEqual(code, 0, err)
            images = toy.digits()[0][:1].astype("float32")
            logits = keras.ops.convert_to_numpy(network(images))
            scaled = np.exp(logits / 1.6)
            return path, images, logits, scaled / scaled.sum(axis=-1, keepdims=True)

        def test_saved_model(self):
            import tensorflow as tf

            path, images, logits, _ = self.export("saved_model", "exported", "--logits")
            loaded = tf.saved_model.load(path)
            np.testing.assert_allclose(loaded.serve(images), logits, atol=1e-5)

        def test_tflite(self):
            import tensorflow as tf

            path, images, _, probs = self.export("tflite", "model.tflite")
            interpreter = tf.lite.Interpreter(path)
            interpreter.allocate_tensors()
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
            interpreter.invoke()
            found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
            np.testing.assert_allclose(found, probs, atol=1e-5)

        def test_onnx(self):
            import onnxruntime

            large = toy.digits()[0][:1].astype("float32").repeat(2, 1).repeat(2, 2)
            path, _, _, probs = self.export("onnx", "model.onnx", "--input_size=16")
            session = onnxruntime.InferenceSession(path)
            (found,) = session.run(None, {session.get_inputs()[0].name: large})
            np.testing.assert_allclose(found, probs, atol=1e-5)

        def test_the_ending_of_the_name(self):
            save_model(self.model)
            code, _, error = self.call(
                "--export=tflite", f"--output={self.root}/m", f"--model={self.model}"
            )
            self.assertEqual(code, 2)
            self.assertIn("must end in .tflite", error)


if __name__ == "__main__":
    absltest.main()
