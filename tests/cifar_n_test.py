# SPDX-License-Identifier: Apache-2.0
import codecs
import contextlib
import copyreg
import hashlib
import os
import pathlib
import pickle
import tempfile
import zipfile
from unittest import mock

import numpy as np
from absl import logging
from absl.testing import absltest, parameterized

from ssl_noisy.data import cifar_n, tfds_source
from ssl_noisy.data.dataset import Dataset, DatasetError

SIZE = 50_000
CLEAN = np.arange(SIZE) * 7 % 10
KEYS10 = ["aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"]


def labels10():
    """Returns the content of a file of CIFAR-10N: key number k adds k at every third index."""
    wrong = np.arange(SIZE) % 3 == 0
    noisy = {key: (CLEAN + wrong * (k + 1)) % 10 for k, key in enumerate(KEYS10)}
    return {"clean_label": CLEAN, **noisy}


def dataset(name="cifar10", ids=(4, 9, 30_000, 49_999), labels=None):
    """Returns some examples of a data set whose labels are those of `labels10`."""
    ids = np.array(ids)
    images = np.zeros((len(ids), 1, 1, 3), np.uint8)
    labels = (CLEAN[ids % SIZE] if labels is None else labels).astype(np.int32)
    names = tuple(map(str, range(100 if name.startswith("cifar100") else 10)))
    rest = (images, labels, None, None, names, True)
    return Dataset(name, "1.0.0", images, labels, ids, *rest)


