# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy.data import cifar_n, label_budget, label_noise, noise_file, noise_models
from ssl_noisy.data.dataset import Dataset, DatasetError, fixed_shuffle


def dataset(name="cards", size=40, num_classes=4, **changes):
    """Returns random images of `num_classes` classes in turn, with ids 100, 103, ..., changed."""
    images = np.random.default_rng(0).integers(0, 256, (size, 4, 4, 3), np.uint8)
    made = Dataset(
        name=name,
        version="1.0.0",
        images=images,
        labels=np.arange(size, dtype=np.int32) % num_classes,
        ids=100 + 3 * np.arange(size),
        test_images=images[:4],
        test_labels=np.zeros(4, np.int32),
        validation_images=None,
        validation_labels=None,
        class_names=tuple(map(chr, range(97, 97 + num_classes))),
        flip=True,
    )
    return dataclasses.replace(made, **changes)


def counts(true_labels, given_labels, num_classes):
    made = np.zeros((num_classes, num_classes), int)
    np.add.at(made, (true_labels, given_labels), 1)
    return made


class Case(parameterized.TestCase):
    def assert_one_line(self, parts, function, *args, **kwargs):
        with self.assertRaises(noise_models.NoiseError) as raised:
            function(*args, **kwargs)
        for part in parts:
            self.assertIn(part, str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))

    def folder(self):
        return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))


