# SPDX-License-Identifier: Apache-2.0
import os

from absl.testing import absltest

from ssl_noisy import files


class ReplacingTest(absltest.TestCase):
    def test_a_failure_leaves_the_old_file_and_no_trace(self):
        path = os.path.join(self.create_tempdir().full_path, "deep", "result.json")
        with files.replacing(path, "w") as file:
            file.write("old")
        with self.assertRaises(KeyboardInterrupt), files.replacing(path, "w") as file:
            file.write("half")
            raise KeyboardInterrupt
        with open(path) as file:
            self.assertEqual(file.read(), "old")
        self.assertEqual(os.listdir(os.path.dirname(path)), ["result.json"])

    def test_bytes_by_default(self):
        path = os.path.join(self.create_tempdir().full_path, "a")
        with files.replacing(path) as file:
            file.write(b"\x00\xff")
        with open(path, "rb") as file:
            self.assertEqual(file.read(), b"\x00\xff")


if __name__ == "__main__":
    absltest.main()
