# SPDX-License-Identifier: Apache-2.0
import os

import commands
import numpy as np
import toy
from absl.testing import absltest, parameterized

from ssl_noisy import files
from ssl_noisy.runs import checkpoint


class CheckpointTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.learner, true_labels = toy.learner("supervised")
        toy.fit(cls.learner, true_labels, steps=1)
        cls.after_one_step = toy.state(cls.learner)

    def setUp(self):
        super().setUp()
        for variable, value in zip(toy.variables(self.learner), self.after_one_step, strict=True):
            variable.assign(value)
        self.folder = self.create_tempdir().full_path

    def path(self, name=checkpoint.NAME):
        return os.path.join(self.folder, name)

    def other(self):
        made, _ = toy.learner("supervised", seed=5)
        made.optimizer.build(made.trainable_variables)
        return made

    def test_the_whole_state_is_restored(self):
        checkpoint.save(self.folder, self.learner, {"step": 1, "history": [{"a": 0.1}]})
        other = self.other()
        metadata = checkpoint.restore(self.folder, other)
        self.assertEqual(metadata, {"step": 1, "history": [{"a": 0.1}]})
        for a, b in zip(toy.state(self.learner), toy.state(other)):
            np.testing.assert_array_equal(a, b)

    def test_running_metrics_are_restored(self):
        checkpoint.save(self.folder, self.learner, {})
        other = self.other()
        checkpoint.restore(self.folder, other)
        self.assertEqual(
            float(other.trackers["supervised_loss"].result()),
            float(self.learner.trackers["supervised_loss"].result()),
        )

    def test_images_are_not_stored(self):
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
    def test_a_damaged_checkpoint_falls_back_to_the_previous_with_a_warning(self, damage):
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

    def test_only_the_previous_checkpoint_exists(self):
        checkpoint.save(self.folder, self.learner, {"step": 1})
        os.rename(self.path(), self.path(checkpoint.PREVIOUS_NAME))
        self.assertEqual(checkpoint.restore(self.folder, self.other()), {"step": 1})

    def test_two_unusable_checkpoints_are_an_error_that_names_both(self):
        for step in (1, 2):
            checkpoint.save(self.folder, self.learner, {"step": step})
        other, _ = toy.learner("supervised", ema_momentum=0.0)
        other.optimizer.build(other.trainable_variables)
        with (
            self.assertNoLogs(level="WARNING"),  # the error contains all, in one line
            self.assertRaises(checkpoint.CheckpointError) as caught,
        ):
            checkpoint.restore(self.folder, other)
        both = f"{self.path()} and {self.path(checkpoint.PREVIOUS_NAME)}"
        self.assertEndsWith(str(caught.exception), f"Delete {both} to train from the start.")
        self.assertIn(f"{self.path()} belongs to another network or method", str(caught.exception))

    def rewrite(self, metadata=None, **changes):
        """Rewrites the checkpoint as a valid file with other content."""
        with np.load(self.path()) as archive:
            state = dict(archive)
        if metadata is not None:
            state["record"] = np.array(metadata)
        for key, change in changes.items():
            state[key] = change(state[key])
        np.savez(self.path(), **state)

    @parameterized.named_parameters(
        ("no_json", "{", "its metadata is not JSON"),
        ("a_list", "[]", "its metadata does not match step 2 of"),
        ("no_step", '{"history": []}', "its metadata does not match step 2 of"),
        ("a_negative_step", '{"step": -1, "history": []}', "its metadata does not match step 2 of"),
        ("another_step", '{"step": 3, "history": []}', "its metadata does not match step 2 of"),
        ("no_history", '{"step": 2}', "its metadata does not match step 2 of"),
        ("a_shorter_history", '{"step": 2, "history": []}', "does not match step 2 of"),
        ("rows_of_text", '{"step": 2, "history": ["row"]}', "does not match step 2 of"),
        (
            "another_row",
            '{"step": 2, "history": [{"step": 1, "epoch": 1, "test_accuracy": 0.5}]}',
            "does not match step 2 of",
        ),
        (
            "no_accuracy",
            '{"step": 2, "history": [{"step": 2, "epoch": 1, "test_accuracy": NaN}]}',
            "does not match step 2 of",
        ),
    )
    def test_impossible_metadata(self, metadata, message):
        toy.fit(self.learner, steps=1, start=1)
        right = {"step": 2, "history": [{"step": 2, "epoch": 1, "test_accuracy": 0.5}]}
        checkpoint.save(self.folder, self.learner, right)
        self.assertEqual(checkpoint.restore(self.folder, self.other(), 8, 2), right)
        self.rewrite(metadata)
        with self.assertRaisesRegex(checkpoint.CheckpointError, f"{message}.* Delete"):
            checkpoint.restore(self.folder, self.other(), 8, 2)

    def test_a_step_beyond_the_end(self):
        checkpoint.save(self.folder, self.learner, {"step": 1, "history": []})
        with self.assertRaisesRegex(checkpoint.CheckpointError, "does not match step 1 of 0"):
            checkpoint.restore(self.folder, self.other(), 0, 8)

    @parameterized.named_parameters(
        ("another_type", lambda v: v.astype("float64"), "belongs to another network or method"),
        ("not_finite", lambda v: v * np.nan, "a value is not finite"),
        ("objects", lambda v: np.array([{}]), "Object arrays are pickles"),
        ("another_shape", lambda v: v[:-1], "belongs to another network or method"),
    )
    def test_impossible_values(self, change, message):
        checkpoint.save(self.folder, self.learner, {})
        with np.load(self.path()) as archive:
            key = next(k for k in archive if archive[k].dtype == "float32" and archive[k].ndim)
        self.rewrite(**{key: change})
        before, other = toy.state(self.other()), self.other()
        with self.assertRaisesRegex(checkpoint.CheckpointError, message):
            checkpoint.restore(self.folder, other)
        for a, b in zip(before, toy.state(other), strict=True):
            np.testing.assert_array_equal(a, b)  # nothing was restored

    def test_a_failed_write_leaves_earlier_checkpoints(self):
        for step in (1, 2):
            checkpoint.save(self.folder, self.learner, {"step": step})
        names = sorted(os.listdir(self.folder))
        with commands.largest_file(10_000), self.assertRaisesRegex(files.WriteError, self.path()):
            checkpoint.save(self.folder, self.learner, {"step": 3})
        self.assertEqual(sorted(os.listdir(self.folder)), names)
        self.assertEqual(checkpoint.restore(self.folder, self.other()), {"step": 2})
        os.remove(self.path())
        self.assertEqual(checkpoint.restore(self.folder, self.other()), {"step": 1})


if __name__ == "__main__":
    absltest.main()
