# SPDX-License-Identifier: Apache-2.0
"""The plan of a sweep, its mistakes, and its statistics, recomputed by hand."""

import contextlib
import errno
import io
import math
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import command, sweep
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder as run_folder
from ssl_noisy.runs import signals
from ssl_noisy.sweeps import (
    cluster,
    conduct,
    estimate,
    folder,
    local,
    plan,
    report,
    summary,
    tables,
)

SMALL = ("--dataset=digits", "--network=small_cnn", "--steps=40", "--steps_per_epoch=20")


def request(*arguments):
    """Returns the `Request` of a command line."""
    values = flags.FlagValues()
    sweep.define_flags(values)
    return sweep.read_flags(["sweep", *SMALL, *arguments], values)


class PlanTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.create_tempdir().full_path, "sweep")

    def request(self, *arguments):
        return request(f"--sweep_dir={self.dir}", *arguments)

    def table(self, text):
        return f"--over_file={self.create_tempfile(content=text).full_path}"

    @parameterized.parameters(
        ("seed=0:3", ["0", "1", "2"]),
        ("seed=1:8:3,20", ["1", "4", "7", "20"]),
        ("num_labels=40,250", ["40", "250"]),
        ("learning_rate=0.1,1e-3", ["0.1", "1e-3"]),
        ("dataset=folder:a,digits", ["folder:a", "digits"]),
    )
    def test_lists_and_ranges(self, text, values):
        self.assertEqual(plan.parse_over(text), (text.partition("=")[0], values))

    def test_the_runs_are_the_product_and_their_names_are_stable(self):
        found = self.request("--over=seed=0:2", "--over=method=fixmatch,supervised")
        names = [run.name for run in found.runs]
        again = self.request("--over=method=fixmatch,supervised", "--over=seed=0:2")
        self.assertEqual(
            names,
            [f"method-{m}_seed-{s}" for s in (0, 1) for m in ("fixmatch", "supervised")],
        )
        self.assertCountEqual(names, [run.name for run in again.runs])
        settings = found.runs[0].settings
        self.assertEqual(settings.run_dir, os.path.join(self.dir, "runs", names[0]))
        self.assertEqual((settings.method, settings.seed, settings.steps), ("fixmatch", 0, 40))

    def test_names_are_safe_and_differ(self):
        names = [plan.run_name({"noise": v}) for v in ("sym:0.2", "sym/0.2", "sym_0.2", "x" * 300)]
        self.assertLen(set(names), 4)
        for name in names:
            self.assertRegex(name, r"^[A-Za-z0-9_.+-]{1,120}$")

    def test_flags_of_all_runs_go_to_the_methods_that_take_them(self):
        found = self.request("--over=method=fixmatch,supervised", "--confidence_threshold=0.8")
        arguments = [run.settings.method_arguments for run in found.runs]
        self.assertEqual(arguments, [{"confidence_threshold": 0.8}, {}])
        self.assertIn("supervised does not take --confidence_threshold.", found.notes)

    def test_a_table_leaves_out_empty_cells(self):
        text = "method,confidence_threshold\nfixmatch,0.5\nsupervised,\n"
        found = self.request(self.table(text), "--over=seed=3,4")
        self.assertEqual(
            [run.name for run in found.runs],
            [
                f"method-{name}_seed-{seed}{rest}"
                for name, rest in (("fixmatch", "_confidence_threshold-0.5"), ("supervised", ""))
                for seed in (3, 4)
            ],
        )

    @parameterized.parameters(
        (["--over=foo=1"], "--foo is not a flag of a run"),
        (["--over=methd=uda"], "Did you mean 'method'"),
        (["--over=seed"], "must be FLAG=VALUE"),
        (["--over=seed=3:3"], "empty range: 3:3"),
        (["--over=seed=1:2:"], "ranges START:STOP"),
        (["--over=seed=1:5:0"], "step of 0"),
        (["--over=seed=0,,1"], "empty value"),
        (["--over=seed=1", "--over=seed=2"], "given twice"),
        (["--over=seed=0,00"], "Two runs have the same flags"),
        (["--over=run_dir=a,b"], "any flag of a run can but run_dir, data_dir, cache_dir"),
        (["--over=seed=1", "--logger=mlfow"], "The run --seed=1: --logger must be one or more of"),
        (["--over=network=small_cnn,/no/own.keras"], "There is no file /no/own.keras"),
        (["--over=network=small_cnn,/no/own.py:net"], "There is no file /no/own.py"),
        (
            ["--over=weights=none,/no/w.h5", "--network=keras:MobileNetV2"],
            "--weights=/no/w.h5: There is no file",
        ),
        (["--over=seed=1", "--run_dir=x"], "--run_dir has no effect"),
        (["--over=seed=1", "--target_accuracy=0"], r"in \(0, 100\)"),
        (["--over=seed=1", "--run_gpus=1"], "--run_gpus has no effect without --ray_address"),
        (["--over=seed=1", "--ray_address=auto", "--dry_run"], "Leave --ray_address out"),
        (["--over=seed=1", "--ray_address=auto", "--run_cpus=1.5"], "a whole number or at most 1"),
        (["--over=seed=1", "--ray_address=auto", "--run_gpus=nan"], "a whole number or at most 1"),
        (["--over=seed=1", "--ray_address=auto", "--run_gpus=-1"], "a whole number or at most 1"),
        (["--over=seed=1", "--ray_address=auto", "--run_cpus=0"], "are both 0"),
        ([], "Nothing to sweep"),
        (["--over=learning_rate=1,-1"], "The run --learning_rate=-1: .* above 0"),
        (["--over=precision=float32,half"], "The run --precision=half"),
        (
            ["--over=method=uda,supervised", "--over=confidence_threshold=0.9"],
            "--confidence_threshold is not a flag of method 'supervised'",
        ),
        (
            ["--over=method=mixup,supervised", "--confidence_threshold=0.9"],
            "--confidence_threshold is not a flag of any method",
        ),
    )
    def test_mistakes(self, arguments, message):
        with self.assertRaisesRegex(UserError, message):
            self.request(*arguments)
        self.assertFalse(os.path.exists(self.dir))

    def test_a_cluster_without_ray_is_a_mistake(self):
        found = self.request("--over=seed=0:2", "--ray_address=auto")
        with mock.patch.dict(sys.modules, ray=None):
            with self.assertRaisesRegex(UserError, "needs Ray. Install it with: pip install"):
                sweep.main(found)
        self.assertFalse(os.path.exists(self.dir))

    def test_a_node_has_room_for_as_many_runs_as_its_scarcest_resource(self):
        self.assertEqual(cluster.Resources("auto", 4, 0.5).fit({"CPU": 16, "GPU": 1}), 2)
        self.assertEqual(cluster.Resources("auto", 4, 0.5).fit({"CPU": 7, "GPU": 1}), 1)
        self.assertEqual(cluster.Resources("auto", 4, 1).fit({"CPU": 16}), 0)
        self.assertEqual(cluster.Resources("auto", 0.1, 0).fit({"CPU": 1}), 10)

    def test_a_tracker_without_its_package_is_a_mistake(self):
        with mock.patch.dict(sys.modules, mlflow=None):
            with self.assertRaisesRegex(UserError, r"The run --seed=0: --logger=mlflow needs"):
                self.request("--over=seed=0:2", "--logger=mlflow")

    @parameterized.parameters(
        ("", "needs a header"),
        ("seed\n", "needs a header"),
        ("seed,what\n1,2\n", "--what is not a flag"),
        ("seed,seed\n1,2\n", "a column twice"),
        ("seed\n1,2\n", "row 2 has 2 cells"),
        ("seed\n1\n1\n", "same flags"),
    )
    def test_mistakes_in_a_table(self, text, message):
        with self.assertRaisesRegex(UserError, message):
            self.request(self.table(text))

    def test_a_folder_keeps_its_sweep_and_may_gain_runs(self):
        first = self.request("--over=seed=0:2")
        os.makedirs(self.dir)
        folder.begin(self.dir, first.swept, first.runs)
        for arguments, message in (
            (["--over=seed=0:2", "--steps=20"], r"--steps=40 .*there, .*--steps=20 .*here"),
            (["--over=seed=1:3"], "has the run seed-0"),
            (["--over=num_labels=20,40"], "sweeps seed. Received: num_labels"),
        ):
            other = self.request(*arguments)
            with self.assertRaisesRegex(UserError, message):
                folder.look_into(self.dir, other.swept, other.runs)
        more = self.request("--over=seed=0:5")
        folder.look_into(self.dir, more.swept, more.runs)

    def test_other_folders_are_refused(self):
        os.makedirs(self.dir)
        pathlib.Path(self.dir, "photo.jpg").touch()
        found = self.request("--over=seed=0:2")
        with self.assertRaisesRegex(UserError, "not empty and is not a sweep"):
            folder.look_into(self.dir, found.swept, found.runs)

    def test_the_command_prints_one_line_and_exits_with_2(self):
        errors = io.StringIO()
        argv = ["sweep", *SMALL, f"--sweep_dir={self.dir}", "--over=seed=5:5"]
        with (
            mock.patch("sys.argv", argv),
            mock.patch.object(command.flags, "FLAGS", flags.FlagValues()),
            mock.patch.object(command, "use_standard_streams"),
            mock.patch.object(command.signals, "raise_all"),
            mock.patch.object(command.app, "run", lambda _, argv, flags_parser: flags_parser(argv)),
            contextlib.redirect_stderr(errors),
            self.assertRaises(SystemExit) as stopped,
        ):
            command.start("ssl_noisy.sweep", sweep.main, (), sweep.define_flags, sweep.read_flags)
        self.assertEqual(stopped.exception.code, 2)
        self.assertLen(errors.getvalue().splitlines(), 1)

    def estimates(self, runs, **changes):
        parts = [part for run in runs for part in estimate.trainings(run.settings)]
        return {
            estimate.setting_of(settings): estimate.Estimate(3.0, 10.0, 0.5, 2.0)
            for _, settings, _ in parts
        }

    def test_an_estimate_adds_up(self):
        found = self.request("--over=seed=0:4", "--over=method=uda,supervised", "--baseline=")
        times = self.estimates(found.runs)
        self.assertLen(times, 2)  # seeds do not change the time of a step
        # A run: 10 s, 40 steps of 0.5 s, and 2 evaluations and the result, 2 s each: 36 s. Two
        # workers and the command import for 3 s each.
        last = estimate.table(found.runs, found.swept, times, 2).splitlines()[-1]
        total, wall = 8 * 36 + 2 * 3, 3 + (8 * 36 + 2 * 3) / 2
        self.assertIn(f"about {total / 60:.1f} min, {wall / 60:.1f} min with 2 at a time", last)

    def test_equal_trainings_are_timed_once(self):
        table = self.table("remove_labels,num_labels\naum,40\n,40\n")
        runs = self.request(table, "--method=elr", "--over=seed=0:2").runs
        parts = [part for run in runs for part in estimate.trainings(run.settings)]
        self.assertLen(parts, 6)
        self.assertLen(self.estimates(runs), 2)  # ELR with and without removal, and the passes

    def test_an_estimate_has_the_baseline_and_the_passes_of_aum(self):
        found = self.request(
            *("--over=seed=0:1", "--method=elr", "--baseline=supervised", "--remove_labels=aum"),
            *("--batch_size=64", "--pass_batch_size=32", "--pass_share=0.5"),
        )
        (run,) = found.runs
        parts = estimate.trainings(run.settings)
        self.assertEqual(
            [(name, settings.resolved().steps, count) for name, settings, count in parts],
            # A pass sees half as many examples in batches of half the size.
            [("elr", 40, 1), ("supervised", 40, 1), ("passes of elr", 40, 2)],
        )
        # Twice 36 s, and 34 s for a pass, which evaluates once: an epoch has all of its 40 steps.
        _, line, *_, last = estimate.table(
            found.runs, found.swept, self.estimates(found.runs), 1
        ).splitlines()
        self.assertRegex(line, r"elr \+ supervised \+ 2 passes of elr +160 +2\.3 min$")
        self.assertIn("fewer steps", last)

    def test_timing_that_cannot_start_or_is_stopped_leaves_no_process(self):
        runs, popen = self.request("--over=seed=0:2").runs, subprocess.Popen
        for problem, kind in (
            (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), UserError),
            (signals.Stopped(signal.SIGTERM), KeyboardInterrupt),
        ):
            process = popen(["sleep", "1000"], stdout=subprocess.PIPE)
            with mock.patch.object(estimate.subprocess, "Popen", side_effect=[process, problem]):
                with self.assertRaises(kind) as caught:
                    estimate.measure(runs, 2, [], lambda line: None)
            self.assertEqual(process.returncode, -signal.SIGKILL)
            if kind is UserError:
                self.assertRegex(str(caught.exception), "^Cannot start a worker process: Resource")


