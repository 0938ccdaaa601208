# SPDX-License-Identifier: Apache-2.0
"""One entry of a table makes a kind of noise or a data source known to flags, help and runs."""

import os
from unittest import mock

import numpy as np
from absl import flags
from absl.testing import absltest

from ssl_noisy import command, run_flags
from ssl_noisy.data import label_noise, noise_models, sources
from ssl_noisy.data.dataset import Contents, Split
from ssl_noisy.runs import labeling


def parse(*arguments):
    values = flags.FlagValues()
    run_flags.define_flags(values)
    return command.parse_settings(["program", *arguments], values), values


class NoiseKindTest(absltest.TestCase):
    def add(self, **kinds):
        self.enterContext(mock.patch.dict(label_noise.KINDS, kinds))

    def labels(self, *arguments):
        made, _ = parse("--dataset=digits", *arguments)
        dataset = labeling.load_dataset(made)
        return dataset.labels, labeling.choose(made, dataset).noise

    def test_a_kind_with_a_rate_takes_seed_and_draw(self):
        def opposite(rate, request):
            classes = request.dataset.num_classes
            return noise_models.NoiseModel(np.full(classes, rate), np.eye(classes)[::-1])

        self.add(opposite=label_noise.Kind(opposite, "class 9 - k"))
        true_labels, noise = self.labels("--noise=opposite:0.5", "--noise_seed=3")
        wrong = noise.given_labels != true_labels
        self.assertEqual(wrong.sum(), len(true_labels) // 2)
        np.testing.assert_array_equal(noise.given_labels[wrong], 9 - true_labels[wrong])
        self.assertEqual((noise.definition, noise.seed, noise.draw), ("opposite:0.5", 3, "exact"))
        with self.assertRaisesRegex(ValueError, "must have a rate"):
            parse("--noise=opposite:1.5")
        self.assertIn("opposite:RATE (class 9 - k)", label_noise.usage())

    def test_a_kind_with_a_file_and_no_seed(self):
        def shifted(path, request):
            step = np.loadtxt(path, dtype=int)
            given_labels = (request.true_labels + step) % request.dataset.num_classes
            return noise_models.Noise(given_labels, request.definition, 0, "published")

        self.add(
            shifted=label_noise.Kind(
                shifted, "by a number in a file", value="FILE.txt", is_path=True, flags=()
            )
        )
        path = self.create_tempfile(content="3").full_path
        true_labels, noise = self.labels(f"--noise=shifted:{os.path.relpath(path)}")
        np.testing.assert_array_equal(noise.given_labels, (true_labels + 3) % 10)
        self.assertEqual(noise.definition, f"shifted:{path}")
        with self.assertRaisesRegex(ValueError, "--noise_seed has no effect with --noise=shifted"):
            parse("--noise=shifted:a.txt", "--noise_seed=1")
        with self.assertRaisesRegex(ValueError, "'shifted' must be shifted:FILE.txt"):
            parse("--noise=shifted")

    def test_the_help_names_every_kind(self):
        help = parse()[1]["noise"].help
        for name, kind in label_noise.KINDS.items():
            self.assertIn(f"{name}:{kind.value} ({kind.help})", help)


class SourceTest(absltest.TestCase):
    def add(self, **entries):
        self.enterContext(mock.patch.dict(sources.SOURCES, entries))

    @staticmethod
    def split(count):
        images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), "u1")
        labels = np.arange(count, dtype=np.int32) % 3
        return Split(images, labels, np.arange(count))

    def test_a_source_without_a_value(self):
        splits = {"train": self.split(30), "test": self.split(6)}
        self.add(
            shades=sources.Source(lambda _: Contents("abc", splits, "1.0"), "shades", flip=False)
        )
        made, _ = parse("--dataset=shades", "--train_split=train[:20]")
        data = labeling.load_dataset(made)
        self.assertEqual((data.name, data.version, data.flip), ("shades", "1.0", False))
        self.assertEqual((len(data.labels), len(data.test_labels)), (20, 6))
        self.assertEqual(data.class_names, ("a", "b", "c"))
        self.assertStartsWith(sources.usage().rpartition("shades")[2], "), or a TFDS name")

    def test_a_source_with_a_file(self):
        def read(path):
            count = int(np.loadtxt(path))
            return Contents("abc", {"train": self.split(count), "test": self.split(6)})

        self.add(counted=sources.Source(read, "a count", "FILE.txt", is_path=True))
        path = self.create_tempfile(content="12").full_path
        made, _ = parse(f"--dataset=counted:{os.path.relpath(path)}")
        self.assertEqual(made.dataset, f"counted:{path}")
        data = labeling.load_dataset(made)
        self.assertEqual((len(data.labels), data.flip), (12, True))
        with self.assertRaisesRegex(ValueError, "must be counted:FILE.txt. Received: 'counted'"):
            labeling.load_dataset(parse("--dataset=counted")[0])

    def test_the_help_names_every_source(self):
        help = parse()[1]["dataset"].help
        for name, source in sources.SOURCES.items():
            text = f"{name}:{source.value}" if source.value else name
            self.assertIn(f"{text} ({source.help})", help)


if __name__ == "__main__":
    absltest.main()