class ModelTest(Case):
    def test_symmetric(self):
        expected = [[0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]]
        np.testing.assert_allclose(noise_models.symmetric(3, 0.3).transition_matrix, expected)
        expected = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
        made = noise_models.symmetric(3, 0.3, include_true=True)
        np.testing.assert_allclose(made.transition_matrix, expected)

    def test_pair_flip(self):
        expected = [[0.6, 0.4, 0], [0, 0.6, 0.4], [0.4, 0, 0.6]]
        np.testing.assert_allclose(noise_models.pair_flip(3, 0.4).transition_matrix, expected)

    @parameterized.parameters("cifar10", "cifar10_n")
    def test_asymmetric_pairs(self, name):
        matrix = noise_models.asymmetric(name, 0.4).transition_matrix
        names = "airplane automobile bird cat deer dog frog horse ship truck".split()
        flips = {(names[i], names[j]): matrix[i, j] for i, j in np.argwhere(matrix) if i != j}
        pairs = "truck-automobile bird-airplane cat-dog dog-cat deer-horse".split()
        self.assertEqual(flips, {tuple(pair.split("-")): 0.4 for pair in pairs})
        np.testing.assert_allclose(np.diag(matrix), [1, 1, 0.6, 0.6, 0.6, 0.6, 1, 1, 1, 0.6])

    def test_asymmetric_in_superclasses(self):
        model = noise_models.asymmetric("cifar100", 0.3)
        following = model.targets.argmax(axis=1)
        # Aquatic mammals: beaver, dolphin, otter, seal, whale. Vehicles 2: lawn mower, rocket,
        # streetcar, tank, tractor.
        for ring in ([4, 30, 55, 72, 95], [41, 69, 81, 85, 89]):
            self.assertEqual(following[ring].tolist(), ring[1:] + ring[:1])
        coarse = noise_models.coarse_labels
        np.testing.assert_array_equal(coarse(following), coarse(np.arange(100)))
        self.assertEqual(np.sort(following).tolist(), list(range(100)))
        np.testing.assert_array_equal(model.rates, [0.3] * 100)

    def test_legacy_blocks(self):
        model = noise_models.asymmetric("cifar100", 0.3, legacy_blocks=True)
        following = model.targets.argmax(axis=1)
        self.assertEqual(following[:7].tolist(), [1, 2, 3, 4, 0, 6, 7])
        self.assertEqual(following[-2:].tolist(), [99, 95])

    def test_coarse_labels(self):
        # Apple, aquarium fish, baby, bear, beaver; bicycle; worm.
        fine = np.array([[0, 1, 2, 3, 4], [8, 99, 8, 99, 8]])
        expected = [[4, 1, 14, 8, 0], [18, 13, 18, 13, 18]]
        self.assertEqual(noise_models.coarse_labels(fine).tolist(), expected)
        sizes = np.bincount(noise_models.coarse_labels(np.arange(100)))
        self.assertEqual(sizes.tolist(), [5] * 20)

    def test_from_matrix(self):
        matrix = np.array([[0.7, 0.3, 0], [0.25, 0.25, 0.5], [0, 0, 1]])
        model = noise_models.from_matrix(matrix)
        np.testing.assert_allclose(model.transition_matrix, matrix, atol=1e-12)
        np.testing.assert_allclose(model.rates, [0.3, 0.75, 0], atol=1e-12)
        np.testing.assert_allclose(model.targets[1], [1 / 3, 0, 2 / 3])
        nearly = noise_models.from_matrix([[1 + 9e-7, 0], [1, 0]])
        np.testing.assert_allclose(nearly.transition_matrix, [[1, 0], [1, 0]])

    @parameterized.named_parameters(
        ("sum", [[0.7, 0.2], [0, 1]], ["sum to 1", "row 0 with the sum 0.9"]),
        ("near", [[1, 0], [0.999998, 0]], ["row 1 with the sum 0.999998"]),
        ("negative", [[1, 0], [1.5, -0.5]], ["row 1 with the sum 1 and the minimum -0.5"]),
        ("nan", [[1, 0], [np.nan, 1]], ["row 1 with the sum nan"]),
        ("wide", [[1, 0, 0], [0, 1, 0]], ["(num_classes, num_classes)", "(2, 3)"]),
        ("flat", [1, 0], ["(2,)"]),
        ("text", [["a", "b"], ["c", "d"]], ["numbers", "<U1"]),
    )
    def test_bad_matrices(self, matrix, parts):
        self.assert_one_line(parts, noise_models.from_matrix, matrix)
        self.assert_one_line(parts, noise_models.NoiseModel, [0, 0], matrix)

    def test_bad_rates(self):
        for rate in (-0.1, 1, 1.5, np.nan, "x", None):
            for model in (noise_models.symmetric, noise_models.pair_flip):
                self.assert_one_line(["[0, 1)", f"Received: {rate!r}"], model, 3, rate)
            self.assert_one_line(["[0, 1)"], noise_models.asymmetric, "cifar10", rate)
        for rates in ([0.5], [0.5, 1.1], [-0.1, 0], [np.nan, 0]):
            self.assert_one_line(["2 numbers in [0, 1]"], noise_models.NoiseModel, rates, np.eye(2))

    def test_asymmetric_of_other_data(self):
        for name in ("mnist", "cifar", "cifar10_corrupted", "cifar100/x"):
            parts = ["cifar10 and cifar100", f"Received: {name!r}"]
            self.assert_one_line(parts, noise_models.asymmetric, name, 0.2)
        parts = ["legacy_blocks", "for cifar100. Received: 'cifar10'"]
        self.assert_one_line(parts, noise_models.asymmetric, "cifar10", 0.2, legacy_blocks=True)


