# SPDX-License-Identifier: Apache-2.0
"""Training on frozen features: cached views, heads, and the commands around them."""

import functools
import io
import json
import os
import shutil
import tempfile

import keras
import numpy as np
import pytest
import report_files
from absl.testing import absltest, parameterized
from commands import call, call_of, read
from keras import ops
from PIL import Image

from ssl_noisy import Task, augment, devices, features, methods, networks, predict, report
from ssl_noisy.data import feature_file, sources
from ssl_noisy.reports import summary
from ssl_noisy.runs import frozen, signals
from ssl_noisy.runs import run as runs
from ssl_noisy.settings import Settings
from ssl_noisy.sweeps import plan
from ssl_noisy.sweeps import report as sweep_report
from ssl_noisy.view_maker import BLOCK, Recipe, ViewMaker

NUM_EXAMPLES, NUM_FEATURES, VIEWS = 60, 4, (3, 2)
FEW = ("--dataset=digits", "--num_labels=20", "--noplots")
SHORT = ("--steps=4", "--steps_per_epoch=2", "--batch_size=4")


def numbered_task(**fields):
    """Returns a task whose features say which example and which row they are."""
    rows = np.arange(1 + sum(VIEWS))
    values = 10 * np.arange(NUM_EXAMPLES)[:, None] + rows
    images = np.repeat(values[:, :, None], NUM_FEATURES, axis=2).astype("float16")
    given = np.where(np.arange(NUM_EXAMPLES) < 20, np.arange(NUM_EXAMPLES) % 2, -1)
    return Task(images, given, num_classes=2, views=VIEWS, **fields)


def learner(method="fixmatch", task=None, network="linear", **kwargs):
    task = numbered_task() if task is None else task
    devices.make_repeatable()
    keras.utils.set_random_seed(0)
    statistics = networks.feature_statistics(task.images)
    head = networks.build(network, task.image_shape, task.num_classes, statistics=statistics)
    small = {"batch_size": 8, "unlabeled_ratio": 3, **kwargs}
    small = {name: value for name, value in small.items() if name in methods.arguments(method)}
    if methods.get(method).needs_teacher:
        small["teacher"] = networks.build("linear", task.image_shape, task.num_classes)
    made = methods.get(method)(head, task, steps=8, **small)
    made.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return made


def fit(made, steps, start=0):
    return made.fit(made.batches(seed=1, start=start), steps_per_epoch=steps, verbose=0)


