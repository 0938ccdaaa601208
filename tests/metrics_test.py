# SPDX-License-Identifier: Apache-2.0
import os

import commands
import tensorflow as tf
from absl.testing import absltest
from tensorboardX.proto import event_pb2

from ssl_noisy import files
from ssl_noisy.runs import metrics


class MetricsTest(absltest.TestCase):
    def test_csv(self):
        folder = self.create_tempdir().full_path
        metrics.write_metrics(folder, [{"step": 1, "loss": 0.1}, {"step": 2, "loss": None}])
        with open(os.path.join(folder, "metrics.csv")) as file:
            self.assertEqual(file.read(), "step,loss\n1,0.1\n2,\n")

    def events(self, folder):
        """Returns the events of each file, in the order in which TensorBoard reads the files."""
        found = []
        for name in sorted(os.listdir(os.path.join(folder, "tensorboard"))):
            self.assertIn("tfevents", name)
            path = os.path.join(folder, "tensorboard", name)
            records = tf.data.TFRecordDataset(path).as_numpy_iterator()  # verifies the checksums
            found.append([event_pb2.Event.FromString(record) for record in records])
        return found

    def test_tensorboard_events_are_written(self):
        folder = self.create_tempdir().full_path
        board = metrics.TensorBoard(folder)
        board.write({"step": 3, "loss": 0.5, "pseudo_label_accuracy": None})
        board.close()
        metrics.TensorBoard(folder, done=3).write({"step": 4, "loss": 0.25})
        (first, second) = self.events(folder)
        self.assertEqual([event.file_version for event in first], ["brain.Event:2", ""])
        (value,) = first[1].summary.value
        self.assertEqual((first[1].step, value.tag, value.simple_value), (3, "loss", 0.5))
        # A session start at step 4 discards the later events of a killed run.
        self.assertEqual(second[1].session_log.status, event_pb2.SessionLog.START)
        self.assertEqual([event.step for event in second], [0, 4, 4])

    def test_events_that_cannot_be_written(self):
        path = self.create_tempfile().full_path
        with self.assertRaisesRegex(files.WriteError, "Cannot write"):
            metrics.TensorBoard(path)
        board = metrics.TensorBoard(self.create_tempdir().full_path)
        with commands.largest_file(100), self.assertRaisesRegex(files.WriteError, "tfevents"):
            board.write({f"loss_{i}": 0.5 for i in range(100)} | {"step": 1})


if __name__ == "__main__":
    absltest.main()
