# SPDX-License-Identifier: Apache-2.0
"""A copy of the folder of a run follows it, and can break off after any file."""

import os
import pathlib

from absl.testing import absltest, parameterized

from ssl_noisy import files
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint, folder
from ssl_noisy.sweeps import copies


def content_of(path):
    """Returns a dict from the relative path of each file and folder to its bytes, or None."""
    return {
        str(found.relative_to(path)): found.read_bytes() if found.is_file() else None
        for found in pathlib.Path(path).rglob("*")
    }


class CopiesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.run_dir, self.copy = self.create_tempdir().full_path, self.create_tempdir().full_path
        self.known = {}

    def put(self, path, content, keep=None):
        """Writes a file as a run does."""
        path = os.path.join(self.run_dir, path)
        with files.replacing(path, keep=keep and os.path.join(self.run_dir, keep)) as file:
            file.write(content)

    def save(self, content):
        self.put(checkpoint.NAME, content, keep=checkpoint.PREVIOUS_NAME)

    def follow(self):
        """Brings the copy up to date. Returns the items that were sent."""
        sent = []
        for item in copies.changes(self.run_dir, self.known):
            copies.write(self.copy, *item)
            sent.append(item)
        self.assertEqual(content_of(self.copy), content_of(self.run_dir))
        return sent

    def test_a_copy_follows_a_run_and_each_file_is_sent_once(self):
        self.put(folder.FLAGS, b"flags")
        self.save(b"one")
        self.put("tensorboard/events", b"e")
        self.assertEqual(
            self.follow(),
            [("flags.cfg", b"flags"), (checkpoint.NAME, b"one")] + [("tensorboard/events", b"e")],
        )
        self.assertEqual(self.follow(), [])
        with open(os.path.join(self.run_dir, "tensorboard/events"), "ab") as file:
            file.write(b"f")
        self.save(b"two")
        items = [("tensorboard/events", b"ef"), (checkpoint.NAME, b"two")]
        self.assertEqual(self.follow(), [(checkpoint.PREVIOUS_NAME, checkpoint.NAME), *items])
        self.save(b"three")
        self.save(b"four")
        items = [(checkpoint.PREVIOUS_NAME, b"three"), (checkpoint.NAME, b"four")]
        self.assertEqual(self.follow(), items)

    def test_a_file_that_the_run_removes_is_removed_and_flags_go_last(self):
        for name in (folder.FLAGS, "tensorboard/events", folder.METRICS):
            self.put(name, b"x")
        self.follow()
        pathlib.Path(self.copy, "notes.txt").write_text("of a user")
        self.assertTrue(folder.discard(self.run_dir))
        items = list(copies.changes(self.run_dir, self.known))
        for item in items:
            copies.write(self.copy, *item)
        self.assertEqual(items[-1], (folder.FLAGS, None))
        self.assertEqual(content_of(self.copy), {"notes.txt": b"of a user"})

    def test_files_are_those_of_one_moment_although_the_run_goes_on(self):
        names = (folder.METRICS, checkpoint.NAME)
        for name in names:
            self.put(name, b"old")
        sent = {}
        for path, content in copies.changes(self.run_dir, self.known):
            sent[path] = content
            for name in names:
                self.put(name, b"new")
        self.assertEqual(sent, dict.fromkeys(names, b"old"))
        self.assertEqual([content for _, content in self.follow()], [b"new", b"new"])

    def test_a_result_comes_last_however_coarse_the_clock(self):
        for name in (folder.RESULT, folder.METRICS, f"baseline/{folder.RESULT}", "model.keras"):
            self.put(name, b"x")
            os.utime(os.path.join(self.run_dir, name), ns=(10**9, 10**9))
        paths = [path for path, _ in copies.changes(self.run_dir, {})]
        self.assertCountEqual(paths[:2], [folder.METRICS, "model.keras"])
        self.assertCountEqual(paths[2:], [folder.RESULT, f"baseline/{folder.RESULT}"])

    def test_temporary_files_of_a_killed_process_go(self):
        left = f"baseline/metrics.csv.{'0' * 32}.tmp"
        for name in (folder.FLAGS, left, "mine.tmp"):
            self.put(name, b"x")
        copies.tidy(self.run_dir)
        copies.tidy(os.path.join(self.run_dir, "new"))
        names = {folder.FLAGS, "mine.tmp", "baseline", "new"}
        self.assertEqual(content_of(self.run_dir).keys(), names)
        with folder.only_process(self.run_dir):
            with self.assertRaisesRegex(UserError, "Another process is training"):
                copies.tidy(self.run_dir)

    def test_links_and_temporary_files_stay(self):
        os.symlink("/etc/passwd", os.path.join(self.run_dir, "link"))
        self.put(f"result.json.{'0' * 32}.tmp", b"x")
        self.assertEqual(list(copies.changes(self.run_dir, {})), [])

    @parameterized.parameters("../x", "a/../../x", "/x", ".", "", "out/x")
    def test_a_path_that_leads_out_of_the_folder_is_refused(self, path):
        outside = self.create_tempdir().full_path
        os.symlink(outside, os.path.join(self.copy, "out"))
        for content in (b"x", None, "flags.cfg"):
            pathlib.Path(self.copy, "flags.cfg").touch()
            with self.assertRaisesRegex(UserError, "a file outside of the folder"):
                copies.write(self.copy, path, content)
        with self.assertRaisesRegex(UserError, "a file outside of the folder"):
            copies.write(self.copy, "flags.cfg", path or "..")
        self.assertEqual(os.listdir(outside), [])

    def test_a_folder_in_which_another_process_trains_is_left_alone(self):
        with folder.only_process(self.copy):
            with self.assertRaisesRegex(UserError, "Another process is training"):
                copies.write(self.copy, "flags.cfg", b"x")
        self.assertEqual(os.listdir(self.copy), [])


if __name__ == "__main__":
    absltest.main()