class ViewsTest(parameterized.TestCase):
    def test_a_view_is_one_of_the_right_rows_of_the_right_example(self):
        made, positions = learner(), np.array([7, 3, 59, 7] * 50, "int32")
        images = made.images(positions)
        for views, rows in (
            (made.weak_view(images, positions), {1, 2, 3}),
            (made.strong_view(images), {4, 5}),
        ):
            values = ops.convert_to_numpy(views)
            self.assertEqual((values.shape, values.dtype), ((200, NUM_FEATURES), np.float32))
            np.testing.assert_array_equal(values // 10, np.repeat(positions[:, None], 4, axis=1))
            self.assertEqual(set((values % 10).ravel()), rows)
            counts = np.bincount((values[:, 0] % 10).astype(int))[sorted(rows)]
            self.assertGreater(counts.min(), 0.7 * 200 / len(rows))
        plain = learner(weak_augmentation="none")
        values = ops.convert_to_numpy(plain.weak_view(images, positions))
        np.testing.assert_array_equal(values[:, 0], 10 * positions)

    def test_the_largest_random_number_is_the_last_row(self):
        rows = np.arange(12, dtype="float32").reshape(2, 6, 1)
        almost_one = np.nextafter(np.float32(1), np.float32(0))
        uniform = keras.random.uniform
        keras.random.uniform = lambda shape, **_: ops.full(shape, almost_one, "float32")
        try:
            found = augment.cached_view(ops.convert_to_tensor(rows), None, first=1, count=3)
        finally:
            keras.random.uniform = uniform
        np.testing.assert_array_equal(ops.convert_to_numpy(found), [[3], [9]])

    def test_on_the_host_it_is_the_same_training(self):
        device = learner(task=numbered_task(resident="device"))
        host = learner(task=numbered_task(resident="host"))
        self.assertEqual((device.resident.place, host.resident.place), ("device", "host"))
        for made in (device, host):
            fit(made, 3)
        for a, b in zip(device.network.variables, host.network.variables):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-7)

    @parameterized.parameters(*methods.names())
    @pytest.mark.slow
    def test_each_method_trains_or_says_that_it_cannot(self, method):
        if methods.get(method).needs_pixels:
            with self.assertRaisesRegex(ValueError, "makes its views of pixels"):
                learner(method)
            return
        logs = fit(learner(method, network="mlp"), 2).history
        self.assertTrue(np.isfinite(logs["loss"][-1]), method)

    def test_features_that_lack_views(self):
        plain = numbered_task()
        for method, views, message in (
            ("supervised", (0, 0), "weak views"),
            ("fixmatch", (0, 0), "strong views"),
            ("fixmatch", (3, 0), "strong views"),
        ):
            task = Task(plain.images[:, : 1 + sum(views)], plain.given_labels, views=views)
            with self.assertRaisesRegex(ValueError, f"draws {message}"):
                learner(method, task=task)
        learner("supervised", task=task)
        with self.assertRaisesRegex(ValueError, "CTAugment"):
            learner(strong_augmentation="ctaugment")

    def test_a_task_checks_its_features(self):
        task = numbered_task()
        for changes in (
            {"images": task.images.astype(int)},
            {"images": task.images[:, 1:]},
            {"test_images": np.zeros((5, 3), "float32"), "test_labels": np.zeros(5, int)},
            {"given_labels": np.zeros(5, int)},
        ):
            given = {"images": task.images, "given_labels": task.given_labels, **changes}
            with self.assertRaisesRegex(ValueError, "must be"):
                Task(**given, num_classes=2, views=VIEWS)


class HeadTest(parameterized.TestCase):
    def test_features_are_centered_and_scaled_by_one_number(self):
        rows = np.random.default_rng(0).normal([3, -1], [4, 0.5], (5000, 2)).astype("float32")
        found = networks.feature_statistics(rows[:, None])
        np.testing.assert_allclose(found["mean"], [3, -1], atol=0.2)
        self.assertAlmostEqual(found["scale"], np.sqrt((16 + 0.25) / 2), delta=0.05)
        self.assertEqual(networks.feature_statistics(np.ones((9, 1, 2)))["scale"], 1)
        head = networks.build("linear", (2,), 3, statistics=found)
        scaled = (rows[:4] - found["mean"]) / found["scale"]
        kernel, bias = (v.numpy() for v in head.layers[-1].variables)
        np.testing.assert_allclose(
            ops.convert_to_numpy(head(rows[:4])), scaled @ kernel + bias, rtol=1e-4, atol=1e-5
        )

    @parameterized.parameters("linear", "mlp")
    def test_fixmatch_learns_from_one_label_per_class(self, network):
        # The second feature says nothing about the class, and strong views change it.
        rng = np.random.default_rng(0)
        labels = np.arange(200) % 2
        images = rng.normal(0, 0.3, (200, 9, 4)).astype("float16")
        images[:, :, 0] += 2 * (2 * labels - 1)[:, None]
        images[:, :5, 1] += rng.normal(0, 3, (200, 1))
        images[:, 5:, 1] += rng.normal(0, 3, (200, 4))
        given = np.where(np.arange(200) < 2, labels, -1)
        images[:2, :5, 1] = np.array([-3, 3])[:, None]  # misleads who sees the labels alone
        task = Task(images, given, num_classes=2, views=(4, 4))
        accuracy = {}
        for method in ("supervised", "fixmatch"):
            made = learner(method, task, network, confidence_threshold=0.6, batch_size=16)
            fit(made, 100)
            logits = made.network.predict(images[:, 0].astype("float32"), verbose=0)
            accuracy[method] = np.mean(logits.argmax(axis=1) == labels)
        self.assertLess(accuracy["supervised"], 0.9)
        self.assertGreater(accuracy["fixmatch"], accuracy["supervised"] + 0.05)