def dump(value, protocol=2, core="numpy.core"):
    """Pickles like a NumPy version whose core has this name."""
    raw = pickle.dumps(value, protocol)
    for other in ("numpy.core", "numpy._core"):
        raw = raw.replace(f"c{other}.".encode(), f"c{core}.".encode())
    return raw


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Case(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.warning = self.enterContext(mock.patch.object(logging, "warning"))

    def pt(self, raw, name="labels.pt", member="archive/data.pkl"):
        path = self.root / name
        with zipfile.ZipFile(path, "w") as archive:  # stored, as torch.save does
            archive.writestr(member, raw)
            archive.writestr("archive/version", "3\n")
        return path

    def npy(self, raw, name="labels.npy"):
        path = self.root / name
        with open(path, "wb") as file:
            header = {"descr": "|O", "fortran_order": False, "shape": ()}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(raw)
        return path

    def assert_one_line(self, parts, *args, **kwargs):
        with self.assertRaises(cifar_n.CifarNError) as raised:
            cifar_n.labels(*args, **kwargs)
        for part in parts:
            self.assertIn(part, str(raised.exception))
        self.assertNotIn("\n", str(raised.exception))


class FileTest(Case):
    @parameterized.parameters("numpy.core", "numpy._core")
    def test_joins_on_the_published_index(self, core):
        path = self.pt(dump(labels10(), core=core))
        self.assertIn(f"c{core}.multiarray\n_reconstruct".encode(), path.read_bytes())
        # By hand: 7 id % 10 is 8, 3, 0, 3; of these ids 9 and 30,000 are multiples of three.
        given = cifar_n.labels("worse_label", dataset(), file=path)
        self.assertEqual(given.tolist(), [8, 5, 2, 3])
        self.assertEqual(given.dtype, np.int32)
        given = cifar_n.labels("random_label3", dataset(), file=str(path))
        self.assertEqual(given.tolist(), [8, 8, 5, 3])
        whole = dataset(ids=range(SIZE))
        np.testing.assert_array_equal(
            cifar_n.labels("aggre_label", whole, file=path), labels10()["aggre_label"]
        )

    @parameterized.parameters("int8", "uint8", ">i4", "<u2", "int64")
    def test_integer_types_and_protocols(self, dtype):
        content = {key: values.astype(dtype) for key, values in labels10().items()}
        for protocol in (2, 3, 4):
            path = self.pt(dump(content, protocol))
            given = cifar_n.labels("worse_label", dataset(), file=path)
            self.assertEqual(given.tolist(), [8, 5, 2, 3])

    def test_other_names_of_the_keys(self):
        path, content = self.pt(dump(labels10())), labels10()
        for name, key in (("worst", "worse_label"), ("aggre", "aggre_label"),
                          ("rand2", "random_label2"), ("random3", "random_label3")):  # fmt: skip
            given = cifar_n.labels(name, dataset(ids=[30]), file=path)
            self.assertEqual(given, content[key][30])

    @parameterized.parameters("noisy_label", "noise_label")
    def test_both_names_of_cifar_100(self, written):
        clean = np.arange(SIZE) % 100
        path = self.pt(dump({"clean_label": clean, written: (clean + 1) % 100}))
        data = dataset("cifar100", [99, 103], np.array([99, 3]))
        for key in ("noisy_label", "noise_label", "noisy100"):
            self.assertEqual(cifar_n.labels(key, data, file=path).tolist(), [0, 4])

    def test_labels_alone(self):
        np.save(self.root / "mine.npy", (CLEAN + 1) % 10)
        given = cifar_n.labels("worst", dataset(), file=self.root / "mine.npy")
        self.assertEqual(given.tolist(), [9, 4, 1, 4])

    def test_unknown_file_is_named_by_its_checksum(self):
        path = self.pt(dump(labels10()))
        cifar_n.labels("worst", dataset(), file=path)
        self.warning.assert_called_once()
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        self.assertIn(checksum, self.warning.call_args[0])
        with mock.patch.dict(cifar_n._KNOWN, {checksum: "other.pt"}):
            cifar_n.labels("worst", dataset(), file=path)
        self.warning.assert_called_once()

    def test_published_name_of_another_file(self):
        for name in ("CIFAR-10_human.pt", "CIFAR-100_human.pt", "CIFAR-100_human_ordered.npy"):
            path = self.pt(dump(labels10()), name)
            self.assert_one_line(
                ["checksum mismatch", "rename", hashlib.sha256(path.read_bytes()).hexdigest()],
                "worst", dataset(), file=path,
            )  # fmt: skip
        self.warning.assert_not_called()

    def test_labels_of_another_data_set(self):
        path = self.pt(dump(labels10()))
        other = dataset(labels=np.array([8, 3, 0, 4]))
        parts = ["another data set than 'cifar10'", "1 of its 4 clean labels differ"]
        self.assert_one_line(parts, "worst", other, file=path)
        parts = ["another data set, 'digits'", "cifar10 and cifar100"]
        self.assert_one_line(parts, "worst", dataset("digits"), file=path)
        parts = ["no label of 2 examples, such as id 50000", "training split"]
        self.assert_one_line(parts, "worst", dataset(ids=[3, 50_000, 50_007]), file=path)

    @parameterized.parameters("clean_label", "noisy_label", "worse", "label", "")
    def test_keys(self, key):
        data = dataset("cifar100") if key == "worse" else dataset()
        known = "noisy_label" if key == "worse" else ", ".join(KEYS10)
        self.assert_one_line([f"one of {known}. Received: {key!r}"], key, data, file="x")

    @parameterized.named_parameters(
        (
            "missing",
            {"worse_label": None},
            ["no labels 'worse_label'", "holds: 'clean_label', 'aggr"],
        ),
        ("short", {"worse_label": CLEAN[1:]}, ["50000 integers", "int64 (49999,)"]),
        ("rank", {"worse_label": CLEAN[:, None]}, ["int64 (50000, 1)"]),
        ("float", {"worse_label": CLEAN * 1.0}, ["integers", "float64 (50000,)."]),
        ("bool", {"worse_label": CLEAN > 4}, ["integers", "bool"]),
        ("text", {"worse_label": ["a"] * SIZE}, ["integers", "<U1"]),
        ("number", {"worse_label": 3}, ["integers", "int64 ()"]),
        ("ragged", {"worse_label": [[1], 2]}, ["cannot be read", "inhomogeneous"]),
        ("high", {"worse_label": CLEAN + 1}, ["[0, 10)", "1 to 10"]),
        ("low", {"worse_label": CLEAN - 1}, ["[0, 10)", "-1 to 8"]),
        ("clean", {"clean_label": CLEAN + 1}, ["clean_label", "1 to 10"]),
    )
    def test_bad_content(self, changes, parts):
        content = {k: v for k, v in (labels10() | changes).items() if v is not None}
        self.assert_one_line(parts, "worst", dataset(), file=self.pt(dump(content)))

    @parameterized.named_parameters(
        ("absent", None, ["No such file"]),
        ("empty", b"", ["neither a zip archive"]),
        ("text", b"hello", ["neither a zip archive", "nor an .npy"]),
        ("bare", pickle.dumps({}), ["neither a zip archive"]),
        ("short_npy", b"\x93NUMPY\x01\x00", ["cannot be read"]),
        ("npy_version", b"\x93NUMPY\x03\x00" + bytes(9), ["version (3, 0)"]),
    )
    def test_bad_file(self, raw, parts):
        path = self.root / "labels.pt"
        if raw is not None:
            path.write_bytes(raw)
        self.assert_one_line(["labels.pt' cannot be read", *parts], "worst", dataset(), file=path)

    def test_a_device_is_refused(self):
        self.assert_one_line(["not a regular file"], "worst", dataset(), file="/dev/zero")

    def test_bad_archive(self):
        path = self.pt(b"x", member="archive/data.bin")
        self.assert_one_line(["one data.pkl"], "worst", dataset(), file=path)
        with zipfile.ZipFile(self.pt(b"N."), "a") as archive:
            archive.writestr("data.pkl", b"N.")
        self.assert_one_line(["one data.pkl"], "worst", dataset(), file=path)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(70_000_000))
        self.assertLess(path.stat().st_size, 1_000_000)
        self.assert_one_line(["at most 67108864 bytes"], "worst", dataset(), file=path)
        path.write_bytes(bytes(68_000_000))
        self.assert_one_line(["more than 67108864 bytes"], "worst", dataset(), file=path)
        for raw in (b"N.", b"]."):
            self.assert_one_line(["dict of arrays"], "worst", dataset(), file=self.pt(raw))
        self.assert_one_line(["cannot be read"], "worst", dataset(), file=self.pt(b"\x80\x02}"))


