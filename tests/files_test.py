# SPDX-License-Identifier: Apache-2.0
import contextlib
import errno
import io
import os
import zipfile
from unittest import mock

import commands
import numpy as np
from absl.testing import absltest, parameterized

from ssl_noisy import files, machine


class ReplacingTest(parameterized.TestCase):
    def test_a_failure_leaves_the_old_file_alone(self):
        path = os.path.join(self.create_tempdir().full_path, "deep", "result.json")
        with files.replacing(path, "w") as file:
            file.write("old")
        with self.assertRaises(KeyboardInterrupt), files.replacing(path, "w") as file:
            file.write("half")
            raise KeyboardInterrupt
        with open(path) as file:
            self.assertEqual(file.read(), "old")
        self.assertEqual(os.listdir(os.path.dirname(path)), ["result.json"])

    def test_the_old_file_moves_to_keep(self):
        folder = self.create_tempdir().full_path
        path, before = os.path.join(folder, "a"), os.path.join(folder, "before")
        for text in ("first", "second", "third"):
            with files.replacing(path, "w", keep=before) as file:
                file.write(text)
        with open(path) as new, open(before) as old:
            self.assertEqual((new.read(), old.read()), ("third", "second"))

    def test_a_failed_write_is_one_line_and_leaves_the_old_file(self):
        folder = self.create_tempdir().full_path
        path = os.path.join(folder, "a")
        for mode, data in (("wb", b"0" * 20_000), ("w", "0" * 20_000)):
            with files.replacing(path) as file:
                file.write(b"old")
            with (
                commands.largest_file(10_000),
                self.assertRaisesRegex(files.WriteError, f"Cannot write '{path}': File too large"),
                files.replacing(path, mode) as file,
            ):
                file.write(data)
            with open(path) as file:
                self.assertEqual(file.read(), "old")
            self.assertEqual(os.listdir(folder), ["a"])

    def test_a_directory_with_the_name_of_the_file(self):
        path = os.path.join(self.create_tempdir().full_path, "a")
        os.mkdir(path)
        message = f"Cannot write '{path}': Is a directory. Remove the directory with this name."
        with self.assertRaisesRegex(files.WriteError, message), files.replacing(path) as file:
            file.write(b"new")
        with self.assertRaisesRegex(files.WriteError, message), files.replacing_path(path) as new:
            with open(new, "w"):
                pass
        self.assertEqual(os.listdir(os.path.dirname(path)), ["a"])

    def test_a_file_with_the_name_of_the_folder(self):
        path = os.path.join(self.create_tempfile().full_path, "a")
        for write in (files.replacing, files.replacing_path, lambda path: files.make_folder(path)):
            with self.assertRaisesRegex(files.WriteError, "Not a directory|File exists"):
                with write(path):
                    pass

    @parameterized.parameters(
        (errno.ENOSPC, "Free some disk space."), (errno.EACCES, "a folder that you can write to.")
    )
    def test_the_advice_fits_the_error(self, number, advice):
        error = OSError(number, os.strerror(number))
        with mock.patch.object(os, "replace", side_effect=error):
            with self.assertRaisesRegex(files.WriteError, advice):
                with files.replacing(os.path.join(self.create_tempdir().full_path, "a")) as file:
                    file.write(b"new")

    def test_a_failed_read_keeps_its_type(self):
        path = os.path.join(self.create_tempdir().full_path, "a")
        with self.assertRaises(FileNotFoundError), files.replacing(path) as file:
            file.write(b"half")
            open("/no/such/file")
        self.assertEmpty(os.listdir(os.path.dirname(path)))

    def test_a_temporary_path_with_the_same_suffix(self):
        path = os.path.join(self.create_tempdir().full_path, "a.keras")
        with self.assertRaises(KeyError), files.replacing_path(path) as new:
            with open(new, "w"):
                self.assertEqual(os.path.dirname(new), os.path.dirname(path))
            raise KeyError
        self.assertEmpty(os.listdir(os.path.dirname(path)))
        with files.replacing_path(path) as new, open(new, "w"):
            self.assertTrue(files.is_left_over(os.path.basename(new)))
            self.assertEndsWith(new, ".keras")
        self.assertEqual(os.listdir(os.path.dirname(path)), ["a.keras"])

    def test_only_temporary_files_are_left_overs(self):
        for name in ("thesis.tmp", "thesis.tmp.tex", "a.0f.tmp", "model.keras"):
            self.assertFalse(files.is_left_over(name), name)
        self.assertTrue(files.is_left_over(f"flags.cfg.{'0f' * 16}.tmp"))

    def test_bytes_by_default(self):
        path = os.path.join(self.create_tempdir().full_path, "a")
        with files.replacing(path) as file:
            file.write(b"\x00\xff")
        with open(path, "rb") as file:
            self.assertEqual(file.read(), b"\x00\xff")