class FakePool:
    """A pool whose runs end at once. It notes the state of the files when a run begins."""

    def __init__(self, sweep_dir, outcomes, parallel=1):
        self.sweep_dir, self.outcomes, self.parallel = sweep_dir, outcomes, parallel
        self.running, self.begun, self.states = [], [], []

    @property
    def is_full(self):
        return len(self.running) == self.parallel

    def begin(self, task):
        self.states.append(folder.read_state(self.sweep_dir))
        self.running.append(task.name)
        self.begun.append(task.name)

    def wait(self, seconds):
        name = self.running.pop(0)
        outcome = self.outcomes[name].pop(0)
        return [local.Attempt(name, outcome, outcome, 1.0)]

    def stop(self):
        raise AssertionError("Nobody asked to stop.")

    def close(self):
        self.closed = True


class ConductTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.create_tempdir().full_path, "sweep")

    def conduct(self, runs, **outcomes):
        outcomes = {f"seed-{seed[1:]}": list(them) for seed, them in outcomes.items()}
        pool, source = FakePool(self.dir, outcomes), conduct.Known(self.dir, runs)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            try:
                conduct.conduct(self.dir, ["seed"], source, lambda n, lock: pool, parallel=1)
            except UserError as error:
                return pool, out.getvalue(), str(error)
        return pool, out.getvalue(), None

    def test_a_worker_gets_its_next_run_before_results_are_written(self):
        runs = request(f"--sweep_dir={self.dir}", "--over=seed=0:3").runs
        pool, _, _ = self.conduct(runs, s0=["bug"], s1=["bug"], s2=["bug"])
        self.assertEqual([sorted(state) for state in pool.states], [[], [], ["seed-0"]])
        self.assertTrue(pool.closed)
        self.assertLen(folder.read_state(self.dir), 3)

    def test_only_faults_of_the_machine_are_tried_again(self):
        runs = request(f"--sweep_dir={self.dir}", "--over=seed=0:4").runs
        outcomes = {"s0": ["memory", "bug"], "s1": ["mistake"], "s2": [local.KILLED] * 2}
        pool, out, error = self.conduct(runs, **outcomes, s3=["stopped", "finished"])
        self.assertEqual(pool.begun, [f"seed-{i}" for i in (0, 0, 1, 2, 2, 3, 3)])
        self.assertRegex(error, "^3 runs failed: ")
        self.assertIn("trying again", out)
        attempts = {name: entry["attempts"] for name, entry in folder.read_state(self.dir).items()}
        self.assertEqual(attempts, {"seed-0": 2, "seed-1": 1, "seed-2": 2, "seed-3": 2})

    def test_results_are_kept_if_no_worker_can_start(self):
        runs = request(f"--sweep_dir={self.dir}", "--over=seed=0:2").runs
        pool, source = FakePool(self.dir, {"seed-0": ["bug"]}), conduct.Known(self.dir, runs)
        begin = mock.Mock(side_effect=[None, UserError("Cannot start a worker process")])

        def begins(task):
            begin()
            pool.running.append(task.name)

        pool.begin = begins
        with self.assertRaisesRegex(UserError, "Cannot start"):
            with contextlib.redirect_stdout(io.StringIO()):
                conduct.conduct(self.dir, ["seed"], source, lambda n, lock: pool, parallel=1)
        self.assertEqual(list(folder.read_state(self.dir)), ["seed-0"])
        self.assertTrue(pool.closed)

    def test_runs_on_the_same_data_follow_each_other(self):
        found = request("--sweep_dir=x", "--over=seed=0:2", "--over=test_share=0.1,0.2,0.3")
        shares = [run.settings.test_share for run in conduct.by_data(found.runs)]
        self.assertEqual(shares, [0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


class WaitTest(absltest.TestCase):
    def test_a_run_waits_for_the_process_that_trains_in_its_folder(self):
        path = self.create_tempdir().full_path
        with contextlib.ExitStack() as stack, mock.patch.object(folder.time, "sleep") as sleep:
            stack.enter_context(run_folder.only_process(path))
            sleep.side_effect = [None, None, UserError]
            with self.assertRaises(UserError):
                folder.wait_until_free(path)
            sleep.side_effect = lambda _: stack.close()
            folder.wait_until_free(path)
        folder.wait_until_free(os.path.join(path, "missing"))
        with (
            run_folder.only_process(path),
            mock.patch.object(folder.time, "monotonic", side_effect=[0.0, 181.0]),
            self.assertRaisesRegex(UserError, "Another process is training"),
        ):
            folder.wait_until_free(path)


class PaceTest(absltest.TestCase):
    def test_writing_takes_at_most_a_hundredth_of_the_time(self):
        with mock.patch.object(report.time, "monotonic") as now:
            now.return_value = 0.0
            pace = report.Pace(5)
            self.assertTrue(pace.is_due)
            for took, wait in ((0.01, 5), (2, 200)):
                with pace.writing():
                    now.return_value += took
                now.return_value += wait - 0.1
                self.assertFalse(pace.is_due)
                now.return_value += 0.2
                self.assertTrue(pace.is_due)

    def test_tables_are_written_if_there_is_news_and_it_is_time(self):
        path = self.create_tempdir().full_path
        runs = request(f"--sweep_dir={path}", "--over=seed=0:2").runs
        made = report.Report(path, ["seed"], runs)
        state = {}
        failed = {"status": "failed", "attempts": 1, "seconds": 1.0, "reason": "x"}
        statuses = lambda: [row["status"] for row in tables.read(path)]  # noqa: E731
        with mock.patch.object(report.time, "monotonic", return_value=0.0) as now:
            made.write(state)
            state["seed-0"] = failed
            made.refresh(state)
            self.assertEqual(statuses(), ["missing", "missing"])
            now.return_value = 6.0
            made.refresh(state)
            self.assertEqual(statuses(), ["failed", "missing"])
            os.remove(os.path.join(path, tables.NAME))
            now.return_value = 60.0
            made.refresh(state)  # no news
            self.assertFalse(os.path.exists(os.path.join(path, tables.NAME)))


class LocalTest(absltest.TestCase):
    def test_a_worker_that_cannot_start_is_no_write_error_and_closes_once(self):
        path = self.create_tempdir().full_path
        made = request(f"--sweep_dir={path}", "--over=seed=0:2").runs
        tasks = [local.Task(run.name, run.settings, os.path.join(path, "log")) for run in made]
        pool = local.Pool(1, None)
        before = set(os.listdir("/proc/self/fd"))
        refusal = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        with mock.patch.object(local.subprocess, "Popen", side_effect=refusal):
            with self.assertRaisesRegex(UserError, "^Cannot start a worker process: Resource"):
                pool.begin(tasks[0])
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)
        # The same when an idle worker has to make room for the new one.
        old = mock.Mock(num_runs=local.RUNS_PER_PROCESS)
        pool._idle[0] = old
        with mock.patch.object(local.subprocess, "Popen", side_effect=refusal):
            with self.assertRaises(UserError):
                pool.begin(tasks[1])
        pool.close()
        old.close.assert_called_once_with()


class ParallelTest(absltest.TestCase):
    def test_one_run_per_gpu_or_per_core_with_enough_memory(self):
        with mock.patch.object(os, "sched_getaffinity", return_value=range(8)):
            self.assertEqual(local.default_parallel(0, 64e9), 8)
            self.assertEqual(local.default_parallel(0, 7e9), 3)
            self.assertEqual(local.default_parallel(0, 1e9), 1)
            self.assertEqual(local.default_parallel(4, 1e9), 4)

    def test_gpus_are_those_of_the_environment(self):
        for text, names in (("2,MIG-7", ["2", "MIG-7"]), ("", []), ("-1", [])):
            with mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES=text):
                self.assertEqual(local.gpus(), names)

    def test_runs_do_not_share_a_gpu(self):
        local.check(2, ["0", "1"])
        with self.assertRaisesRegex(UserError, "at most 2"):
            local.check(3, ["0", "1"])