class OrderTest(Case):
    """Files in the order of TFDS's, whose literals are those of the published image orders."""

    def ordered(self, name):
        order = cifar_n._file_order(name)
        self.assertEqual(np.sort(order).tolist(), list(range(SIZE)))
        return order

    def test_order(self):
        order = self.ordered("cifar10")
        self.assertEqual(order[:6].tolist(), [16399, 1680, 47917, 17307, 27051, 48736])
        self.assertEqual(order[-3:].tolist(), [5073, 39601, 32842])

    def test_twins(self):
        order = self.ordered("cifar100")
        self.assertEqual(order[[7980, 43427, 35963]].tolist(), [47806, 30418, 4348])
        self.assertEqual((order != self.ordered("cifar10")).sum(), 14)

    @parameterized.parameters("cifar10", "cifar100")
    def test_ordered_file(self, name):
        order, key = self.ordered(name), "worse_label" if name == "cifar10" else "noisy_label"
        published = {"clean_label": CLEAN, key: labels10()["worse_label"]}
        content = np.empty((), object)
        content[()] = {key: values[order] for key, values in published.items()}
        path = self.npy(dump(content, 3), "mine_ordered.npy")
        given = cifar_n.labels(key, dataset(name), file=path)
        self.assertEqual(given.tolist(), [8, 5, 2, 3])
        path = path.rename(self.root / "mine.npy")
        self.assert_one_line(["another data set"], key, dataset(name), file=path)
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        with mock.patch.dict(cifar_n._KNOWN, {checksum: "CIFAR-100_human_ordered.npy"}):
            given = cifar_n.labels(key, dataset(name), file=path)
        self.assertEqual(given.tolist(), [8, 5, 2, 3])

    def test_lists_of_scalars(self):
        """The form of the published file of CIFAR-100."""
        content = np.empty((), object)
        content[()] = {"noise_label": list(CLEAN.astype("<i8"))}
        raw = dump(content, 3)
        self.assertIn(b"multiarray\nscalar", raw)
        path = self.npy(raw)
        given = cifar_n.labels("noisy_label", dataset("cifar100"), file=path)
        self.assertEqual(given.tolist(), [8, 3, 0, 3])

    def test_ordered_labels_alone(self):
        np.save(self.root / "mine_ordered.npy", CLEAN[self.ordered("cifar10")])
        given = cifar_n.labels("worst", dataset(), file=self.root / "mine_ordered.npy")
        self.assertEqual(given.tolist(), [8, 3, 0, 3])


