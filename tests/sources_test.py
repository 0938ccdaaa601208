# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from absl.testing import absltest, parameterized

import ssl_noisy
from ssl_noisy import files
from ssl_noisy.data import sources, tfds_source
from ssl_noisy.data.dataset import DatasetError

COLORS = tfds.features.ClassLabel(names=["red", "green", "blue"])
TILE = tfds.features.Image(shape=(4, 5, 3))
REAL = os.environ.get("TFDS_DATA_DIR", "")


class Tiles(tfds.core.GeneratorBasedBuilder):
    """The pixel value, the id and three times the class of an example are one number."""

    VERSION = tfds.core.Version("1.10.0")
    SPLITS = {"train": 30, "test": 6}
    FEATURES = {"id": tfds.features.Text(), "image": TILE, "label": COLORS}

    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for index in range(self.SPLITS[split]):
            image = np.full((4, 5, 3), index, np.uint8)
            example = {"id": f"{split}_{index:05d}", "image": image, "label": index // 3 % 3}
            yield index, {key: example[key] for key in self.FEATURES}


class NamelessTiles(Tiles):
    SPLITS = {"train": 30, "validation": 6}
    FEATURES = {"image": TILE, "label": COLORS}


class RaggedTiles(Tiles):
    FEATURES = {"image": tfds.features.Image(shape=(None, None, 3)), "label": COLORS}


class UnlabeledTiles(Tiles):
    FEATURES = {"id": tfds.features.Text(), "image": TILE}


class HandmadeTiles(Tiles):
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Draw them."


class RemoteTiles(Tiles):
    url_infos = {"http://localhost:1/tiles.zip": None}  # nothing listens on this port


def arrays(**changes):
    """Returns the content of a good npz file, changed."""
    good = {
        "images_train": np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2),
        "labels_train": np.array([0, 1, 2, 0, 1, 2]),
        "images_test": np.zeros((2, 2, 2), np.uint8),
        "labels_test": np.array([0, 2]),
    }
    return {key: value for key, value in (good | changes).items() if value is not None}


class Case(parameterized.TestCase):
    def folder(self):
        return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def assert_one_line(self, parts, function, *args, **kwargs):
        with self.assertRaises(DatasetError) as raised:
            function(*args, **kwargs)
        for part in parts:
            self.assertIn(part, str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))


class DigitsTest(Case):
    def test_content(self):
        data = sources.load()
        self.assertEqual((data.name, data.num_classes, data.flip), ("digits", 10, False))
        self.assertEqual(data.images.shape, (1297, 8, 8, 1))
        self.assertEqual((data.images.min(), data.images.max()), (0, 255))
        self.assertEqual(np.bincount(data.test_labels).tolist(), [50] * 10)
        self.assertIsNone(data.validation_images)
        # Pinned: the split must never change, because label files and results depend on it.
        self.assertEqual(data.ids[:8].tolist(), [0, 4, 5, 6, 7, 8, 9, 10])

    def test_slices_are_disjoint_and_mixed(self):
        data = sources.load(train_split="train[:90%]", validation_split="train[90%:]")
        self.assertLen(data.labels, 1167)
        self.assertLen(data.validation_labels, 130)
        self.assertLen(np.unique(data.validation_labels), 10)
        rest = sources.load(train_split="train[90%:]")
        np.testing.assert_array_equal(rest.images, data.validation_images)
        self.assertEmpty(np.intersect1d(rest.ids, data.ids))
        self.assertLen(sources.load(train_split="train[-100:]").ids, 100)

    @parameterized.named_parameters(
        ("unknown", {"train_split": "extra"}, ["Unknown split 'extra'", "train, test", "slices"]),
        ("syntax", {"train_split": "train[:5"}, ["Unknown split 'train[:5'"]),
        ("empty", {"train_split": "train[5:5]"}, ["not empty", "(0, 8, 8, 1)"]),
        ("leak", {"validation_split": "train[:7]"}, ["must be disjoint", "7 shared examples"]),
        ("leak_test", {"test_split": "train"}, ["test and training splits", "1297 shared"]),
    )
    def test_bad_splits(self, splits, parts):
        self.assert_one_line(parts, sources.load, "digits", **splits)