class CorruptTest(Case):
    LABELS = np.arange(20_000) % 10

    def changed(self, model, seed=0, draw="exact", labels=None):
        labels = self.LABELS if labels is None else labels
        given = noise_models.corrupt(labels, model, seed=seed, draw=draw)
        return np.flatnonzero(given != labels)

    def test_pinned(self):
        # These must never change: published runs depend on them.
        labels, model = np.arange(12) % 4, noise_models.symmetric(4, 0.5)
        given = noise_models.corrupt(labels, model, seed=7)
        self.assertEqual(given.tolist(), [0, 1, 2, 3, 0, 2, 1, 1, 2, 0, 3, 3])
        given = noise_models.corrupt(labels, model, seed=7, draw="coin")
        self.assertEqual(given.tolist(), [1, 2, 2, 3, 2, 1, 1, 1, 2, 1, 3, 3])
        self.assertEqual(given.dtype, np.int32)

    def test_exact_numbers(self):
        # 0.29 * 100 is 28.999999999999996 in floating point.
        labels = np.arange(100) % 3
        for rate, number in ((0.29, 29), (0.299, 29), (1 / 3, 33), (0.0, 0), (0.999, 99)):
            for seed in range(3):
                found = self.changed(noise_models.symmetric(3, rate), seed, labels=labels)
                self.assertLen(found, number)

    def test_classes_with_the_same_rate_are_drawn_together(self):
        labels = np.repeat(np.arange(10), 7)  # 35 examples of the five classes that flip
        model, single = noise_models.asymmetric("cifar10", 0.3), []
        for seed in range(20):
            found = self.changed(model, seed, labels=labels)
            self.assertLen(found, 10)  # and not five times int(2.1)
            single.append(np.bincount(labels[found], minlength=10))
        self.assertEqual(np.any(single, axis=0).nonzero()[0].tolist(), [2, 3, 4, 5, 9])
        self.assertGreater(np.std(single, axis=0)[2], 0)

    def test_rates_equal_up_to_rounding_are_the_same(self):
        rates = np.array([0.3, 0.1 + 0.2, 0.3])
        model = noise_models.NoiseModel(rates, np.roll(np.eye(3), 1, axis=1))
        self.assertLen(np.unique(model.rates), 2)
        self.assertLen(self.changed(model, labels=np.repeat(np.arange(3), 6)), 5)

    def test_each_rate_has_its_exact_number(self):
        matrix = [[0.5, 0.5, 0], [0, 0.8, 0.2], [0, 0, 1]]
        labels = np.repeat(np.arange(3), 10)
        given = noise_models.corrupt(labels, noise_models.from_matrix(matrix), seed=1)
        expected = [[5, 5, 0], [0, 8, 2], [0, 0, 10]]
        self.assertEqual(counts(labels, given, 3).tolist(), expected)

    @parameterized.parameters("exact", "coin")
    def test_draws_follow_the_transition_matrix(self, draw):
        rng = np.random.default_rng(3)
        matrix = rng.dirichlet(np.ones(4), size=4)
        labels = np.repeat(np.arange(4), 20_000)
        model = noise_models.from_matrix(matrix)
        given = noise_models.corrupt(labels, model, seed=5, draw=draw)
        found = counts(labels, given, 4) / 20_000
        # Binomial: a standard deviation of at most 0.0035.
        np.testing.assert_allclose(found, matrix, atol=0.014)
        if draw == "exact":
            np.testing.assert_allclose(np.diag(found), np.diag(matrix), atol=5.1e-5)

    def test_inclusive(self):
        found = self.changed(noise_models.symmetric(10, 0.5, include_true=True))
        # 10,000 are chosen, a tenth of which get their own label: 9,000 with deviation 30.
        self.assertBetween(len(found), 8_860, 9_140)

    def test_coin(self):
        found = [
            len(self.changed(noise_models.pair_flip(10, 0.3), seed, "coin")) for seed in (1, 2)
        ]
        self.assertNotEqual(found[0], found[1])
        for number in found:  # 6,000 with deviation 65
            self.assertBetween(number, 5_700, 6_300)

    @parameterized.parameters("exact", "coin")
    def test_no_double_flips(self, draw):
        """Cat and dog are swapped: a dog that was a cat does not become a cat again."""
        model = noise_models.asymmetric("cifar10", 0.4)
        given = noise_models.corrupt(self.LABELS, model, seed=0, draw=draw)
        found = counts(self.LABELS, given, 10)
        self.assertEqual(np.argwhere(found - np.diag(np.diag(found))).tolist(),
                         [[2, 0], [3, 5], [4, 7], [5, 3], [9, 1]])  # fmt: skip
        for index in (3, 5):
            self.assertBetween(found[index, 8 - index], 700, 900)  # of 2,000

    @parameterized.parameters("exact", "coin")
    def test_seeds_and_purity(self, draw):
        labels, model = self.LABELS.copy(), noise_models.symmetric(10, 0.4)
        first = noise_models.corrupt(labels, model, seed=3, draw=draw)
        np.random.seed(9)
        second = noise_models.corrupt(labels, model, seed=3, draw=draw)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(labels, self.LABELS)
        other = noise_models.corrupt(labels, model, seed=4, draw=draw)
        # Two independent draws agree in 0.6 * 0.6 + 0.4 * 0.4 / 9 of the examples.
        self.assertBetween((first == other).mean(), 0.36, 0.396)

    @parameterized.parameters("exact", "coin")
    def test_a_higher_rate_changes_more(self, draw):
        low, high = (
            noise_models.corrupt(self.LABELS, noise_models.symmetric(10, r), seed=0, draw=draw)
            for r in (0.2, 0.5)
        )
        changed = low != self.LABELS
        np.testing.assert_array_equal(low[changed], high[changed])

    def test_independent_of_the_draw_of_labels(self):
        found = self.changed(noise_models.symmetric(10, 0.5))
        drawn = label_budget.draw(self.LABELS, 10_000, num_classes=10, seed=0, how="uniform")
        # A half of a half, with deviation 50; all or none if the streams were one.
        self.assertBetween(len(np.intersect1d(found, drawn)), 4_800, 5_200)
        shuffled = fixed_shuffle(20_000, 0)[:10_000]
        self.assertBetween(len(np.intersect1d(found, shuffled)), 4_800, 5_200)

    @parameterized.named_parameters(
        ("unlabeled", dict(labels=[0, -1]), ["[0, 4)", "-1 to 0"]),
        ("high", dict(labels=[0, 4]), ["[0, 4)", "0 to 4"]),
        ("float", dict(labels=[0.0]), ["integers", "float64 (1,)"]),
        ("rank", dict(labels=[[0]]), ["(num_labels,)", "(1, 1)"]),
        ("empty", dict(labels=np.zeros(0, int)), ["(0,)"]),
        ("seed", dict(seed=-1), ["seed must be >= 0", "seed -1"]),
        ("draw", dict(draw="dice"), ["exact, coin", "'dice'"]),
    )
    def test_errors(self, settings, parts):
        settings = {"labels": [0, 1], "seed": 0} | settings
        labels, model = np.array(settings.pop("labels")), noise_models.symmetric(4, 0.2)
        self.assert_one_line(parts, noise_models.corrupt, labels, model, **settings)


