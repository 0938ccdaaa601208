# SPDX-License-Identifier: Apache-2.0
import os

import numpy as np
import toy
from absl.testing import absltest, parameterized

from ssl_noisy import checkpoint


class CheckpointTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.learner, self.true_labels = toy.learner("supervised")
        toy.fit(self.learner, self.true_labels, steps=1)

    def path(self, name=checkpoint.NAME):
        return os.path.join(self.folder, name)

    def other(self):
        made, _ = toy.learner("supervised", seed=5)
        made.optimizer.build(made.trainable_variables)
        return made

    def test_everything_comes_back(self):
        checkpoint.save(self.folder, self.learner, {"step": 1, "history": [{"a": 0.1}]})
        other = self.other()
        record = checkpoint.restore(self.folder, other)
        self.assertEqual(record, {"step": 1, "history": [{"a": 0.1}]})
        for a, b in zip(toy.state(self.learner), toy.state(other)):
            np.testing.assert_array_equal(a, b)

    def test_running_metrics_come_back(self):
        checkpoint.save(self.folder, self.learner, {})
        other = self.other()
        checkpoint.restore(self.folder, other)
        self.assertEqual(
            float(other.trackers["supervised_loss"].result()),
            float(self.learner.trackers["supervised_loss"].result()),
        )

    def test_the_images_are_not_in_it(self):
        checkpoint.save(self.folder, self.learner, {})
        with open(self.path(), "rb") as file:
            self.assertNotIn(self.learner.task.images[:2].tobytes(), file.read())

    def test_no_checkpoint_is_none(self):
        self.assertIsNone(checkpoint.restore(self.folder, self.learner))

    @parameterized.named_parameters(
        ("truncated", lambda data: data[: len(data) // 2]),
        ("flipped", lambda data: data[:900] + bytes([data[900] ^ 255]) + data[901:]),
        ("empty", lambda data: b""),
        ("another_file", lambda data: b"not a checkpoint"),
    )
    def test_a_damaged_one_falls_back_to_the_previous_and_says_so(self, damage):
        checkpoint.save(self.folder, self.learner, {"step": 1})
        weights = self.learner.network.trainable_variables[0].numpy()
        toy.fit(self.learner, steps=1, start=1)
        checkpoint.save(self.folder, self.learner, {"step": 2})
        with open(self.path(), "rb") as file:
            data = file.read()
        with open(self.path(), "wb") as file:
            file.write(damage(data))
        other = self.other()
        with self.assertLogs(level="WARNING") as logs:
            self.assertEqual(checkpoint.restore(self.folder, other), {"step": 1})
        self.assertLen(logs.output, 1)
        self.assertIn("is damaged", logs.output[0])
        np.testing.assert_array_equal(other.network.trainable_variables[0].numpy(), weights)

    def test_only_the_previous_one_left(self):
        checkpoint.save(self.folder, self.learner, {"step": 1})
        os.rename(self.path(), self.path(checkpoint.PREVIOUS_NAME))
        self.assertEqual(checkpoint.restore(self.folder, self.other()), {"step": 1})

    def test_none_that_can_be_used_is_an_error(self):
        checkpoint.save(self.folder, self.learner, {"step": 1})
        other, _ = toy.learner("supervised", ema_momentum=0.0)
        other.optimizer.build(other.trainable_variables)
        with (
            self.assertLogs(level="WARNING"),
            self.assertRaisesRegex(
                checkpoint.CheckpointError, "No checkpoint in .* can be read. Remove"
            ),
        ):
            checkpoint.restore(self.folder, other)


if __name__ == "__main__":
    absltest.main()