FLAGS = ("method", "num_labels", "seed")


def row(method, num_labels, seed, accuracy, labels="a", status="finished"):
    found = {"method": method, "num_labels": num_labels, "seed": seed, "status": status}
    found |= {f"test_accuracy_{name}": None for name in tables.PROTOCOLS}
    return found | {"test_accuracy_last": accuracy, "labels_sha256": labels}


class SummaryTest(parameterized.TestCase):
    def test_interval(self):
        # Mean 0.6, std 0.1; t(0.975, 2) = 4.302653; half width 4.302653 * 0.1 / sqrt(3).
        found = summary.interval([0.5, 0.6, 0.7])
        self.assertAlmostEqual(found["mean"], 0.6)
        self.assertAlmostEqual(found["std"], 0.1)
        self.assertAlmostEqual(found["low"], 0.6 - 0.2484138, places=6)
        self.assertAlmostEqual(found["high"], 0.6 + 0.2484138, places=6)

    def test_one_value_has_no_interval_and_none_has_no_mean(self):
        one = {"mean": 0.5, "std": None, "n": 1, "low": None, "high": None}
        self.assertEqual(summary.interval([0.5]), one)
        self.assertEqual(summary.interval([]), {**one, "mean": None, "n": 0})

    def test_paired_differences_need_equal_seeds_and_labels(self):
        rows = [
            row("supervised", 40, 0, 0.50, "a"),
            row("supervised", 40, 1, 0.60, "b"),
            row("supervised", 40, 2, 0.55, "c"),
            row("fixmatch", 40, 0, 0.60, "a"),
            row("fixmatch", 40, 1, 0.74, "b"),
            row("fixmatch", 40, 2, 0.99, "other labels"),
            row("fixmatch", 40, 3, 0.99, "d"),  # no partner
        ]
        base, other = summary.summarize(rows, FLAGS, ("method", "supervised"))
        self.assertIsNone(base["compared_with"])
        self.assertEqual(other["compared_with"], "method=supervised")
        self.assertEqual(list(summary.curves([base, other])), ["supervised", "fixmatch"])
        self.assertEqual(base["difference_n"], 0)
        # Differences 0.10 and 0.14: mean 0.12, std 0.0282843, t(0.975, 1) = 12.7062.
        self.assertEqual(other["difference_n"], 2)
        self.assertAlmostEqual(other["difference_mean"], 0.12)
        self.assertAlmostEqual(other["difference_low"], 0.12 - 12.7062047 * 0.02, places=6)
        self.assertAlmostEqual(other["difference_high"], 0.12 + 12.7062047 * 0.02, places=6)

    def test_pairs_ignore_arguments_that_one_method_lacks(self):
        flags = (*FLAGS, "confidence_threshold")
        rows = [
            row("supervised", 40, 0, 0.50) | {"confidence_threshold": None},
            row("fixmatch", 40, 0, 0.60) | {"confidence_threshold": 0.8},
            row("fixmatch", 40, 0, 0.75) | {"confidence_threshold": 0.95},
        ]
        _, low, high = summary.summarize(rows, flags, ("method", "supervised"))
        self.assertAlmostEqual(low["difference_mean"], 0.10)
        self.assertAlmostEqual(high["difference_mean"], 0.25)
        self.assertEqual(summary.Partners(rows, flags, ("method", "supervised")).missing(rows), {})

    @parameterized.named_parameters(
        ("ambiguous", {}, {}, "several runs .* differ in confidence_threshold"),
        ("setting", {"learning_rate": 0.1}, {}, "no run with method=fixmatch has the same"),
        ("labels", {"labels_sha256": "b"}, {"confidence_threshold": 0.8}, "other labeled"),
        ("unfinished", {"status": "failed"}, {"confidence_threshold": 0.8}, "unfinished"),
    )
    def test_runs_without_a_pair_have_a_reason(self, change, second, reason):
        flags = (*FLAGS, "learning_rate", "confidence_threshold")
        more = {"learning_rate": None}
        rows = [
            row("supervised", 40, 0, 0.50) | more | {"confidence_threshold": None} | change,
            row("fixmatch", 40, 0, 0.60) | more | {"confidence_threshold": 0.8},
            row("fixmatch", 40, 1, 0.75) | more | {"confidence_threshold": 0.95},
        ]
        if not second:
            rows[2]["seed"] = 0
        first, *_ = summary.summarize(rows, flags, ("method", "fixmatch"))
        self.assertEqual(first["difference_n"], 0)
        found = summary.Partners(rows, flags, ("method", "fixmatch")).missing(rows)
        self.assertLen(found, 1)
        self.assertRegex(list(found)[0], reason)

    def test_failed_and_missing_runs_are_counted(self):
        rows = [
            row("uda", 40, 0, 0.5),
            row("uda", 40, 1, None, None, "failed"),
            row("uda", 40, 2, None, None, "missing"),
            row("uda", 80, 0, None, None, "failed"),
        ]
        first, second = summary.summarize(rows, FLAGS)
        self.assertEqual([first[k] for k in ("n", "failed", "missing")], [1, 1, 1])
        self.assertEqual([second[k] for k in ("mean", "n", "failed")], [None, 0, 1])

    @parameterized.parameters(
        ([10, 1000], [0.5, 0.9], 0.7, 100.0),  # halfway on the logarithm
        ([10, 100, 1000], [0.5, 0.6, 1.0], 0.7, 100 * 10**0.25),
        ([10, 100], [0.8, 0.9], 0.7, 10.0),
        ([10, 100], [0.1, 0.2], 0.7, None),
        ([1, 10, 100, 1000], [0.8, 0.6, 0.6, 0.8], 0.7, 100 * 10**0.5),  # a dip: stays above
        ([10, 100], [0.5, 0.7], 0.7, 100.0),
    )
    def test_crossing(self, labels, values, target, expected):
        found = summary.crossing(labels, values, target)
        if expected is None:
            self.assertIsNone(found)
        else:
            self.assertAlmostEqual(found, expected)

    def test_budgets(self):
        # Seeds at mean +- 0.01: std 0.01 * sqrt(2), half width 12.7062047 * 0.01 = 0.127062.
        rows = [
            row("uda", n, seed, mean + sign * 0.01)
            for n, mean in ((10, 0.3), (1000, 0.9))
            for seed, sign in ((0, -1), (1, 1))
        ]
        (answer,) = summary.budgets(summary.summarize(rows, FLAGS), 0.6)
        self.assertAlmostEqual(answer["of_mean"], 100.0)
        shift = 0.127062047 / 0.6 * math.log(100)
        self.assertAlmostEqual(answer["labels"], 100 * math.exp(shift), places=4)
        self.assertAlmostEqual(answer["of_high"], 100 * math.exp(-shift), places=4)
        self.assertEqual(report.describe(answer), "uda: 265 labels; range 38 to 265, mean 100.")

    def test_a_curve_for_each_method_and_varying_flag(self):
        rows = [
            {**row(method, n, 0, 0.5), "steps": steps, "momentum": 0.9}
            for method in ("uda", "supervised")
            for n in (80, 20)
            for steps in (1, 2)
        ]
        lines = summary.summarize(rows, (*FLAGS, "steps", "momentum"))
        curves = summary.curves(lines)
        self.assertEqual(
            sorted(curves),
            [f"{name}, steps {n}" for name in ("supervised", "uda") for n in (1, 2)],
        )
        self.assertEqual([p["num_labels"] for p in curves["uda, steps 2"]], [20, 80])

    def test_all_labels_of_unfinished_runs_are_those_of_finished_ones(self):
        made = request("--sweep_dir=x", "--method=elr", "--over=seed=0:2").runs
        accuracies = {"test_accuracy": {"last": 0.5}, "validation_accuracy": None}
        result = {**accuracies, "labels_sha256": "a", "num_labels": 1297}
        state = {made[1].name: {"status": "failed", "reason": "killed"}}
        rows = tables.collect(["seed"], made, state, {made[0].name: result}.get)
        self.assertEqual([row["status"] for row in rows], ["finished", "failed"])
        self.assertEqual([row["num_labels"] for row in rows], [1297, 1297])

    def test_a_row_has_the_accuracies_of_its_run_on_test_and_validation_images(self):
        made = request("--sweep_dir=x", "--method=elr", "--over=seed=0:2").runs
        validated = {"test_accuracy": 0.5, "validation_accuracy": 0.625}
        results = {
            run.name: tables.of_result(
                {
                    "test_accuracy": {"last": 0.5, "best_on_test_oracle": 0.75},
                    "last_epoch": last_epoch,
                    "labels_sha256": "a",
                    "num_labels": 20,
                }
            )
            for run, last_epoch in zip(made, ({"test_accuracy": 0.5}, validated))
        }
        rows = tables.collect(["seed"], made, {}, results.get)
        self.assertEqual([row["validation_accuracy_last"] for row in rows], [None, 0.625])
        self.assertEqual([row["test_accuracy_best_on_test_oracle"] for row in rows], [0.75, 0.75])
        path = self.create_tempdir().full_path
        tables.write(os.path.join(path, tables.NAME), rows)
        self.assertEqual([r["validation_accuracy_last"] for r in tables.read(path)], [None, 0.625])

    def test_a_failed_run_that_was_finished_elsewhere_counts_as_finished(self):
        state = {"one": {"status": "failed", "reason": "killed by SIGKILL"}}
        with mock.patch.object(folder, "result_of", return_value=None):
            self.assertIn("killed by SIGKILL", report.failures("x", state))
        with mock.patch.object(folder, "result_of", return_value={"num_labels": 1297}):
            self.assertIsNone(report.failures("x", state))

    def test_a_table_is_read_as_it_was_written(self):
        rows = [{"name": "a", "seed": 3, "test_accuracy_last": 0.5, "seconds": None, "reason": "x"}]
        path = self.create_tempdir().full_path
        tables.write(os.path.join(path, tables.NAME), rows)
        self.assertEqual(tables.read(path), rows)
        with self.assertRaisesRegex(UserError, "Run the sweep again"):
            tables.read(os.path.join(path, "missing"))

    def test_a_comparison_needs_a_value_of_a_swept_flag(self):
        found = request("--sweep_dir=x", "--over=method=uda,supervised", "--over=seed=0:2")
        parse = lambda text: report.parse_comparison(text, found.swept, found.runs)  # noqa: E731
        self.assertEqual(parse("method=uda"), ("method", "uda"))
        for text in ("seed=1", "steps=3", "method=mixup"):
            with self.assertRaisesRegex(UserError, "--compare_with"):
                parse(text)


if __name__ == "__main__":
    absltest.main()
