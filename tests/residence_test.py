# SPDX-License-Identifier: Apache-2.0
"""Images on the device and on the host. That methods do not notice is tested with each method."""

import subprocess
from unittest import mock

import keras
import numpy as np
import toy
from absl.testing import absltest, parameterized
from keras import ops

from ssl_noisy import machine, residence, work

GIGABYTE = 120 * 64 / 1e9  # the images of `toy.task`


def place(memory=None, **fields):
    """Returns where the images of `toy.task` are, on a device with so many bytes."""
    with mock.patch.object(work, "device_memory", lambda: memory):
        return residence.of(toy.task(**fields)[0]).place


class PlaceTest(parameterized.TestCase):
    @parameterized.parameters(
        ("auto", None, 2 * 7680, "device"),  # just half of the memory
        ("auto", None, 2 * 7680 - 1, "host"),
        ("auto", None, None, "device"),
        ("auto", 1.01 * GIGABYTE, 100, "device"),
        ("auto", 0.99 * GIGABYTE, 10**9, "host"),
        ("device", None, 7680, "device"),
        ("device", None, None, "device"),
        ("host", None, 10**9, "host"),
    )
    def test_place(self, resident, limit, memory, expected):
        self.assertEqual(place(memory, resident=resident, resident_limit=limit), expected)

    def test_mistakes(self):
        with self.assertRaisesRegex(ValueError, "need 0.0 GB, .* Use resident=host"):
            place(7679, resident="device")
        with self.assertRaisesRegex(ValueError, "one of auto, device, host. Received: 'gpu'"):
            place(resident="gpu")

    def test_the_memory_of_a_cpu_is_that_of_the_machine(self):
        with mock.patch.object(machine, "accelerators", list):
            self.assertEqual(work.device_memory(), machine.memory())

    if keras.backend.backend() == "tensorflow":

        def test_the_memory_of_a_gpu_is_that_of_the_smallest_in_use(self):
            answer = subprocess.CompletedProcess([], 0, stdout="81559\n40960\n")
            visible = {"CUDA_VISIBLE_DEVICES": "0,2"}
            with (
                mock.patch.object(machine, "accelerators", lambda: ["gpu:0", "gpu:1"]),
                mock.patch.dict("os.environ", visible),
                mock.patch.object(subprocess, "run", return_value=answer) as run,
            ):
                self.assertEqual(work.device_memory(), 40960 * 2**20)
                self.assertEqual(run.call_args.args[0][-2:], ["-i", "0,2"])
                run.side_effect = FileNotFoundError
                self.assertIsNone(work.device_memory())


class OnHostTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.task, _ = toy.task(resident="host")
        self.data = residence.of(self.task)

    def test_a_step_takes_what_came_with_it_in_any_order(self):
        streams = {"labeled": np.array([7], "int32"), "unlabeled": np.array([3, 9, 3], "int32")}
        batch = {f"{name}_images": self.task.images[one] for name, one in streams.items()}
        with self.data.step(streams, batch):
            taken = ops.convert_to_numpy(self.data.take(np.array([3, 9, 9, 7, 4], "int32")))
        np.testing.assert_array_equal(taken[:4], self.task.images[[3, 9, 9, 7]])
        self.assertEqual(taken.dtype, "float32")
        self.assertTrue(np.isnan(taken[4]).all())  # no image of the step

    def test_without_a_step_it_takes_any(self):
        with self.data.step({"a": np.zeros(1, "int32")}, {"a_images": self.task.images[:1]}):
            pass
        taken = ops.convert_to_numpy(self.data.take(np.array([3, 119], "int32")))
        np.testing.assert_array_equal(taken, self.task.images[[3, 119]])

    def test_no_variable_has_the_images(self):
        self.assertEqual([tuple(v.shape) for v in self.data.variables], [(120,)])

    def test_a_batch_without_images_is_refused(self):
        learner, _ = toy.learner("supervised", resident="host")
        with self.assertRaisesRegex(ValueError, r"Received: x with the keys \['labeled'\]"):
            learner.train_on_batch({"labeled": np.arange(4)})
        toy.fit(learner, steps=1)


if __name__ == "__main__":
    absltest.main()