class InstanceDependentTest(Case):
    def draw(self, rate=0.4, seed=0, images=None, size=3000, **changes):
        data = dataset(size=size, num_classes=5)
        images = data.images if images is None else images
        settings = {"rate": rate, "num_classes": 5, "seed": seed} | changes
        return data.labels, noise_models.instance_dependent(images, data.labels, **settings)

    def test_pinned(self):
        _, given = self.draw(size=12)
        self.assertEqual(given.tolist(), [4, 1, 3, 2, 4, 0, 1, 3, 4, 4, 1, 4])
        self.assertEqual(given.dtype, np.int32)

    def test_rates(self):
        # Of the normal distribution truncated to (0, 1): 0.05 + 0.1 * 0.3521 / 0.6915 = 0.1009,
        # where values below 0 would give 0.0698 if they counted as 0. At 0.95 likewise.
        for rate, expected in ((0.0, 0.0), (0.05, 0.1009), (0.4, 0.4), (0.95, 0.8991)):
            labels, given = self.draw(rate, size=20_000)
            self.assertBetween((given != labels).mean(), expected - 0.011, expected + 0.011)

    def test_depends_on_the_image(self):
        labels, given = self.draw()
        data = dataset(size=3000, num_classes=5)
        images = data.images.copy()
        images[labels == 2] = images[2]
        _, same = self.draw(images=images)
        np.testing.assert_array_equal(same != labels, given != labels)
        np.testing.assert_array_equal(same[labels != 2], given[labels != 2])
        # For each image, one class is far more likely than the others.
        changed = (labels == 2) & (given != labels)
        self.assertGreater(np.bincount(same[changed]).max(), 0.7 * changed.sum())
        self.assertLess(np.bincount(given[changed]).max(), 0.5 * changed.sum())

    def test_projection_of_each_class(self):
        images = np.repeat(dataset().images[:1], 3000, axis=0)
        labels, given = self.draw(images=images)
        found = counts(labels, given, 5)
        np.fill_diagonal(found, 0)
        # With one projection for all classes the favorite would be one class, and the second.
        self.assertGreater(len(set(found.argmax(axis=1).tolist())), 2)

    def test_contrast_and_brightness_have_no_effect(self):
        images = dataset(size=3000, num_classes=5).images // 4
        _, given = self.draw(images=images)
        brightness = np.arange(3000, dtype=np.uint8).reshape(-1, 1, 1, 1) % 60
        _, brighter = self.draw(images=images * 3 + brightness)
        np.testing.assert_array_equal(given, brighter)
        labels, flat = self.draw(images=np.full_like(images, 7))
        self.assertGreater(np.bincount(flat[flat != labels], minlength=5).min(), 150)  # of 1,200

    def test_seeds(self):
        labels, first = self.draw()
        np.testing.assert_array_equal(first, self.draw()[1])
        _, other = self.draw(seed=1)
        self.assertBetween((first == other).mean(), 0.36, 0.48)

    def test_scores(self):
        """Of one pixel and two channels, standardized to +1 and -1: scores by hand."""
        images = np.tile(np.array([9, 3], np.uint8).reshape(1, 1, 1, 2), (4000, 1, 1, 1))
        labels = np.zeros(4000, np.int32)
        rng = mock.Mock()
        rng.random = lambda size: np.random.default_rng(5).random(size)
        table = np.array([[7.0, 1.0, 0.5, 0.2], [0.0, 0.0, 1.0, 0.5]], "f4")
        rng.standard_normal = lambda shape, dtype: table
        settings = {"rate": 0.9, "num_classes": 4, "seed": 0}
        streams = {}

        def random(seed, *stream):
            streams[stream] = np.random.default_rng([seed, *stream])
            return rng if stream[0] == 6 else streams[stream]

        with mock.patch.object(noise_models, "_random", random):
            given = noise_models.instance_dependent(images, labels, **settings)
        found = np.bincount(given[given > 0], minlength=4) / (given > 0).sum()
        # Scores 1, -0.5 and -0.3: exp is 2.718, 0.607 and 0.741 of 4.066.
        np.testing.assert_allclose(found, [0, 0.6686, 0.1492, 0.1822], atol=0.03)

    def test_errors(self):
        self.assert_one_line(["[0, 1)", "1.0"], self.draw, 1.0)
        self.assert_one_line(["seed must be >= 0"], self.draw, seed=-2)
        with self.assertRaisesRegex(DatasetError, "integers of shape"):
            self.draw(images=dataset().images)
        with self.assertRaisesRegex(DatasetError, "uint8"):
            self.draw(images=np.zeros((3000, 2, 2, 3)))
        with self.assertRaisesRegex(DatasetError, r"\[0, 3\)"):
            self.draw(num_classes=3)


