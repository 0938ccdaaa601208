# SPDX-License-Identifier: Apache-2.0
"""Studies of --tune with Optuna itself: resumed, killed, extended, damaged, with failures."""

import contextlib
import io
import math
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import types

import optuna
from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import sweep
from ssl_noisy.errors import UserError
from ssl_noisy.runs import checkpoint
from ssl_noisy.runs import folder as run_folder
from ssl_noisy.sweeps import conduct, folder, local, study, tables, trials, worker

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
from commands import ThisProcess  # noqa: E402

ROOT = str(pathlib.Path(__file__).resolve().parent.parent.parent)
SMALL = (
    "--dataset=digits",
    "--train_split=train[:80%]",
    "--validation_split=train[80%:]",
    "--method=supervised",
    "--network=small_cnn",
    "--num_labels=40",
    "--batch_size=8",
    "--steps=40",
    "--steps_per_epoch=20",
    "--noplots",
)
TUNE = ("--tune=learning_rate=log:0.003:0.3", "--tune=momentum=0.5:0.9:0.1")


class Killed(BaseException):
    """The end of the process of a sweep."""


class Scripted:
    """A pool whose runs end at once, with a validation accuracy that depends on their flags.

    Args:
        sweep_dir: Path of the folder.
        parallel: Positive integer.
        outcomes: Dict from the name of a run to how it ends.
        outcome: How the others end.
        killed_at: After this many starts and ends of runs, the process of the sweep ends: before
            a run starts, or after one has ended that the sweep has not heard of.
    """

    def __init__(
        self, sweep_dir, parallel=1, outcomes=(), outcome=worker.FINISHED, killed_at=math.inf
    ):
        self.sweep_dir, self.parallel = sweep_dir, parallel
        self.outcomes, self.outcome, self.left = dict(outcomes), outcome, killed_at
        self.running, self.begun = {}, []

    @property
    def is_full(self):
        return len(self.running) == self.parallel

    def _count(self):
        self.left -= 1
        if not self.left:
            raise Killed

    def begin(self, task):
        self._count()
        if task.name in self.running:
            raise AssertionError(f"{task.name} trains twice")
        self.running[task.name] = task.settings
        self.begun.append(task.name)

    def wait(self, seconds):
        name = next(iter(self.running))
        settings = self.running.pop(name)
        outcome = self.outcomes.get(name, self.outcome)
        if outcome == worker.FINISHED:
            write_result(settings)
        self._count()
        return [local.Attempt(name, outcome, f"its {outcome}", 1.0)]

    def close(self):
        pass


def accuracy(settings):
    """Returns an accuracy with its maximum at a learning rate of 0.05 and a momentum of 0.8."""
    distance = abs(math.log(settings.learning_rate / 0.05)) / 5 + abs(settings.momentum - 0.8)
    return 1 / (1 + distance) - 0.01 * settings.seed


def write_result(settings):
    os.makedirs(settings.run_dir)  # fails for a run that has been trained before
    test = dict.fromkeys(tables.PROTOCOLS, accuracy(settings) / 2)
    last = {"validation_accuracy": accuracy(settings), "test_accuracy": test["last"]}
    content = {"test_accuracy": test, "labels_sha256": "a", "num_labels": 40, "last_epoch": last}
    run_folder.write_result(settings.run_dir, content)


