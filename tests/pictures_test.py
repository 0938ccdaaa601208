# SPDX-License-Identifier: Apache-2.0
"""Pictures in files: their forms, folders, tables, Hugging Face data sets, cache, corrections."""

import io
import os
import pathlib
import shutil
import tempfile
from unittest import mock

import datasets
import messy
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from sklearn.datasets import load_digits

from ssl_noisy.data import corrections, decoded, pictures, sources
from ssl_noisy.errors import UserError


def encoded(image, kind="png", **options):
    """Returns the bytes of a file of this image, an array or a Pillow image."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


class Case(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = self.folder()
        self.cache = self.folder()

    def folder(self):
        return pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def save(self, path, pixels):
        path = self.root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(np.asarray(pixels, np.uint8)))
        return path

    def load(self, source=None, **kwargs):
        return sources.load(source or f"folder:{self.root}", cache_dir=str(self.cache), **kwargs)

    def assert_one_line(self, parts, function, *args, **kwargs):
        with self.assertRaises(UserError) as raised:
            function(*args, **kwargs)
        for part in parts:
            self.assertIn(part, str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))


class PixelsTest(Case):
    def pixels(self, data, size=(2, 2), channels=3, fit="crop"):
        return pictures.Format(*size, channels, fit).pixels(data)

    def test_transparency_is_put_on_white(self):
        image = np.zeros((2, 2, 4), np.uint8)
        image[..., 3] = [[0, 255], [51, 255]]  # 51 is a fifth
        found = self.pixels(encoded(image))
        self.assertEqual(found[..., 0].tolist(), [[255, 0], [204, 0]])

    def test_transparent_palette(self):
        image = Image.new("P", (2, 2), 0)
        image.putpalette([0, 0, 0, 9, 8, 7])
        image.putpixel((1, 1), 1)
        found = self.pixels(encoded(image, "png", transparency=0))
        self.assertEqual(found[0, 0].tolist(), [255, 255, 255])
        self.assertEqual(found[1, 1].tolist(), [9, 8, 7])

    def test_sixteen_bits_are_scaled(self):
        image = np.array([[0, 257], [65535, 385]], np.uint16)  # 385 / 257 = 1.498
        found = self.pixels(encoded(image), channels=1)
        self.assertEqual(found[..., 0].tolist(), [[0, 1], [255, 1]])
        self.assertTrue(pictures.measure(encoded(image))[2])

    def test_floats_are_refused(self):
        with self.assertRaisesRegex(ValueError, "floats of unknown range"):
            self.pixels(encoded(np.zeros((2, 2), np.float32), "tiff"))

    def test_cmyk(self):
        image = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
        self.assertEqual(self.pixels(encoded(image, "tiff"))[0, 0].tolist(), [255, 0, 0])

    def test_first_frame_of_an_animation(self):
        frames = [Image.new("RGB", (2, 2), color) for color in ((7, 7, 7), (9, 9, 9))]
        data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
        self.assertEqual(self.pixels(data)[0, 0].tolist(), [7, 7, 7])

    def test_the_orientation_of_exif(self):
        image, exif = np.zeros((2, 4, 3), np.uint8), Image.Exif()
        image[0, 0] = 255
        exif[messy.ORIENTATION] = 6  # shown after a turn by 90 degrees clockwise
        data = encoded(image, exif=exif)
        self.assertEqual(pictures.measure(data), (4, 2, False))
        found = self.pixels(data, (4, 2))
        self.assertEqual(np.argwhere(found[..., 0]).tolist(), [[0, 1]])

    @parameterized.parameters(
        ("crop", [10, 10]),  # the columns 2 and 3 of 0, 0, 10, 10, 20, 20
        ("stretch", [4, 16]),
        ("pad", [3, 17]),
    )
    def test_fits(self, fit, middle):
        image = np.repeat(np.array([0, 0, 10, 10, 20, 20], np.uint8)[None], 2, axis=0)
        found = self.pixels(encoded(image), (2, 2), 1, fit)[..., 0]
        if fit == "pad":  # one row is left of the picture, the other is black
            self.assertEqual(sorted(found.sum(axis=1) > 0), [False, True])
            return
        self.assertLessEqual(np.abs(found - np.array([middle, middle])).max(), 1)

    def test_large_jpegs_look_the_same_as_after_full_decoding(self):
        x = np.linspace(0, 6, 1000)
        image = (127 + 120 * np.sin(x[:, None] * 3) * np.cos(x[None] * 5)).astype(np.uint8)
        data = encoded(image, "jpeg", quality=95)
        exact = np.asarray(Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BICUBIC))
        found = self.pixels(data, (32, 32), 1)[..., 0]
        self.assertLess(np.abs(found.astype(int) - exact).max(), 5)

    @parameterized.parameters((None, None), ("auto", None), ("96", (96, 96)), ("96x128", (96, 128)))
    def test_sizes(self, text, expected):
        self.assertEqual(pictures.parse_size(text), expected)

    @parameterized.parameters("0", "-3", "96x", "x96", "96 x 96", "96x96x3", "99999", "big")
    def test_bad_sizes(self, text):
        self.assert_one_line(
            ["--image_size", f"Received: --image_size={text}"], pictures.parse_size, text
        )

    @parameterized.parameters(
        ([[30, 40]] * 3, (30, 40)),
        ([[100, 50], [20, 70], [31, 30]], (30, 30)),  # shorter sides 50, 20, 30
        ([[512, 256]] * 2, (128, 64)),
        ([[900, 800], [700, 600]], (128, 128)),
    )
    def test_automatic_size(self, sizes, expected):
        self.assertEqual(pictures.automatic_size(sizes), expected)


class FolderTest(Case):
    def setUp(self):
        super().setUp()
        for part, count in (("train", 3), ("test", 1)):
            for value, name in ((10, "cat"), (20, "dog")):
                for index in range(count):
                    value += 100 * (part == "test")
                    self.save(f"{part}/{name}/{index}.png", np.full((4, 6), value + index))

    def test_content(self):
        self.save("train/.hidden/0.png", np.zeros((9, 9)))
        data = self.load()
        self.assertEqual(data.class_names, ("cat", "dog"))
        self.assertEqual(data.images.shape, (6, 4, 6, 1))
        self.assertEqual(data.images[:, 0, 0, 0].tolist(), [10, 11, 12, 20, 21, 22])
        self.assertEqual(data.labels.tolist(), [0, 0, 0, 1, 1, 1])
        self.assertEqual(data.ids.tolist(), list(range(6)))
        self.assertEqual(data.test_labels.tolist(), [0, 1])
        self.assertEqual(data.files[4], "train/dog/1.png")
        self.assertEqual(data.notes, ())
        self.assertIsNone(data.validation_images)

    def test_unlabeled_and_validation(self):
        self.save("unlabeled/a/b/1.png", np.full((4, 6), 77))
        self.save("unlabeled/0.png", np.full((4, 6), 66))
        self.save("val/dog/1.png", np.full((4, 6), 55))
        data = self.load()
        self.assertEqual(data.labels.tolist(), [0, 0, 0, 1, 1, 1, -1, -1])
        self.assertEqual(data.images[6:, 0, 0, 0].tolist(), [66, 77])
        self.assertEqual(data.files[6:], ("unlabeled/0.png", "unlabeled/a/b/1.png"))
        self.assertEqual(data.validation_labels.tolist(), [1])

    def test_without_a_test_folder_a_share_is_held_out(self):
        shutil.rmtree(self.root / "test")
        for index in range(3, 10):
            self.save(f"train/dog/{index}.png", np.full((4, 6), 20 + index))
        data = self.load(test_share=0.3)
        self.assertEqual(np.bincount(data.test_labels).tolist(), [1, 3])
        self.assertLen(data.labels, 9)
        self.assertIn("30% of each class, 4 labeled examples", data.notes[-1])
        pixels = [*data.images[:, 0, 0, 0], *data.test_images[:, 0, 0, 0]]
        self.assertEqual(sorted(pixels), [10, 11, 12, *range(20, 30)])
        self.assertEqual(data.files[0], f"train/cat/{data.images[0, 0, 0, 0] - 10}.png")
        again = self.load(test_share=0.3)
        np.testing.assert_array_equal(data.test_images, again.test_images)

    def test_a_share_with_a_test_folder(self):
        self.assert_one_line(["--test_share has no effect"], self.load, test_share=0.3)

    def test_classes_without_a_folder_train(self):
        shutil.move(self.root / "train/cat", self.root / "cat")
        shutil.move(self.root / "train/dog", self.root / "dog")
        (self.root / "train").rmdir()
        self.save("unlabeled/1.png", np.zeros((4, 6)))
        data = self.load()
        self.assertEqual(data.labels.tolist(), [0, 0, 0, 1, 1, 1, -1])
        self.assertEqual(data.files[0], "cat/0.png")

    def test_one_color_image_makes_all_images_rgb(self):
        self.save("test/dog/9.PNG", np.full((4, 6, 3), (1, 2, 3)))
        data = self.load()
        self.assertEqual(data.images.shape, (6, 4, 6, 3))
        self.assertEqual(data.images[1, 0, 0].tolist(), [11, 11, 11])
        self.assertEqual(data.test_images[-1, 0, 0].tolist(), [1, 2, 3])

    def test_sizes_that_differ(self):
        self.save("train/dog/1.png", np.full((8, 12), 21))
        data = self.load()
        self.assertEqual(data.images.shape[1:], (4, 4, 1))
        self.assertIn("4x4 pixels", data.notes[0])
        self.assertIn("--image_size", data.notes[0])
        self.assertEqual(data.images[:, 0, 0, 0].tolist(), [10, 11, 12, 20, 21, 22])
        self.assertEqual(self.load(image_size="2x3").images.shape[1:], (2, 3, 1))
        self.assertNotEqual(self.load(image_size="2x3").version, data.version)

    def test_links_are_followed_once(self):
        os.symlink(self.root / "train", self.root / "train/dog/up")
        os.symlink(self.root / "train/cat", self.root / "unlabeled")
        self.assertEqual(self.load().labels.tolist(), [0, 0, 0, 1, 1, 1, -1, -1, -1])

    def test_errors_of_folders(self):
        self.save("test/cow/0.png", np.zeros((4, 6)))
        self.assert_one_line(["each class of test in train", "cow in test alone"], self.load)
        shutil.rmtree(self.root / "test/cow")
        (self.root / "train/hen").mkdir()
        self.assert_one_line(["none in train/hen", ".png"], self.load)
        (self.root / "train/hen").rmdir()
        shutil.rmtree(self.root / "train/dog")
        self.assert_one_line(["each class of test in train", "dog"], self.load)
        shutil.rmtree(self.root / "test/dog")
        self.assert_one_line(["at least 2 classes", "'cat'"], self.load)
        for parts, path in ((["no such folder"], "absent"), (["a file"], "test/cat/0.png")):
            self.assert_one_line(parts, self.load, f"folder:{self.root}/{path}")
        (self.root / "new").mkdir()
        self.assert_one_line(["labeled pictures", "none"], self.load, f"folder:{self.root}/new")

    def test_all_unreadable_pictures_are_named_at_once(self):
        os.mkfifo(self.root / "train/cat/8.png")
        (self.root / "train/cat/1.png").write_bytes(b"no image")
        (self.root / "train/dog/7.jpg").write_bytes(b"")
        whole = (self.root / "train/dog/1.png").read_bytes()
        (self.root / "test/dog/9.png").write_bytes(whole[:45])
        side = 10_000  # Pillow warns above 89 million pixels and refuses twice as many
        Image.new("1", (side, side)).save(self.root / "train/cat/9.png")
        parts = [
            "5 unreadable pictures among 12",
            "train/cat/1.png (it is not a picture",
            "7.jpg (it is empty)",
        ]
        parts += ["8.png (it is not a regular file)", "test/dog/9.png", "10000x10000 pixels"]
        for _ in range(2):  # the second time from the cache
            self.assert_one_line([*parts, "--skip_unreadable"], self.load)
        data = self.load(skip_unreadable=True)
        self.assertEqual(data.images[:, 0, 0, 0].tolist(), [10, 12, 20, 21, 22])
        self.assertEqual(data.files[1], "train/cat/2.png")
        self.assertLen(data.unreadable, 5)
        self.assertEqual(data.unreadable["train/dog/7.jpg"], "it is empty")

    def test_only_unreadable_pictures(self):
        for path in self.root.rglob("*.png"):
            path.write_bytes(b"")
        self.assert_one_line(["None of 8 files is a readable picture"], self.load)

    def test_identical_files(self):
        shutil.copy(self.root / "train/cat/0.png", self.root / "train/dog/9.png")
        shutil.copy(self.root / "train/cat/1.png", self.root / "test/cat/9.png")
        shutil.copy(self.root / "train/cat/2.png", self.root / "train/cat/3.png")
        notes = self.load().notes
        self.assertLen(notes, 2)
        self.assertIn("in two splits", notes[0])
        self.assertIn("(groups: 1): train/cat/1.png = test/cat/9.png.", notes[0])
        self.assertIn("different labels (groups: 1): train/cat/0.png = train/dog/9.png.", notes[1])


class CacheTest(Case):
    def setUp(self):
        super().setUp()
        for number in range(6):
            self.save(f"train/{'ab'[number % 2]}/{number}.png", np.full((2, 2), number))

    def test_the_second_start_reads_no_picture(self):
        first = self.load()
        with mock.patch.object(decoded.File, "read", side_effect=AssertionError):
            second = self.load()
        np.testing.assert_array_equal(first.images, second.images)
        self.assertEqual((first.version, first.files), (second.version, second.files))

    def test_a_copy_elsewhere_is_not_decoded(self):
        self.load()
        other = self.folder() / "copy"
        shutil.copytree(self.root, other)
        with mock.patch.object(pictures.Format, "pixels", side_effect=AssertionError):
            self.load(f"folder:{other}")

    def test_a_changed_picture_is_decoded(self):
        first = self.load()
        path = self.save("train/a/0.png", np.full((2, 2), 200))
        os.utime(path, ns=(1, 1))
        second = self.load()
        self.assertEqual((*first.images, *first.test_images)[0].max() <= 5, True)
        self.assertIn(200, [*np.ravel(second.images), *np.ravel(second.test_images)])
        self.assertNotEqual(first.version, second.version)

    def test_a_damaged_entry_is_rebuilt(self):
        first = np.array(self.load().images)  # which are mapped: they would change with the file
        (entry,) = self.cache.rglob("*.npy")
        for change in ("flip", "cut", "json"):
            data = bytearray(entry.read_bytes())
            if change == "flip":
                data[-1] ^= 1
            elif change == "cut":
                del data[-3:]
            else:
                entry.with_suffix(".json").write_text("{")
            entry.write_bytes(data)
            with self.assertLogs(level="WARNING"):
                again = self.load()
            np.testing.assert_array_equal(first, again.images)

    def test_an_unwritable_cache(self):
        (self.cache / "pictures").write_text("a file")
        with self.assertLogs(level="WARNING"):
            self.assertLen(self.load().files, 4)

    def test_many_pictures_show_progress(self):
        with mock.patch.object(decoded, "_MANY", 3), mock.patch("builtins.print") as printed:
            self.load()
        self.assertIn("Decoding 6 pictures", str(printed.call_args_list))


class TableTest(Case):
    def setUp(self):
        super().setUp()
        for number in range(8):
            self.save(f"p/{number}.png", np.full((2, 2), number))

    def table(self, text, encoding="utf-8"):
        path = self.root / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return f"csv:{path}"

    def rows(self, *rows, header="file,label,split"):
        return self.table("\n".join([header, *rows]) + "\n")

    def test_content(self):
        source = self.rows(
            "p/3.png,dog,",
            "p/1.png,cat,train",
            "p/2.png,,",
            "p/0.png,dog,unlabeled",
            "p/4.png,cat,test",
            "p/5.png,dog,test",
            "p/6.png,dog,validation",
        )
        data = self.load(source)
        self.assertEqual(data.class_names, ("cat", "dog"))
        self.assertEqual(data.labels.tolist(), [1, 0, -1, -1])
        self.assertEqual(data.images[:, 0, 0, 0].tolist(), [3, 1, 2, 0])
        self.assertEqual(data.test_images[:, 0, 0, 0].tolist(), [4, 5])
        self.assertEqual(data.validation_labels.tolist(), [1])
        self.assertEqual(data.files[0], "p/3.png")

    def test_spreadsheets_and_paths(self):
        text = f'\ufefflabel,file\r\n"a, b",{self.root}/p/0.png\r\nc,p/1.png\r\nc,p/2.png\r\n'
        data = self.load(self.table(text))
        self.assertEqual(data.class_names, ("a, b", "c"))
        self.assertLen(data.labels, 2)

    @parameterized.named_parameters(
        ("no_column", ["file,class", "p/0.png,a"], ["columns file, label", "no column label"]),
        ("empty", [], ["columns file, label"]),
        ("no_rows", ["file,label"], ["it has no rows"]),
        ("ragged", ["file,label", "p/0.png,a,b"], ["line 2 has not 2 columns"]),
        ("no_file", ["file,label", ",a"], ["line 2 has an empty file"]),
        ("twice", ["file,label", *["p/0.png,a"] * 2, "p/1.png,b"], ["once", "1 of them", "p/0"]),
        ("missing", ["file,label", "p/0.png,a", "q.png,b"], ["1 files that do not exist", "q.png"]),
        ("split", ["file,label,split", "p/0.png,a,dev"], ["Received: 'dev' in line 2"]),
        ("test", ["file,label,split", "p/0.png,,test"], ["none for 'p/0.png' in line 2"]),
        ("one_class", ["file,label", "p/0.png,a", "p/1.png,"], ["at least 2 classes", "'a'"]),
        ("quote", ["file,label", '"p/0.png,a'], ["columns file, label", "unexpected end"]),
    )
    def test_errors(self, lines, parts):
        self.assert_one_line(parts, self.load, self.table("\n".join(lines)))

    def test_other_encodings(self):
        source = self.table("file,label\np/0.png,Äpfel\n", "latin-1")
        self.assert_one_line(["must be in UTF-8", "Save it as UTF-8"], self.load, source)

    def test_no_file(self):
        parts = ["columns file, label", "No such file"]
        self.assert_one_line(parts, self.load, f"csv:{self.root}/absent.csv")


class HuggingFaceTest(Case):
    def data(self, labels, names=("cat", "dog")):
        images = [Image.fromarray(np.full((2, 2), n, np.uint8)) for n in range(len(labels))]
        kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    def test_splits_and_unlabeled_examples(self):
        path = str(self.root / "saved")
        parts = {"train": self.data([1, None, 0, -1]), "test": self.data([0, 1]), "extra": None}
        parts["extra"] = self.data([0])
        datasets.DatasetDict(parts).save_to_disk(path)
        data = self.load(f"hf:{path}")
        self.assertEqual(data.labels.tolist(), [1, 0, -1, -1])
        self.assertEqual(data.images[:, 0, 0, 0].tolist(), [0, 2, 1, 3])
        self.assertEqual(data.files, ("train/0", "train/2", "train/1", "train/3"))
        self.assertEqual(data.test_labels.tolist(), [0, 1])
        self.assertEqual(data.class_names, ("cat", "dog"))
        self.assertIn("Ignored the split 'extra'", data.notes[0])

    def test_text_labels(self):
        path = str(self.root / "saved")
        self.data(["x", "y", "", "x"], names=None).save_to_disk(path)
        data = self.load(f"hf:{path}")
        self.assertEqual(data.class_names, ("x", "y"))
        self.assertEqual(sorted([*data.labels, *data.test_labels]), [-1, 0, 0, 1])

    def test_errors(self):
        path = str(self.root / "saved")
        datasets.Dataset.from_dict({"a": [1]}).save_to_disk(path)
        self.assert_one_line(["type Image", "Received: a"], self.load, f"hf:{path}")
        parts = ["cannot be loaded", "save_to_disk"]
        (self.root / "empty").mkdir()
        self.assert_one_line(parts, self.load, f"hf:{self.root}/empty")
        with mock.patch.dict("sys.modules", {"datasets": None}):
            self.assert_one_line(["pip install 'ssl_noisy[hf]'"], self.load, "hf:any")


class CorrectionsTest(Case):
    def setUp(self):
        super().setUp()
        for number in range(6):
            self.save(f"train/{'ab'[number % 2]}/{number}.png", np.full((2, 2), number))
            self.save(f"test/{'ab'[number % 2]}/{number}.png", np.full((2, 2), number + 9))
        self.data = self.load()  # a: 0, 2, 4; b: 1, 3, 5

    def apply(self, *lines, data=None):
        path = self.root / "corrections.csv"
        path.write_text("\n".join(lines) + "\n")
        return corrections.apply(path, data or self.data)

    def test_labels_change_go_and_come(self):
        data = self.apply(
            "file,label,why", "train/a/2.png,b,blurred", "train/b/5.png,,", "train/a/0.png,remove,"
        )
        self.assertEqual(data.images[:, 0, 0, 0].tolist(), [2, 4, 1, 3, 5])
        self.assertEqual(data.labels.tolist(), [1, 0, 1, 1, -1])
        self.assertEqual(data.files[0], "train/a/2.png")
        self.assertEqual(data.ids.tolist(), [1, 2, 3, 4, 5])
        self.assertIn("labels changed: 2, examples removed: 1", data.notes[-1])
        self.assertEqual(self.data.labels.tolist(), [0, 0, 0, 1, 1, 1])  # as it was

    def test_data_without_files_are_known_by_index(self):
        data = sources.load("digits")
        changed = self.apply("index,label", f"{data.ids[3]},8", data=data)
        self.assertEqual(np.flatnonzero(changed.labels != data.labels).tolist(), [3])
        self.assertEqual(changed.labels[3], 8)

    def test_new_classes_that_may_be_misspelled_are_named(self):
        for number in range(9):
            self.save(f"photos/{number}.png", np.full((2, 2), number))
        data = self.load(f"folder:{self.root}/photos", needs_labels=False)
        labels = ["cat", "cat", "Cat", "dog", "dog", "dgo", "page_1", "page_1", "page_2"]
        rows = [f"{file},{label}" for file, label in zip(data.files, labels)]
        found = self.apply("file,label", *rows, data=data)
        self.assertLen(found.class_names, 6)
        expected = "classes of one label, perhaps misspelled: Cat (or cat?), dgo (or dog?)."
        self.assertEqual(found.notes[-2], f"corrections.csv: {expected}")

    @parameterized.named_parameters(
        ("unknown", ["file,label", "train/a/7.png,b"], ["1 unknown: train/a/7.png", "Did you"]),
        ("test", ["file,label", "test/a/0.png,b"], ["1 unknown: test/a/0.png"]),
        ("class", ["file,label", "train/a/0.png,c"], ["(a, b)", "Received: c"]),
        ("two", ["file,label", "train/a/0.png,a", "train/a/0.png,b"], ["'a' and 'b'"]),
        ("index", ["index,label", "0,b"], ["no column file"]),
    )
    def test_errors(self, lines, parts):
        self.assert_one_line(parts, self.apply, *lines)


class MessyTest(Case):
    def test_a_messy_folder_loads_and_every_picture_is_the_right_one(self):
        digits = load_digits()
        images = (digits.images[:300] * 255 / 16).astype(np.uint8)
        truth = messy.write(self.root, images, digits.target[:300])
        broken = messy.damage(self.root)
        self.assert_one_line(broken, self.load)
        data = self.load(skip_unreadable=True, image_size="8")
        self.assertEqual(sorted(data.unreadable), broken)
        train = {name for name in truth if name.startswith(("train", "unlabeled"))}
        self.assertEqual(set(data.files) - train, {"train/d'été/twin.JPG"})
        self.assertEqual(train - set(data.files), set())
        for row, name in enumerate(data.files):
            if name.startswith("unlabeled"):
                self.assertEqual(data.labels[row], -1)
            elif "twin" not in name:
                self.assertEqual(data.class_names[data.labels[row]], truth[name])
            if "twin" not in name:
                # Eight pixels enlarged and reduced again are nearly what they were.
                original = images[int(pathlib.Path(name).stem)]
                found = data.images[row].mean(axis=-1).ravel()
                self.assertGreater(np.corrcoef(found, original.ravel())[0, 1], 0.9, name)


if __name__ == "__main__":
    absltest.main()
