# SPDX-License-Identifier: Apache-2.0
"""Sweeps on a real Ray cluster of several nodes on this machine, some of which are lost."""

import contextlib
import io
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).resolve().parents[2])  # for the nodes
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no request to another server
os.environ["RAY_AUTH_MODE"] = "disabled"  # no token at home
os.environ["RAY_worker_niceness"] = "0"  # as a local sweep
os.environ["RAY_health_check_period_ms"] = "1000"  # a lost node is noticed after 5 s, not 15

import ray
from absl import flags
from absl.testing import absltest
from ray.cluster_utils import Cluster

from ssl_noisy import sweep
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint, folder
from ssl_noisy.runs.run import run
from ssl_noisy.sweeps import cluster, tables

sys.path.append(os.path.join(os.environ["PYTHONPATH"], "tests"))
from commands import wait_for  # noqa: E402

SMALL = ("--dataset=digits", "--method=supervised", "--network=small_cnn", "--batch_size=8")
SMALL += ("--num_labels=20", "--noplots", "--steps_per_epoch=15")
NEAR = "NEAR_THE_SWEEP"  # set on nodes that see the folder


def start(sweep_dir, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_noisy.sweep", *SMALL, f"--sweep_dir={sweep_dir}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def request(sweep_dir, *arguments):
    """Returns the `Request` of a command line."""
    values = flags.FlagValues()
    sweep.define_flags(values)
    return sweep.read_flags(["sweep", *SMALL, f"--sweep_dir={sweep_dir}", *arguments], values)


def family(pid):
    """Returns the ids of a process and its descendants."""
    found = [str(pid)]
    for parent in found:
        for file in pathlib.Path("/proc", parent, "task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has ended
                found += file.read_text().split()
    return [int(one) for one in found]


class ClusterTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # The paths of Unix sockets have at most 107 characters.
        temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        cls.addClassCleanup(shutil.rmtree, temporary, ignore_errors=True)
        # Also for the file that names the cluster of this machine, which may have another one.
        cls.enterClassContext(mock.patch.dict(os.environ, RAY_TMPDIR=temporary))
        head = {"num_cpus": 1, "include_dashboard": False}
        cls.cluster = Cluster(initialize_head=True, head_node_args=head)
        cls.addClassCleanup(cls.cluster.shutdown)

    def setUp(self):
        super().setUp()
        self.path = self.create_tempdir().full_path

    def add_node(self, **variables):
        """Adds a node with a CPU to the cluster, until the end of the test."""
        node = self.cluster.add_node(num_cpus=1, env_vars={"TMPDIR": self.path, **variables})

        def remove():
            if node in self.cluster.list_all_nodes():
                self.cluster.remove_node(node)

        self.addCleanup(remove)
        return node

    def lose(self, node):
        """Ends all processes of a node with SIGKILL, as if its machine lost power."""
        for process in node.all_processes["raylet"]:
            for pid in family(process.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def training(self, sweep_dir):
        """Returns the names of the runs that have a checkpoint and no result."""
        runs = pathlib.Path(sweep_dir, "runs").glob("*")
        return [
            run.name
            for run in runs
            if (run / checkpoint.NAME).exists() and not (run / folder.RESULT).exists()
        ]

    def check_equal(self, sweep_dir, other_dir, run_dir):
        """Asserts that a run of two sweeps has the same files and results."""
        one, other = pathlib.Path(sweep_dir, run_dir), pathlib.Path(other_dir, run_dir)
        self.assertEqual(set(os.listdir(one)), set(os.listdir(other)))
        for name in (folder.METRICS, folder.RESULT, folder.LABELS, folder.EXAMPLES):
            self.assertEqual((one / name).read_bytes(), (other / name).read_bytes(), name)

    def test_lost_nodes_cost_no_result_with_and_without_a_shared_folder(self):
        class Slot(cluster.Slot):
            def sees_sweep(self):
                return NEAR in os.environ and super().sees_sweep()

        # The first node, which stays, does not see the folder either.
        lost = [self.add_node(**{NEAR: "1"}), self.add_node()]
        flags = ("--steps=600", "--over=seed=0:4")  # long enough that three train at a time
        sweep_dir = os.path.join(self.path, "sweep")
        ended = threading.Event()

        def lose():
            while len(self.training(sweep_dir)) < 3 and not ended.is_set():
                time.sleep(0.01)
            for node in lost:
                self.lose(node)

        thread, out = threading.Thread(target=lose), io.StringIO()
        with mock.patch.object(cluster, "Slot", Slot), contextlib.redirect_stdout(out):
            thread.start()
            try:
                sweep.main(request(sweep_dir, f"--ray_address={self.cluster.address}", *flags))
            finally:
                ended.set()
                thread.join()
        self.assertEqual(out.getvalue().count("its node was lost; trying again"), 2, out.getvalue())
        rows = tables.read(sweep_dir)
        self.assertEqual([row["status"] for row in rows], ["finished"] * 4)
        self.assertEqual(sorted(row["attempts"] for row in rows), [1, 1, 2, 2])
        others = {one.name: one.settings for one in request(f"{self.path}/here", *flags).runs}
        whole = next(row for row in rows if row["attempts"] == 1)
        for row in (whole, *(row for row in rows if row["attempts"] == 2)):
            run(others[row["name"]])
            self.check_equal(sweep_dir, f"{self.path}/here", row["run_dir"])
            log = pathlib.Path(sweep_dir, "logs", f"{row['name']}.log").read_text()
            self.assertEqual("resuming at step" in log, row is not whole, log)
            self.assertNotIn("/ssl_noisy_", log)  # the folder on the node
        # One of the lost nodes has trained in a folder of its own.
        left = pathlib.Path(self.path).glob(f"ssl_noisy_*/*/{checkpoint.NAME}")
        self.assertLen(list(left), 1)
        self.assertNotIn("nodes.token", os.listdir(sweep_dir))

    def test_ctrl_c_saves_all_runs_and_gives_up_those_that_wait(self):
        self.add_node()
        sweep_dir = os.path.join(self.path, "stopped")
        process = start(
            sweep_dir,
            *(f"--ray_address={self.cluster.address}", "--max_parallel=3"),
            *("--steps=1000000", "--over=seed=0:4"),
        )
        self.addCleanup(process.communicate)
        wait_for(process, lambda: len(self.training(sweep_dir)) == 2)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
        self.assertEqual(process.returncode, 130, errors)
        self.assertIn("Stopped with 0 of 4 runs finished.", errors)
        self.assertEqual(out.count(": stopped"), 3)
        self.assertLen(self.training(sweep_dir), 2)

    def test_no_cluster_is_one_line(self):
        sweep_dir = os.path.join(self.path, "none")
        for address in ("127.0.0.1:1", "nowhere"):
            wanted = request(sweep_dir, "--over=seed=0:2", f"--ray_address={address}")
            message = f"^No Ray cluster at --ray_address={address}: .*$"
            with self.assertRaisesRegex(UserError, message):
                sweep.main(wanted)
        self.assertFalse(os.path.exists(sweep_dir))

    def test_a_run_that_fits_on_no_node_is_a_mistake(self):
        self.addCleanup(ray.shutdown)
        with self.assertRaisesRegex(UserError, "^No node of the Ray cluster has room for a run"):
            cluster.connect(cluster.Resources(self.cluster.address, 1, 1))


if __name__ == "__main__":
    absltest.main()