class NpzTest(Case):
    def load(self, content):
        path = self.folder() / "data.npz"
        np.savez(path, **content)
        return sources.load(f"npz:{path}")

    def test_content(self):
        data = self.load(arrays(ids_train=np.array([9, 8, 7, 30, 2, 1])))
        self.assertEqual(data.images.shape, (6, 2, 2, 1))
        self.assertEqual(data.ids.tolist(), [1, 2, 7, 8, 9, 30])
        self.assertEqual(data.labels.tolist(), [2, 1, 2, 1, 0, 0])
        self.assertEqual(data.images[:, 0, 0, 0].tolist(), [20, 16, 8, 4, 0, 12])
        self.assertEqual(data.class_names, ("0", "1", "2"))
        self.assertEqual((data.labels.dtype, data.ids.dtype), (np.int32, np.int64))
        self.assertTrue(data.flip)

    def test_names_and_flip(self):
        names = np.array(["a", "b", "c", "d"])  # no example is of the last class
        data = self.load(arrays(class_names=names, flip=np.array(False)))
        self.assertEqual(data.class_names, ("a", "b", "c", "d"))
        self.assertFalse(data.flip)

    def test_no_test_split(self):
        path = self.folder() / "data.npz"
        np.savez(path, **arrays())
        data = sources.load(f"npz:{path}", test_split="none")
        self.assertIsNone(data.test_images)
        self.assertIsNone(data.test_labels)
        np.savez(path, **arrays(images_test=None, labels_test=None))
        data = sources.load(f"npz:{path}", test_split="none")  # nothing is held out
        self.assertLen(data.images, 6)

    def test_the_version_depends_on_the_content(self):
        first, same = self.load(arrays()), self.load(arrays())
        other = self.load(arrays(labels_test=np.array([0, 1])))
        self.assertEqual(first.version, same.version)
        self.assertNotEqual(first.version, other.version)

    @parameterized.named_parameters(
        ("missing", {"labels_train": None, "images_test": None}, ["images_test, labels_train"]),
        ("names", {"class_names": np.array([1, 2, 3])}, ["class_names", "strings", "int64 (3,)"]),
        ("few_names", {"class_names": np.array(["a", "b"])}, ["must be in [-1, 2)", "0 to 2"]),
        ("flip", {"flip": np.array([1, 0])}, ["flip", "one bool", "int64 (2,)"]),
        ("float", {"images_train": np.zeros((6, 2, 2))}, ["uint8", "float64", "0..255"]),
        ("rank", {"images_train": np.zeros((6, 4), np.uint8)}, ["(N, H, W, C)", "(6, 4)"]),
        ("count", {"labels_train": np.zeros(5, int)}, ["shape (6,)", "(5,)"]),
        ("one_hot", {"labels_train": np.eye(6, dtype=int)}, ["(6, 6)", "argmax"]),
        ("float_labels", {"labels_train": np.zeros(6)}, ["integers", "float64"]),
        ("negative", {"labels_train": np.array([0, 1, -2, 0, 0, 0])}, ["[-1, ", "-2 to 1"]),
        ("huge", {"labels_train": np.full(6, 2**31 - 1)}, ["in [-1, 100000)", "2147483647"]),
        ("test_class", {"labels_test": np.array([0, 3])}, ["test set", "[0, 3)", "0 to 3"]),
        ("test_size", {"images_test": np.zeros((2, 3, 2), np.uint8)}, ["(2, 2, 1)", "(3, 2, 1)"]),
        ("ids", {"ids_train": np.zeros(6, int)}, ["ids", "1 distinct"]),
        ("ids_shape", {"ids_train": np.arange(5)}, ["ids_train", "shape (6,)", "(5,)"]),
        ("object", {"labels_train": np.array([0] * 5 + [None])}, ["Object arrays", "np.savez"]),
        ("empty", {"images_train": np.zeros((0, 2, 2), np.uint8)}, ["not empty", "(0, 2, 2, 1)"]),
        ("large_ids", {"ids_train": np.arange(6, dtype=np.uint64) + 2**63}, ["below 2**63"]),
        ("no_classes", {"labels_train": np.full(6, -1)}, ["name its classes", "Add class_names"]),
        ("gap", {"labels_train": np.array([0, 1, 3, 0, 1, 3])}, ["none of 1 class", "such as 2"]),
        ("large_gap", {"labels_train": np.array([0, 1, 2, 0, 1, 99999])}, ["of 99996 classes"]),
        ("one_class", {"labels_train": np.zeros(6, int), "labels_test": np.zeros(2, int)},
         ["at least 2 classes", "Received: 1 and 6"]),
    )  # fmt: skip
    def test_bad_content(self, changes, parts):
        self.assert_one_line(parts, self.load, arrays(**changes))

    @parameterized.named_parameters(
        ("absent", None), ("text", b"hello"), ("empty", b""), ("zip", b"PK\x03\x04" + bytes(40))
    )
    def test_bad_file(self, content):
        path = self.folder() / "data.npz"
        if content is not None:
            path.write_bytes(content)
        self.assert_one_line(["Cannot read", "data.npz"], sources.load, f"npz:{path}")

    def test_one_image(self):
        path = self.folder() / "data.npz"
        np.savez(path, **arrays())
        parts = ["2 training images", "Received: 3 and 1"]
        self.assert_one_line(parts, sources.load, f"npz:{path}", train_split="train[:1]")

    def test_only_regular_files_are_read(self):
        pipe = self.folder() / "pipe.npz"
        os.mkfifo(pipe)  # nobody writes to it, so opening it would block
        for path in (pipe, self.folder(), "/dev/zero"):
            self.assert_one_line([str(path), "not a regular"], sources.load, f"npz:{path}")

    def test_single_array(self):
        path = self.folder() / "data.npy"
        np.save(path, np.zeros(3))
        self.assert_one_line(["Cannot read", "np.savez"], sources.load, f"npz:{path}")


