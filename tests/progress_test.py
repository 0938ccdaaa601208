# SPDX-License-Identifier: Apache-2.0
import io
import os
from unittest import mock

import commands
import tensorflow as tf
from absl.testing import absltest
from tensorboardX.proto import event_pb2

from ssl_noisy import files
from ssl_noisy.runs import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class ProgressTest(absltest.TestCase):
    def test_plain_lines_only_at_the_end_of_an_epoch(self):
        stream = io.StringIO()
        shown = progress.Progress(100, "fixmatch", stream)
        self.assertFalse(shown.is_due())
        shown.show(10, {"loss": 1.5})
        shown.accuracy = 0.875
        shown.show(50, {"supervised_loss": 2.0, "loss": 1.25, "mask_rate": 0.5}, is_final=True)
        lines = stream.getvalue().splitlines()
        self.assertLen(lines, 1)
        self.assertRegex(
            lines[0],
            r"^fixmatch 50/100  \d+\.\d steps/s  0:00:\d\d left  test_accuracy 87.50%  "
            r"loss 1.25  mask_rate 0.5  supervised_loss 2$",
        )

    def test_a_terminal_gets_one_line_that_rewrites_itself(self):
        stream = Terminal()
        shown = progress.Progress(100, "fixmatch", stream, interval=0.0)
        self.assertTrue(shown.is_due())
        shown.show(1, {"loss": 2.0})
        shown.show(2, {"loss": 1.0}, is_final=True)
        self.assertEqual(stream.getvalue().count("\n"), 1)
        self.assertEqual(stream.getvalue().count("\r"), 2)

    def test_days_are_days(self):
        stream = io.StringIO()
        shown = progress.Progress(1_000_000, "fixmatch", stream)
        with mock.patch.object(progress.time, "monotonic", side_effect=[0.0, 1.0]):
            shown.show(1, {})
            shown.show(11, {}, is_final=True)
        self.assertIn("10.0 steps/s  1 day, 3:46:38 left", stream.getvalue())


class MetricsTest(absltest.TestCase):
    def test_metrics_are_written_whole(self):
        folder = self.create_tempdir().full_path
        progress.write_metrics(folder, [{"step": 1, "loss": 0.1}, {"step": 2, "loss": None}])
        with open(os.path.join(folder, "metrics.csv")) as file:
            self.assertEqual(file.read(), "step,loss\n1,0.1\n2,\n")

    def events(self, folder):
        """Reads the events of each file, in the order in which TensorBoard reads the files."""
        found = []
        for name in sorted(os.listdir(os.path.join(folder, "tensorboard"))):
            self.assertIn("tfevents", name)
            path = os.path.join(folder, "tensorboard", name)
            records = tf.data.TFRecordDataset(path).as_numpy_iterator()  # checks the checksums
            found.append([event_pb2.Event.FromString(record) for record in records])
        return found

    def test_tensorboard_events_are_written(self):
        folder = self.create_tempdir().full_path
        board = progress.TensorBoard(folder)
        board.write({"step": 3, "loss": 0.5, "pseudo_label_accuracy": None})
        board.close()
        progress.TensorBoard(folder, done=3).write({"step": 4, "loss": 0.25})
        (first, second) = self.events(folder)
        self.assertEqual([event.file_version for event in first], ["brain.Event:2", ""])
        (value,) = first[1].summary.value
        self.assertEqual((first[1].step, value.tag, value.simple_value), (3, "loss", 0.5))
        # A start at a step voids the events from there on, those of a run that was killed.
        self.assertEqual(second[1].session_log.status, event_pb2.SessionLog.START)
        self.assertEqual([event.step for event in second], [0, 4, 4])

    def test_events_that_cannot_be_written(self):
        path = self.create_tempfile().full_path
        with self.assertRaisesRegex(files.WriteError, "Cannot write"):
            progress.TensorBoard(path)
        board = progress.TensorBoard(self.create_tempdir().full_path)
        with commands.largest_file(100), self.assertRaisesRegex(files.WriteError, "tfevents"):
            board.write({f"loss_{i}": 0.5 for i in range(100)} | {"step": 1})


class OutputTest(absltest.TestCase):
    def test_a_reader_that_leaves_ends_the_lines_without_a_word(self):
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream:
            output = progress.Output(stream)
            output.write("heard\n")
            output.flush()
            self.assertEqual(os.read(reader, 100), b"heard\n")
            os.close(reader)
            with self.assertNoLogs(level="WARNING"):
                for _ in range(3):
                    output.write("lost\n")
                    output.flush()
            # What is left in the stream itself does not fail either, when Python ends it.
            stream.flush()

    def test_a_full_disk_ends_them_with_one_warning(self):
        with open("/dev/full", "w") as stream, self.assertLogs(level="WARNING") as logs:
            shown = progress.Progress(100, "fixmatch", stream)
            for step in (10, 20):
                shown.show(step, {}, is_final=True)
            stream.flush()
        self.assertLen(logs.output, 1)
        self.assertIn("No space left on device", logs.output[0])

    def test_a_closed_standard_output(self):
        with mock.patch.object(progress.sys, "stdout", None):
            shown = progress.Progress(100, "fixmatch")
            shown.note("nobody reads this")
            self.assertFalse(shown.is_live)

    def test_it_is_the_stream_otherwise(self):
        stream = Terminal()
        output = progress.Output(stream)
        print("text", file=output)
        self.assertEqual(stream.getvalue(), "text\n")
        self.assertTrue(output.isatty())


if __name__ == "__main__":
    absltest.main()