class TfdsTest(Case):
    def load_feature(self, name, feature, *, data_dir):
        self.asked.append((name, feature, data_dir))
        ids = np.arange(0, SIZE, 3)
        return ids, CLEAN[ids] if feature == "label" else labels10()["worse_label"][ids]

    def setUp(self):
        super().setUp()
        self.asked = []
        self.enterContext(mock.patch.object(tfds_source, "load_feature", self.load_feature))

    def test_joins_on_the_published_index(self):
        given = cifar_n.labels("worst", dataset(ids=[3, 9, 30_000]), data_dir="/data")
        self.assertEqual(given.tolist(), [3, 5, 2])
        asked = [("cifar10_n", "worse_label", "/data"), ("cifar10_n", "label", "/data")]
        self.assertEqual(self.asked, asked)

    def test_name_of_cifar_100(self):
        cifar_n.labels("noisy_label", dataset("cifar100_n", ids=[9]))
        self.assertEqual(self.asked[0], ("cifar100_n", "noise_label", None))

    def test_errors(self):
        other = dataset(ids=[3], labels=np.array([2]))
        self.assert_one_line(["TFDS's 'cifar10_n'", "another data set"], "worst", other)
        self.assert_one_line(["no label of 1 examples, such as id 4"], "worst", dataset(ids=[4]))
        error = DatasetError("'cifar10_n' is not prepared.")
        with mock.patch.object(tfds_source, "load_feature", side_effect=error):
            parts = [
                "CIFAR-10_human.pt with --cifarn_file, or fix this: 'cifar10_n' is not prepared."
            ]
            self.assert_one_line(parts, "worst", dataset())


TOUCHED = "touched"  # the file that an attack creates in the current folder


def touch(*_):
    pathlib.Path(TOUCHED).touch()
    return "", 0


class Subclass(np.ndarray):
    def __setstate__(self, state):
        touch()


def subclass():
    return np.zeros(3, np.int64).view(Subclass)