class StudyCase(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = self.create_tempdir().full_path
        self.dir = os.path.join(self.folder, "sweep")

    def conduct(self, *arguments, pool=None, sweep_dir=None):
        """Returns the text of a sweep, the lines that it printed, and the pool."""
        sweep_dir = sweep_dir or self.dir
        values = flags.FlagValues()
        sweep.define_flags(values)
        words = ["sweep", *SMALL, *TUNE, *arguments, f"--sweep_dir={sweep_dir}"]
        wanted = sweep.read_flags(words, values)
        source = trials.Trials(wanted.tuning, wanted.tuning.lines(wanted.runs[0]))
        pool = pool or Scripted(sweep_dir)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            text = conduct.conduct(
                sweep_dir, wanted.swept, source, lambda n, lock: pool, parallel=1
            )
        return text, out.getvalue().splitlines(), pool

    def trials(self, sweep_dir=None):
        """Returns number, state, values and parameters of all trials, as Optuna reads them."""
        storage = f"sqlite:///{sweep_dir or self.dir}/study.db"
        found = optuna.load_study(study_name=None, storage=storage).trials
        return [(trial.number, trial.state.name, trial.values, trial.params) for trial in found]

    def plan(self):
        return set(folder.read_plan(self.dir)["runs"])


class ScriptedTest(StudyCase):
    def test_a_study_that_is_killed_again_and_again_is_that_of_an_undisturbed_one(self):
        arguments = ("--trials=12", "--over=seed=0:2")  # the first 10 trials are random
        other = os.path.join(self.folder, "other")
        text, _, pool = self.conduct(*arguments, sweep_dir=other, pool=Scripted(other))
        resumed, attempts = None, 0
        while resumed is None:
            attempts += 1
            with contextlib.suppress(Killed):
                pool = Scripted(self.dir, killed_at=1 + attempts % 9)
                resumed, _, _ = self.conduct(*arguments, pool=pool)
        self.assertGreater(attempts, 9)
        found = self.trials()
        self.assertEqual(found, self.trials(other))
        self.assertEqual(resumed, text)
        self.assertEqual([state for _, state, *_ in found], ["COMPLETE"] * 12)
        for number, _, (value,), params in found:
            expected = accuracy(types.SimpleNamespace(**params, seed=0)) - 0.005
            self.assertAlmostEqual(value, expected, places=12, msg=number)

    def test_proposals_get_better_and_their_values_are_short(self):
        text, lines, _ = self.conduct("--trials=40")
        values = [value for _, _, (value,), _ in self.trials()]
        self.assertGreater(statistics.mean(values[20:]), statistics.mean(values[:10]) + 0.05)
        for *_, params in self.trials():
            self.assertIn(params["momentum"], (0.5, 0.6, 0.7, 0.8, 0.9))
            self.assertLess(len(str(params["learning_rate"])), 8)
        best = max(range(40), key=lambda number: (values[number], -number))
        params = self.trials()[best][3]
        self.assertIn(
            f"Best by validation: trial {best}, `--learning_rate={params['learning_rate']} "
            f"--momentum={params['momentum']}`. Validation accuracy {100 * values[best]:.2f} %, "
            f"test accuracy of this trial {50 * values[best]:.2f} %.",
            text,
        )
        section = text.split("## Tuning")[1].split("##")[0]
        shown = [line.split("|")[1:-1] for line in section.splitlines() if line[:3] != "| -"]
        shown = [cells for cells in shown if cells][1:]
        expected = sorted(range(40), key=lambda number: (-values[number], number))[:5]
        self.assertEqual([int(cells[0]) for cells in shown], expected)
        self.assertEqual(float(shown[4][-2]), round(100 * values[expected[4]], 2))
        self.assertIn("best of 40 trials is optimistic", section)
        self.assertIn("40 of 40 trials are complete, 0 failed.", section)
        names = {str(params) for *_, params in self.trials()}
        self.assertRegex(lines[-1], rf"^{len(names)}/{len(names)} done")  # equal trials share runs
        self.assertLen(tables.read(self.dir), len(names))
        self.assertLen(self.plan(), len(names))

    def test_more_trials_extend_a_study_and_fewer_are_an_error(self):
        other = os.path.join(self.folder, "other")
        self.conduct("--trials=12", sweep_dir=other, pool=Scripted(other))
        self.conduct("--trials=5")
        _, lines, pool = self.conduct("--trials=12")
        self.assertEqual(self.trials(), self.trials(other))
        self.assertLen(pool.begun, len(self.plan()) - 5)
        with self.assertRaisesRegex(UserError, "has 12 trials. --trials must be at least that"):
            self.conduct("--trials=11")
        _, lines, pool = self.conduct("--trials=12")
        self.assertEqual((lines, pool.begun), ([], []))

    def test_several_runs_at_a_time(self):
        pool = Scripted(self.dir, parallel=3, killed_at=30)
        with self.assertRaises(Killed):
            self.conduct("--trials=20", "--over=seed=0:2", pool=pool)
        states = [state for _, state, _, _ in self.trials()]
        # Of 14 runs that have ended, the sweep has heard of 13, which are 6 trials of 2 runs.
        self.assertEqual(states, ["COMPLETE"] * 6 + ["RUNNING"] * 2)
        self.conduct("--trials=20", "--over=seed=0:2", pool=Scripted(self.dir, parallel=3))
        self.assertEqual({state for _, state, _, _ in self.trials()}, {"COMPLETE"})
        self.assertLen(self.trials(), 20)

    def test_a_failed_run_fails_its_trial_alone(self):
        self.conduct("--trials=3", "--over=seed=0:3")
        names = list(folder.read_plan(self.dir)["runs"])
        shutil.rmtree(self.dir)
        # The second trial fails with its second run, and its third run is not trained.
        pool = Scripted(self.dir, outcomes={names[4]: worker.MISTAKE})
        text, lines, pool = self.conduct("--trials=3", "--over=seed=0:3", pool=pool)
        states = [state for _, state, _, _ in self.trials()]
        self.assertEqual(states, ["COMPLETE", "FAIL", "COMPLETE"])
        self.assertEqual(pool.begun, names[:5] + names[6:])
        self.assertIn("7/8 done, 1 failed", lines[-1])
        self.assertIn("2 of 3 trials are complete, 1 failed.", text)
        self.assertIn(f"- {names[4]}: its mistake", text)
        statuses = [row["status"] for row in tables.read(self.dir)]
        self.assertEqual(statuses[3:6], ["finished", "failed", "missing"])
        # Its end is known: it is not tried again.
        text, lines, pool = self.conduct("--trials=4", "--over=seed=0:3")
        self.assertLen(pool.begun, 3)
        self.assertIn("10/10 done", lines[-1])
        self.assertEqual([state for _, state, _, _ in self.trials()], [*states, "COMPLETE"])

    def test_a_fault_of_the_machine_leaves_a_trial_open(self):
        self.conduct("--trials=4")
        before, names = self.trials(), list(folder.read_plan(self.dir)["runs"])
        shutil.rmtree(self.dir)
        pool = Scripted(self.dir, outcomes={names[1]: local.KILLED})
        with self.assertRaisesRegex(UserError, f"1 runs failed: {names[1]} .*the same command"):
            self.conduct("--trials=4", pool=pool)
        self.assertEqual(pool.begun, [names[0], names[1], names[1], *names[2:]])
        states = [state for _, state, _, _ in self.trials()]
        self.assertEqual(states, ["COMPLETE", "RUNNING", "COMPLETE", "COMPLETE"])
        _, _, pool = self.conduct("--trials=4")
        self.assertEqual((pool.begun, self.trials()), ([names[1]], before))

    def test_a_study_without_a_complete_trial_is_an_error(self):
        pool = Scripted(self.dir, outcome=worker.BUG)
        with self.assertRaisesRegex(UserError, "All 3 trials failed, .*because: its bug. Fix"):
            self.conduct("--trials=3", pool=pool)
        self.assertEqual([state for _, state, _, _ in self.trials()], ["FAIL"] * 3)

    def test_values_that_exclude_each_other_fail_their_trial(self):
        arguments = ("--method=divide_mix", "--trials=12", "--over=seed=0:2", "--num_labels=100")
        arguments += ("--tune=ramp_start=0:0.8", "--tune=ramp_end=0.2:1")
        text, lines, pool = self.conduct(*arguments)
        found = self.trials()
        for _, state, _, params in found:
            is_valid = params["ramp_start"] <= params["ramp_end"]
            self.assertEqual(state, "COMPLETE" if is_valid else "FAIL")
        failed = [number for number, state, _, _ in found if state == "FAIL"]
        self.assertNotEmpty(failed)
        for number in failed:
            self.assertRegex(text, rf"\n- Trial {number}: The run .*ramp_start")
        self.assertLen(pool.begun, 2 * (12 - len(failed)))
        self.assertIn(f"{len(pool.begun)}/{len(pool.begun)} done", lines[-1])
        self.assertEqual(self.conduct(*arguments)[0], text)

    def test_a_damaged_missing_or_foreign_study_is_an_error(self):
        self.conduct("--trials=2")
        path, other = pathlib.Path(self.dir, study.NAME), os.path.join(self.folder, "other")
        content, plan = path.read_bytes(), folder.read_plan(self.dir)
        self.conduct("--trials=2", "--steps=20", sweep_dir=other, pool=Scripted(other))
        foreign = pathlib.Path(other, study.NAME).read_bytes()
        for bad, message in (
            (b"no database" * 1000, "which holds the trials: file is not a database"),
            (content[: len(content) // 2], "which holds the trials: .*malformed"),
            (content[:5000] + bytes(5000) + content[10000:], "which holds the trials: "),
            (b"", "lacks the trial of the run"),
            (foreign, "belongs to another sweep"),
        ):
            path.write_bytes(bad)
            with self.assertRaisesRegex(UserError, message) as caught:
                self.conduct("--trials=3")
            self.assertNotIn("\n", str(caught.exception))
            self.assertEqual(folder.read_plan(self.dir), plan)
        path.unlink()
        with self.assertRaisesRegex(UserError, "study.db is missing. Restore it"):
            self.conduct("--trials=3")
        self.assertFalse(path.exists())
        path.write_bytes(content)
        self.conduct("--trials=3")


class RealTest(StudyCase):
    def start(self, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "ssl_noisy.sweep", *SMALL, *TUNE, *arguments]
            + [f"--sweep_dir={self.dir}", "--max_parallel=1"],
            env={**os.environ, "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": "-1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def test_a_killed_study_has_the_trials_of_an_undisturbed_one(self):
        arguments = ("--steps=20", "--checkpoint_seconds=0")  # after every step
        process = self.start("--trials=2", *arguments)
        # In the run of the second trial.
        while len(list(pathlib.Path(self.dir).glob(f"runs/*/{checkpoint.NAME}"))) < 2:
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.assertEqual([state for _, state, *_ in self.trials()], ["COMPLETE", "RUNNING"])
        process = self.start("--trials=3", *arguments)
        out, errors = process.communicate()
        self.assertEqual(process.returncode, 0, errors)
        self.assertRegex(out, r"\n3/3 done: .*\n")
        self.assertIn("Best by validation: trial ", out)
        self.assertNotIn("[I 20", out + errors)  # as lines of Optuna's log begin

        other = os.path.join(self.folder, "other")
        self.conduct("--trials=3", *arguments, sweep_dir=other, pool=ThisProcess())
        found = self.trials()
        self.assertEqual(found, self.trials(other))
        names = list(folder.read_plan(self.dir)["runs"])
        self.assertLen(names, 3)
        for name, (number, _, (value,), _) in zip(names, found):
            result = run_folder.read_result(os.path.join(self.dir, "runs", name))
            self.assertEqual(value, result["last_epoch"]["validation_accuracy"], number)
        logs = [pathlib.Path(self.dir, "logs", f"{name}.log").read_text() for name in names]
        resumed = [bool(re.search(r"resuming at step \d+\n", log)) for log in logs]
        self.assertEqual(resumed, [False, True, False])


if __name__ == "__main__":
    absltest.main()
