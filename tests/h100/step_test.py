# SPDX-License-Identifier: Apache-2.0
"""The step compiled for an H100: no more kernels and bytes than `results/` has on record.

It needs `jax[cuda12]` of the recorded version, 3 GB, and takes 2 minutes a step:

    h100/bin/pip install pytest && h100/bin/python -m pytest -o addopts= tests/h100
"""

import json
import pathlib
import subprocess
import sys

import jax
from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RECORDED = json.loads((ROOT / "results" / "step_h100_compiled.json").read_text())
STEPS = {row["flags"]: row for row in RECORDED["runs"] if row["code"] == "after"}


class StepTest(parameterized.TestCase):
    def test_the_compiler_is_the_recorded_one(self):
        self.assertEqual(jax.__version__, RECORDED["jax"])

    @parameterized.parameters(*STEPS)
    def test_kernels_and_bytes_as_recorded(self, flags):
        process = subprocess.run(
            [sys.executable, ROOT / "benchmarks" / "h100.py", *flags.split()],
            capture_output=True,
            text=True,
        )
        self.assertEqual(process.returncode, 0, process.stderr)
        found = json.loads(process.stdout.splitlines()[-1])
        # The compiler combines some kernels in one way or another: 1% for that.
        for key in ("kernels", "gigabytes"):
            self.assertLessEqual(found[key], 1.01 * STEPS[flags][key], key)


if __name__ == "__main__":
    absltest.main()
