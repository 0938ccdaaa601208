# SPDX-License-Identifier: Apache-2.0
"""The benchmark for GPUs, from end to end with tiny sizes on whatever there is."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from absl.testing import absltest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEER = 'python3 -c "print(\'{\\"seconds_per_step\\": 0.5}\')"'


class GpuBenchmarkTest(absltest.TestCase):
    @pytest.mark.slow
    def test_every_part_is_in_one_file(self):
        output = pathlib.Path(self.create_tempdir().full_path) / "gpu.json"
        # Supervised training: FixMatch's strong augmentation takes JAX much longer to compile.
        sizes = ["--method=supervised", "--network=small_cnn", "--num_labels=20", "--batch_size=4"]
        process = subprocess.run(
            [ROOT / "benchmarks" / "gpu.sh", "digits", output, *sizes]
            + ["--timed_steps=32", "--minutes=0", f"--peer={PEER}"],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            },
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        found = json.loads(output.read_text())
        self.assertEqual(found["backend"], "jax")
        half, host = found["agreement"]["largest_relative_differences"].values()
        self.assertBetween(half, 0, 0.05)
        self.assertLess(host, 1e-3)
        self.assertLen(found["agreement"]["losses"]["float32"], 3)
        float32, half, several = found["steps"].values()
        self.assertIn("--precision=float32", float32["flags"])
        self.assertIn("--precision=mixed_bfloat16", half["flags"])
        self.assertIn("--steps_per_execution=16", several["flags"])
        self.assertIsNone(half["share_of_floor"])
        self.assertGreater(half["operations_per_step"], 0)
        (peer,) = found["peers"]
        fastest = min(one["seconds_per_step"] for one in found["steps"].values())
        self.assertAlmostEqual(peer["ratio"], fastest / 0.5)
        self.assertBetween(found["training"]["test_accuracy"]["last"], 0, 1)
        # The least, ten evaluations of one call: how many fit into a time depends on the machine.
        self.assertIn("--steps=160", found["training"]["flags"])


if __name__ == "__main__":
    absltest.main()
