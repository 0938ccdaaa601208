# SPDX-License-Identifier: Apache-2.0
"""One run in two real processes, beside the same run in one."""

import csv
import os
import signal
import socket
from unittest import mock

import keras
import numpy as np
import pytest
from absl.testing import absltest
from commands import MistakeCase, call, read, start, wait_for

from ssl_noisy import batches, devices
from ssl_noisy.runs import checkpoint

SMALL = ("--dataset=digits", "--num_labels=40", "--network=small_cnn", "--method=elr", "--noplots")
SMALL += ("--num_devices=2", "--checkpoint_seconds=0", "--steps=80", "--steps_per_epoch=40")
FINISHED = "result.json"


class LaunchTest(MistakeCase):
    def test_devices_that_the_processes_cannot_share(self):
        for arguments, message in (
            (["--num_devices=3"], "multiple of --num_processes=2: it counts the devices of all"),
            (["--num_devices=2", "--max_seconds=9"], "--max_seconds does not work with --num_proc"),
        ):
            self.assertIn(message, self.refuse("--num_processes=2", "--batch_size=6", *arguments))

    def test_processes_that_nobody_launched(self):
        message = self.refuse("--num_processes=2", "--num_devices=2")
        if keras.backend.backend() == "jax":
            self.assertIn("The 2 processes of --num_processes do not find each other", message)
            self.assertIn("Start them with srun, or set KERAS_DISTRIBUTION_JOB_ADD", message)
        else:
            self.assertIn("needs JAX: set KERAS_BACKEND=jax", message)


class PartsTest(absltest.TestCase):
    def test_each_process_draws_its_part_of_a_batch(self):
        made = batches.IndexBatches({"a": np.arange(8)}, {"a": 4}, true_labels=np.arange(8) * 10)
        ((whole,), labels), parts = (list(made[0][0].values()), made[0][1]["a"]), []
        for process in range(2):
            distribution = mock.Mock(num_processes=2, data_shard_id=process)
            with mock.patch.object(keras.distribution, "distribution", return_value=distribution):
                x, y = made[0]
            parts.append((x["a"], y["a"]))
        for values, number in ((whole, 0), (labels, 1)):
            np.testing.assert_array_equal([part[number] for part in parts], values.reshape(2, 2))
        self.assertEqual(devices.largest(7), 7)


if keras.backend.backend() == "jax":

    def launch(*arguments):
        """Starts the two processes of a run, and returns them."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        made = []
        for process in range(2):
            variables = {"JOB_ADDRESSES": address, "NUM_PROCESSES": "2", "PROCESS_ID": str(process)}
            variables = {f"KERAS_DISTRIBUTION_{k}": v for k, v in variables.items()}
            with mock.patch.dict(os.environ, variables):
                made.append(start(*SMALL, "--num_processes=2", *arguments))
        return made

    class TwoProcessesTest(absltest.TestCase):
        @pytest.mark.slow
        def test_a_run_stopped_in_one_process_stops_resumes_and_equals_that_of_one(self):
            one, two = (os.path.join(self.create_tempdir().full_path, name) for name in "ab")
            processes = launch(f"--run_dir={two}")
            wait_for(processes[0], lambda: os.path.exists(os.path.join(two, checkpoint.NAME)))
            processes[1].send_signal(signal.SIGTERM)  # the process that writes gets none
            (out, errors), (_, other_errors) = (process.communicate() for process in processes)
            codes = [process.returncode for process in processes]
            self.assertEqual(codes, [143, 143], errors + other_errors)
            self.assertIn(f"The run is saved in {two}. Run the same command to resume.", errors)
            self.assertIn("Stopped with the first process.", other_errors)
            self.assertNotIn(FINISHED, os.listdir(two))
            processes = launch(f"--run_dir={two}")
            (out, errors), (other, other_errors) = (process.communicate() for process in processes)
            codes = [process.returncode for process in processes]
            self.assertEqual(codes, [0, 0], errors + other_errors)
            self.assertIn("resuming at step", out)
            self.assertNotIn("elr", other)
            code, _, errors = call(*SMALL, f"--run_dir={one}")
            self.assertEqual(code, 0, errors)
            for ours, theirs in zip(*(self.rows(folder) for folder in (one, two)), strict=True):
                self.assertEqual(ours.keys(), theirs.keys())
                for name, value in ours.items():
                    np.testing.assert_allclose(
                        float(theirs[name] or 0), float(value or 0), rtol=1e-4, err_msg=name
                    )

        def rows(self, folder):
            return list(csv.DictReader(read(folder, "metrics.csv").splitlines()))


if __name__ == "__main__":
    absltest.main()
