# SPDX-License-Identifier: Apache-2.0
"""What --tune accepts, and its mistakes. `tests/integration/real_tune_test.py` has the studies."""

import dataclasses
import math
import os
import sys
from unittest import mock

import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

from ssl_noisy import sweep
from ssl_noisy.errors import UserError
from ssl_noisy.runs import folder as run_folder
from ssl_noisy.sweeps import folder, local, study, trials, tune, worker
from ssl_noisy.sweeps.tune import Axis

SMALL = ("--dataset=digits", "--network=small_cnn", "--steps=40", "--steps_per_epoch=20")
SPLITS = ("--train_split=train[:80%]", "--validation_split=train[80%:]")
RATE = "--tune=learning_rate=log:0.003:0.3"


class AxisTest(parameterized.TestCase):
    @parameterized.parameters(
        ("learning_rate=0.1:3e-1", Axis("learning_rate", low=0.1, high=0.3)),
        ("--learning_rate= .5:2", Axis("learning_rate", low=0.5, high=2.0)),
        ("learning_rate=log:1e-3:1", Axis("learning_rate", low=0.001, high=1.0, is_log=True)),
        ("batch_size=8:64", Axis("batch_size", low=8, high=64)),
        ("batch_size=8:65:8", Axis("batch_size", low=8, high=64, step=8)),
        ("batch_size=log:8:64", Axis("batch_size", low=8, high=64, is_log=True)),
        ("confidence_threshold=0.8:0.95:0.05", Axis("confidence_threshold", None, 0.8, 0.95, 0.05)),
        ("confidence_threshold=0.7:0.98:0.1", Axis("confidence_threshold", None, 0.7, 0.9, 0.1)),
        ("batch_size=16, 64,32", Axis("batch_size", ("16", "64", "32"))),
        (
            "network=small_cnn,keras:MobileNetV2",
            Axis("network", ("small_cnn", "keras:MobileNetV2")),
        ),
        ("nesterov=true,false", Axis("nesterov", ("true", "false"))),
    )
    def test_forms(self, text, axis):
        self.assertEqual(tune.parse(text), axis)
        self.assertEqual(tune.parse(str(axis)), axis)  # its text says all

    @parameterized.parameters(
        ("learning_rate", "must be FLAG=LOW:HIGH"),
        ("learning_rate=", "must be FLAG=LOW:HIGH"),
        ("learning_rat=1:2", "Did you mean 'learning_rate'"),
        ("run_dir=a,b", "--run_dir cannot be swept"),
        ("learning_rate=0.1", "at least two different values"),
        ("learning_rate=0.1,0.1", "at least two different values"),
        ("learning_rate=0.1,,0.2", "at least two different values"),
        ("learning_rate=0.1:x", "at least two different values"),
        ("learning_rate=lin:0.1:0.2", "at least two different values"),
        ("learning_rate=0.3:0.3", "LOW below HIGH"),
        ("learning_rate=0.3:0.1", "LOW below HIGH"),
        ("learning_rate=-1e999:1", "LOW below HIGH"),
        ("learning_rate=1:1e999", "LOW below HIGH"),
        ("learning_rate=1.2.3:4", "needs numbers"),
        ("batch_size=1.5:3", "needs integers"),
        ("learning_rate=log:0:0.1", "LOW above 0 and no STEP"),
        ("learning_rate=log:0.1:1:0.1", "LOW above 0 and no STEP"),
        ("learning_rate=0.1:0.2:0", "STEP above 0"),
        ("learning_rate=0.1:0.2:-0.1", "STEP above 0"),
        ("learning_rate=0.1:0.2:0.5", "at most HIGH - LOW"),
        ("network=1:2", "--network is not a number"),
        ("nesterov=0:1", "--nesterov is not a number"),
        ("seed=0:3", "cannot choose a seed.* Use --over=seed=0:3"),
        ("validation_split=a,b", "measured on the same images"),
    )
    def test_mistakes(self, text, message):
        with self.assertRaisesRegex(UserError, message):
            tune.parse(text)

    def test_the_order_is_that_of_the_flags_of_a_run(self):
        texts = ["confidence_threshold=0:1", "momentum=0.8,0.9", "learning_rate=1:2"]
        for given in (texts, texts[::-1]):
            found = [axis.flag for axis in tune.axes(given)]
            self.assertEqual(found, ["learning_rate", "momentum", "confidence_threshold"])
        with self.assertRaisesRegex(UserError, "--tune=momentum is given twice"):
            tune.axes(["momentum=0.1:0.2", "momentum=0.1,0.2"])

    def test_values_are_short_and_within_the_range(self):
        axis = Axis("learning_rate", low=0.8, high=0.95)
        self.assertEqual(axis.rounded(0.8234567), 0.8235)
        self.assertEqual(
            Axis("ema_momentum", low=0.999, high=0.9999).rounded(0.99912343), 0.9991234
        )
        self.assertEqual(Axis("x", low=1 / 3, high=2 / 3).rounded(1 / 3), 1 / 3)
        self.assertEqual(Axis("x", None, 0.8, 0.95, 0.05).rounded(0.8 + 0.05), 0.85)
        self.assertEqual(
            Axis("x", None, 0.123456789, 0.623456789, 0.1).rounded(0.423456789), 0.423456789
        )
        self.assertEqual(Axis("batch_size", low=8, high=64).rounded(13), 13)
        self.assertEqual(Axis("network", choices=("a", "b")).rounded("a"), "a")
        logs = Axis("x", low=1e-5, high=1.0, is_log=True)
        self.assertEqual([logs.rounded(x) for x in (1.23456e-5, 0.0123456)], [1.23e-5, 0.0123])
        rng = np.random.default_rng(0)
        for axis in (logs, Axis("x", low=-0.2, high=1e3), Axis("x", low=0.1, high=0.1000001)):
            for value in rng.uniform(axis.low, axis.high, 100).tolist():
                found = axis.rounded(value)
                self.assertBetween(found, axis.low, axis.high)
                width = (
                    value * math.log(axis.high / axis.low) if axis.is_log else axis.high - axis.low
                )
                self.assertLessEqual(abs(found - value), width / 1000)


class CommandTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = os.path.join(self.create_tempdir().full_path, "sweep")

    def request(self, *arguments):
        values = flags.FlagValues()
        sweep.define_flags(values)
        return sweep.read_flags(["sweep", *SMALL, f"--sweep_dir={self.dir}", *arguments], values)

    @parameterized.parameters(
        ([RATE], "--tune needs --trials"),
        ([RATE, "--trials=0"], "trials"),
        (["--over=seed=0:2", "--trials=3"], "--trials has no effect without --tune"),
        (["--over=seed=0:2", "--objective=validation_accuracy"], "--objective has no effect"),
        ([RATE, "--trials=3", "--objective=test_accuracy"], "objective"),
        ([RATE, "--trials=3", RATE], "--tune=learning_rate is given twice"),
        ([RATE, "--trials=3", "--over=learning_rate=1,2"], "--tune and --over both set"),
        ([RATE, "--trials=60000", "--over=seed=0:2"], "too many"),
        ([RATE, "--trials=3", "--compare_with=learning_rate=1"], "--compare_with compares runs"),
        ([RATE, "--trials=3", "--target_accuracy=90"], "--target_accuracy compares runs"),
        (
            [RATE, "--trials=3", "--dry_run", "--tune=momentum=0.8,0.9"],
            "instead: --over=learning_rate=0.003,0.3 --over=momentum=0.8,0.9$",
        ),
        (["--tune=momentum=0:1", "--trials=3"], "The run --momentum=1.0: .*momentum must be in"),
        (["--tune=momentum=-1:0.5", "--trials=3"], "The run --momentum=-1.0: "),
        (["--tune=learning_rate=0.1:0.3,2", "--trials=3"], "learning_rate"),
        (["--tune=method=fixmatch,uda,no", "--trials=3"], "The run --method=no: "),
        (
            ["--tune=method=fixmatch,supervised", "--tune=confidence_threshold=0:1", "--trials=3"],
            "--confidence_threshold is not a flag of method 'supervised'",
        ),
        (["--tune=network=small_cnn,/no/own.keras", "--trials=3"], "There is no file /no/own"),
    )
    def test_mistakes(self, arguments, message):
        with self.assertRaisesRegex((UserError, flags.Error), message):
            self.request(*arguments)
        self.assertFalse(os.path.exists(self.dir))

    def test_a_flag_of_a_table_is_not_tuned(self):
        table = self.create_tempfile(content="learning_rate,seed\n0.1,2\n").full_path
        with self.assertRaisesRegex(UserError, "--tune and --over_file both set --learning_rate"):
            self.request(RATE, "--trials=3", f"--over_file={table}")

    def test_the_ends_are_checked_beside_the_first_or_the_last_values_of_others(self):
        found = self.request(
            *("--method=divide_mix", "--tune=ramp_start=0:0.5", "--tune=ramp_end=0.3:0.8"),
            "--trials=3",
        )
        values = [(run.values["ramp_start"], run.values["ramp_end"]) for run in found.runs]
        self.assertCountEqual(values, [(0.0, 0.3), (0.5, 0.8), (0.0, 0.8)])
        with self.assertRaisesRegex(UserError, "ramp_start"):
            self.request(
                *("--method=divide_mix", "--tune=ramp_start=0:0.5", "--tune=ramp_end=0.3:0.4"),
                "--trials=3",
            )

    def test_a_trial_has_a_run_for_each_combination(self):
        found = self.request(
            *(RATE, "--trials=4", "--over=seed=0:2", "--over=num_labels=20,40", *SPLITS)
        )
        self.assertEqual(found.swept, ["num_labels", "learning_rate", "seed"])
        self.assertEqual((found.tuning.trials, len(found.runs)), (4, 8))
        runs = found.tuning.runs_of({"learning_rate": "0.0123"})
        self.assertEqual(
            [run.name for run in runs],
            [
                f"num_labels-{labels}_learning_rate-0.0123_seed-{seed}"
                for seed in (0, 1)
                for labels in (20, 40)
            ],
        )
        settings = runs[-1].settings
        self.assertEqual(
            (settings.learning_rate, settings.seed, settings.num_labels), (0.0123, 1, 40)
        )
        self.assertEqual(settings.run_dir, os.path.join(self.dir, "runs", runs[-1].name))

    def test_what_must_not_change_is_named(self):
        def lines(*arguments):
            found = self.request("--trials=3", *arguments)
            return found.swept, found.tuning.lines(found.runs[0])

        swept, before = lines(RATE, "--over=seed=0:2")
        os.makedirs(self.dir)
        folder.begin(self.dir, swept, [], before)
        folder.look_into(self.dir, *self.same_with_other_words())
        for arguments, message in (
            ([RATE, "--over=seed=0:3"], r"\(none\) there, --over=seed=2 here"),
            (
                ["--tune=learning_rate=log:0.003:0.4", "--over=seed=0:2"],
                "log:0.003:0.3 there, .*0.4",
            ),
            (["--tune=learning_rate=0.003:0.3", "--over=seed=0:2"], "log:0.003:0.3 there, "),
            ([RATE, "--over=seed=0:2", "--steps=20"], "--steps=40 .*there, .*--steps=20 .*here"),
            ([RATE], "sweeps learning_rate, seed. Received: learning_rate"),
        ):
            swept, now = lines(*arguments)
            with self.assertRaisesRegex(UserError, message):
                folder.look_into(self.dir, swept, [], now)
        plain = self.request("--over=learning_rate=0.1,0.2", "--over=seed=0:2")
        with self.assertRaisesRegex(UserError, r"--tune=learning_rate=.* there, \(none\) here"):
            folder.look_into(self.dir, plain.swept, plain.runs)

    def same_with_other_words(self):
        again = self.request(
            *("--trials=9", "--over=seed=0,1", "--tune=--learning_rate=log:3e-3:.3")
        )
        return again.swept, [], again.tuning.lines(again.runs[0])

    def test_optuna_is_asked_for_before_anything_is_written(self):
        found = self.request(RATE, "--trials=3", *SPLITS)
        with mock.patch.dict(sys.modules, optuna=None):
            with self.assertRaisesRegex(UserError, r"pip install 'ssl_noisy\[tune\]'"):
                sweep.main(found)
        self.assertFalse(os.path.exists(self.dir))

    def test_a_validation_split_is_needed(self):
        rng = np.random.default_rng(0)
        labels, own = np.arange(20) % 2, os.path.join(self.create_tempdir().full_path, "own.npz")
        arrays = {"images_train": rng.integers(0, 256, (20, 8, 8), "uint8"), "labels_train": labels}
        arrays |= {"images_test": arrays["images_train"], "labels_test": labels}
        np.savez(own, **arrays)
        for dataset in ("digits", "cifar10", f"npz:{own}"):
            found = self.request(RATE, "--trials=3", f"--dataset={dataset}")
            with mock.patch.object(study, "check"):
                with self.assertRaisesRegex(UserError, f"{dataset} does not .* --validation_split"):
                    sweep.main(found)
            self.assertFalse(os.path.exists(self.dir))
        tune.check_validation(self.request(RATE, "--trials=3", *SPLITS).runs)
        np.savez(own, **arrays, images_validation=arrays["images_train"], labels_validation=labels)
        tune.check_validation(found.runs)
        found = self.request(RATE, "--trials=3", "--method=scan", *SPLITS)
        with self.assertRaisesRegex(UserError, "--method=scan, which finds clusters"):
            tune.check_validation(found.runs)