class MakeTest(Case):
    POSITIONS = np.arange(1, 400, 2)

    def make(self, definition, name="cards", num_classes=10, **settings):
        self.data = dataset(name, size=400, num_classes=num_classes)
        settings = {"seed": 2} | settings
        return label_noise.make(definition, self.data, self.POSITIONS, **settings)

    @parameterized.parameters(
        ("symmetric:0.4", "cards", lambda: noise_models.symmetric(10, 0.4)),
        ("symmetric_inclusive:.4", "cards", lambda: noise_models.symmetric(10, 0.4, True)),
        ("asymmetric:4e-1", "cifar10", lambda: noise_models.asymmetric("cifar10", 0.4)),
        ("pair:0.45", "cards", lambda: noise_models.pair_flip(10, 0.45)),
    )
    def test_rates(self, definition, name, model):
        for draw in ("exact", "coin"):
            noise = self.make(definition, name, draw=draw)
            labels = self.data.labels[self.POSITIONS]
            expected = noise_models.corrupt(labels, model(), seed=2, draw=draw)
            np.testing.assert_array_equal(noise.given_labels, expected)
            self.assertEqual((noise.definition, noise.seed, noise.draw), (definition, 2, draw))

    @parameterized.parameters(("asymmetric:0.3", False), ("legacy_blocks:0.3", True))
    def test_cifar_100(self, definition, legacy):
        noise = self.make(definition, "cifar100", num_classes=100)
        model = noise_models.asymmetric("cifar100", 0.3, legacy)
        labels = self.data.labels[self.POSITIONS]
        expected = noise_models.corrupt(labels, model, seed=2)
        np.testing.assert_array_equal(noise.given_labels, expected)

    def test_instance(self):
        noise = self.make("instance:0.3")
        images, labels = self.data.images[self.POSITIONS], self.data.labels[self.POSITIONS]
        settings = {"rate": 0.3, "num_classes": 10, "seed": 2}
        expected = noise_models.instance_dependent(images, labels, **settings)
        np.testing.assert_array_equal(noise.given_labels, expected)
        self.assertEqual(noise.draw, "coin")

    def test_matrix(self):
        path = self.folder() / "matrix.npy"
        np.save(path, np.roll(np.eye(10), 3, axis=1))
        noise = self.make(f"matrix:{path}")
        np.testing.assert_array_equal(noise.given_labels, (self.POSITIONS + 3) % 10)
        parts = ["matrix.npy' must be of 4 classes", "(10, 10)"]
        self.assert_one_line(parts, self.make, f"matrix:{path}", num_classes=4)
        for content, part in (
            (np.eye(10) * 2, "sum 2"),
            (np.array([None]), "Object arrays"),
            (np.zeros(3), "(3,)"),
        ):
            np.save(path, content)
            self.assert_one_line(["matrix.npy' cannot", part], self.make, f"matrix:{path}")
        self.assert_one_line(["'x.npy' cannot", "No such file"], self.make, "matrix:x.npy")

    def test_cifarn(self):
        given = np.arange(400, dtype=np.int32) % 7
        with mock.patch.object(cifar_n, "labels", return_value=given) as labels:
            noise = self.make("cifarn:worst", "cifar10", cifarn_file="F.pt", data_dir="/data")
        labels.assert_called_once_with("worst", self.data, file="F.pt", data_dir="/data")
        np.testing.assert_array_equal(noise.given_labels, self.POSITIONS % 7)
        self.assertEqual((noise.definition, noise.draw), ("cifarn:worst", "published"))

    def test_file(self):
        noise = self.make("pair:0.2", seed=5, draw="coin")
        path = self.folder() / "noise.npz"
        noise_file.write(path, self.data, self.POSITIONS, noise)
        again = self.make(f"file:{path}")
        np.testing.assert_array_equal(again.given_labels, noise.given_labels)
        self.assertEqual((again.definition, again.seed, again.draw), ("pair:0.2", 5, "coin"))

    @parameterized.parameters(
        ("symetric:0.4", ["'symetric:0.4'", "Did you mean 'symmetric'?", "symmetric_inclusive"]),
        ("0.4", ["Unknown label noise '0.4'. Available: symmetric, ", "cifarn, file."]),
        ("", ["Unknown label noise ''"]),
        ("symmetric", ["'symmetric' must have a rate in [0, 1). Received: ''"]),
        ("pair:half", ["'pair:half' must", "'half'"]),
        ("pair:1", ["[0, 1)", "'1'"]),
        ("pair:nan", ["[0, 1)", "'nan'"]),
        ("instance:-0.1", ["[0, 1)", "'-0.1'"]),
        ("matrix", ["'matrix' must be matrix:FILE.npy"]),
        ("matrix:/dev/zero", ["not a regular file"]),
        ("file:/dev/zero", ["not a regular file"]),
        ("asymmetric:0.4", ["cifar10 and cifar100", "'cards'"]),
        ("legacy_blocks:0.4", ["cifar100", "'cards'"]),
        ("file:absent.npz", ["'absent.npz' cannot be used", "No such file"]),
    )
    def test_errors(self, definition, parts):
        self.assert_one_line(parts, self.make, definition)

    def test_definitions(self):
        known = "symmetric symmetric_inclusive asymmetric legacy_blocks pair instance matrix"
        self.assertEqual(tuple(label_noise.KINDS), (*known.split(), "cifarn", "file"))