class ViewMakerTest(parameterized.TestCase):
    def test_views_are_those_of_the_kit_and_depend_on_seed_and_position_alone(self):
        images = sources.load("digits").images[: 2 * BLOCK]
        maker = ViewMaker(Recipe(2), flip=False)
        first, second = maker.make(images[:BLOCK], 0), maker.make(images[BLOCK:], BLOCK)
        self.assertEqual(first.shape, (BLOCK, 4, 8, 8, 1))
        again = ViewMaker(Recipe(2), flip=False)
        np.testing.assert_array_equal(again.make(images[BLOCK:], BLOCK), second)
        np.testing.assert_array_equal(again.make(images[:5], 0), first[:5])
        for other in (
            maker.make(images[:BLOCK], BLOCK),
            ViewMaker(Recipe(2, seed=1), False).make(images[:BLOCK], 0),
        ):
            self.assertFalse(np.array_equal(other, first))
        # A weak view is one of the nine shifts by at most a pixel.
        for image, views in zip(images, first):
            padded = np.pad(image[..., 0], 1, mode="reflect")
            shifted = [padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
            for view in views[:2]:
                self.assertTrue(any(np.array_equal(view[..., 0], one) for one in shifted))
            for view in views[2:]:
                self.assertFalse(any(np.array_equal(view[..., 0], one) for one in shifted))

    def test_mirrored_where_classes_survive_it(self):
        image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
        for flip in (False, True):
            views = ViewMaker(Recipe(40), flip).make(image, 0)[0, :40, 4, :, 0].astype(int)
            self.assertEqual(bool((np.diff(views[:, 2:6]) < 0).any()), flip)


@functools.cache
def new_folder():
    """Returns a folder of this process. Views of another one may be those of another backend."""
    os.makedirs(absltest.get_default_test_tmpdir(), exist_ok=True)
    return tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())


