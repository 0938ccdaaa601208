# SPDX-License-Identifier: Apache-2.0
"""Signals save a training, and standard streams that end early do not disturb it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
from absl import logging
from absl.testing import absltest
from commands import ROOT, call, read, wait_for

from ssl_noisy import command, files
from ssl_noisy.data import sources
from ssl_noisy.runs import checkpoint, folder, session, signals

SMALL = (
    "--dataset=digits",
    "--method=supervised",
    "--num_labels=20",
    "--network=small_cnn",
    "--batch_size=8",
    "--steps=40",
    "--steps_per_epoch=20",
    "--noplots",
)
LONG = (*SMALL, "--steps=1000000", "--checkpoint_seconds=0")


def setUpModule():  # noqa: N802
    logging.set_verbosity(logging.WARNING)  # as the command does


def start(shell, *arguments, **kwargs):
    """Starts the train command from a shell that sets up its streams."""
    return subprocess.Popen(
        ["bash", "-c", shell, "bash", sys.executable, "-m", "ssl_noisy.train", *arguments],
        env={**os.environ, "PYTHONPATH": ROOT},
        text=True,
        **kwargs,
    )


class SignalCase(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = os.path.join(self.create_tempdir().full_path, "run")

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def assert_clean(self):
        for _, _, names in os.walk(self.folder):
            self.assertFalse(any(files.is_left_over(name) for name in names), names)


@pytest.mark.slow
class ProcessTest(SignalCase):
    def wait_for_checkpoint(self, process, *names):
        """Waits until a checkpoint is replaced by another."""
        path, seen = self.path(*names, checkpoint.NAME), set()

        def is_there():
            with contextlib.suppress(OSError):
                seen.add(os.stat(path).st_mtime_ns)
            return len(seen) > 1

        wait_for(process, is_there)

    def test_sighup_in_the_baseline_saves_and_prints_one_line(self):
        process = start(
            'exec "$@"',
            *LONG,
            "--method=mixup",
            "--baseline=supervised",
            f"--run_dir={self.folder}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.wait_for_checkpoint(process, "baseline")
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 129, errors)
        # TensorFlow, whose iterator was still running, prints nothing.
        self.assertRegex(
            errors,
            rf"^\nStopped at step \d+. The run is saved in {self.path('baseline')}. Run the same "
            r"command to resume.\n$",
        )
        self.assert_clean()

    def test_under_nohup_sighup_is_ignored_and_two_sigterms_save(self):
        process = start(
            'trap "" HUP; exec "$@"',
            *LONG,
            f"--run_dir={self.folder}",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.wait_for_checkpoint(process)
        process.send_signal(signal.SIGHUP)
        self.wait_for_checkpoint(process)
        for _ in range(2):  # as `timeout` does: to the process and to its group
            process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        _, errors = process.communicate()
        self.assertEqual(process.returncode, 143, errors)
        self.assertIn(f"is saved in {self.folder}. Run the same command to resume.", errors)
        self.assert_clean()

    def test_a_reader_that_exits_ends_the_output_but_not_the_training(self):
        process = start(
            'exec "$@"',
            *SMALL,
            f"--run_dir={self.folder}",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.assertIn("supervised on digits", process.stdout.readline())
        process.stdout.close()
        errors = process.stderr.read()
        self.assertEqual((process.wait(), errors), (0, ""))
        process.stderr.close()
        self.assertIn("sha256", json.loads(read(self.folder, "result.json")))

    def test_a_full_disk_behind_the_output_is_one_warning(self):
        process = start(
            'exec "$@" > /dev/full',
            *SMALL,
            f"--run_dir={self.folder}",
            stderr=subprocess.PIPE,
        )
        _, errors = process.communicate()
        self.assertEqual((process.returncode, len(errors.splitlines())), (0, 1), errors)
        self.assertIn("No space left on device", errors)
        self.assertTrue(os.path.exists(self.path("result.json")))

    def test_closed_streams(self):
        process = start('exec "$@" >&- 2>&- <&-', *SMALL, f"--run_dir={self.folder}")
        self.assertEqual(process.wait(), 0)
        self.assertTrue(os.path.exists(self.path("result.json")))
        # A finished run prints its result into a pipe without a reader.
        reader, writer = os.pipe()
        os.close(reader)
        process = start(
            'exec "$@"', *SMALL, f"--run_dir={self.folder}", stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        _, errors = process.communicate()
        self.assertEqual((process.returncode, errors), (0, ""))


class InProcessTest(SignalCase):
    """Signals at moments that another process could not hit."""

    def setUp(self):
        super().setUp()
        for signum in signals.STOPPING:
            self.addCleanup(signal.signal, signum, signal.getsignal(signum))
        self.reset_handlers()

    def reset_handlers(self):
        """Handles signals as a new process does. A process that was stopped ignores them."""
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        signals.raise_all()

    def kill(self, signum, target=None):
        def killed(*args, **kwargs):
            for _ in range(1 if signum == signal.SIGINT else 2):
                os.kill(os.getpid(), signum)
            return target(*args, **kwargs) if target else None

        return killed

    def call(self):
        return call(*SMALL, f"--run_dir={self.folder}")

    def test_a_signal_while_the_data_is_loaded(self):
        for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            self.reset_handlers()
            with mock.patch.object(sources, "load", self.kill(signum)):
                found, out, errors = self.call()
            self.assertEqual((found, out, len(errors)), (code, "", 2), errors)
            self.assertIn("stopped. Run the same command to resume", errors[1])
            self.assertFalse(os.path.exists(self.folder))

    def test_a_signal_while_checkpoint_model_and_result_are_written(self):
        savez = checkpoint.np.savez
        with mock.patch.object(checkpoint.np, "savez", self.kill(signal.SIGHUP, savez)):
            code, _, errors = self.call()
        self.assertEqual(code, 129)
        self.assertIn("Stopped at step 20", errors[-1])
        with checkpoint.np.load(self.path(checkpoint.NAME)) as archive:  # it is complete
            self.assertEqual(json.loads(str(archive["record"]))["step"], 20)
        self.reset_handlers()
        for module, name, signum, code in (
            (session.networks, "portable", signal.SIGTERM, 143),
            (folder, "write_result", signal.SIGINT, 130),
        ):
            target = getattr(module, name)
            with mock.patch.object(module, name, self.kill(signum, target)):
                self.assertEqual(self.call()[0], code)
            self.assertFalse(os.path.exists(self.path("result.json")))
            self.assert_clean()
            self.reset_handlers()
        self.assertEqual(self.call()[0], 0)

    def test_a_second_ctrl_c_stops_at_once(self):
        with self.assertRaises(KeyboardInterrupt), signals.deferred() as request:
            os.kill(os.getpid(), signal.SIGINT)
            self.assertEqual(request.signum, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    def test_a_second_sigterm_does_not_disturb_the_end(self):
        """As `timeout` sends it, here while the message of the first one is printed."""

        def training(_):
            with signals.deferred():
                signal.raise_signal(signal.SIGTERM)
                raise session.Interrupted("Saved.", signal.SIGTERM)

        def sweep(_):
            with signals.deferred():
                signal.raise_signal(signal.SIGTERM)
            raise session.Interrupted("Saved.", signal.SIGTERM)

        class Stderr(io.StringIO):
            def write(self, text):
                signal.raise_signal(signal.SIGTERM)
                return super().write(text)

        for main in (training, sweep):
            with contextlib.redirect_stderr(Stderr()) as errors:
                self.assertEqual(command.execute("train", main, None), 143)
            self.assertStartsWith(errors.getvalue(), "\nSaved. Run the same command to resume.")
            self.reset_handlers()

    def test_a_process_of_others_keeps_its_handlers(self):
        for signum in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_DFL)
        before = [signal.getsignal(signum) for signum in signals.STOPPING]
        with self.assertRaises(session.Interrupted), signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            raise session.Interrupted("Saved.", signal.SIGTERM)
        signals.ignore()
        self.assertEqual([signal.getsignal(signum) for signum in signals.STOPPING], before)

    def test_handlers_are_restored(self):
        before = [signal.getsignal(signum) for signum in signals.STOPPING]
        with signals.deferred():
            self.assertNotEqual([signal.getsignal(s) for s in signals.STOPPING], before)
        self.assertEqual([signal.getsignal(signum) for signum in signals.STOPPING], before)


if __name__ == "__main__":
    absltest.main()
