# SPDX-License-Identifier: Apache-2.0
"""Real sweeps: stopped, killed and resumed, and with runs that fail."""

import contextlib
import functools
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile

import pytest
from absl import flags
from absl.testing import absltest
from commands import ROOT, ThisProcess, read, wait_for

from ssl_noisy import sweep
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint, folder
from ssl_noisy.sweeps import conduct, tables

SMALL = (
    "--dataset=digits",
    "--method=supervised",
    "--network=small_cnn",
    "--batch_size=8",
    "--steps=60",
    "--steps_per_epoch=30",
    "--noplots",
)
OVER = (
    "--checkpoint_seconds=0",  # after every step, which makes the steps slow enough to stop
    "--over=num_labels=20,40",
    "--over=seed=1:3",
    "--max_parallel=2",
    "--target_accuracy=50",
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


class Stubborn(ThisProcess):
    """A pool whose runs never end. The user presses Ctrl-C, and again once it is asked to stop."""

    is_closed = False

    def wait(self, seconds):
        signal.raise_signal(signal.SIGINT)
        return []

    def stop(self):
        signal.raise_signal(signal.SIGINT)

    def close(self):
        self.is_closed = True


def here(sweep_dir, pool=None):
    """Trains the sweep of `OVER` in this process, or in a pool."""
    values = flags.FlagValues()
    sweep.define_flags(values)
    wanted = sweep.read_flags(["sweep", *SMALL, *OVER, f"--sweep_dir={sweep_dir}"], values)
    with contextlib.redirect_stdout(io.StringIO()):
        conduct.conduct(
            sweep_dir,
            wanted.swept,
            conduct.Known(sweep_dir, wanted.runs),
            lambda parallel, lock: pool or ThisProcess(),
            parallel=1,
            target=wanted.target,
        )


@functools.cache
def undisturbed():
    """Returns the folder of the sweep that nobody stopped, the same for all tests."""
    made = tempfile.TemporaryDirectory()
    path = os.path.join(made.name, "sweep")
    here(path)
    return path, made  # which removes the folder when this process ends


def children(process):
    text = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


class SweepRunTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.create_tempdir().full_path, "sweep")

    def start(self, *arguments):
        process = start(self.dir, *arguments)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def rows(self, path=None):
        return {row["name"]: row for row in tables.read(path or self.dir)}

    def unfinished(self):
        """Returns the folders of the runs that have a checkpoint and no result."""
        found = pathlib.Path(self.dir).glob(f"runs/*/{checkpoint.NAME}")
        return [path.parent for path in found if not (path.parent / folder.RESULT).exists()]

    def train_until(self, num_finished, process=None):
        """Returns the process of a sweep with finished runs and another one in its first epoch.

        A run in its last steps might end before a signal reaches it.
        """
        process = process or self.start(*OVER)

        def condition():
            finished = list(pathlib.Path(self.dir).glob(f"runs/*/{folder.RESULT}"))
            begun = [path for path in self.unfinished() if not (path / folder.METRICS).exists()]
            return len(finished) >= num_finished and begun

        wait_for(process, condition)
        return process

    def stop(self, process, signum):
        """Stops a sweep and checks that it is saved."""
        workers = children(process)
        self.assertLen(workers, 2)
        process.send_signal(signum)
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 128 + signum, errors)
        self.assertRegex(
            errors,
            r"^\nStopped with [1-3] of 4 runs finished\. The sweep is saved in .*\. Run the same "
            r"command to resume\.\n$",
        )
        for pid in workers:
            self.assertFalse(os.path.exists(f"/proc/{pid}"))
        self.assertNotEmpty(self.unfinished())
        statuses = {row["status"] for row in self.rows().values()}
        self.assertEqual(statuses, {"finished", "missing"})
        self.assertEqual(json.loads(read(self.dir, "state.json")).keys(), self.finished())

    def finished(self):
        return {name for name, row in self.rows().items() if row["status"] == "finished"}

    def resume(self):
        """Resumes a sweep, and compares all results with those of the undisturbed one."""
        resumed = [path.name for path in self.unfinished()]
        again = self.start(*OVER)
        out, errors = again.communicate()
        self.assertEqual(again.returncode, 0, errors)
        self.assertIn("4 of 4 runs finished", out)
        for name in resumed:
            log = read(self.dir, f"logs/{name}.log")
            self.assertTrue(re.search(r"resuming at step \d+$", log, re.MULTILINE), log)
        expected, _ = undisturbed()
        rows, others = self.rows(), self.rows(expected)
        self.assertLen(rows, 4)
        for name, row in rows.items():
            differing = {key for key in row if row[key] != others[name][key]}
            self.assertLessEqual(differing, {"seconds", "attempts"})
            for file in (folder.METRICS, folder.LABELS, folder.RESULT):
                path = os.path.join("runs", name, file)
                self.assertEqual(read(self.dir, path), read(expected, path), path)
            events = pathlib.Path(self.dir, "runs", name, "tensorboard")
            self.assertLen(list(events.glob("*.hparams")), 1)
        for file in ("summary.csv", "summary.md"):
            self.assertEqual(read(self.dir, file), read(expected, file))
        for file in ("budget_curve.png", "budget_curve.pdf"):
            self.assertGreater(os.path.getsize(os.path.join(self.dir, file)), 1000)

    @pytest.mark.slow
    def test_a_sweep_that_is_stopped_and_killed_has_the_results_of_an_undisturbed_one(self):
        process = self.train_until(num_finished=0)
        with self.assertRaisesRegex(UserError, "Another process is training in"):
            here(self.dir)
        self.stop(self.train_until(num_finished=1, process=process), signal.SIGINT)
        os.killpg(self.train_until(num_finished=2).pid, signal.SIGKILL)
        # The workers save and exit; the new sweep waits for them.
        self.resume()

    def test_a_second_ctrl_c_ends_the_workers_at_once_and_frees_the_folder(self):
        pool = Stubborn()
        with self.assertRaises(KeyboardInterrupt):
            here(self.dir, pool)
        self.assertTrue(pool.is_closed)
        with folder.only_process(self.dir):
            self.assertEmpty(self.finished())

    @pytest.mark.slow
    def test_a_run_that_fails_takes_only_itself_down(self):
        code = self.create_tempfile(
            "own.py",
            "import os, signal\n\n\n"
            "def dies(image_shape, num_classes):\n"
            "    print('about to die', flush=True)\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n",
        ).full_path
        table = self.create_tempfile(
            content="network,learning_rate,num_labels\n"
            f"{code}:dies,0.03,20\nsmall_cnn,0.03,20\nsmall_cnn,1e30,20\n"
        ).full_path
        process = self.start(f"--over_file={table}", "--max_parallel=2")
        out, errors = process.communicate()
        self.assertEqual(process.returncode, 2, errors)
        self.assertRegex(errors, r"^ssl_noisy.sweep: 2 runs failed: .*\n$")
        self.assertIn("trying again", out)
        found = list(self.rows().values())
        self.assertEqual([row["status"] for row in found], ["failed", "finished", "failed"])
        self.assertEqual([row["attempts"] for row in found], [2, 1, 1])
        self.assertEqual(found[0]["reason"], "killed by SIGKILL")
        self.assertRegex(found[2]["reason"], "not finite")
        self.assertIsNone(found[0]["test_accuracy_last"])
        state = json.loads(read(self.dir, "state.json"))
        self.assertIn("about to die", state[found[0]["name"]]["last_lines"])


if __name__ == "__main__":
    absltest.main()