class RunCase(parameterized.TestCase):
    """Pixels of the digits with two weak and two strong views, made once."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = new_folder()
        cls.pixels = os.path.join(cls.root, "views.npz")
        if not os.path.exists(cls.pixels):
            code, _, errors = cls.make(cls.pixels, "--views=2")
            if code:
                raise AssertionError(errors)

    @staticmethod
    def make(path, *arguments):
        return call_of(
            features, "--network=pixels", "--dataset=digits", f"--output={path}", *arguments
        )

    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.create_tempdir().full_path, "run")
        self.here = ("--network=linear", f"--features={self.pixels}", f"--run_dir={self.folder}")

    def result(self):
        return json.loads(read(self.folder, "result.json"))


class RunTest(RunCase):
    def test_the_file(self):
        data, stored = sources.load("digits"), feature_file.read(self.pixels)
        views = stored.training_views(data)
        self.assertEqual((views.shape, views.dtype), ((1297, 5, 64), np.float16))
        self.assertEqual(stored.views.counts, (2, 2))
        np.testing.assert_allclose(views[:, 0], stored.training(data), atol=1e-3)
        maker = ViewMaker(Recipe(2), data.flip)
        made = maker.make(data.images[BLOCK : 2 * BLOCK], BLOCK)
        np.testing.assert_allclose(
            views[BLOCK : 2 * BLOCK, 1:], made.reshape(BLOCK, 4, 64) / 255.0, atol=1e-3
        )
        before = os.stat(self.pixels).st_mtime_ns
        code, out, _ = self.make(self.pixels, "--views=2", "--batch_size=100")
        self.assertEqual(code, 0)
        self.assertIn("already there, of 1,797 images by pixels, with 2 weak views", out)
        self.assertEqual(os.stat(self.pixels).st_mtime_ns, before)
        for other in ((), ("--views=3",), ("--views=2", "--seed=1")):
            code, _, errors = self.make(self.pixels, *other)
            self.assertEqual(code, 2)
            self.assertIn("other views", errors[0])

    def test_a_run_and_what_it_writes(self):
        code, out, errors = call(*FEW, *SHORT, *self.here, "--label_draw=typiclust")
        self.assertEqual((code, errors), (0, []))
        result = self.result()
        self.assertEqual(result["network"], "linear on features of pixels")
        self.assertEqual(result["begins_with"], "frozen features of pixels")
        found = result["features"]
        self.assertEqual((found["extractor"], found["num_features"]), ("pixels", 64))
        self.assertIn("2 weak views (auto) and 2 strong views (google_code)", found["views"])
        self.assertEqual(result["parameters"], 650)
        self.assertNotIn("feature_vote", result["label_quality"]["detectors"])
        # The model is one of features, with their statistics in it.
        data = sources.load("digits")
        model = keras.saving.load_model(os.path.join(self.folder, "model.keras"), compile=False)
        logits = model.predict(feature_file.read(self.pixels).test(data), verbose=0)
        accuracy = np.mean(logits.argmax(axis=1) == data.test_labels)
        self.assertAlmostEqual(accuracy, result["test_accuracy"]["last"])
        Image.new("L", (8, 8)).save(os.path.join(self.root, "one.png"))
        code, _, errors = call_of(
            predict, f"--run_dir={self.folder}", f"--images={self.root}", "--output=/no/such.csv"
        )
        self.assertEqual((code, len(errors)), (2, 1))
        self.assertIn("Received: a classifier of 64 frozen features", errors[0])
        self.refuse_as_teacher()
        # A finished run answers at once, and not for other features.
        self.assertEqual(call(*FEW, *SHORT, *self.here, "--label_draw=typiclust")[0], 0)
        frozen.check_unchanged(self.pixels, found["fingerprint"], self.folder)
        with self.assertRaisesRegex(ValueError, "has changed"):
            frozen.check_unchanged(self.pixels, "other", self.folder)

    def refuse_as_teacher(self):
        """The width of other features may be the same, but what they mean is not."""
        others = os.path.join(self.create_tempdir().full_path, "others.npz")
        arrays = dict(np.load(self.pixels))
        np.savez(others, **{**arrays, "weights": "other"})
        student = ("--method=distill", "--network=mlp", f"--run_dir={self.folder}_student")
        code, _, errors = call(
            *FEW, *SHORT, *student, f"--teacher={self.folder}", f"--features={others}"
        )
        self.assertEqual((code, len(errors)), (2, 1))
        self.assertIn("the teacher must take the same input: features by the network", errors[0])
        self.assertIn("other. Received: one that takes features by the network", errors[0])

    def test_a_damaged_note_about_the_features(self):
        settings = Settings(network="linear", features=self.pixels, method="supervised")
        os.makedirs(self.folder)
        for content in ("", "{", "{}", "[]"):
            with open(os.path.join(self.folder, "features.json"), "w") as file:
                file.write(content)
            with self.assertRaisesRegex(ValueError, "features.json cannot be read: .*Delete it"):
                frozen.begin(settings, self.folder)

    def test_a_stopped_run_resumes_to_the_same_weights(self):
        settings = Settings(
            dataset="digits",
            num_labels=20,
            network="linear",
            features=self.pixels,
            steps=6,
            steps_per_epoch=3,
            plots=False,
            validation_split=None,
            method_arguments={"batch_size": 4},
        )
        paths = [os.path.join(self.root, f"resume_{name}") for name in "ab"]
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)
        whole = runs.run(settings.for_method("fixmatch", run_dir=paths[0]), io.StringIO())
        stops = settings.for_method("fixmatch", run_dir=paths[1])
        request = signals.Request

        class Stop(request):
            asked = 0

            @property
            def signum(self):
                Stop.asked += 1
                return 15 if Stop.asked > 4 else None

            @signum.setter
            def signum(self, value):
                pass

        signals.Request = Stop
        try:
            with self.assertRaisesRegex(Exception, "Stopped at step"):
                runs.run(stops, io.StringIO())
        finally:
            signals.Request = request
        again = runs.run(stops, io.StringIO())
        self.assertEqual(again, whole)
        models = [keras.saving.load_model(os.path.join(p, "model.keras")) for p in paths]
        for a, b in zip(*(model.get_weights() for model in models)):
            np.testing.assert_array_equal(a, b)

    def test_a_validation_split_has_features_too(self):
        path = os.path.join(self.root, "split.npz")
        splits = ("--train_split=train[:90%]", "--validation_split=train[90%:]")
        self.assertEqual(self.make(path, *splits, "--views=1")[0], 0)
        code, _, errors = call(*FEW, *SHORT, *self.here, *splits, f"--features={path}")
        self.assertEqual((code, errors), (0, []))
        self.assertIsNotNone(self.result()["test_accuracy"]["validation_choice"])
        # Of what was validation then, there are no views.
        code, _, errors = call(*FEW, *self.here, f"--features={path}", f"--run_dir={self.folder}2")
        self.assertEqual(code, 2)
        self.assertIn("must have views of all 1297 training images", errors[0])


class MistakeTest(RunCase):
    def refuse(self, *arguments):
        code, _, errors = call(*FEW, *SHORT, *self.here, *arguments)
        self.assertEqual((code, len(errors)), (2, 1), errors)
        self.assertFalse(os.path.exists(self.folder))
        return errors[0]

    @parameterized.parameters(
        ("--features=", "--features=FILE"),
        ("--method=uda", "--strong_augmentation=google_code"),
        ("--strong_augmentation=ctaugment", "views of --strong_augmentation=google_code"),
        ("--weak_augmentation=crop", "views of --weak_augmentation=auto"),
        ("--normalization=dataset", "--normalization has no effect"),
        ("--baseline=remixmatch", "makes its views of pixels"),
        ("--method=supervised --baseline=uda", "Received: --strong_augmentation=uda, for uda"),
        ("--baseline=distill", "--baseline=distill needs a teacher"),
        ("--freeze=backbone", "--freeze has no effect with --network=linear"),
        ("--initial_weights=a.keras", "--initial_weights has no effect with --network=linear"),
    )
    def test_one_line(self, argument, message):
        self.assertIn(message, self.refuse(*argument.split()))

    @parameterized.parameters("remixmatch", "rotnet", "simclr", "moco_v2")
    def test_methods_of_pixels(self, method):
        given = Settings(features=self.pixels, network="linear")
        with self.assertRaisesRegex(ValueError, "makes its views of pixels"):
            given.for_method(method)

    def test_files(self):
        data, folder = sources.load("digits"), self.create_tempdir().full_path
        digests = feature_file.digests(np.concatenate([data.images, data.test_images]))
        digests, rows = np.unique(digests, return_index=True)
        plain = os.path.join(folder, "plain.npz")
        with feature_file.writing(plain, digests, "pixels", "key") as writer:
            writer.append(np.ones((len(rows), 5), "float32"))
        self.assertIn("draws strong views, and these", self.refuse(f"--features={plain}"))
        # A method without strong views learns from the features of the images alone.
        code, _, errors = call(
            *FEW, *SHORT, *self.here, "--method=supervised", "--weak_augmentation=none",
            f"--features={plain}",
        )  # fmt: skip
        self.assertEqual((code, errors), (0, []))
        shutil.rmtree(self.folder)
        elsewhere = os.path.join(folder, "elsewhere.npz")
        count = len(data.test_images)
        np.savez(
            elsewhere, ids=data.ids, features=np.ones((len(data.ids), 5)),
            ids_test=np.arange(count), features_test=np.ones((count, 5)),
        )  # fmt: skip
        self.assertIn("draws strong views, and these", self.refuse(f"--features={elsewhere}"))
        others = os.path.join(folder, "others.npz")
        with feature_file.writing(others, digests[:9], "pixels", "key") as writer:
            writer.append(np.ones((9, 5), "float32"))
        self.assertIn("Received: none for", self.refuse(f"--features={others}"))

    def test_features_command(self):
        path = os.path.join(self.create_tempdir().full_path, "none.npz")
        for arguments, message in (
            (["--strong_augmentation=uda"], "no effect without --views"),
            (["--seed=7"], "--seed has no effect without --views"),
            (["--views=0"], "views"),
            (["--views=2", "--weak_augmentation=none"], "weak_augmentation"),
            (["--views=2", "--strong_augmentation=ctaugment"], "strong_augmentation"),
        ):
            code, _, errors = self.make(path, *arguments)
            self.assertEqual((code, len(errors)), (2, 1))
            self.assertIn(message, errors[0])
            self.assertFalse(os.path.exists(path))

    def test_features_that_float16_cannot_hold(self):
        path, data = os.path.join(self.create_tempdir().full_path, "f.npz"), sources.load("digits")
        with self.assertRaisesRegex(ValueError, "as float16 can be"):
            with feature_file.writing(path, np.arange(9, dtype="uint64"), "x", "key") as writer:
                writer.append(np.ones((9, 1), "float32"))
                features._write_views(
                    writer, Recipe(1), data, np.arange(9),
                    lambda pixels: np.full((len(pixels), 1), 7e4, "float32"), "x",
                )  # fmt: skip
        self.assertFalse(os.path.exists(path))


class BeginningTest(RunCase):
    """Results of pre-trained networks and of random weights are in tables of their own."""

    def test_a_report_separates_what_runs_begin_with(self):
        few, names = {"num_labels": 20, "features": self.pixels}, ["features", "images"]
        settings = [Settings(network=network, **few) for network in ("linear", "small_cnn")]
        folder = self.create_tempdir().full_path
        paths = [os.path.join(folder, name) for name in names]
        for path, one in zip(paths, settings):
            report_files.write(path, one)
        for places, count in ((paths, 2), (paths[:1], 0)):
            code = call_of(report, *places, f"--output={folder}/report.html")[0]
            self.assertEqual(code, 0)
            text = read(folder, "report.html")
            self.assertEqual(text.count("<h3>Runs that begin with"), count)
            beginning = f"frozen features in {self.pixels}"
            self.assertIn(beginning if count == 0 else f"Runs that begin with {beginning}", text)
            self.assertEqual("Runs that begin with random weights" in text, count > 0)

    def test_a_sweep_separates_what_runs_begin_with(self):
        sweep_dir = self.create_tempdir().full_path
        grid = [
            plan.Run(
                f"{network}_{seed}",
                {"network": network, "seed": seed},
                Settings(network=network, features=self.pixels, num_labels=20, seed=seed),
            )
            for network in ("linear", "small_cnn")
            for seed in (0, 1)
        ]
        sweep_report.Report(sweep_dir, ["network", "seed"], grid).write({}, is_last=True)
        text = read(sweep_dir, "summary.md")
        self.assertEqual(text.count("### Runs that begin with"), 2)
        self.assertIn(f"### Runs that begin with frozen features in {self.pixels}", text)
        rows = [line.split(",") for line in read(sweep_dir, "summary.csv").splitlines()]
        self.assertEqual(rows[0][0], "begins_with")
        found = summary.tables(rows, {})
        names = [f"frozen features in {self.pixels}", "random weights"]
        self.assertEqual([name for name, _ in found], names)
        for (_, table), network in zip(found, ("linear", "small_cnn")):
            self.assertLen(table, 2)
            self.assertIn(network, table[1])
        # Runs of one beginning have one table.
        sweep_report.Report(sweep_dir, ["network", "seed"], grid[:2]).write({}, is_last=True)
        self.assertNotIn("begin with", read(sweep_dir, "summary.md"))

    def test_what_settings_begin_with(self):
        for given, beginning in (
            ({}, None),
            ({"features": "/a/b.npz"}, None),
            ({"features": "/a/b.npz", "network": "mlp"}, "frozen features in /a/b.npz"),
            ({"initial_weights": "/runs/a"}, "the weights of /runs/a"),
            ({"network": "keras:MobileNetV2"}, "imagenet weights of keras:MobileNetV2"),
            ({"network": "keras:MobileNetV2", "weights": "none"}, None),
            ({"network": "/a/b.keras"}, "the weights of /a/b.keras"),
            ({"method": "distill", "teacher": "/a"}, "random weights, taught by /a"),
            ({"method": "distill", "teacher": "round_1"}, None),  # in the run itself
        ):
            self.assertEqual(Settings(**given).beginning(), beginning, given)


if __name__ == "__main__":
    absltest.main()