class FileTest(Case):
    def setUp(self):
        super().setUp()
        self.path = self.folder() / "noise" / "noise.npz"
        self.positions = np.arange(3, 40, 2)
        self.noise = label_noise.make("symmetric:0.5", dataset(), self.positions, seed=3)
        noise_file.write(self.path, dataset(), self.positions, self.noise)

    def read(self, positions=None, data=None):
        positions = self.positions if positions is None else positions
        return noise_file.read(self.path, data or dataset(), positions)

    def assert_refused(self, parts, **kwargs):
        self.assert_one_line(["noise.npz'", *parts], self.read, **kwargs)

    def content(self):
        with np.load(self.path, allow_pickle=False) as file:
            return dict(file)

    def rewrite(self, checksum=True, **changes):
        content = self.content() | changes
        if checksum:
            content.pop("sha256")
            content["sha256"] = noise_file._checksum(content)
        np.savez(self.path, **content)

    def test_round_trip(self):
        again = self.read()
        np.testing.assert_array_equal(again.given_labels, self.noise.given_labels)
        self.assertEqual(again.given_labels.dtype, np.int32)
        self.assertEqual((again.definition, again.seed, again.draw), ("symmetric:0.5", 3, "exact"))
        self.assertEqual(os.listdir(self.path.parent), ["noise.npz"])

    def test_content(self):
        content = self.content()
        self.assertEqual(content["ids"].tolist(), list(range(109, 220, 6)))
        self.assertEqual((content["dataset"].item(), content["version"].item()), ("cards", "1.0.0"))
        true_labels = dataset().labels[self.positions]
        expected = counts(true_labels, self.noise.given_labels, 4)
        np.testing.assert_array_equal(content["transition_counts"], expected)
        digest = label_budget.digest(dataset(), self.positions)
        self.assertEqual(content["examples_sha256"].item(), digest)
        rest = {"given_labels", "definition", "seed", "draw", "image_hashes", "sha256"}
        rest |= {"ids", "dataset", "version", "transition_counts", "examples_sha256"}
        self.assertEqual(set(content), rest)  # and no true labels

    def test_subset_in_a_smaller_split(self):
        whole = dataset()
        keep = np.arange(0, 40, 3)
        part = dataset(images=whole.images[keep], labels=whole.labels[keep], ids=whole.ids[keep])
        again = self.read(np.array([1, 5, 9]), part)  # positions 3, 15 and 27 of the whole
        expected = self.noise.given_labels[[0, 6, 12]]
        np.testing.assert_array_equal(again.given_labels, expected)

    def test_missing_examples(self):
        parts = ["all 3 labeled examples", "Missing: 2, such as id 100"]
        self.assert_refused(parts, positions=np.array([0, 2, 3]))

    def test_other_data(self):
        whole = dataset()
        images, labels = whole.images.copy(), whole.labels.copy()
        images[5, 0, 0, 0] ^= 1
        labels[5] = 0
        parts = ["other data than 'cards'", "1 of 19 images differ"]
        self.assert_refused(parts, data=dataset(images=images))
        self.assert_refused(["1 of 2 images"], data=dataset(images=images), positions=[3, 5])
        self.read([3, 7], dataset(images=images))
        parts = ["0 of 19 images, but true labels, differ"]
        self.assert_refused(parts, data=dataset(labels=labels))
        self.read(data=dataset("cards_moved", images=whole.images, version="2.0.0"))

    @parameterized.parameters("ids", "given_labels", "definition", "seed", "transition_counts")
    def test_edited(self, name):
        value = self.content()[name]
        edited = np.roll(value, 1) if value.ndim else np.array(f"{value.item()}1")
        self.rewrite(checksum=False, **{name: edited})
        self.assert_refused(["checksum mismatch"])

    @parameterized.named_parameters(
        ("short", {"given_labels": np.zeros(5, int)}, ["(19,) ids and (5,) labels"]),
        ("hashes", {"image_hashes": np.zeros(5, int)}, ["cannot be used"]),
        ("float", {"given_labels": np.zeros(19)}, ["no integers"]),
        ("high", {"given_labels": np.full(19, 4)}, ["[0, 4)", "4 to 4"]),
        ("negative", {"given_labels": np.full(19, -1)}, ["[0, 4)", "-1 to -1"]),
        ("order", {"ids": np.arange(219, 108, -6)}, ["must increase"]),
        ("scalar", {"ids": np.array(3)}, ["cannot be used"]),
        ("empty", {n: np.zeros(0, int) for n in ("ids", "given_labels", "image_hashes")}, ["zero"]),
        ("digest", {"examples_sha256": np.zeros(2)}, ["cannot be used"]),
        ("large_ids", {"ids": np.arange(219, 108, -6).astype(np.uint64)}, ["must increase"]),
        ("definition", {"definition": np.array(5)}, ["cannot be [5, "]),
        ("seed", {"seed": np.array(-1)}, ["definition, seed and draw cannot be", "-1"]),
    )
    def test_bad_content(self, changes, parts):
        self.rewrite(**changes)
        self.assert_refused([*parts, "Regenerate the file"])

    def test_any_flipped_byte_is_found_or_harmless(self):
        good, found = self.path.read_bytes(), 0
        for at in np.linspace(0, len(good) - 1, 100).astype(int):
            self.path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
            try:
                again = self.read()
            except noise_models.NoiseError:
                found += 1
            else:
                np.testing.assert_array_equal(again.given_labels, self.noise.given_labels)
        self.assertGreater(found, 60)

    def test_malformed(self):
        for raw in (b"", b"hello", b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\x00"):
            self.path.write_bytes(raw)
            self.assert_refused(["cannot be used"])
        np.savez(self.path, ids=np.arange(3))
        self.assert_refused(["sha256"])
        np.savez(self.path, **{"sha256": np.array([None]), "ids": np.array([{}])})
        self.assert_refused(["Object arrays"])
        np.save(self.path.with_suffix(".npy"), np.arange(3))
        self.path.with_suffix(".npy").rename(self.path)
        self.assert_refused(["cannot be used"])
        self.path.unlink()
        self.assert_refused(["No such file"])


class SummaryTest(Case):
    def summary(self, num_classes=3):
        given = np.array([0, 0, 1, 2, 0, 0, 0, 2], np.int32)
        noise = noise_models.Noise(given, "pair:0.4", 6, "coin")
        true_labels = np.array([0, 0, 0, 0, 0, 0, 0, 1])
        return label_noise.summary(noise, true_labels, num_classes)

    def test_summary(self):
        made = self.summary()
        self.assertEqual(
            json.loads(json.dumps(made)),
            {
                "definition": "pair:0.4",
                "seed": 6,
                "draw": "coin",
                "noise_rate": 0.375,
                "noise_rate_by_class": [2 / 7, 1.0, None],
                "transition_counts": [[5, 1, 1], [0, 0, 1], [0, 0, 0]],
            },
        )

    def test_table(self):
        text = label_noise.describe(self.summary(), ["cat", "automobile", "x"])
        self.assertEqual(
            text.splitlines(),
            [
                "label noise pair:0.4 (seed 6, coin): 37.50 % of 8 labels are wrong",
                "true \\ given    cat automo      x",
                "cat            71.4   14.3   14.3",
                "automobile      0.0    0.0  100.0",
                "x                 -      -      -",
            ],
        )

    def test_many_classes(self):
        true_labels = np.repeat(np.arange(12), 4)
        given = true_labels.copy()
        given[::4] = 0  # of every class one in four, but of class 0 none
        given[8:12] = 5
        noise = noise_models.Noise(given, "file", 0, "exact")
        made = label_noise.summary(noise, true_labels, 13)
        text = label_noise.describe(made, [f"class {index}" for index in range(13)])
        self.assertEqual(
            text.splitlines(),
            [
                "label noise file (seed 0, exact): 29.17 % of 48 labels are wrong",
                "by true class: min 0.0 % (class 0), median 25.0 % (class 7), "
                "max 100.0 % (class 2)",
            ],
        )


if __name__ == "__main__":
    absltest.main()