class TfdsTest(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data_dir = cls.enterClassContext(tempfile.TemporaryDirectory())

    def setUp(self):
        super().setUp()
        self.cache_dir = self.folder()
        self.enterContext(mock.patch.object(urllib.request, "getproxies", dict))

    def load(self, name="tiles", **kwargs):
        return sources.load(
            name, **{"data_dir": self.data_dir, "cache_dir": self.cache_dir} | kwargs
        )

    def no_decoding(self):
        return mock.patch.object(tfds_source, "_decode", side_effect=AssertionError("decoded"))

    def assert_tiles(self, data, ids):
        self.assertEqual(data.ids.tolist(), list(ids))
        np.testing.assert_array_equal(data.images[:, 3, 4, 2], data.ids)
        np.testing.assert_array_equal(data.labels, data.ids // 3 % 3)

    def test_first_and_cached(self):
        first = self.load()
        self.assert_tiles(first, range(30))
        with self.no_decoding():
            second = self.load()
        for data in (first, second):
            self.assertEqual((data.name, data.version, data.flip), ("tiles", "1.10.0", True))
            self.assertEqual(data.class_names, ("red", "green", "blue"))
            self.assertEqual(data.test_images.shape, (6, 4, 5, 3))
            self.assertTrue(data.images.flags.c_contiguous)
            self.assertIsNone(data.validation_images)
            self.assertEqual((data.images.dtype, data.labels.dtype), (np.uint8, np.int32))
        np.testing.assert_array_equal(first.images, second.images)
        self.assertLen(list(self.cache_dir.iterdir()), 1)

    def test_splits_have_their_own_caches_and_published_ids(self):
        self.load()
        data = self.load(train_split="train[:20]", validation_split="train[20:]")
        self.assertLen(data.ids, 20)
        together = np.concatenate([data.ids, data.validation_images[:, 0, 0, 0]])
        self.assertEqual(np.sort(together).tolist(), list(range(30)))
        self.assert_tiles(data, np.sort(data.ids))
        self.assertNotEqual(data.ids.tolist(), list(range(20)))  # TFDS shuffles its files
        self.assertEqual(data.validation_ids.tolist(), data.validation_images[:, 0, 0, 0].tolist())
        self.assertLen(list(self.cache_dir.iterdir()), 2)

    def test_no_test_split(self):
        read = []
        original = tfds_source._read_split

        def reading(tfds, builder, spec, *more):
            read.append(spec)
            return original(tfds, builder, spec, *more)

        with mock.patch.object(tfds_source, "_read_split", reading):
            self.assertIsNone(self.load(test_split="none").test_images)
        self.assertEqual(read, ["train"])
        with self.no_decoding():
            self.assertIsNone(self.load(test_split="none").test_labels)

    def test_cache_of_an_earlier_version_gets_validation_ids(self):
        splits = {"train_split": "train[:20]", "validation_split": "train[20:]"}
        ids = self.load(**splits).validation_ids
        (path,) = self.cache_dir.iterdir()
        arrays = dict(files.read_npz(path))
        del arrays["validation_ids"]
        np.savez(path, **arrays)
        with mock.patch.object(logging, "warning"):
            np.testing.assert_array_equal(self.load(**splits).validation_ids, ids)
        with self.no_decoding():
            np.testing.assert_array_equal(self.load(**splits).validation_ids, ids)

    def test_other_data_dir_does_not_use_the_cache(self):
        self.load()
        with self.no_decoding(), self.assertRaisesRegex(AssertionError, "decoded"):
            self.load(data_dir=self.folder())
        with self.no_decoding(), mock.patch.dict(os.environ, TFDS_DATA_DIR=self.data_dir):
            self.load(data_dir=None)

    def test_newest_cached_version(self):
        with mock.patch.object(Tiles, "VERSION", tfds.core.Version("1.9.0")):
            self.load()
        self.assertEqual(self.load().version, "1.9.0")  # the only one cached
        self.load("tiles:1.10.0")
        with self.no_decoding():
            self.assertEqual(self.load().version, "1.10.0")
            self.assertEqual(self.load("tiles:1.9.0").version, "1.9.0")
            self.assertEqual(self.load("tiles:1.9.*").version, "1.9.0")

    def test_without_ids_positions_in_the_files(self):
        data = self.load("nameless_tiles")
        self.assertEqual(data.ids.tolist(), list(range(30)))
        self.assertLen(data.test_labels, 6)  # the validation split, because there is no test split
        part = self.load("nameless_tiles", train_split="train[10:]")
        self.assertEqual(part.ids.tolist(), list(range(10, 30)))
        np.testing.assert_array_equal(part.images, data.images[10:])
        both = self.load("nameless_tiles", train_split="train[20:]+validation[:2]",
                         test_split="validation[2:]")  # fmt: skip
        self.assertEqual(both.ids.tolist(), list(range(20, 32)))

    @parameterized.named_parameters(
        ("middle", lambda raw: raw[:900] + bytes([raw[900] ^ 1]) + raw[901:]),
        ("truncated", lambda raw: raw[: len(raw) // 2]),
        ("short", lambda raw: raw[:10]),
        ("empty", lambda raw: b""),
        ("text", lambda raw: b"hello"),
    )
    def test_damaged_cache_is_rebuilt_with_one_warning(self, damage):
        self.load()
        (path,) = self.cache_dir.iterdir()
        good = path.read_bytes()
        path.write_bytes(damage(good))
        with mock.patch.object(logging, "warning") as warning:
            self.assert_tiles(self.load(), range(30))
        warning.assert_called_once()
        self.assertIn("Decoding again", warning.call_args[0][0])
        with self.no_decoding():
            self.assert_tiles(self.load(), range(30))

    def test_any_flipped_byte_is_found_or_harmless(self):
        self.load()
        (path,) = self.cache_dir.iterdir()
        good = path.read_bytes()
        rebuilt = 0
        for at in np.linspace(0, len(good) - 1, 150).astype(int):
            path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
            with mock.patch.object(tfds_source, "_decode", side_effect=RecursionError):
                try:
                    self.assert_tiles(self.load(), range(30))
                except RecursionError:
                    rebuilt += 1
        self.assertGreater(rebuilt, 100)

    def test_leftovers_of_a_killed_process_are_ignored(self):
        self.load()
        (path,) = self.cache_dir.iterdir()
        path.with_name(f"{path.name}.0123.tmp").write_bytes(path.read_bytes()[:50])
        with self.no_decoding():
            self.assert_tiles(self.load(), range(30))

    def test_unwritable_cache_warns_once(self):
        file = self.cache_dir / "file"
        file.write_bytes(b"")
        with mock.patch.object(logging, "warning") as warning:
            self.assert_tiles(self.load(cache_dir=file / "below"), range(30))
        warning.assert_called_once()
        self.assertIn("Cannot write the cache", warning.call_args[0][0])

    def test_without_a_home_directory(self):
        with (
            mock.patch.dict(os.environ, SSL_NOISY_CACHE=""),
            mock.patch.object(os.path, "expanduser", lambda path: path),
            mock.patch.object(tempfile, "gettempdir", lambda: str(self.cache_dir)),
        ):
            self.load(cache_dir=None)
        self.assertLen(list(self.cache_dir.glob(".cache/ssl_noisy/*.npz")), 1)

    @parameterized.named_parameters(
        ("unknown", "cifar-10", {}, ["Unknown data set 'cifar-10'", "cifar10", "folder:PATH"]),
        ("nothing_near", "???", {}, ["Unknown data set '???'", "digits"]),
        ("empty", "", {}, ["Unknown data set ''"]),
        ("traversal", "../tiles", {}, ["Unknown data set"]),
        ("version", "tiles:7.0.0", {}, ["no such version or config"]),
        ("config", "tiles/large", {}, ["no such version or config"]),
        ("ragged", "ragged_tiles", {}, ["images of varying size", "folder:PATH"]),
        ("label", "unlabeled_tiles", {}, ["'label' of type ClassLabel", "Received: id, image"]),
        ("remote", "remote_tiles", {}, ["not prepared", "localhost", "tfds.load", "npz:FILE"]),
        ("split", "tiles", {"train_split": "extra"}, ["'extra'", "train", "test"]),
        ("syntax", "tiles", {"train_split": "train[:"}, ["Cannot read the split 'train[:'"]),
        ("empty_split", "tiles", {"train_split": "train[3:3]"}, ["train[3:3]"]),
        ("leak", "tiles", {"validation_split": "train[:7]"}, ["disjoint", "7 shared"]),
    )
    def test_bad_requests(self, name, splits, parts):
        self.assert_one_line(parts, self.load, name, **splits)
        self.assertEmpty(list(self.cache_dir.iterdir()))

    @parameterized.parameters(
        ("*.tfrecord*", "Cannot read the split 'train'"),
        ("dataset_info.json", "is damaged"),
    )
    def test_damaged_files(self, pattern, part):
        folder = self.folder()
        Tiles(data_dir=folder).download_and_prepare()
        paths = list(folder.rglob(pattern))
        self.assertNotEmpty(paths)
        for path in paths:
            path.write_bytes(path.read_bytes()[:-9])
        self.assert_one_line([part], self.load, "tiles", data_dir=folder)

    @parameterized.parameters("as_dataset", "is_prepared")
    def test_a_bug_keeps_its_traceback(self, method):
        for error in (TypeError("bug"), AttributeError("bug"), RuntimeError("bug")):
            with mock.patch.object(Tiles, method, side_effect=error):
                with self.assertRaises(type(error)) as caught:
                    self.load("tiles")
            self.assertIs(caught.exception, error)

    @parameterized.parameters("tiles", "nameless_tiles")
    def test_feature(self, name):
        with mock.patch.object(tfds.features.Image, "decode_example", side_effect=MemoryError):
            ids, values = tfds_source.load_feature(name, "label", data_dir=self.data_dir)
            part, _ = tfds_source.load_feature(
                name, "label", data_dir=self.data_dir, split="train[5:9]"
            )
        data = self.load(name)
        np.testing.assert_array_equal(ids, data.ids)
        np.testing.assert_array_equal(values, data.labels)
        self.assertEqual((ids.dtype, values.dtype), (np.int64, np.int64))
        np.testing.assert_array_equal(part, self.load(name, train_split="train[5:9]").ids)

    @parameterized.named_parameters(
        ("absent", "tiles", "lable", "train", ["no integer feature 'lable'", "Available: label."]),
        ("image", "tiles", "image", "train", ["no integer feature 'image'"]),
        ("text", "tiles", "id", "train", ["no integer feature 'id'"]),
        ("unknown", "tilse", "label", "train", ["Unknown data set 'tilse'", "tiles"]),
        ("remote", "remote_tiles", "label", "train", ["not prepared", "localhost"]),
        ("by_hand", "handmade_tiles", "label", "train", ["not prepared", "downloads/manual'"]),
        ("split", "tiles", "label", "extra", ["Cannot read the split 'extra'"]),
    )
    def test_bad_features(self, name, feature, split, parts):
        self.assert_one_line(
            parts, tfds_source.load_feature, name, feature, data_dir=self.data_dir, split=split
        )

    def test_files_that_the_user_provides(self):
        folder = self.folder()
        (folder / "downloads" / "manual").mkdir(parents=True)
        self.assert_tiles(self.load("handmade_tiles", data_dir=folder), range(30))

    def test_cached_arrays_need_no_tensorflow(self):
        self.load()
        program = (
            "import gc, sys\n"
            "class Blocker:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.split('.')[0] in ('tensorflow', 'tensorflow_datasets'):\n"
            "            raise ImportError(f'{name} is blocked')\n"
            "sys.meta_path.insert(0, Blocker())\n"
            "from ssl_noisy.data import dataset, sources\n"
            "where = dict(data_dir=sys.argv[1], cache_dir=sys.argv[2])\n"
            "print(sources.load('tiles', **where).ids.tolist())\n"
            "print('tensorflow' in sys.modules)\n"
            "print(gc.isenabled(), gc.get_freeze_count())\n"
            "try:\n"
            "    sources.load('cifar10', **where)\n"
            "except dataset.DatasetError as error:\n"
            "    print(error)\n"
        )
        root = os.path.dirname(os.path.dirname(ssl_noisy.__file__))
        output = subprocess.run(
            [sys.executable, "-c", program, self.data_dir, str(self.cache_dir)],
            env=os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": root},
            capture_output=True,
            text=True,
        )
        self.assertEqual(output.returncode, 0, output.stderr)
        ids, loaded, collector, error = output.stdout.splitlines()
        self.assertEqual((ids, loaded), (str(list(range(30))), "False"))
        self.assertEqual(collector, "True 0")  # only a command changes it
        self.assertIn("'cifar10' is not cached, so TensorFlow", error)

    if os.path.isdir(os.path.join(REAL, "cifar10")):

        def test_real_cifar10(self):
            data = self.load("cifar10", data_dir=REAL)
            self.assertEqual(data.images.shape, (50000, 32, 32, 3))
            self.assertEqual(data.test_images.shape, (10000, 32, 32, 3))
            self.assertEqual(data.ids.tolist(), list(range(50000)))
            self.assertEqual(np.bincount(data.labels).tolist(), [5000] * 10)
            # The first of data_batch_1: a frog, two trucks, a deer, a car.
            names = [data.class_names[label] for label in data.labels[:5]]
            self.assertEqual(names, ["frog", "truck", "truck", "deer", "automobile"])


if __name__ == "__main__":
    absltest.main()
