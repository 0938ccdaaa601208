# SPDX-License-Identifier: Apache-2.0
"""Helpers that run the train command, in this process and in others."""

import contextlib
import io
import os
import resource
import subprocess
import sys
import time
import warnings

from absl import flags
from absl.testing import parameterized

from ssl_noisy import command, run_flags, train
from ssl_noisy.errors import UserError
from ssl_noisy.sweeps import local, worker

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def start(*arguments):
    """Starts the command in a new process."""
    environment = {**os.environ, "PYTHONPATH": ROOT}
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_noisy.train", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, condition):
    """Waits until `condition()` holds while the process of a run is alive."""
    while not condition():
        if process.poll() is not None:
            raise AssertionError("The run ended before it could be stopped.")
        time.sleep(0.002)


class ThisProcess:
    """A pool without workers: it trains in this process."""

    is_full = False

    def __init__(self):
        self.running = {}
        self._trainer = worker.Trainer()

    def begin(self, task):
        self.running[task.name] = task.settings
        self.is_full = True

    def wait(self, seconds):
        name, settings = self.running.popitem()
        self.is_full = False
        return [local.Attempt(name, **self._trainer.train(settings))]

    def close(self):
        pass


def call(*arguments):
    """Runs the command in this process and returns its exit code, output and error lines."""
    values = flags.FlagValues()
    run_flags.define_flags(values)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # unittest enables warnings that are off in a process
        try:
            wanted = command.parse_settings(["train", *arguments], values)
        except (flags.Error, UserError) as error:
            code = command.fail("train", error)
        else:
            code = command.execute("train", train.main, wanted)
    return code, out.getvalue(), err.getvalue().splitlines()


def call_of(module, *arguments):
    """Runs another command, a module, as `call` does."""
    values, out, err = flags.FlagValues(), io.StringIO(), io.StringIO()
    module.define_flags(values)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        name = module.__name__
        try:
            wanted = module.read_flags([name, *map(str, arguments)], values)
        except (flags.Error, UserError) as error:
            code = command.fail(name, error)
        else:
            code = command.execute(name, module.main, wanted)
    return code, out.getvalue(), err.getvalue().splitlines()


@contextlib.contextmanager
def largest_file(size):
    """Limits the size of the files that this process writes to `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def read(folder, name):
    with open(os.path.join(folder, name)) as file:
        return file.read()


class MistakeCase(parameterized.TestCase):
    """Base class for tests of user mistakes."""

    def refuse(self, *arguments, folder=None):
        """Asserts that the command prints one line, exits with 2 and writes nothing."""
        folder = folder or os.path.join(self.create_tempdir().full_path, "run")
        code, out, errors = call(*arguments, f"--run_dir={folder}")
        self.assertEqual(code, 2, errors)
        self.assertLen(errors, 1)
        self.assertEqual(out, "")
        self.assertFalse(os.path.exists(folder))
        return errors[0]