class ListedStudy:
    """A study without Optuna, which proposes the rates of a list. Its trials outlive a sweep."""

    def __init__(self, rates):
        self.rates, self.found = rates, []

    def trials(self):
        return list(self.found)

    def propose(self, problem_of):
        number = len(self.found)
        values = {"learning_rate": self.rates[number]}
        self.found.append(study.Trial(number, values, study.RUNNING, None, problem_of(values)))
        return self.found[-1]

    def tell(self, number, value):
        if self.found[number].state != study.RUNNING:
            raise AssertionError(f"Trial {number} has ended before.")
        state = study.FAILED if value is None else study.COMPLETE
        self.found[number] = dataclasses.replace(self.found[number], state=state, value=value)


class TrialsTest(absltest.TestCase):
    def begin(self, rates=("0.1", "0.2", "0.3", "0.4"), found=None):
        """Returns a source of two runs in each trial, and its study."""
        self.dir = os.path.join(self.create_tempdir().full_path, "sweep")
        words = ["sweep", *SMALL, *SPLITS, RATE, f"--trials={len(rates)}", "--over=seed=0:2"]
        values = flags.FlagValues()
        sweep.define_flags(values)
        tuning = sweep.read_flags([*words, f"--sweep_dir={self.dir}"], values).tuning
        self.listed, self.plans, source = ListedStudy(rates), [], trials.Trials(tuning, ["a"])
        self.listed.found = found or []
        self.enter_context(mock.patch.object(study, "Study", lambda *_: self.listed))
        source.begin(lambda runs: self.plans.append([run.name for run in runs]))
        return source

    def end(self, source, name, outcome=worker.FINISHED, accuracy=0.5):
        run = next(run for run in source.runs if run.name == name)
        if outcome == worker.FINISHED:
            os.makedirs(run.settings.run_dir)
            result = {"last_epoch": {"validation_accuracy": accuracy, "test_accuracy": 0.125}}
            run_folder.write_result(run.settings.run_dir, result)
        source.ended(local.Attempt(name, outcome, outcome, 1.0))

    def states(self):
        return [(trial.state, trial.value) for trial in self.listed.found]

    def test_a_trial_is_proposed_when_the_runs_before_it_have_begun(self):
        source = self.begin()
        self.assertEqual((source.left, self.plans), (8, [[], []]))
        names = [source.next().name, source.next().name]
        self.assertEqual(names, ["learning_rate-0.1_seed-0", "learning_rate-0.1_seed-1"])
        self.assertEqual(
            (source.left, self.states(), self.plans[-1]), (6, [("running", None)], names)
        )
        self.end(source, names[1], accuracy=0.25)
        self.assertEqual(self.states(), [("running", None)])
        third = source.next().name
        self.assertEqual(third, "learning_rate-0.2_seed-0")
        self.assertEqual((source.left, self.plans[-1][:3]), (5, [*names, third]))
        self.end(source, names[0], accuracy=0.5)
        self.assertEqual(self.states(), [("complete", 0.375), ("running", None)])

    def test_a_failed_run_ends_its_trial_and_leaves_out_its_other_runs(self):
        source = self.begin()
        self.end(source, source.next().name, worker.BUG)
        self.assertEqual((self.states(), source.left), ([("failed", None)], 6))
        self.assertEqual(source.next().name, "learning_rate-0.2_seed-0")

    def test_a_fault_of_the_machine_ends_no_trial(self):
        source = self.begin(rates=("0.1",))
        names = [source.next().name, source.next().name]
        self.end(source, names[0], local.KILLED)
        self.end(source, names[1])
        self.assertEqual((self.states(), source.left), ([("running", None)], 0))
        self.assertIsNone(source.next())
        state = {names[0]: {"status": "failed", "reason": "no power"}}
        self.assertRegex(source.problem(state), r"1 runs failed: .*0.1_seed-0 \(no power\)")

    def test_equal_trials_share_their_runs(self):
        source = self.begin(rates=("0.1", "0.1", "0.2", "0.1"))
        names = [source.next().name for _ in range(4)]  # the second trial waits for the first one
        self.assertLen(set(names), 4)
        self.assertEqual(
            [trial.values["learning_rate"] for trial in self.listed.found], ["0.1", "0.1", "0.2"]
        )
        for name in names[:2]:
            self.end(source, name, accuracy=0.75)
        self.assertEqual(self.states(), 2 * [("complete", 0.75)] + [("running", None)])
        self.assertIsNone(source.next())  # the last trial ends at once
        self.assertEqual(self.states()[3], ("complete", 0.75))
        self.assertEqual(source.left, 0)

    def test_running_trials_continue_and_ended_ones_do_not(self):
        found = [
            study.Trial(0, {"learning_rate": "0.1"}, study.FAILED, None, None),
            study.Trial(1, {"learning_rate": "0.2"}, study.COMPLETE, 0.5, None),
            study.Trial(2, {"learning_rate": "0.3"}, study.RUNNING, None, None),
        ]
        source = self.begin(found=found)
        self.assertEqual((source.left, len(source.runs)), (4, 6))
        self.assertEqual([source.next().name[:17] for _ in range(2)], ["learning_rate-0.3"] * 2)
        self.assertEqual(source.next().name, "learning_rate-0.4_seed-0")


if __name__ == "__main__":
    absltest.main()