CORE = b"cnumpy.core.multiarray\n"
TYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00%sI00\nI01\ntR"
MALICIOUS = {
    "system": lambda: dump(Call(os.system, f"touch {TOUCHED}")),
    "eval": lambda: dump(Call(eval, f"open({TOUCHED!r}, 'w')")),
    "in_a_dict": lambda: dump(labels10() | {"worse_label": Call(open, TOUCHED, "w")}),
    "numpy_load": lambda: dump(Call(np.load, "evil.npy", None, True)),
    "save": lambda: dump(Call(np.save, TOUCHED, 0)),
    "own_function": lambda: dump(Call(touch)),
    "subclass": lambda: dump(subclass()),
    "protocol_4": lambda: dump(Call(touch), 4),
    "protocol_5": lambda: dump(labels10(), 5),  # NumPy then calls another function
    "codec": lambda: dump(Call(codecs.encode, "x", "touching")),
    "codec_by_name": lambda: b"c_codecs\nencode\n(X\x01\x00\x00\x00xX\x08\x00\x00\x00touchingtR.",
    "decode": lambda: dump(Call(codecs.decode, b"x", "touching")),
    "attribute": lambda: b"\x80\x04\x8c\x05numpy\x8c\x0dsave.__call__\x93(\x8c\x07touchedK\x00tR.",
    "attribute_of_known": lambda: b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93.",
    "reconstruct_type": lambda: CORE + b"_reconstruct\n(cnumpy\ndtype\n(I0\ntC\x01btR.",
    "reconstruct_object": lambda: CORE + b"_reconstruct\n(c__builtin__\nobject\n(I0\ntC\x01btR.",
    "objects": lambda: CORE + b"scalar\n(" + TYPE % b"O8" + b"C\x08AAAAAAAAtR.",
    "records": lambda: CORE + b"scalar\n(" + TYPE % b"V8" + b"C\x08AAAAAAAAtR.",
    "order": lambda: (
        CORE + b"scalar\n(" + TYPE % b"i8" + b"(I3\nX\x02\x00\x00\x00O,tbC\x10AAAAAAAABBBBBBBBtR."
    ),
    "persistent_id": lambda: b"\x80\x02X\x01\x00\x00\x00xQ.",
    "extension": lambda: b"\x80\x02\x82\xf0)R.",
    "defaults": lambda: (
        b"\x80\x02c_codecs\nencode\n(N}X\x0c\x00\x00\x00__defaults__(X\x06\x00\x00\x00latin1tstb."
    ),
    "class_state": lambda: b"\x80\x02cnumpy\nndarray\n(N}X\x0c\x00\x00\x00__setstate__Nstb.",
}


class MaliciousTest(Case):
    def setUp(self):
        super().setUp()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.root)
        self.npy(dump(Call(touch)), "evil.npy")

        def search(name):
            return codecs.CodecInfo(touch, touch, name=name) if name == "touching" else None

        codecs.register(search)
        self.addCleanup(codecs.unregister, search)
        copyreg.add_extension(touch.__module__, "touch", 0xF0)
        self.addCleanup(copyreg.remove_extension, touch.__module__, "touch", 0xF0)

    @parameterized.parameters(*MALICIOUS)
    def test_nothing_runs(self, name):
        raw = MALICIOUS[name]()
        for path in (self.pt(raw), self.npy(raw)):
            self.assert_one_line(["cannot be read"], "worst", dataset(), file=path)
            self.assertFalse(os.path.exists(TOUCHED))
        self.assertIsNone(cifar_n._Reader.encode.__defaults__)
        self.assertTrue(callable(cifar_n._Array.__setstate__))

    @parameterized.parameters(
        "system", "eval", "numpy_load", "own_function", "subclass", "protocol_4", "codec",
        "codec_by_name", "attribute", "extension",
    )  # fmt: skip
    def test_each_attack_works_with_plain_pickle(self, name):
        """Otherwise the test above would prove nothing."""
        with contextlib.suppress(TypeError):  # raised after the attack has run
            pickle.loads(MALICIOUS[name]())
        self.assertTrue([path for path in os.listdir() if path.startswith(TOUCHED)])

    @parameterized.parameters(
        ("system", f"{os.system.__module__}.system is not allowed"),
        ("attribute", "numpy.save.__call__ is not allowed"),
        ("codec_by_name", "the encoding 'touching' is not allowed"),
        ("reconstruct_type", "arrays of other classes are not allowed"),
        ("records", "the type 'V8' is not allowed"),
        ("order", "the byte order 'O,' is not allowed"),
    )
    def test_the_error_names_what_is_forbidden(self, name, part):
        path = self.pt(MALICIOUS[name]())
        self.assert_one_line([part], "rand1", dataset(), file=path)


if __name__ == "__main__":
    absltest.main()