def npy(shape, descr="|u1", data=b"123456"):
    """Returns the bytes of an .npy file with `shape` and `descr` in its header."""
    file = io.BytesIO()
    header = {"shape": shape, "descr": descr, "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


class ReadingTest(absltest.TestCase):
    def write(self, content):
        """Returns the paths of an .npy file and of an .npz file with this array."""
        folder = self.create_tempdir().full_path
        one, many = os.path.join(folder, "a.npy"), os.path.join(folder, "a.npz")
        with open(one, "wb") as file:
            file.write(content)
        with zipfile.ZipFile(many, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.npy", content)
        return one, many

    def test_arrays(self):
        one, many = self.write(npy((2, 3)))
        for array in (files.read_npy(one), files.read_npz(many)["a"]):
            np.testing.assert_array_equal(array, [[49, 50, 51], [52, 53, 54]])

    def test_arrays_that_are_mapped_need_not_fit_into_memory(self):
        path = os.path.join(self.create_tempdir().full_path, "a.npz")
        wide, small = np.arange(600).reshape(2, 300), np.arange(3)
        np.savez(path, wide=wide, small=small, fortran=np.asfortranarray(wide))
        with (
            mock.patch.object(files, "SMALLEST_MAP", 4000),
            mock.patch.object(machine, "memory", lambda: 1000),
        ):
            arrays = files.read_npz(path, mapped=True)
            for name, is_mapped in (("wide", True), ("fortran", True), ("small", False)):
                self.assertEqual(isinstance(arrays[name], np.memmap), is_mapped, name)
                np.testing.assert_array_equal(arrays[name], wide if is_mapped else small)
            with open(path, "r+b") as file:
                file.seek(1000)
                file.write(b"\xff")
            with self.assertRaisesRegex(ValueError, "CRC"):
                files.read_npz(path, mapped=True)

    def test_a_header_must_match_the_size_of_the_file(self):
        for content, message in (
            (npy((10**15,)), "1,000,000,000,000,000 bytes, but has 6"),
            (npy((7,)), "7 bytes, but has 6"),
            (npy((1,), "<f8"), "8 bytes, but has 6"),
            (npy((1,), "|O"), "Object arrays are pickles"),
            (npy((-2, -3)), ""),
            (npy((6,)).replace(b"{", b"("), ""),
            (npy((6,)).replace(b"NUMPY\x01", b"NUMPY\x03"), "version"),
            (b"hello", "magic"),
            (b"", ""),
        ):
            one, many = self.write(content)
            for read, path in ((files.read_npy, one), (files.read_npz, many)):
                with self.assertRaisesRegex(ValueError, message):
                    read(path)

    def test_a_damaged_npz_file_is_a_value_error_whichever_byte_is_wrong(self):
        _, path = self.write(npy((2, 3)))
        with open(path, "rb") as file:
            data = file.read()
        for place in range(len(data)):
            for byte in (0, 14, 91, data[place] ^ 255):  # 14: LZMA, where it is the compression
                with open(path, "wb") as file:
                    file.write(data[:place] + bytes([byte]) + data[place + 1 :])
                with contextlib.suppress(ValueError):
                    files.read_npz(path)

    def test_other_compressions(self):
        _, path = self.write(npy((2, 3)))
        with open(path, "r+b") as file:
            data = file.read()
            file.seek(data.index(b"PK\x01\x02") + 10)  # of the central directory
            file.write(bytes([zipfile.ZIP_LZMA]))
        with self.assertRaisesRegex(ValueError, "its compression is not one of"):
            files.read_npz(path)

    def test_arrays_must_fit_into_memory(self):
        _, path = self.write(npy((10**6,), data=bytes(10**6)))
        self.assertLess(os.path.getsize(path), 10_000)  # a zip bomb
        with mock.patch.object(machine, "memory", lambda: 2 * 10**6):
            with self.assertRaisesRegex(ValueError, "need 0.0 GB, and this machine has 0.0 GB"):
                files.read_npz(path)
        self.assertLen(files.read_npz(path)["a"], 10**6)

    def test_files_that_are_not_regular(self):
        folder = self.create_tempdir().full_path
        pipe = os.path.join(folder, "pipe")
        os.mkfifo(pipe)
        for path in (pipe, folder, "/dev/zero"):
            for read in (files.read_npy, files.read_npz):
                with self.assertRaisesRegex(ValueError, "it is not a regular file"):
                    read(path)


if __name__ == "__main__":
    absltest.main()
