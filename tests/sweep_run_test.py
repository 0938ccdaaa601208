# SPDX-License-Identifier: Apache-2.0
"""Real sweeps: killed and resumed, and with runs that fail."""

import json
import os
import pathlib
import signal
import subprocess
import sys

from absl.testing import absltest
from commands import ROOT, call, read, wait_for

from ssl_noisy.runs import checkpoint, folder
from ssl_noisy.sweeps import tables

SMALL = (
    "--dataset=digits",
    "--method=supervised",
    "--network=small_cnn",
    "--batch_size=8",
    "--steps=60",
    "--steps_per_epoch=20",
    "--noplots",
)


def start(sweep_dir, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_noisy.sweep", *SMALL, f"--sweep_dir={sweep_dir}", *arguments],
        env={**os.environ, "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": "-1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class SweepRunTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.create_tempdir().full_path, "sweep")

    def rows(self):
        return {row["name"]: row for row in tables.read(self.dir)}

    def test_a_killed_sweep_resumes_to_the_results_of_single_runs(self):
        arguments = (
            "--checkpoint_seconds=0",
            "--over=num_labels=20,40",
            "--over=seed=1:3",
            "--max_parallel=2",
            "--target_accuracy=50",
        )
        process = start(self.dir, *arguments)
        self.addCleanup(process.communicate)
        wait_for(process, lambda: list(pathlib.Path(self.dir).glob(f"runs/*/{checkpoint.NAME}")))
        second = start(self.dir, *arguments)
        _, errors = second.communicate()
        self.assertEqual(second.returncode, 2)
        self.assertRegex(errors, r"^ssl_noisy.sweep: Another process is training in .*\n$")
        os.killpg(process.pid, signal.SIGKILL)

        # The workers of the killed sweep save and exit; the new sweep waits for them.
        again = start(self.dir, *arguments)
        out, errors = again.communicate()
        self.assertEqual(again.returncode, 0, errors)
        self.assertIn("4 of 4 runs finished", out)
        self.assertLen(self.rows(), 4)
        for name, row in self.rows().items():
            alone = os.path.join(self.create_tempdir().full_path, "run")
            flags = (f"--num_labels={row['num_labels']}", f"--seed={row['seed']}")
            code, _, errors = call(*SMALL, *flags, f"--run_dir={alone}")
            self.assertEqual(code, 0, errors)
            run_dir = os.path.join(self.dir, "runs", name)
            for file in (folder.METRICS, folder.LABELS, folder.RESULT):
                self.assertEqual(read(run_dir, file), read(alone, file), (name, file))
            self.assertLen(list(pathlib.Path(run_dir, "tensorboard").glob("*.hparams")), 1)
        for file in ("summary.csv", "summary.md", "budget_curve.png", "budget_curve.pdf"):
            self.assertGreater(os.path.getsize(os.path.join(self.dir, file)), 100)

    def test_a_run_that_fails_takes_only_itself_down(self):
        code = self.create_tempfile(
            "own.py",
            "import os, signal\nimport keras\n\n\n"
            "def fine(image_shape, num_classes):\n"
            "    layers = [keras.Input(image_shape), keras.layers.Flatten()]\n"
            "    return keras.Sequential([*layers, keras.layers.Dense(num_classes)])\n\n\n"
            "def dies(image_shape, num_classes):\n"
            "    print('about to die', flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n",
        ).full_path
        table = self.create_tempfile(
            content="network,learning_rate,num_labels\n"
            f"{code}:dies,0.03,20\n{code}:fine,1e30,20\n{code}:fine,0.03,20\n"
        ).full_path
        process = start(self.dir, f"--over_file={table}", "--steps=20", "--max_parallel=2")
        out, errors = process.communicate()
        self.assertEqual(process.returncode, 2, errors)
        self.assertRegex(errors, r"^ssl_noisy.sweep: 2 runs failed: .*\n$")
        self.assertIn("trying again", out)
        found = list(self.rows().values())
        self.assertEqual([row["status"] for row in found], ["failed", "failed", "finished"])
        self.assertEqual([row["attempts"] for row in found], [2, 1, 1])
        self.assertEqual(found[0]["reason"], "killed by SIGKILL")
        self.assertRegex(found[1]["reason"], "not finite")
        self.assertIsNone(found[0]["test_accuracy_last"])
        state = json.loads(read(self.dir, "state.json"))
        self.assertIn("about to die", state[found[0]["name"]]["last_lines"])


if __name__ == "__main__":
    absltest.main()
